//! From a journal to the present: the fold that opening a store, and a failed write, both use.
//!
//! Must not write. Invariant: what it finds is the state after a prefix of the journal, and it says where that ends.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::OpenError;
use super::checkpoint::{CHECKPOINT, Checkpoint};
use super::disk::Disk;
use super::erase::Forgotten;
use super::place::Place;
use crate::book::Book;
use crate::entry::{Fact, HoldId};
use crate::journal::{FILE_HEADER_BYTES, FileHeader, Frame, Frames, JournalError, Step, Torn, judge, whole};
use crate::query::QueryKey;

/// What the store remembers of a hold that is under way or unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OpenPlace {
    /// Where its `Reserved` entry begins.
    pub(crate) reserved: u64,
    /// Bytes set aside for its answer.
    pub(crate) space: u64,
    /// Whether its fee is in dollars.
    pub(crate) priced: bool,
}

/// The present, and the place in the journal that it is the present of.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) book: Book,
    pub(crate) places: HashMap<QueryKey, Place>,
    pub(crate) open: BTreeMap<HoldId, OpenPlace>,
    /// Where the next entry goes.
    pub(crate) position: u64,
    /// Where the last entry begins.
    pub(crate) last: u64,
    /// The last entry's number.
    pub(crate) number: u64,
    /// The chain up to the last entry.
    pub(crate) chain: [u8; 32],
    /// Whether the last entry is the mark of a clean close.
    pub(crate) closed: bool,
    /// Where the last entry ends that says that a key is forgotten: an index that is behind it may hold its answer.
    pub(crate) forgotten: u64,
    /// Keys that were forgotten since the checkpoint: their answers may still stand in the journal.
    pub(crate) unerased: Forgotten,
}

impl State {
    /// Before the first entry.
    pub(crate) fn start(header: &FileHeader) -> Self {
        Self {
            book: Book::default(),
            places: HashMap::new(),
            open: BTreeMap::new(),
            position: FILE_HEADER_BYTES as u64,
            last: 0,
            number: 0,
            chain: header.chain(),
            closed: false,
            forgotten: 0,
            unerased: Forgotten::new(),
        }
    }

    /// Where it ends, without what it holds.
    pub(crate) fn end(&self) -> Self {
        let Self { position, last, number, chain, closed, forgotten, .. } = *self;
        Self {
            book: Book::default(),
            places: HashMap::new(),
            open: BTreeMap::new(),
            position,
            last,
            number,
            chain,
            closed,
            forgotten,
            unerased: Forgotten::new(),
        }
    }

    /// Takes one entry in.
    pub(crate) fn apply(&mut self, frame: &Frame) -> Result<(), JournalError> {
        self.book.apply(&frame.entry).map_err(|why| JournalError::Corrupt {
            number: frame.number,
            offset: frame.offset,
            why: format!("it contradicts the entries before it: {why}"),
        })?;
        note(&mut self.open, &frame.entry.fact, frame.offset, 0, |key, place| {
            self.places.insert(key, place);
        });
        if let Fact::Forgotten { key, .. } = &frame.entry.fact {
            self.places.remove(key);
            self.unerased.insert(*key, frame.offset);
            self.forgotten = frame.end;
        }
        self.position = frame.end;
        self.last = frame.offset;
        self.number = frame.number;
        self.chain = frame.chain;
        self.closed = frame.entry.fact == Fact::Closed;
        Ok(())
    }

    /// Takes entries in up to `limit`; says what stands there instead of a frame, where something does.
    pub(crate) fn replay(
        &mut self,
        disk: &dyn Disk,
        header: &FileHeader,
        limit: u64,
    ) -> Result<Option<Torn>, JournalError> {
        let mut frames = Frames::resume(disk, *header, self.position, self.number, self.chain, limit);
        loop {
            match frames.step()? {
                Step::Frame(frame) => self.apply(&frame)?,
                Step::End => return Ok(None),
                Step::Bad(torn) => return Ok(Some(torn)),
            }
        }
    }
}

/// Keeps the open holds' places, and tells where the answers of a settled one stand.
pub(crate) fn note(
    open: &mut BTreeMap<HoldId, OpenPlace>,
    fact: &Fact,
    offset: u64,
    space: u64,
    mut settled: impl FnMut(QueryKey, Place),
) {
    match fact {
        Fact::Reserved { hold, price, .. } => {
            open.insert(*hold, OpenPlace { reserved: offset, space, priced: price.is_some() });
        }
        Fact::Settled { hold, items, .. } => {
            if let Some(place) = open.remove(hold) {
                for item in items {
                    settled(item.key, Place { settled: offset, reserved: place.reserved });
                }
            }
        }
        Fact::Released { hold, .. } | Fact::Resolved { hold, .. } => {
            open.remove(hold);
        }
        Fact::Forfeited { hold, .. } => {
            if let Some(place) = open.get_mut(hold) {
                place.space = 0;
            }
        }
        Fact::Opened { .. }
        | Fact::Priced { .. }
        | Fact::Limited { .. }
        | Fact::Forgotten { .. }
        | Fact::Served { .. }
        | Fact::Closed => {}
    }
}

/// Reads the journal, from the checkpoint on where it fits, and judges what stands at its end.
///
/// `indexed` is the position up to which the index of this journal was filled.
pub(crate) fn recover(
    disk: &dyn Disk,
    header: &FileHeader,
    program: &str,
    indexed: Option<u64>,
) -> Result<(State, Option<Torn>), OpenError> {
    let length = disk.len().map_err(JournalError::Io)?;
    let checkpoint = disk.load(CHECKPOINT).unwrap_or_else(|error| {
        tracing::warn!(%error, "the checkpoint cannot be read and is ignored");
        None
    });
    let checkpoint = checkpoint.as_deref();
    let checkpointed = checkpoint.and_then(|bytes| Checkpoint::witness(bytes, header));
    let resumed = checkpoint.and_then(|bytes| Checkpoint::state(bytes, program, header, disk));
    let mut state = resumed.unwrap_or_else(|| State::start(header));
    let torn = state.replay(disk, header, length)?;
    let seen = [(checkpointed, "the checkpoint"), (indexed, "the index")];
    let stood = seen.into_iter().filter_map(|(position, witness)| Some((position?, witness))).max();
    if let Some(torn) = torn {
        return Ok((state, Some(judge(disk, header, torn, stood)?)));
    }
    whole(state.number, length, stood)?;
    Ok((state, None))
}
