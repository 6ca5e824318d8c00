//! Buying against the embedded store: what is asked, what is paid, where it stops.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tuition_ledger::{
    Answer, Budget, Clock, Elements, Failure, Limit, Live, OpenStore, Origin, PriceBook, Reply, Row, Scope,
    Settings, Signal, Store, StoreUrl, Tensor, Timestamp, Window, open_store,
};

use super::*;
use crate::example::Input;
use crate::port::ElementType;

fn form() -> Form {
    Form {
        teacher: "t".into(),
        revision: "1".into(),
        model: "m".into(),
        input: "x".into(),
        element_type: ElementType::F32,
        shape: None,
        outputs: vec![],
    }
}

fn collected(values: impl IntoIterator<Item = u16>) -> Collected {
    let raw = |value: u16| Raw {
        place: value.to_string(),
        input: Input::Vector(vec![f32::from(value)]),
        truth: None,
    };
    Collected { inputs: values.into_iter().map(raw).collect(), ..Collected::default() }
}

#[test]
fn equal_inputs_are_one_question() {
    let made = questions(&form(), collected([1, 2, 1, 3, 2])).unwrap();
    assert_eq!(made.iter().map(|question| question.place.as_str()).collect::<Vec<_>>(), ["1", "2", "3"]);
    let query = form().query(made[0].row.clone());
    assert_eq!(query.key(), made[0].key);
}

#[test]
fn a_question_keeps_its_side_and_a_longer_list_keeps_its_order() {
    let few = Pool::of(questions(&form(), collected(0..300)).unwrap(), 0.3, 5);
    let many = Pool::of(questions(&form(), collected(0..900)).unwrap(), 0.3, 5);
    let small = |questions: &[Question]| -> Vec<Question> {
        let below = |question: &&Question| question.place.parse::<u16>().unwrap() < 300;
        questions.iter().filter(below).cloned().collect()
    };
    assert_eq!((small(&many.learn), small(&many.test)), (few.learn.clone(), few.test.clone()));
    assert_eq!(few.learn.len() + few.test.len(), 300);
    let apart = Pool::with_test(
        questions(&form(), collected(0..10)).unwrap(),
        questions(&form(), collected(5..8)).unwrap(),
        5,
    );
    assert_eq!((apart.learn.len(), apart.test.len()), (7, 3));
    let other = few.clone().reordered(6);
    assert_eq!((&other.test, few.clone().reordered(5)), (&few.test, few.clone()));
    assert_ne!(other.learn, few.learn, "another seed buys in another order");
    assert_eq!(other.reordered(5), few);
}

#[test]
fn stretches_cover_everything_once() {
    assert_eq!(stretches(7, 3), [0..3, 3..6, 6..7]);
    assert!(stretches(0, 3).is_empty());
    assert_eq!(stretches(2, 0), [0..1, 1..2]);
}

/// Answers each row with its own input, and counts the rows it was asked.
struct Echo {
    rows: AtomicUsize,
}

#[async_trait]
impl Teacher for Echo {
    fn name(&self) -> &str {
        "t"
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(60)
    }

    fn retries(&self) -> u32 {
        0
    }

    async fn ask(&self, order: &Arc<Order>, led: &[usize], _live: &Live) -> Result<Reply, Failure> {
        self.rows.fetch_add(led.len(), Ordering::SeqCst);
        let answer = |index: &usize| {
            let row = Row::parse(&order.items[*index].input).unwrap();
            let output = Tensor { name: "y".into(), ..row.inputs[0].clone() };
            Answer { body: Bytes::new(), signals: vec![Signal::Tensor(output)] }
        };
        let answers = led.iter().map(answer).collect();
        Ok(Reply { usage: None, media: "application/json".into(), envelope: Bytes::new(), answers })
    }
}

async fn opened(folder: &std::path::Path, calls: u64) -> OpenStore {
    let clock: Clock = Arc::new(Timestamp::default);
    let opened = open_store(&StoreUrl::Sled(folder.to_owned()), clock, "test").await.unwrap();
    let budget = Budget {
        name: "b".into(),
        scope: Scope { run: Some("r".into()), ..Scope::default() },
        limit: Limit { calls: Some(calls), ..Limit::default() },
        window: Window::Forever,
    };
    opened.store.limit(budget, Origin::Command).await.unwrap();
    opened
}

fn buyer(store: &Arc<dyn Store>, teacher: &Arc<Echo>, mode: Mode) -> Buyer {
    let settings = Settings {
        unbudgeted: false,
        hold_wait: Duration::from_secs(30),
        breaker_failures: 3,
        breaker_pause: Duration::from_secs(1),
    };
    let clock: Clock = Arc::new(Timestamp::default);
    Buyer {
        desk: Desk::new(Arc::clone(store), PriceBook::default(), settings, clock),
        teacher: Arc::clone(teacher) as Arc<dyn Teacher>,
        form: form(),
        run: "r".into(),
        mode,
        batch: 8,
        concurrency: 3,
    }
}

fn never() -> watch::Receiver<bool> {
    watch::channel(false).1
}

fn answered(purchase: &Purchase, questions: &[Question]) -> usize {
    let pairs = purchase.records.iter().zip(questions);
    let found = pairs.filter_map(|(record, question)| record.as_ref().map(|record| (record, question)));
    found
        .map(|(record, question)| {
            let Signal::Tensor(Tensor { elements: Elements::F32(values), .. }) = &record.answer.signals[0]
            else {
                panic!("the answer is a tensor");
            };
            assert_eq!(Input::Vector(values.clone()), question.input);
        })
        .count()
}

#[tokio::test]
async fn a_budget_is_spent_to_its_last_call_and_a_second_purchase_costs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = Arc::new(Echo { rows: AtomicUsize::new(0) });
    let questions = questions(&form(), collected(0..50)).unwrap();
    let opened = opened(folder.path(), 21).await;
    let buyer = buyer(&opened.store, &teacher, Mode::Record);

    let before = buyer.plan(&questions).await.unwrap();
    assert_eq!((before.known, before.unknown), (0, 50));
    assert_eq!(before.quotes.iter().map(|quote| quote.calls).sum::<u64>(), 50);
    assert_eq!(teacher.rows.load(Ordering::SeqCst), 0, "a plan asks nobody");

    let mut told = Vec::new();
    let first = buyer.buy(&questions, &never(), &mut |progress| told.push(*progress)).await.unwrap();
    assert_eq!((first.progress.bought, first.progress.calls), (21, 21));
    assert_eq!(answered(&first, &questions), 21);
    assert!(matches!(first.stopped, Some(Stopped::Budget(_))), "{:?}", first.stopped);
    assert_eq!(told.last(), Some(&first.progress));
    assert_eq!(teacher.rows.load(Ordering::SeqCst), 21);

    let found: Vec<Question> = questions
        .iter()
        .zip(&first.records)
        .filter(|(_, record)| record.is_some())
        .map(|(q, _)| q.clone())
        .collect();
    let again = buyer.buy(&found, &never(), &mut |_| {}).await.unwrap();
    assert_eq!((again.progress.bought, again.progress.known, again.stopped), (0, 21, None));
    assert_eq!(teacher.rows.load(Ordering::SeqCst), 21);
    assert_eq!(buyer.plan(&questions).await.unwrap().known, 21);
    opened.close().unwrap();
}

#[tokio::test]
async fn a_resumed_purchase_pays_only_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = Arc::new(Echo { rows: AtomicUsize::new(0) });
    let questions = questions(&form(), collected(0..40)).unwrap();
    let opened = opened(folder.path(), 40).await;
    let buyer = buyer(&opened.store, &teacher, Mode::Record);

    let (stop, stopped) = watch::channel(false);
    let first = buyer.buy(&questions, &stopped, &mut |_| _ = stop.send_replace(true)).await.unwrap();
    assert_eq!(first.stopped, Some(Stopped::Interrupted));
    let bought = first.progress.bought;
    assert!(bought < 40, "it was interrupted after the first exchange");
    assert_eq!(answered(&first, &questions), bought, "what was under way is kept");

    let rest = buyer.buy(&questions, &never(), &mut |_| {}).await.unwrap();
    assert_eq!(
        (rest.progress.known, rest.progress.bought, rest.stopped.as_ref()),
        (bought, 40 - bought, None)
    );
    assert_eq!(answered(&rest, &questions), 40);
    assert_eq!(teacher.rows.load(Ordering::SeqCst), 40);
    opened.close().unwrap();
}

#[tokio::test]
async fn replay_asks_nobody_and_names_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = Arc::new(Echo { rows: AtomicUsize::new(0) });
    let questions = questions(&form(), collected(0..10)).unwrap();
    let opened = opened(folder.path(), 10).await;
    buyer(&opened.store, &teacher, Mode::Record).buy(&questions[..9], &never(), &mut |_| {}).await.unwrap();

    let replay = buyer(&opened.store, &teacher, Mode::Replay);
    let known = replay.buy(&questions[..9], &never(), &mut |_| {}).await.unwrap();
    assert_eq!((known.progress.known, known.progress.calls), (9, 0));
    let error = replay.buy(&questions, &never(), &mut |_| {}).await.expect_err("one is not recorded");
    assert!(error.to_string().contains(&questions[9].key.to_string()), "{error}");
    assert_eq!(teacher.rows.load(Ordering::SeqCst), 9);
    opened.close().unwrap();
}
