//! Reading a store without owning it: entries for the audit, records for the trainer.
//!
//! Must not lock or write anything. Invariant: what is read is durable: up to where the owner says, or, without an owner,
//! the journal's valid prefix; damage is an error, never an early end.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use super::checkpoint::{CHECKPOINT, Checkpoint};
use super::disk::{JOURNAL, load};
use super::{OpenError, recover};
use crate::answer::Record;
use crate::budget::Who;
use crate::entry::{Entry, Exchange, Fact, HoldId};
use crate::journal::{Blob, FileHeader, Frames, JournalError, Source, Step, judge, unpack_settlement};
use crate::store::socket::client::synced_by_owner;

/// One entry of a journal.
#[derive(Debug)]
pub struct ReadEntry {
    /// Its number, from 1, without gaps.
    pub number: u64,
    /// Where it begins.
    pub offset: u64,
    /// The entry.
    pub entry: Entry,
    /// What belongs to it; opened on demand.
    pub blobs: Vec<Blob>,
}

/// The entries of a journal, in order.
#[derive(Debug)]
pub struct Entries {
    frames: Frames<File>,
    stood: Option<(u64, &'static str)>,
    owned: bool,
    torn: Option<u64>,
    done: bool,
}

/// A record, with the entry that holds it and who paid for it.
#[derive(Debug)]
pub struct Recorded {
    /// The number of its entry: a later one replaces an earlier one under the same key.
    pub number: u64,
    /// Who paid.
    pub who: Who,
    /// The record.
    pub record: Record,
}

/// The records of a journal, in the order in which they were settled; erased ones are left out.
#[derive(Debug)]
pub struct Records {
    entries: Entries,
    run: Option<String>,
    open: BTreeMap<HoldId, (Exchange, bool)>,
    ready: std::collections::VecDeque<Recorded>,
}

/// The entries of the store in `folder`, beside its owner where there is one.
///
/// # Errors
/// There is no journal, or it is newer or damaged at its head.
pub fn read_entries(folder: &Path) -> Result<Entries, OpenError> {
    let path = folder.join(JOURNAL);
    let failed = |source| OpenError::Io { path: path.clone(), source };
    let file = File::open(&path).map_err(failed)?;
    let header = FileHeader::read(&file)?;
    let checkpoint = load(folder, CHECKPOINT).ok().flatten();
    let checkpointed = checkpoint.and_then(|bytes| Checkpoint::witness(&bytes, &header));
    let owner = synced_by_owner(folder);
    let (limit, stood) = match owner {
        Some(synced) => (synced, Some((synced, "the owner"))),
        None => {
            let length = file.metadata().map_err(failed)?.len();
            (length, checkpointed.map(|position| (position, "the checkpoint")))
        }
    };
    let frames = Frames::from_start(file, limit)?;
    Ok(Entries { frames, stood, owned: owner.is_some(), torn: None, done: false })
}

/// All records of the store in `folder`.
///
/// # Errors
/// As [`read_entries`].
pub fn records(folder: &Path) -> Result<Records, OpenError> {
    let entries = read_entries(folder)?;
    Ok(Records { entries, run: None, open: BTreeMap::new(), ready: std::collections::VecDeque::new() })
}

/// The records that `run` paid for.
///
/// # Errors
/// As [`read_entries`].
pub fn records_of_run(folder: &Path, run: &str) -> Result<Records, OpenError> {
    Ok(Records { run: Some(run.to_owned()), ..records(folder)? })
}

impl Entries {
    /// Whether a process owns the store.
    pub fn is_owned(&self) -> bool {
        self.owned
    }

    /// Once the last entry was read: where bytes begin that were never acknowledged, if there are such.
    pub fn torn(&self) -> Option<u64> {
        self.torn
    }

    fn read(&mut self) -> Result<Option<ReadEntry>, JournalError> {
        match self.frames.step()? {
            Step::Frame(frame) => {
                let frame = *frame;
                let (number, offset) = (frame.number, frame.offset);
                Ok(Some(ReadEntry { number, offset, entry: frame.entry, blobs: frame.blobs }))
            }
            Step::End => {
                let length = self.frames.source().len()?;
                recover::whole(self.frames.number, length.min(self.frames.position), self.stood)?;
                Ok(None)
            }
            Step::Bad(torn) => {
                let torn = judge(self.frames.source(), self.frames.header(), torn, self.stood)?;
                self.torn = Some(torn.offset);
                Ok(None)
            }
        }
    }
}

impl Iterator for Entries {
    type Item = Result<ReadEntry, JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.read().transpose();
        self.done = !matches!(next, Some(Ok(_)));
        next
    }
}

impl Records {
    fn take(&mut self, read: ReadEntry) -> Result<(), JournalError> {
        let hold = read.entry.fact.hold();
        match &read.entry.fact {
            Fact::Reserved { hold, exchange, price, .. } => {
                self.open.insert(*hold, (exchange.clone(), price.is_some()));
            }
            Fact::Settled { .. } => {
                let Some((exchange, priced)) = hold.and_then(|hold| self.open.remove(&hold)) else {
                    let why = "it settles a hold that is not open".to_owned();
                    return Err(JournalError::Corrupt { number: read.number, offset: read.offset, why });
                };
                if self.run.is_some() && self.run != exchange.who.run {
                    return Ok(());
                }
                let records = unpack_settlement(&exchange, priced, &read.entry, &read.blobs);
                let records = records.map_err(|why| JournalError::Corrupt {
                    number: read.number,
                    offset: read.offset,
                    why: why.to_owned(),
                })?;
                let (number, who) = (read.number, exchange.who);
                self.ready.extend(records.into_iter().map(|record| Recorded {
                    number,
                    who: who.clone(),
                    record,
                }));
            }
            Fact::Released { hold, .. } | Fact::Resolved { hold, .. } => {
                self.open.remove(hold);
            }
            _ => {}
        }
        Ok(())
    }
}

impl Iterator for Records {
    type Item = Result<Recorded, JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(recorded) = self.ready.pop_front() {
                return Some(Ok(recorded));
            }
            match self.entries.next()?.and_then(|read| self.take(read)) {
                Ok(()) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
