//! Where entries are kept and holds are decided: the trait that every store keeps, and the tokens it hands out.
//!
//! Must not know teachers. Invariants: only a store makes a [`Reservation`], and what a method promised is durable
//! when it returns.

pub mod copy;
pub mod embedded;
pub mod erasures;
pub mod open;
pub mod postgres;
pub mod read;
#[cfg(test)]
pub(crate) mod samples;
mod settling;
pub mod socket;
#[cfg(test)]
pub(crate) mod suite;
pub mod url;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::answer::{Answer, Record, Usage};
use crate::book::{Claim, Present};
use crate::budget::{Budget, Refusal};
use crate::entry::{Cause, HoldId, Origin, Tally};
use crate::price::Price;
use crate::query::QueryKey;
use crate::time::Timestamp;

/// A clock; the ledger reads no other.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Why no hold was made.
#[derive(Clone, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum ReserveError {
    /// A budget refuses.
    #[error(transparent)]
    Refused(Refusal),
    /// These keys have been settled since they were looked up.
    #[error("{} keys are already known", .0.len())]
    Known(Vec<QueryKey>),
    /// These keys are being asked by somebody else.
    #[error("{} keys are being asked by somebody else", .0.len())]
    InFlight(Vec<QueryKey>),
    /// The store cannot take the hold.
    #[error(transparent)]
    Store(StoreError),
}

/// Why a store did not do what it was asked.
#[derive(Clone, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum StoreError {
    /// The disk is full or cannot be written: what is known is served, nothing is bought.
    #[error("the store cannot be written, so nothing is bought: {0}")]
    Unwritable(String),
    /// The store cannot be read.
    #[error("the store cannot be read: {0}")]
    Unreadable(String),
    /// What was asked contradicts the record.
    #[error("{0}")]
    Contradiction(String),
    /// The process that owns the store went away.
    #[error("the process that owns the store went away: {0}")]
    Gone(String),
}

/// The right to ask a teacher once: a durable hold. Neither cloned nor forged; settling, releasing or forfeiting
/// consumes it, and one that is dropped is forfeited.
///
/// ```compile_fail
/// fn twice(reservation: tuition_ledger::Reservation) { drop(reservation); drop(reservation); }
/// ```
/// ```compile_fail
/// let forged = tuition_ledger::Reservation { hold: tuition_ledger::HoldId(1), lost: None };
/// ```
/// ```compile_fail
/// fn cloned(reservation: &tuition_ledger::Reservation) -> tuition_ledger::Reservation { reservation.clone() }
/// ```
pub struct Reservation {
    hold: HoldId,
    lost: Option<Lost>,
}

/// What happens to a reservation that is dropped.
pub(crate) type Lost = Box<dyn FnOnce(HoldId) + Send + Sync>;

/// The right to settle a forfeited hold after all, should its answer still come.
#[derive(Debug)]
pub struct Doubt {
    hold: HoldId,
}

/// The answer to an exchange.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settlement {
    /// What the teacher says it used.
    pub usage: Option<Usage>,
    /// The reply's media type.
    pub media: String,
    /// The reply around its items.
    pub envelope: Bytes,
    /// Canonical input and answer of each item, in the order of the exchange.
    pub items: Vec<(String, Answer)>,
}

/// A store of entries. Every method that changes something returns only when the change is durable.
#[async_trait]
pub trait Store: Send + Sync {
    /// The recorded answers to `keys`, in order.
    async fn find(&self, keys: &[QueryKey]) -> Result<Vec<Option<Arc<Record>>>, StoreError>;

    /// Holds the upper bound of an exchange under every budget that covers it, or says why not; whole or not at all.
    async fn reserve(&self, claim: Claim) -> Result<Reservation, ReserveError>;

    /// Records answer and fee as one entry; the records come back in the order of the items.
    async fn settle(
        &self,
        reservation: Reservation,
        settlement: Settlement,
    ) -> Result<Vec<Arc<Record>>, StoreError>;

    /// Frees the hold of a call that was surely not billed.
    async fn release(&self, reservation: Reservation, cause: Cause) -> Result<(), StoreError>;

    /// Counts the hold in full until it is resolved, and keeps what came of the answer.
    async fn forfeit(
        &self,
        reservation: Reservation,
        cause: Cause,
        evidence: Bytes,
    ) -> Result<Doubt, StoreError>;

    /// Settles a forfeited hold whose answer came after all.
    async fn settle_late(&self, doubt: Doubt, settlement: Settlement)
    -> Result<Vec<Arc<Record>>, StoreError>;

    /// Closes an unknown hold by a person's word or the provider's bill.
    async fn resolve(&self, hold: HoldId, billed: bool, why: String) -> Result<(), StoreError>;

    /// Erases every answer recorded under `key` until now, question and all, and leaves the money. The same question is
    /// a miss from then on. The erasing is complete, and durable, when this returns.
    async fn forget(&self, key: QueryKey, why: String) -> Result<(), StoreError>;

    /// Sets, changes or (nothing limited) lifts a budget. A limit from the configuration that has not changed since it
    /// was last applied leaves no entry, so that a later command's limit stands.
    async fn limit(&self, budget: Budget, origin: Origin) -> Result<(), StoreError>;

    /// Records a price that fees may be computed with; a price already recorded leaves no entry.
    async fn price(&self, price: Price) -> Result<(), StoreError>;

    /// Counts items served without a call; appended at most a second later.
    fn tally(&self, tally: Tally);

    /// A number that grows with every entry that became durable.
    fn changes(&self) -> watch::Receiver<u64>;

    /// The figures of now.
    async fn present(&self) -> Result<Present, StoreError>;
}

impl Reservation {
    pub(crate) fn new(hold: HoldId, lost: Lost) -> Self {
        Self { hold, lost: Some(lost) }
    }

    /// The hold's number.
    pub fn hold(&self) -> HoldId {
        self.hold
    }

    /// Takes the hold out, so that dropping does nothing.
    pub(crate) fn into_hold(mut self) -> HoldId {
        self.lost = None;
        self.hold
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(lost) = self.lost.take() {
            lost(self.hold);
        }
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation").field("hold", &self.hold).finish_non_exhaustive()
    }
}

impl Doubt {
    pub(crate) fn new(hold: HoldId) -> Self {
        Self { hold }
    }

    pub(crate) fn into_hold(self) -> HoldId {
        self.hold
    }
}
