//! A teacher in a few bytes: a linear model as ONNX, written field by field.
//! Knows protobuf's wire format; must not know who asks.

/// A field of bytes: another message, a text, packed numbers.
fn field(number: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut length = body.len();
    while length > 0x7f {
        bytes.push(0x80 | u8::try_from(length & 0x7f).unwrap());
        length >>= 7;
    }
    bytes.push(u8::try_from(length).unwrap());
    bytes.extend_from_slice(body);
    bytes
}

/// A field of a small number.
fn number(field: u8, value: u8) -> Vec<u8> {
    vec![field << 3, value]
}

/// `x` of f32[n, I], `scores = x . weights` of f32[n, C].
pub(crate) fn linear_model<const I: usize, const C: usize>(weights: [[f32; C]; I]) -> Vec<u8> {
    let small = |extent: usize| u8::try_from(extent).unwrap();
    let value_info = |name: &[u8], columns: usize| {
        let rows = field(1, &field(2, b"n"));
        let shape = field(2, &[rows, field(1, &number(1, small(columns)))].concat());
        let tensor = field(1, &[number(1, 1), shape].concat());
        [field(1, name), field(2, &tensor)].concat()
    };
    // An initializer of floats: dims, data_type, float_data, name.
    let floats: Vec<u8> = weights.iter().flatten().flat_map(|weight| weight.to_le_bytes()).collect();
    let dims = [number(1, small(I)), number(1, small(C))].concat();
    let weights = [dims, number(2, 1), field(4, &floats), field(8, b"w")].concat();
    let node = [field(1, b"x"), field(1, b"w"), field(2, b"scores"), field(4, b"MatMul")].concat();
    let graph = [
        field(1, &node),
        field(2, b"linear"),
        field(5, &weights),
        field(11, &value_info(b"x", I)),
        field(12, &value_info(b"scores", C)),
    ]
    .concat();
    [number(1, 8), field(7, &graph), field(8, &number(2, 13))].concat()
}
