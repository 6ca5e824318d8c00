//! The journal's file format, number 1: a file header, then frames that are numbered, checksummed and chained.
//!
//! Pure: bytes in, bytes out; must not know folders, threads or clocks. `docs/journal.md` has the byte table. Invariants:
//! what is read is a prefix of what was written, entry for entry, and a byte that changed is never taken for another
//! figure.

mod frame;
mod record;
mod scan;
#[cfg(any(test, feature = "fuzzing"))]
mod sealed;
mod survey;

use std::io;

pub use frame::Blob;
pub(crate) use frame::{
    BodyFault, Draft, Packed, erased, read_answer, read_apart, read_payload, survey_apart,
};
pub(crate) use record::{blobs_of_items, pack_settlement, unpack_item, unpack_settlement};
pub(crate) use scan::{Frame, Frames, Step, Torn, judge, next_header, read_frame, whole};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use sealed::sealed;
pub use survey::Fault;
pub(crate) use survey::Survey;

/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u32 = 1;
/// The most bytes of an entry's JSON.
pub const PAYLOAD_BYTES_MAX: u32 = 64 << 20;
/// The most bytes of one blob before compression.
pub const BLOB_BYTES_MAX: u64 = 256 << 20;
/// The most bytes of all blobs of one entry as they are stored.
pub const BLOBS_BYTES_MAX: u64 = 1 << 30;

/// Length of the file header.
pub(crate) const FILE_HEADER_BYTES: usize = 40;

const FILE_MAGIC: &[u8; 8] = b"TUITION\0";

/// Why a journal cannot be read or an entry cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Some other file.
    #[error("this is no journal: it does not begin with `TUITION`")]
    NotAJournal,
    /// Written by a later version.
    #[error("the journal has format {found}; this version knows formats up to {FORMAT}")]
    NewerFormat {
        /// The file's format.
        found: u32,
    },
    /// The file header does not match its checksum.
    #[error("the journal's file header is damaged")]
    HeaderDamaged,
    /// A frame that once was durable is damaged or gone.
    #[error("entry {number} at offset {offset} of the journal is damaged: {why}")]
    Corrupt {
        /// Its number.
        number: u64,
        /// Where it begins.
        offset: u64,
        /// How that is known.
        why: String,
    },
    /// A frame is whole, but this version does not understand the entry.
    #[error("entry {number} at offset {offset} of the journal is not understood by this version")]
    NotUnderstood {
        /// Its number.
        number: u64,
        /// Where it begins.
        offset: u64,
        /// What is not understood.
        #[source]
        source: serde_json::Error,
    },
    /// A part of the journal is damaged, missing or out of place; reading went on behind it.
    #[error(transparent)]
    Unfit(#[from] Fault),
    /// Larger than a limit of the format.
    #[error("{what} of {bytes} bytes is larger than the {max} bytes that the journal takes")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its length.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// The file cannot be read.
    #[error("the journal cannot be read")]
    Io(#[from] io::Error),
}

/// Bytes that can be read anywhere.
pub(crate) trait Source {
    /// Reads at `offset` as many bytes as there are, up to the buffer's length.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// How many bytes there are.
    fn len(&self) -> io::Result<u64>;

    /// Fills the buffer; false where the bytes end before.
    fn read_full(&self, buffer: &mut [u8], offset: u64) -> io::Result<bool> {
        let mut done = 0;
        while done < buffer.len() {
            match self.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => return Ok(false),
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

impl<S: Source + ?Sized> Source for std::sync::Arc<S> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        (**self).read_at(buffer, offset)
    }

    fn len(&self) -> io::Result<u64> {
        (**self).len()
    }
}

impl<S: Source + ?Sized> Source for &S {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        (**self).read_at(buffer, offset)
    }

    fn len(&self) -> io::Result<u64> {
        (**self).len()
    }
}

impl Source for std::fs::File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, buffer, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl Source for [u8] {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        let count = buffer.len().min(self.len() - start);
        buffer[..count].copy_from_slice(&self[start..start + count]);
        Ok(count)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

/// Who wrote a journal: 16 random bytes. They seed the checksum of every frame header, so that no answer's bytes can
/// pass for a frame.
pub(crate) type Writer = [u8; 16];

/// The first bytes of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileHeader {
    /// Who wrote it.
    pub(crate) writer: Writer,
    /// When it was begun, in milliseconds since 1970.
    pub(crate) created_ms: u64,
}

impl FileHeader {
    /// As it stands in the file.
    pub(crate) fn encode(&self) -> [u8; FILE_HEADER_BYTES] {
        let mut bytes = [0; FILE_HEADER_BYTES];
        bytes[..8].copy_from_slice(FILE_MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12..28].copy_from_slice(&self.writer);
        bytes[28..36].copy_from_slice(&self.created_ms.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..36]);
        bytes[36..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the header off a journal.
    pub(crate) fn read(source: &(impl Source + ?Sized)) -> Result<Self, JournalError> {
        let mut bytes = [0; FILE_HEADER_BYTES];
        if !source.read_full(&mut bytes, 0)? || bytes[..8] != *FILE_MAGIC {
            return Err(JournalError::NotAJournal);
        }
        let format = u32_at(&bytes, 8);
        if format > FORMAT {
            return Err(JournalError::NewerFormat { found: format });
        }
        if format == 0 || u32_at(&bytes, 36) != crc32fast::hash(&bytes[..36]) {
            return Err(JournalError::HeaderDamaged);
        }
        let mut writer = [0; 16];
        writer.copy_from_slice(&bytes[12..28]);
        Ok(Self { writer, created_ms: u64_at(&bytes, 28) })
    }

    /// The header that stood there before one byte of it changed; none where that cannot be told. The first frame proves
    /// it: its checksum covers the writer, its chain the whole header.
    pub(crate) fn mend(source: &(impl Source + ?Sized)) -> Result<Option<Self>, JournalError> {
        let mut bytes = [0; FILE_HEADER_BYTES];
        if !source.read_full(&mut bytes, 0)? {
            return Ok(None);
        }
        for at in 0..FILE_HEADER_BYTES {
            let found = bytes[at];
            for byte in 0..=u8::MAX {
                bytes[at] = byte;
                let Ok(header) = Self::read(&bytes[..]) else { continue };
                let (length, chain) = (source.len()?, header.chain());
                let mut frames = Frames::resume(source, header, FILE_HEADER_BYTES as u64, 0, chain, length);
                if matches!(frames.step(), Ok(Step::Frame(_))) {
                    return Ok(Some(header));
                }
            }
            bytes[at] = found;
        }
        Ok(None)
    }

    /// What the first entry is chained to.
    pub(crate) fn chain(&self) -> [u8; 32] {
        *blake3::hash(&self.encode()).as_bytes()
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("the slice has four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("the slice has eight bytes"))
}

#[cfg(test)]
mod tests;
