//! Erasing bodies of the journal in place, on purpose: which bytes go, and how that survives a power cut.
//!
//! Must not know why they go. Invariants: only blobs are overwritten, never an entry, a length or the chain; the file
//! `journal.erasing` names them durably before the first is touched, so that an erasing that was cut off is done again
//! at the next start, before anybody reads.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::disk::Disk;
use crate::entry::{Exchange, Fact, HoldId};
use crate::journal::{
    Blob, FileHeader, Frame, Frames, JournalError, Source, Step, Writer, blobs_of_items, erased,
};
use crate::query::QueryKey;

/// The name of the file that names what is being erased. It begins like the journal's, and is as little to be deleted.
pub(crate) const ERASING: &str = "journal.erasing";

const LAYOUT: &[u8; 8] = b"TUIERA\0\x01";
/// Layout and the checksum of all that follows.
const PREFIX_BYTES: usize = 8 + 4;

/// Keys that were forgotten, and the offset of the entry that says so: what was recorded before it goes.
pub(crate) type Forgotten = BTreeMap<QueryKey, u64>;

/// A blob in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Span {
    /// Where it begins.
    offset: u64,
    /// The bytes that it stores.
    stored: u32,
}

#[derive(Serialize, Deserialize)]
struct Erasing {
    writer: Writer,
    spans: Vec<Span>,
}

/// What has to be erased of the journal up to `limit` so that nothing is left of what is `forgotten`: question, answer
/// and signals under each key, the envelope of an exchange of which no other item is left, and what came of failed calls.
pub(crate) fn spans(
    source: &(impl Source + ?Sized),
    forgotten: &Forgotten,
    limit: u64,
) -> Result<Vec<Span>, JournalError> {
    let mut frames = Frames::from_start(source, limit)?;
    let mut asking: BTreeSet<HoldId> = BTreeSet::new();
    let mut found = Vec::new();
    loop {
        let frame = match frames.step()? {
            Step::Frame(frame) => *frame,
            Step::End => return Ok(found),
            Step::Bad(torn) => {
                let (number, offset, why) = (torn.number, torn.offset, torn.why.to_owned());
                return Err(JournalError::Corrupt { number, offset, why });
            }
        };
        let gone = |key: &QueryKey| forgotten.get(key).is_some_and(|until| frame.offset < *until);
        match &frame.entry.fact {
            Fact::Reserved { hold, exchange: Exchange { items, .. }, .. }
                if items.iter().any(|item| gone(&item.key)) =>
            {
                asking.insert(*hold);
            }
            Fact::Settled { hold, items, .. } if asking.remove(hold) => {
                found.extend(left(&frame, blobs_of_items(items, &frame.blobs, gone)));
            }
            Fact::Forfeited { hold, .. } if asking.contains(hold) => {
                found.extend(left(&frame, 0..frame.blobs.len()));
            }
            Fact::Released { hold, .. } | Fact::Resolved { hold, .. } => {
                asking.remove(hold);
            }
            _ => {}
        }
    }
}

/// Those of the blobs that still have bytes.
fn left(frame: &Frame, blobs: impl IntoIterator<Item = usize>) -> Vec<Span> {
    let span = |index: usize| {
        let blob: &Blob = &frame.blobs[index];
        (!blob.is_blank()).then(|| Span { offset: frame.blob_offset(index), stored: blob.stored_bytes() })
    };
    blobs.into_iter().filter_map(span).collect()
}

/// Overwrites the blobs; durable when it returns.
pub(crate) fn erase(disk: &dyn Disk, header: &FileHeader, spans: Vec<Span>) -> Result<(), JournalError> {
    if spans.is_empty() {
        return Ok(());
    }
    let erasing = Erasing { writer: header.writer, spans };
    let named = postcard::to_stdvec(&erasing).expect("spans are plain data and cannot fail");
    let bytes = [&LAYOUT[..], &crc32fast::hash(&named).to_le_bytes(), &named].concat();
    disk.replace(ERASING, &bytes)?;
    overwrite(disk, &erasing.spans)
}

/// Does an erasing again that was cut off; before anything else is read of the journal.
pub(crate) fn resume(disk: &dyn Disk, header: &FileHeader) -> Result<(), JournalError> {
    let Some(bytes) = disk.load(ERASING)? else { return Ok(()) };
    let erasing = bytes.split_first_chunk::<PREFIX_BYTES>().and_then(|(prefix, named)| {
        let crc = u32::from_le_bytes(prefix[8..].try_into().expect("the slice has four bytes"));
        let whole = prefix[..8] == *LAYOUT && crc == crc32fast::hash(named);
        postcard::from_bytes::<Erasing>(named).ok().filter(|_| whole)
    });
    match erasing {
        Some(erasing) if erasing.writer == header.writer => {
            tracing::info!(blobs = erasing.spans.len(), "an erasing that was cut off is done again");
            overwrite(disk, &erasing.spans)
        }
        _ => {
            tracing::warn!("`{ERASING}` is damaged or of another journal, and is left alone");
            Ok(())
        }
    }
}

fn overwrite(disk: &dyn Disk, spans: &[Span]) -> Result<(), JournalError> {
    let length = disk.len()?;
    for Span { offset, stored } in spans {
        let bytes = erased(*stored);
        // Of a journal that was cut since, what is cut off is gone anyway.
        if offset.saturating_add(bytes.len() as u64) <= length {
            disk.write_at(&bytes, *offset)?;
        }
    }
    disk.sync()?;
    Ok(disk.remove(ERASING)?)
}
