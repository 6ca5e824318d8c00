//! The file layer below the embedded store: one journal, and small files that are replaced as a whole.
//!
//! Must not know what the bytes mean. Invariant: `sync` returns only when every byte written before it would survive a
//! power cut; a test puts a simulated disk in its place that forgets everything else.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::fault;
use crate::journal::{FileHeader, Source};

/// The journal's name in the store's folder.
pub(crate) const JOURNAL: &str = "journal";

/// The rights of the file's group and of everybody else.
const OTHERS: u32 = 0o077;

/// What the store asks of a disk.
pub(crate) trait Disk: Source + Send + Sync {
    /// Writes all bytes at `offset` of the journal; durable only after `sync`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes everything written to the journal durable.
    fn sync(&self) -> io::Result<()>;
    /// Cuts the journal, and frees what was set aside behind it.
    fn cut(&self, length: u64) -> io::Result<()>;
    /// Sets space aside, so that the journal can be written up to `end` without more.
    fn set_aside(&self, end: u64) -> io::Result<()>;
    /// A small file, where there is one.
    fn load(&self, name: &str) -> io::Result<Option<Vec<u8>>>;
    /// Replaces a small file as a whole, durably.
    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Removes a small file; that it is gone need not be durable.
    fn remove(&self, name: &str) -> io::Result<()>;
}

/// A folder of a real file system.
#[derive(Debug)]
pub(crate) struct FolderDisk {
    folder: PathBuf,
    journal: File,
}

impl FolderDisk {
    /// Makes the folder where there is none, readable by its owner only.
    pub(crate) fn make_folder(folder: &Path) -> io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
    }

    /// Opens the journal, and begins one with `header` where there is none.
    pub(crate) fn open(folder: &Path, header: impl FnOnce() -> io::Result<FileHeader>) -> io::Result<Self> {
        let path = folder.join(JOURNAL);
        if !path.try_exists()? {
            replace(folder, JOURNAL, &header()?.encode())?;
        }
        let journal = OpenOptions::new().read(true).write(true).open(path)?;
        make_private(&journal)?;
        Ok(Self { folder: folder.to_owned(), journal })
    }
}

impl Source for FolderDisk {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(&self.journal, buffer, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.journal.metadata()?.len())
    }
}

impl Disk for FolderDisk {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.journal.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.journal.sync_data()?;
        fault::note_synced(|| self.len())
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        self.journal.set_len(length)
    }

    #[cfg(target_os = "linux")]
    fn set_aside(&self, end: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        let length = self.journal.metadata()?.len();
        if end <= length {
            return Ok(());
        }
        match fallocate(&self.journal, FallocateFlags::KEEP_SIZE, length, end - length) {
            // A file system that cannot set space aside: a full disk is then met when it is written.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn set_aside(&self, _end: u64) -> io::Result<()> {
        Ok(())
    }

    fn load(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        load(&self.folder, name)
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        replace(&self.folder, name, bytes)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.folder.join(name))
    }
}

/// Takes everybody else's rights to a file or folder of the store away: a copy that was put in place may have brought
/// some along.
pub(crate) fn make_private(file: &File) -> io::Result<()> {
    let mode = file.metadata()?.permissions().mode() & 0o7777;
    if mode & OTHERS == 0 { Ok(()) } else { file.set_permissions(Permissions::from_mode(mode & !OTHERS)) }
}

/// A small file of the folder, where there is one.
pub(crate) fn load(folder: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    match std::fs::read(folder.join(name)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn replace(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let fresh = folder.join(format!("{name}.new"));
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all_at(bytes, 0)?;
    file.sync_all()?;
    std::fs::rename(&fresh, folder.join(name))?;
    File::open(folder)?.sync_all()
}
