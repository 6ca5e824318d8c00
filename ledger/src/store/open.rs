//! Opening a store from any process. The embedded one: the first one owns it, the others are its clients.
//!
//! Must not know what a store keeps. Invariant: there is at most one owner, and whoever cannot own and cannot reach the
//! owner gets an error, not a second store.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::embedded::{Embedded, Filling, OpenError, Owner, Recovery};
use super::postgres::{Postgres, Replica};
use super::socket::Remote;
use super::url::StoreUrl;
use super::{Clock, Store, StoreError};

/// Attempts to own or to connect, while an owner is just coming or going.
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(50);

/// A store, owned or connected to.
pub struct OpenStore {
    /// The store.
    pub store: Arc<dyn Store>,
    /// What opening found, where this process owns the store.
    pub recovery: Option<Recovery>,
    /// How far the index is filled, where this process owns a folder.
    pub filling: Option<watch::Receiver<Filling>>,
    part: Part,
}

/// What this process is to a store.
enum Part {
    /// It owns a folder.
    Owner(Owner),
    /// It is connected to the owner of a folder.
    Client,
    /// It is one of those that write a database.
    Replica(Replica),
}

/// Opens the store at `url`: owns it and serves other processes, or connects to its owner.
///
/// # Errors
/// The record is damaged or newer, the store cannot be used, or its owner does not answer.
pub async fn open_store(url: &StoreUrl, clock: Clock, program: &str) -> Result<OpenStore, OpenError> {
    match url {
        StoreUrl::Sled(folder) => open_folder(folder, clock, program).await,
        StoreUrl::Postgres(url) => {
            let opened = Postgres::open(url, program).await?;
            Ok(OpenStore {
                store: opened.store,
                recovery: None,
                filling: None,
                part: Part::Replica(opened.replica),
            })
        }
    }
}

async fn open_folder(folder: &Path, clock: Clock, program: &str) -> Result<OpenStore, OpenError> {
    let mut why = String::new();
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        match Embedded::open(folder, Arc::clone(&clock), program) {
            Ok(opened) => {
                let mut owner = opened.owner;
                owner
                    .listen(&opened.store)
                    .map_err(|source| OpenError::Io { path: folder.join(super::socket::SOCKET), source })?;
                let recovery = Some(opened.recovery);
                let filling = Some(opened.store.filling());
                return Ok(OpenStore { store: opened.store, recovery, filling, part: Part::Owner(owner) });
            }
            Err(OpenError::Owned(_)) => {}
            Err(error) => return Err(error),
        }
        match Remote::connect(folder).await {
            Ok(store) => return Ok(OpenStore { store, recovery: None, filling: None, part: Part::Client }),
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                let folder = folder.to_owned();
                return Err(OpenError::Unreachable { folder, why: error.to_string() });
            }
            Err(error) => why = error.to_string(),
        }
    }
    Err(OpenError::Unreachable { folder: folder.to_owned(), why })
}

impl OpenStore {
    /// Whether this process writes the store itself: it owns the folder, or is one of those that write a database.
    pub fn is_owner(&self) -> bool {
        !matches!(self.part, Part::Client)
    }

    /// Closes the store in good order; a connection to its owner is just given up.
    ///
    /// # Errors
    /// The end mark could not be written; nothing acknowledged is lost.
    pub fn close(self) -> Result<(), StoreError> {
        match self.part {
            Part::Owner(owner) => owner.close(),
            Part::Client => Ok(()),
            Part::Replica(replica) => replica.close(),
        }
    }
}
