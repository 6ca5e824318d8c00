//! What every store does: the same tests, run on the embedded store and on PostgreSQL.

use std::sync::Arc;

use bytes::Bytes;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::open::{OpenStore, open_store};
use super::read::{read_entries, records, records_of_run};
use super::samples::{calls, claim, clock, key, price, settlement};
use super::url::StoreUrl;
use super::{Doubt, Reservation, ReserveError, Store, StoreError};
use crate::answer::Record;
use crate::book::{Book, Present};
use crate::entry::{Cause, Fact, Origin, Tally};
use crate::money::Amount;
use crate::statement::{Statement, View};
use crate::time::Timestamp;

#[path = "../../../tests/support/cluster.rs"]
pub(crate) mod cluster;

/// Where a store is that a test may use.
pub(crate) struct Place {
    pub(crate) url: StoreUrl,
    _folder: Option<tempfile::TempDir>,
}

impl Place {
    pub(crate) fn sled() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { url: StoreUrl::Sled(folder.path().join("store")), _folder: Some(folder) }
    }

    pub(crate) fn postgres() -> Self {
        let url = cluster::Cluster::shared().database();
        Self { url: StoreUrl::parse(&url, "".as_ref()).unwrap(), _folder: None }
    }

    pub(crate) async fn open(&self) -> OpenStore {
        open_store(&self.url, clock(), "0.1.0").await.unwrap()
    }

    /// A store with a price and a limit of calls.
    pub(crate) async fn prepared(&self, limit: u64) -> OpenStore {
        let opened = self.open().await;
        opened.store.price(price()).await.unwrap();
        opened.store.limit(calls(limit), Origin::Config).await.unwrap();
        opened
    }

    fn facts(&self) -> Vec<Fact> {
        read_entries(&self.url).unwrap().map(|read| read.unwrap().entry.fact).collect()
    }
}

pub(crate) async fn buy(store: &Arc<dyn Store>, names: &[&str]) -> Vec<Arc<Record>> {
    let reservation = store.reserve(claim(names)).await.unwrap();
    store.settle(reservation, settlement(names)).await.unwrap()
}

/// Waits until the figures satisfy `wanted`.
pub(crate) async fn until(store: &Arc<dyn Store>, wanted: impl Fn(&Present) -> bool) -> Present {
    let mut changes = store.changes();
    loop {
        let present = store.present().await.unwrap();
        if wanted(&present) {
            return present;
        }
        let change = tokio::time::timeout(std::time::Duration::from_secs(30), changes.changed()).await;
        change.unwrap_or_else(|_| panic!("nothing happened for long: {present:?}")).unwrap();
    }
}

async fn check_known(store: &Arc<dyn Store>, names: &[&str], expected: &[Arc<Record>]) {
    let keys: Vec<_> = names.iter().map(|name| key(name)).collect();
    let found: Vec<_> = store.find(&keys).await.unwrap().into_iter().map(Option::unwrap).collect();
    assert_eq!(found, expected);
}

pub(crate) async fn what_is_settled_is_found_now_and_after_a_restart(place: Place) {
    let opened = place.prepared(10).await;
    let mut bought = buy(&opened.store, &["a", "b"]).await;
    bought.extend(buy(&opened.store, &["c"]).await);
    assert_eq!((bought[0].share.calls, bought[0].priced), (1, true));
    check_known(&opened.store, &["a", "b", "c"], &bought).await;
    assert_eq!(opened.store.find(&[key("d")]).await.unwrap(), [None]);
    let known = opened.store.reserve(claim(&["b", "d"])).await;
    assert!(matches!(known, Err(ReserveError::Known(keys)) if keys == [key("b")]));
    let before = opened.store.present().await.unwrap();
    assert_eq!(before.total.settled.calls, 3);
    opened.close().unwrap();
    let again = place.open().await;
    assert_eq!(again.store.present().await.unwrap(), before);
    check_known(&again.store, &["a", "b", "c"], &bought).await;
    again.close().unwrap();
    let expected = [
        "Opened", "Priced", "Limited", "Reserved", "Settled", "Reserved", "Settled", "Closed", "Opened",
        "Closed",
    ];
    assert_eq!(place.facts().iter().map(Fact::name).collect::<Vec<_>>(), expected);
}

pub(crate) async fn a_dropped_hold_is_unknown_and_one_under_way_at_the_end_too(place: Place) {
    let opened = place.prepared(10).await;
    drop(opened.store.reserve(claim(&["a"])).await.unwrap());
    until(&opened.store, |present| present.total.unknown.calls == 1).await;
    std::mem::forget(opened.store.reserve(claim(&["b"])).await.unwrap());
    opened.close().unwrap();
    let again = place.open().await;
    let present = again.store.present().await.unwrap();
    assert_eq!((present.total.unknown.calls, present.total.reserved), (2, Amount::ZERO));
    let hold = present.open[0].hold;
    again.store.resolve(hold, false, "not on the bill".into()).await.unwrap();
    let twice = again.store.resolve(hold, false, String::new()).await;
    assert!(matches!(twice, Err(StoreError::Contradiction(_))));
    again.store.resolve(present.open[1].hold, true, "on the bill".into()).await.unwrap();
    let total = again.store.present().await.unwrap().total;
    assert_eq!((total.settled.calls, total.unknown), (1, Amount::ZERO));
}

pub(crate) async fn a_late_answer_settles_a_forfeited_hold(place: Place) {
    let opened = place.prepared(10).await;
    let store = &opened.store;
    let reservation = store.reserve(claim(&["a"])).await.unwrap();
    let evidence = Bytes::from_static(b"half an ans");
    let doubt = store.forfeit(reservation, Cause::TimedOut, evidence.clone()).await.unwrap();
    let bought = store.settle_late(doubt, settlement(&["a"])).await.unwrap();
    check_known(store, &["a"], &bought).await;
    opened.close().unwrap();
    let mut kept = read_entries(&place.url).unwrap().map(Result::unwrap);
    let forfeited = kept.find(|read| matches!(read.entry.fact, Fact::Forfeited { .. })).unwrap();
    assert_eq!(forfeited.blobs[0].open().unwrap(), Some(evidence));
}

pub(crate) async fn an_answer_to_something_else_is_not_recorded(place: Place) {
    let opened = place.prepared(10).await;
    for wrong in [&["b"][..], &["a", "b"], &[]] {
        let reservation = opened.store.reserve(claim(&["a"])).await.unwrap();
        let settled = opened.store.settle(reservation, settlement(wrong)).await;
        assert!(matches!(settled, Err(StoreError::Contradiction(_))), "{wrong:?}");
    }
    until(&opened.store, |present| present.total.unknown.calls == 3).await;
}

/// A batch with one other item, a failed call, and a second answer: all that was recorded under the key goes.
pub(crate) async fn what_is_forgotten_is_a_miss_and_its_money_stays(place: Place) {
    let opened = place.prepared(10).await;
    let store = &opened.store;
    buy(store, &["a", "b"]).await;
    let mut again = claim(&["a"]);
    again.exchange.refresh = true;
    let reservation = store.reserve(again.clone()).await.unwrap();
    store.settle(reservation, settlement(&["a"])).await.unwrap();
    let reservation = store.reserve(again).await.unwrap();
    store.forfeit(reservation, Cause::BrokenOff, Bytes::from_static(b"half an ans")).await.unwrap();
    let before = store.present().await.unwrap();
    assert!(matches!(store.forget(key("c"), String::new()).await, Err(StoreError::Contradiction(_))));
    store.forget(key("a"), "asked to".into()).await.unwrap();
    let found = store.find(&[key("a"), key("b")]).await.unwrap();
    assert_eq!((found[0].is_none(), found[1].is_some()), (true, true));
    let after = store.present().await.unwrap();
    assert_eq!((after.total, &after.open, after.answers), (before.total, &before.open, 1));
    let erased = || -> Vec<Vec<bool>> {
        let read = read_entries(&place.url).unwrap().map(Result::unwrap);
        let blobs = read.filter(|read| !read.blobs.is_empty());
        blobs.map(|read| read.blobs.iter().map(|blob| blob.open().unwrap().is_none()).collect()).collect()
    };
    let batch = [false, true, true, true, false, false, false];
    assert_eq!(erased(), [&batch[..], &[true; 4], &[true]]);
    assert_eq!(records(&place.url).unwrap().map(Result::unwrap).count(), 1);
    // The other item goes as well, and the envelope with it; the first one is bought anew.
    store.forget(key("b"), "asked to".into()).await.unwrap();
    assert_eq!(erased()[0], [true; 7]);
    buy(store, &["a"]).await;
    opened.close().unwrap();
    let again = place.open().await;
    let found = again.store.find(&[key("a"), key("b")]).await.unwrap();
    assert_eq!((found[0].is_some(), found[1].is_none()), (true, true));
    let present = again.store.present().await.unwrap();
    assert_eq!((present.total.settled.calls, present.total.unknown.calls, present.answers), (4, 1, 1));
}

pub(crate) async fn hits_are_counted_a_second_later(place: Place) {
    let opened = place.prepared(10).await;
    let tally = Tally {
        who: claim(&["a"]).exchange.who,
        model: "m".into(),
        known: 2,
        followed: 1,
        saved: Amount { calls: 3, ..Amount::ZERO },
        refused: 0,
    };
    opened.store.tally(tally.clone());
    opened.store.tally(tally);
    let present = until(&opened.store, |present| present.known > 0).await;
    assert_eq!((present.known, present.followed, present.saved.calls), (4, 2, 6));
}

pub(crate) async fn records_are_read_beside_whoever_writes(place: Place) {
    let opened = place.prepared(10).await;
    let bought = buy(&opened.store, &["a", "b"]).await;
    let url = place.url.clone();
    let read = tokio::task::spawn_blocking(move || {
        let all: Vec<_> = records(&url).unwrap().map(|read| read.unwrap().record).collect();
        let of = |run| records_of_run(&url, run).unwrap().count();
        (all, of("r"), of("other"), read_entries(&url).unwrap().is_owned())
    });
    let (all, run, other, owned) = read.await.unwrap();
    assert_eq!(all.iter().collect::<Vec<_>>(), [&*bought[0], &*bought[1]]);
    assert_eq!((run, other, owned), (2, 0, true));
}

pub(crate) async fn whoever_stops_waiting_for_a_hold_gives_it_back(place: Place) {
    let opened = place.prepared(10).await;
    let store = &opened.store;
    loop {
        let mut reserving = store.reserve(claim(&["a"]));
        match futures::poll!(&mut reserving) {
            std::task::Poll::Pending => break,
            // The store was faster than this test: once more.
            std::task::Poll::Ready(given) => {
                store.release(given.unwrap(), Cause::Abandoned).await.unwrap();
            }
        }
    }
    // The next hold on the key can only be made once the first was given back.
    let again = loop {
        match store.reserve(claim(&["a"])).await {
            Ok(reservation) => break reservation,
            Err(ReserveError::InFlight(_)) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    store.release(again, Cause::Abandoned).await.unwrap();
    assert_eq!(store.present().await.unwrap().total, crate::Standing::default());
}

pub(crate) async fn many_at_once_hold_what_the_budget_allows(place: Place) {
    let opened = place.prepared(50).await;
    let holds = (0..300).map(|number| {
        let store = Arc::clone(&opened.store);
        tokio::spawn(async move { store.reserve(claim(&[&number.to_string()])).await })
    });
    let (mut held, mut refused) = (Vec::new(), 0);
    for hold in holds.collect::<Vec<_>>() {
        match hold.await.unwrap() {
            Ok(reservation) => held.push(reservation),
            Err(ReserveError::Refused(refusal)) => {
                assert_eq!(refusal.budget(), Some("all"));
                refused += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!((held.len(), refused), (50, 250));
    for reservation in held {
        opened.store.release(reservation, Cause::NotConnected).await.unwrap();
    }
}

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// What a history has in hand.
#[derive(Default)]
struct Hand {
    held: Vec<(Reservation, Vec<&'static str>)>,
    doubts: Vec<(Doubt, Vec<&'static str>)>,
    known: Vec<Arc<Record>>,
}

/// One step of a history; what the store may refuse, it may refuse.
async fn step(store: &Arc<dyn Store>, rng: &mut ChaCha8Rng, hand: &mut Hand) {
    let pick = |rng: &mut ChaCha8Rng, length: usize| (length > 0).then(|| rng.random_range(0..length));
    match rng.random_range(0..9) {
        0 => store.limit(calls(rng.random_range(1..12)), Origin::Command).await.unwrap(),
        1..=3 => {
            let (first, count) = (rng.random_range(0..NAMES.len()), rng.random_range(1..=2));
            let names: Vec<_> = NAMES.iter().cycle().skip(first).take(count).copied().collect();
            let mut claim = claim(&names);
            claim.exchange.refresh = rng.random_range(0..4) == 0;
            match store.reserve(claim).await {
                Ok(reservation) => hand.held.push((reservation, names)),
                Err(ReserveError::Store(error)) => panic!("{error}"),
                Err(_) => {}
            }
        }
        4 | 5 => {
            let Some(index) = pick(rng, hand.held.len()) else { return };
            let (reservation, names) = hand.held.swap_remove(index);
            let settled = store.settle(reservation, settlement(&names)).await.unwrap();
            hand.known.retain(|known| settled.iter().all(|record| record.key != known.key));
            hand.known.extend(settled);
        }
        6 => {
            let Some(index) = pick(rng, hand.held.len()) else { return };
            let (reservation, _) = hand.held.swap_remove(index);
            store.release(reservation, Cause::Status(429)).await.unwrap();
        }
        7 => {
            let Some(index) = pick(rng, hand.held.len()) else { return };
            let (reservation, names) = hand.held.swap_remove(index);
            let evidence = Bytes::from(vec![7; 900]);
            hand.doubts.push((store.forfeit(reservation, Cause::TimedOut, evidence).await.unwrap(), names));
        }
        _ => {
            let Some(index) = pick(rng, hand.doubts.len()) else { return };
            let (doubt, names) = hand.doubts.swap_remove(index);
            let settled = store.settle_late(doubt, settlement(&names)).await.unwrap();
            hand.known.retain(|known| settled.iter().all(|record| record.key != known.key));
            hand.known.extend(settled);
        }
    }
}

/// Book, statement and store agree after seeded histories, now and after a restart, and every answer is found.
pub(crate) async fn seeded_histories_add_up(place: Place) {
    const HISTORIES: u64 = 6;
    let mut hand = Hand::default();
    let mut opened = place.prepared(10).await;
    for seed in 0..HISTORIES {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for _ in 0..50 {
            step(&opened.store, &mut rng, &mut hand).await;
        }
        for record in &hand.known {
            let found = opened.store.find(&[record.key]).await.unwrap();
            assert_eq!(found[0].as_ref(), Some(record), "seed {seed}");
        }
        let present = opened.store.present().await.unwrap();
        let url = place.url.clone();
        let read = tokio::task::spawn_blocking(move || fold(&url)).await.unwrap();
        assert_eq!(read.0.total, present.total, "seed {seed}");
        assert_eq!(read.0.budgets, present.budgets, "seed {seed}");
        let stated = &read.1["totals"]["calls"];
        let total = present.total;
        let expected = serde_json::json!({
            "settled": total.settled.calls, "reserved": total.reserved.calls, "unknown": total.unknown.calls,
        });
        assert_eq!(stated, &expected, "seed {seed}");
        if seed % 3 == 2 {
            hand.held.clear();
            opened.close().unwrap();
            opened = place.open().await;
            assert_eq!(opened.store.present().await.unwrap().total.reserved, Amount::ZERO, "seed {seed}");
            hand.doubts.clear();
        }
    }
    opened.close().unwrap();
}

/// The record, folded twice by code that shares nothing.
fn fold(url: &StoreUrl) -> (Present, serde_json::Value) {
    let (mut book, mut statement) = (Book::default(), Statement::default());
    for read in read_entries(url).unwrap() {
        let entry = read.unwrap().entry;
        book.apply(&entry).unwrap();
        statement.add(&entry);
    }
    assert_eq!(statement.discrepancies(), []);
    (book.present(Timestamp(0)), statement.to_json(&View::default()))
}

macro_rules! suite {
    ($($test:ident),* $(,)?) => {
        mod sled {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() { super::$test(super::Place::sled()).await; })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() { super::$test(super::Place::postgres()).await; })*
        }
    };
}

suite!(
    what_is_settled_is_found_now_and_after_a_restart,
    a_dropped_hold_is_unknown_and_one_under_way_at_the_end_too,
    a_late_answer_settles_a_forfeited_hold,
    an_answer_to_something_else_is_not_recorded,
    hits_are_counted_a_second_later,
    what_is_forgotten_is_a_miss_and_its_money_stays,
    records_are_read_beside_whoever_writes,
    whoever_stops_waiting_for_a_hold_gives_it_back,
    many_at_once_hold_what_the_budget_allows,
    seeded_histories_add_up,
);
