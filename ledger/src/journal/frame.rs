//! One frame: a header, the entry as JSON, and the blobs (answers, evidence) that belong to it.
//!
//! Must not know where a frame stands in a file. Invariants: the header's checksum covers the header, the chain covers
//! number and entry, and an entry names the digest of each of its blobs; so a blob can be erased and everything else
//! still checks.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use zstd::bulk::{Compressor, Decompressor};

use super::{BLOB_BYTES_MAX, BLOBS_BYTES_MAX, JournalError, PAYLOAD_BYTES_MAX, Writer, u32_at, u64_at};
use crate::entry::Entry;

/// Length of a frame's header.
pub(crate) const HEADER_BYTES: usize = 72;
/// The first bytes of every frame.
pub(crate) const MAGIC: &[u8; 4] = b"\xf7TuE";
/// Length of what stands in front of a blob's bytes.
const BLOB_HEADER_BYTES: usize = 9;
/// Blobs below this length are not worth compressing.
const COMPRESSED_FROM_BYTES: usize = 128;
const ZSTD_LEVEL: i32 = 3;

const RAW: u8 = 0;
const ZSTD: u8 = 1;
const ERASED: u8 = 2;

/// What stands in front of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) payload_bytes: u32,
    pub(crate) blobs_bytes: u64,
    pub(crate) number: u64,
    /// The offset up to which the file was known to be synced when this frame was written.
    pub(crate) synced: u64,
    pub(crate) chain: [u8; 32],
    pub(crate) payload_crc: u32,
}

impl Header {
    pub(crate) fn encode(&self, writer: &Writer) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4..8].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.blobs_bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.synced.to_le_bytes());
        bytes[32..64].copy_from_slice(&self.chain);
        bytes[64..68].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = header_crc(writer, &bytes);
        bytes[68..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header in these bytes, or none where they are no header of this journal.
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES], writer: &Writer) -> Option<Self> {
        if bytes[..4] != *MAGIC || u32_at(bytes, 68) != header_crc(writer, bytes) {
            return None;
        }
        let mut chain = [0; 32];
        chain.copy_from_slice(&bytes[32..64]);
        let header = Self {
            payload_bytes: u32_at(bytes, 4),
            blobs_bytes: u64_at(bytes, 8),
            number: u64_at(bytes, 16),
            synced: u64_at(bytes, 24),
            chain,
            payload_crc: u32_at(bytes, 64),
        };
        let fits = header.payload_bytes <= PAYLOAD_BYTES_MAX && header.blobs_bytes <= BLOBS_BYTES_MAX;
        fits.then_some(header)
    }
}

fn header_crc(writer: &Writer, bytes: &[u8; HEADER_BYTES]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(writer);
    hasher.update(&bytes[..68]);
    hasher.finalize()
}

/// The chain's next link.
pub(crate) fn link(previous: &[u8; 32], number: u64, payload: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(previous);
    hasher.update(&number.to_le_bytes());
    hasher.update(payload);
    *hasher.finalize().as_bytes()
}

#[derive(Serialize)]
struct PayloadRef<'a> {
    entry: &'a Entry,
    blobs: Vec<&'a Digest>,
}

#[derive(Deserialize)]
struct Payload {
    entry: Entry,
    blobs: Vec<Digest>,
}

/// What an entry says about one of its blobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Digest {
    /// BLAKE3 of the uncompressed bytes, in hex.
    digest: String,
    /// How many they are.
    len: u64,
}

/// A blob, ready to be written.
#[derive(Clone, Debug)]
pub(crate) struct Packed {
    digest: Digest,
    stored: Vec<u8>,
}

impl Packed {
    /// Compresses a blob where that helps.
    pub(crate) fn new(bytes: &[u8]) -> Result<Self, JournalError> {
        let len = bytes.len() as u64;
        if len > BLOB_BYTES_MAX {
            return Err(JournalError::TooLarge {
                what: "a part of an answer",
                bytes: len,
                max: BLOB_BYTES_MAX,
            });
        }
        let compressed = if bytes.len() < COMPRESSED_FROM_BYTES {
            None
        } else {
            Some(compress(bytes)?).filter(|smaller| smaller.len() < bytes.len())
        };
        let (state, body) = compressed.as_deref().map_or((RAW, bytes), |body| (ZSTD, body));
        let stored_len = u32::try_from(body.len()).expect("a blob is below 4 GiB");
        let mut stored = Vec::with_capacity(BLOB_HEADER_BYTES + body.len());
        stored.push(state);
        stored.extend_from_slice(&stored_len.to_le_bytes());
        stored.extend_from_slice(&blob_crc(state, stored_len, body).to_le_bytes());
        stored.extend_from_slice(body);
        Ok(Self { digest: Digest { digest: blake3::hash(bytes).to_hex().to_string(), len }, stored })
    }
}

thread_local! {
    // To make one takes longer than to use it on an answer of a kilobyte.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

fn compress(bytes: &[u8]) -> io::Result<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|made| match made {
        Some(made) => made.compress(bytes),
        none => none.insert(Compressor::new(ZSTD_LEVEL)?).compress(bytes),
    })
}

fn decompress(stored: &[u8], len: usize) -> io::Result<Vec<u8>> {
    DECOMPRESSOR.with_borrow_mut(|made| match made {
        Some(made) => made.decompress(stored, len),
        none => none.insert(Decompressor::new()?).decompress(stored, len),
    })
}

/// Covers state and length too, so that a flipped bit cannot erase a blob.
pub(super) fn blob_crc(state: u8, stored_len: u32, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[state]);
    hasher.update(&stored_len.to_le_bytes());
    if state != ERASED {
        hasher.update(body);
    }
    hasher.finalize()
}

/// What stands in the place of a blob of `stored` bytes once it is erased: as long, and all zeros.
pub(crate) fn erased(stored: u32) -> Vec<u8> {
    let mut bytes = vec![0; BLOB_HEADER_BYTES + stored as usize];
    bytes[0] = ERASED;
    bytes[1..5].copy_from_slice(&stored.to_le_bytes());
    bytes[5..9].copy_from_slice(&blob_crc(ERASED, stored, &[]).to_le_bytes());
    bytes
}

/// An entry with its blobs, ready to be numbered and written.
#[derive(Debug)]
pub(crate) struct Draft {
    payload: Vec<u8>,
    blobs: Vec<Packed>,
    blobs_bytes: usize,
}

impl Draft {
    /// Writes the entry down; numbering and chaining wait until its place in the file is known.
    pub(crate) fn new(entry: &Entry, blobs: Vec<Packed>) -> Result<Self, JournalError> {
        let named = PayloadRef { entry, blobs: blobs.iter().map(|blob| &blob.digest).collect() };
        let payload = serde_json::to_vec(&named).expect("an entry has text keys only and cannot fail");
        let check = |what, bytes: usize, max: u64| {
            let bytes = bytes as u64;
            if bytes > max { Err(JournalError::TooLarge { what, bytes, max }) } else { Ok(()) }
        };
        check("an entry", payload.len(), u64::from(PAYLOAD_BYTES_MAX))?;
        let blobs_bytes = blobs.iter().map(|blob| blob.stored.len()).sum();
        check("an answer", blobs_bytes, BLOBS_BYTES_MAX)?;
        Ok(Self { payload, blobs, blobs_bytes })
    }

    /// Bytes that it takes in the file.
    pub(crate) fn bytes(&self) -> u64 {
        (HEADER_BYTES + self.payload.len() + self.blobs_bytes) as u64
    }

    /// An entry that was read, to be written down again byte for byte.
    pub(crate) fn again(payload: &[u8], blobs: &[Blob]) -> Self {
        let blobs: Vec<Packed> = blobs.iter().map(Blob::packed).collect();
        let blobs_bytes = blobs.iter().map(|blob| blob.stored.len()).sum();
        Self { payload: payload.to_vec(), blobs, blobs_bytes }
    }

    /// The entry as it is chained.
    pub(crate) fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// The blobs as they are stored; none for one that was erased.
    pub(crate) fn stored(&self) -> impl Iterator<Item = Option<&[u8]>> {
        self.blobs.iter().map(|blob| (blob.stored[0] != ERASED).then_some(&blob.stored[..]))
    }

    /// Appends the frame to `out`; returns the chain's new link.
    pub(crate) fn write(
        &self,
        out: &mut Vec<u8>,
        writer: &Writer,
        number: u64,
        synced: u64,
        previous: &[u8; 32],
    ) -> [u8; 32] {
        let chain = link(previous, number, &self.payload);
        let header = Header {
            payload_bytes: u32::try_from(self.payload.len()).expect("checked against `PAYLOAD_BYTES_MAX`"),
            blobs_bytes: self.blobs_bytes as u64,
            number,
            synced,
            chain,
            payload_crc: crc32fast::hash(&self.payload),
        };
        out.extend_from_slice(&header.encode(writer));
        out.extend_from_slice(&self.payload);
        for blob in &self.blobs {
            out.extend_from_slice(&blob.stored);
        }
        chain
    }
}

/// A blob as it was read; its digest is checked when it is opened.
#[derive(Clone, Debug)]
pub struct Blob {
    digest: Digest,
    state: u8,
    stored: Bytes,
    /// What was wrong with it when it was read, where reading went on all the same.
    unfit: Option<&'static str>,
}

impl Blob {
    /// Whether it was erased on purpose.
    pub fn is_erased(&self) -> bool {
        self.state == ERASED
    }

    /// Whether it was erased, and nothing is left of it.
    pub(crate) fn is_blank(&self) -> bool {
        self.is_erased() && self.stored.iter().all(|byte| *byte == 0)
    }

    /// The bytes that it stores.
    pub(crate) fn stored_bytes(&self) -> u32 {
        u32::try_from(self.stored.len()).expect("read behind a length of four bytes")
    }

    /// The bytes that it takes in the file.
    pub(crate) fn bytes(&self) -> u64 {
        (BLOB_HEADER_BYTES + self.stored.len()) as u64
    }

    /// The uncompressed bytes; none where the blob was erased on purpose.
    ///
    /// # Errors
    /// A text that says what does not match.
    pub fn open(&self) -> Result<Option<Bytes>, &'static str> {
        if let Some(why) = self.unfit {
            return Err(why);
        }
        let bytes = match self.state {
            ERASED => return Ok(None),
            RAW => self.stored.clone(),
            _ => {
                let len =
                    usize::try_from(self.digest.len).map_err(|_| "a blob is too large for this machine")?;
                Bytes::from(decompress(&self.stored, len).map_err(|_| "a blob does not decompress")?)
            }
        };
        if bytes.len() as u64 != self.digest.len
            || blake3::hash(&bytes).to_hex().as_str() != self.digest.digest
        {
            return Err("a blob does not match its digest");
        }
        Ok(Some(bytes))
    }
}

impl Blob {
    /// As it is written into a frame.
    fn packed(&self) -> Packed {
        let stored_len = u32::try_from(self.stored.len()).expect("a blob is below 4 GiB");
        let mut stored = Vec::with_capacity(BLOB_HEADER_BYTES + self.stored.len());
        stored.push(self.state);
        stored.extend_from_slice(&stored_len.to_le_bytes());
        stored.extend_from_slice(&blob_crc(self.state, stored_len, &self.stored).to_le_bytes());
        stored.extend_from_slice(&self.stored);
        Packed { digest: self.digest.clone(), stored }
    }
}

/// Why a frame's body is not what its header promised.
#[derive(Debug)]
pub(crate) enum BodyFault {
    /// Bytes changed or are missing.
    Damaged(&'static str),
    /// Whole, but written by a version that knows more.
    NotUnderstood(serde_json::Error),
}

/// Reads a body (entry and blobs) that stands behind `header`; `previous` checks the chain where it is known.
pub(crate) fn read_body(
    header: &Header,
    body: Bytes,
    previous: Option<&[u8; 32]>,
) -> Result<(Entry, Vec<Blob>), BodyFault> {
    use BodyFault::Damaged;
    let payload = body.slice(..header.payload_bytes as usize);
    let mut rest = body.slice(header.payload_bytes as usize..);
    if crc32fast::hash(&payload) != header.payload_crc {
        return Err(Damaged("the entry does not match its checksum"));
    }
    if previous.is_some_and(|previous| link(previous, header.number, &payload) != header.chain) {
        return Err(Damaged("the entry does not continue the chain"));
    }
    let mut stored = Vec::new();
    while !rest.is_empty() {
        let (blob, behind) = split_blob(rest).map_err(Damaged)?;
        stored.push(blob);
        rest = behind;
    }
    name_blobs(&payload, stored)
}

/// Reads an entry that is stored without a frame; a blob without bytes was erased.
pub(crate) fn read_apart(
    payload: &[u8],
    blobs: impl Iterator<Item = Option<Bytes>>,
) -> Result<(Entry, Vec<Blob>), BodyFault> {
    let blobs = blobs.map(|blob| match blob.map(split_blob) {
        None => Ok((ERASED, Bytes::new())),
        Some(Ok((blob, behind))) if behind.is_empty() => Ok(blob),
        Some(Ok(_)) => Err("a blob is longer than it says"),
        Some(Err(why)) => Err(why),
    });
    name_blobs(payload, blobs.collect::<Result<_, _>>().map_err(BodyFault::Damaged)?)
}

/// Reads an entry whatever is wrong with its blobs, which are given by their place: one that does not check says so when it
/// is opened. Gives the places that the entry does not name, too.
pub(crate) fn survey_apart(
    payload: &[u8],
    mut blobs: BTreeMap<i32, Option<Bytes>>,
) -> Result<(Entry, Vec<Blob>, Vec<i32>), serde_json::Error> {
    let payload: Payload = serde_json::from_slice(payload)?;
    let mut read = Vec::with_capacity(payload.blobs.len());
    for (place, digest) in (0..).zip(payload.blobs) {
        let found = match blobs.remove(&place) {
            None => Err("a blob is missing"),
            Some(None) => Ok((ERASED, Bytes::new())),
            Some(Some(_)) if digest.len > BLOB_BYTES_MAX => Err("a blob is larger than a journal takes"),
            Some(Some(stored)) => match split_blob(stored) {
                Ok((blob, behind)) if behind.is_empty() => Ok(blob),
                Ok(_) => Err("a blob is longer than it says"),
                Err(why) => Err(why),
            },
        };
        read.push(match found {
            Ok((state, stored)) => Blob { digest, state, stored, unfit: None },
            Err(why) => Blob { digest, state: RAW, stored: Bytes::new(), unfit: Some(why) },
        });
    }
    Ok((payload.entry, read, blobs.into_keys().collect()))
}

/// Reads an entry and those of its blobs that are given, by their place among them.
pub(crate) fn read_answer(
    payload: &[u8],
    blobs: Vec<(usize, Option<Bytes>)>,
) -> Result<(Entry, Vec<Blob>), BodyFault> {
    let payload: Payload = serde_json::from_slice(payload).map_err(BodyFault::NotUnderstood)?;
    let mut read = Vec::with_capacity(blobs.len());
    for (place, bytes) in blobs {
        let digest = payload.blobs.get(place).filter(|digest| digest.len <= BLOB_BYTES_MAX);
        let digest = digest.ok_or(BodyFault::Damaged("the entry names no such blob"))?.clone();
        let (state, stored) = match bytes.map(split_blob).transpose().map_err(BodyFault::Damaged)? {
            Some((blob, _)) => blob,
            None => (ERASED, Bytes::new()),
        };
        read.push(Blob { digest, state, stored, unfit: None });
    }
    Ok((payload.entry, read))
}

/// Reads the entry alone, and how many blobs it names.
pub(crate) fn read_payload(payload: &[u8]) -> Result<(Entry, usize), BodyFault> {
    let payload: Payload = serde_json::from_slice(payload).map_err(BodyFault::NotUnderstood)?;
    Ok((payload.entry, payload.blobs.len()))
}

/// Takes one blob off, as state and bytes; gives what stands behind it.
fn split_blob(mut rest: Bytes) -> Result<((u8, Bytes), Bytes), &'static str> {
    if rest.len() < BLOB_HEADER_BYTES {
        return Err("a blob's header is cut off");
    }
    let (state, stored_len, crc) = (rest[0], u32_at(&rest, 1), u32_at(&rest, 5));
    let body = rest.split_off(BLOB_HEADER_BYTES);
    let end = stored_len as usize;
    if state > ERASED || body.len() < end || blob_crc(state, stored_len, &body[..end]) != crc {
        return Err("a blob does not match its checksum");
    }
    Ok(((state, body.slice(..end)), body.slice(end..)))
}

/// Puts the digests that an entry names beside its blobs.
fn name_blobs(payload: &[u8], stored: Vec<(u8, Bytes)>) -> Result<(Entry, Vec<Blob>), BodyFault> {
    let payload: Payload = serde_json::from_slice(payload).map_err(BodyFault::NotUnderstood)?;
    if payload.blobs.len() != stored.len() {
        return Err(BodyFault::Damaged("the entry names more or fewer blobs than it has"));
    }
    if payload.blobs.iter().any(|digest| digest.len > BLOB_BYTES_MAX) {
        return Err(BodyFault::Damaged("a blob is larger than a journal takes"));
    }
    let blobs = payload.blobs.into_iter().zip(stored);
    Ok((
        payload.entry,
        blobs.map(|(digest, (state, stored))| Blob { digest, state, stored, unfit: None }).collect(),
    ))
}
