//! The desk over a real embedded store and a scripted teacher that keeps its own bill.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt as _;
use tokio::sync::Semaphore;
use tuition_ledger::{
    Answer, Billing, Bounds, Budget, Cause, Desk, DeskError, Embedded, Fact, Failure, Forward, InputBound,
    Item, Limit, Live, Mode, Order, Origin, Outcome, OutputBound, Owner, Present, Price, PriceBook, Query,
    QueryKey, Reply, Scope, Settings, Step, Store, StoreUrl, Streamed, Teacher, Timestamp, Unit, Usage, Who,
    Window, read_entries,
};

/// What the teacher does when it is asked.
#[derive(Clone)]
enum Script {
    Answer,
    /// Answers once the gate opens.
    Gate(Arc<Semaphore>),
    /// A surely unbilled failure so many times, then an answer.
    Busy(u64),
    /// Refuses for good.
    Reject,
    /// The first call is refused, unbilled, once the gate opens; every other one is answered.
    RejectFirst(Arc<Semaphore>),
    /// Breaks off after the bytes left.
    Break,
    Panic,
    /// Streams three events, the last of which completes the answer.
    Stream(Arc<Semaphore>),
    /// Too few answers.
    Short,
}

struct Scripted {
    script: Script,
    store: StoreUrl,
    asked: AtomicU64,
    billed: AtomicU64,
    per_key: Mutex<HashMap<QueryKey, u64>>,
}

#[async_trait]
impl Teacher for Scripted {
    fn name(&self) -> &str {
        "t"
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(200)
    }

    fn retries(&self) -> u32 {
        2
    }

    async fn ask(&self, order: &Arc<Order>, led: &[usize], live: &Live) -> Result<Reply, Failure> {
        let nth = self.asked.fetch_add(1, Ordering::SeqCst);
        // Rule 4: whoever reads the journal now finds the hold in it.
        let entries = read_entries(&self.store).unwrap().map(|entry| entry.unwrap().entry);
        let wanted: Vec<_> = led.iter().map(|index| order.items[*index].key).collect();
        let mut held = entries.filter_map(|entry| match entry.fact {
            Fact::Reserved { exchange, .. } => {
                Some(exchange.items.iter().map(|item| item.key).collect::<Vec<_>>())
            }
            _ => None,
        });
        assert!(held.any(|held| held == wanted), "asked before the hold was durable");
        let fail = |cause, billing| Failure {
            teacher: "t".into(),
            cause,
            message: "scripted".into(),
            billing,
            status: None,
            media: String::new(),
            body: Bytes::from_static(b"evidence"),
        };
        match &self.script {
            Script::Busy(times) if nth < *times => {
                return Err(fail(Cause::Status(503), Billing::Unbilled { retry: true, after: None }));
            }
            Script::RejectFirst(gate) if nth == 0 => {
                gate.acquire().await.unwrap().forget();
                return Err(fail(Cause::Status(400), Billing::Unbilled { retry: false, after: None }));
            }
            Script::Reject => {
                return Err(fail(Cause::Status(400), Billing::Unbilled { retry: false, after: None }));
            }
            _ => {}
        }
        let calls: u64 = led.iter().map(|index| order.items[*index].calls).sum();
        self.billed.fetch_add(calls, Ordering::SeqCst);
        for key in &wanted {
            *self.per_key.lock().unwrap().entry(*key).or_default() += 1;
        }
        match &self.script {
            Script::Gate(gate) => gate.acquire().await.unwrap().forget(),
            Script::Break => return Err(fail(Cause::BrokenOff, Billing::Unknown)),
            Script::Panic => panic!("scripted"),
            Script::Stream(gate) => {
                for event in ["one", "two"] {
                    gate.acquire().await.unwrap().forget();
                    live.push(Bytes::from(event));
                }
                gate.acquire().await.unwrap().forget();
                live.hold_back(Bytes::from_static(b"three"));
            }
            _ => {}
        }
        let answer = |index: &usize| Answer {
            body: Bytes::from(format!("answer to {}", order.items[*index].input)),
            signals: vec![],
        };
        let mut answers: Vec<_> = led.iter().map(answer).collect();
        if matches!(self.script, Script::Short) {
            answers.pop();
        }
        let usage = Usage { input: 10, output: 2, ..Usage::default() };
        Ok(Reply { usage: Some(usage), media: "text/plain".into(), envelope: Bytes::new(), answers })
    }
}

struct Scene {
    desk: Arc<Desk>,
    teacher: Arc<Scripted>,
    store: Arc<Embedded>,
    _owner: Owner,
    _folder: tempfile::TempDir,
}

fn price() -> Price {
    let usd = |text: &str| text.parse().unwrap();
    Price {
        model: "m".into(),
        from: "2020-01-01".parse().unwrap(),
        input: usd("1"),
        cached_input: None,
        cache_write: None,
        output: usd("10"),
        reasoning: None,
        request: usd("0"),
        max_input_tokens: None,
        max_output_tokens: None,
    }
}

fn clock() -> tuition_ledger::Clock {
    Arc::new(|| Timestamp(1_790_000_000_000))
}

fn desk(store: &Arc<Embedded>, bounds: Bounds) -> Arc<Desk> {
    let settings = Settings {
        unbudgeted: false,
        hold_wait: Duration::from_secs(5),
        breaker_failures: 3,
        breaker_pause: Duration::from_secs(60),
    };
    let prices = PriceBook::new([price()]).unwrap();
    Desk::bounded(Arc::clone(store) as Arc<dyn Store>, prices, settings, clock(), bounds)
}

async fn scene(script: Script, budgets: &[(&str, Option<&str>, Limit)]) -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let opened = Embedded::open(&folder.path().join("store"), clock(), "test").unwrap();
    let store = opened.store;
    store.price(price()).await.unwrap();
    for (name, run, limit) in budgets {
        let scope = Scope { run: run.map(str::to_owned), ..Scope::default() };
        store
            .limit(
                Budget { name: (*name).into(), scope, limit: *limit, window: Window::Forever },
                Origin::Config,
            )
            .await
            .unwrap();
    }
    let desk = desk(&store, Bounds::default());
    let teacher = Arc::new(Scripted {
        script,
        store: StoreUrl::Sled(folder.path().join("store")),
        asked: AtomicU64::new(0),
        billed: AtomicU64::new(0),
        per_key: Mutex::default(),
    });
    Scene { desk, teacher, store, _owner: opened.owner, _folder: folder }
}

fn calls(calls: u64) -> Limit {
    Limit { calls: Some(calls), ..Limit::default() }
}

fn key(number: u64) -> QueryKey {
    order(&[number]).items[0].key
}

fn order(keys: &[u64]) -> Order {
    let query = |number: &u64| Query {
        dialect: "d".into(),
        operation: "o".into(),
        teacher: "t".into(),
        revision: String::new(),
        sample: 0,
        headers: BTreeMap::new(),
        input: number.to_string(),
    };
    let item = |number: &u64| Item {
        key: query(number).key(),
        input: number.to_string(),
        sample: 0,
        calls: 1,
        bound: InputBound::Bytes(20),
    };
    Order {
        who: Who { teacher: "t".into(), run: None, key: None },
        dialect: "d".into(),
        operation: "o".into(),
        revision: String::new(),
        model: "m".into(),
        headers: BTreeMap::new(),
        items: keys.iter().map(item).collect(),
        overhead_tokens: 0,
        output: OutputBound::Client(2),
        choices: 1,
        unbounded: None,
        mode: Mode::Record,
        forward: Forward::default(),
    }
}

impl Scene {
    async fn ask(&self, order: Order) -> Result<tuition_ledger::Served, DeskError> {
        self.desk.ask(Arc::clone(&self.teacher) as Arc<dyn Teacher>, Arc::new(order)).await
    }

    fn spawn(&self, order: Order) -> tokio::task::JoinHandle<Result<tuition_ledger::Served, DeskError>> {
        let (desk, teacher) = (Arc::clone(&self.desk), Arc::clone(&self.teacher));
        tokio::spawn(async move { desk.ask(teacher as Arc<dyn Teacher>, Arc::new(order)).await })
    }

    async fn present(&self) -> Present {
        self.store.present().await.unwrap()
    }

    /// Waits until the record satisfies `wanted`.
    async fn until(&self, wanted: impl Fn(&Present) -> bool) -> Present {
        let mut changes = self.store.changes();
        loop {
            let present = self.present().await;
            if wanted(&present) {
                return present;
            }
            let change = tokio::time::timeout(Duration::from_secs(30), changes.changed()).await;
            change.unwrap_or_else(|_| panic!("nothing happened for long: {present:?}")).unwrap();
        }
    }

    fn billed(&self) -> u64 {
        self.teacher.billed.load(Ordering::SeqCst)
    }
}

fn outcomes(served: &tuition_ledger::Served) -> Vec<Outcome> {
    served.items.iter().map(|item| item.outcome).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_questions_under_a_budget_of_fifty_buy_fifty() {
    let scene = scene(Script::Answer, &[("b", None, calls(50))]).await;
    let asked: Vec<_> = (0..500).map(|number| scene.spawn(order(&[number]))).collect();
    let (mut bought, mut refused) = (0, 0);
    for asked in asked {
        match asked.await.unwrap() {
            Ok(served) => bought += served.bought,
            Err(DeskError::Refused(refusal)) => {
                assert_eq!(refusal.budget(), Some("b"));
                refused += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!((bought, refused, scene.billed()), (50, 450, 50));
    assert_eq!(scene.present().await.total.settled.calls, 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn identical_questions_at_once_are_one_call() {
    let gate = Arc::new(Semaphore::new(0));
    let scene = scene(Script::Gate(Arc::clone(&gate)), &[("b", None, calls(9))]).await;
    let asked: Vec<_> = (0..200).map(|_| scene.spawn(order(&[7]))).collect();
    scene.until(|present| present.total.reserved.calls == 1).await;
    gate.add_permits(1);
    let mut found = Vec::new();
    for asked in asked {
        found.extend(outcomes(&asked.await.unwrap().unwrap()));
    }
    assert_eq!(found.iter().filter(|outcome| **outcome == Outcome::Bought).count(), 1);
    assert_eq!((found.len(), scene.billed()), (200, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_that_overlap_buy_each_item_once() {
    let scene = scene(Script::Answer, &[("b", None, calls(9))]).await;
    let first = scene.ask(order(&[1, 2, 3])).await.unwrap();
    let second = scene.ask(order(&[2, 3, 4, 4])).await.unwrap();
    assert_eq!(outcomes(&first), [Outcome::Bought; 3]);
    assert_eq!(outcomes(&second), [Outcome::Known, Outcome::Known, Outcome::Bought, Outcome::Bought]);
    assert_eq!((first.bought, second.bought, scene.billed()), (3, 1, 4));
    let bodies: Vec<_> = second.items.iter().map(|item| item.record.answer.body.clone()).collect();
    assert_eq!(bodies, ["answer to 2", "answer to 3", "answer to 4", "answer to 4"]);
    // 10 x 1 + 2 x 10 dollars a million tokens, over three items: the shares add up to the fee.
    assert_eq!(first.cost.unwrap().to_string(), "0.000030000");
    let shares: u64 = first.items.iter().map(|item| item.record.share.usd.nanos()).sum();
    assert_eq!(shares, 30_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_does_not_cancel_a_paid_call() {
    let gate = Arc::new(Semaphore::new(0));
    let scene = scene(Script::Gate(Arc::clone(&gate)), &[("b", None, calls(9))]).await;
    let asked = scene.spawn(order(&[1]));
    scene.until(|present| present.total.reserved.calls == 1).await;
    asked.abort();
    gate.add_permits(1);
    scene.until(|present| present.total.settled.calls == 1).await;
    // Settled comes before landed: until then the same question follows the call.
    while scene.desk.under_way() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(outcomes(&scene.ask(order(&[1])).await.unwrap()), [Outcome::Known]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_teacher_leaves_an_unknown_hold_that_a_late_answer_settles() {
    let gate = Arc::new(Semaphore::new(0));
    let scene = scene(Script::Gate(Arc::clone(&gate)), &[("b", None, calls(1))]).await;
    let error = scene.ask(order(&[1])).await.unwrap_err();
    assert_eq!(error.to_string(), "teacher `t`: no answer within 0.2 s");
    assert_eq!(scene.present().await.total.unknown.calls, 1);
    assert!(matches!(scene.ask(order(&[2])).await, Err(DeskError::Refused(_))), "an unknown hold counts");
    gate.add_permits(1);
    scene.until(|present| present.total.settled.calls == 1 && present.total.unknown.calls == 0).await;
    assert_eq!(outcomes(&scene.ask(order(&[1])).await.unwrap()), [Outcome::Known]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_hold_is_given_back_by_a_persons_word() {
    let scene = scene(Script::Break, &[("b", None, calls(1))]).await;
    assert!(scene.ask(order(&[1])).await.is_err());
    let open = scene.present().await.open;
    assert_eq!(open[0].unknown, Some(Cause::BrokenOff));
    scene.store.resolve(open[0].hold, false, "not on the bill".into()).await.unwrap();
    assert_eq!(scene.present().await.total, tuition_ledger::Standing::default());
    assert!(scene.store.resolve(open[0].hold, false, "again".into()).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_surely_unbilled_failure_is_tried_again_under_a_new_hold() {
    let busy = scene(Script::Busy(2), &[("b", None, calls(1))]).await;
    assert_eq!(outcomes(&busy.ask(order(&[1])).await.unwrap()), [Outcome::Bought]);
    let names: Vec<_> =
        read_entries(&busy.teacher.store).unwrap().map(|entry| entry.unwrap().entry.fact.name()).collect();
    let holds = names.iter().filter(|name| **name == "Reserved").count();
    let released = names.iter().filter(|name| **name == "Released").count();
    assert_eq!((holds, released, busy.billed()), (3, 2, 1));

    let too_busy = scene(Script::Busy(3), &[("b", None, calls(1))]).await;
    assert!(matches!(too_busy.ask(order(&[1])).await, Err(DeskError::Teacher(_))));
    let rejecting = scene(Script::Reject, &[("b", None, calls(1))]).await;
    assert!(matches!(rejecting.ask(order(&[1])).await, Err(DeskError::Teacher(_))));
    assert_eq!(rejecting.teacher.asked.load(Ordering::SeqCst), 1);
    for scene in [too_busy, rejecting] {
        assert_eq!(scene.present().await.total, tuition_ledger::Standing::default());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_short_or_a_teacher_that_panics_leaves_the_hold_unknown() {
    for script in [Script::Short, Script::Panic] {
        let scene = scene(script, &[("b", None, calls(5))]).await;
        let ask = scene.spawn(order(&[1, 2]));
        scene.until(|present| present.total.unknown.calls == 2).await;
        assert!(ask.await.unwrap().is_err());
        assert_eq!(scene.present().await.answers, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_in_a_row_leave_the_teacher_alone() {
    let scene = scene(Script::Break, &[("b", None, calls(50))]).await;
    for number in 0..3 {
        assert!(matches!(scene.ask(order(&[number])).await, Err(DeskError::Teacher(_))));
    }
    assert!(matches!(scene.ask(order(&[9])).await, Err(DeskError::CircuitOpen { failures: 3, .. })));
    assert_eq!(scene.present().await.total.unknown.calls, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_refused_by_its_own_budget_does_not_refuse_a_follower_under_another() {
    let budgets = [("small", Some("small"), calls(0)), ("large", Some("large"), calls(5))];
    let scene = scene(Script::Answer, &budgets).await;
    let of_run = |run: &str| {
        let mut order = order(&[1]);
        order.who.run = Some(run.to_owned());
        order
    };
    for _ in 0..20 {
        let small = scene.spawn(of_run("small"));
        let large = scene.spawn(of_run("large"));
        large.await.unwrap().unwrap();
        drop(small.await.unwrap());
    }
    assert_eq!(scene.billed(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_would_fit_waits_for_holds_to_settle() {
    // A hold is 20 x 1 + 2 x 10 = 40 millionths of a dollar, the fee 30: two fit one after the other, not at once.
    let limit = Limit { usd: Some("0.00007".parse().unwrap()), ..Limit::default() };
    let gate = Arc::new(Semaphore::new(0));
    let scene = scene(Script::Gate(Arc::clone(&gate)), &[("b", None, limit)]).await;
    let first = scene.spawn(order(&[1]));
    scene.until(|present| present.total.reserved.calls == 1).await;
    let second = scene.spawn(order(&[2]));
    gate.add_permits(2);
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    let refused = scene.ask(order(&[3])).await.unwrap_err();
    let DeskError::Refused(tuition_ledger::Refusal::Exhausted { unit, settled, needed, .. }) = refused else {
        panic!("{refused}")
    };
    assert_eq!((unit, settled, needed), (Unit::Usd, 60_000, 40_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_overtakes_a_call_that_waits() {
    let gate = Arc::new(Semaphore::new(0));
    let scene = scene(Script::RejectFirst(Arc::clone(&gate)), &[("b", None, calls(2))]).await;
    let first = scene.spawn(order(&[1]));
    scene.until(|present| present.total.reserved.calls == 1).await;
    let waits = async |count| {
        while scene.desk.waiting() < count {
            tokio::task::yield_now().await;
        }
    };
    let large = scene.spawn(order(&[2, 3]));
    waits(1).await;
    // One call would fit beside the hold under way, but then the two that wait would not.
    let small = scene.spawn(order(&[4]));
    waits(2).await;
    gate.add_permits(1);
    assert!(matches!(first.await.unwrap(), Err(DeskError::Teacher(_))));
    assert_eq!(large.await.unwrap().unwrap().bought, 2);
    assert!(matches!(small.await.unwrap(), Err(DeskError::Refused(_))));
    assert_eq!((scene.desk.waiting(), scene.billed()), (0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_is_bounded_and_the_rest_is_told_so() {
    let gate = Arc::new(Semaphore::new(0));
    let scene = scene(Script::Gate(Arc::clone(&gate)), &[("all", None, calls(9))]).await;
    let scene = Scene { desk: desk(&scene.store, Bounds { calls: 1, followers: 1 }), ..scene };
    let leader = scene.spawn(order(&[1]));
    scene.until(|present| present.open.len() == 1).await;
    let mut follower = Box::pin(scene.ask(order(&[1])));
    assert!(follower.as_mut().now_or_never().is_none(), "it waits for the answer");
    let busy = |outcome: Result<_, DeskError>| match outcome {
        Err(error @ DeskError::Busy { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let third = busy(scene.ask(order(&[1])).await);
    assert_eq!(third, "too many requests wait for the answer of one call: at most 1 at a time");
    let other = busy(scene.ask(order(&[2])).await);
    assert_eq!(other, "too many calls to teachers are under way: at most 1 at a time");
    gate.add_permits(2);
    assert_eq!(outcomes(&leader.await.unwrap().unwrap()), [Outcome::Bought]);
    assert_eq!(outcomes(&follower.await.unwrap()), [Outcome::Followed]);
    scene.desk.idle().await;
    assert_eq!(outcomes(&scene.ask(order(&[2])).await.unwrap()), [Outcome::Bought]);
    assert_eq!((scene.billed(), scene.present().await.total.settled.calls), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_never_asks_and_refresh_asks_again() {
    let scene = scene(Script::Answer, &[("b", None, calls(9))]).await;
    let with = |mode| Order { mode, ..order(&[1]) };
    let missed = scene.ask(with(Mode::Replay)).await.unwrap_err();
    let DeskError::NotRecorded { keys, quote } = missed else { panic!("{missed}") };
    assert_eq!((keys, quote.calls), (vec![key(1)], 1));
    assert_eq!(outcomes(&scene.ask(with(Mode::Record)).await.unwrap()), [Outcome::Bought]);
    assert_eq!(outcomes(&scene.ask(with(Mode::Replay)).await.unwrap()), [Outcome::Known]);
    assert_eq!(outcomes(&scene.ask(with(Mode::Refresh)).await.unwrap()), [Outcome::Bought]);
    assert_eq!(scene.billed(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_stream_is_shown_only_when_it_is_durable() {
    let gate = Arc::new(Semaphore::new(1));
    let scene = scene(Script::Stream(Arc::clone(&gate)), &[("b", None, calls(9))]).await;
    let streamed = || {
        let mut order = order(&[1]);
        order.forward.stream = true;
        Arc::new(order)
    };
    let teacher = || Arc::clone(&scene.teacher) as Arc<dyn Teacher>;
    let Streamed::Live { mut reader, outcome } = scene.desk.stream(teacher(), streamed()).await.unwrap()
    else {
        panic!("not live")
    };
    assert_eq!(outcome, Outcome::Bought);
    let Streamed::Live { reader: mut follower, outcome } =
        scene.desk.stream(teacher(), streamed()).await.unwrap()
    else {
        panic!("not live")
    };
    assert_eq!(outcome, Outcome::Followed);
    gate.add_permits(2);
    for reader in [&mut reader, &mut follower] {
        let mut text = String::new();
        loop {
            match reader.next().await {
                Step::Chunk(bytes) => {
                    text.push_str(std::str::from_utf8(&bytes).unwrap());
                    if text.ends_with("three") {
                        assert!(settled(&scene.teacher.store), "the end was shown before it was durable");
                    }
                }
                Step::Ended(tuition_ledger::Ending::Answered(records)) => {
                    assert_eq!(records.len(), 1);
                    break;
                }
                Step::Ended(other) => panic!("{other:?}"),
            }
        }
        assert_eq!(text, "onetwothree");
    }
    assert!(matches!(scene.desk.stream(teacher(), streamed()).await.unwrap(), Streamed::Known(_)));
    assert_eq!(scene.billed(), 1);
}

fn settled(store: &StoreUrl) -> bool {
    read_entries(store).unwrap().any(|entry| matches!(entry.unwrap().entry.fact, Fact::Settled { .. }))
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_waits_for_calls_under_way_and_takes_no_new_ones() {
    let gate = Arc::new(Semaphore::new(0));
    let scene = scene(Script::Gate(Arc::clone(&gate)), &[("b", None, calls(9))]).await;
    let asked = scene.spawn(order(&[1]));
    scene.until(|present| present.total.reserved.calls == 1).await;
    let mut drained = Box::pin(scene.desk.drain());
    // Polled once, draining has begun: a question asked before that would wait behind the gate.
    assert!(drained.as_mut().now_or_never().is_none());
    assert!(matches!(scene.ask(order(&[2])).await, Err(DeskError::Draining)));
    assert!(drained.as_mut().now_or_never().is_none());
    gate.add_permits(1);
    drained.await;
    assert!(asked.await.unwrap().is_ok());
    assert_eq!(scene.present().await.total.settled.calls, 1);
}
