//! One history: a store on a simulated disk, a desk, clients, and whatever happens to them.
//!
//! Must not know what the teacher does. Invariants: a life of the process is a runtime of its own, whose clock stands still
//! until it is moved; at a crash the runtime is dropped, and nothing of it reaches the disk any more.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use super::super::super::Embedded;
use super::super::super::commit::Committer;
use super::super::super::index::Index;
use super::super::super::opening::boot;
use super::super::disk::{HEADER, SimulatedDisk};
use super::model::{Folded, Tail};
use super::ordered::Ordered;
use super::teacher::{END, Notes, Scripted, Shared, TIMEOUT, body, price};
use crate::answer::Record;
use crate::budget::{Budget, Limit, Refusal, Scope, Who, Window};
use crate::desk::live::{Ending, Step};
use crate::desk::order::{Forward, Item, Mode, Order};
use crate::desk::teacher::Teacher;
use crate::desk::{Desk, DeskError, Outcome, Settings, Streamed};
use crate::entry::Origin;
use crate::money::{Amount, Usd};
use crate::price::{InputBound, OutputBound, PriceBook};
use crate::query::Query;
use crate::store::{Clock, Store};
use crate::time::{Day, Timestamp};

const QUESTIONS: u64 = 14;
const HOLD_WAIT: Duration = Duration::from_secs(5);

/// A process at work.
struct Life {
    runtime: Runtime,
    store: Arc<Embedded>,
    ordered: Arc<Ordered>,
    committer: Committer,
    desk: Arc<Desk>,
    tasks: Vec<JoinHandle<()>>,
}

pub(super) struct World {
    random: ChaCha8Rng,
    disk: Arc<SimulatedDisk>,
    now: Arc<AtomicU64>,
    notes: Shared,
    teacher: Arc<Scripted>,
    life: Life,
}

fn clock(now: &Arc<AtomicU64>) -> Clock {
    let now = Arc::clone(now);
    Arc::new(move || Timestamp(now.load(Ordering::Relaxed)))
}

impl Life {
    fn begin(disk: &Arc<SimulatedDisk>, now: &Arc<AtomicU64>) -> Self {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let index = |_: &_, _: &_| Ok(Index::none());
        let (core, committer, _) =
            boot(Arc::clone(disk) as _, HEADER, clock(now), "simulated", None, index).unwrap();
        let store = Embedded::over(core, Path::new("simulated"));
        let settings = Settings {
            unbudgeted: false,
            hold_wait: HOLD_WAIT,
            breaker_failures: 4,
            breaker_pause: Duration::from_secs(3),
        };
        let prices = PriceBook::new([price()]).unwrap();
        let ordered = Ordered::over(&store);
        let desk = Desk::new(Arc::clone(&ordered) as Arc<dyn Store>, prices, settings, clock(now));
        Self { runtime, store, ordered, committer, desk, tasks: Vec::new() }
    }

    /// Lets tasks run for a few turns.
    fn run(&mut self, turns: usize) {
        self.runtime.block_on(async {
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
        });
        for task in std::mem::take(&mut self.tasks) {
            match task.is_finished() {
                true => self.runtime.block_on(task).unwrap(),
                false => self.tasks.push(task),
            }
        }
    }
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let disk = SimulatedDisk::new();
        let start = "2026-11-28".parse::<Day>().unwrap().start();
        let now = Arc::new(AtomicU64::new(start.0));
        let notes: Shared = Arc::new(Mutex::new(Notes {
            durable: Folded::start(),
            bill: Amount::ZERO,
            billed: BTreeSet::new(),
            shown: BTreeSet::new(),
            events: BTreeMap::new(),
            broken: Vec::new(),
        }));
        let teacher = Arc::new(Scripted::new(seed, Arc::clone(&notes)));
        let life = Life::begin(&disk, &now);
        let mut world = Self { random: ChaCha8Rng::seed_from_u64(seed), disk, now, notes, teacher, life };
        world.life.store.core.submit_price(price()).unwrap();
        let budgets = [
            ("all", None, Window::Forever),
            ("run", Some("a"), Window::Forever),
            ("day", None, Window::Day),
            ("month", Some("b"), Window::Month),
        ];
        for (name, run, window) in budgets {
            let scope = Scope { run: run.map(str::to_owned), ..Scope::default() };
            let budget = Budget { name: name.into(), scope, limit: world.limit(), window };
            world.life.store.core.submit_limit(budget, Origin::Config).unwrap();
        }
        world.commit();
        world
    }

    fn limit(&mut self) -> Limit {
        let chance = |random: &mut ChaCha8Rng, low: u64, high: u64| {
            random.random_bool(0.4).then(|| random.random_range(low..high))
        };
        let random = &mut self.random;
        Limit {
            calls: Some(random.random_range(3..40)),
            tokens: chance(random, 500, 3000),
            usd: chance(random, 2_000_000, 9_000_000).map(Usd::from_nanos),
        }
    }

    fn at(&self) -> Timestamp {
        Timestamp(self.now.load(Ordering::Relaxed))
    }

    fn count(&self, event: &'static str) {
        self.notes.lock().unwrap().count(event);
    }

    /// One thing happens.
    pub(super) fn step(&mut self) {
        match self.random.random_range(0..40) {
            0..=13 => self.ask(),
            14..=22 => self.commit(),
            23..=32 => {
                let milliseconds = self.random.random_range(0..1500);
                self.pass(milliseconds);
            }
            33 => {
                // The machine's clock jumps, even backwards; the tasks' timers do not.
                let jump = self.random.random_range(-2000..90_000_000);
                let moved = self.at().0.saturating_add_signed(jump);
                self.now.store(moved, Ordering::Relaxed);
            }
            34 | 35 => self.resolve(),
            36 => self.change_limit(),
            37 => self.crash("crash"),
            38 => self.cut_power(),
            _ => self.fail_sync(),
        }
        let turns = self.random.random_range(0..6);
        self.life.run(turns);
    }

    /// A client asks for one to three items, or for one as a stream.
    fn ask(&mut self) {
        let order = Arc::new(self.order());
        let (desk, teacher) = (Arc::clone(&self.life.desk), Arc::clone(&self.teacher) as Arc<dyn Teacher>);
        let notes = Arc::clone(&self.notes);
        let client = Client { desk, teacher, order, notes };
        self.life.tasks.push(self.life.runtime.spawn(client.ask()));
    }

    fn order(&mut self) -> Order {
        let random = &mut self.random;
        let stream = random.random_bool(0.3);
        let count = if stream { 1 } else { random.random_range(1..=3) };
        let who = Who {
            teacher: "t".into(),
            run: [None, Some("a"), Some("b")][random.random_range(0..3)].map(str::to_owned),
            key: None,
        };
        let mode = match random.random_range(0..20) {
            0 => Mode::Replay,
            1 => Mode::Refresh,
            _ => Mode::Record,
        };
        let item = |random: &mut ChaCha8Rng| {
            let input = random.random_range(0..QUESTIONS).to_string();
            let query = Query {
                dialect: "d".into(),
                operation: "o".into(),
                teacher: "t".into(),
                revision: String::new(),
                sample: 0,
                headers: BTreeMap::new(),
                input: input.clone(),
            };
            Item { key: query.key(), input, sample: 0, calls: 1, bound: InputBound::Bytes(30) }
        };
        let items = (0..count).map(|_| item(random)).collect();
        Order {
            who,
            dialect: "d".into(),
            operation: "o".into(),
            revision: String::new(),
            model: "m".into(),
            headers: BTreeMap::new(),
            items,
            overhead_tokens: 0,
            output: OutputBound::Client(20),
            choices: 1,
            unbounded: None,
            mode,
            forward: Forward { stream, ..Forward::default() },
        }
    }

    /// Everything enqueued is written and synced; what is durable is folded before anybody hears of it.
    fn commit(&mut self) {
        self.life.committer.commit();
        self.fold();
        self.life.ordered.tell();
    }

    fn fold(&self) {
        self.notes.lock().unwrap().durable.read(&*self.disk);
    }

    /// Time goes by, for the desk's timers and for the record.
    fn pass(&mut self, milliseconds: u64) {
        self.now.fetch_add(milliseconds, Ordering::Relaxed);
        self.life.runtime.block_on(tokio::time::advance(Duration::from_millis(milliseconds)));
    }

    /// A person resolves an unknown call by the teacher's bill, honestly.
    fn resolve(&mut self) {
        let open = self.life.store.core.present().open;
        let Some(open) = open.into_iter().find(|open| open.unknown.is_some()) else { return };
        let billed = self.notes.lock().unwrap().billed.contains(&open.hold);
        let store = Arc::clone(&self.life.store);
        self.life.tasks.push(self.life.runtime.spawn(async move {
            // The answer may come first, or the store may fail: then there is nothing to resolve.
            let _ = store.resolve(open.hold, billed, "the bill".into()).await;
        }));
    }

    fn change_limit(&mut self) {
        let limit = self.limit();
        let budget = Budget { name: "all".into(), scope: Scope::default(), limit, window: Window::Forever };
        // A store that cannot be written refuses it.
        let _ = self.life.store.core.submit_limit(budget, Origin::Command);
    }

    /// The process ends at once, and what was not synced is lost, kept or torn; a new one opens the rest.
    fn crash(&mut self, event: &'static str) {
        self.count(event);
        self.disk = self.disk.killed(&mut self.random);
        self.restart();
    }

    /// The power goes in the middle of a commit, so that nobody hears of it.
    fn cut_power(&mut self) {
        self.disk.kill_after(self.random.random_range(1..3));
        self.life.committer.commit();
        self.crash("power cut");
    }

    /// A sync fails: from then on nothing is bought. The process is started again in a while.
    fn fail_sync(&mut self) {
        self.disk.fail_syncs(1);
        self.commit();
        if self.life.store.core.present().unwritable.is_some() {
            self.count("failed sync");
            for _ in 0..3 {
                self.ask();
                self.life.run(4);
                self.commit();
                self.check();
            }
        }
        self.crash("crash");
    }

    fn restart(&mut self) {
        // Dropping the runtime drops every task; what they enqueue meanwhile is never written.
        self.life = Life::begin(&self.disk, &self.now);
        let mut notes = self.notes.lock().unwrap();
        let told = notes.durable.number;
        notes.durable = Folded::start();
        notes.durable.read(&*self.disk);
        assert!(notes.durable.number >= told, "rule 4: something that was durable is gone");
        let shown = notes.shown.clone();
        drop(notes);
        let keys: Vec<_> = shown.into_iter().collect();
        let found = self.life.store.find_now(&keys).unwrap();
        assert!(found.iter().all(Option::is_some), "rule 4: an answer was shown and lost");
        found.into_iter().flatten().for_each(|record| check_record(&record));
        assert_eq!(self.life.store.core.present().total.reserved, Amount::ZERO);
    }

    /// Every rule that can be checked at any instant.
    pub(super) fn check(&self) {
        let core = &self.life.store.core;
        let notes = self.notes.lock().unwrap();
        assert_eq!(notes.broken, Vec::<String>::new());
        let enqueued = self.enqueued(&notes.durable);
        let folded = match enqueued.bytes.is_empty() {
            true => Cow::Borrowed(&notes.durable),
            false => {
                let mut folded = notes.durable.clone();
                folded.read(&enqueued);
                Cow::Owned(folded)
            }
        };
        let present = core.present();
        folded.check(&present, self.at());
        let total = present.total;
        let sum =
            total.settled.checked_add(total.reserved).and_then(|sum| sum.checked_add(total.unknown)).unwrap();
        let bill = notes.bill;
        let within = bill.calls <= sum.calls && bill.tokens <= sum.tokens && bill.usd <= sum.usd;
        assert!(within, "the teacher's bill, {bill:?}, is above what is counted, {sum:?}");
        assert!(total.settled.calls <= bill.calls, "more is settled, {total:?}, than was billed, {bill:?}");
        assert!(folded.released.is_disjoint(&notes.billed), "rule 5: a call that was billed is released");
        assert!(notes.shown.is_subset(&notes.durable.answered), "rule 4: shown before it was durable");
    }

    /// What is decided and not yet written, as it would be written.
    fn enqueued(&self, durable: &Folded) -> Tail {
        let (mut bytes, mut number, mut chain) = (Vec::new(), durable.number, durable.chain);
        let inner = self.life.store.core.lock();
        for draft in inner.queue.iter().filter_map(|pending| pending.draft.as_ref()) {
            number += 1;
            chain = draft.write(&mut bytes, &HEADER.writer, number, durable.position, &chain);
        }
        Tail { offset: durable.position, bytes }
    }

    /// Nothing new happens; whoever waits is answered, every hold ends, and the store closes and opens in good order.
    pub(super) fn finish(&mut self) {
        let longest = HOLD_WAIT + TIMEOUT * 40;
        let mut passed = Duration::ZERO;
        while !self.life.tasks.is_empty() || self.life.desk.under_way() > 0 {
            assert!(passed < longest, "{} clients wait for ever", self.life.tasks.len());
            self.life.run(20);
            self.commit();
            self.check();
            self.pass(250);
            passed += Duration::from_millis(250);
        }
        let core = Arc::clone(&self.life.store.core);
        assert_eq!(core.present().total.reserved, Amount::ZERO, "a hold that nobody ends");
        core.end().unwrap();
        self.commit();
        self.life.committer.checkpoint();
        self.check();
        let before = core.present();
        self.notes.lock().unwrap().durable.check_figures(&before, self.at());
        self.restart();
        let after = self.life.store.core.present();
        assert_eq!((before.total, before.budgets), (after.total, after.budgets));
    }

    pub(super) fn journal(&self) -> Vec<u8> {
        self.disk.bytes()
    }

    /// What happened, for the test that wants enough of everything.
    pub(super) fn events(&self) -> BTreeMap<String, u64> {
        let notes = self.notes.lock().unwrap();
        let durable = &notes.durable;
        let mut events: BTreeMap<String, u64> = notes
            .events
            .iter()
            .chain(&durable.facts)
            .map(|(name, count)| ((*name).to_owned(), *count))
            .collect();
        events.insert("settled late".into(), durable.settled_late());
        events
    }
}

fn check_record(record: &Record) {
    assert_eq!(record.answer.body, body(&record.query.input), "the answer to another question");
    assert_eq!(record.key, record.query.key());
}

/// Somebody who asks once and holds what comes against the rules.
struct Client {
    desk: Arc<Desk>,
    teacher: Arc<dyn Teacher>,
    order: Arc<Order>,
    notes: Shared,
}

impl Client {
    async fn ask(self) {
        let (teacher, order) = (Arc::clone(&self.teacher), Arc::clone(&self.order));
        if order.forward.stream {
            match self.desk.stream(teacher, order).await {
                Ok(Streamed::Known(record)) => self.shown(&record, "known"),
                Ok(Streamed::Live { reader, outcome }) => self.follow(reader, outcome).await,
                Err(error) => self.refused(&error),
            }
            return;
        }
        match self.desk.ask(teacher, order).await {
            Ok(served) => {
                for item in served.items {
                    self.shown(&item.record, word(item.outcome));
                }
            }
            Err(error) => self.refused(&error),
        }
    }

    async fn follow(&self, mut reader: crate::desk::live::LiveReader, outcome: Outcome) {
        self.notes.lock().unwrap().count("streamed");
        let mut read = Vec::new();
        loop {
            match reader.next().await {
                Step::Chunk(bytes) => {
                    read.extend_from_slice(&bytes);
                    if read.ends_with(END) {
                        self.durable("the end of a stream was shown before it was durable");
                    }
                }
                Step::Ended(Ending::Answered(records)) => {
                    let key = self.order.items[0].key;
                    let record = records.iter().find(|record| record.key == key);
                    return self.shown(record.expect("the leader has its followers' keys"), word(outcome));
                }
                Step::Ended(_) if read.ends_with(END) => {
                    return self.broken("a stream that failed showed its end");
                }
                Step::Ended(_) => return,
            }
        }
    }

    fn shown(&self, record: &Record, word: &'static str) {
        check_record(record);
        self.durable("an answer was shown before it was durable");
        let mut notes = self.notes.lock().unwrap();
        notes.count(word);
        notes.shown.insert(record.key);
    }

    fn durable(&self, what: &str) {
        let notes = self.notes.lock().unwrap();
        let all = self.order.items.iter().all(|item| notes.durable.answered.contains(&item.key));
        drop(notes);
        if !all {
            self.broken(what);
        }
    }

    fn broken(&self, what: &str) {
        self.notes.lock().unwrap().broken.push(format!("rule 4: {what}"));
    }

    /// A refusal must be true: what it names does not fit.
    fn refused(&self, error: &DeskError) {
        let DeskError::Refused(refusal) = error else { return };
        self.notes.lock().unwrap().count("refused");
        if let Refusal::Exhausted { limit, settled, reserved, unknown, needed, .. } = refusal
            && settled + reserved + unknown + needed <= *limit
        {
            self.broken(&format!("refused although it fits: {refusal}"));
        }
    }
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Bought => "bought",
        Outcome::Known => "known",
        Outcome::Followed => "followed",
    }
}
