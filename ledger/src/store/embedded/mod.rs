//! The embedded store: a folder with a journal (the truth), an index, a checkpoint, a socket and a lock.
//!
//! Must not know teachers or budgets' rules: the book decides. Invariants: one process owns the folder; everything but
//! the journal may be deleted while nobody owns it; what a method promised is durable when it returns.

mod backup;
mod checkpoint;
mod commit;
mod core;
mod disk;
mod erase;
mod index;
mod opening;
mod owner;
mod place;
mod read;
mod recover;
mod repair;
mod transcript;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use self::core::{Core, NotTaken, Ticket};
use self::place::{Place, records_at};
use super::settling::pack;
use super::{Doubt, Lost, Reservation, ReserveError, Settlement, Store, StoreError};
use crate::answer::Record;
use crate::book::{Claim, Present};
use crate::budget::Budget;
use crate::entry::{Cause, HoldId, Origin, Tally};
use crate::journal::{JournalError, Packed};
use crate::price::Price;
use crate::query::QueryKey;

pub use backup::{Backup, backup};
pub use index::Filling;
pub use opening::{OpenError, Opened, Recovery};
pub use owner::Owner;
pub(crate) use owner::own;
pub(crate) use read::{Entries, Surveyed, read_entries, survey_entries};
pub use repair::{Damage, Later, Repaired, examine, repair};
pub(crate) use transcript::Transcript;

/// The embedded store.
pub struct Embedded {
    core: Arc<Core>,
    folder: PathBuf,
    me: Weak<Self>,
}

impl Embedded {
    fn over(core: Arc<Core>, folder: &Path) -> Arc<Self> {
        Arc::new_cyclic(|me| Self { core, folder: folder.to_owned(), me: Weak::clone(me) })
    }

    /// The store's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The offset of the journal up to which everything is durable.
    pub fn synced(&self) -> u64 {
        self.core.synced()
    }

    /// How far the index is filled from the journal, where it was missing or behind.
    pub fn filling(&self) -> watch::Receiver<Filling> {
        self.core.index.filling()
    }

    /// What happens to a reservation that is dropped: it may have been asked, so it is forfeited.
    fn lost(&self) -> Lost {
        let me = Weak::clone(&self.me);
        Box::new(move |hold| {
            let Some(store) = me.upgrade() else { return };
            if let Err(error) = store.core.submit_forfeit(hold, &Cause::Crashed, Vec::new()) {
                tracing::warn!(%error, hold = hold.0, "a dropped hold stays under way until the next start");
            }
        })
    }

    async fn settle_hold(
        &self,
        hold: HoldId,
        settlement: Settlement,
        taken: impl FnOnce() + Send,
    ) -> Result<Vec<Arc<Record>>, StoreError> {
        let (settlement, blobs) = pack(settlement).await?;
        let (records, ticket) = self.core.submit_settle(hold, settlement, blobs)?;
        taken();
        wait(ticket).await?;
        Ok(records)
    }

    fn find_now(&self, keys: &[QueryKey]) -> Result<Vec<Option<Arc<Record>>>, StoreError> {
        let core = &self.core;
        let places: Vec<Option<Place>> = {
            let places = core.places.read().unwrap_or_else(PoisonError::into_inner);
            keys.iter().map(|key| places.get(key).copied()).collect()
        };
        let mut last: Option<(Place, Vec<Record>)> = None;
        let mut found = Vec::with_capacity(keys.len());
        for (key, place) in keys.iter().zip(places) {
            let Some(place) = place else {
                found.push(None);
                continue;
            };
            if let Some(record) = core.index.load(key, place) {
                found.push(Some(Arc::new(record)));
                continue;
            }
            if last.as_ref().is_none_or(|(read, _)| *read != place) {
                let _whole = core.overwriting.read().unwrap_or_else(PoisonError::into_inner);
                let records =
                    records_at(&*core.disk, &core.header, place).map_err(|error| unreadable(&error))?;
                last = Some((place, records));
            }
            let record = last.iter().flat_map(|(_, records)| records).find(|record| record.key == *key);
            // Forgotten since it was looked up: it is not known any more.
            let is_known =
                || core.places.read().unwrap_or_else(PoisonError::into_inner).get(key) == Some(&place);
            if record.is_none() && is_known() {
                return Err(StoreError::Unreadable(format!("the answer under key {key} was erased")));
            }
            found.push(record.map(|record| Arc::new(record.clone())));
        }
        if core.index.wants_filling() {
            let places = core.places.read().unwrap_or_else(PoisonError::into_inner);
            let (all, synced) = (places.iter().map(|(key, place)| (*key, *place)).collect(), core.synced());
            drop(places);
            core.index.fill(all, synced);
        }
        Ok(found)
    }
}

#[async_trait]
impl Store for Embedded {
    async fn find(&self, keys: &[QueryKey]) -> Result<Vec<Option<Arc<Record>>>, StoreError> {
        const BESIDE_MAX: usize = 32;
        if keys.len() <= BESIDE_MAX {
            return self.find_now(keys);
        }
        let Some(me) = self.me.upgrade() else { return self.find_now(keys) };
        let keys = keys.to_vec();
        let found = tokio::task::spawn_blocking(move || me.find_now(&keys)).await;
        found.map_err(|error| StoreError::Unreadable(error.to_string()))?
    }

    async fn reserve(&self, claim: Claim) -> Result<Reservation, ReserveError> {
        match self.core.submit_reserve(&claim) {
            Ok((hold, ticket)) => {
                let unclaimed = Unclaimed { core: &self.core, hold: Some(hold) };
                wait(ticket).await.map_err(ReserveError::Store)?;
                Ok(Reservation::new(unclaimed.claim(), self.lost()))
            }
            Err(NotTaken::Known(keys, ticket)) => {
                wait(ticket).await.map_err(ReserveError::Store)?;
                Err(ReserveError::Known(keys))
            }
            Err(NotTaken::Refused(error)) => Err(error),
        }
    }

    async fn settle(
        &self,
        reservation: Reservation,
        settlement: Settlement,
    ) -> Result<Vec<Arc<Record>>, StoreError> {
        // Until the answer is enqueued the reservation stands behind it: dropped, it is forfeited.
        let hold = reservation.hold();
        let taken = move || {
            reservation.into_hold();
        };
        self.settle_hold(hold, settlement, taken).await
    }

    async fn release(&self, reservation: Reservation, cause: Cause) -> Result<(), StoreError> {
        let ticket = self.core.submit(|book, at| book.release(reservation.hold(), cause, at).map(Some))?;
        reservation.into_hold();
        wait(ticket).await
    }

    async fn forfeit(
        &self,
        reservation: Reservation,
        cause: Cause,
        evidence: Bytes,
    ) -> Result<Doubt, StoreError> {
        let blobs = match evidence.is_empty() {
            true => Vec::new(),
            false => Packed::new(&evidence).map(|blob| vec![blob]).unwrap_or_default(),
        };
        let ticket = self.core.submit_forfeit(reservation.hold(), &cause, blobs)?;
        let hold = reservation.into_hold();
        wait(ticket).await?;
        Ok(Doubt::new(hold))
    }

    async fn settle_late(
        &self,
        doubt: Doubt,
        settlement: Settlement,
    ) -> Result<Vec<Arc<Record>>, StoreError> {
        self.settle_hold(doubt.into_hold(), settlement, || ()).await
    }

    async fn resolve(&self, hold: HoldId, billed: bool, why: String) -> Result<(), StoreError> {
        wait(self.core.submit(|book, at| book.resolve(hold, billed, why, at).map(Some))?).await
    }

    async fn forget(&self, key: QueryKey, why: String) -> Result<(), StoreError> {
        let core = Arc::clone(&self.core);
        // In a task of its own: whoever asked may go away, the erasing does not stop half way.
        let erasing = tokio::spawn(async move {
            wait(core.submit_forget(key, why)?).await?;
            let erased = tokio::task::spawn_blocking(move || core.erase(key)).await;
            erased.map_err(|error| StoreError::Unwritable(error.to_string()))?
        });
        erasing.await.map_err(|error| StoreError::Unwritable(error.to_string()))?
    }

    async fn limit(&self, budget: Budget, origin: Origin) -> Result<(), StoreError> {
        wait(self.core.submit_limit(budget, origin)?).await
    }

    async fn price(&self, price: Price) -> Result<(), StoreError> {
        wait(self.core.submit_price(price)?).await
    }

    fn tally(&self, tally: Tally) {
        self.core.tally(tally);
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.core.changes.subscribe()
    }

    async fn present(&self) -> Result<Present, StoreError> {
        Ok(self.core.present())
    }
}

/// A hold that nobody has been told about: nothing can have been sent, so it is freed if the wait is given up.
struct Unclaimed<'a> {
    core: &'a Core,
    hold: Option<HoldId>,
}

impl Unclaimed<'_> {
    fn claim(mut self) -> HoldId {
        self.hold.take().expect("it is taken here only, and this consumes it")
    }
}

impl Drop for Unclaimed<'_> {
    fn drop(&mut self) {
        if let Some(hold) = self.hold.take()
            && let Err(error) =
                self.core.submit(|book, at| book.release(hold, Cause::Abandoned, at).map(Some))
        {
            tracing::warn!(%error, hold = hold.0, "a hold that nobody waited for could not be freed");
        }
    }
}

async fn wait(ticket: Ticket) -> Result<(), StoreError> {
    ticket.await.unwrap_or_else(|_| Err(StoreError::Gone("the committing thread ended".into())))
}

fn unreadable(error: &JournalError) -> StoreError {
    StoreError::Unreadable(error.to_string())
}
