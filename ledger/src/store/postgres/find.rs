//! Looking answers up: in memory, else in the database.
//!
//! Must not know holds. Invariant: what is found was committed; an answer that another replaced is forgotten before
//! anybody hears of the new one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use moka::sync::Cache;
use sqlx::PgConnection;
use sqlx::postgres::PgPool;
use tokio::sync::watch;

use super::log;
use crate::answer::{Record, Signal};
use crate::entry::{Entry, Fact};
use crate::journal::{Blob, BodyFault, read_answer, read_payload};
use crate::query::QueryKey;
use crate::store::StoreError;
use crate::tensor::Elements;

/// Answers kept in memory, in bytes.
const CACHE_BYTES: u64 = 64 << 20;
/// What a record takes beside its texts and numbers.
const RECORD_BYTES: usize = 1 << 10;
/// Keys looked up in one statement.
const KEYS_MAX: usize = 256;

/// The recorded answers as one replica sees them.
pub(crate) struct Answers {
    pool: PgPool,
    cache: Cache<QueryKey, Arc<Record>>,
}

/// Where an answer stands.
type Place = (Vec<u8>, i64, i64, i32);

impl Answers {
    pub(crate) fn new(pool: PgPool) -> Self {
        let weight = |_: &QueryKey, record: &Arc<Record>| u32::try_from(bytes(record)).unwrap_or(u32::MAX);
        let cache = Cache::builder().max_capacity(CACHE_BYTES).weigher(weight).build();
        Self { pool, cache }
    }

    /// Keeps answers that were just committed.
    pub(crate) fn remember(&self, records: &[Arc<Record>]) {
        for record in records {
            self.cache.insert(record.key, Arc::clone(record));
        }
    }

    /// Forgets answers that may have been replaced.
    pub(crate) fn forget(&self, keys: &[QueryKey]) {
        keys.iter().for_each(|key| self.cache.invalidate(key));
    }

    /// The answers to `keys`, in order; `changes` tells whether somebody wrote meanwhile.
    pub(crate) async fn find(
        &self,
        keys: &[QueryKey],
        changes: &watch::Sender<u64>,
    ) -> Result<Vec<Option<Arc<Record>>>, StoreError> {
        let mut found: Vec<_> = keys.iter().map(|key| self.cache.get(key)).collect();
        let missing: Vec<QueryKey> =
            keys.iter().zip(&found).filter(|(_, found)| found.is_none()).map(|(key, _)| *key).collect();
        if missing.is_empty() {
            return Ok(found);
        }
        let mut connection = self.pool.acquire().await.map_err(|error| unreadable(&error))?;
        let mut looked_up = HashMap::new();
        for keys in missing.chunks(KEYS_MAX) {
            let before = *changes.borrow();
            let records = look_up(&mut connection, keys).await?;
            self.remember(&records);
            if *changes.borrow() != before {
                self.forget(keys);
            }
            looked_up.extend(records.into_iter().map(|record| (record.key, record)));
        }
        for (key, found) in keys.iter().zip(&mut found) {
            if found.is_none() {
                *found = looked_up.get(key).cloned();
            }
        }
        Ok(found)
    }
}

async fn look_up(connection: &mut PgConnection, keys: &[QueryKey]) -> Result<Vec<Arc<Record>>, StoreError> {
    let wanted: Vec<Vec<u8>> = keys.iter().map(|key| key.as_bytes().to_vec()).collect();
    let places: Vec<Place> =
        sqlx::query_as("SELECT key, settled, reserved, item FROM tuition.answer WHERE key = ANY($1)")
            .bind(wanted)
            .fetch_all(&mut *connection)
            .await
            .map_err(|error| unreadable(&error))?;
    if places.is_empty() {
        return Ok(Vec::new());
    }
    let mut seqs: Vec<i64> = places.iter().flat_map(|place| [place.1, place.2]).collect();
    seqs.sort_unstable();
    seqs.dedup();
    let payloads = log::payloads(connection, &seqs).await.map_err(|error| unreadable(&error))?;
    let payloads: HashMap<i64, String> = payloads.into_iter().collect();
    let (mut at, mut parts) = (Vec::new(), Vec::new());
    for (_, settled, _, item) in &places {
        for part in parts_of(*item) {
            at.push(*settled);
            parts.push(part);
        }
    }
    let blobs = log::blobs(connection, &at, &parts).await.map_err(|error| unreadable(&error))?;
    let blobs: BTreeMap<(i64, i32), _> =
        blobs.into_iter().map(|(seq, part, bytes)| ((seq, part), bytes)).collect();
    places.iter().map(|place| record(place, &payloads, &blobs).map(Arc::new)).collect()
}

/// The blobs of one item: the envelope, then its input, body and signals.
fn parts_of(item: i32) -> [i32; 4] {
    [0, 3 * item + 1, 3 * item + 2, 3 * item + 3]
}

fn record(
    (key, settled, reserved, item): &Place,
    payloads: &HashMap<i64, String>,
    blobs: &BTreeMap<(i64, i32), Option<bytes::Bytes>>,
) -> Result<Record, StoreError> {
    let damaged = |seq: i64, why: &str| StoreError::Unreadable(format!("entry {seq} of the record: {why}"));
    let payload = |seq: i64| payloads.get(&seq).ok_or_else(|| damaged(seq, "it is missing"));
    let read = |seq: i64| -> Result<Entry, StoreError> {
        let read = read_payload(payload(seq)?.as_bytes());
        read.map(|(entry, _)| entry).map_err(|fault| damaged(seq, &said(fault)))
    };
    let hold = read(*reserved)?;
    let Fact::Reserved { exchange, price, .. } = &hold.fact else {
        return Err(damaged(*reserved, "it is not the hold that was expected"));
    };
    let mut stored = Vec::with_capacity(4);
    for part in parts_of(*item) {
        let blob = blobs.get(&(*settled, part)).ok_or_else(|| damaged(*settled, "an answer is missing"))?;
        stored.push((usize::try_from(part).unwrap_or(usize::MAX), blob.clone()));
    }
    let (entry, stored) = read_answer(payload(*settled)?.as_bytes(), stored)
        .map_err(|fault| damaged(*settled, &said(fault)))?;
    let stored: [Blob; 4] = stored.try_into().map_err(|_| damaged(*settled, "an answer is missing"))?;
    if entry.fact.hold() != hold.fact.hold() {
        return Err(damaged(*settled, "it settles another hold"));
    }
    let item = usize::try_from(*item).unwrap_or(usize::MAX);
    let record = crate::journal::unpack_item(exchange, price.is_some(), &entry, item, &stored)
        .map_err(|why| damaged(*settled, why))?;
    let record = record.ok_or_else(|| {
        StoreError::Unreadable(format!("the answer under key {} was erased", hex::encode(key)))
    })?;
    if record.key.as_bytes()[..] != key[..] {
        return Err(damaged(*settled, "the answer is under another key"));
    }
    Ok(record)
}

fn said(fault: BodyFault) -> String {
    match fault {
        BodyFault::Damaged(why) => why.to_owned(),
        BodyFault::NotUnderstood(error) => format!("this version does not understand it: {error}"),
    }
}

fn unreadable(error: &sqlx::Error) -> StoreError {
    StoreError::Unreadable(format!("the database does not answer: {error}"))
}

/// About what a record takes in memory.
fn bytes(record: &Record) -> usize {
    let signal = |signal: &Signal| match signal {
        Signal::Text { text, .. } => text.len(),
        Signal::LogProbabilities { positions, .. } => positions
            .iter()
            .map(|position| (1 + position.top.len()) * size_of::<(String, f64, [u64; 2])>())
            .sum(),
        Signal::Embedding(floats) => floats.0.len() * size_of::<f32>(),
        Signal::Tensor(tensor) => match &tensor.elements {
            Elements::Text(texts) => texts.iter().map(|text| text.len() + size_of::<String>()).sum(),
            elements => elements.len() * size_of::<f64>(),
        },
    };
    let signals: usize = record.answer.signals.iter().map(signal).sum();
    RECORD_BYTES + record.query.input.len() + record.answer.body.len() + record.envelope.len() + signals
}
