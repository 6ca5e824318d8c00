//! Making entries durable: whole groups are written, synced once, then shown and answered.
//!
//! Must not know what entries mean. Invariants: nobody hears that an entry is durable before its group is synced; after a
//! write or a sync that failed nothing more is written, whatever a later sync would say.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::checkpoint::{CHECKPOINT, Checkpoint};
use super::core::{Core, Pending};
use super::erase::{Forgotten, erase};
use super::place::Place;
use super::recover::State;
use crate::answer::Record;
use crate::fault::{self, Stage};
use crate::store::StoreError;

/// Hits are written at most this long after they were served.
const TALLY_PAUSE: Duration = Duration::from_secs(1);
/// A checkpoint is written after so many bytes of journal.
const CHECKPOINT_STEP_BYTES: u64 = 256 << 20;

/// The one writer of a journal.
pub(crate) struct Committer {
    core: Arc<Core>,
    program: String,
    position: u64,
    last: u64,
    number: u64,
    chain: [u8; 32],
    checkpointed: u64,
    forgotten: u64,
}

impl Committer {
    /// A writer that goes on where `state` ends.
    pub(crate) fn new(core: Arc<Core>, program: &str, state: &State) -> Self {
        Self {
            core,
            program: program.to_owned(),
            position: state.position,
            last: state.last,
            number: state.number,
            chain: state.chain,
            checkpointed: state.position,
            forgotten: state.forgotten,
        }
    }

    /// Commits until the store stops.
    pub(crate) fn run(mut self) -> Self {
        let mut tally_at = None;
        loop {
            let core = Arc::clone(&self.core);
            let mut inner = core.lock();
            while inner.queue.is_empty() {
                if inner.stopping {
                    return self;
                }
                if inner.tallies.is_empty() {
                    tally_at = None;
                    inner = core.wake.wait(inner).unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
                let due = *tally_at.get_or_insert_with(|| Instant::now() + TALLY_PAUSE);
                let left = due.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    tally_at = None;
                    core.submit_tallies(&mut inner);
                } else {
                    inner = core.wake.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
            if !inner.tallies.is_empty()
                && *tally_at.get_or_insert_with(|| Instant::now() + TALLY_PAUSE) <= Instant::now()
            {
                tally_at = None;
                core.submit_tallies(&mut inner);
            }
            drop(inner);
            self.commit();
            if self.position - self.checkpointed >= CHECKPOINT_STEP_BYTES {
                self.checkpoint();
            }
        }
    }

    /// Commits everything that is enqueued now.
    pub(crate) fn commit(&mut self) {
        let group = self.core.lock().take();
        let (group, erasings): (Vec<_>, Vec<_>) =
            group.into_iter().partition(|pending| pending.erase.is_empty());
        if self.append(group) {
            for mut pending in erasings {
                let spans = std::mem::take(&mut pending.erase);
                let core = &self.core;
                let overwriting = core.overwriting.write().unwrap_or_else(PoisonError::into_inner);
                let erased = erase(&*core.disk, &core.header, spans);
                drop(overwriting);
                match erased {
                    Ok(()) => answer(pending, Ok(())),
                    Err(error) => return self.fail(vec![pending], &error),
                }
            }
        } else {
            let gone = || StoreError::Unwritable("writing its journal failed".into());
            erasings.into_iter().for_each(|pending| answer(pending, Err(gone())));
        }
    }

    /// Makes the entries of a group durable; says whether that went well.
    fn append(&mut self, group: Vec<Pending>) -> bool {
        if group.iter().all(|pending| pending.draft.is_none()) {
            group.into_iter().for_each(|pending| answer(pending, Ok(())));
            return true;
        }
        let mut bytes = Vec::new();
        let (mut last, mut number, mut chain) = (self.last, self.number, self.chain);
        for draft in group.iter().filter_map(|pending| pending.draft.as_ref()) {
            last = self.position + bytes.len() as u64;
            number += 1;
            chain = draft.write(&mut bytes, &self.core.header.writer, number, self.position, &chain);
        }
        if let Err(error) = self.write(&bytes, &group) {
            self.fail(group, &error);
            return false;
        }
        (self.last, self.number, self.chain) = (last, number, chain);
        self.position += bytes.len() as u64;
        self.show(group);
        true
    }

    /// Writes a group and syncs it.
    fn write(&self, bytes: &[u8], group: &[Pending]) -> io::Result<()> {
        let disk = &self.core.disk;
        let length = bytes.len() as u64;
        let [appended, synced] = [0, 1].map(|at| {
            let stages = group.iter().filter_map(|pending| Some(pending.stages?[at]));
            stages.collect::<BTreeSet<Stage>>()
        });
        disk.write_at(bytes, self.position)?;
        for stage in appended {
            fault::point_or_tear(stage, || disk.cut(self.position + length / 2))?;
        }
        disk.sync()?;
        synced.into_iter().try_for_each(fault::point)
    }

    /// Shows what has become durable, then answers everybody who waits for it.
    fn show(&mut self, mut group: Vec<Pending>) {
        let mut known = Vec::new();
        if group.iter().any(|pending| !pending.known.is_empty() || pending.forgotten.is_some()) {
            let mut places = self.core.places.write().unwrap_or_else(PoisonError::into_inner);
            for pending in &mut group {
                places.extend(pending.known.iter().map(|(place, record)| (record.key, *place)));
                known.append(&mut pending.known);
                if let Some(key) = pending.forgotten {
                    places.remove(&key);
                    known.retain(|(_, record): &(Place, Arc<Record>)| record.key != key);
                    self.forgotten = self.position;
                }
            }
        }
        self.core.synced.store(self.position, Ordering::Release);
        if self.forgotten == self.position {
            // Before anything of this group: an index that has reached this far holds nothing of what is forgotten.
            self.core.index.purge();
        }
        self.core.index.add(known, self.position);
        group.into_iter().for_each(|pending| answer(pending, Ok(())));
        self.core.changes.send_replace(self.number);
    }

    /// Gives up writing: the group and all after it fail, and the book goes back to what is durable.
    fn fail(&self, group: Vec<Pending>, error: &dyn std::error::Error) {
        let core = &self.core;
        let why = format!("writing its journal failed: {error}");
        tracing::error!(%error, "the journal cannot be written; what is known is served, nothing is bought");
        if let Err(error) = core.disk.cut(self.position).and_then(|()| core.disk.sync()) {
            tracing::error!(%error, "what was written in part could not be cut off; it is judged at the next start");
        }
        let mut durable = State::start(&core.header);
        let replayed = durable.replay(&*core.disk, &core.header, self.position);
        let mut inner = core.lock();
        inner.unwritable = Some(why.clone());
        match replayed {
            Ok(None) => inner.roll_back(durable),
            Ok(Some(torn)) => tracing::error!(?torn, "the journal reads no longer as it was written"),
            Err(error) => tracing::error!(%error, "the journal cannot be read back"),
        }
        let rest = inner.take();
        drop(inner);
        for pending in group.into_iter().chain(rest) {
            answer(pending, Err(StoreError::Unwritable(why.clone())));
        }
    }

    /// Writes a checkpoint, if just now everything that was decided is durable.
    pub(crate) fn checkpoint(&mut self) {
        let core = &self.core;
        let inner = core.lock();
        if !inner.queue.is_empty() || inner.unwritable.is_some() || !inner.erasing.is_empty() {
            return;
        }
        let state = State {
            book: inner.book.clone(),
            open: inner.open.clone(),
            places: core.places.read().unwrap_or_else(PoisonError::into_inner).clone(),
            position: self.position,
            last: self.last,
            number: self.number,
            chain: self.chain,
            closed: false,
            forgotten: self.forgotten,
            unerased: Forgotten::new(),
        };
        drop(inner);
        self.checkpointed = self.position;
        if self.number == 0 {
            return;
        }
        let checkpoint = Checkpoint::new(&self.program, state).encode(&core.header);
        if let Err(error) = core.disk.replace(CHECKPOINT, &checkpoint) {
            tracing::warn!(%error, "no checkpoint could be written; the next start reads the whole journal");
        }
    }

    /// Where the journal ends.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }
}

fn answer(pending: Pending, result: Result<(), StoreError>) {
    // Whoever waited may have gone away; the entry stands all the same.
    let _ = pending.done.send(result);
}
