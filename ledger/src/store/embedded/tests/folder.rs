//! The store on a real file system: what it keeps, what may be deleted or garbled, who owns it.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::super::{Embedded, OpenError, Opened, read_entries};
use crate::answer::Record;
use crate::entry::Origin;
use crate::journal::JournalError;
use crate::money::Amount;
use crate::store::samples::{calls, claim, clock, key, price, settlement};
use crate::store::{ReserveError, Store, StoreError};

fn open(folder: &Path) -> Opened {
    Embedded::open(folder, clock(), "0.1.0").unwrap()
}

async fn prepared(folder: &Path, limit: u64) -> Opened {
    let opened = open(folder);
    opened.store.price(price()).await.unwrap();
    opened.store.limit(calls(limit), Origin::Config).await.unwrap();
    opened
}

async fn buy(store: &Embedded, names: &[&str]) -> Vec<Arc<Record>> {
    let reservation = store.reserve(claim(names)).await.unwrap();
    store.settle(reservation, settlement(names)).await.unwrap()
}

fn facts(folder: &Path) -> Vec<&'static str> {
    read_entries(folder).unwrap().map(|read| read.unwrap().entry.fact.name()).collect()
}

/// Everything that `names` were answered with is found, equal to `expected`.
async fn check_known(store: &Embedded, names: &[&str], expected: &[Arc<Record>]) {
    let keys: Vec<_> = names.iter().map(|name| key(name)).collect();
    let found = store.find(&keys).await.unwrap();
    let found: Vec<_> = found.into_iter().map(Option::unwrap).collect();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn what_is_settled_is_found_now_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let opened = prepared(folder.path(), 10).await;
    assert_eq!(opened.recovery.torn, None);
    let mut bought = buy(&opened.store, &["a", "b"]).await;
    bought.extend(buy(&opened.store, &["c"]).await);
    assert_eq!(bought[0].share.calls, 1);
    assert!(bought[0].priced);
    check_known(&opened.store, &["a", "b", "c"], &bought).await;
    assert_eq!(opened.store.find(&[key("d")]).await.unwrap(), [None]);
    assert!(matches!(
        opened.store.reserve(claim(&["b", "d"])).await,
        Err(ReserveError::Known(keys)) if keys == [key("b")]
    ));
    let before = opened.store.present().await.unwrap();
    assert_eq!(before.total.settled.calls, 3);
    opened.owner.close().unwrap();
    let again = open(folder.path());
    assert!(again.recovery.clean);
    assert_eq!(again.store.present().await.unwrap(), before);
    check_known(&again.store, &["a", "b", "c"], &bought).await;
    again.owner.close().unwrap();
    let expected = [
        "Opened", "Priced", "Limited", "Reserved", "Settled", "Reserved", "Settled", "Closed", "Opened",
        "Closed",
    ];
    assert_eq!(facts(folder.path()), expected);
}

#[tokio::test]
async fn everything_but_the_journal_may_be_deleted_or_garbled() {
    let folder = tempfile::tempdir().unwrap();
    let opened = prepared(folder.path(), 10).await;
    let bought = buy(&opened.store, &["a", "b"]).await;
    let present = opened.store.present().await.unwrap();
    opened.owner.close().unwrap();
    let index = folder.path().join("index");
    let damages: [(&str, &dyn Fn()); 6] = [
        ("nothing", &|| ()),
        ("the index is deleted", &|| fs::remove_dir_all(&index).unwrap()),
        ("the index is no folder", &|| {
            fs::remove_dir_all(&index).unwrap();
            fs::write(&index, b"?").unwrap();
        }),
        ("the index is garbled", &|| {
            for file in fs::read_dir(&index).unwrap().map(Result::unwrap).filter(|file| file.path().is_file())
            {
                let mut bytes = fs::read(file.path()).unwrap();
                bytes.iter_mut().for_each(|byte| *byte = byte.wrapping_mul(31) ^ 0x5a);
                fs::write(file.path(), bytes).unwrap();
            }
        }),
        ("the checkpoint is deleted", &|| fs::remove_file(folder.path().join("checkpoint")).unwrap()),
        ("the checkpoint is garbled", &|| {
            let mut bytes = fs::read(folder.path().join("checkpoint")).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(folder.path().join("checkpoint"), bytes).unwrap();
        }),
    ];
    for (what, damage) in damages {
        damage();
        let opened = open(folder.path());
        assert!(opened.recovery.clean, "{what}");
        check_known(&opened.store, &["a", "b"], &bought).await;
        assert_eq!(opened.store.present().await.unwrap(), present, "{what}");
        opened.owner.close().unwrap();
        let opened = open(folder.path());
        check_known(&opened.store, &["a", "b"], &bought).await;
        opened.owner.close().unwrap();
    }
}

#[tokio::test]
async fn an_index_that_somebody_else_has_locked_is_left_to_them() {
    let folder = tempfile::tempdir().unwrap();
    let opened = prepared(folder.path(), 10).await;
    let bought = buy(&opened.store, &["a"]).await;
    opened.owner.close().unwrap();
    let leftover = sled::open(folder.path().join("index")).unwrap();
    let opened = open(folder.path());
    check_known(&opened.store, &["a"], &bought).await;
    opened.owner.close().unwrap();
    drop(leftover);
}

#[tokio::test]
async fn a_second_process_is_told_who_owns_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let opened = open(folder.path());
    let second = Embedded::open(folder.path(), clock(), "0.1.0");
    assert!(matches!(second, Err(OpenError::Owned(path)) if path == folder.path()));
    drop(opened.owner);
    open(folder.path()).owner.close().unwrap();
}

#[tokio::test]
async fn a_dropped_hold_is_forfeited_and_one_under_way_at_the_end_too() {
    let folder = tempfile::tempdir().unwrap();
    let opened = prepared(folder.path(), 10).await;
    let mut changes = opened.store.changes();
    drop(opened.store.reserve(claim(&["a"])).await.unwrap());
    let unknown = |present: &crate::Present| present.total.unknown.calls;
    while unknown(&opened.store.present().await.unwrap()) == 0 {
        changes.changed().await.unwrap();
    }
    let open_hold = opened.store.reserve(claim(&["b"])).await.unwrap();
    std::mem::forget(open_hold);
    drop(opened.owner);
    let again = open(folder.path());
    assert!(!again.recovery.clean);
    assert_eq!(again.recovery.crashed.len(), 1);
    let present = again.store.present().await.unwrap();
    assert_eq!((unknown(&present), present.total.reserved), (2, Amount::ZERO));
    again.store.resolve(again.recovery.crashed[0], false, "not on the bill".into()).await.unwrap();
    let twice = again.store.resolve(again.recovery.crashed[0], false, String::new()).await;
    assert!(matches!(twice, Err(StoreError::Contradiction(_))));
    assert_eq!(unknown(&again.store.present().await.unwrap()), 1);
}

#[tokio::test]
async fn a_cut_journal_is_damage_where_somebody_saw_more() {
    let folder = tempfile::tempdir().unwrap();
    let opened = prepared(folder.path(), 10).await;
    buy(&opened.store, &["a"]).await;
    opened.owner.close().unwrap();
    let journal = folder.path().join("journal");
    let whole = fs::read(&journal).unwrap();
    let last = read_entries(folder.path()).unwrap().last().unwrap().unwrap();
    for length in [last.offset, last.offset + 5, whole.len() as u64 - 1] {
        fs::write(&journal, &whole[..usize::try_from(length).unwrap()]).unwrap();
        let opened = Embedded::open(folder.path(), clock(), "0.1.0").map(|_| ());
        assert!(
            matches!(opened, Err(OpenError::Journal(JournalError::Corrupt { number, offset, .. }))
                if (number, offset) == (last.number, last.offset)),
            "{opened:?}"
        );
        let read = read_entries(folder.path()).unwrap().last().unwrap();
        assert!(matches!(read, Err(JournalError::Corrupt { .. })), "{read:?}");
    }
    fs::remove_file(&journal).unwrap();
    let opened = Embedded::open(folder.path(), clock(), "0.1.0").map(|_| ());
    assert!(matches!(opened, Err(OpenError::JournalMissing { .. })), "{opened:?}");
    let mut newer = whole.clone();
    newer[8] = 2;
    fs::write(&journal, newer).unwrap();
    let opened = Embedded::open(folder.path(), clock(), "0.1.0").map(|_| ());
    assert!(matches!(opened, Err(OpenError::Journal(JournalError::NewerFormat { found: 2 }))), "{opened:?}");
}
