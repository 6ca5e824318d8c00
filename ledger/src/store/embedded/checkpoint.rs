//! The checkpoint: book and places as they stood at one position of the journal, so that opening need not read it all.
//!
//! Must not know how the journal is read. Invariant: a checkpoint that does not fit its journal, byte for byte at the
//! last entry it covers, is ignored; the journal alone is the truth.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::erase::Forgotten;
use super::place::Place;
use super::recover::{OpenPlace, State};
use crate::book::Book;
use crate::entry::{Fact, HoldId};
use crate::exact;
use crate::journal::{FileHeader, Source, read_frame};
use crate::query::QueryKey;

/// Its name in the store's folder.
pub(crate) const CHECKPOINT: &str = "checkpoint";

/// Changes with every change of what is written below or of the book's layout.
const LAYOUT: &[u8; 8] = b"TUICHK\0\x03";
/// Layout, checksum of all that follows, writer, position.
const PREFIX_BYTES: usize = 8 + 4 + 16 + 8;

/// What is written behind the prefix.
#[derive(Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    program: String,
    position: u64,
    last: u64,
    number: u64,
    chain: [u8; 32],
    forgotten: u64,
    book: Book,
    open: Vec<(HoldId, OpenPlace)>,
    #[serde(deserialize_with = "exact::map")]
    places: HashMap<QueryKey, Place>,
}

impl Checkpoint {
    /// A checkpoint of `state`, which must be durable, and what it forgot erased.
    pub(crate) fn new(program: &str, state: State) -> Self {
        Self {
            program: program.to_owned(),
            position: state.position,
            last: state.last,
            number: state.number,
            chain: state.chain,
            forgotten: state.forgotten,
            book: state.book,
            open: state.open.into_iter().collect(),
            places: state.places,
        }
    }

    /// As it stands in its file.
    pub(crate) fn encode(&self, header: &FileHeader) -> Vec<u8> {
        let mut checked = header.writer.to_vec();
        checked.extend_from_slice(&self.position.to_le_bytes());
        let checked = postcard::to_extend(self, checked).expect("a checkpoint is plain data and cannot fail");
        [&LAYOUT[..], &crc32fast::hash(&checked).to_le_bytes(), &checked].concat()
    }

    /// Up to which offset the writer of these bytes saw the journal durable; none where they are damaged, or of another
    /// journal. Any version of the program can read this much.
    pub(crate) fn witness(bytes: &[u8], header: &FileHeader) -> Option<u64> {
        let (prefix, _) = bytes.split_first_chunk::<PREFIX_BYTES>()?;
        let crc = u32::from_le_bytes(prefix[8..12].try_into().expect("the slice has four bytes"));
        let whole = prefix[..6] == LAYOUT[..6] && prefix[12..28] == header.writer;
        let position = u64::from_le_bytes(prefix[28..].try_into().expect("the slice has eight bytes"));
        (whole && crc == crc32fast::hash(&bytes[12..])).then_some(position)
    }

    /// The state it holds; none where it was written by another version, or where the last entry it covers does not
    /// stand in the journal.
    pub(crate) fn state(
        bytes: &[u8],
        program: &str,
        header: &FileHeader,
        source: &(impl Source + ?Sized),
    ) -> Option<State> {
        let position = Self::witness(bytes, header)?;
        if !bytes.starts_with(LAYOUT) {
            return None;
        }
        let read: Self = postcard::from_bytes(&bytes[PREFIX_BYTES..]).ok()?;
        let last = read_frame(source, header, read.last).ok()?;
        let fits = read.program == program
            && read.position == position
            && (last.number, last.end, last.chain) == (read.number, position, read.chain);
        fits.then(|| State {
            book: read.book,
            places: read.places,
            open: read.open.into_iter().collect(),
            position,
            last: read.last,
            number: read.number,
            chain: read.chain,
            closed: last.entry.fact == Fact::Closed,
            forgotten: read.forgotten,
            unerased: Forgotten::new(),
        })
    }
}
