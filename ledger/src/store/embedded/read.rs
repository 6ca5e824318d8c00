//! Reading a journal without owning its folder.
//!
//! Must not lock or write anything. Invariant: what is read is durable: up to where the owner says, or, without an owner,
//! the journal's valid prefix; damage is an error, never an early end.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use super::OpenError;
use super::checkpoint::{CHECKPOINT, Checkpoint};
use super::disk::{JOURNAL, load};
use crate::journal::{
    FILE_HEADER_BYTES, FileHeader, Frame, Frames, JournalError, Source, Step, Survey, judge, whole,
};
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
    let (frames, limit) = open(folder, None)?;
    let Limit { stood, owned, .. } = limit;
    Ok(Entries { frames, stood, owned, torn: None, done: false })
}

/// How far a journal is read, and what somebody else saw durable.
struct Limit {
    position: u64,
    stood: Option<(u64, &'static str)>,
    owned: bool,
}

/// A journal's frames; a damaged file header is mended where the first entry proves it, and told in `damaged`.
fn open(
    folder: &Path,
    damaged: Option<&mut Option<JournalError>>,
) -> Result<(Frames<File>, Limit), OpenError> {
    let path = folder.join(JOURNAL);
    let failed = |source| OpenError::Io { path: path.clone(), source };
    let file = match File::open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound && is_absent(folder) => {
            return Err(OpenError::Absent(StoreUrl::Sled(folder.to_owned())));
        }
        opened => opened.map_err(failed)?,
    };
    let header = match (FileHeader::read(&file), damaged) {
        (Err(error), Some(damaged)) => match FileHeader::mend(&file)? {
            Some(header) => {
                *damaged = Some(error);
                header
            }
            None => return Err(error.into()),
        },
        (read, _) => read?,
    };
    let checkpoint = load(folder, CHECKPOINT).ok().flatten();
    let checkpointed = checkpoint.and_then(|bytes| Checkpoint::witness(&bytes, &header));
    let owner = synced_by_owner(folder);
    let (position, stood) = match owner {
        Some(synced) => (synced, Some((synced, "the owner"))),
        None => {
            let length = file.metadata().map_err(failed)?.len();
            (length, checkpointed.map(|position| (position, "the checkpoint")))
        }
    };
    let chain = header.chain();
    let frames = Frames::resume(file, header, FILE_HEADER_BYTES as u64, 0, chain, position);
    Ok((frames, Limit { position, stood, owned: owner.is_some() }))
}

/// The entries of a journal that can be read, and every fault between them.
#[derive(Debug)]
pub(crate) struct Surveyed {
    header: Option<JournalError>,
    survey: Survey<File>,
}

/// The entries of the store in `folder` beside its owner, however damaged they are.
///
/// # Errors
/// There is no journal, or it is newer, or nothing of it can be read.
pub(crate) fn survey_entries(folder: &Path) -> Result<Surveyed, OpenError> {
    let mut header = None;
    let (frames, limit) = open(folder, Some(&mut header))?;
    Ok(Surveyed { header, survey: Survey::new(frames, limit.position, limit.stood) })
}

impl Surveyed {
    /// Where the chain stands.
    pub(crate) fn head(&self) -> Head {
        head(self.survey.frames())
    }
}

impl Iterator for Surveyed {
    type Item = Result<ReadEntry, JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.header.take() {
            Some(damaged) => Some(Err(damaged)),
            None => self.survey.next().map(|read| read.map(entry)),
        }
    }
}

fn head(frames: &Frames<File>) -> Head {
    Head { writer: hex::encode(frames.header().writer), entries: frames.number, chain: frames.chain }
}

fn entry(frame: Frame) -> ReadEntry {
    let Frame { number, offset, payload, entry, blobs, .. } = frame;
    ReadEntry { number, offset, writer: None, entry, blobs, payload }
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
        head(&self.frames)
    }

    /// The journal, and the offset up to which it was read.
    pub(super) fn part(&self) -> (&File, u64) {
        (self.frames.source(), self.frames.position)
    }

    fn read(&mut self) -> Result<Option<ReadEntry>, JournalError> {
        match self.frames.step()? {
            Step::Frame(frame) => Ok(Some(entry(*frame))),
            Step::End => {
                let length = self.frames.source().len()?;
                whole(self.frames.number, length.min(self.frames.position), self.stood)?;
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
