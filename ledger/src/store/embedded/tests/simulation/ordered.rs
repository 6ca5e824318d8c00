//! The embedded store, whose changes are told to whoever waits in the order in which they asked.
//!
//! The runtime wakes those who wait on one channel in an order that it draws by itself; here each has a channel of its
//! own. Invariant: everything but that is the store's.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use super::super::super::Embedded;
use crate::answer::Record;
use crate::book::{Claim, Present};
use crate::budget::Budget;
use crate::entry::{Cause, HoldId, Origin, Tally};
use crate::price::Price;
use crate::query::QueryKey;
use crate::store::{Doubt, Reservation, ReserveError, Settlement, Store, StoreError};

pub(super) struct Ordered {
    store: Arc<Embedded>,
    waiting: Mutex<Vec<watch::Sender<u64>>>,
}

impl Ordered {
    pub(super) fn over(store: &Arc<Embedded>) -> Arc<Self> {
        Arc::new(Self { store: Arc::clone(store), waiting: Mutex::default() })
    }

    /// Tells everybody how far the store is; who has gone is forgotten.
    pub(super) fn tell(&self) {
        let number = *self.store.core.changes.borrow();
        self.waiting.lock().unwrap().retain(|sender| !sender.is_closed());
        for sender in &*self.waiting.lock().unwrap() {
            sender.send_if_modified(|known| std::mem::replace(known, number) != number);
        }
    }
}

#[async_trait]
impl Store for Ordered {
    async fn find(&self, keys: &[QueryKey]) -> Result<Vec<Option<Arc<Record>>>, StoreError> {
        self.store.find(keys).await
    }

    async fn reserve(&self, claim: Claim) -> Result<Reservation, ReserveError> {
        self.store.reserve(claim).await
    }

    async fn settle(
        &self,
        reservation: Reservation,
        settlement: Settlement,
    ) -> Result<Vec<Arc<Record>>, StoreError> {
        self.store.settle(reservation, settlement).await
    }

    async fn release(&self, reservation: Reservation, cause: Cause) -> Result<(), StoreError> {
        self.store.release(reservation, cause).await
    }

    async fn forfeit(
        &self,
        reservation: Reservation,
        cause: Cause,
        evidence: Bytes,
    ) -> Result<Doubt, StoreError> {
        self.store.forfeit(reservation, cause, evidence).await
    }

    async fn settle_late(
        &self,
        doubt: Doubt,
        settlement: Settlement,
    ) -> Result<Vec<Arc<Record>>, StoreError> {
        self.store.settle_late(doubt, settlement).await
    }

    async fn resolve(&self, hold: HoldId, billed: bool, why: String) -> Result<(), StoreError> {
        self.store.resolve(hold, billed, why).await
    }

    async fn forget(&self, key: QueryKey, why: String) -> Result<(), StoreError> {
        self.store.forget(key, why).await
    }

    async fn limit(&self, budget: Budget, origin: Origin) -> Result<(), StoreError> {
        self.store.limit(budget, origin).await
    }

    async fn price(&self, price: Price) -> Result<(), StoreError> {
        self.store.price(price).await
    }

    fn tally(&self, tally: Tally) {
        self.store.tally(tally);
    }

    fn changes(&self) -> watch::Receiver<u64> {
        let sender = watch::Sender::new(*self.store.core.changes.borrow());
        let receiver = sender.subscribe();
        self.waiting.lock().unwrap().push(sender);
        receiver
    }

    async fn present(&self) -> Result<Present, StoreError> {
        self.store.present().await
    }
}
