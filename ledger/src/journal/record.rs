//! What the blobs of a `Settled` entry mean: the envelope, then input, body and signals of each item.
//!
//! Must not know files. Invariant: a record read back equals the record that was settled, bit by bit.

use bytes::Bytes;

use super::{Blob, JournalError, Packed};
use crate::answer::{Answer, Record, Signal};
use crate::entry::{Entry, Exchange, Fact, HeldItem, SettledItem};
use crate::query::{Query, QueryKey};
use crate::time::Timestamp;

/// The first byte of a signals blob; the rest is postcard. JSON would round floats and has no infinities.
const SIGNALS_VERSION: u8 = 1;

/// Packs an answer as the blobs of its `Settled` entry.
pub(crate) fn pack_settlement(
    envelope: &[u8],
    items: &[(String, Answer)],
) -> Result<Vec<Packed>, JournalError> {
    let mut blobs = vec![Packed::new(envelope)?];
    for (input, answer) in items {
        let signals = postcard::to_extend(&answer.signals, vec![SIGNALS_VERSION])
            .expect("signals are plain data and cannot fail");
        for part in [input.as_bytes(), &answer.body, &signals] {
            blobs.push(Packed::new(part)?);
        }
    }
    Ok(blobs)
}

/// The records of a `Settled` entry, in the order of its items; an item whose answer was erased is left out.
///
/// # Errors
/// A text that says what does not match.
pub(crate) fn unpack_settlement(
    exchange: &Exchange,
    priced: bool,
    entry: &Entry,
    blobs: &[Blob],
) -> Result<Vec<Record>, &'static str> {
    let Fact::Settled { items, media, .. } = &entry.fact else { return Err("the entry settles nothing") };
    let Some((envelope, parts)) = blobs.split_first() else { return Err("the entry has no blobs") };
    let (parts, rest) = parts.as_chunks::<3>();
    if !rest.is_empty() || parts.len() != items.len() || items.len() != exchange.items.len() {
        return Err("the entry has too few or too many blobs");
    }
    let envelope = envelope.open()?.unwrap_or_default();
    let mut records = Vec::with_capacity(items.len());
    for ((settled, held), parts) in items.iter().zip(&exchange.items).zip(parts) {
        if settled.key != held.key {
            return Err("the keys are not those that were held");
        }
        let around = Around { exchange, priced, media, at: entry.at, envelope: &envelope };
        records.extend(around.record(settled, held, parts)?);
    }
    Ok(records)
}

/// The record of item `index` of a `Settled` entry, from the envelope and the three blobs of that item alone; none where
/// its answer was erased.
///
/// # Errors
/// A text that says what does not match.
pub(crate) fn unpack_item(
    exchange: &Exchange,
    priced: bool,
    entry: &Entry,
    index: usize,
    blobs: &[Blob; 4],
) -> Result<Option<Record>, &'static str> {
    let Fact::Settled { items, media, .. } = &entry.fact else { return Err("the entry settles nothing") };
    let (Some(settled), Some(held)) = (items.get(index), exchange.items.get(index)) else {
        return Err("the entry settles fewer items");
    };
    if settled.key != held.key {
        return Err("the keys are not those that were held");
    }
    let [envelope, parts @ ..] = blobs;
    let envelope = envelope.open()?.unwrap_or_default();
    Around { exchange, priced, media, at: entry.at, envelope: &envelope }.record(settled, held, parts)
}

/// What the items of an exchange share.
struct Around<'a> {
    exchange: &'a Exchange,
    priced: bool,
    media: &'a str,
    at: Timestamp,
    envelope: &'a Bytes,
}

impl Around<'_> {
    fn record(
        &self,
        settled: &SettledItem,
        held: &HeldItem,
        [input, body, signals]: &[Blob; 3],
    ) -> Result<Option<Record>, &'static str> {
        let (Some(input), Some(body), Some(signals)) = (input.open()?, body.open()?, signals.open()?) else {
            return Ok(None);
        };
        let exchange = self.exchange;
        let query = Query {
            dialect: exchange.dialect.clone(),
            operation: exchange.operation.clone(),
            teacher: exchange.who.teacher.clone(),
            revision: exchange.revision.clone(),
            sample: held.sample,
            headers: exchange.headers.clone(),
            input: String::from_utf8(input.to_vec()).map_err(|_| "an input is no text")?,
        };
        Ok(Some(Record {
            key: settled.key,
            query,
            model: exchange.model.clone(),
            answer: Answer { body, signals: unpack_signals(&signals)? },
            envelope: self.envelope.clone(),
            media: self.media.to_owned(),
            share: settled.share,
            priced: self.priced,
            at: self.at,
        }))
    }
}

/// The blobs of a `Settled` entry that belong to its `gone` items: input, body and signals of each, and the envelope
/// where no other item is left.
pub(crate) fn blobs_of_items(
    items: &[SettledItem],
    blobs: &[Blob],
    gone: impl Fn(&QueryKey) -> bool,
) -> Vec<usize> {
    let mut found = Vec::new();
    let mut left = false;
    for (index, item) in items.iter().enumerate() {
        let parts = 1 + 3 * index..4 + 3 * index;
        if gone(&item.key) {
            found.extend(parts.filter(|part| *part < blobs.len()));
        } else {
            left |= blobs.get(parts).is_none_or(|parts| !parts.iter().all(Blob::is_erased));
        }
    }
    if !left && !blobs.is_empty() {
        found.insert(0, 0);
    }
    found
}

fn unpack_signals(bytes: &Bytes) -> Result<Vec<Signal>, &'static str> {
    match bytes.split_first() {
        Some((&SIGNALS_VERSION, signals)) => {
            postcard::from_bytes(signals).map_err(|_| "signals do not decode")
        }
        _ => Err("signals of a version that is not known"),
    }
}
