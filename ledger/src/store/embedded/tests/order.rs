//! The order of things: durable first, told and shown after; and a full disk, which refuses before anything is applied.

use std::path::Path;
use std::sync::{Arc, Mutex};

use super::super::Embedded;
use super::super::commit::Committer;
use super::disk::SimulatedDisk;
use super::histories::open;
use crate::entry::Origin;
use crate::store::samples::{calls, claim, key, settlement};
use crate::store::{ReserveError, Store, StoreError};

fn store(disk: &Arc<SimulatedDisk>) -> (Arc<Embedded>, Committer) {
    let (core, committer, _) = open(disk);
    (Embedded::over(core, Path::new("simulated")), committer)
}

/// Runs `future` with a commit each time it waits.
async fn committed<F: Future>(committer: &mut Committer, future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    loop {
        if let std::task::Poll::Ready(output) = futures::poll!(&mut future) {
            return output;
        }
        committer.commit();
    }
}

#[tokio::test]
async fn a_hold_is_synced_before_it_is_given_and_an_answer_before_it_is_shown() {
    let disk = SimulatedDisk::new();
    let (store, mut committer) = store(&disk);
    committed(&mut committer, store.limit(calls(5), Origin::Config)).await.unwrap();
    let trace = Arc::new(Mutex::new(Vec::new()));
    let (watched, seen) = (Arc::downgrade(&store), Arc::clone(&trace));
    let written = Arc::downgrade(&disk);
    disk.before_sync(move || {
        let (store, disk) = (watched.upgrade().unwrap(), written.upgrade().unwrap());
        let known = store.find_now(&[key("a")]).unwrap()[0].is_some();
        seen.lock().unwrap().push(format!("sync, known: {known}, all synced: {}", disk.is_synced()));
    });
    let note = |what: &str| trace.lock().unwrap().push(what.to_owned());

    let mut reserving = store.reserve(claim(&["a"]));
    assert!(futures::poll!(&mut reserving).is_pending());
    note("asked for a hold");
    committer.commit();
    let reservation = reserving.await.unwrap();
    note("given, bytes may be sent");
    assert!(disk.is_synced());
    let mut settling = store.settle(reservation, settlement(&["a"]));
    assert!(futures::poll!(&mut settling).is_pending());
    note("answered");
    assert_eq!(store.find_now(&[key("a")]).unwrap(), [None]);
    committer.commit();
    settling.await.unwrap();
    note("settled, the reply may be completed");
    assert!(disk.is_synced());
    assert!(store.find_now(&[key("a")]).unwrap()[0].is_some());
    assert_eq!(
        *trace.lock().unwrap(),
        [
            "asked for a hold",
            "sync, known: false, all synced: false",
            "given, bytes may be sent",
            "answered",
            "sync, known: false, all synced: false",
            "settled, the reply may be completed",
        ]
    );
}

#[tokio::test]
async fn a_key_that_is_just_being_made_durable_is_known_only_then() {
    let disk = SimulatedDisk::new();
    let (store, mut committer) = store(&disk);
    committed(&mut committer, store.limit(calls(5), Origin::Config)).await.unwrap();
    let reservation = committed(&mut committer, store.reserve(claim(&["a"]))).await.unwrap();
    let mut settling = store.settle(reservation, settlement(&["a"]));
    assert!(futures::poll!(&mut settling).is_pending());
    let mut second = store.reserve(claim(&["a"]));
    assert!(futures::poll!(&mut second).is_pending());
    committer.commit();
    assert!(matches!(second.await, Err(ReserveError::Known(_))));
    assert!(store.find(&[key("a")]).await.unwrap()[0].is_some());
}

#[tokio::test]
async fn a_full_disk_serves_what_is_known_and_buys_nothing_until_it_has_room() {
    let disk = SimulatedDisk::new();
    let (store, mut committer) = store(&disk);
    committed(&mut committer, store.limit(calls(500), Origin::Config)).await.unwrap();
    let reservation = committed(&mut committer, store.reserve(claim(&["a"]))).await.unwrap();
    committed(&mut committer, store.settle(reservation, settlement(&["a"]))).await.unwrap();
    let open = committed(&mut committer, store.reserve(claim(&["b"]))).await.unwrap();
    // Full: nothing more than was set aside.
    disk.limit(Some(disk.aside()));
    let mut holds = Vec::new();
    let refused = loop {
        let name = format!("x{}", holds.len());
        match committed(&mut committer, store.reserve(claim(&[&name]))).await {
            Ok(reservation) => holds.push((name, reservation)),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, ReserveError::Store(StoreError::Unwritable(_))), "{refused}");
    let present = store.present().await.unwrap();
    assert!(present.unwritable.is_some());
    assert_eq!(present.open.len(), holds.len() + 1, "the refused hold left nothing behind");
    assert!(store.find(&[key("a")]).await.unwrap()[0].is_some());
    // Every answer that was asked for before can still be written, and limits can be set.
    committed(&mut committer, store.settle(open, settlement(&["b"]))).await.unwrap();
    committed(&mut committer, store.limit(calls(400), Origin::Command)).await.unwrap();
    for (name, reservation) in holds {
        committed(&mut committer, store.settle(reservation, settlement(&[&name]))).await.unwrap();
    }
    disk.limit(None);
    let reservation = committed(&mut committer, store.reserve(claim(&["y"]))).await.unwrap();
    committed(&mut committer, store.settle(reservation, settlement(&["y"]))).await.unwrap();
    assert_eq!(store.present().await.unwrap().unwritable, None);
}
