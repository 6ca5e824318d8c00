//! A disk of bytes in memory that keeps synced and unsynced writes apart, and at a kill loses, keeps or reorders the
//! unsynced ones sector by sector.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::super::disk::Disk;
use crate::journal::{FileHeader, Source};

const SECTOR_BYTES: usize = 512;

#[derive(Clone)]
enum Change {
    Write(u64, Vec<u8>),
    Cut(u64),
}

#[derive(Default)]
struct State {
    visible: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
    files: BTreeMap<String, Vec<u8>>,
    aside: u64,
    capacity: Option<u64>,
    /// Changes until the power goes.
    steps: Option<u64>,
    failing_syncs: u32,
    /// How the next write fails, and whether half of it is done before.
    failing_write: Option<(io::ErrorKind, bool)>,
    writes: u64,
}

type Watch = Box<dyn FnMut() + Send>;

/// The disk.
#[derive(Default)]
pub(super) struct SimulatedDisk {
    state: Mutex<State>,
    before_sync: Mutex<Option<Watch>>,
}

pub(super) const HEADER: FileHeader = FileHeader { writer: *b"0123456789abcdef", created_ms: 7 };

impl SimulatedDisk {
    /// A disk with an empty journal.
    pub(super) fn new() -> Arc<Self> {
        Self::holding(HEADER.encode().to_vec(), BTreeMap::new())
    }

    /// A disk with this journal and these small files.
    pub(super) fn holding(bytes: Vec<u8>, files: BTreeMap<String, Vec<u8>>) -> Arc<Self> {
        let state = State { visible: bytes.clone(), durable: bytes, files, ..State::default() };
        Arc::new(Self { state: Mutex::new(state), before_sync: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The power goes after `steps` more changes.
    pub(super) fn kill_after(&self, steps: u64) {
        self.state().steps = Some(steps);
    }

    pub(super) fn is_dead(&self) -> bool {
        self.state().steps == Some(0)
    }

    /// The next syncs fail, and what they should have written is forgotten, as on Linux.
    pub(super) fn fail_syncs(&self, count: u32) {
        self.state().failing_syncs = count;
    }

    /// The next write fails, with nothing or the half of it done.
    pub(super) fn fail_write(&self, kind: io::ErrorKind, half: bool) {
        self.state().failing_write = Some((kind, half));
    }

    /// Space that the journal may take; none for as much as it wants.
    pub(super) fn limit(&self, capacity: Option<u64>) {
        self.state().capacity = capacity;
    }

    pub(super) fn aside(&self) -> u64 {
        self.state().aside
    }

    /// Writes so far.
    pub(super) fn writes(&self) -> u64 {
        self.state().writes
    }

    /// Whether everything written is durable.
    pub(super) fn is_synced(&self) -> bool {
        let state = self.state();
        state.unsynced.is_empty() && state.visible == state.durable
    }

    /// The journal as the process sees it.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.state().visible.clone()
    }

    /// A small file.
    pub(super) fn state_file(&self, name: &str) -> Vec<u8> {
        self.state().files[name].clone()
    }

    /// Whether there is no small file of that name.
    pub(super) fn has_no_file(&self, name: &str) -> bool {
        !self.state().files.contains_key(name)
    }

    /// Called in the middle of every commit: written, not yet synced.
    pub(super) fn before_sync(&self, watch: impl FnMut() + Send + 'static) {
        *self.before_sync.lock().unwrap() = Some(Box::new(watch));
    }

    /// What is left when the power goes now.
    pub(super) fn killed(&self, rng: &mut ChaCha8Rng) -> Arc<Self> {
        let state = self.state();
        let mut bytes = state.durable.clone();
        let kept = rng.random_range(0..=4);
        for change in &state.unsynced {
            match change {
                Change::Cut(length) if rng.random_range(0..4) < kept => {
                    bytes.truncate(usize::try_from(*length).unwrap());
                }
                Change::Cut(_) => {}
                Change::Write(offset, written) => {
                    let offset = usize::try_from(*offset).unwrap();
                    if rng.random_range(0..4) < kept {
                        bytes.resize(bytes.len().max(offset + written.len()), 0);
                    }
                    let mut start = 0;
                    while start < written.len() {
                        let sector = SECTOR_BYTES - (offset + start) % SECTOR_BYTES;
                        let end = written.len().min(start + sector);
                        if rng.random_range(0..4) < kept {
                            bytes.resize(bytes.len().max(offset + end), 0);
                            bytes[offset + start..offset + end].copy_from_slice(&written[start..end]);
                        }
                        start = end;
                    }
                }
            }
        }
        Self::holding(bytes, state.files.clone())
    }
}

fn step(state: &mut State) -> io::Result<()> {
    match &mut state.steps {
        Some(0) => Err(io::Error::other("the power is gone")),
        Some(steps) => {
            *steps -= 1;
            if *steps == 0 { Err(io::Error::other("the power goes")) } else { Ok(()) }
        }
        None => Ok(()),
    }
}

fn full() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

impl Source for SimulatedDisk {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.state().visible[..].read_at(buffer, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state().visible.len() as u64)
    }
}

impl Disk for SimulatedDisk {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.state();
        if state.steps == Some(0) {
            return step(&mut state);
        }
        let failing = state.failing_write.take();
        let bytes = match failing {
            Some((kind, false)) => return Err(kind.into()),
            Some((_, true)) => &bytes[..bytes.len() / 2],
            None => bytes,
        };
        let end = offset + bytes.len() as u64;
        if end > state.aside && state.capacity.is_some_and(|capacity| end > capacity) {
            return Err(full());
        }
        state.writes += 1;
        let (start, end) = (usize::try_from(offset).unwrap(), usize::try_from(end).unwrap());
        let length = state.visible.len().max(end);
        state.visible.resize(length, 0);
        state.visible[start..end].copy_from_slice(bytes);
        state.unsynced.push(Change::Write(offset, bytes.to_vec()));
        match failing {
            Some((kind, _)) => Err(kind.into()),
            None => step(&mut state),
        }
    }

    fn sync(&self) -> io::Result<()> {
        if let Some(watch) = &mut *self.before_sync.lock().unwrap() {
            watch();
        }
        let mut state = self.state();
        step(&mut state)?;
        if state.failing_syncs > 0 {
            state.failing_syncs -= 1;
            state.unsynced.clear();
            return Err(io::Error::other("the disk failed"));
        }
        for change in std::mem::take(&mut state.unsynced) {
            match change {
                Change::Cut(length) => state.durable.truncate(usize::try_from(length).unwrap()),
                Change::Write(offset, bytes) => {
                    let start = usize::try_from(offset).unwrap();
                    let length = state.durable.len().max(start + bytes.len());
                    state.durable.resize(length, 0);
                    state.durable[start..start + bytes.len()].copy_from_slice(&bytes);
                }
            }
        }
        Ok(())
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        let mut state = self.state();
        step(&mut state)?;
        state.visible.truncate(usize::try_from(length).unwrap());
        state.unsynced.push(Change::Cut(length));
        Ok(())
    }

    fn set_aside(&self, end: u64) -> io::Result<()> {
        let mut state = self.state();
        if state.capacity.is_some_and(|capacity| end > capacity) {
            return Err(full());
        }
        state.aside = state.aside.max(end);
        Ok(())
    }

    fn load(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.state().files.get(name).cloned())
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        step(&mut state)?;
        state.files.insert(name.to_owned(), bytes.to_vec());
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        step(&mut state)?;
        state.files.remove(name).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
