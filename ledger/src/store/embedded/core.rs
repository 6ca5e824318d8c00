//! Deciding and enqueueing: what callers do before the committing thread makes it durable.
//!
//! Must not know threads, folders or sockets. Invariants: decide, apply and enqueue happen under one lock, so that the
//! order of the file is the order of the book; nothing is applied for which there is no room; a find never shows an
//! answer that is not durable.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};

use tokio::sync::{oneshot, watch};

use super::disk::Disk;
use super::erase::{self, Forgotten, Span};
use super::index::Index;
use super::place::Place;
use super::recover::{OpenPlace, State, note};
use crate::answer::Record;
use crate::book::{Book, BookError, Claim, NotReserved, Present};
use crate::budget::Budget;
use crate::entry::{Cause, Entry, Fact, HoldId, Origin, Tally};
use crate::fault::Stage;
use crate::journal::{Draft, FileHeader, JournalError, Packed};
use crate::price::Price;
use crate::query::QueryKey;
use crate::store::settling::records;
use crate::store::{Clock, ReserveError, Settlement, StoreError};
use crate::time::Timestamp;

/// Space set aside for the answer of one hold, and for each of its items.
const HOLD_SPACE_BYTES: u64 = 256 << 10;
const ITEM_SPACE_BYTES: u64 = 16 << 10;
/// Space kept for entries that no hold stands behind.
const SLACK_BYTES: u64 = 1 << 20;
/// Space is set aside in steps of this size where the disk has it.
const SPACE_STEP_BYTES: u64 = 16 << 20;
/// Different parties and models whose hits are counted apart before they are written early; on a full disk, more are lost.
const TALLIES_MAX: usize = 1024;

/// Resolves once what it stands for is durable.
pub(crate) type Ticket = oneshot::Receiver<Result<(), StoreError>>;

/// Something enqueued: an entry, an erasing, or (with neither) a wait for everything before it.
pub(crate) struct Pending {
    pub(crate) draft: Option<Draft>,
    /// Where a test may make its writing and its syncing go wrong.
    pub(crate) stages: Option<[Stage; 2]>,
    /// Records that become known once it is durable.
    pub(crate) known: Vec<(Place, Arc<Record>)>,
    /// A key that is no longer known once it is durable.
    pub(crate) forgotten: Option<QueryKey>,
    /// What is overwritten, once everything before it is durable.
    pub(crate) erase: Vec<Span>,
    pub(crate) done: oneshot::Sender<Result<(), StoreError>>,
}

/// What is decided on.
pub(crate) struct Inner {
    pub(crate) book: Book,
    pub(crate) open: BTreeMap<HoldId, OpenPlace>,
    pub(crate) queue: Vec<Pending>,
    pub(crate) tallies: Vec<Tally>,
    /// Set once a write or a sync failed: nothing is written any more.
    pub(crate) unwritable: Option<String>,
    pub(crate) stopping: bool,
    /// Keys that are forgotten, and not yet erased: until they are, no checkpoint covers their entries.
    pub(crate) erasing: Forgotten,
    /// Where the journal will end once everything enqueued is written.
    end: u64,
    /// Bytes set aside for answers of open holds, together.
    space: u64,
    /// The offset up to which the disk has set space aside.
    room: u64,
    /// Why the disk gave no room the last time; later entries may try again.
    full: Option<String>,
}

/// The embedded store's state, shared by its callers and its threads.
pub(crate) struct Core {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) header: FileHeader,
    pub(crate) clock: Clock,
    // Held while deciding, applying and enqueueing, never across a write, a sync or an await; setting space aside is the
    // one call to the disk under it, because a hold must not be applied without.
    inner: Mutex<Inner>,
    pub(crate) wake: Condvar,
    // Answers that are durable. Written by the committing thread alone.
    pub(crate) places: RwLock<HashMap<QueryKey, Place>>,
    // Written while blobs are overwritten; read while the journal is read for an answer, which may stand beside one.
    pub(crate) overwriting: RwLock<()>,
    pub(crate) synced: AtomicU64,
    pub(crate) changes: watch::Sender<u64>,
    pub(crate) index: Index,
}

/// Why a claim was not taken.
pub(crate) enum NotTaken {
    Refused(ReserveError),
    /// The keys are settled; their answers are durable once the ticket resolves.
    Known(Vec<QueryKey>, Ticket),
}

impl Core {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        header: FileHeader,
        clock: Clock,
        index: Index,
        mut state: State,
    ) -> Arc<Self> {
        forget_space(&mut state);
        let inner = Inner {
            book: state.book,
            open: state.open,
            queue: Vec::new(),
            tallies: Vec::new(),
            unwritable: None,
            stopping: false,
            erasing: Forgotten::new(),
            end: state.position,
            space: 0,
            room: state.position,
            full: None,
        };
        Arc::new(Self {
            disk,
            header,
            clock,
            inner: Mutex::new(inner),
            wake: Condvar::new(),
            places: RwLock::new(state.places),
            overwriting: RwLock::default(),
            synced: AtomicU64::new(state.position),
            changes: watch::Sender::new(state.number),
            index,
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while it was held leaves a book without the entry that was being decided: entries are applied and
        // enqueued last, by calls that do not panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides, applies and enqueues; `decide` says none where nothing is to change.
    pub(crate) fn submit(
        &self,
        decide: impl FnOnce(&Book, Timestamp) -> Result<Option<Entry>, BookError>,
    ) -> Result<Ticket, StoreError> {
        let mut inner = self.lock();
        inner.writable()?;
        let entry = decide(&inner.book, (self.clock)()).map_err(contradiction)?;
        match entry {
            Some(entry) => self.enqueue(&mut inner, &entry, Vec::new(), Vec::new()),
            None => Ok(self.barrier(&mut inner)),
        }
    }

    pub(crate) fn submit_reserve(&self, claim: &Claim) -> Result<(HoldId, Ticket), NotTaken> {
        let refused = |error| NotTaken::Refused(ReserveError::Store(error));
        let mut inner = self.lock();
        inner.writable().map_err(refused)?;
        let entry = match inner.book.reserve(claim, (self.clock)()) {
            Ok(entry) => entry,
            Err(NotReserved::Known(keys)) => {
                return Err(NotTaken::Known(keys, self.barrier(&mut inner)));
            }
            Err(NotReserved::InFlight(keys)) => {
                return Err(NotTaken::Refused(ReserveError::InFlight(keys)));
            }
            Err(NotReserved::Refused(refusal)) => {
                return Err(NotTaken::Refused(ReserveError::Refused(refusal)));
            }
        };
        let hold = entry.fact.hold().expect("a hold's entry has its number");
        let ticket = self.enqueue(&mut inner, &entry, Vec::new(), Vec::new()).map_err(refused)?;
        Ok((hold, ticket))
    }

    /// Enqueues the answer to a hold; the records may be shown once the ticket resolves.
    pub(crate) fn submit_settle(
        &self,
        hold: HoldId,
        settlement: Settlement,
        blobs: Vec<Packed>,
    ) -> Result<(Vec<Arc<Record>>, Ticket), StoreError> {
        let mut inner = self.lock();
        inner.writable()?;
        let entry = inner
            .book
            .settle(hold, settlement.usage, settlement.media.clone(), (self.clock)())
            .map_err(contradiction)?;
        let records = inner.records(hold, &entry, settlement)?;
        let ticket = self.enqueue(&mut inner, &entry, blobs, records.clone())?;
        Ok((records, ticket))
    }

    pub(crate) fn submit_forfeit(
        &self,
        hold: HoldId,
        cause: &Cause,
        evidence: Vec<Packed>,
    ) -> Result<Ticket, StoreError> {
        let mut inner = self.lock();
        inner.writable()?;
        let entry = inner.book.forfeit(hold, cause.clone(), (self.clock)()).map_err(contradiction)?;
        if evidence.is_empty() {
            return self.enqueue(&mut inner, &entry, evidence, Vec::new());
        }
        // The fact matters more than what came of the answer: on a full disk it goes alone.
        self.enqueue(&mut inner, &entry, evidence, Vec::new())
            .or_else(|_| self.enqueue(&mut inner, &entry, Vec::new(), Vec::new()))
    }

    /// Sets a budget.
    pub(crate) fn submit_limit(&self, budget: Budget, origin: Origin) -> Result<Ticket, StoreError> {
        self.submit(|book, at| Ok(book.limit(budget, origin, at)))
    }

    /// Records a price.
    pub(crate) fn submit_price(&self, price: Price) -> Result<Ticket, StoreError> {
        self.submit(|book, at| Ok(book.price(price, at)))
    }

    /// Enqueues that the answers under `key` are forgotten; once that is durable, [`Core::erase`] has to follow.
    pub(crate) fn submit_forget(&self, key: QueryKey, why: String) -> Result<Ticket, StoreError> {
        let mut inner = self.lock();
        inner.writable()?;
        let entry = inner.book.forget(key, why, (self.clock)()).map_err(contradiction)?;
        let offset = inner.end;
        let ticket = self.enqueue(&mut inner, &entry, Vec::new(), Vec::new())?;
        inner.erasing.insert(key, offset);
        Ok(ticket)
    }

    /// Erases what is forgotten from the journal and from the index. Reads the whole journal, and blocks.
    pub(crate) fn erase(&self, key: QueryKey) -> Result<(), StoreError> {
        let forgotten: Forgotten =
            self.lock().erasing.get_key_value(&key).map(|(key, at)| (*key, *at)).into_iter().collect();
        let unreadable = |error: JournalError| StoreError::Unreadable(error.to_string());
        let spans = erase::spans(&*self.disk, &forgotten, self.synced()).map_err(unreadable)?;
        let (done, ticket) = oneshot::channel();
        let mut inner = self.lock();
        inner.writable()?;
        inner.queue.push(Pending { erase: spans, ..Pending::barrier(done) });
        drop(inner);
        self.wake.notify_one();
        ticket
            .blocking_recv()
            .unwrap_or_else(|_| Err(StoreError::Gone("the committing thread ended".into())))?;
        self.index.is_purged().map_err(StoreError::Unwritable)?;
        let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
        let all = places.iter().map(|(key, place)| (*key, *place)).collect();
        drop(places);
        self.index.fill(all, self.synced());
        let mut inner = self.lock();
        // Forgotten again meanwhile: that erasing is somebody else's.
        if inner.erasing.get(&key) == forgotten.get(&key) {
            inner.erasing.remove(&key);
        }
        Ok(())
    }

    /// Counts items served without a call; the committing thread writes them a second later.
    pub(crate) fn tally(&self, tally: Tally) {
        let mut inner = self.lock();
        if inner.tallies.iter_mut().any(|kept| kept.absorb(&tally)) {
            return;
        }
        if inner.tallies.len() >= TALLIES_MAX {
            let full = inner.full.is_some();
            self.submit_tallies(&mut inner);
            if full && inner.tallies.len() >= TALLIES_MAX {
                return;
            }
        }
        inner.tallies.push(tally);
        drop(inner);
        self.wake.notify_one();
    }

    /// Enqueues the tallies that have gathered; on a full disk they stay and are tried again.
    pub(crate) fn submit_tallies(&self, inner: &mut Inner) {
        if inner.unwritable.is_some() {
            inner.tallies.clear();
        }
        if inner.tallies.is_empty() {
            return;
        }
        let entry = inner.book.served(inner.tallies.clone(), (self.clock)());
        match self.enqueue(inner, &entry, Vec::new(), Vec::new()) {
            Ok(_ticket) => inner.tallies.clear(),
            Err(error) => tracing::warn!(%error, "hits could not be counted yet"),
        }
    }

    /// Enqueues what opening a store leaves in the record; says which holds nobody knows the end of. Where that cannot be
    /// written, what is known is served all the same.
    pub(crate) fn begin(&self, program: &str) -> Vec<HoldId> {
        let mut inner = self.lock();
        let crashed = inner.book.under_way();
        let entry = inner.book.opened(program.to_owned(), (self.clock)());
        let begun = self.enqueue(&mut inner, &entry, Vec::new(), Vec::new());
        if let Err(error) = begun.and_then(|_ticket| self.give_up_all(&mut inner)) {
            inner.unwritable = Some(error.to_string());
        }
        crashed
    }

    /// Enqueues what a clean close leaves in the record, and takes nothing more.
    pub(crate) fn end(&self) -> Result<Ticket, StoreError> {
        let mut inner = self.lock();
        inner.writable()?;
        self.submit_tallies(&mut inner);
        self.give_up_all(&mut inner)?;
        let entry = inner.book.closed((self.clock)());
        let ticket = self.enqueue(&mut inner, &entry, Vec::new(), Vec::new());
        inner.stopping = true;
        ticket
    }

    fn give_up_all(&self, inner: &mut Inner) -> Result<(), StoreError> {
        for hold in inner.book.under_way() {
            let forfeited = inner.book.forfeit(hold, Cause::Crashed, (self.clock)());
            let entry = forfeited.map_err(contradiction)?;
            self.enqueue(inner, &entry, Vec::new(), Vec::new())?;
        }
        Ok(())
    }

    /// The figures of now.
    pub(crate) fn present(&self) -> Present {
        let inner = self.lock();
        let unwritable = inner.unwritable.clone().or_else(|| inner.full.clone());
        Present { unwritable, ..inner.book.present((self.clock)()) }
    }

    /// A ticket for everything that is enqueued by now.
    fn barrier(&self, inner: &mut Inner) -> Ticket {
        let (done, ticket) = oneshot::channel();
        inner.queue.push(Pending::barrier(done));
        self.wake.notify_one();
        ticket
    }

    /// Applies a decided entry and enqueues it; where there is no room or it contradicts the book, nothing changes.
    pub(crate) fn enqueue(
        &self,
        inner: &mut Inner,
        entry: &Entry,
        blobs: Vec<Packed>,
        records: Vec<Arc<Record>>,
    ) -> Result<Ticket, StoreError> {
        let draft = Draft::new(entry, blobs).map_err(too_large)?;
        let hold = entry.fact.hold();
        let before = hold.and_then(|hold| inner.open.get(&hold)).map_or(0, |open| open.space);
        let after = inner.book_space_after(entry);
        self.make_room(inner, draft.bytes(), inner.space - before + after)?;
        inner.book.apply(entry).map_err(contradiction)?;
        // After this point it must succeed.
        inner.space = inner.space - before + after;
        let (offset, mut place) = (inner.end, None);
        inner.end += draft.bytes();
        note(&mut inner.open, &entry.fact, offset, after, |_, found| place = Some(found));
        let known =
            place.map_or_else(Vec::new, |place| records.into_iter().map(|record| (place, record)).collect());
        let (done, ticket) = oneshot::channel();
        let forgotten = match &entry.fact {
            Fact::Forgotten { key, .. } => Some(*key),
            _ => None,
        };
        let stages = Stage::of(&entry.fact);
        inner.queue.push(Pending { draft: Some(draft), stages, known, forgotten, ..Pending::barrier(done) });
        self.wake.notify_one();
        Ok(ticket)
    }

    /// Sees to it that `bytes` more, and then `space` for answers, can be written.
    fn make_room(&self, inner: &mut Inner, bytes: u64, space: u64) -> Result<(), StoreError> {
        let needed = inner.end + bytes + space;
        if needed <= inner.room {
            inner.full = None;
            return Ok(());
        }
        let wanted = (needed + SLACK_BYTES).next_multiple_of(SPACE_STEP_BYTES);
        // The slack is for entries without a hold; a full disk must not stop those before it stops new holds.
        let least = if space > inner.space { needed + SLACK_BYTES } else { needed };
        let given = self.disk.set_aside(wanted).map(|()| wanted);
        match given.or_else(|_| self.disk.set_aside(least).map(|()| least)) {
            Ok(room) => {
                inner.room = room;
                inner.full = None;
                Ok(())
            }
            Err(error) => {
                let why = format!("no space can be set aside for an answer: {error}");
                inner.full = Some(why.clone());
                Err(StoreError::Unwritable(why))
            }
        }
    }

    /// The offset up to which everything is durable.
    pub(crate) fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }
}

impl Pending {
    /// A wait for everything before it.
    fn barrier(done: oneshot::Sender<Result<(), StoreError>>) -> Self {
        Self { draft: None, stages: None, known: Vec::new(), forgotten: None, erase: Vec::new(), done }
    }
}

impl Inner {
    fn writable(&self) -> Result<(), StoreError> {
        match &self.unwritable {
            Some(why) => Err(StoreError::Unwritable(why.clone())),
            None if self.stopping => Err(StoreError::Unwritable("it is being closed".into())),
            None => Ok(()),
        }
    }

    /// Space that the entry's hold keeps set aside once the entry is applied.
    fn book_space_after(&self, entry: &Entry) -> u64 {
        match &entry.fact {
            Fact::Reserved { exchange, .. } => {
                HOLD_SPACE_BYTES + ITEM_SPACE_BYTES * exchange.items.len() as u64
            }
            _ => 0,
        }
    }

    /// The records that an answer will be known as.
    fn records(
        &self,
        hold: HoldId,
        entry: &Entry,
        settlement: Settlement,
    ) -> Result<Vec<Arc<Record>>, StoreError> {
        let exchange = self.book.exchange(hold);
        let (Some(exchange), Some(open)) = (exchange, self.open.get(&hold)) else { return Ok(Vec::new()) };
        records(hold, exchange, open.priced, entry, settlement)
    }

    /// Takes over the state after a failed write: what was never durable never happened.
    pub(crate) fn roll_back(&mut self, mut state: State) {
        forget_space(&mut state);
        self.space = 0;
        self.book = state.book;
        self.open = state.open;
        self.end = state.position;
    }

    /// Takes what is enqueued.
    pub(crate) fn take(&mut self) -> Vec<Pending> {
        std::mem::take(&mut self.queue)
    }
}

/// A store that begins anew has set nothing aside yet.
fn forget_space(state: &mut State) {
    state.open.values_mut().for_each(|open| open.space = 0);
}

fn contradiction(error: BookError) -> StoreError {
    StoreError::Contradiction(error.to_string())
}

fn too_large(error: JournalError) -> StoreError {
    StoreError::Contradiction(error.to_string())
}
