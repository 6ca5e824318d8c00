//! The wish to stop: SIGINT (Ctrl-C) and SIGTERM.
//!
//! Must not know what is stopped. Invariant: the first signal asks for a clean end, a second one ends the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

use crate::print;
use crate::words::{Exit, Trouble};

/// Whether somebody asked to stop.
#[derive(Clone)]
pub(crate) struct Interrupt {
    asked: watch::Receiver<bool>,
}

impl Interrupt {
    /// Listens for signals from here on; `words` are said at the first one.
    ///
    /// # Errors
    /// The system takes no handler.
    pub(crate) fn listen(words: &'static str) -> Result<Self, Trouble> {
        Self::listen_to(words, std::future::pending())
    }

    /// Listens for signals and for the end of standard input, which whoever started this process holds open: it hears that
    /// it shall stop also where that process is killed.
    ///
    /// # Errors
    /// The system takes no handler.
    pub(crate) fn listen_on_leash(words: &'static str) -> Result<Self, Trouble> {
        let (end, ended) = oneshot::channel();
        // A thread that nobody joins: a read of the runtime's own would keep the process from ending.
        std::thread::spawn(move || {
            // Whatever is sent means nothing, and a failed read is an end.
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            // The listener may be gone with the process.
            let _ = end.send(());
        });
        Self::listen_to(words, async move { drop(ended.await) })
    }

    fn listen_to(
        words: &'static str,
        other: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Self, Trouble> {
        let handler =
            |kind| signal(kind).map_err(|source| Trouble::io("signals cannot be handled", "", source));
        let (mut int, mut term) = (handler(SignalKind::interrupt())?, handler(SignalKind::terminate())?);
        let (ask, asked) = watch::channel(false);
        tokio::spawn(async move {
            tokio::select! {
                () = wait(&mut int, &mut term) => {}
                () = other => {}
            }
            print::aside(words);
            ask.send_replace(true);
            wait(&mut int, &mut term).await;
            std::process::exit(Exit::Failed.code().into());
        });
        Ok(Self { asked })
    }

    /// Whether somebody has asked to stop.
    pub(crate) fn is_asked(&self) -> bool {
        *self.asked.borrow()
    }

    /// Turns true when somebody asks to stop.
    pub(crate) fn watch(&self) -> watch::Receiver<bool> {
        self.asked.clone()
    }

    /// The wish as a flag, for a loop on another thread; it is set for as long as the runtime lives.
    pub(crate) fn flag(&self) -> Arc<AtomicBool> {
        let flag = Arc::new(AtomicBool::new(false));
        let (interrupt, shared) = (self.clone(), Arc::clone(&flag));
        tokio::spawn(async move {
            interrupt.asked().await;
            shared.store(true, Ordering::Relaxed);
        });
        flag
    }

    /// Waits until somebody asks to stop.
    pub(crate) async fn asked(&self) {
        let mut asked = self.asked.clone();
        // The sender lives in the task above, which ends only with the process.
        let _ = asked.wait_for(|asked| *asked).await;
    }
}

async fn wait(int: &mut tokio::signal::unix::Signal, term: &mut tokio::signal::unix::Signal) {
    tokio::select! {
        _ = int.recv() => {}
        _ = term.recv() => {}
    }
}
