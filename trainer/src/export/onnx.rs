//! Students as ONNX models: the messages that are needed, written by hand, and the graph of each kind of student.
//!
//! It must not know files or ONNX Runtime. Invariants: opset 17, weights inside the file, the first dimension free; the
//! graph does what the student's own forward does, the hash of windows included (`check` in this room compares them).

use std::ops::RangeInclusive;

use candle_core::Result;
use prost::Message;

use super::{image, transformer};
use crate::example::PADDING;
use crate::student::{
    Built, ByteConv, ByteConvConfig, FACTOR, FLOOR, Linear, MODULUS, Mlp, SCALE, SHAPE_ORDERS, Student,
    folded,
};

#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(int64, tag = "1")]
    ir_version: i64,
    #[prost(string, tag = "2")]
    producer_name: String,
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    opset_import: Vec<Opset>,
}

#[derive(Clone, PartialEq, Message)]
struct Opset {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(int64, tag = "2")]
    version: i64,
}

#[derive(Clone, PartialEq, Message)]
struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    node: Vec<Node>,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    input: Vec<ValueInfo>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfo>,
}

#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(string, repeated, tag = "1")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(string, tag = "4")]
    op_type: String,
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Attribute {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(float, tag = "2")]
    f: f32,
    #[prost(int64, tag = "3")]
    i: i64,
    #[prost(bytes = "vec", tag = "4")]
    s: Vec<u8>,
    #[prost(int64, repeated, tag = "8")]
    ints: Vec<i64>,
    #[prost(int32, tag = "20")]
    kind: i32,
}

#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(string, tag = "8")]
    name: String,
    #[prost(bytes = "vec", tag = "9")]
    raw_data: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct ValueInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    kind: Option<TypeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TypeProto {
    #[prost(message, optional, tag = "1")]
    tensor: Option<TensorType>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorType {
    #[prost(int32, tag = "1")]
    element: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
}

#[derive(Clone, PartialEq, Message)]
struct Shape {
    #[prost(message, repeated, tag = "1")]
    dim: Vec<Dimension>,
}

#[derive(Clone, PartialEq, Message)]
struct Dimension {
    #[prost(int64, optional, tag = "1")]
    value: Option<i64>,
    #[prost(string, optional, tag = "2")]
    param: Option<String>,
}

const FLOAT: i32 = 1;
const INT32: i32 = 6;
pub(super) const INT64: i32 = 7;
const ATTRIBUTE_FLOAT: i32 = 1;
const ATTRIBUTE_INT: i32 = 2;
const ATTRIBUTE_STRING: i32 = 3;
const ATTRIBUTE_INTS: i32 = 7;
const OPSET: i64 = 17;
const IR_VERSION: i64 = 8;

/// The name of a model's input.
pub(crate) const INPUT: &str = "input";
/// The name of a model's output.
pub(crate) const OUTPUT: &str = "logits";

/// A student as the bytes of an ONNX model; `width` is the number of features or symbols of an input.
pub(crate) fn model(student: &Built, width: usize, classes: usize) -> Result<Vec<u8>> {
    let mut graph = Graph::default();
    let (logits, element) = match student {
        Built::Mlp(mlp) => (perceptron(&mut graph, mlp)?, FLOAT),
        Built::ByteConv(bytes) => (byte_conv(&mut graph, bytes, width)?, INT32),
        Built::Cnn(student) => (image::network(&mut graph, student)?, FLOAT),
        Built::Resnet(student) => (image::network(&mut graph, student)?, FLOAT),
        Built::Transformer(student) => {
            let element = if student.mixable() { FLOAT } else { INT32 };
            (transformer::network(&mut graph, student)?, element)
        }
    };
    graph.node("Identity", &[&logits], OUTPUT, vec![]);
    let graph = GraphProto {
        node: graph.nodes,
        name: "student".into(),
        initializer: graph.constants,
        input: vec![value(INPUT, element, width)],
        output: vec![value(OUTPUT, FLOAT, classes)],
    };
    let opset_import = vec![Opset { domain: String::new(), version: OPSET }];
    let model =
        Model { ir_version: IR_VERSION, producer_name: "tuition".into(), graph: Some(graph), opset_import };
    Ok(model.encode_to_vec())
}

fn value(name: &str, element: i32, width: usize) -> ValueInfo {
    let free = Dimension { value: None, param: Some("n".into()) };
    let fixed = Dimension { value: Some(width as i64), param: None };
    let shape = Some(Shape { dim: vec![free, fixed] });
    ValueInfo { name: name.into(), kind: Some(TypeProto { tensor: Some(TensorType { element, shape }) }) }
}

fn perceptron(graph: &mut Graph, mlp: &Mlp) -> Result<String> {
    let mut hidden = INPUT.to_owned();
    for (at, layer) in mlp.layers().iter().enumerate() {
        if at > 0 {
            hidden = graph.op("Relu", &[&hidden], vec![]);
        }
        hidden = graph.linear(&hidden, layer)?;
    }
    Ok(hidden)
}

fn byte_conv(graph: &mut Graph, student: &ByteConv, length: usize) -> Result<String> {
    let config = student.config();
    let symbols = graph.op("Cast", &[INPUT], vec![int("to", i64::from(INT64))]);
    let mut views = Vec::new();
    let table = match student.embedding() {
        Some(table) => {
            let values = table.flatten_all()?.to_vec1()?;
            Some(graph.floats(&[table.dim(0)? as i64, table.dim(1)? as i64], &values))
        }
        None => None,
    };
    if let (Some(table), [first, second]) = (&table, student.short()) {
        let embedded = graph.op("Gather", &[table, &symbols], vec![]);
        let channels_first = graph.op("Transpose", &[&embedded], vec![ints("perm", &[0, 2, 1])]);
        let hidden = graph.convolution(&channels_first, first, config, config.embedding)?;
        let hidden = graph.convolution(&hidden, second, config, config.channels)?;
        views.push(graph.op("ReduceMax", &[&hidden], vec![ints("axes", &[2]), int("keepdims", 0)]));
    }
    if let Some(long) = student.long() {
        let counts = graph.window_counts(&symbols, 1..=config.orders, config.buckets, length);
        let hidden = graph.linear(&counts, long)?;
        views.push(graph.op("Relu", &[&hidden], vec![]));
    }
    if let Some(shapes) = student.shapes() {
        let table: Vec<i64> = (0..=PADDING).map(|symbol| i64::from(folded(symbol))).collect();
        let table = graph.integers(&table);
        let folded = graph.op("Gather", &[&table, &symbols], vec![]);
        let counts = graph.window_counts(&folded, SHAPE_ORDERS, config.shapes, length);
        let hidden = graph.linear(&counts, shapes)?;
        views.push(graph.op("Relu", &[&hidden], vec![]));
    }
    if let (Some(table), Some(layer)) = (&table, student.ends()) {
        let (ends, length) = (config.ends as i64, length as i64);
        let first = graph.slice(&symbols, 0, ends);
        let last = graph.slice(&symbols, length - ends, length);
        let both = graph.op("Concat", &[&first, &last], vec![int("axis", 1)]);
        let embedded = graph.op("Gather", &[table, &both], vec![]);
        let flat = graph.op("Flatten", &[&embedded], vec![int("axis", 1)]);
        let hidden = graph.linear(&flat, layer)?;
        views.push(graph.op("Relu", &[&hidden], vec![]));
    }
    let views: Vec<&str> = views.iter().map(String::as_str).collect();
    let joined = graph.op("Concat", &views, vec![int("axis", 1)]);
    graph.linear(&joined, student.output())
}

pub(super) fn float(name: &str, f: f32) -> Attribute {
    Attribute { name: name.into(), f, kind: ATTRIBUTE_FLOAT, ..Attribute::default() }
}

pub(super) fn int(name: &str, i: i64) -> Attribute {
    Attribute { name: name.into(), i, kind: ATTRIBUTE_INT, ..Attribute::default() }
}

pub(super) fn ints(name: &str, values: &[i64]) -> Attribute {
    Attribute { name: name.into(), ints: values.to_vec(), kind: ATTRIBUTE_INTS, ..Attribute::default() }
}

fn string(name: &str, text: &str) -> Attribute {
    Attribute {
        name: name.into(),
        s: text.as_bytes().to_vec(),
        kind: ATTRIBUTE_STRING,
        ..Attribute::default()
    }
}

/// A graph under construction: every node has one output, named by its number.
#[derive(Default)]
pub(super) struct Graph {
    nodes: Vec<Node>,
    constants: Vec<TensorProto>,
}

impl Graph {
    fn node(&mut self, op: &str, inputs: &[&str], output: &str, attribute: Vec<Attribute>) {
        self.nodes.push(Node {
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output: vec![output.to_owned()],
            name: format!("{op}-{}", self.nodes.len()),
            op_type: op.to_owned(),
            attribute,
        });
    }

    pub(super) fn op(&mut self, op: &str, inputs: &[&str], attributes: Vec<Attribute>) -> String {
        let output = format!("v{}", self.nodes.len());
        self.node(op, inputs, &output, attributes);
        output
    }

    fn constant(&mut self, dims: &[i64], data_type: i32, raw_data: Vec<u8>) -> String {
        let name = format!("c{}", self.constants.len());
        self.constants.push(TensorProto { dims: dims.to_vec(), data_type, name: name.clone(), raw_data });
        name
    }

    pub(super) fn floats(&mut self, dims: &[i64], values: &[f32]) -> String {
        self.constant(dims, FLOAT, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    pub(super) fn integers(&mut self, values: &[i64]) -> String {
        let raw = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(&[values.len() as i64], INT64, raw)
    }

    pub(super) fn linear(&mut self, input: &str, layer: &Linear) -> Result<String> {
        let (output, width) = layer.weight.dims2()?;
        let weight = self.floats(&[output as i64, width as i64], &layer.weight.flatten_all()?.to_vec1()?);
        let bias = self.floats(&[output as i64], &layer.bias.to_vec1()?);
        Ok(self.op("Gemm", &[input, &weight, &bias], vec![int("transB", 1)]))
    }

    /// A convolution and ReLU over `[n, channels, l]`, from a layer whose inputs are taps, then channels.
    fn convolution(
        &mut self,
        input: &str,
        layer: &Linear,
        config: &ByteConvConfig,
        channels: usize,
    ) -> Result<String> {
        let (filters, kernel) = (layer.weight.dim(0)?, config.kernel);
        let weight = layer.weight.reshape((filters, kernel, channels))?.transpose(1, 2)?.contiguous()?;
        let dims = [filters as i64, channels as i64, kernel as i64];
        let weight = self.floats(&dims, &weight.flatten_all()?.to_vec1()?);
        let bias = self.floats(&[filters as i64], &layer.bias.to_vec1()?);
        let attributes =
            vec![ints("kernel_shape", &[kernel as i64]), ints("strides", &[config.stride as i64])];
        let output = self.op("Conv", &[input, &weight, &bias], attributes);
        Ok(self.op("Relu", &[&output], vec![]))
    }

    fn slice(&mut self, input: &str, start: i64, end: i64) -> String {
        let (start, end, axis) = (self.integers(&[start]), self.integers(&[end]), self.integers(&[1]));
        self.op("Slice", &[input, &start, &end, &axis], vec![])
    }

    /// What `count_windows` does, on `[n, length]` symbols: `[n, buckets]`.
    fn window_counts(
        &mut self,
        symbols: &str,
        orders: RangeInclusive<usize>,
        buckets: usize,
        length: usize,
    ) -> String {
        let buckets = buckets as i64;
        let indices: Vec<String> = (*orders.start()..=(*orders.end()).min(length))
            .map(|order| self.window_buckets(symbols, order, buckets, length))
            .collect();
        let indices: Vec<&str> = indices.iter().map(String::as_str).collect();
        let indices = self.op("Concat", &indices, vec![int("axis", 1)]);
        let shape = self.op("Shape", &[&indices], vec![]);
        let one = self.floats(&[1, 1], &[1.0]);
        let ones = self.op("Expand", &[&one, &shape], vec![]);
        // One bucket more than there are: windows with padding go there and are cut off.
        let rows = self.op("Shape", &[symbols], vec![int("end", 1)]);
        let width = self.integers(&[buckets + 1]);
        let shape = self.op("Concat", &[&rows, &width], vec![int("axis", 0)]);
        let zero = self.floats(&[1, 1], &[0.0]);
        let zeros = self.op("Expand", &[&zero, &shape], vec![]);
        let add = vec![int("axis", 1), string("reduction", "add")];
        let counts = self.op("ScatterElements", &[&zeros, &indices, &ones], add);
        let counts = self.slice(&counts, 0, buckets);
        let counts = self.op("Add", &[&counts, &one], vec![]);
        let logs = self.op("Log", &[&counts], vec![]);
        let squares = self.op("Mul", &[&logs, &logs], vec![]);
        let axis = self.integers(&[1]);
        let sum = self.op("ReduceSum", &[&squares, &axis], vec![int("keepdims", 1)]);
        let length = self.op("Sqrt", &[&sum], vec![]);
        let floor = self.floats(&[1, 1], &[FLOOR as f32]);
        let length = self.op("Add", &[&length, &floor], vec![]);
        let unit = self.op("Div", &[&logs, &length], vec![]);
        let scale = self.floats(&[1, 1], &[SCALE as f32]);
        self.op("Mul", &[&unit, &scale], vec![])
    }

    /// The bucket of each window of `order` symbols, `[n, length - order + 1]`; `buckets` for one with padding.
    fn window_buckets(&mut self, symbols: &str, order: usize, buckets: i64, length: usize) -> String {
        let (order, length) = (order as i64, length as i64);
        let (factor, modulus, one) =
            (self.integers(&[FACTOR]), self.integers(&[MODULUS]), self.integers(&[1]));
        let mut hash = self.integers(&[order]);
        let mut highest: Option<String> = None;
        for offset in 0..order {
            let symbol = self.slice(symbols, offset, length - order + 1 + offset);
            hash = self.op("Mul", &[&hash, &factor], vec![]);
            hash = self.op("Add", &[&hash, &symbol], vec![]);
            hash = self.op("Add", &[&hash, &one], vec![]);
            hash = self.op("Mod", &[&hash, &modulus], vec![]);
            highest = Some(match highest {
                None => symbol,
                Some(before) => self.op("Max", &[&before, &symbol], vec![]),
            });
        }
        let (width, padding) = (self.integers(&[buckets]), self.integers(&[i64::from(PADDING)]));
        let bucket = self.op("Mod", &[&hash, &width], vec![]);
        let whole = self.op("Less", &[highest.as_deref().unwrap_or(symbols), &padding], vec![]);
        self.op("Where", &[&whole, &bucket, &width], vec![])
    }
}
