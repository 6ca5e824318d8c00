//! The ownership of a store: who holds it ends the threads, the socket and, at last, the lock.
//!
//! Must not know entries. Invariant: the lock is given up last, when nothing of this process can write any more.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use super::commit::Committer;
use super::core::Core;
use super::{Embedded, OpenError};
use crate::store::{StoreError, socket};

/// The lock's name in the store's folder.
const LOCK: &str = "lock";

/// The ownership of an embedded store.
pub struct Owner {
    pub(super) core: Arc<Core>,
    pub(super) folder: PathBuf,
    pub(super) threads: Option<(JoinHandle<Committer>, JoinHandle<()>)>,
    pub(super) listener: Option<tokio::task::AbortHandle>,
    pub(super) _lock: File,
}

impl Owner {
    /// Closes the store in good order: what is under way becomes unknown, an end mark and a checkpoint are written.
    ///
    /// # Errors
    /// The end mark could not be written; nothing acknowledged is lost.
    pub fn close(mut self) -> Result<(), StoreError> {
        if let Some(listener) = self.listener.take() {
            listener.abort();
            // Left behind by a crash too: whoever opens the store next replaces it.
            let _ = std::fs::remove_file(self.folder.join(socket::SOCKET));
        }
        let mut ticket = self.core.end()?;
        if let Some(mut committer) = self.stop() {
            committer.checkpoint();
            if let Err(error) = self.core.disk.cut(committer.position()) {
                tracing::warn!(%error, "space that was set aside could not be given back");
            }
        }
        ticket.try_recv().unwrap_or_else(|_| Err(StoreError::Gone("the committing thread ended".into())))
    }

    /// Serves other processes at the store's socket from now on; needs a runtime.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn listen(&mut self, store: &Arc<Embedded>) -> io::Result<()> {
        let task = socket::server::listen(&self.folder, Arc::clone(store))?;
        self.listener = Some(task.abort_handle());
        Ok(())
    }

    fn stop(&mut self) -> Option<Committer> {
        let (committing, filling) = self.threads.take()?;
        self.core.lock().stopping = true;
        self.core.wake.notify_all();
        let committer = committing.join().ok();
        self.core.index.stop();
        // A filler that panicked leaves an index that is behind: the next start fills it.
        let _ = filling.join();
        committer
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.abort();
        }
        self.stop();
    }
}

/// Takes the lock; whoever has it owns the store.
pub(crate) fn own(folder: &Path) -> Result<File, OpenError> {
    let path = folder.join(LOCK);
    let failed = |source| OpenError::Io { path: path.clone(), source };
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::Owned(folder.to_owned())),
        Err(error) => Err(failed(error.into())),
    }
}
