//! The leader's path: reserve, ask, settle; and what becomes of a hold when that fails.
//!
//! Runs in a task of its own, so that a caller that goes away cancels nothing. Must not know who waits for the answer.
//! Invariants: bytes leave only with a reservation in hand; a hold is released only on a surely unbilled failure.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::answer::Record;
use crate::book::Claim;
use crate::desk::live::{Ending, Live};
use crate::desk::order::{Mode, Order};
use crate::desk::teacher::{Billing, Failure, Reply, Teacher};
use crate::desk::turns::Place;
use crate::desk::{Desk, DeskError};
use crate::entry::{Cause, Exchange, HeldItem};
use crate::price::Quote;
use crate::query::QueryKey;
use crate::store::{Reservation, ReserveError, Settlement};

/// The first pause before a surely unbilled call is tried again, where the teacher names none; it doubles.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause before a call is tried again; a teacher that asks for more is not asked again.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(60);

/// How leading ended.
pub(crate) enum Led {
    /// Durable, in the order of the led items.
    Answered(Vec<Arc<Record>>),
    /// Nothing was asked, and only this leader is concerned: followers may lead.
    Refused(DeskError),
    /// The teacher or the store failed: followers get the same error.
    Failed(Arc<DeskError>),
    /// Somebody else has settled or is asking one of the keys: look again.
    Conflict,
}

/// One exchange that somebody leads.
pub(crate) struct Lead {
    pub(crate) desk: Arc<Desk>,
    pub(crate) teacher: Arc<dyn Teacher>,
    pub(crate) order: Arc<Order>,
    /// Indices into the order's items, ascending, no key twice.
    pub(crate) led: Vec<usize>,
    pub(crate) live: Arc<Live>,
}

type Asking = BoxFuture<'static, Result<Reply, Failure>>;

/// What came of asking.
enum Asked {
    /// The teacher answered or failed.
    Replied(Result<Reply, Failure>),
    /// It was silent for its time-out; the answer may still come.
    Silent(Asking),
}

/// How one attempt ended, where it did not end the whole.
enum Attempt {
    Done(Led),
    Again(Duration, Failure),
}

impl Lead {
    /// Leads to the end and tells everybody who follows.
    pub(crate) async fn run(self: Arc<Self>) -> Led {
        let led = self.conduct().await;
        let ending = match &led {
            Led::Answered(records) => Ending::Answered(records.clone()),
            Led::Failed(error) => Ending::Failed(Arc::clone(error)),
            Led::Refused(_) | Led::Conflict => Ending::Vacant,
        };
        self.end(ending);
        led
    }

    async fn conduct(self: &Arc<Self>) -> Led {
        let mut pause = RETRY_PAUSE;
        let mut attempts = 0;
        loop {
            match self.attempt().await {
                Attempt::Done(led) => return led,
                Attempt::Again(wait, failure) => {
                    attempts += 1;
                    let wait = wait.max(pause);
                    if attempts > self.teacher.retries() || wait > RETRY_PAUSE_MAX || self.desk.is_draining()
                    {
                        return Led::Failed(Arc::new(DeskError::Teacher(failure)));
                    }
                    sleep(wait).await;
                    pause = pause.saturating_mul(2);
                }
            }
        }
    }

    async fn attempt(self: &Arc<Self>) -> Attempt {
        if let Err(open) = self.desk.breaker.check(self.teacher.name(), Instant::now().into_std()) {
            return Attempt::Done(Led::Refused(DeskError::CircuitOpen {
                teacher: self.teacher.name().to_owned(),
                failures: open.failures,
                wait_s: open.wait.as_secs() + 1,
            }));
        }
        let reservation = match self.reserve().await {
            Ok(reservation) => reservation,
            Err(ReserveError::Refused(refusal)) => {
                self.desk.refused(&self.order);
                return Attempt::Done(Led::Refused(DeskError::Refused(refusal)));
            }
            Err(ReserveError::Store(error)) => return Attempt::Done(Led::Refused(DeskError::Store(error))),
            Err(ReserveError::Known(_)) => return Attempt::Done(Led::Conflict),
            Err(ReserveError::InFlight(keys)) => return Attempt::Done(self.await_others(keys).await),
        };
        match self.ask().await {
            Asked::Replied(Ok(reply)) => Attempt::Done(self.settle(reservation, reply).await),
            Asked::Replied(Err(failure)) => self.give_up(reservation, failure).await,
            Asked::Silent(asking) => Attempt::Done(self.time_out(reservation, asking).await),
        }
    }

    /// Asks the teacher until it has been silent for longer than its time-out.
    async fn ask(self: &Arc<Self>) -> Asked {
        let lead = Arc::clone(self);
        let mut asking: Asking =
            Box::pin(async move { lead.teacher.ask(&lead.order, &lead.led, &lead.live).await });
        let mut shown = 0;
        let mut deadline = Instant::now() + self.teacher.timeout();
        loop {
            tokio::select! {
                biased;
                reply = &mut asking => return Asked::Replied(reply),
                grown = self.live.grown(shown) => {
                    shown = grown;
                    deadline = Instant::now() + self.teacher.timeout();
                }
                () = sleep_until(deadline) => return Asked::Silent(asking),
            }
        }
    }

    /// Makes the hold; waits its turn for holds under way to settle where the call would fit without them, or where others
    /// already wait for a budget that covers it: nobody overtakes.
    async fn reserve(&self) -> Result<Reservation, ReserveError> {
        let store = &self.desk.store;
        let mut changes = store.changes();
        let mut places = self.queues().await?;
        if places.is_empty() {
            match store.reserve(self.claim()).await {
                Err(ReserveError::Refused(refusal)) if refusal.may_pass() => {
                    places.push(self.desk.turns.join(refusal.budget().unwrap_or_default()));
                }
                decided => return decided,
            }
        }
        let waiting = async {
            // In the order of the budgets' names, so that two never wait for each other.
            for place in &mut places {
                place.turn().await;
            }
            loop {
                match store.reserve(self.claim()).await {
                    Err(ReserveError::Refused(refusal)) if refusal.may_pass() => {}
                    decided => return decided,
                }
                if changes.changed().await.is_err() {
                    return store.reserve(self.claim()).await;
                }
            }
        };
        match timeout(self.desk.settings.hold_wait, waiting).await {
            Ok(decided) => decided,
            // It has waited as long as anybody must.
            Err(_) => store.reserve(self.claim()).await,
        }
    }

    /// Places in the queues of the budgets that cover this call and that others already wait for.
    async fn queues(&self) -> Result<Vec<Place>, ReserveError> {
        let awaited = self.desk.turns.awaited();
        if awaited.is_empty() {
            return Ok(vec![]);
        }
        let present = self.desk.store.present().await.map_err(ReserveError::Store)?;
        let covers = |name: &String| {
            let budget = present.budgets.iter().find(|(budget, _)| budget.name == *name);
            budget.is_some_and(|(budget, _)| budget.scope.covers(&self.order.who))
        };
        Ok(awaited.iter().filter(|name| covers(name)).map(|name| self.desk.turns.join(name)).collect())
    }

    fn claim(&self) -> Claim {
        let order = &self.order;
        let held = |index: &usize| {
            let item = &order.items[*index];
            HeldItem { key: item.key, sample: item.sample, calls: item.calls }
        };
        let now = (self.desk.clock)();
        let price = self.desk.prices.at(&order.model, now);
        Claim {
            exchange: Exchange {
                who: order.who.clone(),
                dialect: order.dialect.clone(),
                operation: order.operation.clone(),
                revision: order.revision.clone(),
                model: order.model.clone(),
                headers: order.headers.clone(),
                items: self.led.iter().map(held).collect(),
                refresh: order.mode == Mode::Refresh,
            },
            quote: Quote::new(&order.model, price, &order.bound(&self.led)),
            unbudgeted: self.desk.settings.unbudgeted,
        }
    }

    async fn settle(&self, reservation: Reservation, reply: Reply) -> Led {
        if reply.answers.len() != self.led.len() {
            let message = format!("{} answers to {} items", reply.answers.len(), self.led.len());
            let failure = self.failure(Cause::Malformed, message, reply.envelope);
            return self.doubt(reservation, failure).await;
        }
        self.desk.breaker.answered(self.teacher.name());
        match self.desk.store.settle(reservation, self.settlement(reply)).await {
            Ok(records) => Led::Answered(records),
            Err(error) => Led::Failed(Arc::new(DeskError::Store(error))),
        }
    }

    fn settlement(&self, reply: Reply) -> Settlement {
        let inputs = self.led.iter().map(|index| self.order.items[*index].input.clone());
        Settlement {
            usage: reply.usage,
            media: reply.media,
            envelope: reply.envelope,
            items: inputs.zip(reply.answers).collect(),
        }
    }

    async fn give_up(&self, reservation: Reservation, failure: Failure) -> Attempt {
        let Billing::Unbilled { retry, after } = failure.billing else {
            return Attempt::Done(self.doubt(reservation, failure).await);
        };
        if let Err(error) = self.desk.store.release(reservation, failure.cause.clone()).await {
            return Attempt::Done(Led::Failed(Arc::new(DeskError::Store(error))));
        }
        if retry {
            Attempt::Again(after.unwrap_or_default(), failure)
        } else {
            Attempt::Done(Led::Failed(Arc::new(DeskError::Teacher(failure))))
        }
    }

    /// The call may have been billed: its hold counts until it is resolved.
    async fn doubt(&self, reservation: Reservation, failure: Failure) -> Led {
        self.desk.breaker.failed(self.teacher.name(), Instant::now().into_std());
        let forfeited =
            self.desk.store.forfeit(reservation, failure.cause.clone(), failure.body.clone()).await;
        Led::Failed(Arc::new(match forfeited {
            Ok(_) => DeskError::Teacher(failure),
            Err(error) => DeskError::Store(error),
        }))
    }

    /// The hold becomes unknown; the answer is waited for once more as long, and settles the hold after all if it comes.
    async fn time_out(self: &Arc<Self>, reservation: Reservation, asking: Asking) -> Led {
        self.desk.breaker.failed(self.teacher.name(), Instant::now().into_std());
        let message = format!("no answer within {} s", self.teacher.timeout().as_secs_f64());
        let failure = self.failure(Cause::TimedOut, message, Bytes::new());
        let doubt = match self.desk.store.forfeit(reservation, Cause::TimedOut, Bytes::new()).await {
            Ok(doubt) => doubt,
            Err(error) => return Led::Failed(Arc::new(DeskError::Store(error))),
        };
        let lead = Arc::clone(self);
        tokio::spawn(async move {
            let late = tokio::select! {
                biased;
                reply = timeout(lead.teacher.timeout(), asking) => reply,
                () = lead.desk.drained() => return,
            };
            if let Ok(Ok(reply)) = late
                && reply.answers.len() == lead.led.len()
                && let Err(error) = lead.desk.store.settle_late(doubt, lead.settlement(reply)).await
            {
                tracing::warn!(teacher = lead.teacher.name(), %error, "a late answer was not recorded");
            }
        });
        Led::Failed(Arc::new(DeskError::Teacher(failure)))
    }

    /// Waits until the holds of others on `keys` have ended; their failure is ours.
    async fn await_others(&self, keys: Vec<QueryKey>) -> Led {
        let mut changes = self.desk.store.changes();
        let mut others = BTreeSet::new();
        loop {
            let present = match self.desk.store.present().await {
                Ok(present) => present,
                Err(error) => return Led::Failed(Arc::new(DeskError::Store(error))),
            };
            let concerned = present.open.iter().filter(|open| open.keys.iter().any(|key| keys.contains(key)));
            let (unknown, under_way): (Vec<_>, Vec<_>) = concerned.partition(|open| open.unknown.is_some());
            others.extend(under_way.iter().map(|open| open.hold));
            if let Some(cause) =
                unknown.iter().find(|open| others.contains(&open.hold)).and_then(|open| open.unknown.clone())
            {
                let message =
                    "the call that another process was making for the same question failed".to_owned();
                return Led::Failed(Arc::new(DeskError::Teacher(self.failure(cause, message, Bytes::new()))));
            }
            if under_way.is_empty() || changes.changed().await.is_err() {
                return Led::Conflict;
            }
        }
    }

    fn failure(&self, cause: Cause, message: String, body: Bytes) -> Failure {
        Failure {
            teacher: self.teacher.name().to_owned(),
            cause,
            message,
            billing: Billing::Unknown,
            status: None,
            media: String::new(),
            body,
        }
    }

    /// Ends the flight of every led key.
    fn end(&self, ending: Ending) {
        if !self.live.is_ended() {
            self.desk.land(self.led.iter().map(|index| &self.order.items[*index].key), &self.live);
            self.live.end(ending);
        }
    }
}

impl Drop for Lead {
    /// Whoever follows never waits for a leader that panicked.
    fn drop(&mut self) {
        let message = "the call ended without a result".to_owned();
        let failure = self.failure(Cause::Crashed, message, Bytes::new());
        self.end(Ending::Failed(Arc::new(DeskError::Teacher(failure))));
        self.desk.open.send_modify(|open| *open -= 1);
    }
}
