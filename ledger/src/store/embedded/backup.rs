//! A copy of a store's journal, made beside whoever owns the store.
//!
//! Must not lock or change the source. Invariants: what is copied is durable in the source; the copy appears under its name
//! only as a whole, synced, read back and with the head of the source; a copy that failed leaves nothing behind.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::disk::JOURNAL;
use super::{Entries, OpenError, read_entries};
use crate::store::copy::CopyError;
use crate::store::read::{Head, ReadError};
use crate::store::url::StoreUrl;

/// How often a copy is tried. An answer that the owner erases meanwhile may be seen halfway, and looks damaged then; what is
/// damaged stays so.
const ATTEMPTS: u32 = 3;
/// Bytes copied between two words about how far it is.
const STEP_BYTES: u64 = 64 << 20;

/// What was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// Bytes of the journal.
    pub bytes: u64,
    /// Where the chain of source and copy stands: the same writer's.
    pub head: Head,
    /// Whether a process owned the source meanwhile.
    pub owned: bool,
}

/// Copies the store in `folder` to `to`, which must be absent or an empty folder. Everything but the journal is made from
/// it when the copy is opened; holds under way are unknown in the copy then. `tell` hears how many bytes are copied.
///
/// # Errors
/// There is no store, it is damaged, `to` holds something or cannot be written, or the copy does not read back as it was.
pub fn backup(folder: &Path, to: &Path, tell: &mut dyn FnMut(u64, u64)) -> Result<Backup, CopyError> {
    let mut attempt = 1;
    loop {
        match copy(folder, to, tell) {
            Err(CopyError::Source(_) | CopyError::Differs { .. }) if attempt < ATTEMPTS => attempt += 1,
            made => return made,
        }
    }
}

fn copy(folder: &Path, to: &Path, tell: &mut dyn FnMut(u64, u64)) -> Result<Backup, CopyError> {
    let mut source = read_entries(folder)?;
    is_free(to)?;
    let partial = Partial::begin(to)?;
    let head = walk(&mut source).map_err(CopyError::Source)?;
    let (journal, bytes) = source.part();
    partial.write(journal, bytes, tell)?;
    // The source was sound just now, so whatever does not hold is the copy's.
    let mut copy = read_entries(&partial.folder)?;
    let copied = walk(&mut copy);
    let copied = copied.map_err(|error| CopyError::Differs {
        number: error.entry().unwrap_or_default(),
        what: error.to_string(),
    })?;
    if copied != head || copy.part().1 != bytes {
        let number = copied.entries.min(head.entries);
        return Err(CopyError::Differs { number, what: "the copy ends with another chain".to_owned() });
    }
    partial.finish(to)?;
    Ok(Backup { bytes, head, owned: source.is_owned() })
}

/// Reads to the end, which checks every frame; gives the head there.
fn walk(entries: &mut Entries) -> Result<Head, ReadError> {
    match entries.find_map(Result::err) {
        Some(error) => Err(error.into()),
        None => Ok(entries.head()),
    }
}

fn is_free(to: &Path) -> Result<(), CopyError> {
    match fs::read_dir(to).map(|mut found| found.next().is_some()) {
        Ok(false) => Ok(()),
        Ok(true) => Err(CopyError::NotEmpty(StoreUrl::Sled(to.to_owned()))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(source) => Err(CopyError::Io { path: to.to_owned(), source }),
    }
}

/// The copy while it is made, beside its place. Dropped before it is finished, it is deleted.
struct Partial {
    folder: PathBuf,
    /// Locked: of two backups to one place, one is refused.
    lock: File,
    finished: bool,
}

impl Partial {
    fn begin(to: &Path) -> Result<Self, CopyError> {
        let failed = |path: &Path, source| CopyError::Io { path: path.to_owned(), source };
        if to.file_name().is_none() {
            return Err(failed(to, io::Error::new(ErrorKind::InvalidInput, "it has no name of its own")));
        }
        let folder = to.with_added_extension("partial");
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(failed(&folder, error)),
            _ => {}
        }
        let lock = File::open(&folder).map_err(|error| failed(&folder, error))?;
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(OpenError::Owned(folder).into()),
            Err(error) => return Err(failed(&folder, error.into())),
        }
        // What a backup that was killed left behind is written anew; anything else is not ours.
        let found = fs::read_dir(&folder).map_err(|error| failed(&folder, error))?;
        if found.flatten().any(|found| found.file_name() != JOURNAL) {
            return Err(CopyError::NotEmpty(StoreUrl::Sled(folder)));
        }
        Ok(Self { folder, lock, finished: false })
    }

    /// Copies the first `bytes` of `journal`, durably.
    fn write(&self, mut journal: &File, bytes: u64, tell: &mut dyn FnMut(u64, u64)) -> Result<(), CopyError> {
        let path = self.folder.join(JOURNAL);
        let mut copy = || -> io::Result<()> {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
            journal.seek(SeekFrom::Start(0))?;
            let mut copied = 0;
            while copied < bytes {
                match io::copy(&mut journal.take(STEP_BYTES.min(bytes - copied)), &mut file)? {
                    0 => return Err(ErrorKind::UnexpectedEof.into()),
                    step => copied += step,
                }
                tell(copied, bytes);
            }
            file.sync_all()?;
            self.lock.sync_all()
        };
        copy().map_err(|source| CopyError::Io { path: path.clone(), source })
    }

    /// Gives it its place.
    fn finish(mut self, to: &Path) -> Result<(), CopyError> {
        let parent = match to.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        // Taking the place of a folder works only where that is empty.
        let placed = fs::rename(&self.folder, to);
        self.finished = placed.is_ok();
        let placed = placed.and_then(|()| File::open(parent)?.sync_all());
        placed.map_err(|source| CopyError::Io { path: to.to_owned(), source })
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.finished {
            // What cannot be deleted does no harm: it has no store's name, and the next backup writes over it.
            let _ = fs::remove_file(self.folder.join(JOURNAL));
            let _ = fs::remove_dir(&self.folder);
        }
    }
}
