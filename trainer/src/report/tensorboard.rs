//! Scalars as TensorBoard reads them: `Event` messages in TFRecord frames.
//!
//! The three messages are written by hand, so that no protobuf compiler is needed. Invariants: each frame carries masked
//! CRC-32C sums of its length and of its bytes; the wall time is zero, so that the same run gives the same file.

use prost::Message;

/// `tensorflow.Event`, the fields that are used.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

/// `tensorflow.Summary`.
#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

/// `tensorflow.Summary.Value`.
#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// An events file of scalars: (step, tag, value).
pub(crate) fn events(scalars: &[(usize, &str, f32)]) -> Vec<u8> {
    let version =
        Event { wall_time: 0.0, step: 0, file_version: Some("brain.Event:2".into()), summary: None };
    let mut file = frame(&version.encode_to_vec());
    for (step, tag, scalar) in scalars {
        let value = Value { tag: (*tag).to_owned(), simple_value: Some(*scalar) };
        let summary = Some(Summary { value: vec![value] });
        let event = Event { wall_time: 0.0, step: *step as i64, file_version: None, summary };
        file.extend(frame(&event.encode_to_vec()));
    }
    file
}

fn frame(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    [&length[..], &masked(&length).to_le_bytes(), bytes, &masked(bytes).to_le_bytes()].concat()
}

/// TFRecord's mask: rotated right by 15 bits, plus a constant.
fn masked(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit by bit: a run writes some thousand short frames, once.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_castagnolis() {
        // RFC 3720, B.4: 32 bytes of zeros; and the usual check word.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    // From TensorFlow's own writer: tf.io.TFRecordWriter(p).write(b"tuition") would frame 7 bytes; the layout is
    // length u64, masked crc of it, bytes, masked crc of them.
    #[test]
    fn frames_hold_their_bytes_and_events_decode() {
        let file = events(&[(3, "loss/train", 0.25)]);
        let mut rest = &file[..];
        let mut decoded = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(u32::from_le_bytes(rest[8..12].try_into().unwrap()), masked(&rest[..8]));
            let body = &rest[12..12 + length];
            assert_eq!(u32::from_le_bytes(rest[12 + length..16 + length].try_into().unwrap()), masked(body));
            decoded.push(Event::decode(body).unwrap());
            rest = &rest[16 + length..];
        }
        assert_eq!(decoded[0].file_version.as_deref(), Some("brain.Event:2"));
        assert_eq!(decoded[1].step, 3);
        let value = &decoded[1].summary.as_ref().unwrap().value[0];
        assert_eq!((value.tag.as_str(), value.simple_value), ("loss/train", Some(0.25)));
    }
}
