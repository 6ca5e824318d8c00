//! Somebody who knows the journal's format and rewrites a record: numbers, checksums and chain are made anew.
//! Knows `docs/journal.md`; shares no code with the ledger.
//! Invariant: what is written is a journal that nothing in itself gives away.

use serde_json::Value;
use std::fs;
use std::path::Path;

const FILE_HEADER: usize = 40;
const HEADER: usize = 72;

/// A journal, open to be changed.
#[derive(Clone)]
pub(crate) struct Journal {
    header: Vec<u8>,
    pub(crate) frames: Vec<Frame>,
}

/// One entry: its JSON, and its blobs as they are stored.
#[derive(Clone)]
pub(crate) struct Frame {
    pub(crate) payload: Value,
    /// As it was read: an entry that is not touched keeps its bytes.
    read: Vec<u8>,
    pub(crate) blobs: Vec<u8>,
}

impl Frame {
    /// What the entry says under the name of its fact, if it is of that name.
    pub(crate) fn fact(&mut self, name: &str) -> Option<&mut Value> {
        self.payload["entry"]["fact"].get_mut(name)
    }
}

impl Journal {
    pub(crate) fn read(path: &Path) -> Journal {
        let bytes = fs::read(path).unwrap();
        let number = |at: usize, length: usize| {
            let read =
                bytes[at..at + length].iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
            usize::try_from(read).unwrap()
        };
        let (mut at, mut frames) = (FILE_HEADER, Vec::new());
        while at < bytes.len() {
            let payload = at + HEADER..at + HEADER + number(at + 4, 4);
            let blobs = payload.end..payload.end + number(at + 8, 8);
            at = blobs.end;
            let read = bytes[payload].to_vec();
            let payload = serde_json::from_slice(&read).unwrap();
            frames.push(Frame { payload, read, blobs: bytes[blobs].to_vec() });
        }
        Journal { header: bytes[..FILE_HEADER].to_vec(), frames }
    }

    /// Where each frame begins, and where the last one ends.
    pub(crate) fn offsets(&self, path: &Path) -> Vec<usize> {
        let bytes = fs::read(path).unwrap();
        let mut found: Vec<usize> =
            (FILE_HEADER..bytes.len()).filter(|at| bytes[*at..].starts_with(b"\xf7TuE")).collect();
        found.push(bytes.len());
        assert_eq!(found.len(), self.frames.len() + 1, "an answer looks like a frame");
        found
    }

    /// A store with this journal in a new folder.
    pub(crate) fn write(&self, folder: &Path) {
        let mut out = self.header.clone();
        let mut chain = *blake3::hash(&out).as_bytes();
        for (number, Frame { payload, read, blobs }) in (1_u64..).zip(&self.frames) {
            let untouched = serde_json::from_slice::<Value>(read).unwrap() == *payload;
            let payload = if untouched { read.clone() } else { payload.to_string().into_bytes() };
            let place = out.len();
            chain = *blake3::Hasher::new()
                .update(&chain)
                .update(&number.to_le_bytes())
                .update(&payload)
                .finalize()
                .as_bytes();
            out.extend(b"\xf7TuE");
            out.extend(u32::try_from(payload.len()).unwrap().to_le_bytes());
            out.extend((blobs.len() as u64).to_le_bytes());
            out.extend(number.to_le_bytes());
            out.extend((place as u64).to_le_bytes());
            out.extend(chain);
            out.extend(crc32fast::hash(&payload).to_le_bytes());
            let crc = crc32fast::hash(&[&self.header[12..28], &out[place..]].concat());
            out.extend(crc.to_le_bytes());
            out.extend(payload);
            out.extend(blobs);
        }
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("journal"), out).unwrap();
    }
}
