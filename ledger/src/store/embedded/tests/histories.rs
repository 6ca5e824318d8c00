//! Seeded histories of a store whose power goes at any step, and of one whose disk fails.

use std::sync::Arc;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::Recovery;
use super::super::commit::Committer;
use super::super::core::{Core, Ticket};
use super::super::index::Index;
use super::super::opening::boot;
use super::super::place::records_at;
use super::super::recover::State;
use super::disk::{HEADER, SimulatedDisk};
use crate::answer::Record;
use crate::book::Present;
use crate::entry::{Cause, HoldId, Origin};
use crate::journal::{Packed, pack_settlement};
use crate::store::StoreError;
use crate::store::samples::{calls, claim, clock, price, settlement};

const HISTORIES: u64 = 3000;
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

pub(super) fn open(disk: &Arc<SimulatedDisk>) -> (Arc<Core>, Committer, Recovery) {
    let index = |_: &_, _: &_| Ok(Index::none());
    boot(Arc::clone(disk) as _, HEADER, clock(), "0.1.0", None, index).unwrap()
}

/// What callers were told, and what the store was when they were told.
struct Told {
    bytes: Vec<u8>,
    present: Present,
    records: Vec<Arc<Record>>,
}

struct Waiting {
    ticket: Ticket,
    hold: Option<(HoldId, Vec<&'static str>)>,
    records: Vec<Arc<Record>>,
}

struct History {
    rng: ChaCha8Rng,
    disk: Arc<SimulatedDisk>,
    core: Arc<Core>,
    committer: Committer,
    waiting: Vec<Waiting>,
    holds: Vec<(HoldId, Vec<&'static str>)>,
    unknown: Vec<(HoldId, Vec<&'static str>)>,
    told: Told,
}

impl History {
    fn new(seed: u64) -> Self {
        let disk = SimulatedDisk::new();
        let (core, committer, _) = open(&disk);
        let told = Told { bytes: disk.bytes(), present: core.present(), records: Vec::new() };
        let rng = ChaCha8Rng::seed_from_u64(seed);
        let (waiting, holds, unknown) = (Vec::new(), Vec::new(), Vec::new());
        Self { rng, disk, core, committer, waiting, holds, unknown, told }
    }

    fn wait(
        &mut self,
        ticket: Result<Ticket, StoreError>,
        hold: Option<(HoldId, Vec<&'static str>)>,
        records: Vec<Arc<Record>>,
    ) {
        if let Ok(ticket) = ticket {
            self.waiting.push(Waiting { ticket, hold, records });
        }
    }

    fn step(&mut self) {
        let which = self.rng.random_range(0..12);
        let index = |rng: &mut ChaCha8Rng, length: usize| (length > 0).then(|| rng.random_range(0..length));
        match which {
            0 => {
                let limit = calls(self.rng.random_range(1..20));
                let ticket = self.core.submit_limit(limit, Origin::Command);
                self.wait(ticket, None, Vec::new());
            }
            1 => {
                let ticket = self.core.submit_price(price());
                self.wait(ticket, None, Vec::new());
            }
            2..=4 => {
                let first = self.rng.random_range(0..NAMES.len());
                let count = self.rng.random_range(1..=2);
                let names: Vec<_> = NAMES.iter().cycle().skip(first).take(count).copied().collect();
                if let Ok((hold, ticket)) = self.core.submit_reserve(&claim(&names)) {
                    self.wait(Ok(ticket), Some((hold, names)), Vec::new());
                }
            }
            5 | 6 => {
                let late = self.rng.random_range(0..4) == 0;
                let holds = if late { &mut self.unknown } else { &mut self.holds };
                let Some(index) = index(&mut self.rng, holds.len()) else { return };
                let (hold, names) = holds.swap_remove(index);
                let answer = settlement(&names);
                let blobs = pack_settlement(&answer.envelope, &answer.items).unwrap();
                if let Ok((records, ticket)) = self.core.submit_settle(hold, answer, blobs) {
                    self.wait(Ok(ticket), None, records);
                }
            }
            7 => {
                let Some(index) = index(&mut self.rng, self.holds.len()) else { return };
                let (hold, _) = self.holds.swap_remove(index);
                let cause = Cause::Status(429);
                let ticket = self.core.submit(|book, at| book.release(hold, cause, at).map(Some));
                self.wait(ticket, None, Vec::new());
            }
            8 => {
                let Some(index) = index(&mut self.rng, self.holds.len()) else { return };
                let (hold, names) = self.holds.swap_remove(index);
                let evidence = vec![Packed::new(&[7; 900]).unwrap()];
                let ticket = self.core.submit_forfeit(hold, &Cause::TimedOut, evidence);
                self.wait(ticket, None, Vec::new());
                self.unknown.push((hold, names));
            }
            9 => {
                let Some(index) = index(&mut self.rng, self.unknown.len()) else { return };
                let (hold, _) = self.unknown.swap_remove(index);
                let billed = self.rng.random();
                let ticket =
                    self.core.submit(|book, at| book.resolve(hold, billed, "bill".into(), at).map(Some));
                self.wait(ticket, None, Vec::new());
            }
            10 if self.rng.random_range(0..4) == 0 => self.committer.checkpoint(),
            _ => self.commit(),
        }
    }

    /// Commits, and takes down what callers are told.
    fn commit(&mut self) {
        self.committer.commit();
        let mut heard = false;
        for mut waiting in std::mem::take(&mut self.waiting) {
            match waiting.ticket.try_recv().unwrap() {
                Ok(()) => {
                    heard = true;
                    self.holds.extend(waiting.hold);
                    self.told.records.extend(waiting.records);
                }
                Err(error) => assert!(matches!(error, StoreError::Unwritable(_)), "{error}"),
            }
        }
        if heard {
            assert!(self.disk.is_synced(), "somebody was told before it was durable");
            self.told.bytes = self.disk.bytes();
            self.told.present = self.core.present();
        }
    }

    /// The power went: opens what is left, and checks that nobody was told too much.
    fn check(mut self, seed: u64) {
        let mut left = self.disk.killed(&mut self.rng);
        if self.rng.random_range(0..3) == 0 {
            // The power goes again while the store recovers.
            left.kill_after(self.rng.random_range(1..6));
            let index = |_: &_, _: &_| Ok(Index::none());
            let _ = boot(Arc::clone(&left) as _, HEADER, clock(), "0.1.0", None, index);
            left = left.killed(&mut self.rng);
        }
        let before = left.bytes();
        assert!(before.starts_with(&self.told.bytes), "seed {seed}: something acknowledged is gone");
        let mut replayed = State::start(&HEADER);
        let torn = replayed.replay(&*left, &HEADER, self.told.bytes.len() as u64).unwrap();
        assert_eq!(torn, None, "seed {seed}");
        assert_eq!(replayed.book.present(crate::time::Timestamp(0)), self.told.present, "seed {seed}");
        let (core, mut committer, recovery) = open(&left);
        assert!(left.is_synced(), "seed {seed}");
        if let Some((offset, name)) = recovery.torn {
            let kept = left.state_file(name.to_str().unwrap());
            assert_eq!(kept, before[usize::try_from(offset).unwrap()..], "seed {seed}");
        }
        let present = core.present();
        assert_eq!(present.unwritable, None, "seed {seed}");
        assert_eq!(present.total.reserved, crate::Amount::ZERO, "seed {seed}");
        let places = core.places.read().unwrap();
        for record in &self.told.records {
            let found = records_at(&*left, &HEADER, places[&record.key]).unwrap();
            let found = found.iter().find(|found| found.key == record.key).unwrap();
            assert_eq!((&found.query, &found.answer), (&record.query, &record.answer), "seed {seed}");
        }
        drop(places);
        // It can be closed and opened once more, from its checkpoint.
        core.end().unwrap();
        committer.commit();
        committer.checkpoint();
        let (again, _, recovery) = open(&left);
        assert!(recovery.clean, "seed {seed}");
        assert_eq!(again.present(), present, "seed {seed}");
    }
}

#[test]
fn what_was_acknowledged_survives_a_kill_at_any_step() {
    let mut torn = 0;
    for seed in 0..HISTORIES {
        let mut history = History::new(seed);
        let steps = history.rng.random_range(1..40);
        history.disk.kill_after(steps);
        for _ in 0..60 {
            if history.disk.is_dead() {
                break;
            }
            history.step();
        }
        torn += u64::from(history.disk.bytes().len() > history.told.bytes.len());
        history.check(seed);
    }
    assert!(torn > HISTORIES / 20, "only {torn} histories ended with something that was not acknowledged");
}

#[test]
fn after_a_failed_sync_nothing_is_written_and_what_is_durable_is_served() {
    for seed in 0..200 {
        let mut history = History::new(seed);
        for _ in 0..20 {
            history.step();
        }
        history.commit();
        let (told, known) = (history.told.bytes.clone(), history.core.places.read().unwrap().len());
        let present = history.core.present();
        history.disk.fail_syncs(1);
        while history.core.present().unwritable.is_none() {
            history.step();
        }
        let writes = history.disk.writes();
        for _ in 0..20 {
            history.step();
        }
        assert_eq!(history.disk.writes(), writes, "seed {seed}: it wrote after a sync had failed");
        assert!(matches!(
            history.core.submit_limit(calls(1), Origin::Config),
            Err(StoreError::Unwritable(_))
        ));
        assert_eq!(history.core.places.read().unwrap().len(), known);
        assert_eq!(Present { unwritable: None, ..history.core.present() }, present);
        assert_eq!(history.disk.bytes(), told, "seed {seed}: a part of it was left behind");
        history.check(seed);
    }
}
