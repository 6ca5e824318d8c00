//! The one way to ask a teacher: find, coalesce, reserve, ask, settle.
//!
//! Serves HTTP clients and the trainer alike; must not know HTTP, ONNX or any dialect. Invariants: no teacher is asked
//! without a reservation in hand; nobody sees the end of an answer before it is durable; a caller that goes away does
//! not cancel a paid call.

pub mod order;
pub mod live;
pub mod teacher;
mod breaker;
mod turns;
mod lead;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::answer::Record;
use crate::budget::Refusal;
use crate::entry::Tally;
use crate::money::{Amount, Usd};
use crate::price::{PriceBook, Quote};
use crate::query::QueryKey;
use crate::store::{Clock, Store, StoreError};
use breaker::Breaker;
use lead::{Lead, Led};
use live::{Ending, Follower, Live, LiveReader};
use order::{Mode, Order};
use teacher::{Failure, Teacher};
use turns::Turns;

/// How one item was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Bought for this request.
    Bought,
    /// Served from the record.
    Known,
    /// Served from a call that somebody else was making.
    Followed,
}

/// One answered item.
#[derive(Clone, Debug)]
pub struct ServedItem {
    /// The record.
    pub record: Arc<Record>,
    /// How it was answered.
    pub outcome: Outcome,
}

/// An answered order.
#[derive(Clone, Debug)]
pub struct Served {
    /// One for each item of the order, in its order.
    pub items: Vec<ServedItem>,
    /// Inferences bought for this order.
    pub bought: u64,
    /// What was paid for them; none where the model has no price.
    pub cost: Option<Usd>,
}

/// A one-item order whose answer may still be under way.
#[derive(Debug)]
pub enum Streamed {
    /// Already in the record.
    Known(Arc<Record>),
    /// Under way.
    Live {
        /// Its bytes as they come; check [`LiveReader::is_streamed`].
        reader: LiveReader,
        /// Bought or followed.
        outcome: Outcome,
    },
}

/// Why an order was not answered.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DeskError {
    /// A budget refuses.
    #[error(transparent)]
    Refused(Refusal),
    /// Replay mode, and the record has no answer.
    #[error("no answer is recorded under {}", .keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    NotRecorded {
        /// The keys without an answer.
        keys: Vec<QueryKey>,
        /// What asking would have held.
        quote: Box<Quote>,
    },
    /// The teacher failed.
    #[error(transparent)]
    Teacher(Failure),
    /// Too many unknown answers in a row: the teacher is left alone for a while.
    #[error(
        "teacher `{teacher}` is left alone for {wait_s} s after {failures} calls in a row that may have been billed for nothing"
    )]
    CircuitOpen {
        /// The teacher.
        teacher: String,
        /// Failures in a row.
        failures: u32,
        /// Seconds until it is tried again.
        wait_s: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(StoreError),
    /// A bound of this process on what is under way; nothing was asked.
    #[error("{what}: at most {most} at a time")]
    Busy {
        /// What there is too much of.
        what: &'static str,
        /// The bound.
        most: usize,
    },
    /// The desk is closing.
    #[error("closing: no new calls are taken")]
    Draining,
}

/// How a desk behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whether calls that no budget covers are allowed.
    pub unbudgeted: bool,
    /// How long a call waits for holds to settle when it would fit without them.
    pub hold_wait: std::time::Duration,
    /// Unknown answers in a row after which a teacher is left alone.
    pub breaker_failures: u32,
    /// How long it is left alone.
    pub breaker_pause: std::time::Duration,
}

/// How much may be under way at once.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Calls, those that wait for a budget included.
    pub calls: usize,
    /// Requests that wait for the answer of one call.
    pub followers: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { calls: 16_384, followers: 4096 }
    }
}

/// The one place that asks teachers.
pub struct Desk {
    store: Arc<dyn Store>,
    prices: PriceBook,
    settings: Settings,
    bounds: Bounds,
    clock: Clock,
    breaker: Breaker,
    // Which keys this process is asking. Held for look-ups only: deciding who leads must be one step.
    flights: Mutex<HashMap<QueryKey, Arc<Live>>>,
    /// Whoever would fit without the holds under way waits here in turn.
    turns: Turns,
    /// Calls under way.
    open: watch::Sender<usize>,
    draining: watch::Sender<bool>,
}

/// Which items an order leads and which it follows.
#[derive(Default)]
struct Flights {
    lead: Option<Leading>,
    follow: Vec<Follower>,
}

/// A leader at work in a task of its own.
struct Leading {
    task: JoinHandle<Led>,
    live: Arc<Live>,
}

impl Leading {
    /// How it ended; one whose teacher panicked has failed.
    async fn landed(self) -> Led {
        match self.task.await {
            Ok(led) => led,
            Err(_) => match self.live.ended().await {
                Ending::Answered(records) => Led::Answered(records),
                Ending::Failed(error) => Led::Failed(error),
                Ending::Vacant => Led::Conflict,
            },
        }
    }
}

impl Desk {
    /// A desk over `store`.
    pub fn new(store: Arc<dyn Store>, prices: PriceBook, settings: Settings, clock: Clock) -> Arc<Self> {
        Self::bounded(store, prices, settings, clock, Bounds::default())
    }

    /// A desk over `store` with other bounds than usual.
    pub fn bounded(
        store: Arc<dyn Store>,
        prices: PriceBook,
        settings: Settings,
        clock: Clock,
        bounds: Bounds,
    ) -> Arc<Self> {
        let breaker = Breaker::new(settings.breaker_failures, settings.breaker_pause);
        Arc::new(Self {
            store,
            prices,
            settings,
            bounds,
            clock,
            breaker,
            flights: Mutex::default(),
            turns: Turns::default(),
            open: watch::Sender::new(0),
            draining: watch::Sender::new(false),
        })
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Which items are known, and what asking for the others would hold (none where all are known); asks nobody.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn plan(&self, order: &Order) -> Result<(Vec<bool>, Option<Quote>), DeskError> {
        let keys: Vec<_> = order.items.iter().map(|item| item.key).collect();
        let found = self.store.find(&keys).await.map_err(DeskError::Store)?;
        let known: Vec<bool> = found.iter().map(Option::is_some).collect();
        let mut seen = BTreeSet::new();
        let unknown: Vec<_> =
            (0..keys.len()).filter(|index| !known[*index] && seen.insert(keys[*index])).collect();
        let quote = (!unknown.is_empty()).then(|| self.quote(order, &unknown));
        Ok((known, quote))
    }

    /// Answers every item of an order: from the record, from calls under way, or by asking `teacher`.
    ///
    /// # Errors
    /// The first of: a refusal, a replay miss, the teacher's failure, the store's failure. What was bought meanwhile is
    /// in the record all the same.
    pub async fn ask(
        self: &Arc<Self>,
        teacher: Arc<dyn Teacher>,
        order: Arc<Order>,
    ) -> Result<Served, DeskError> {
        let mut served: BTreeMap<QueryKey, ServedItem> = BTreeMap::new();
        let mut look_up = order.mode != Mode::Refresh;
        loop {
            let missing: BTreeSet<_> =
                order.items.iter().map(|item| item.key).filter(|key| !served.contains_key(key)).collect();
            if missing.is_empty() {
                return Ok(self.serve(&order, &served));
            }
            if look_up {
                self.look_up(&order, &missing, &mut served).await?;
            }
            let missing: BTreeSet<_> = missing.into_iter().filter(|key| !served.contains_key(key)).collect();
            let flights = self.board(&teacher, &order, &missing)?;
            let mut take = |records: Vec<Arc<Record>>, outcome| {
                let wanted = records.into_iter().filter(|record| missing.contains(&record.key));
                served.extend(wanted.map(|record| (record.key, ServedItem { record, outcome })));
            };
            if let Some(lead) = flights.lead {
                match lead.landed().await {
                    Led::Answered(records) => take(records, Outcome::Bought),
                    Led::Refused(error) => return Err(error),
                    Led::Failed(error) => return Err((*error).clone()),
                    Led::Conflict => look_up = true,
                }
            }
            for follower in flights.follow {
                match follower.live().ended().await {
                    Ending::Answered(records) => take(records, Outcome::Followed),
                    Ending::Failed(error) => return Err((*error).clone()),
                    Ending::Vacant => {}
                }
            }
        }
    }

    /// Answers a one-item order live: returns when the first bytes are there, or the answer's end.
    ///
    /// # Errors
    /// As [`Desk::ask`], as long as no byte was shown; a later failure is the reader's.
    pub async fn stream(
        self: &Arc<Self>,
        teacher: Arc<dyn Teacher>,
        order: Arc<Order>,
    ) -> Result<Streamed, DeskError> {
        let keys: BTreeSet<_> = order.items.iter().map(|item| item.key).collect();
        let mut look_up = order.mode != Mode::Refresh;
        loop {
            if look_up {
                let mut served = BTreeMap::new();
                self.look_up(&order, &keys, &mut served).await?;
                if let Some((_, item)) = served.pop_first() {
                    self.count(&order, [&item].into_iter());
                    return Ok(Streamed::Known(item.record));
                }
            }
            let flights = self.board(&teacher, &order, &keys)?;
            let (live, follower) = match (&flights.lead, flights.follow.into_iter().next()) {
                (Some(lead), _) => (Arc::clone(&lead.live), None),
                (None, Some(follower)) => (Arc::clone(follower.live()), Some(follower)),
                (None, None) => unreachable!("an item that is not known is led or followed"),
            };
            live.begun().await;
            match live.ending() {
                Some(Ending::Failed(error)) if !live.has_shown() => return Err((*error).clone()),
                Some(Ending::Vacant) => {
                    if let Some(lead) = flights.lead
                        && let Led::Refused(error) = lead.landed().await
                    {
                        return Err(error);
                    }
                    look_up = true;
                }
                _ => {
                    let outcome = if follower.is_some() { Outcome::Followed } else { Outcome::Bought };
                    return Ok(Streamed::Live { reader: live.read(follower), outcome });
                }
            }
        }
    }

    /// Counts a live answer that was followed to its end.
    pub fn followed(&self, order: &Order, record: &Arc<Record>) {
        let item = ServedItem { record: Arc::clone(record), outcome: Outcome::Followed };
        self.count(order, [&item].into_iter());
    }

    /// Takes no new calls, and waits until those under way have ended.
    pub async fn drain(&self) {
        self.draining.send_replace(true);
        self.idle().await;
    }

    /// Waits until no call is under way.
    pub async fn idle(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.open.subscribe().wait_for(|open| *open == 0).await;
    }

    /// Calls under way.
    pub fn under_way(&self) -> usize {
        *self.open.borrow()
    }

    /// Calls that wait for holds under way to settle.
    pub fn waiting(&self) -> usize {
        self.turns.waiting()
    }

    fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    async fn drained(&self) {
        let _ = self.draining.subscribe().wait_for(|draining| *draining).await;
    }

    fn quote(&self, order: &Order, led: &[usize]) -> Quote {
        Quote::new(&order.model, self.prices.at(&order.model, (self.clock)()), &order.bound(led))
    }

    /// Takes what the record knows of `missing`; in replay mode the rest is an error.
    async fn look_up(
        &self,
        order: &Order,
        missing: &BTreeSet<QueryKey>,
        served: &mut BTreeMap<QueryKey, ServedItem>,
    ) -> Result<(), DeskError> {
        let keys: Vec<_> = missing.iter().copied().collect();
        let found = self.store.find(&keys).await.map_err(DeskError::Store)?;
        for record in found.into_iter().flatten() {
            served.insert(record.key, ServedItem { record, outcome: Outcome::Known });
        }
        let keys: Vec<_> = keys.into_iter().filter(|key| !served.contains_key(key)).collect();
        if order.mode == Mode::Replay && !keys.is_empty() {
            let led = first_of(order, &keys.iter().copied().collect());
            return Err(DeskError::NotRecorded { keys, quote: Box::new(self.quote(order, &led)) });
        }
        Ok(())
    }

    /// Decides in one step which of `missing` are led and which are followed, and starts the leader.
    fn board(
        self: &Arc<Self>,
        teacher: &Arc<dyn Teacher>,
        order: &Arc<Order>,
        missing: &BTreeSet<QueryKey>,
    ) -> Result<Flights, DeskError> {
        let mut boarded = Flights::default();
        if missing.is_empty() {
            return Ok(boarded);
        }
        if self.is_draining() {
            return Err(DeskError::Draining);
        }
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let mut led = BTreeSet::new();
        for key in missing {
            match flights.get(key) {
                Some(live) if boarded.follow.iter().any(|other| Arc::ptr_eq(other.live(), live)) => {}
                Some(live) => {
                    let what = "too many requests wait for the answer of one call";
                    let most = self.bounds.followers;
                    boarded.follow.push(live.follow(most).ok_or(DeskError::Busy { what, most })?);
                }
                None => {
                    led.insert(*key);
                }
            }
        }
        if led.is_empty() {
            return Ok(boarded);
        }
        if self.under_way() >= self.bounds.calls {
            let what = "too many calls to teachers are under way";
            return Err(DeskError::Busy { what, most: self.bounds.calls });
        }
        let live = Arc::new(Live::new(order.forward.stream));
        flights.extend(led.iter().map(|key| (*key, Arc::clone(&live))));
        self.open.send_modify(|open| *open += 1);
        drop(flights);
        let led = first_of(order, &led);
        let (desk, teacher, order) = (Arc::clone(self), Arc::clone(teacher), Arc::clone(order));
        let lead = Arc::new(Lead { desk, teacher, order, led, live: Arc::clone(&live) });
        boarded.lead = Some(Leading { task: tokio::spawn(lead.run()), live });
        Ok(boarded)
    }

    /// Takes keys out of the flights of this process.
    fn land<'a>(&self, keys: impl Iterator<Item = &'a QueryKey>, live: &Arc<Live>) {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        for key in keys {
            if flights.get(key).is_some_and(|found| Arc::ptr_eq(found, live)) {
                flights.remove(key);
            }
        }
    }

    fn serve(&self, order: &Order, served: &BTreeMap<QueryKey, ServedItem>) -> Served {
        self.count(order, served.values());
        let bought = || served.values().filter(|item| item.outcome == Outcome::Bought);
        let cost = |item: &ServedItem| item.record.cost();
        let cost = served.values().all(|item| item.record.priced).then(|| {
            bought().filter_map(cost).fold(Usd::ZERO, |sum, cost| sum.checked_add(cost).unwrap_or(sum))
        });
        Served {
            items: order.items.iter().map(|item| served[&item.key].clone()).collect(),
            bought: bought().map(|item| item.record.share.calls).sum(),
            cost,
        }
    }

    /// Counts an order that a budget refused; no money rule uses the figure.
    fn refused(&self, order: &Order) {
        self.store.tally(Tally {
            who: order.who.clone(),
            model: order.model.clone(),
            known: 0,
            followed: 0,
            saved: Amount::ZERO,
            refused: 1,
        });
    }

    fn count<'a>(&self, order: &Order, items: impl Iterator<Item = &'a ServedItem>) {
        let (mut known, mut followed, mut saved) = (0, 0, Amount::ZERO);
        for item in items {
            match item.outcome {
                Outcome::Bought => continue,
                Outcome::Known => known += 1,
                Outcome::Followed => followed += 1,
            }
            saved = saved.checked_add(item.record.share).unwrap_or(saved);
        }
        if known + followed > 0 {
            self.store.tally(Tally {
                who: order.who.clone(),
                model: order.model.clone(),
                known,
                followed,
                saved,
                refused: 0,
            });
        }
    }
}

/// The first item of each of `keys`, ascending.
fn first_of(order: &Order, keys: &BTreeSet<QueryKey>) -> Vec<usize> {
    let mut seen = BTreeSet::new();
    let first = |index: &usize| {
        let key = order.items[*index].key;
        keys.contains(&key) && seen.insert(key)
    };
    (0..order.items.len()).filter(first).collect()
}
