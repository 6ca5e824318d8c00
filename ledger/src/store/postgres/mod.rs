//! The shared store: a log of entries in PostgreSQL that several replicas fold, decide on and append to.
//!
//! Must not know teachers or budgets' rules: the book decides. Invariants: whoever decides holds the lock on the log and
//! has read all of it; what a method promised is committed when it returns; with the database away what this replica
//! holds in memory is served, and everything else fails closed.

mod ask;
mod beside;
mod commit;
mod find;
mod fold;
mod link;
mod log;
mod read;
mod survey;
mod target;
#[cfg(test)]
mod tests;

use std::sync::atomic::AtomicI64;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::timeout;

use self::ask::{Ask, Change, Give};
use self::commit::{Committer, Shared};
use self::find::Answers;
use self::link::Link;
use super::embedded::OpenError;
use super::settling::pack;
use super::url::DatabaseUrl;
use super::{Doubt, Lost, Reservation, ReserveError, Settlement, Store, StoreError};
use crate::answer::Record;
use crate::book::{Claim, Present};
use crate::budget::Budget;
use crate::entry::{Cause, HoldId, Origin, Tally};
use crate::journal::Packed;
use crate::price::Price;
use crate::query::QueryKey;

pub(crate) use read::{Log, read_log, survey_log};
pub use survey::LogFault;
pub(crate) use target::Target;

/// How long a hold, a limit or the figures wait for the database; then nothing is bought.
const HOLD_WAIT: Duration = Duration::from_secs(5);
/// How long the answer to a paid call waits to be recorded; it is written later all the same, as soon as that can be.
const ANSWER_WAIT: Duration = Duration::from_secs(60);
/// How long the end in good order may take.
const CLOSE_WAIT: Duration = Duration::from_secs(10);
/// Different parties and models whose hits are counted apart; more are lost.
const TALLIES_MAX: usize = 1024;

/// The shared store, as one replica sees it.
pub struct Postgres {
    asks: mpsc::UnboundedSender<Ask>,
    shared: Arc<Shared>,
}

/// A replica's part in a shared store: it commits for as long as this lives.
pub struct Replica {
    asks: mpsc::UnboundedSender<Ask>,
    thread: Option<JoinHandle<()>>,
}

/// An opened shared store.
pub struct OpenedPostgres {
    /// The store.
    pub store: Arc<Postgres>,
    /// This replica's part in it; dropped, it ends like a crash.
    pub replica: Replica,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Postgres {
    /// Opens the store in the database at `url` and begins to write there; `program` is the version of the program.
    ///
    /// # Errors
    /// The database does not answer, may forget what it commits, or holds a record that is damaged or newer.
    pub async fn open(url: &DatabaseUrl, program: &str) -> Result<OpenedPostgres, OpenError> {
        let link = Link::new(url)?;
        let (asks, queue) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            answers: Answers::new(link.pool()),
            changes: watch::Sender::new(0),
            tallies: Mutex::default(),
            moved: Notify::new(),
            writer: AtomicI64::new(0),
        });
        let (begun, beginning) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| link.unfit(error))?;
        let (task, weak) = ((link.clone(), program.to_owned(), Arc::clone(&shared)), asks.downgrade());
        // A thread of its own: whatever keeps the callers' threads busy, this replica goes on to say that it lives.
        let thread = std::thread::Builder::new().name("tuition-postgres".into()).spawn(move || {
            runtime.block_on(commit(task, queue, weak, begun));
        });
        let thread = thread.map_err(|error| link.unfit(error))?;
        let replica = Replica { asks: asks.clone(), thread: Some(thread) };
        beginning.await.unwrap_or_else(|_| Err(link.unfit("the committing thread ended")))?;
        Ok(OpenedPostgres { store: Arc::new(Self { asks, shared }), replica })
    }

    /// Sends an ask, and waits for what comes of it.
    async fn ask<T, E>(
        &self,
        wait: Duration,
        ask: impl FnOnce(Give<T, E>) -> Ask,
        failed: impl Fn(StoreError) -> E,
    ) -> Result<T, E> {
        let (give, given) = oneshot::channel();
        let ended = || failed(StoreError::Gone("the committing thread ended".into()));
        self.asks.send(ask(give)).map_err(|_| ended())?;
        let late = || {
            failed(StoreError::Unwritable(format!("the database did not answer within {} s", wait.as_secs())))
        };
        timeout(wait, given).await.map_err(|_| late())?.map_err(|_| ended())?
    }

    async fn change(&self, wait: Duration, change: Change) -> Result<(), StoreError> {
        self.ask(wait, |give| Ask::Change { change, give: Some(give) }, |error| error).await
    }

    async fn settle_hold(
        &self,
        hold: HoldId,
        settlement: Settlement,
    ) -> Result<Vec<Arc<Record>>, StoreError> {
        let (settlement, blobs) = pack(settlement).await?;
        let ask = |give| Ask::Settle { hold, settlement, blobs, give };
        self.ask(ANSWER_WAIT, ask, |error| error).await
    }

    /// What happens to a reservation that is dropped: it may have been asked, so it is forfeited.
    fn lost(&self) -> Lost {
        let asks = self.asks.downgrade();
        Box::new(move |hold| {
            let change = Change::Forfeit(hold, Cause::Crashed, Vec::new());
            let sent =
                asks.upgrade().is_some_and(|asks| asks.send(Ask::Change { change, give: None }).is_ok());
            if !sent {
                tracing::warn!(hold = hold.0, "a dropped hold stays under way until this replica is missed");
            }
        })
    }
}

/// The life of the committing thread.
async fn commit(
    (link, program, shared): (Link, String, Arc<Shared>),
    queue: mpsc::UnboundedReceiver<Ask>,
    back: ask::WeakAsks,
    begun: oneshot::Sender<Result<(), OpenError>>,
) {
    let beginning = async {
        let mut connection = link.connect().await.map_err(|error| link.unfit(error))?;
        link::migrate(&mut connection).await.map_err(|error| link.unfit(error))?;
        let committer =
            Committer::new(link.clone(), program, Arc::clone(&shared), queue, back, connection).await;
        let mut committer = committer.map_err(|error| link.unfit(error))?;
        committer.begin().await.map_err(|why| link.unfit(why))?;
        Ok(committer)
    };
    let committer = match beginning.await {
        Ok(committer) => committer,
        Err(error) => return drop(begun.send(Err(error))),
    };
    tokio::spawn(beside::beat(link.clone(), Arc::clone(&shared)));
    tokio::spawn(beside::listen(link, shared));
    if begun.send(Ok(())).is_ok() {
        committer.run().await;
    }
}

impl Replica {
    /// Ends in good order: what is under way of this replica becomes unknown, and its writer is ended.
    ///
    /// # Errors
    /// That could not be written; nothing acknowledged is lost, and the others miss this replica soon.
    pub fn close(self) -> Result<(), StoreError> {
        let (give, given) = sync_channel(1);
        let gone = |error| match error {
            RecvTimeoutError::Timeout => {
                let wait = CLOSE_WAIT.as_secs();
                StoreError::Unwritable(format!("the database did not answer within {wait} s"))
            }
            RecvTimeoutError::Disconnected => StoreError::Gone("the committing thread ended".into()),
        };
        self.asks
            .send(Ask::Close(give))
            .map_err(|_| StoreError::Gone("the committing thread ended".into()))?;
        let closed = given.recv_timeout(CLOSE_WAIT).map_err(gone);
        drop(self);
        closed?
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.asks.send(Ask::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[async_trait]
impl Store for Postgres {
    async fn find(&self, keys: &[QueryKey]) -> Result<Vec<Option<Arc<Record>>>, StoreError> {
        self.shared.answers.find(keys, &self.shared.changes).await
    }

    async fn reserve(&self, claim: Claim) -> Result<Reservation, ReserveError> {
        let granted = self.ask(HOLD_WAIT, |give| Ask::Reserve { claim, give }, ReserveError::Store).await?;
        Ok(Reservation::new(granted.claim(), self.lost()))
    }

    async fn settle(
        &self,
        reservation: Reservation,
        settlement: Settlement,
    ) -> Result<Vec<Arc<Record>>, StoreError> {
        // Until the answer is durable the reservation stands behind it: dropped, it is forfeited, behind the answer.
        let records = self.settle_hold(reservation.hold(), settlement).await?;
        reservation.into_hold();
        Ok(records)
    }

    async fn release(&self, reservation: Reservation, cause: Cause) -> Result<(), StoreError> {
        self.change(ANSWER_WAIT, Change::Release(reservation.hold(), cause)).await?;
        reservation.into_hold();
        Ok(())
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
        self.change(ANSWER_WAIT, Change::Forfeit(reservation.hold(), cause, blobs)).await?;
        Ok(Doubt::new(reservation.into_hold()))
    }

    async fn settle_late(
        &self,
        doubt: Doubt,
        settlement: Settlement,
    ) -> Result<Vec<Arc<Record>>, StoreError> {
        self.settle_hold(doubt.into_hold(), settlement).await
    }

    async fn resolve(&self, hold: HoldId, billed: bool, why: String) -> Result<(), StoreError> {
        self.change(HOLD_WAIT, Change::Resolve(hold, billed, why)).await
    }

    async fn forget(&self, key: QueryKey, why: String) -> Result<(), StoreError> {
        self.change(ANSWER_WAIT, Change::Forget(key, why)).await
    }

    async fn limit(&self, budget: Budget, origin: Origin) -> Result<(), StoreError> {
        self.change(HOLD_WAIT, Change::Limit(budget, origin)).await
    }

    async fn price(&self, price: Price) -> Result<(), StoreError> {
        self.change(HOLD_WAIT, Change::Price(price)).await
    }

    fn tally(&self, tally: Tally) {
        let mut tallies = lock(&self.shared.tallies);
        if !tallies.iter_mut().any(|kept| kept.absorb(&tally)) && tallies.len() < TALLIES_MAX {
            tallies.push(tally);
        }
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    async fn present(&self) -> Result<Present, StoreError> {
        self.ask(HOLD_WAIT, Ask::Present, |error| error).await
    }
}
