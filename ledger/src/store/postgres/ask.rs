//! What callers ask of the committing task, and how it is decided on a fold.
//!
//! Must not know the database. Invariant: deciding asks the book alone, as the embedded store does; nobody is answered
//! here before the committing task says that the decision is durable.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use tokio::sync::{mpsc, oneshot};

use super::fold::{Drafted, Fold, contradiction};
use crate::answer::Record;
use crate::book::{Book, BookError, Claim, NotReserved, Present};
use crate::budget::Budget;
use crate::entry::{Cause, Entry, HoldId, Origin, Tally};
use crate::journal::Packed;
use crate::price::Price;
use crate::query::QueryKey;
use crate::store::settling::records;
use crate::store::{ReserveError, Settlement, StoreError};
use crate::time::Timestamp;

/// Where an answer goes.
pub(crate) type Give<T, E> = oneshot::Sender<Result<T, E>>;
/// The way to the committing task, for what must not keep it running.
pub(crate) type WeakAsks = mpsc::WeakUnboundedSender<Ask>;

/// One thing that is asked.
pub(crate) enum Ask {
    Reserve {
        claim: Claim,
        give: Give<Granted, ReserveError>,
    },
    Settle {
        hold: HoldId,
        settlement: Settlement,
        blobs: Vec<Packed>,
        give: Give<Vec<Arc<Record>>, StoreError>,
    },
    Change {
        change: Change,
        /// None where nobody waits.
        give: Option<Give<(), StoreError>>,
    },
    Present(Give<Present, StoreError>),
    /// The end in good order.
    Close(SyncSender<Result<(), StoreError>>),
    /// The end, at once.
    Stop,
}

/// What leaves one entry, or none where nothing changes.
pub(crate) enum Change {
    Release(HoldId, Cause),
    Forfeit(HoldId, Cause, Vec<Packed>),
    Resolve(HoldId, bool, String),
    Forget(QueryKey, String),
    Limit(Budget, Origin),
    Price(Price),
    Served(Vec<Tally>),
}

/// A hold that was made; dropped before anybody took it, it is given back, for nothing can have been sent.
pub(crate) struct Granted {
    hold: Option<HoldId>,
    asks: WeakAsks,
}

impl Granted {
    pub(crate) fn claim(mut self) -> HoldId {
        self.hold.take().expect("it is taken here only, and this consumes it")
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        if let (Some(hold), Some(asks)) = (self.hold.take(), self.asks.upgrade()) {
            // Where the task has ended, its holds become unknown anyway.
            let _ = asks.send(Ask::Change { change: Change::Release(hold, Cause::Abandoned), give: None });
        }
    }
}

/// A decision, to be told once it is durable.
pub(crate) enum Outcome {
    Granted(HoldId),
    NotGranted(ReserveError),
    Settled(Vec<Arc<Record>>),
    Done,
    Failed(StoreError),
}

impl Ask {
    /// Decides on `fold`, and adds to `drafted` what is to be written.
    pub(crate) fn decide(
        &self,
        fold: &mut Fold,
        writer: i64,
        at: Timestamp,
        drafted: &mut Vec<Drafted>,
    ) -> Outcome {
        let decided = match self {
            Self::Reserve { claim, .. } => return reserve(fold, writer, claim, at, drafted),
            Self::Settle { hold, settlement, blobs, .. } => {
                settle(fold, writer, *hold, settlement, blobs, at, drafted).map(Outcome::Settled)
            }
            Self::Change { change, .. } => change.decide(fold, writer, at, drafted).map(|()| Outcome::Done),
            Self::Close(_) => close(fold, writer, at, drafted).map(|()| Outcome::Done),
            Self::Present(_) | Self::Stop => Ok(Outcome::Done),
        };
        decided.unwrap_or_else(Outcome::Failed)
    }

    /// Why no hold is made, where this asks for one and the present allows none.
    pub(crate) fn refusal(&self, book: &Book, at: Timestamp) -> Option<ReserveError> {
        match self {
            Self::Reserve { claim, .. } => book.reserve(claim, at).err().map(not_reserved),
            _ => None,
        }
    }

    /// Tells whoever asked. They may have gone away; what was decided stands all the same.
    pub(crate) fn answer(self, outcome: Outcome, asks: &WeakAsks) {
        match (self, outcome) {
            (Self::Reserve { give, .. }, Outcome::Granted(hold)) => {
                drop(give.send(Ok(Granted { hold: Some(hold), asks: asks.clone() })));
            }
            (Self::Reserve { give, .. }, Outcome::NotGranted(error)) => drop(give.send(Err(error))),
            (Self::Settle { give, .. }, Outcome::Settled(records)) => drop(give.send(Ok(records))),
            (Self::Change { give: Some(give), .. }, Outcome::Done) => drop(give.send(Ok(()))),
            (Self::Close(give), Outcome::Done) => drop(give.send(Ok(()))),
            (ask, Outcome::Failed(error)) => ask.fail(error),
            (_, _) => {}
        }
    }

    /// Tells whoever asked that nothing came of it.
    pub(crate) fn fail(self, error: StoreError) {
        match self {
            Self::Reserve { give, .. } => drop(give.send(Err(ReserveError::Store(error)))),
            Self::Settle { give, .. } => drop(give.send(Err(error))),
            Self::Change { give: Some(give), .. } => drop(give.send(Err(error))),
            Self::Change { give: None, .. } => {
                tracing::warn!(%error, "something that nobody waits for was not recorded");
            }
            Self::Present(give) => drop(give.send(Err(error))),
            Self::Close(give) => drop(give.send(Err(error))),
            Self::Stop => {}
        }
    }

    /// Whether nobody waits for it any more, and nothing is lost if it is left undone.
    pub(crate) fn is_given_up(&self) -> bool {
        match self {
            Self::Reserve { give, .. } => give.is_closed(),
            Self::Change {
                change: Change::Resolve(..) | Change::Forget(..) | Change::Limit(..) | Change::Price(_),
                give: Some(give),
            } => give.is_closed(),
            _ => false,
        }
    }
}

impl Change {
    fn decide(
        &self,
        fold: &mut Fold,
        writer: i64,
        at: Timestamp,
        drafted: &mut Vec<Drafted>,
    ) -> Result<(), StoreError> {
        let book = &fold.book;
        let entry = match self {
            Self::Release(hold, cause) => Some(release(book, *hold, cause, at).map_err(contradiction)?),
            Self::Forfeit(hold, cause, evidence) => {
                let entry = match book.forfeit(*hold, cause.clone(), at) {
                    // Another replica took this one for dead, and said so first.
                    Err(BookError::WrongState { state: "unknown", .. }) => return Ok(()),
                    decided => decided.map_err(contradiction)?,
                };
                // The fact matters more than what came of the answer.
                let appended = fold.append(writer, &entry, evidence.clone());
                drafted.push(appended.or_else(|_| fold.append(writer, &entry, Vec::new()))?);
                return Ok(());
            }
            Self::Resolve(hold, billed, why) => {
                Some(book.resolve(*hold, *billed, why.clone(), at).map_err(contradiction)?)
            }
            Self::Forget(key, why) => Some(book.forget(*key, why.clone(), at).map_err(contradiction)?),
            Self::Limit(budget, origin) => book.limit(budget.clone(), *origin, at),
            Self::Price(price) => book.price(price.clone(), at),
            Self::Served(tallies) => Some(book.served(tallies.clone(), at)),
        };
        if let Some(entry) = entry {
            drafted.push(fold.append(writer, &entry, Vec::new())?);
        }
        Ok(())
    }
}

/// Frees a hold; one that another replica made unknown meanwhile, when it took this one for dead, is resolved: this one
/// knows that it was not billed.
fn release(book: &Book, hold: HoldId, cause: &Cause, at: Timestamp) -> Result<Entry, BookError> {
    match book.release(hold, cause.clone(), at) {
        Err(BookError::WrongState { state: "unknown", .. }) => {
            let why = match cause {
                Cause::Status(status) => {
                    format!("the teacher refused the call, unbilled, with status {status}")
                }
                Cause::NotConnected => "no connection to the teacher came about".to_owned(),
                _ => "nothing was sent".to_owned(),
            };
            book.resolve(hold, false, why, at)
        }
        decided => decided,
    }
}

fn reserve(
    fold: &mut Fold,
    writer: i64,
    claim: &Claim,
    at: Timestamp,
    drafted: &mut Vec<Drafted>,
) -> Outcome {
    let entry = match fold.book.reserve(claim, at) {
        Ok(entry) => entry,
        Err(why) => return Outcome::NotGranted(not_reserved(why)),
    };
    let hold = entry.fact.hold().expect("a hold's entry has its number");
    match fold.append(writer, &entry, Vec::new()) {
        Ok(appended) => {
            drafted.push(appended);
            Outcome::Granted(hold)
        }
        Err(error) => Outcome::NotGranted(ReserveError::Store(error)),
    }
}

fn not_reserved(why: NotReserved) -> ReserveError {
    match why {
        NotReserved::Known(keys) => ReserveError::Known(keys),
        NotReserved::InFlight(keys) => ReserveError::InFlight(keys),
        NotReserved::Refused(refusal) => ReserveError::Refused(refusal),
    }
}

fn settle(
    fold: &mut Fold,
    writer: i64,
    hold: HoldId,
    settlement: &Settlement,
    blobs: &[Packed],
    at: Timestamp,
    drafted: &mut Vec<Drafted>,
) -> Result<Vec<Arc<Record>>, StoreError> {
    let entry = fold.book.settle(hold, settlement.usage, settlement.media.clone(), at);
    let entry = entry.map_err(contradiction)?;
    let (Some(exchange), Some(open)) = (fold.book.exchange(hold), fold.open.get(&hold)) else {
        return Err(contradiction(format!("hold {} is not open", hold.0)));
    };
    let records = records(hold, exchange, open.priced, &entry, settlement.clone())?;
    drafted.push(fold.append(writer, &entry, blobs.to_vec())?);
    Ok(records)
}

fn close(fold: &mut Fold, writer: i64, at: Timestamp, drafted: &mut Vec<Drafted>) -> Result<(), StoreError> {
    crash(fold, writer, &[writer], at, drafted)?;
    let closed = fold.book.closed(at);
    drafted.push(fold.append(writer, &closed, Vec::new())?);
    Ok(())
}

/// Makes the holds under way of `ended` unknown: nobody knows what came of them.
pub(crate) fn crash(
    fold: &mut Fold,
    writer: i64,
    ended: &[i64],
    at: Timestamp,
    drafted: &mut Vec<Drafted>,
) -> Result<(), StoreError> {
    for hold in fold.under_way(ended) {
        let entry = fold.book.forfeit(hold, Cause::Crashed, at).map_err(contradiction)?;
        drafted.push(fold.append(writer, &entry, Vec::new())?);
    }
    Ok(())
}
