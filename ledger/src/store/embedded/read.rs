//! Reading a journal without owning its folder.
//!
//! Must not lock or write anything. Invariant: what is read is durable: up to where the owner says, or, without an owner,
//! the journal's valid prefix; damage is an error, never an early end.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use super::checkpoint::{CHECKPOINT, Checkpoint};
use super::disk::{JOURNAL, load};
use super::{OpenError, recover};
use crate::journal::{FileHeader, Frames, JournalError, Source, Step, judge};
use crate::store::read::{Head, ReadEntry};
use crate::store::socket::client::synced_by_owner;
use crate::store::url::StoreUrl;

/// The entries of a journal, in order.
#[derive(Debug)]
pub(crate) struct Entries {
    frames: Frames<File>,
    stood: Option<(u64, &'static str)>,
    owned: bool,
    torn: Option<u64>,
    done: bool,
}

/// The entries of the store in `folder`, beside its owner where there is one.
///
/// # Errors
/// There is no journal, or it is newer or damaged at its head.
pub(crate) fn read_entries(folder: &Path) -> Result<Entries, OpenError> {
    let path = folder.join(JOURNAL);
    let failed = |source| OpenError::Io { path: path.clone(), source };
    let file = match File::open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound && is_absent(folder) => {
            return Err(OpenError::Absent(StoreUrl::Sled(folder.to_owned())));
        }
        opened => opened.map_err(failed)?,
    };
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

/// Whether nothing of a store is there: a store without its journal has lost its record.
fn is_absent(folder: &Path) -> bool {
    std::fs::read_dir(folder).map_or(true, |mut found| found.next().is_none())
}

impl Entries {
    /// Whether a process owns the store.
    pub(crate) fn is_owned(&self) -> bool {
        self.owned
    }

    /// Once the last entry was read: where bytes begin that were never acknowledged, if there are such.
    pub(crate) fn torn(&self) -> Option<u64> {
        self.torn
    }

    /// Where the chain stands.
    pub(crate) fn head(&self) -> Head {
        let writer = hex::encode(self.frames.header().writer);
        Head { writer, entries: self.frames.number, chain: self.frames.chain }
    }

    /// The journal, and the offset up to which it was read.
    pub(super) fn part(&self) -> (&File, u64) {
        (self.frames.source(), self.frames.position)
    }

    fn read(&mut self) -> Result<Option<ReadEntry>, JournalError> {
        match self.frames.step()? {
            Step::Frame(frame) => {
                let frame = *frame;
                let (number, offset) = (frame.number, frame.offset);
                let payload = frame.payload;
                Ok(Some(ReadEntry { number, offset, entry: frame.entry, blobs: frame.blobs, payload }))
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
