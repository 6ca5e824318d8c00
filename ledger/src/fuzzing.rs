//! What must hold for any bytes: the JSON reader, its canonical form, and the journal reader.
//!
//! The doors of `fuzz/`; the seeds and findings of `fuzz/corpus/` run through them in the ordinary tests too. Must not
//! write or read files. Invariant: each function asserts a property, not only that nothing panics.

use serde_json::Value;

use crate::entry::Entry;
use crate::journal::{Blob, FileHeader, Frames, JournalError, Source, Step, judge, read_frame, sealed};
use crate::json::{Json, JsonError};

/// A journal with an entry of every kind.
const GOLDEN: &[u8] = include_bytes!("../tests/data/journal-1");
/// How much two spellings of one number may differ: serde_json does not round floats to the last bit.
const PRECISION: f64 = 1e-14;
/// serde_json gives up where a number is near the end of what a double holds, or nests as deep as this.
const NEAR_THE_END: f64 = 1e307;
const NEAR_THE_BOTTOM: usize = 126;

/// What is read is what serde_json reads; the canonical form is its own canonical form and says the same; writing keeps
/// order and spelling.
pub fn json(data: &[u8]) {
    let theirs: Result<Value, _> = serde_json::from_slice(data);
    let ours = match Json::parse(data) {
        Ok(ours) => ours,
        Err(JsonError::Malformed(_)) => {
            return assert!(theirs.is_err(), "serde_json reads what is refused");
        }
        Err(JsonError::Duplicate(_) | JsonError::TooDeep | JsonError::OutOfRange(_)) => return,
    };
    match &theirs {
        Ok(theirs) => assert!(same(&ours, theirs), "read as another value than serde_json's {theirs}"),
        Err(error) => assert!(is_extreme(&ours, 0), "serde_json refuses what is read: {error}"),
    }
    let written = ours.to_string();
    assert_eq!(Json::parse(written.as_bytes()).expect("what is written is read"), ours);
    let canonical = ours.canonical();
    let again = Json::parse(canonical.as_bytes()).expect("the canonical form is read");
    assert_eq!(again.canonical(), canonical, "the canonical form has another canonical form");
    if let Ok(theirs) = &theirs {
        assert!(same(&again, theirs), "the canonical form {canonical} says something else than {theirs}");
    }
}

fn same(ours: &Json<'_>, theirs: &Value) -> bool {
    match (ours, theirs) {
        (Json::Null, Value::Null) => true,
        (Json::Bool(one), Value::Bool(other)) => one == other,
        (Json::String(one), Value::String(other)) => one == other,
        (Json::Number(text), Value::Number(number)) => {
            let (Some(one), Some(other)) = (ours.as_f64(), number.as_f64()) else { return false };
            let whole = number.as_u64().map(i128::from).or(number.as_i64().map(i128::from));
            match (text.parse::<i128>(), whole) {
                (Ok(one), Some(other)) => one == other,
                _ => (one - other).abs() <= PRECISION * one.abs() + f64::MIN_POSITIVE,
            }
        }
        (Json::Array(ours), Value::Array(theirs)) => {
            ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(one, other)| same(one, other))
        }
        (Json::Object(ours), Value::Object(theirs)) => {
            let alike = |(name, one): &(_, Json<'_>)| {
                let name: &std::borrow::Cow<'_, str> = name;
                theirs.get(name.as_ref()).is_some_and(|other| same(one, other))
            };
            ours.len() == theirs.len() && ours.iter().all(alike)
        }
        _ => false,
    }
}

/// Whether serde_json may refuse the value.
fn is_extreme(json: &Json<'_>, depth: usize) -> bool {
    match json {
        Json::Array(items) => {
            depth >= NEAR_THE_BOTTOM || items.iter().any(|item| is_extreme(item, depth + 1))
        }
        Json::Object(members) => {
            depth >= NEAR_THE_BOTTOM || members.iter().any(|(_, value)| is_extreme(value, depth + 1))
        }
        Json::Number(_) => json.as_f64().is_some_and(|number| number.abs() > NEAR_THE_END),
        _ => false,
    }
}

/// Any bytes as a journal; a journal whose bytes were edited; a journal whose checksums are right and whose entries
/// are anything. What is read is a prefix of what was written, or an error.
pub fn journal(data: &[u8]) {
    let Some((how, rest)) = data.split_first() else { return };
    match how % 3 {
        0 => drop(read(rest)),
        1 => {
            let written = read(GOLDEN).expect("the golden journal is whole");
            let bytes = edited(GOLDEN, rest);
            if let Ok(found) = read(&bytes) {
                assert!(found.len() <= written.len(), "entries that nobody wrote");
                for (found, written) in found.iter().zip(&written) {
                    found.assert_is(written);
                }
            }
        }
        _ => {
            let (bytes, frames) = sealed(rest);
            if let Ok(found) = read(&bytes) {
                assert!(found.len() <= frames, "entries that nobody wrote");
            }
        }
    }
}

/// An entry, and what its blobs hold: none where one was erased, an error where one does not match.
struct Found {
    number: u64,
    entry: Entry,
    blobs: Vec<Result<Option<bytes::Bytes>, &'static str>>,
}

impl Found {
    fn assert_is(&self, written: &Self) {
        assert_eq!((self.number, &self.entry), (written.number, &written.entry), "another entry");
        assert_eq!(self.blobs.len(), written.blobs.len(), "another number of blobs");
        for (found, written) in self.blobs.iter().zip(&written.blobs) {
            if let Ok(Some(bytes)) = found {
                assert_eq!(Ok(Some(bytes.clone())), *written, "another answer");
            }
        }
    }
}

/// Everything that reads, up to the end or a torn tail.
fn read(bytes: &[u8]) -> Result<Vec<Found>, JournalError> {
    let mut frames = Frames::from_start(bytes, bytes.len() as u64)?;
    let header = FileHeader::read(bytes)?;
    let mut found = Vec::new();
    loop {
        match frames.step()? {
            Step::Frame(frame) => {
                assert_eq!(frame.number, found.len() as u64 + 1, "the numbers have a gap");
                assert_eq!(frames.position, frame.end, "the next frame does not stand behind this one");
                let alone = read_frame(bytes, &header, frame.offset).expect("a frame reads by itself too");
                assert_eq!((alone.number, &alone.entry), (frame.number, &frame.entry));
                let blobs = frame.blobs.iter().map(Blob::open).collect();
                found.push(Found { number: frame.number, entry: frame.entry, blobs });
            }
            Step::End => return Ok(found),
            Step::Bad(torn) => {
                assert!(torn.offset <= Source::len(bytes)?, "a torn tail behind the end");
                judge(bytes, &header, torn, None)?;
                return Ok(found);
            }
        }
    }
}

/// `bytes` after the edits of a script: four bytes each, a place (two bytes), what to do, and how.
fn edited(bytes: &[u8], script: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for edit in script.as_chunks::<4>().0 {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])).min(bytes.len());
        let how = edit[3];
        match edit[2] % 4 {
            0 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= how;
                }
            }
            1 => bytes.truncate(at),
            2 => {
                let end = (at + usize::from(how)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                let end = (at + usize::from(how)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Fact;

    /// Runs every seed and every finding of a target.
    fn replay(target: &str, check: fn(&[u8])) {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
        let mut count = 0;
        for seed in std::fs::read_dir(&folder).unwrap() {
            let seed = seed.unwrap().path();
            println!("{}", seed.display());
            check(&std::fs::read(seed).unwrap());
            count += 1;
        }
        assert!(count > 0, "{} is empty", folder.display());
    }

    #[test]
    fn what_fuzzing_found_stays_found() {
        replay("json", json);
        replay("journal", journal);
    }

    #[test]
    fn the_properties_can_fail() {
        let written = read(GOLDEN).unwrap();
        assert!(written.iter().any(|found| matches!(found.entry.fact, Fact::Settled { .. })));
        assert!(read(&edited(GOLDEN, &[100, 0, 0, 1])).is_err(), "an edited journal reads");
        let one: Value = serde_json::from_str("[1.5]").unwrap();
        assert!(
            !same(&Json::parse(b"[1.25]").unwrap(), &one) && same(&Json::parse(b"[15e-1]").unwrap(), &one)
        );
        let (bytes, frames) = sealed(&[2, 0, b'{', b'}', 0, 0]);
        assert_eq!(frames, 1);
        assert!(matches!(read(&bytes), Err(JournalError::NotUnderstood { .. })));
    }
}
