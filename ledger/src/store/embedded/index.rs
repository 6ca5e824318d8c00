//! The sled index: key to record, so that a hit costs one look-up instead of two reads of the journal.
//!
//! Must not be trusted: it can be missing, behind, garbled or locked, and its library can panic. Invariants: a record is
//! taken from it only if it was written for the very place at which the journal has it; whatever goes wrong here, the
//! journal answers, and the index is made anew.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};
use sled::Db;
use tokio::sync::watch;

use super::disk::{Disk, FolderDisk, make_private};
use super::place::{Place, records_at};
use crate::answer::Record;
use crate::fault::{self, Stage};
use crate::journal::{FileHeader, Writer};
use crate::query::QueryKey;

/// Its name in the store's folder.
pub(crate) const INDEX: &str = "index";
/// What the name of an index that was put aside ends in, before its number.
const OLD: &str = "old-";
/// Groups that may wait to be indexed before committing waits for them.
const WAITING_MAX: usize = 4096;
/// Exchanges indexed in one step while the index is filled.
const FILL_STEP: usize = 64;
/// sled's own count; what it holds resident is about twice as much.
const CACHE_BYTES: u64 = 32 << 20;
/// Where the index notes how far it got. Keys of records have 32 bytes.
const POSITION: &[u8] = b"position";

/// How far an index got, and in which journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Reached {
    writer: Writer,
    position: u64,
}

enum Message {
    Add(Vec<(Place, Arc<Record>)>, u64),
    Fill(Vec<(QueryKey, Place)>, u64),
    Flush,
    /// Delete it; it stays away until it is filled.
    Purge,
    /// Says what is left of indexes that were deleted.
    Left(SyncSender<Option<PathBuf>>),
}

/// How far the index is filled from the journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filling {
    /// Answers that were indexed.
    pub done: u64,
    /// Answers that were missing when it began.
    pub total: u64,
}

/// The database, while there is one that works.
type Slot = Arc<RwLock<Option<Db>>>;

/// The index as the store uses it.
pub(crate) struct Index {
    // Read for a look-up, written when the index is made anew.
    slot: Slot,
    broken: Arc<AtomicBool>,
    filling: watch::Sender<Filling>,
    // None for a store without an index, and once it stopped.
    sender: RwLock<Option<SyncSender<Message>>>,
}

/// An index that was opened, before the journal was read.
pub(crate) struct OpenedIndex {
    folder: PathBuf,
    slot: Slot,
    /// How far it got, where it is of this journal.
    pub(crate) reached: Option<u64>,
}

impl OpenedIndex {
    /// Opens the index in the store's folder; one that will not open, or is of another journal, is put away.
    pub(crate) fn open(store: &Path, header: &FileHeader) -> Self {
        let folder = store.join(INDEX);
        for old in old(&folder) {
            if let Err(error) = remove(&old) {
                tracing::warn!(%error, folder = %old.display(), "an old index cannot be deleted");
            }
        }
        let opened = open(&folder).and_then(|db| {
            let reached = reached(&db)?;
            Ok((db, reached))
        });
        let (db, reached) = match opened {
            Ok((db, None)) => (Some(db), None),
            Ok((db, Some(reached))) if reached.writer == header.writer => (Some(db), Some(reached.position)),
            Ok((db, Some(_))) => {
                drop(db);
                tracing::warn!("the index is of another journal and is made anew");
                (anew(&folder), None)
            }
            Err(why) => {
                tracing::warn!(why, "the index will not open and is made anew");
                (anew(&folder), None)
            }
        };
        Self { folder, slot: Arc::new(RwLock::new(db)), reached }
    }

    /// How far the index in the store's folder got, where it opens and is of this journal; nothing is put away.
    pub(crate) fn peek(store: &Path, header: &FileHeader) -> Option<u64> {
        let reached = open(&store.join(INDEX)).and_then(|db| reached(&db)).ok().flatten()?;
        (reached.writer == header.writer).then_some(reached.position)
    }

    /// Puts it away where it is behind `forgotten`: it may hold an answer that was to be erased.
    pub(crate) fn renew_before(&mut self, forgotten: u64) {
        if self.reached.is_some_and(|reached| reached < forgotten) {
            tracing::info!("the index may hold a forgotten answer and is made anew");
            *self.slot.write().unwrap_or_else(PoisonError::into_inner) = None;
            let db = anew(&self.folder);
            *self.slot.write().unwrap_or_else(PoisonError::into_inner) = db;
            self.reached = None;
        }
    }

    /// Starts the thread that fills it.
    pub(crate) fn start(
        self,
        disk: Arc<dyn Disk>,
        header: FileHeader,
    ) -> std::io::Result<(Index, JoinHandle<()>)> {
        let (sender, receiver) = sync_channel(WAITING_MAX);
        let broken = Arc::new(AtomicBool::new(false));
        let filling = watch::Sender::default();
        let filler = Filler {
            filling: filling.clone(),
            folder: self.folder,
            slot: Arc::clone(&self.slot),
            broken: Arc::clone(&broken),
            disk,
            header,
        };
        let thread =
            std::thread::Builder::new().name("tuition-index".into()).spawn(move || filler.run(&receiver))?;
        Ok((Index { slot: self.slot, broken, filling, sender: RwLock::new(Some(sender)) }, thread))
    }
}

impl Index {
    /// No index: the journal answers everything.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self {
            slot: Slot::default(),
            broken: Arc::default(),
            filling: watch::Sender::default(),
            sender: RwLock::default(),
        }
    }

    /// The record under `key`, if the index has the one that stands at `place`.
    pub(crate) fn load(&self, key: &QueryKey, place: Place) -> Option<Record> {
        // Held while it is read: an index that is deleted has no reader left.
        let slot = self.slot.read().unwrap_or_else(PoisonError::into_inner);
        let db = slot.as_ref()?;
        match guarded(|| db.get(key.as_bytes())) {
            Ok(None) => None,
            Ok(Some(value)) => match postcard::from_bytes::<(u64, Record)>(&value) {
                Ok((settled, record)) => (settled == place.settled && record.key == *key).then_some(record),
                Err(_) => self.distrust("a value does not decode"),
            },
            Err(why) => self.distrust(&why),
        }
    }

    fn distrust(&self, why: &str) -> Option<Record> {
        if !self.broken.swap(true, Ordering::AcqRel) {
            tracing::warn!(why, "the index fails to read and is made anew; the journal answers meanwhile");
        }
        None
    }

    /// Whether it was found broken and nobody has asked for a new one yet; says so once.
    pub(crate) fn wants_filling(&self) -> bool {
        self.broken.load(Ordering::Acquire)
            && self.slot.write().unwrap_or_else(PoisonError::into_inner).take().is_some()
    }

    /// Fills it with what stands at `places`; from then on it stands at `position`.
    pub(crate) fn fill(&self, places: Vec<(QueryKey, Place)>, position: u64) {
        self.send(Message::Fill(places, position));
    }

    /// How far it is filled.
    pub(crate) fn filling(&self) -> watch::Receiver<Filling> {
        self.filling.subscribe()
    }

    /// Adds what has become durable.
    pub(crate) fn add(&self, known: Vec<(Place, Arc<Record>)>, position: u64) {
        if !known.is_empty() {
            self.send(Message::Add(known, position));
        }
    }

    /// Deletes it, files and all; until it is filled again, the journal answers.
    pub(crate) fn purge(&self) {
        self.send(Message::Purge);
    }

    /// Waits until what was purged is deleted.
    ///
    /// # Errors
    /// Something of it is left.
    pub(crate) fn is_purged(&self) -> Result<(), String> {
        let (sender, receiver) = sync_channel(1);
        self.send(Message::Left(sender));
        // Without an index, or once its thread ended, nobody answers.
        match receiver.recv().ok().flatten() {
            Some(left) => Err(format!(
                "an old index, `{}`, cannot be deleted: it may hold what was forgotten",
                left.display()
            )),
            None => Ok(()),
        }
    }

    /// Writes to disk what it has, and lets its thread end.
    pub(crate) fn stop(&self) {
        self.send(Message::Flush);
        self.sender.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn send(&self, message: Message) {
        if let Some(sender) = &*self.sender.read().unwrap_or_else(PoisonError::into_inner) {
            // The thread ends only after the sender; if it panicked, the journal answers.
            let _ = sender.send(message);
        }
    }
}

/// The thread that writes the index.
struct Filler {
    filling: watch::Sender<Filling>,
    folder: PathBuf,
    slot: Slot,
    broken: Arc<AtomicBool>,
    disk: Arc<dyn Disk>,
    header: FileHeader,
}

impl Filler {
    fn run(self, receiver: &Receiver<Message>) {
        for message in receiver {
            let done = match message {
                Message::Add(known, position) => self.add(&known, position),
                Message::Fill(places, position) => self.fill(places, position),
                Message::Purge => self.purge(),
                Message::Left(answer) => {
                    // Whoever asked may have given up.
                    let _ = answer.send(old(&self.folder).into_iter().find(|old| remove(old).is_err()));
                    Ok(())
                }
                Message::Flush => self.db().map_or(Ok(()), |db| guarded(|| db.flush()).map(|_| ())),
            };
            if let Err(why) = done {
                tracing::warn!(why, "the index cannot be written; the journal answers");
                self.broken.store(true, Ordering::Release);
            }
        }
        self.slot.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn db(&self) -> Option<Db> {
        self.slot.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn purge(&self) -> Result<(), String> {
        *self.slot.write().unwrap_or_else(PoisonError::into_inner) = None;
        if self.folder.exists() {
            let aside = put_aside(&self.folder)?;
            remove(&aside).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn add(&self, known: &[(Place, Arc<Record>)], position: u64) -> Result<(), String> {
        let Some(db) = self.db() else { return Ok(()) };
        let known = known.iter().map(|(place, record)| (*place, &**record));
        self.write(&db, known, Some(position))?;
        fault::point(Stage::IndexApplied).map_err(|error| error.to_string())
    }

    fn write<'a>(
        &self,
        db: &Db,
        known: impl Iterator<Item = (Place, &'a Record)>,
        position: Option<u64>,
    ) -> Result<(), String> {
        let mut batch = sled::Batch::default();
        for (place, record) in known {
            let value = postcard::to_stdvec(&(place.settled, record)).map_err(|error| error.to_string())?;
            batch.insert(record.key.as_bytes(), value);
        }
        if let Some(position) = position {
            let reached = Reached { writer: self.header.writer, position };
            let reached = postcard::to_stdvec(&reached).map_err(|error| error.to_string())?;
            batch.insert(POSITION, reached);
        }
        guarded(|| db.apply_batch(batch))
    }

    fn fill(&self, places: Vec<(QueryKey, Place)>, position: u64) -> Result<(), String> {
        let db = match self.db() {
            Some(db) => db,
            None => {
                let Some(db) = anew(&self.folder) else { return Ok(()) };
                *self.slot.write().unwrap_or_else(PoisonError::into_inner) = Some(db.clone());
                self.broken.store(false, Ordering::Release);
                db
            }
        };
        let total = places.len() as u64;
        self.filling.send_replace(Filling { done: 0, total });
        if total > 0 {
            tracing::info!(answers = total, "the index is filled from the journal, which answers meanwhile");
        }
        let places = in_order(places);
        for step in places.chunks(FILL_STEP) {
            let mut known = Vec::new();
            for (_, place) in step {
                match records_at(&*self.disk, &self.header, *place) {
                    Ok(records) => known.extend(records.into_iter().map(|record| (*place, record))),
                    Err(error) => tracing::error!(%error, "an answer of the journal cannot be indexed"),
                }
            }
            self.write(&db, known.iter().map(|(place, record)| (*place, record)), None)?;
            self.filling.send_modify(|filling| filling.done += known.len() as u64);
        }
        self.write(&db, std::iter::empty(), Some(position))?;
        self.filling.send_replace(Filling { done: total, total });
        tracing::info!(answers = total, position, "the index is whole");
        Ok(())
    }
}

/// Each place once, in the order of a key that stands there: a tree that is filled in order touches each of its pages
/// once, and one that is larger than its cache would otherwise read and write a page for each key.
fn in_order(mut places: Vec<(QueryKey, Place)>) -> Vec<(QueryKey, Place)> {
    places.sort_unstable_by_key(|(key, place)| (*place, *key));
    places.dedup_by_key(|(_, place)| *place);
    places.sort_unstable_by_key(|(key, _)| *key);
    places
}

/// Opens a new index, with whatever stood there put out of the way.
fn anew(folder: &Path) -> Option<Db> {
    if folder.exists() {
        let old = put_aside(folder).inspect_err(|why| {
            tracing::warn!(why, "the old index cannot be moved away; the journal answers");
        });
        let old = old.ok()?;
        if let Err(error) = remove(&old) {
            tracing::warn!(%error, folder = %old.display(), "the old index cannot be deleted");
        }
    }
    open(folder).inspect_err(|why| tracing::warn!(why, "no index can be opened; the journal answers")).ok()
}

/// Moves an index out of the way; says where to.
fn put_aside(folder: &Path) -> Result<PathBuf, String> {
    let old = (0..u32::MAX)
        .map(|number| folder.with_extension(format!("{OLD}{number}")))
        .find(|old| !old.exists())
        .ok_or("too many old indexes lie there")?;
    std::fs::rename(folder, &old).map_err(|error| error.to_string())?;
    Ok(old)
}

/// Indexes that were put aside and are still there.
fn old(folder: &Path) -> Vec<PathBuf> {
    let beside = folder.parent().and_then(|store| std::fs::read_dir(store).ok());
    let is_old = |path: &PathBuf| {
        let extension = path.extension().and_then(std::ffi::OsStr::to_str);
        path.file_stem() == folder.file_stem() && extension.is_some_and(|name| name.starts_with(OLD))
    };
    beside.into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path()).filter(is_old).collect()
}

fn remove(old: &Path) -> std::io::Result<()> {
    if old.is_dir() { std::fs::remove_dir_all(old) } else { std::fs::remove_file(old) }
}

/// Opens the database, in a folder that only its owner may enter: sled's own files are open to whoever can.
fn open(folder: &Path) -> Result<Db, String> {
    let private = FolderDisk::make_folder(folder).and_then(|()| make_private(&File::open(folder)?));
    private.map_err(|error| error.to_string())?;
    guarded(|| sled::Config::new().path(folder).cache_capacity(CACHE_BYTES).flush_every_ms(Some(1000)).open())
}

fn reached(db: &Db) -> Result<Option<Reached>, String> {
    match guarded(|| db.get(POSITION))? {
        None if guarded(|| Ok(db.is_empty()))? => Ok(None),
        None => Err("it holds answers and does not say of which journal".into()),
        Some(bytes) => postcard::from_bytes(&bytes).map(Some).map_err(|error| error.to_string()),
    }
}

/// sled panics on some damage; here that is an error like any other.
fn guarded<T>(work: impl FnOnce() -> sled::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("its library panicked".into()),
    }
}
