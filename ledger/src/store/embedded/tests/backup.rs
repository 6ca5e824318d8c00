//! A copy of the journal: what is in it, what becomes of it when it is opened, and that a failed one leaves nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::super::{Embedded, backup, read_entries};
use crate::entry::Origin;
use crate::store::Store;
use crate::store::copy::CopyError;
use crate::store::samples::{calls, claim, clock, key, price, settlement};

/// A store with two answers and a call under way; nobody owns it any more.
async fn store(folder: &Path) {
    let opened = Embedded::open(folder, clock(), "0.1.0").unwrap();
    let store = &opened.store;
    store.price(price()).await.unwrap();
    store.limit(calls(10), Origin::Config).await.unwrap();
    for name in ["a", "b"] {
        let reservation = store.reserve(claim(&[name])).await.unwrap();
        store.settle(reservation, settlement(&[name])).await.unwrap();
    }
    std::mem::forget(store.reserve(claim(&["c"])).await.unwrap());
    drop(opened.owner);
}

fn names(folder: &Path) -> Vec<String> {
    let found = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut found: Vec<_> = found.collect();
    found.sort();
    found
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

struct Room {
    room: tempfile::TempDir,
}

impl Room {
    async fn new() -> Self {
        let room = Self { room: tempfile::tempdir().unwrap() };
        store(&room.store()).await;
        room
    }

    fn store(&self) -> PathBuf {
        self.room.path().join("store")
    }

    fn to(&self) -> PathBuf {
        self.room.path().join("copy.of.today")
    }

    fn refused(&self) -> String {
        let before = names(self.room.path());
        let error = backup(&self.store(), &self.to(), &mut |_, _| ()).unwrap_err();
        assert_eq!(names(self.room.path()), before);
        match &error {
            CopyError::Source(error) => error.to_string(),
            error => error.to_string(),
        }
    }
}

#[tokio::test]
async fn a_copy_holds_the_journal_alone_and_opens_as_the_store_did() {
    let room = Room::new().await;
    let journal = fs::read(room.store().join("journal")).unwrap();
    // An empty folder may be there.
    fs::create_dir(room.to()).unwrap();
    let mut told = 0;
    let made = backup(&room.store(), &room.to(), &mut |copied, _| told = copied).unwrap();
    assert_eq!((made.bytes, told, made.owned), (journal.len() as u64, journal.len() as u64, false));
    assert_eq!(made.head.entries, 8);
    assert_eq!(names(room.room.path()), ["copy.of.today", "store"]);
    assert_eq!(names(&room.to()), ["journal"]);
    assert_eq!((mode(&room.to()), mode(&room.to().join("journal"))), (0o700, 0o600));
    assert_eq!(fs::read(room.to().join("journal")).unwrap(), journal);

    let opened = Embedded::open(&room.to(), clock(), "0.1.0").unwrap();
    assert_eq!(opened.recovery.crashed.len(), 1, "what was under way is unknown");
    let present = opened.store.present().await.unwrap();
    assert_eq!((present.total.settled.calls, present.total.unknown.calls), (2, 1));
    let known = opened.store.find(&["a", "b"].map(key)).await.unwrap();
    assert!(known.iter().all(Option::is_some));
    assert_eq!(
        room.refused(),
        format!("the store `sled:{}` is not empty, and nothing is copied over a record", room.to().display())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_an_owner_what_it_has_synced_is_copied() {
    let room = Room::new().await;
    let mut opened = Embedded::open(&room.store(), clock(), "0.1.0").unwrap();
    opened.owner.listen(&opened.store).unwrap();
    opened.store.forget(key("a"), "asked to".into()).await.unwrap();
    let held = opened.store.reserve(claim(&["d"])).await.unwrap();
    let (from, to) = (room.store(), room.to());
    let made =
        tokio::task::spawn_blocking(move || backup(&from, &to, &mut |_, _| ())).await.unwrap().unwrap();
    assert_eq!((made.bytes, made.owned), (opened.store.synced(), true));
    opened.store.settle(held, settlement(&["d"])).await.unwrap();
    let (mut source, mut copy) = (read_entries(&room.store()).unwrap(), read_entries(&room.to()).unwrap());
    assert!(
        (&mut copy).zip(&mut source).all(|(copy, source)| copy.unwrap().payload == source.unwrap().payload)
    );
    assert_eq!(copy.head(), made.head);
    let copy = Embedded::open(&room.to(), clock(), "0.1.0").unwrap();
    let known = copy.store.find(&["a", "b", "d"].map(key)).await.unwrap();
    assert_eq!(known.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, false]);
}

#[tokio::test]
async fn what_was_never_acknowledged_is_left_out_and_damage_is_not_copied() {
    let room = Room::new().await;
    let path = room.store().join("journal");
    let journal = fs::read(&path).unwrap();
    let torn = [&journal[..], b"half a frame"].concat();
    fs::write(&path, &torn).unwrap();
    let made = backup(&room.store(), &room.to(), &mut |_, _| ()).unwrap();
    assert_eq!(made.bytes, journal.len() as u64);
    assert_eq!(
        (fs::read(&path).unwrap(), fs::read(room.to().join("journal")).unwrap()),
        (torn, journal.clone())
    );
    fs::remove_dir_all(room.to()).unwrap();

    let mut damaged = journal;
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(&path, damaged).unwrap();
    let words = room.refused();
    assert!(words.contains("of the journal is damaged"), "{words}");
}

#[tokio::test]
async fn a_partial_copy_is_never_taken_for_one_and_stands_in_nobodys_way() {
    let room = Room::new().await;
    let partial = room.room.path().join("copy.of.today.partial");
    // Left behind by one that was killed: half a journal.
    fs::create_dir(&partial).unwrap();
    fs::write(partial.join("journal"), b"TUITION\0").unwrap();
    let lock = fs::File::open(&partial).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    assert_eq!(room.refused(), format!("another process owns the store `{}`", partial.display()));
    drop(lock);
    // Something that no backup wrote is not deleted.
    fs::write(partial.join("mine"), b"mine").unwrap();
    assert!(room.refused().contains("is not empty"));
    assert_eq!(names(&partial), ["journal", "mine"]);
    fs::remove_file(partial.join("mine")).unwrap();
    backup(&room.store(), &room.to(), &mut |_, _| ()).unwrap();
    assert_eq!(names(room.room.path()), ["copy.of.today", "store"]);
}

#[tokio::test]
async fn a_place_that_cannot_be_named_or_made_is_refused() {
    let room = Room::new().await;
    for to in [room.room.path().join(".."), room.room.path().join("none/copy"), room.store().join("journal")]
    {
        let error = backup(&room.store(), &to, &mut |_, _| ()).unwrap_err();
        assert!(matches!(error, CopyError::Io { .. } | CopyError::NotEmpty(_)), "{}: {error}", to.display());
    }
    let none = backup(&room.room.path().join("no store"), &room.to(), &mut |_, _| ()).unwrap_err();
    assert!(matches!(none, CopyError::Open(_)));
    assert_eq!(names(room.room.path()), ["store"]);
}
