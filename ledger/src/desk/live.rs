//! The buffer between one answer under way and everybody who reads it live.
//!
//! Must not know what the bytes mean. Invariant: bytes that were held back are shown only after the answer is durable.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::answer::Record;
use crate::desk::DeskError;

/// How an answer under way ended.
#[derive(Clone, Debug)]
pub enum Ending {
    /// Durable: the records of the leader's items, in their order.
    Answered(Vec<Arc<Record>>),
    /// Failed.
    Failed(Arc<DeskError>),
    /// Nobody was asked (the leader was refused): whoever follows may lead.
    Vacant,
}

#[derive(Debug, Default)]
struct Buffer {
    shown: Vec<Bytes>,
    held: Vec<Bytes>,
    ending: Option<Ending>,
}

/// An answer under way.
#[derive(Debug)]
pub struct Live {
    // Held for the length of a push or a copy, never across an await: writers and readers are different tasks.
    buffer: Mutex<Buffer>,
    changed: Notify,
    streamed: bool,
    followers: AtomicUsize,
}

/// A request that follows an answer under way; dropping it stops following.
#[derive(Debug)]
pub(crate) struct Follower(Arc<Live>);

impl Follower {
    /// What it follows.
    pub(crate) fn live(&self) -> &Arc<Live> {
        &self.0
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.followers.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Reads an answer under way from its beginning.
#[derive(Debug)]
pub struct LiveReader {
    live: Arc<Live>,
    position: usize,
    _follower: Option<Follower>,
}

/// What a reader gets next.
#[derive(Clone, Debug)]
pub enum Step {
    /// Bytes of the teacher's stream.
    Chunk(Bytes),
    /// The answer ended; nothing follows.
    Ended(Ending),
}

impl Live {
    /// An answer that has not begun; `streamed` where the teacher was asked for a stream.
    pub fn new(streamed: bool) -> Self {
        Self { buffer: Mutex::default(), changed: Notify::new(), streamed, followers: AtomicUsize::new(0) }
    }

    /// Whether the teacher was asked for a stream, so that chunks come before the end.
    pub fn is_streamed(&self) -> bool {
        self.streamed
    }

    /// Shows bytes to all readers.
    pub fn push(&self, bytes: Bytes) {
        self.lock().shown.push(bytes);
        self.changed.notify_waiters();
    }

    /// Keeps bytes back until the answer is durable.
    pub fn hold_back(&self, bytes: Bytes) {
        self.lock().held.push(bytes);
    }

    /// Ends the answer: what was held back is shown where it is durable, and dropped where it is not.
    pub fn end(&self, ending: Ending) {
        let mut buffer = self.lock();
        let held = std::mem::take(&mut buffer.held);
        if matches!(ending, Ending::Answered(_)) {
            buffer.shown.extend(held);
        }
        buffer.ending = Some(ending);
        drop(buffer);
        self.changed.notify_waiters();
    }

    /// Whether it has ended.
    pub fn is_ended(&self) -> bool {
        self.lock().ending.is_some()
    }

    /// How it ended, if it has.
    pub(crate) fn ending(&self) -> Option<Ending> {
        self.lock().ending.clone()
    }

    /// Whether any byte was shown.
    pub(crate) fn has_shown(&self) -> bool {
        !self.lock().shown.is_empty()
    }

    /// Waits for the end.
    pub async fn ended(&self) -> Ending {
        self.until(|buffer| buffer.ending.clone()).await
    }

    /// Waits until more than `seen` chunks are shown, and says how many.
    pub(crate) async fn grown(&self, seen: usize) -> usize {
        self.until(|buffer| Some(buffer.shown.len()).filter(|shown| *shown > seen)).await
    }

    /// Waits until something is shown, or the end.
    pub(crate) async fn begun(&self) {
        self.until(|buffer| (!buffer.shown.is_empty() || buffer.ending.is_some()).then_some(())).await;
    }

    /// Waits until `find` finds something; who waited first is woken first, so that a seed is a history.
    async fn until<T>(&self, mut find: impl FnMut(&Buffer) -> Option<T>) -> T {
        let mut changed = pin!(self.changed.notified());
        loop {
            changed.as_mut().enable();
            let found = find(&self.lock());
            if let Some(found) = found {
                return found;
            }
            changed.as_mut().await;
            changed.set(self.changed.notified());
        }
    }

    /// Follows the answer, unless `most` requests do so already.
    pub(crate) fn follow(self: &Arc<Self>, most: usize) -> Option<Follower> {
        let one_more = |count: usize| (count < most).then(|| count + 1);
        let followed = self.followers.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more);
        followed.is_ok().then(|| Follower(Arc::clone(self)))
    }

    /// Reads from the beginning, as the leader or as a follower.
    pub(crate) fn read(self: &Arc<Self>, follower: Option<Follower>) -> LiveReader {
        LiveReader { live: Arc::clone(self), position: 0, _follower: follower }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Buffer> {
        self.buffer.lock().expect("no code panics while it holds the buffer")
    }
}

impl LiveReader {
    /// Whether the teacher was asked for a stream.
    pub fn is_streamed(&self) -> bool {
        self.live.streamed
    }

    /// The next bytes, or the end.
    pub async fn next(&mut self) -> Step {
        let position = self.position;
        let step = self.live.until(|buffer| match buffer.shown.get(position) {
            Some(chunk) => Some(Step::Chunk(chunk.clone())),
            None => buffer.ending.clone().map(Step::Ended),
        });
        let step = step.await;
        self.position += usize::from(matches!(step, Step::Chunk(_)));
        step
    }
}
