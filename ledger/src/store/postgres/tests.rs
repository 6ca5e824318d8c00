//! Several replicas over one PostgreSQL: played by several stores of one process, over real servers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sqlx::{Connection as _, PgConnection};

use crate::entry::{Cause, Fact, Origin};
use crate::store::open::open_store;
use crate::store::read::read_entries;
use crate::store::samples::{calls, claim, clock, key, settlement};
use crate::store::suite::cluster::Cluster;
use crate::store::suite::{Place, buy, until};
use crate::store::url::StoreUrl;
use crate::store::{ReserveError, Settlement, Store, StoreError};

fn shared() -> (&'static Cluster, Place) {
    (Cluster::shared(), Place::postgres())
}

fn sql(cluster: &Cluster, place: &Place, sql: &str) -> String {
    let StoreUrl::Postgres(url) = &place.url else { panic!("{} is no database", place.url) };
    cluster.sql(url.secret(), sql)
}

fn at(cluster: &Cluster) -> StoreUrl {
    StoreUrl::parse(&cluster.database(), "".as_ref()).unwrap()
}

/// Reads the whole record; the thread that reads is not the test's.
async fn facts(url: &StoreUrl) -> Result<Vec<Fact>, String> {
    let url = url.clone();
    let read = move || {
        let entries = read_entries(&url).map_err(|error| error.to_string())?;
        entries.map(|read| read.map(|read| read.entry.fact).map_err(|error| error.to_string())).collect()
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_share_budget_keys_and_answers() {
    let (_, place) = shared();
    let (one, two) = (place.prepared(2).await, place.open().await);
    let reservation = one.store.reserve(claim(&["a"])).await.unwrap();
    assert!(matches!(two.store.reserve(claim(&["a"])).await, Err(ReserveError::InFlight(_))));
    let other = two.store.reserve(claim(&["b"])).await.unwrap();
    assert!(matches!(one.store.reserve(claim(&["c"])).await, Err(ReserveError::Refused(_))));
    let mut changes = two.store.changes();
    changes.mark_unchanged();
    let bought = one.store.settle(reservation, settlement(&["a"])).await.unwrap();
    changes.changed().await.unwrap();
    assert!(matches!(two.store.reserve(claim(&["a"])).await, Err(ReserveError::Known(_))));
    assert_eq!(two.store.find(&[key("a")]).await.unwrap(), [Some(Arc::clone(&bought[0]))]);
    two.store.release(other, Cause::NotConnected).await.unwrap();
    until(&one.store, |present| present.total.reserved.calls == 0).await;
    // An answer that is bought again on one replica is not served stale by the other.
    let mut again = claim(&["a"]);
    again.exchange.refresh = true;
    let reservation = one.store.reserve(again).await.unwrap();
    let newer = one.store.settle(reservation, settlement(&["a"])).await.unwrap();
    assert_ne!(newer[0].at, bought[0].at);
    until(&two.store, |present| present.total.settled.calls == 2).await;
    assert_eq!(two.store.find(&[key("a")]).await.unwrap(), [Some(Arc::clone(&newer[0]))]);
    // Many keys of one exchange, and of several.
    two.store.limit(calls(9), Origin::Command).await.unwrap();
    let names = ["d", "e", "f"];
    let many = buy(&two.store, &names).await;
    let keys = [key("f"), key("a"), key("none"), key("d")];
    let found = one.store.find(&keys).await.unwrap();
    assert_eq!(
        found,
        [Some(Arc::clone(&many[2])), Some(Arc::clone(&newer[0])), None, Some(Arc::clone(&many[0]))]
    );
    one.close().unwrap();
    two.close().unwrap();
    let heads = tokio::task::spawn_blocking(move || {
        let mut entries = read_entries(&place.url).unwrap();
        assert!(!entries.is_owned());
        assert!(entries.by_ref().all(|read| read.is_ok()));
        entries.heads().into_iter().map(|head| (head.writer, head.entries)).collect::<Vec<_>>()
    });
    assert_eq!(heads.await.unwrap(), [("1".to_owned(), 8), ("2".to_owned(), 7)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_holds_of_a_replica_that_dies_become_unknown() {
    let (cluster, place) = shared();
    let (one, two) = (place.prepared(9).await, place.open().await);
    let reservation = one.store.reserve(claim(&["a"])).await.unwrap();
    std::mem::forget(reservation);
    drop(one);
    // As if that had been a while ago; the server must have been there to hear a heart beat as well.
    sql(cluster, &place, "UPDATE tuition.writer SET heartbeat = heartbeat - interval '1 hour' WHERE id = 1");
    let present = until(&two.store, |present| present.total.unknown.calls == 1).await;
    assert_eq!(present.open[0].unknown, Some(Cause::Crashed));
    // The key may be asked for again, under a hold of its own; both count.
    buy(&two.store, &["a"]).await;
    let total = two.store.present().await.unwrap().total;
    assert_eq!((total.settled.calls, total.unknown.calls), (1, 1));
    two.close().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_taken_for_dead_goes_on_as_another_writer() {
    let (cluster, place) = shared();
    let (one, two) = (place.prepared(9).await, place.open().await);
    let mut held = Vec::new();
    for name in ["a", "b", "c"] {
        held.push(one.store.reserve(claim(&[name])).await.unwrap());
    }
    let holds: Vec<_> = held.iter().map(crate::Reservation::hold).collect();
    let [late, lost, unbilled] = <[_; 3]>::try_from(held).unwrap();
    // A sweep of the other, while this one is paused: its holds are unknown and its writer has ended.
    let paused = "UPDATE tuition.writer SET ended = true WHERE id = 1";
    sql(cluster, &place, paused);
    for hold in holds {
        let change = super::Change::Forfeit(hold, Cause::Crashed, vec![]);
        let (give, given) = tokio::sync::oneshot::channel();
        let StoreUrl::Postgres(url) = &place.url else { panic!() };
        let third = super::Postgres::open(url, "0.1.0").await.unwrap();
        third.store.asks.send(super::Ask::Change { change, give: Some(give) }).ok().unwrap();
        given.await.unwrap().unwrap();
        third.replica.close().unwrap();
    }
    // Back again: its answer settles the unknown hold, what it gives up is unknown already, and what the teacher surely
    // did not bill is free.
    one.store.settle(late, settlement(&["a"])).await.unwrap();
    one.store.forfeit(lost, Cause::TimedOut, Bytes::new()).await.unwrap();
    one.store.release(unbilled, Cause::Status(503)).await.unwrap();
    let total = until(&two.store, |present| present.total.settled.calls == 1).await.total;
    assert_eq!((total.reserved.calls, total.unknown.calls), (0, 1));
    assert_eq!(sql(cluster, &place, "SELECT count(*) FROM tuition.writer WHERE NOT ended"), "2");
    one.close().unwrap();
    two.close().unwrap();
    assert!(facts(&place.url).await.is_ok());
}

/// Every commit waits until nobody holds the gate.
const GATE: &str = "
    CREATE FUNCTION tuition.gate() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER gate AFTER INSERT ON tuition.entry DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION tuition.gate()";
/// Whoever is answered too early is answered by then.
const EARLY: Duration = Duration::from_millis(200);

/// What `asked` comes to, and that it comes to nothing while its commit has begun and cannot end.
async fn gated<T: Send + 'static>(
    gate: &mut PgConnection,
    asked: impl Future<Output = T> + Send + 'static,
) -> T {
    sqlx::query("SELECT pg_advisory_lock(7)").execute(&mut *gate).await.unwrap();
    let mut asking = tokio::spawn(asked);
    let waiting = "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database
        WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()";
    while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut *gate).await.unwrap() == 0 {
        assert!(!asking.is_finished(), "it was answered before its commit ended");
    }
    assert!(
        tokio::time::timeout(EARLY, &mut asking).await.is_err(),
        "it was answered before its commit ended"
    );
    sqlx::query("SELECT pg_advisory_unlock(7)").execute(gate).await.unwrap();
    asking.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_answered_before_the_commit() {
    let (cluster, place) = shared();
    let opened = place.prepared(9).await;
    sql(cluster, &place, GATE);
    let StoreUrl::Postgres(url) = &place.url else { panic!() };
    let mut gate = PgConnection::connect(url.secret()).await.unwrap();
    let store = &opened.store;
    let reserve = |name: &'static str| {
        let store = Arc::clone(store);
        async move { store.reserve(claim(&[name])).await.unwrap() }
    };
    let reservation = gated(&mut gate, reserve("a")).await;
    let settle = {
        let store = Arc::clone(store);
        async move { store.settle(reservation, settlement(&["a"])).await.unwrap() }
    };
    let bought = gated(&mut gate, settle).await;
    assert_eq!(store.find(&[key("a")]).await.unwrap(), [Some(Arc::clone(&bought[0]))]);
    let unbilled = gated(&mut gate, reserve("b")).await;
    let release = {
        let store = Arc::clone(store);
        async move { store.release(unbilled, Cause::NotConnected).await.unwrap() }
    };
    gated(&mut gate, release).await;
    opened.close().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_is_away_known_answers_are_served_and_nothing_is_bought() {
    let cluster = Cluster::start();
    let url = at(&cluster);
    let opened = open_store(&url, clock(), "0.1.0").await.unwrap();
    let store = &opened.store;
    store.limit(calls(9), Origin::Config).await.unwrap();
    let bought = buy(store, &["a"]).await;
    let paid = store.reserve(claim(&["b"])).await.unwrap();
    cluster.stop();
    assert_eq!(store.find(&[key("a")]).await.unwrap(), [Some(Arc::clone(&bought[0]))]);
    assert!(matches!(store.find(&[key("z")]).await, Err(StoreError::Unreadable(_))));
    let refused = store.reserve(claim(&["c"])).await;
    assert!(matches!(refused, Err(ReserveError::Store(StoreError::Unwritable(_)))), "{refused:?}");
    let present = store.present().await.unwrap();
    assert!(present.unwritable.is_some_and(|why| why.starts_with("the database does not answer")));
    assert_eq!((present.total.settled.calls, present.total.reserved.calls), (1, 1));
    // The answer to a paid call waits for the database, and is recorded once it is back.
    let answer = settlement(&["b"]);
    let waiting = {
        let store = Arc::clone(store);
        tokio::spawn(async move { store.settle(paid, answer).await })
    };
    cluster.start_again();
    waiting.await.unwrap().unwrap();
    buy(store, &["c"]).await;
    let present = until(store, |present| present.total.settled.calls == 3).await;
    assert_eq!((present.total.reserved.calls, present.total.unknown.calls, present.unwritable), (0, 0, None));
    opened.close().unwrap();
    // A server that may forget is trusted with nothing.
    let StoreUrl::Postgres(secret) = &url else { panic!() };
    cluster.sql(secret.secret(), "ALTER SYSTEM SET fsync = off");
    cluster.sql(secret.secret(), "SELECT pg_reload_conf()");
    let opened = loop {
        match open_store(&url, clock(), "0.1.0").await {
            // The server has not read it yet.
            Ok(opened) => opened.close().unwrap(),
            Err(error) => break error.to_string(),
        }
    };
    assert!(opened.contains("its setting `fsync` is `off`"), "{opened}");
}

/// Buys names one after the other for ever; says what was acknowledged.
async fn load(store: Arc<dyn Store>, who: usize, stop: tokio::sync::watch::Receiver<bool>) -> Vec<String> {
    let mut acknowledged = Vec::new();
    for number in 0.. {
        if *stop.borrow() {
            break;
        }
        let name = format!("{who}-{number}");
        match store.reserve(claim(&[&name])).await {
            Ok(reservation) => {
                let answer: Settlement = settlement(&[&name]);
                if store.settle(reservation, answer).await.is_ok() {
                    acknowledged.push(name);
                }
            }
            Err(ReserveError::Store(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_crashes_of_the_server() {
    let cluster = Cluster::start();
    let url = at(&cluster);
    let one = open_store(&url, clock(), "0.1.0").await.unwrap();
    one.store.limit(calls(1_000_000), Origin::Config).await.unwrap();
    let two = open_store(&url, clock(), "0.1.0").await.unwrap();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let loads: Vec<_> = (0..16)
        .map(|who| load(Arc::clone([&one.store, &two.store][who % 2]), who, stopped.clone()))
        .map(tokio::spawn)
        .collect();
    for round in 0..4 {
        let mut changes = one.store.changes();
        let before = *changes.borrow();
        // In the middle of the load, whatever it is doing.
        let moved = changes.wait_for(|now| *now > before + 40 + round * 17);
        tokio::time::timeout(Duration::from_secs(30), moved).await.unwrap().unwrap();
        cluster.crash();
        cluster.start_again();
    }
    stop.send(true).unwrap();
    let mut acknowledged = Vec::new();
    for load in loads {
        acknowledged.extend(load.await.unwrap());
    }
    assert!(acknowledged.len() > 100, "{}", acknowledged.len());
    let keys: Vec<_> = acknowledged.iter().map(|name| key(name)).collect();
    let third = open_store(&url, clock(), "0.1.0").await.unwrap();
    assert!(third.store.find(&keys).await.unwrap().iter().all(Option::is_some));
    let total = until(&third.store, |present| present.total.reserved.calls == 0).await.total;
    assert_eq!((total.settled.calls, total.unknown.calls), (acknowledged.len() as u64, 0));
    for opened in [one, two, third] {
        opened.close().unwrap();
    }
    assert!(facts(&url).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_to_the_tables_behind_the_store_is_found_and_named() {
    let cluster = Cluster::shared();
    for (done, expected) in [
        (
            "UPDATE tuition.entry SET payload = replace(payload, '10', '11') WHERE seq = 3",
            "entry 3 of the record is damaged: it does not continue the chain of writer 1",
        ),
        (
            "DELETE FROM tuition.answer; DELETE FROM tuition.blob; DELETE FROM tuition.entry WHERE seq = 5",
            "entry 5 of the record is damaged: entry 6 stands in its place",
        ),
        (
            "DELETE FROM tuition.entry WHERE seq = 6",
            "entry 6 of the record is damaged: it is missing, though the record says that it has 6 entries",
        ),
        (
            "DELETE FROM tuition.entry WHERE seq = 6; UPDATE tuition.head SET seq = 5",
            "entry 6 of the record is damaged: writer 1 has 5 entries, and says that it has 6",
        ),
        (
            "UPDATE tuition.blob SET bytes = '\\x00' WHERE seq = 5 AND part = 2",
            "entry 5 of the record is damaged: a blob's header is cut off",
        ),
    ] {
        let place = Place::postgres();
        let opened = place.prepared(10).await;
        buy(&opened.store, &["a"]).await;
        opened.close().unwrap();
        sql(cluster, &place, done);
        assert_eq!(facts(&place.url).await, Err(expected.to_owned()), "{done}");
    }
    let place = Place::postgres();
    assert!(facts(&place.url).await.unwrap_err().starts_with("there is no store `postgres://"));
    place.open().await.close().unwrap();
    let newer = "INSERT INTO tuition.migrations VALUES (99, 'later', now(), true, '', 0)";
    sql(cluster, &place, newer);
    let found = facts(&place.url).await.unwrap_err();
    assert!(found.contains("its tables have version 99; this program knows versions up to 1"), "{found}");
    let opened = open_store(&place.url, clock(), "0.1.0").await;
    assert!(opened.is_err_and(|error| error.to_string().contains("version 99")));
}
