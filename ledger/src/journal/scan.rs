//! Reading a journal frame by frame, and telling a torn tail from damage.
//!
//! Must not know files. Invariants: a frame is given out only when header, chain and blobs check; whatever was once
//! known to be synced and no longer reads is damage, never a tail to be cut.

use bytes::Bytes;

use super::frame::{self, BodyFault, HEADER_BYTES, Header};
use super::{Blob, FILE_HEADER_BYTES, FileHeader, JournalError, Source};
use crate::entry::Entry;

/// Bytes searched at a time behind a bad frame.
const SEARCH_BYTES: usize = 1 << 20;

/// One frame.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) number: u64,
    /// Where it begins.
    pub(crate) offset: u64,
    /// Where the next one begins.
    pub(crate) end: u64,
    /// The chain up to and with it.
    pub(crate) chain: [u8; 32],
    /// The entry as it is chained.
    pub(crate) payload: Bytes,
    pub(crate) entry: Entry,
    pub(crate) blobs: Vec<Blob>,
}

impl Frame {
    /// Where a blob begins.
    pub(crate) fn blob_offset(&self, index: usize) -> u64 {
        self.end - self.blobs[index..].iter().map(Blob::bytes).sum::<u64>()
    }
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Step {
    Frame(Box<Frame>),
    /// The bytes end where a frame ends.
    End,
    /// No frame stands here.
    Bad(Torn),
}

/// Bytes at the end that are no frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Torn {
    pub(crate) offset: u64,
    /// The number that the frame should have.
    pub(crate) number: u64,
    pub(crate) why: &'static str,
}

/// Reads frames in order.
#[derive(Debug)]
pub(crate) struct Frames<S> {
    source: S,
    header: FileHeader,
    /// Where the next frame begins.
    pub(crate) position: u64,
    /// The number of the last frame.
    pub(crate) number: u64,
    /// The chain up to the last frame.
    pub(crate) chain: [u8; 32],
    limit: u64,
}

impl<S: Source> Frames<S> {
    /// From the first frame on, up to `limit`.
    pub(crate) fn from_start(source: S, limit: u64) -> Result<Self, JournalError> {
        let header = FileHeader::read(&source)?;
        let chain = header.chain();
        Ok(Self { source, header, position: FILE_HEADER_BYTES as u64, number: 0, chain, limit })
    }

    /// From a place on that was reached before.
    pub(crate) fn resume(
        source: S,
        header: FileHeader,
        position: u64,
        number: u64,
        chain: [u8; 32],
        limit: u64,
    ) -> Self {
        Self { source, header, position, number, chain, limit }
    }

    /// The file header.
    pub(crate) fn header(&self) -> &FileHeader {
        &self.header
    }

    /// What is read.
    pub(crate) fn source(&self) -> &S {
        &self.source
    }

    /// The next frame; after anything but a frame, the same again.
    pub(crate) fn step(&mut self) -> Result<Step, JournalError> {
        if self.position == self.limit {
            return Ok(Step::End);
        }
        let number = self.number + 1;
        let torn = |why| Ok(Step::Bad(Torn { offset: self.position, number, why }));
        let (header, body) = match read_parts(&self.source, &self.header, self.position, self.limit)? {
            Ok(parts) => parts,
            Err(why) => return torn(why),
        };
        if header.number != number {
            return torn("the number does not follow the one before it");
        }
        let payload = body.slice(..header.payload_bytes as usize);
        match frame::read_body(&header, body, Some(&self.chain)) {
            Ok((entry, blobs)) => {
                let end = self.position + frame_bytes(&header);
                let (offset, chain) = (self.position, header.chain);
                let frame = Frame { number, offset, end, chain, payload, entry, blobs };
                (self.position, self.number, self.chain) = (end, number, header.chain);
                Ok(Step::Frame(Box::new(frame)))
            }
            Err(BodyFault::Damaged(why)) => torn(why),
            Err(BodyFault::NotUnderstood(source)) => {
                Err(JournalError::NotUnderstood { number, offset: self.position, source })
            }
        }
    }
}

/// Reads the one frame at `offset`; its chain is not checked, everything else is.
pub(crate) fn read_frame(
    source: &(impl Source + ?Sized),
    file: &FileHeader,
    offset: u64,
) -> Result<Frame, JournalError> {
    let corrupt = |number, why: &str| JournalError::Corrupt { number, offset, why: why.to_owned() };
    let (header, body) = match read_parts(source, file, offset, source.len()?)? {
        Ok(parts) => parts,
        Err(why) => return Err(corrupt(number_at(source, file, offset)?, why)),
    };
    let number = header.number;
    let payload = body.slice(..header.payload_bytes as usize);
    match frame::read_body(&header, body, None) {
        Ok((entry, blobs)) => Ok(Frame {
            number,
            offset,
            end: offset + frame_bytes(&header),
            chain: header.chain,
            payload,
            entry,
            blobs,
        }),
        Err(BodyFault::Damaged(why)) => Err(corrupt(number, why)),
        Err(BodyFault::NotUnderstood(source)) => Err(JournalError::NotUnderstood { number, offset, source }),
    }
}

/// The number of the frame that begins at `offset` and whose own header is damaged, by the headers before it; 0 where one
/// of those is damaged too. Walks through the journal: for an error's words only.
fn number_at(source: &(impl Source + ?Sized), file: &FileHeader, offset: u64) -> Result<u64, JournalError> {
    let (mut position, mut number) = (FILE_HEADER_BYTES as u64, 1);
    let mut bytes = [0; HEADER_BYTES];
    while position < offset {
        if !source.read_full(&mut bytes, position)? {
            return Ok(0);
        }
        let Some(header) = Header::decode(&bytes, &file.writer) else { return Ok(0) };
        position += frame_bytes(&header);
        number = header.number + 1;
    }
    Ok(if position == offset { number } else { 0 })
}

pub(super) fn frame_bytes(header: &Header) -> u64 {
    HEADER_BYTES as u64 + u64::from(header.payload_bytes) + header.blobs_bytes
}

type Parts = Result<(Header, Bytes), &'static str>;

fn read_parts(
    source: &(impl Source + ?Sized),
    file: &FileHeader,
    offset: u64,
    limit: u64,
) -> Result<Parts, JournalError> {
    let mut bytes = [0; HEADER_BYTES];
    let cut = Ok(Err("it is cut off"));
    if offset + HEADER_BYTES as u64 > limit || !source.read_full(&mut bytes, offset)? {
        return cut;
    }
    let Some(header) = Header::decode(&bytes, &file.writer) else {
        return Ok(Err("its header does not match its checksum"));
    };
    let end = offset + frame_bytes(&header);
    if end > limit {
        return cut;
    }
    let mut body = vec![0; usize::try_from(frame_bytes(&header)).expect("limited by decode") - HEADER_BYTES];
    if !source.read_full(&mut body, offset + HEADER_BYTES as u64)? {
        return cut;
    }
    Ok(Ok((header, Bytes::from(body))))
}

/// Says whether the bytes from `torn` on were never durable (then they may be cut off) or once were (then this is damage).
///
/// `stood` is the largest offset that somebody else (a checkpoint, the index, the owner) saw synced, with their name.
pub(crate) fn judge(
    source: &(impl Source + ?Sized),
    file: &FileHeader,
    torn: Torn,
    stood: Option<(u64, &str)>,
) -> Result<Torn, JournalError> {
    let corrupt = |why: String| Err(JournalError::Corrupt { number: torn.number, offset: torn.offset, why });
    if let Some((stood, witness)) = stood.filter(|(stood, _)| *stood > torn.offset) {
        return corrupt(format!(
            "{}, though {witness} saw the journal durable up to offset {stood}",
            torn.why
        ));
    }
    let mut from = torn.offset + 1;
    while let Some((offset, later)) = next_header(source, file, from)? {
        if later.synced > torn.offset {
            return corrupt(format!(
                "{}, though entry {} behind it was written when the journal was durable up to offset {}",
                torn.why, later.number, later.synced
            ));
        }
        from = offset + 1;
    }
    Ok(torn)
}

/// Refuses a journal that ends where a frame ends, but before a place that somebody saw durable.
pub(crate) fn whole(number: u64, length: u64, stood: Option<(u64, &str)>) -> Result<(), JournalError> {
    let Some((stood, witness)) = stood.filter(|(stood, _)| *stood > length) else { return Ok(()) };
    let why = format!("it is missing, though {witness} saw the journal durable up to offset {stood}");
    Err(JournalError::Corrupt { number: number + 1, offset: length, why })
}

/// The first header of this journal at or behind `from`, wherever it stands.
pub(crate) fn next_header(
    source: &(impl Source + ?Sized),
    file: &FileHeader,
    from: u64,
) -> Result<Option<(u64, Header)>, JournalError> {
    let mut offset = from;
    let mut window = vec![0; SEARCH_BYTES + HEADER_BYTES];
    loop {
        let mut filled = 0;
        while filled < window.len() {
            match source.read_at(&mut window[filled..], offset + filled as u64)? {
                0 => break,
                read => filled += read,
            }
        }
        for start in 0..filled.saturating_sub(HEADER_BYTES - 1).min(SEARCH_BYTES) {
            if window[start..start + frame::MAGIC.len()] != *frame::MAGIC {
                continue;
            }
            let bytes: &[u8; HEADER_BYTES] =
                window[start..start + HEADER_BYTES].try_into().expect("the slice has a header's length");
            if let Some(header) = Header::decode(bytes, &file.writer) {
                return Ok(Some((offset + start as u64, header)));
            }
        }
        if filled < window.len() {
            return Ok(None);
        }
        offset += SEARCH_BYTES as u64;
    }
}
