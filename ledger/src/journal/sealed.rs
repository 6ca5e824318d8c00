//! Journals for fuzzing: whatever their entries and blobs are, every checksum and the chain are right.
//!
//! Must not judge what it writes. Invariant: the frames are those that a writer with these contents would have written.

use super::frame::{Header, link};
use super::{FILE_HEADER_BYTES, FileHeader};

const HEADER: FileHeader = FileHeader { writer: *b"0123456789abcdef", created_ms: 0 };
/// State, length and checksum of a blob.
const BLOB_HEADER_BYTES: usize = 9;

/// A journal of the frames that `script` describes, and how many they are. Each is the length of its entry (two bytes),
/// the entry, how many blobs follow, and each blob as its state, its length (one byte) and its bytes.
pub(crate) fn sealed(mut script: &[u8]) -> (Vec<u8>, usize) {
    let mut bytes = HEADER.encode().to_vec();
    debug_assert_eq!(bytes.len(), FILE_HEADER_BYTES);
    let (mut chain, mut number) = (HEADER.chain(), 0);
    while let Some((length, rest)) = script.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (payload, rest) = rest.split_at(length);
        let (count, mut rest) = rest.split_first().map_or((0, rest), |(count, rest)| (*count, rest));
        let mut blobs = Vec::new();
        for _ in 0..count {
            let Some(([state, length], more)) = rest.split_first_chunk::<2>() else { break };
            let (body, more) = more.split_at(usize::from(*length).min(more.len()));
            blobs.extend_from_slice(&blob(*state, body));
            rest = more;
        }
        script = rest;
        number += 1;
        chain = link(&chain, number, payload);
        let header = Header {
            payload_bytes: u32::try_from(payload.len()).expect("two bytes said how many"),
            blobs_bytes: blobs.len() as u64,
            number,
            synced: bytes.len() as u64,
            chain,
            payload_crc: crc32fast::hash(payload),
        };
        bytes.extend_from_slice(&header.encode(&HEADER.writer));
        bytes.extend_from_slice(payload);
        bytes.extend_from_slice(&blobs);
    }
    (bytes, usize::try_from(number).unwrap_or(usize::MAX))
}

fn blob(state: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("one byte said how many");
    let mut bytes = Vec::with_capacity(BLOB_HEADER_BYTES + body.len());
    bytes.push(state);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&super::frame::blob_crc(state, length, body).to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}
