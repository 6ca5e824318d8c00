//! What the blobs of a `Settled` entry mean: the envelope, then input, body and signals of each item.
//!
//! Must not know files. Invariant: a record read back equals the record that was settled, bit by bit.

use bytes::Bytes;

use super::{Blob, JournalError, Packed};
use crate::answer::{Answer, Record, Signal};
use crate::entry::{Entry, Exchange, Fact};
use crate::query::Query;

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
    for ((settled, held), [input, body, signals]) in items.iter().zip(&exchange.items).zip(parts) {
        if settled.key != held.key {
            return Err("the keys are not those that were held");
        }
        let (Some(input), Some(body), Some(signals)) = (input.open()?, body.open()?, signals.open()?) else {
            continue;
        };
        let query = Query {
            dialect: exchange.dialect.clone(),
            operation: exchange.operation.clone(),
            teacher: exchange.who.teacher.clone(),
            revision: exchange.revision.clone(),
            sample: held.sample,
            headers: exchange.headers.clone(),
            input: String::from_utf8(input.to_vec()).map_err(|_| "an input is no text")?,
        };
        records.push(Record {
            key: settled.key,
            query,
            model: exchange.model.clone(),
            answer: Answer { body, signals: unpack_signals(&signals)? },
            envelope: envelope.clone(),
            media: media.clone(),
            share: settled.share,
            priced,
            at: entry.at,
        });
    }
    Ok(records)
}

fn unpack_signals(bytes: &Bytes) -> Result<Vec<Signal>, &'static str> {
    match bytes.split_first() {
        Some((&SIGNALS_VERSION, signals)) => {
            postcard::from_bytes(signals).map_err(|_| "signals do not decode")
        }
        _ => Err("signals of a version that is not known"),
    }
}
