//! Opening a store: from a folder, whatever state it was left in, to a store that can be used.
//!
//! Must not know what callers do with it. Invariants: nothing acknowledged is cut off; a journal that is damaged,
//! newer or owned by another process is left as it was.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Embedded;
use super::commit::Committer;
use super::core::Core;
use super::disk::{Disk, FolderDisk, JOURNAL};
use super::erase;
use super::index::{Index, OpenedIndex};
use super::owner::{Owner, own};
use super::recover::{State, recover};
use crate::entry::HoldId;
use crate::journal::{FileHeader, JournalError, Torn, Writer};
use crate::store::Clock;
use crate::store::read::ReadError;
use crate::store::url::StoreUrl;

/// Why a store was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process owns it.
    #[error("another process owns the store `{}`", .0.display())]
    Owned(PathBuf),
    /// The journal is gone, though the rest of the store is there.
    #[error("the store `{}` has no journal, but {found} of one: the record was moved or deleted", .folder.display())]
    JournalMissing {
        /// The folder.
        folder: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// There is no store yet.
    #[error("there is no store `{0}`")]
    Absent(StoreUrl),
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The database cannot be used.
    #[error("the store `{url}` cannot be used: {why}")]
    Database {
        /// The database.
        url: StoreUrl,
        /// Why.
        why: String,
    },
    /// A record that is no file cannot be read.
    #[error(transparent)]
    Read(ReadError),
    /// The folder cannot be used.
    #[error("the store `{}` cannot be opened", .path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// The owner does not answer.
    #[error("the owner of the store `{}` does not answer: {why}", .folder.display())]
    Unreachable {
        /// The folder.
        folder: PathBuf,
        /// What was tried last.
        why: String,
    },
}

/// What opening found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Whether the last owner closed the store in good order (a new store counts as such).
    pub clean: bool,
    /// Bytes at the end that had never been acknowledged, and the file they were put aside to.
    pub torn: Option<(u64, PathBuf)>,
    /// Holds that were under way when the last owner ended: unknown now.
    pub crashed: Vec<HoldId>,
}

/// An opened store: the store, and the ownership of it.
pub struct Opened {
    /// The store.
    pub store: Arc<Embedded>,
    /// The ownership; dropping it stops the store without the mark of a clean close.
    pub owner: Owner,
    /// What opening found.
    pub recovery: Recovery,
}

impl Embedded {
    /// Opens the store in `folder` and owns it; `program` is the version of the program.
    ///
    /// # Errors
    /// Another process owns it, the journal is damaged or newer, or the folder cannot be used.
    pub fn open(folder: &Path, clock: Clock, program: &str) -> Result<Opened, OpenError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, source }
        };
        FolderDisk::make_folder(folder).map_err(at(folder))?;
        let lock = own(folder)?;
        let journal = folder.join(JOURNAL);
        if !journal.try_exists().map_err(at(&journal))? {
            for found in ["a checkpoint", "an index"] {
                let name = found.rsplit(' ').next().unwrap_or(found);
                if folder.join(name).exists() {
                    return Err(OpenError::JournalMissing { folder: folder.to_owned(), found });
                }
            }
        }
        let now = clock();
        let fresh = || Ok(FileHeader { writer: random_writer()?, created_ms: now.0 });
        let disk: Arc<dyn Disk> = Arc::new(FolderDisk::open(folder, fresh).map_err(at(&journal))?);
        let header = FileHeader::read(&*disk)?;
        let mut index = OpenedIndex::open(folder, &header);
        let indexed = index.reached;
        let mut filler = None;
        let begin = |disk: &Arc<dyn Disk>, state: &State| {
            index.renew_before(state.forgotten);
            let from = index.reached.unwrap_or(0);
            let (index, thread) = index.start(Arc::clone(disk), header).map_err(at(folder))?;
            let behind = state.places.iter().filter(|(_, place)| place.settled >= from);
            index.fill(behind.map(|(key, place)| (*key, *place)).collect(), state.position);
            filler = Some(thread);
            Ok(index)
        };
        let (core, committer, recovery) = boot(disk, header, clock, program, indexed, begin)?;
        let recovery =
            Recovery { torn: recovery.torn.map(|(offset, name)| (offset, folder.join(name))), ..recovery };
        let thread = std::thread::Builder::new().name("tuition-commit".into());
        let thread = thread.spawn(move || committer.run()).map_err(at(folder))?;
        let owner = Owner {
            core: Arc::clone(&core),
            folder: folder.to_owned(),
            threads: filler.map(|filler| (thread, filler)),
            listener: None,
            _lock: lock,
        };
        Ok(Opened { store: Self::over(core, folder), owner, recovery })
    }
}

/// From a disk with a journal to a store that can be used: recovers, cuts off what was never durable, makes the rest
/// durable, erases what was forgotten and still stands, and records that it was opened.
pub(super) fn boot(
    disk: Arc<dyn Disk>,
    header: FileHeader,
    clock: Clock,
    program: &str,
    indexed: Option<u64>,
    index: impl FnOnce(&Arc<dyn Disk>, &State) -> Result<Index, OpenError>,
) -> Result<(Arc<Core>, Committer, Recovery), OpenError> {
    erase::resume(&*disk, &header)?;
    let (mut state, torn) = recover(&*disk, &header, program, indexed)?;
    let clean = torn.is_none() && (state.closed || state.number == 0);
    let torn = torn.map(|torn| set_aside_torn(&*disk, &torn)).transpose().map_err(JournalError::Io)?;
    // What a crashed owner wrote may still be in memory only: it counts from here on, so it is made durable first.
    disk.sync().map_err(JournalError::Io)?;
    let unerased = std::mem::take(&mut state.unerased);
    if !unerased.is_empty() {
        let spans = erase::spans(&*disk, &unerased, state.position)?;
        erase::erase(&*disk, &header, spans)?;
    }
    let index = index(&disk, &state)?;
    let end = state.end();
    let core = Core::new(disk, header, clock, index, state);
    let crashed = core.begin(program);
    let mut committer = Committer::new(Arc::clone(&core), program, &end);
    committer.commit();
    Ok((core, committer, Recovery { clean, torn, crashed }))
}

/// Puts a torn tail into a file of its own, and cuts it off; returns where it began and the file's name.
fn set_aside_torn(disk: &dyn Disk, torn: &Torn) -> io::Result<(u64, PathBuf)> {
    let length = disk.len()?.saturating_sub(torn.offset);
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    disk.read_full(&mut bytes, torn.offset)?;
    let name = format!("journal.torn-{}", torn.offset);
    disk.replace(&name, &bytes)?;
    disk.cut(torn.offset)?;
    tracing::warn!(
        offset = torn.offset,
        bytes = length,
        why = torn.why,
        "the journal's end was never acknowledged: set aside"
    );
    Ok((torn.offset, name.into()))
}

/// Names a new journal.
pub(super) fn random_writer() -> io::Result<Writer> {
    use io::Read;
    let mut writer = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut writer)?;
    Ok(writer)
}
