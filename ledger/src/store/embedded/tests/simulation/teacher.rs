//! A teacher that answers, refuses, breaks off, stays silent or comes late, as its seed says, and keeps its own bill.
//!
//! Must not know the book. Invariants: what it begins to answer it bills; it is asked under a durable hold or it says so;
//! the answer to a key depends on the key alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::time::sleep;

use super::model::Folded;
use crate::answer::{Answer, Usage};
use crate::desk::live::Live;
use crate::desk::order::Order;
use crate::desk::teacher::{Billing, Failure, Reply, Teacher};
use crate::entry::{Cause, HoldId};
use crate::money::Amount;
use crate::price::Price;
use crate::query::QueryKey;

pub(super) const TIMEOUT: Duration = Duration::from_secs(2);
/// The end of a streamed answer, which completes it.
pub(super) const END: &[u8] = b"[end]";

/// What world, teacher and clients share: what is durable, what is billed, what was shown, and what went wrong.
pub(super) struct Notes {
    pub(super) durable: Folded,
    pub(super) bill: Amount,
    pub(super) billed: BTreeSet<HoldId>,
    /// Keys whose answer some client has seen in full.
    pub(super) shown: BTreeSet<QueryKey>,
    pub(super) events: BTreeMap<&'static str, u64>,
    /// Rules that were broken where nobody could panic.
    pub(super) broken: Vec<String>,
}

impl Notes {
    pub(super) fn count(&mut self, event: &'static str) {
        *self.events.entry(event).or_default() += 1;
    }
}

pub(super) type Shared = Arc<Mutex<Notes>>;

pub(super) struct Scripted {
    random: Mutex<ChaCha8Rng>,
    notes: Shared,
}

/// What it does, once it does not refuse.
enum Script {
    Answer,
    BreakOff,
    Short,
    Silent,
    Late,
}

pub(super) fn price() -> Price {
    let usd = |text: &str| text.parse().unwrap();
    Price {
        model: "m".into(),
        from: "2026-01-01".parse().unwrap(),
        input: usd("0.40"),
        cached_input: Some(usd("0.1")),
        cache_write: None,
        output: usd("1.60"),
        reasoning: None,
        request: usd("0.0001"),
        max_input_tokens: None,
        max_output_tokens: None,
    }
}

/// The answer to an input.
pub(super) fn body(input: &str) -> Bytes {
    Bytes::from(format!("the answer to {input}"))
}

fn failure(cause: Cause, billing: Billing) -> Failure {
    Failure {
        teacher: "t".into(),
        cause,
        message: "scripted".into(),
        billing,
        status: None,
        media: String::new(),
        body: Bytes::from_static(b"evidence"),
    }
}

impl Scripted {
    pub(super) fn new(seed: u64, notes: Shared) -> Self {
        Self { random: Mutex::new(ChaCha8Rng::seed_from_u64(seed ^ 0x7ea_c4e5)), notes }
    }

    fn roll(&self, below: u64) -> u64 {
        self.random.lock().unwrap().random_range(0..below)
    }

    /// A failure that is surely not billed, now and then.
    fn refuse(&self) -> Option<Failure> {
        let unbilled = |cause, retry, after| Some(failure(cause, Billing::Unbilled { retry, after }));
        let refused = match self.roll(14) {
            0 => unbilled(Cause::Status(400), false, None),
            1 => unbilled(Cause::Status(503), true, Some(Duration::from_secs(1))),
            2 => unbilled(Cause::NotConnected, true, None),
            _ => None,
        };
        if refused.is_some() {
            self.notes.lock().unwrap().count("busy");
        }
        refused
    }

    /// Bills the exchange, which must have a hold that survives a power cut.
    fn bill(&self, order: &Order, led: &[usize]) -> Usage {
        let usage = Usage {
            input: self.roll(20),
            cached_input: self.roll(10),
            output: self.roll(20),
            ..Usage::default()
        };
        let calls = led.iter().map(|index| order.items[*index].calls).sum();
        let keys: Vec<_> = led.iter().map(|index| order.items[*index].key).collect();
        let mut notes = self.notes.lock().unwrap();
        match notes.durable.under_way(&keys) {
            Some(hold) => _ = notes.billed.insert(hold),
            None => notes.broken.push(format!("rule 4: asked for {keys:?} without a durable hold")),
        }
        let usd = price().fee(calls, &usage).unwrap();
        let sum = notes.bill.checked_add(Amount { calls, tokens: usage.total(), usd });
        notes.bill = sum.unwrap();
        usage
    }

    fn script(&self) -> Script {
        let (script, event) = match self.roll(12) {
            0 => (Script::BreakOff, "broken off"),
            1 => (Script::Short, "short"),
            2 => (Script::Silent, "silent"),
            3 => (Script::Late, "late answer"),
            _ => return Script::Answer,
        };
        self.notes.lock().unwrap().count(event);
        script
    }

    /// Waits as long as the answer takes; a stream shows half of it meanwhile.
    async fn work(&self, script: &Script, order: &Order, live: &Live) {
        let whole = TIMEOUT.as_millis() as u64;
        let pause = match script {
            Script::Silent => return std::future::pending().await,
            Script::Late => whole + 1 + self.roll(whole - 2),
            _ => self.roll(whole),
        };
        if live.is_streamed() && !matches!(script, Script::Late) {
            sleep(Duration::from_millis(pause / 2)).await;
            live.push(body(&order.items[0].input));
        }
        sleep(Duration::from_millis(pause)).await;
    }
}

#[async_trait]
impl Teacher for Scripted {
    fn name(&self) -> &str {
        "t"
    }

    fn timeout(&self) -> Duration {
        TIMEOUT
    }

    fn retries(&self) -> u32 {
        2
    }

    async fn ask(&self, order: &Arc<Order>, led: &[usize], live: &Live) -> Result<Reply, Failure> {
        if let Some(refused) = self.refuse() {
            return Err(refused);
        }
        let usage = self.bill(order, led);
        let script = self.script();
        self.work(&script, order, live).await;
        if matches!(script, Script::BreakOff) {
            return Err(failure(Cause::BrokenOff, Billing::Unknown));
        }
        if live.is_streamed() {
            live.hold_back(Bytes::from_static(END));
        }
        let answer = |index: &usize| Answer { body: body(&order.items[*index].input), signals: Vec::new() };
        let mut answers: Vec<_> = led.iter().map(answer).collect();
        if matches!(script, Script::Short) {
            answers.pop();
        }
        // Without a usage the whole hold is charged.
        let usage = (self.roll(8) > 0).then_some(usage);
        Ok(Reply { usage, media: "text/plain".into(), envelope: Bytes::new(), answers })
    }
}
