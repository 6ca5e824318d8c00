//! The records that a settled answer is known as, before anybody reads them back.
//!
//! Must not know where they are kept. Invariant: an answer is recorded only under the keys that were held.

use std::sync::Arc;

use super::{Settlement, StoreError};
use crate::answer::Record;
use crate::entry::{Entry, Exchange, Fact, HoldId};
use crate::journal::{Packed, pack_settlement};
use crate::query::Query;

/// Bodies together from which on packing them leaves the async threads.
const PACK_AWAY_BYTES: usize = 256 << 10;

/// The records of `settlement`, which `entry` settles.
///
/// # Errors
/// The answer is not to the items that were held.
pub(crate) fn records(
    hold: HoldId,
    exchange: &Exchange,
    priced: bool,
    entry: &Entry,
    settlement: Settlement,
) -> Result<Vec<Arc<Record>>, StoreError> {
    let Fact::Settled { items, .. } = &entry.fact else { return Ok(Vec::new()) };
    if settlement.items.len() != items.len() {
        let (found, held) = (settlement.items.len(), items.len());
        let why = format!("hold {} is for {held} items, and {found} were answered", hold.0);
        return Err(StoreError::Contradiction(why));
    }
    let mut records = Vec::with_capacity(items.len());
    for ((settled, held), (input, answer)) in items.iter().zip(&exchange.items).zip(settlement.items) {
        let query = Query {
            dialect: exchange.dialect.clone(),
            operation: exchange.operation.clone(),
            teacher: exchange.who.teacher.clone(),
            revision: exchange.revision.clone(),
            sample: held.sample,
            headers: exchange.headers.clone(),
            input,
        };
        if query.key() != settled.key {
            let why = format!("the input answered is not the one held under key {}", settled.key);
            return Err(StoreError::Contradiction(why));
        }
        records.push(Arc::new(Record {
            key: settled.key,
            query,
            model: exchange.model.clone(),
            answer,
            envelope: settlement.envelope.clone(),
            media: settlement.media.clone(),
            share: settled.share,
            priced,
            at: entry.at,
        }));
    }
    Ok(records)
}

/// Packs an answer; a large one beside the async threads.
///
/// # Errors
/// It is larger than a store takes.
pub(crate) async fn pack(settlement: Settlement) -> Result<(Settlement, Vec<Packed>), StoreError> {
    let size = |(input, answer): &(String, crate::answer::Answer)| input.len() + answer.body.len();
    let work = |settlement: Settlement| {
        let blobs = pack_settlement(&settlement.envelope, &settlement.items)
            .map_err(|error| StoreError::Contradiction(error.to_string()))?;
        Ok((settlement, blobs))
    };
    if settlement.items.iter().map(size).sum::<usize>() < PACK_AWAY_BYTES {
        return work(settlement);
    }
    let packed = tokio::task::spawn_blocking(move || work(settlement)).await;
    packed.map_err(|error| StoreError::Contradiction(error.to_string()))?
}
