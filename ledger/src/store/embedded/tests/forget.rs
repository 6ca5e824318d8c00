//! Answers that are forgotten: nothing of them is left in the folder, money and chain stay, whatever cuts it short.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::super::core::Core;
use super::super::{Embedded, Opened};
use super::disk::SimulatedDisk;
use super::histories::open as boot;
use crate::entry::{Cause, Fact, Origin};
use crate::journal::pack_settlement;
use crate::store::read::{read_entries, records};
use crate::store::samples::{calls, claim, clock, key, price, settlement};
use crate::store::url::StoreUrl;
use crate::store::{Settlement, Store, StoreError};

/// In every part of an answer that is to be forgotten, too short to be compressed.
const SECRET: &str = "xyzzy-secret";

fn open(folder: &Path) -> Opened {
    Embedded::open(folder, clock(), "0.1.0").unwrap()
}

/// An answer with the secret in question, body, signals and envelope.
fn secret(names: &[&str]) -> Settlement {
    let mut settlement = settlement(names);
    settlement.envelope = Bytes::from(format!("{{\"model\":\"{SECRET}\"}}"));
    for ((_, answer), name) in settlement.items.iter_mut().zip(names) {
        if name.contains(SECRET) {
            answer.body = Bytes::from(format!("{{\"answer\":\"{SECRET}\"}}"));
        }
    }
    settlement
}

async fn buy(store: &Embedded, names: &[&str], refresh: bool) {
    let mut claim = claim(names);
    claim.exchange.refresh = refresh;
    let reservation = store.reserve(claim).await.unwrap();
    store.settle(reservation, secret(names)).await.unwrap();
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let (folders, mut found): (Vec<_>, Vec<_>) =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).partition(|path| path.is_dir());
    found.extend(folders.iter().flat_map(|folder| files(folder)));
    found
}

/// The files of the folder that hold the secret.
fn holders(folder: &Path) -> Vec<PathBuf> {
    let holds = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap_or_default();
        bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes())
    };
    files(folder).into_iter().filter(holds).collect()
}

#[tokio::test]
async fn what_is_forgotten_is_nowhere_in_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let opened = open(folder.path());
    let store = &opened.store;
    store.price(price()).await.unwrap();
    store.limit(calls(50), Origin::Config).await.unwrap();
    let name = format!("{SECRET} 1");
    // Bought alone and bought again, in a batch with others, and once for nothing.
    buy(store, &[&name], false).await;
    buy(store, &["a", &name], true).await;
    buy(store, &["b"], false).await;
    let mut failed = claim(&[&name]);
    failed.exchange.refresh = true;
    let reservation = store.reserve(failed).await.unwrap();
    store.forfeit(reservation, Cause::BrokenOff, Bytes::from(format!("half {SECRET}"))).await.unwrap();
    opened.owner.close().unwrap();
    let again = open(folder.path());
    let store = &again.store;
    assert!(holders(folder.path()).len() >= 2, "the journal and the index hold it");
    let before = store.present().await.unwrap();
    store.forget(key(&name), "asked to".into()).await.unwrap();
    // The envelope of the batch stays with its other item, as long as that is known: in the journal, and in the index once
    // that is filled again.
    let [journal, index] = ["journal", "index"].map(|name| folder.path().join(name));
    let elsewhere = |path: &&PathBuf| **path != journal && !path.starts_with(&index);
    assert_eq!(holders(folder.path()).iter().filter(elsewhere).count(), 0);
    store.forget(key("a"), "asked to".into()).await.unwrap();
    store.forget(key("b"), "asked to".into()).await.unwrap();
    assert_eq!(holders(folder.path()), Vec::<PathBuf>::new());
    assert_eq!(store.find(&[key(&name), key("a")]).await.unwrap(), [None, None]);
    let after = store.present().await.unwrap();
    assert_eq!((after.total, &after.open, after.answers), (before.total, &before.open, 0));
    assert!(matches!(store.forget(key(&name), String::new()).await, Err(StoreError::Contradiction(_))));
    assert_eq!(records(&StoreUrl::Sled(folder.path().into())).unwrap().count(), 0);
    let read: Vec<_> =
        read_entries(&StoreUrl::Sled(folder.path().into())).unwrap().map(Result::unwrap).collect();
    assert_eq!(read.iter().filter(|read| read.entry.fact.name() == "Forgotten").count(), 3);
    // The same question is a miss, and is bought anew.
    buy(store, &[&name], false).await;
    assert!(store.find(&[key(&name)]).await.unwrap()[0].is_some());
    again.owner.close().unwrap();
    let again = open(folder.path());
    assert!(again.store.find(&[key(&name)]).await.unwrap()[0].is_some());
    assert_eq!(again.store.find(&[key("b")]).await.unwrap(), [None]);
}

#[tokio::test]
async fn an_index_that_was_behind_holds_nothing_of_it_after_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let (index, kept) = (folder.path().join("index"), folder.path().join("kept"));
    let opened = open(folder.path());
    opened.store.limit(calls(50), Origin::Config).await.unwrap();
    buy(&opened.store, &[SECRET], false).await;
    opened.owner.close().unwrap();
    fs::create_dir(&kept).unwrap();
    for entry in fs::read_dir(&index).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file()) {
        fs::copy(entry.path(), kept.join(entry.file_name())).unwrap();
    }
    let opened = open(folder.path());
    opened.store.forget(key(SECRET), "asked to".into()).await.unwrap();
    opened.owner.close().unwrap();
    // As if the power had gone before the index was deleted, with and without the checkpoint.
    for checkpoint in [true, false] {
        if index.exists() {
            fs::remove_dir_all(&index).unwrap();
        }
        fs::create_dir(&index).unwrap();
        for entry in fs::read_dir(&kept).unwrap().map(Result::unwrap) {
            fs::copy(entry.path(), index.join(entry.file_name())).unwrap();
        }
        if !checkpoint {
            fs::remove_file(folder.path().join("checkpoint")).unwrap();
        }
        let opened = open(folder.path());
        assert_eq!(opened.store.find(&[key(SECRET)]).await.unwrap(), [None]);
        opened.owner.close().unwrap();
        let left = holders(folder.path());
        assert!(left.iter().all(|path| path.starts_with(&kept)), "{left:?}");
    }
}

/// Forgets with the power going after `steps` changes of the disk.
fn cut_short(steps: u64, seed: u64) -> (Arc<SimulatedDisk>, bool) {
    let disk = SimulatedDisk::new();
    let (core, mut committer, _) = boot(&disk);
    let ticket = core.submit_limit(calls(50), Origin::Config).unwrap();
    for names in [&[SECRET][..], &["a", "b"], &["c"]] {
        let (hold, _) = core.submit_reserve(&claim(names)).ok().unwrap();
        let answer = secret(names);
        let blobs = pack_settlement(&answer.envelope, &answer.items).unwrap();
        core.submit_settle(hold, answer, blobs).unwrap();
    }
    committer.commit();
    drop(ticket);
    disk.kill_after(steps);
    drop(core.submit_forget(key(SECRET), "asked to".into()).unwrap());
    committer.commit();
    let eraser = {
        let core: Arc<Core> = Arc::clone(&core);
        std::thread::spawn(move || core.erase(key(SECRET)))
    };
    while !eraser.is_finished() {
        committer.commit();
        std::thread::yield_now();
    }
    let done = eraser.join().unwrap().is_ok();
    assert!(done || disk.is_dead(), "it failed with the power on");
    (disk.killed(&mut ChaCha8Rng::seed_from_u64(seed)), done)
}

#[test]
fn an_erasing_that_is_cut_short_is_completed_at_the_next_start() {
    let mut completed = 0;
    for steps in 1..16 {
        for seed in 0..40 {
            let (disk, done) = cut_short(steps, seed);
            let holds = |disk: &SimulatedDisk| {
                disk.bytes().windows(SECRET.len()).filter(|window| *window == SECRET.as_bytes()).count()
            };
            let (core, _committer, _) = boot(&disk);
            let forgotten = core.places.read().unwrap().get(&key(SECRET)).is_none();
            assert!(forgotten || !done, "{steps} {seed}: it was acknowledged");
            // What is left are the envelopes of the two other exchanges.
            assert_eq!(holds(&disk), if forgotten { 2 } else { 6 }, "{steps} {seed}");
            assert!(!forgotten || disk.has_no_file("journal.erasing"), "{steps} {seed}");
            completed += u64::from(forgotten && !done);
            let facts = frames(&disk);
            let count = facts.iter().filter(|fact| matches!(fact, Fact::Forgotten { .. })).count();
            assert_eq!(count, usize::from(forgotten), "{steps} {seed}");
        }
    }
    assert!(completed > 50, "the power hardly ever went in the middle of it: {completed}");
}

fn frames(disk: &Arc<SimulatedDisk>) -> Vec<Fact> {
    use crate::journal::{Frames, Step};
    let bytes = disk.bytes();
    let mut frames = Frames::from_start(&bytes[..], bytes.len() as u64).unwrap();
    let mut facts = Vec::new();
    while let Step::Frame(frame) = frames.step().unwrap() {
        facts.push(frame.entry.fact);
    }
    assert_eq!(frames.position, bytes.len() as u64, "the journal does not read to its end");
    facts
}
