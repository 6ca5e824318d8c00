//! A journal that is written as a copy, beside the place where it will stand.
//!
//! Must not decide anything. Invariant: the folder appears under its name only as a whole, synced, and never over another.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::disk::{Disk as _, FolderDisk};
use super::opening::random_writer;
use crate::journal::{Draft, FILE_HEADER_BYTES, FileHeader};
use crate::store::copy::CopyError;
use crate::store::read::ReadEntry;
use crate::store::url::StoreUrl;

/// Bytes written at a time.
const STEP_BYTES: usize = 8 << 20;

/// The journal.
pub(crate) struct Transcript {
    to: PathBuf,
    folder: PathBuf,
    /// Made with the first entry, of which it has its time.
    begun: Option<Begun>,
}

struct Begun {
    disk: FolderDisk,
    header: FileHeader,
    written: u64,
    bytes: Vec<u8>,
    number: u64,
    chain: [u8; 32],
}

impl Transcript {
    /// A journal that will stand in `to`, which must be absent or an empty folder.
    pub(crate) fn begin(to: &Path) -> Result<Self, CopyError> {
        match fs::read_dir(to).map(|mut found| found.next().is_some()) {
            Ok(false) => {}
            Ok(true) => return Err(CopyError::NotEmpty(StoreUrl::Sled(to.to_owned()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(CopyError::Io { path: to.to_owned(), source }),
        }
        let folder = to.with_extension("copying");
        let transcript = Self { to: to.to_owned(), folder, begun: None };
        // What an interrupted copy left behind.
        match fs::remove_dir_all(&transcript.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(transcript.failed(error)),
            _ => Ok(transcript),
        }
    }

    /// Where it is written meanwhile.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn failed(&self, source: io::Error) -> CopyError {
        CopyError::Io { path: self.folder.clone(), source }
    }

    fn begun(&mut self, created_ms: u64) -> Result<&mut Begun, CopyError> {
        if self.begun.is_none() {
            let made = FolderDisk::make_folder(&self.folder).and_then(|()| {
                let header = FileHeader { writer: random_writer()?, created_ms };
                Ok((FolderDisk::open(&self.folder, || Ok(header))?, header))
            });
            let (disk, header) = made.map_err(|error| self.failed(error))?;
            let (written, chain) = (FILE_HEADER_BYTES as u64, header.chain());
            self.begun = Some(Begun { disk, header, written, bytes: Vec::new(), number: 0, chain });
        }
        Ok(self.begun.as_mut().expect("it was just made"))
    }

    /// Writes one more entry.
    pub(crate) fn append(&mut self, read: &ReadEntry) -> Result<(), CopyError> {
        let begun = self.begun(read.entry.at.0)?;
        let draft = Draft::again(&read.payload, &read.blobs);
        // By the time anybody reads this as a journal, all of it is synced.
        let place = begun.written + begun.bytes.len() as u64;
        begun.number += 1;
        let (writer, number) = (begun.header.writer, begun.number);
        begun.chain = draft.write(&mut begun.bytes, &writer, number, place, &begun.chain);
        if begun.bytes.len() < STEP_BYTES {
            return Ok(());
        }
        begun.write().map_err(|error| self.failed(error))
    }

    /// Makes durable what was written.
    pub(crate) fn sync(&mut self) -> Result<(), CopyError> {
        let begun = self.begun(0)?;
        let synced = begun.write().and_then(|()| begun.disk.sync());
        synced.map_err(|error| self.failed(error))
    }

    /// Gives it its place.
    pub(crate) fn finish(self) -> Result<(), CopyError> {
        let parent = match self.to.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        // Taking the place of a folder works only where that is empty.
        let placed = fs::rename(&self.folder, &self.to).and_then(|()| File::open(parent)?.sync_all());
        placed.map_err(|source| CopyError::Io { path: self.to.clone(), source })
    }
}

impl Begun {
    fn write(&mut self) -> io::Result<()> {
        self.disk.write_at(&self.bytes, self.written)?;
        self.written += self.bytes.len() as u64;
        self.bytes.clear();
        Ok(())
    }
}
