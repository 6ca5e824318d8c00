//! Two processes at one store, played by two connections.

use std::sync::Arc;

use crate::entry::{Cause, Origin, Tally};
use crate::money::Amount;
use crate::store::open::{OpenStore, open_store};
use crate::store::samples::{calls, claim, clock, key, price, settlement};
use crate::store::url::StoreUrl;
use crate::store::{ReserveError, StoreError};

async fn open(folder: &std::path::Path) -> OpenStore {
    open_store(&StoreUrl::Sled(folder.to_owned()), clock(), "0.1.0").await.unwrap()
}

#[tokio::test]
async fn a_client_does_everything_that_the_owner_does() {
    let folder = tempfile::tempdir().unwrap();
    let owner = open(folder.path()).await;
    let client = open(folder.path()).await;
    assert!(owner.is_owner() && !client.is_owner());
    let store = &client.store;
    store.price(price()).await.unwrap();
    store.limit(calls(3), Origin::Command).await.unwrap();
    let reservation = store.reserve(claim(&["a"])).await.unwrap();
    let bought = store.settle(reservation, settlement(&["a"])).await.unwrap();
    assert_eq!(owner.store.find(&[key("a")]).await.unwrap(), [Some(Arc::clone(&bought[0]))]);
    let keys: Vec<_> = std::iter::repeat_n([key("a"), key("b")], 100).flatten().collect();
    let found = store.find(&keys).await.unwrap();
    assert_eq!(found.iter().flatten().count(), 100);
    assert!(matches!(store.reserve(claim(&["a"])).await, Err(ReserveError::Known(_))));
    let reservation = store.reserve(claim(&["b"])).await.unwrap();
    assert!(matches!(owner.store.reserve(claim(&["b"])).await, Err(ReserveError::InFlight(_))));
    store.release(reservation, Cause::NotConnected).await.unwrap();
    let reservation = store.reserve(claim(&["b"])).await.unwrap();
    let hold = reservation.hold();
    let doubt = store.forfeit(reservation, Cause::TimedOut, bytes::Bytes::new()).await.unwrap();
    store.settle_late(doubt, settlement(&["b"])).await.unwrap();
    assert!(matches!(store.resolve(hold, true, "late".into()).await, Err(StoreError::Contradiction(_))));
    let reservation = store.reserve(claim(&["c"])).await.unwrap();
    assert!(matches!(owner.store.reserve(claim(&["d"])).await, Err(ReserveError::Refused(_))));
    store.settle(reservation, settlement(&["c"])).await.unwrap();
    store.forget(key("c"), "asked to".into()).await.unwrap();
    assert_eq!(owner.store.find(&[key("c")]).await.unwrap(), [None]);
    let who = claim(&["a"]).exchange.who;
    let mut changes = store.changes();
    store.tally(Tally { who, model: "m".into(), known: 1, followed: 0, saved: Amount::ZERO, refused: 0 });
    while store.present().await.unwrap().known == 0 {
        changes.changed().await.unwrap();
    }
    let present = store.present().await.unwrap();
    assert_eq!(present, owner.store.present().await.unwrap());
    assert_eq!(present.total.settled.calls, 3);
    owner.close().unwrap();
}

#[tokio::test]
async fn a_connection_that_goes_away_forfeits_its_holds() {
    let folder = tempfile::tempdir().unwrap();
    let owner = open(folder.path()).await;
    owner.store.limit(calls(9), Origin::Config).await.unwrap();
    let mut changes = owner.store.changes();
    let client = open(folder.path()).await;
    let reservation = client.store.reserve(claim(&["a"])).await.unwrap();
    drop(client.store.reserve(claim(&["b"])).await.unwrap());
    while owner.store.present().await.unwrap().total.unknown.calls < 1 {
        changes.changed().await.unwrap();
    }
    drop(client);
    while owner.store.present().await.unwrap().total.unknown.calls < 2 {
        changes.changed().await.unwrap();
    }
    assert_eq!(owner.store.present().await.unwrap().total.reserved, Amount::ZERO);
    drop(reservation);
}

#[tokio::test]
async fn whoever_stops_waiting_for_a_hold_gives_it_back() {
    let folder = tempfile::tempdir().unwrap();
    let owner = open(folder.path()).await;
    owner.store.limit(calls(9), Origin::Config).await.unwrap();
    let client = open(folder.path()).await;
    for store in [&owner.store, &client.store] {
        let mut changes = owner.store.changes();
        loop {
            changes.mark_unchanged();
            let mut reserving = store.reserve(claim(&["a"]));
            match futures::poll!(&mut reserving) {
                std::task::Poll::Pending => break,
                // The disk was faster than this test: once more.
                std::task::Poll::Ready(given) => {
                    store.release(given.unwrap(), Cause::Abandoned).await.unwrap();
                }
            }
        }
        let numbers = || async { owner.store.present().await.unwrap().open.len() };
        changes.changed().await.unwrap();
        while numbers().await > 0 {
            changes.changed().await.unwrap();
        }
        assert_eq!(owner.store.present().await.unwrap().total, crate::Standing::default());
    }
}

#[tokio::test]
async fn a_client_of_an_owner_that_closed_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let owner = open(folder.path()).await;
    let client = open(folder.path()).await;
    owner.close().unwrap();
    let mut present = client.store.present().await;
    while present.is_ok() {
        present = client.store.present().await;
    }
    assert!(matches!(present, Err(StoreError::Gone(_))), "{present:?}");
    assert!(open(folder.path()).await.is_owner());
}
