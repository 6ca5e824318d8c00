//! The way back: what is kept, what is set aside, what is said, and what an interrupted repair leaves.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::super::repair::repair_until;
use super::super::{Damage, Embedded, OpenError, examine, read_entries, repair};
use crate::entry::Origin;
use crate::journal::{FILE_HEADER_BYTES, JournalError};
use crate::store::Store;
use crate::store::samples::{calls, claim, clock, key, price, settlement};

/// A store of three answers and two calls under way at its end; where each entry begins.
async fn store(folder: &Path) -> Vec<u64> {
    let opened = Embedded::open(folder, clock(), "0.1.0").unwrap();
    let store = &opened.store;
    store.price(price()).await.unwrap();
    store.limit(calls(10), Origin::Config).await.unwrap();
    for name in ["a", "b", "c"] {
        let reservation = store.reserve(claim(&[name])).await.unwrap();
        store.settle(reservation, settlement(&[name])).await.unwrap();
    }
    for name in ["d", "e"] {
        std::mem::forget(store.reserve(claim(&[name])).await.unwrap());
    }
    store.limit(calls(8), Origin::Command).await.unwrap();
    drop(opened.owner);
    read_entries(folder).unwrap().map(|read| read.unwrap().offset).collect()
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

fn flip(folder: &Path, offset: u64) {
    let path = folder.join("journal");
    let mut bytes = fs::read(&path).unwrap();
    bytes[usize::try_from(offset).unwrap()] ^= 0x40;
    fs::write(path, bytes).unwrap();
}

/// Copies a store; its index is not needed to tell what opens.
fn copied(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for (name, bytes) in files(folder) {
        fs::write(copy.path().join(name), bytes).unwrap();
    }
    copy
}

#[tokio::test]
async fn the_valid_prefix_is_kept_the_rest_set_aside_and_said_in_figures() {
    let folder = tempfile::tempdir().unwrap();
    let offsets = store(folder.path()).await;
    let whole = fs::read(folder.path().join("journal")).unwrap();
    // Entries: opened, price, limit, then a hold and an answer for each of a, b, c; the answer to b is entry 7.
    flip(folder.path(), offsets[6] + 100);
    let before = files(folder.path());
    let damage = examine(folder.path()).unwrap().unwrap();
    assert_eq!(files(folder.path()), before, "looking changed something");
    let Damage { entry, offset, kept_entries, rest_bytes, gone_bytes, .. } = damage;
    assert_eq!((entry, offset, kept_entries), (7, offsets[6], 6));
    assert_eq!((rest_bytes, gone_bytes), (whole.len() as u64 - offsets[6], 0));
    let later = &damage.later;
    assert_eq!((later.entries, later.last, later.unreadable), (5, Some(12), 1));
    // c was answered; it, d and e count in what is lost, b does not: its hold is kept.
    assert_eq!((later.answers, later.uncounted.calls, &later.budgets[..]), (1, 3, &["all".to_owned()][..]));
    assert_eq!(damage.under_way.iter().map(|open| open.hold.0).collect::<Vec<_>>(), [2]);
    let opened = Embedded::open(folder.path(), clock(), "0.1.0").map(|_| ());
    assert!(matches!(opened, Err(OpenError::Journal(JournalError::Corrupt { number: 7, .. }))), "{opened:?}");

    let repaired = repair(folder.path()).unwrap().unwrap();
    assert_eq!(repaired.damage.later, damage.later);
    let aside = folder.path().join(format!("journal.damaged-{}", offsets[6]));
    assert!(repaired.aside.contains(&aside), "{:?}", repaired.aside);
    let mut joined = fs::read(folder.path().join("journal")).unwrap();
    assert_eq!(joined.len() as u64, offsets[6]);
    joined.extend(fs::read(aside).unwrap());
    assert_eq!(joined, before["journal"], "something is missing");
    assert!(!folder.path().join("index").exists() && !folder.path().join("checkpoint").exists());
    assert!(folder.path().join(format!("index.damaged-{}", offsets[6])).is_dir());

    assert_eq!(repair(folder.path()).unwrap(), None);
    let opened = Embedded::open(folder.path(), clock(), "0.1.0").unwrap();
    assert_eq!(opened.recovery.crashed.len(), 1);
    let present = opened.store.present().await.unwrap();
    assert_eq!((present.total.settled.calls, present.total.unknown.calls, present.answers), (1, 1, 1));
    let found = opened.store.find(&["a", "b"].map(key)).await.unwrap();
    assert_eq!(found.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false]);
    opened.owner.close().unwrap();
}

#[tokio::test]
async fn a_repair_that_was_interrupted_leaves_the_old_or_the_new_and_can_be_asked_for_again() {
    let folder = tempfile::tempdir().unwrap();
    let offsets = store(folder.path()).await;
    // Entry 5 is damaged, and only a checkpoint knows of the loss of the last entries.
    flip(folder.path(), offsets[4] + 80);
    let damaged = fs::read(folder.path().join("journal")).unwrap();
    let prefix = damaged[..usize::try_from(offsets[4]).unwrap()].to_vec();
    let mut interrupted = 0;
    for steps in 0.. {
        let copy = copied(folder.path());
        fs::create_dir(copy.path().join("index")).unwrap();
        fs::write(copy.path().join("checkpoint"), b"of another version").unwrap();
        let done = repair_until(copy.path(), steps);
        let journal = fs::read(copy.path().join("journal")).unwrap();
        match done {
            Err(error) => {
                assert!(error.to_string().contains("cannot be opened"), "{error}");
                interrupted += 1;
                assert_eq!(journal, damaged, "after {steps} steps");
                let opened = Embedded::open(copied(copy.path()).path(), clock(), "0.1.0").map(|_| ());
                assert!(opened.is_err(), "after {steps} steps");
                let repaired = repair(copy.path()).unwrap().unwrap();
                assert_eq!(repaired.damage.entry, 5);
            }
            Ok(repaired) => assert_eq!(repaired.unwrap().damage.entry, 5),
        }
        assert_eq!(fs::read(copy.path().join("journal")).unwrap(), prefix, "after {steps} steps");
        let aside: Vec<_> = files(copy.path()).into_keys().filter(|name| name.contains("damaged")).collect();
        assert_eq!(
            aside,
            [format!("checkpoint.damaged-{}", offsets[4]), format!("journal.damaged-{}", offsets[4])]
        );
        let opened = Embedded::open(copy.path(), clock(), "0.1.0").unwrap();
        assert_eq!(opened.store.present().await.unwrap().total.unknown.calls, 1);
        if steps >= interrupted {
            break;
        }
    }
    assert_eq!(interrupted, 5);
}

#[tokio::test]
async fn nothing_is_repaired_where_nothing_is_damaged_or_somebody_owns_it() {
    let folder = tempfile::tempdir().unwrap();
    let offsets = store(folder.path()).await;
    let path = folder.path().join("journal");
    let before = files(folder.path());
    assert_eq!(examine(folder.path()).unwrap(), None);
    assert_eq!(repair(folder.path()).unwrap(), None);
    assert_eq!(files(folder.path()), before);
    // A torn tail was never acknowledged: the next owner sets it aside by itself.
    let whole = before["journal"].clone();
    fs::write(&path, [&whole[..], b"half a frame"].concat()).unwrap();
    assert_eq!(repair(folder.path()).unwrap(), None);
    assert!(fs::read(&path).unwrap().ends_with(b"half a frame"));
    // Somebody owns it.
    fs::write(&path, &whole).unwrap();
    let opened = Embedded::open(folder.path(), clock(), "0.1.0").unwrap();
    let owned = repair(folder.path());
    assert!(matches!(owned, Err(OpenError::Owned(_))), "{owned:?}");
    opened.owner.close().unwrap();
    // A later version's journal, and something that is none, are left alone.
    let mut newer = whole.clone();
    newer[8] = 2;
    let crc = crc32fast::hash(&newer[..36]);
    newer[36..40].copy_from_slice(&crc.to_le_bytes());
    for other in [newer, b"a letter to somebody, long enough to be a journal".to_vec()] {
        fs::write(&path, &other).unwrap();
        assert!(matches!(repair(folder.path()), Err(OpenError::Journal(_))));
        assert_eq!(fs::read(&path).unwrap(), other);
    }
    fs::remove_file(&path).unwrap();
    assert!(matches!(repair(folder.path()), Err(OpenError::Io { .. })));
    drop(offsets);
}

#[tokio::test]
async fn entries_that_are_gone_from_the_end_are_given_up_where_somebody_saw_them() {
    for witness in ["checkpoint", "index"] {
        let folder = tempfile::tempdir().unwrap();
        let offsets = store(folder.path()).await;
        let path = folder.path().join("journal");
        Embedded::open(folder.path(), clock(), "0.1.0").unwrap().owner.close().unwrap();
        let length = fs::metadata(&path).unwrap().len();
        if witness == "index" {
            fs::remove_file(folder.path().join("checkpoint")).unwrap();
        }
        // The answer to c, entry 9, is the last thing that the index saw.
        let end = offsets[8];
        fs::File::options().write(true).open(&path).unwrap().set_len(end).unwrap();
        let repaired = repair(folder.path()).unwrap().unwrap();
        let Damage { entry, offset, rest_bytes, gone_bytes, ref why, .. } = repaired.damage;
        assert_eq!((entry, offset, rest_bytes), (9, end, 0), "{witness}");
        assert!(gone_bytes > 0 && gone_bytes <= length - end && why.contains(witness), "{witness}: {why}");
        let opened = Embedded::open(folder.path(), clock(), "0.1.0").unwrap();
        let present = opened.store.present().await.unwrap();
        assert_eq!((present.total.settled.calls, present.total.unknown.calls), (2, 1), "{witness}");
    }
}

#[tokio::test]
async fn a_byte_of_the_file_header_is_mended_and_every_entry_kept() {
    let folder = tempfile::tempdir().unwrap();
    store(folder.path()).await;
    let path = folder.path().join("journal");
    let whole = fs::read(&path).unwrap();
    for at in 0..FILE_HEADER_BYTES {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x21;
        fs::write(&path, &damaged).unwrap();
        let repaired = repair(folder.path()).unwrap().unwrap();
        assert!(repaired.damage.file_header && repaired.damage.entry == 0, "{at}");
        assert_eq!(fs::read(&path).unwrap(), whole, "{at}");
        assert_eq!(fs::read(repaired.aside.last().unwrap()).unwrap(), damaged[..FILE_HEADER_BYTES], "{at}");
    }
    let opened = Embedded::open(folder.path(), clock(), "0.1.0").unwrap();
    assert_eq!(opened.store.find(&[key("a")]).await.unwrap().iter().flatten().count(), 1);
    drop(Arc::clone(&opened.store));
}
