//! The buffer between one answer under way and everybody who reads it live.
//!
//! Must not know what the bytes mean. Invariant: bytes that were held back are shown only after the answer is durable.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::watch;

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
    changed: watch::Sender<()>,
    streamed: bool,
}

/// Reads an answer under way from its beginning.
#[derive(Debug)]
pub struct LiveReader {
    live: Arc<Live>,
    position: usize,
    changed: watch::Receiver<()>,
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
        Self { buffer: Mutex::default(), changed: watch::Sender::new(()), streamed }
    }

    /// Whether the teacher was asked for a stream, so that chunks come before the end.
    pub fn is_streamed(&self) -> bool {
        self.streamed
    }

    /// Shows bytes to all readers.
    pub fn push(&self, bytes: Bytes) {
        self.lock().shown.push(bytes);
        self.changed.send_replace(());
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
        self.changed.send_replace(());
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
        let mut changed = self.changed.subscribe();
        loop {
            if let Some(ending) = self.lock().ending.clone() {
                return ending;
            }
            changed.changed().await.expect("the sender lives as long as `self`");
        }
    }

    /// Notifies of every push and of the end.
    pub(crate) fn progress(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Waits until something is shown, or the end.
    pub(crate) async fn begun(&self) {
        let mut changed = self.changed.subscribe();
        while {
            let buffer = self.lock();
            buffer.shown.is_empty() && buffer.ending.is_none()
        } {
            changed.changed().await.expect("the sender lives as long as `self`");
        }
    }

    /// Reads from the beginning.
    pub fn read(self: &Arc<Self>) -> LiveReader {
        LiveReader { changed: self.changed.subscribe(), live: Arc::clone(self), position: 0 }
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
        loop {
            self.changed.mark_unchanged();
            let (chunk, ending) = {
                let buffer = self.live.lock();
                (buffer.shown.get(self.position).cloned(), buffer.ending.clone())
            };
            if let Some(chunk) = chunk {
                self.position += 1;
                return Step::Chunk(chunk);
            }
            if let Some(ending) = ending {
                return Step::Ended(ending);
            }
            self.changed.changed().await.expect("the sender lives as long as the reader's `live`");
        }
    }
}
