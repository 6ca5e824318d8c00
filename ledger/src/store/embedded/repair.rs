//! The way back from a damaged journal: what stands before the damage is kept, the rest is set aside.
//!
//! Must not delete anything, nor touch a journal that is not damaged. Invariants: looking changes nothing; the journal is
//! cut last, so that a repair that was interrupted leaves the old journal or the new one, and may be asked for again.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::OpenError;
use super::checkpoint::{CHECKPOINT, Checkpoint};
use super::disk::{JOURNAL, load};
use super::index::{INDEX, OpenedIndex};
use super::owner::own;
use super::recover::State;
use crate::book::OpenHold;
use crate::entry::{Entry, Fact, HoldId};
use crate::journal::{
    FILE_HEADER_BYTES, FileHeader, Frames, JournalError, Source, Step, judge, next_header, read_frame, whole,
};
use crate::money::Amount;
use crate::store::socket::client::synced_by_owner;

/// What is wrong with a journal, and what would be kept of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Damage {
    /// The first entry that does not check; 0 where only the file header is damaged, and every entry can be kept.
    pub entry: u64,
    /// Where it begins.
    pub offset: u64,
    /// How that is known.
    pub why: String,
    /// Entries before it: they are kept.
    pub kept_entries: u64,
    /// Bytes from there to the end of the file: they are set aside.
    pub rest_bytes: u64,
    /// Bytes that once were durable and are not in the file any more.
    pub gone_bytes: u64,
    /// What can still be read behind the damage.
    pub later: Later,
    /// Calls under way at the end of what is kept: unknown, and counted in full, once the store is opened.
    pub under_way: Vec<OpenHold>,
    /// Whether the header of the file is damaged too; the first entry proves what it was.
    pub file_header: bool,
}

/// Entries that still check by themselves, behind a damage.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Later {
    /// How many they are.
    pub entries: u64,
    /// The number of the last one.
    pub last: Option<u64>,
    /// Entries between the damage and the last one that do not check.
    pub unreadable: u64,
    /// Items answered in them: they would be bought again.
    pub answers: u64,
    /// What the calls made in them cost, or hold: the kept record counts that much less than was spent.
    pub uncounted: Amount,
    /// Budgets whose limits were set in them.
    pub budgets: Vec<String>,
}

/// What a repair did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Repaired {
    /// What it found.
    pub damage: Damage,
    /// Where everything is that it set aside.
    pub aside: Vec<PathBuf>,
}

/// Looks for damage in the journal of the store in `folder`; changes nothing, and needs no ownership.
///
/// # Errors
/// There is no journal, it cannot be read, or a later version wrote it.
pub fn examine(folder: &Path) -> Result<Option<Damage>, OpenError> {
    let owner = synced_by_owner(folder).map(|synced| (synced, "the owner"));
    look(folder, owner.map(|(synced, _)| synced), owner)
}

/// Keeps what stands before the damage and sets the rest aside; none where nothing is damaged, and then nothing changes.
///
/// # Errors
/// A process owns the store, the journal cannot be read, a later version wrote it, or a file cannot be written; nothing
/// was lost then, and it may be asked for again.
pub fn repair(folder: &Path) -> Result<Option<Repaired>, OpenError> {
    repair_until(folder, usize::MAX)
}

/// As [`repair`], but ends after so many steps, as if the power had gone.
pub(super) fn repair_until(folder: &Path, steps: usize) -> Result<Option<Repaired>, OpenError> {
    // A folder that is none is left as it is: it holds nothing that could be repaired.
    let path = folder.join(JOURNAL);
    File::open(&path).map_err(|source| OpenError::Io { path, source })?;
    let _lock = own(folder)?;
    let indexed = match header(folder)? {
        (header, _) if folder.join(INDEX).exists() => OpenedIndex::peek(folder, &header),
        _ => None,
    };
    let Some(damage) = look(folder, None, indexed.map(|position| (position, "the index")))? else {
        return Ok(None);
    };
    set_aside(folder, damage, steps).map(Some)
}

/// The file header, and whether it had to be mended.
fn header(folder: &Path) -> Result<(FileHeader, bool), OpenError> {
    let path = folder.join(JOURNAL);
    let file = File::open(&path).map_err(|source| OpenError::Io { path, source })?;
    match FileHeader::read(&file) {
        Ok(header) => Ok((header, false)),
        Err(error) => Ok((FileHeader::mend(&file)?.ok_or(error)?, true)),
    }
}

/// Reads the whole journal, up to `limit`; `stood` is what somebody else saw durable.
fn look(folder: &Path, limit: Option<u64>, stood: Option<(u64, &str)>) -> Result<Option<Damage>, OpenError> {
    let path = folder.join(JOURNAL);
    let failed = |source| OpenError::Io { path: path.clone(), source };
    let (header, mended) = header(folder)?;
    let file = File::open(&path).map_err(failed)?;
    let length = file.len().map_err(failed)?;
    let checkpoint = load(folder, CHECKPOINT).ok().flatten();
    let checkpointed = checkpoint.and_then(|bytes| Checkpoint::witness(&bytes, &header));
    let stood = checkpointed.map(|position| (position, "the checkpoint")).into_iter().chain(stood).max();
    let mut state = State::start(&header);
    let limit = limit.unwrap_or(length);
    let mut frames = Frames::resume(&file, header, FILE_HEADER_BYTES as u64, 0, header.chain(), limit);
    let found = loop {
        let judged = match frames.step()? {
            Step::Frame(frame) => state.apply(&frame).map(|()| false),
            Step::End => whole(state.number, length.min(state.position), stood).map(|()| true),
            Step::Bad(torn) => judge(&file, &header, torn, stood).map(|_| true),
        };
        match judged {
            Ok(true) => break None,
            Ok(false) => {}
            Err(JournalError::Corrupt { number, offset, why }) => break Some((number, offset, why)),
            Err(error) => return Err(error.into()),
        }
    };
    if found.is_none() && !mended {
        return Ok(None);
    }
    let whole = (0, length, "the file header does not match its checksum".to_owned());
    let (entry, offset, why) = found.unwrap_or(whole);
    let present = state.book.present(crate::time::Timestamp(0));
    Ok(Some(Damage {
        entry,
        offset,
        why,
        kept_entries: state.number,
        rest_bytes: length.saturating_sub(offset),
        gone_bytes: stood.map_or(0, |(stood, _)| stood.saturating_sub(length)),
        later: later(&file, &header, state.number, offset)?,
        under_way: present.open.into_iter().filter(|hold| hold.unknown.is_none()).collect(),
        file_header: mended,
    }))
}

/// What still checks by itself from `offset` on.
fn later(file: &File, header: &FileHeader, kept: u64, offset: u64) -> Result<Later, JournalError> {
    let (mut later, mut made, mut from) = (Later::default(), BTreeMap::new(), offset);
    while let Some((offset, _)) = next_header(file, header, from)? {
        from = offset + 1;
        match read_frame(file, header, offset) {
            Ok(frame) => {
                from = frame.end;
                later.entries += 1;
                later.last = later.last.max(Some(frame.number));
                later.note(&frame.entry, &mut made);
            }
            Err(JournalError::Io(error)) => return Err(error.into()),
            Err(_) => {}
        }
    }
    later.unreadable = later.last.map_or(0, |last| last.saturating_sub(kept + later.entries));
    for amount in made.into_values() {
        later.uncounted = later.uncounted.checked_add(amount).unwrap_or(later.uncounted);
    }
    Ok(later)
}

impl Later {
    fn note(&mut self, entry: &Entry, made: &mut BTreeMap<HoldId, Amount>) {
        match &entry.fact {
            Fact::Reserved { hold, amount, .. } => {
                made.insert(*hold, *amount);
            }
            Fact::Settled { hold, fee, items, .. } => {
                self.answers += items.len() as u64;
                // A hold of the kept part is counted there, in full.
                made.entry(*hold).and_modify(|amount| *amount = *fee);
            }
            Fact::Released { hold, .. } | Fact::Resolved { hold, billed: false, .. } => {
                made.remove(hold);
            }
            Fact::Limited { budget, .. } if !self.budgets.contains(&budget.name) => {
                self.budgets.push(budget.name.clone());
            }
            _ => {}
        }
    }
}

/// Copies the rest, moves away what saw more than is kept, and at last cuts the journal.
fn set_aside(folder: &Path, damage: Damage, steps: usize) -> Result<Repaired, OpenError> {
    let journal = folder.join(JOURNAL);
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { path, source }
    };
    let (header, mended) = header(folder)?;
    let file = OpenOptions::new().read(true).write(true).open(&journal).map_err(at(&journal))?;
    let suffix = format!("damaged-{}", damage.offset);
    let mut aside = Vec::new();
    let mut left = steps;
    let mut step = |work: &mut dyn FnMut() -> Result<(), OpenError>| -> Result<(), OpenError> {
        match left.checked_sub(1) {
            Some(less) => left = less,
            None => return Err(at(folder)(io::Error::other("interrupted"))),
        }
        work()
    };
    if mended {
        step(&mut || {
            let kept = copy(&file, 0..FILE_HEADER_BYTES as u64, &folder.join(format!("{JOURNAL}.header")))
                .map_err(at(&journal))?;
            aside.push(kept);
            Ok(())
        })?;
    }
    if damage.rest_bytes > 0 {
        step(&mut || {
            let end = damage.offset + damage.rest_bytes;
            let kept = copy(&file, damage.offset..end, &folder.join(format!("{JOURNAL}.{suffix}")))
                .map_err(at(&journal))?;
            aside.push(kept);
            Ok(())
        })?;
    }
    // Where only the file header was damaged they still fit.
    for name in [CHECKPOINT, INDEX].into_iter().filter(|_| damage.entry > 0) {
        step(&mut || {
            let path = folder.join(name);
            if path.try_exists().map_err(at(&path))? {
                let free = free(&folder.join(format!("{name}.{suffix}")));
                std::fs::rename(&path, &free).map_err(at(&path))?;
                aside.push(free);
            }
            Ok(())
        })?;
    }
    step(&mut || sync_folder(folder).map_err(at(folder)))?;
    if mended {
        step(&mut || {
            file.write_all_at(&header.encode(), 0).and_then(|()| file.sync_all()).map_err(at(&journal))
        })?;
    }
    step(&mut || file.set_len(damage.offset).and_then(|()| file.sync_all()).map_err(at(&journal)))?;
    Ok(Repaired { damage, aside })
}

/// Copies a part of the journal into a file of its own, durably; one that an interrupted repair made is used again.
fn copy(journal: &File, part: std::ops::Range<u64>, to: &Path) -> io::Result<PathBuf> {
    let reader = || -> io::Result<io::Take<&File>> {
        let mut from = journal;
        from.seek(SeekFrom::Start(part.start))?;
        Ok(from.take(part.end - part.start))
    };
    if let Ok(found) = File::open(to)
        && same(&mut reader()?, found)
    {
        return Ok(to.to_owned());
    }
    let to = free(to);
    let fresh = to.with_added_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    io::copy(&mut reader()?, &mut file)?;
    file.sync_all()?;
    std::fs::rename(&fresh, &to)?;
    Ok(to)
}

/// Whether both give the same bytes.
fn same(left: &mut impl Read, mut right: File) -> bool {
    let digest = |reader: &mut dyn Read| -> io::Result<blake3::Hash> {
        let (mut hasher, mut buffer) = (blake3::Hasher::new(), vec![0; 1 << 16]);
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(hasher.finalize()),
                read => hasher.update(&buffer[..read]),
            };
        }
    };
    matches!((digest(left), digest(&mut right)), (Ok(left), Ok(right)) if left == right)
}

/// The path, or the first with a number behind it where nothing lies yet.
fn free(path: &Path) -> PathBuf {
    let numbered = (2..u32::MAX).map(|number| path.with_added_extension(number.to_string()));
    let mut names = std::iter::once(path.to_owned()).chain(numbered);
    names.find(|name| name.symlink_metadata().is_err()).unwrap_or_else(|| path.with_added_extension("last"))
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
