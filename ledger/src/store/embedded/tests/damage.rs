//! A small journal with every kind of entry, cut at every byte and flipped at every byte, opened by an owner and read
//! beside one: what is found is the state after a prefix, or an error that names the entry and its place.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::super::checkpoint::CHECKPOINT;
use super::super::index::Index;
use super::super::opening::boot;
use super::super::{Embedded, OpenError, read_entries};
use super::disk::{HEADER, SimulatedDisk};
use super::histories::open;
use crate::answer::Record;
use crate::book::Present;
use crate::entry::{Cause, HoldId, Origin, Tally};
use crate::journal::{FILE_HEADER_BYTES, FileHeader, Frames, JournalError, Packed, Step, pack_settlement};
use crate::money::Amount;
use crate::store::read::records;
use crate::store::samples::{calls, claim, clock, key, price, settlement};
use crate::store::url::StoreUrl;
use crate::store::{Settlement, StoreError};

const FLIPS: [u8; 3] = [0x01, 0x80, 0xff];
const NAMES: [&str; 2] = ["a", "d"];

/// A journal, where its frames begin (and the last one ends), and where its last group begins.
struct Journal {
    bytes: Vec<u8>,
    offsets: Vec<u64>,
    last_group: u64,
    /// The small files after a checkpoint that saw everything durable.
    files: BTreeMap<String, Vec<u8>>,
    /// What an owner finds after so many entries.
    after: Vec<Present>,
    known: BTreeMap<&'static str, Arc<Record>>,
}

/// A small answer; the samples' is several times larger.
fn small(name: &str) -> Settlement {
    let mut answer = settlement(&[name]);
    let (_, item) = &mut answer.items[0];
    item.signals.truncate(1);
    answer
}

fn journal() -> Journal {
    let disk = SimulatedDisk::new();
    let (core, mut committer, _) = open(&disk);
    let submit = |fact: &str, hold: u64| {
        let hold = HoldId(hold);
        let ticket = match fact {
            "release" => core.submit(|book, at| book.release(hold, Cause::Status(429), at).map(Some)),
            "resolve" => core.submit(|book, at| book.resolve(hold, true, "bill".into(), at).map(Some)),
            _ => core.submit_forfeit(hold, &Cause::BrokenOff, vec![Packed::new(b"half an answ").unwrap()]),
        };
        ticket.unwrap();
    };
    let mut known = BTreeMap::new();
    let mut settle = |hold, name| {
        let answer = small(name);
        let blobs = pack_settlement(&answer.envelope, &answer.items).unwrap();
        let (records, _) = core.submit_settle(HoldId(hold), answer, blobs).unwrap();
        known.insert(name, Arc::clone(&records[0]));
    };
    let reserve = |name| core.submit_reserve(&claim(&[name])).map(|_| ()).ok().unwrap();
    core.submit_price(price()).unwrap();
    core.submit_limit(calls(10), Origin::Config).unwrap();
    committer.commit();
    reserve("a");
    committer.commit();
    settle(1, "a");
    committer.commit();
    reserve("b");
    submit("release", 2);
    reserve("c");
    submit("forfeit", 3);
    committer.commit();
    submit("resolve", 3);
    let who = claim(&["a"]).exchange.who;
    core.tally(Tally { who, model: "m".into(), known: 2, followed: 1, saved: Amount::ZERO, refused: 0 });
    core.submit_tallies(&mut core.lock());
    committer.commit();
    // The last group: several entries that were synced together, or were not.
    reserve("d");
    reserve("e");
    settle(4, "d");
    committer.commit();
    committer.checkpoint();
    let bytes = disk.bytes();
    let files = BTreeMap::from([(CHECKPOINT.to_owned(), disk.state_file(CHECKPOINT))]);
    let (mut offsets, mut frames) = (vec![], Frames::from_start(&bytes[..], bytes.len() as u64).unwrap());
    while let Step::Frame(frame) = frames.step().unwrap() {
        offsets.push(frame.offset);
    }
    offsets.push(frames.position);
    let after = offsets.iter().map(|end| {
        let disk = SimulatedDisk::holding(bytes[..usize::try_from(*end).unwrap()].to_vec(), BTreeMap::new());
        open(&disk).0.present()
    });
    let after = after.collect();
    let last_group = offsets[offsets.len() - 4];
    Journal { after, last_group, offsets, bytes, files, known }
}

impl Journal {
    /// How many frames are whole before `offset`, the one that holds it not counted.
    fn before(&self, offset: u64) -> usize {
        self.offsets.iter().skip(1).filter(|end| **end <= offset).count()
    }
}

/// What an owner finds, or where the journal is damaged.
fn opened(
    bytes: &[u8],
    files: &BTreeMap<String, Vec<u8>>,
) -> Result<(Present, Option<u64>, Arc<Embedded>), Found> {
    let header = FileHeader::read(bytes).map_err(|error| Found::of(&error))?;
    let disk = SimulatedDisk::holding(bytes.to_vec(), files.clone());
    let booted = boot(disk as _, header, clock(), "0.1.0", None, |_, _| Ok(Index::none()));
    match booted {
        Ok((core, _, recovery)) => {
            let torn = recovery.torn.map(|(offset, _)| offset);
            Ok((core.present(), torn, Embedded::over(core, Path::new("simulated"))))
        }
        Err(OpenError::Journal(error)) => Err(Found::of(&error)),
        Err(error) => panic!("{error}"),
    }
}

/// An error, by what it names.
#[derive(Debug, PartialEq)]
enum Found {
    Header,
    Entry(u64, u64),
}

impl Found {
    fn of(error: &JournalError) -> Self {
        match error {
            JournalError::NotAJournal | JournalError::NewerFormat { .. } | JournalError::HeaderDamaged => {
                Self::Header
            }
            JournalError::Corrupt { number, offset, .. } => Self::Entry(*number, *offset),
            error => panic!("{error}"),
        }
    }
}

/// Calls `check` with every position below `end`, shared among the processors.
fn everywhere(end: usize, check: impl Fn(usize) + Sync) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for first in 0..threads {
            let check = &check;
            scope.spawn(move || (first..end).step_by(threads).for_each(check));
        }
    });
}

/// Every answer is the one that was bought, or an error that names the entry at `damaged`.
fn check_answers(store: &Embedded, journal: &Journal, expected: &[&str], damaged: Option<(u64, u64)>) {
    for name in NAMES {
        match store.find_now(&[key(name)]) {
            Ok(found) => {
                let known = expected.contains(&name).then(|| Arc::clone(&journal.known[name]));
                assert_eq!(found, [known]);
            }
            Err(StoreError::Unreadable(why)) => {
                let (number, offset) = damaged.expect("nothing is damaged");
                assert!(why.contains(&format!("entry {number} at offset {offset} ")), "{why}");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_journal_cut_at_any_byte_opens_as_a_prefix_or_names_what_is_gone() {
    let journal = journal();
    let settled = [("a", journal.offsets[5]), ("d", journal.offsets[journal.offsets.len() - 1])];
    everywhere(journal.bytes.len(), |length| {
        let (cut, end) = (&journal.bytes[..length], length as u64);
        let found = opened(cut, &BTreeMap::new());
        let witnessed = opened(cut, &journal.files).map(|_| ());
        if length < FILE_HEADER_BYTES {
            assert_eq!(found.err(), Some(Found::Header), "{length}");
            assert_eq!(witnessed, Err(Found::Header), "{length}");
            return;
        }
        let count = journal.before(end);
        let (present, torn, store) = found.unwrap();
        assert_eq!(present, journal.after[count], "{length}");
        let start = journal.offsets[count];
        assert_eq!(torn, (start != end).then_some(start), "{length}");
        let expected: Vec<&str> =
            settled.iter().filter(|(_, at)| *at <= start).map(|(name, _)| *name).collect();
        check_answers(&store, &journal, &expected, None);
        // The checkpoint saw all of it durable.
        assert_eq!(witnessed, Err(Found::Entry(count as u64 + 1, start)), "{length}");
    });
}

#[test]
fn a_byte_flipped_anywhere_is_an_error_that_names_the_entry_or_a_torn_last_group() {
    let journal = journal();
    let all = journal.after.len() - 1;
    everywhere(journal.bytes.len(), |position| {
        for flip in FLIPS {
            let mut flipped = journal.bytes.clone();
            flipped[position] ^= flip;
            let what = format!("byte {position} ^ {flip:#x}");
            let found = opened(&flipped, &BTreeMap::new());
            let witnessed = opened(&flipped, &journal.files);
            if position < FILE_HEADER_BYTES {
                assert_eq!(found.err(), Some(Found::Header), "{what}");
                assert_eq!(witnessed.err(), Some(Found::Header), "{what}");
                continue;
            }
            let count = journal.before(position as u64);
            let (number, start) = (count as u64 + 1, journal.offsets[count]);
            if start < journal.last_group {
                assert_eq!(found.err(), Some(Found::Entry(number, start)), "{what}");
            } else {
                let (present, torn, _) = found.unwrap();
                assert_eq!((present, torn), (journal.after[count].clone(), Some(start)), "{what}");
            }
            match witnessed {
                // Read from the checkpoint on: the figures are whole, and the damaged answer says so when it is read.
                Ok((present, torn, store)) => {
                    assert_eq!((present, torn), (journal.after[all].clone(), None), "{what}");
                    assert!(number < all as u64, "{what}");
                    check_answers(&store, &journal, &NAMES, Some((number, start)));
                }
                Err(found) => assert_eq!(found, Found::Entry(number, start), "{what}"),
            }
        }
    });
}

#[test]
fn what_is_read_beside_the_owner_is_cut_and_flipped_as_well() {
    let journal = journal();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let count = |folder: &Path| -> Result<(usize, Option<u64>), Found> {
        let mut entries = match read_entries(folder) {
            Ok(entries) => entries,
            Err(OpenError::Journal(error)) => return Err(Found::of(&error)),
            Err(error) => panic!("{error}"),
        };
        let read = entries.by_ref().collect::<Result<Vec<_>, _>>().map_err(|error| Found::of(&error))?;
        Ok((read.len(), entries.torn()))
    };
    for length in FILE_HEADER_BYTES..journal.bytes.len() {
        fs::write(&path, &journal.bytes[..length]).unwrap();
        let whole = journal.before(length as u64);
        let start = journal.offsets[whole];
        let torn = (start != length as u64).then_some(start);
        assert_eq!(count(folder.path()), Ok((whole, torn)), "{length}");
    }
    fs::write(&path, &journal.bytes).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    for witness in [false, true] {
        if witness {
            fs::write(folder.path().join(CHECKPOINT), &journal.files[CHECKPOINT]).unwrap();
        }
        for position in 0..journal.bytes.len() {
            for flip in FLIPS {
                file.write_all_at(&[journal.bytes[position] ^ flip], position as u64).unwrap();
                let whole = journal.before(position as u64);
                let start = journal.offsets[whole];
                let expected = if position < FILE_HEADER_BYTES {
                    Err(Found::Header)
                } else if witness || start < journal.last_group {
                    Err(Found::Entry(whole as u64 + 1, start))
                } else {
                    Ok((whole, Some(start)))
                };
                assert_eq!(count(folder.path()), expected, "byte {position} ^ {flip:#x}");
                if flip == FLIPS[0] && position >= FILE_HEADER_BYTES {
                    let read: Result<Vec<_>, _> =
                        records(&StoreUrl::Sled(folder.path().to_owned())).unwrap().collect();
                    assert_eq!(read.is_err(), expected.is_err(), "byte {position}");
                    for recorded in read.into_iter().flatten() {
                        assert!(journal.known.values().any(|known| **known == recorded.record), "{position}");
                    }
                }
            }
            file.write_all_at(&[journal.bytes[position]], position as u64).unwrap();
        }
    }
}

/// A way for the disk to fail, once.
type Failing = fn(&SimulatedDisk);

#[test]
fn after_any_failed_write_nothing_is_shown_and_nothing_is_bought_until_it_is_opened_again() {
    let ways: [(&str, Failing); 4] = [
        ("full", |disk| disk.fail_write(std::io::ErrorKind::StorageFull, false)),
        ("read only", |disk| disk.fail_write(std::io::ErrorKind::ReadOnlyFilesystem, false)),
        ("half written", |disk| disk.fail_write(std::io::ErrorKind::StorageFull, true)),
        ("not synced", |disk| disk.fail_syncs(1)),
    ];
    for (what, fail) in ways {
        let disk = SimulatedDisk::new();
        let (core, mut committer, _) = open(&disk);
        core.submit_limit(calls(10), Origin::Config).unwrap();
        let (_, _ticket) = core.submit_reserve(&claim(&["a"])).ok().unwrap();
        committer.commit();
        let (bytes, before) = (disk.bytes(), core.present());
        fail(&disk);
        let answer = small("a");
        let blobs = pack_settlement(&answer.envelope, &answer.items).unwrap();
        let (_, mut settled) = core.submit_settle(HoldId(1), answer, blobs).unwrap();
        let (_, mut held) = core.submit_reserve(&claim(&["b"])).ok().unwrap();
        committer.commit();
        for ticket in [&mut settled, &mut held] {
            assert!(matches!(ticket.try_recv().unwrap(), Err(StoreError::Unwritable(_))), "{what}");
        }
        // The disk works again; nobody believes it.
        let store = Embedded::over(Arc::clone(&core), Path::new("simulated"));
        assert_eq!(store.find_now(&[key("a")]).unwrap(), [None], "{what}");
        assert!(core.submit_reserve(&claim(&["c"])).is_err(), "{what}");
        let present = core.present();
        assert!(present.unwritable.is_some(), "{what}");
        assert_eq!(Present { unwritable: None, ..present }, before, "{what}");
        let writes = disk.writes();
        committer.commit();
        assert_eq!((disk.writes(), disk.bytes()), (writes, bytes), "{what}");
        // Opened anew: the hold is unknown, counted in full, and there is no answer.
        let (core, _, recovery) = open(&disk);
        assert_eq!(recovery.crashed, [HoldId(1)], "{what}");
        let present = core.present();
        assert_eq!(
            (present.total.unknown.calls, present.answers, present.unwritable),
            (1, 0, None),
            "{what}"
        );
        assert!(core.submit_reserve(&claim(&["c"])).is_ok(), "{what}");
    }
}

#[test]
fn a_store_whose_disk_cannot_be_synced_is_not_opened() {
    let disk = SimulatedDisk::new();
    disk.fail_syncs(1);
    let booted = boot(Arc::clone(&disk) as _, HEADER, clock(), "0.1.0", None, |_, _| Ok(Index::none()));
    assert!(matches!(booted.err(), Some(OpenError::Journal(JournalError::Io(_)))));
    assert_eq!(disk.writes(), 0);
}
