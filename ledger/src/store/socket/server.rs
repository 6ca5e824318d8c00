//! The owner's side of `desk.sock`: other processes of the same user hold, settle and ask through it.
//!
//! Must not decide anything: every call goes to the store. Invariants: a connection's holds are its own, and when it goes
//! away they are forfeited; an answer under way is settled all the same.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};

use super::{Address, Call, Reply, Request, Response, SOCKET, check_greeting, encode, greeting, receive};
use crate::entry::HoldId;
use crate::store::embedded::Embedded;
use crate::store::{Doubt, Reservation, Store, StoreError};

/// Calls of one connection that are worked on at a time.
const CALLS_MAX: usize = 1024;
/// Answers of one connection that wait to be sent.
const ANSWERS_MAX: usize = 64;
/// Forfeited holds of one connection whose answer may still come.
const DOUBTS_MAX: usize = 4096;

/// Listens at the store's socket from now on; the task ends when it is aborted, and the connections with it.
pub(crate) fn listen(folder: &Path, store: Arc<Embedded>) -> io::Result<JoinHandle<()>> {
    let path = folder.join(SOCKET);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let address = Address::new(folder)?;
    let listener = UnixListener::bind(&address.path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    let owner = std::fs::metadata(&path)?.uid();
    Ok(tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
            };
            match accepted {
                Ok((stream, _)) => {
                    let same_user = stream.peer_cred().is_ok_and(|peer| [0, owner].contains(&peer.uid()));
                    if same_user {
                        connections.spawn(serve(stream, Arc::clone(&store)));
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection to the store's socket was not taken");
                    tokio::task::yield_now().await;
                }
            }
        }
    }))
}

/// What one connection holds.
struct Connection {
    store: Arc<Embedded>,
    // Locked to put in or take out; the store is called outside.
    holds: Mutex<HashMap<HoldId, Reservation>>,
    doubts: Mutex<HashMap<HoldId, Doubt>>,
}

async fn serve(stream: UnixStream, store: Arc<Embedded>) {
    if let Err(error) = converse(stream, store).await {
        tracing::debug!(%error, "a connection to the store's socket broke off");
    }
}

async fn converse(mut stream: UnixStream, store: Arc<Embedded>) -> io::Result<()> {
    stream.write_all(&greeting()).await?;
    let mut hello = [0; super::GREETING_BYTES];
    stream.read_exact(&mut hello).await?;
    check_greeting(&hello)?;
    let mut changes = store.changes();
    let (mut read, mut write) = stream.into_split();
    let (answers, mut queue) = mpsc::channel::<Vec<u8>>(ANSWERS_MAX);
    let writing = tokio::spawn(async move {
        while let Some(bytes) = queue.recv().await {
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    let pushing = {
        let answers = answers.clone();
        tokio::spawn(async move {
            while changes.changed().await.is_ok() {
                let reply = Reply::Changed(*changes.borrow_and_update());
                let Ok(bytes) = encode(&Response { id: 0, reply }) else { return };
                if answers.send(bytes).await.is_err() {
                    return;
                }
            }
        })
    };
    let _end = (AbortOnDrop(writing), AbortOnDrop(pushing));
    let connection = Arc::new(Connection { store, holds: Mutex::default(), doubts: Mutex::default() });
    let room = Arc::new(Semaphore::new(CALLS_MAX));
    while let Some(Request { id, call }) = receive(&mut read).await? {
        let permit = Arc::clone(&room).acquire_owned().await.map_err(io::Error::other)?;
        let (connection, answers) = (Arc::clone(&connection), answers.clone());
        // Not tied to the connection: an answer that was paid for is kept even if its sender goes away.
        tokio::spawn(async move {
            let reply = connection.call(call).await;
            if id != 0 {
                let bytes = encode(&Response { id, reply }).or_else(|error| {
                    let reply = Reply::Done(Err(StoreError::Unreadable(error.to_string())));
                    encode(&Response { id, reply })
                });
                if let Ok(bytes) = bytes {
                    // Whoever asked may be gone; then nobody waits.
                    let _ = answers.send(bytes).await;
                }
            }
            drop(permit);
        });
    }
    Ok(())
}

impl Connection {
    async fn call(&self, call: Call) -> Reply {
        let store = &self.store;
        match call {
            Call::Find(keys) => Reply::Found(store.find(&keys).await.map(|found| {
                found.into_iter().map(|record| record.map(|record| (*record).clone())).collect()
            })),
            Call::Reserve(claim) => Reply::Reserved(store.reserve(claim).await.map(|reservation| {
                let hold = reservation.hold();
                lock(&self.holds).insert(hold, reservation);
                hold
            })),
            Call::Settle(hold, settlement) => Reply::Settled(match self.held(hold) {
                Ok(reservation) => store.settle(reservation, settlement).await.map(plain),
                Err(error) => Err(error),
            }),
            Call::Release(hold, cause) => Reply::Done(match self.held(hold) {
                Ok(reservation) => store.release(reservation, cause).await,
                Err(error) => Err(error),
            }),
            Call::Forfeit(hold, cause, evidence) => Reply::Done(match self.held(hold) {
                Ok(reservation) => store.forfeit(reservation, cause, evidence).await.map(|doubt| {
                    let mut doubts = lock(&self.doubts);
                    if doubts.len() < DOUBTS_MAX {
                        doubts.insert(hold, doubt);
                    }
                }),
                Err(error) => Err(error),
            }),
            Call::SettleLate(hold, settlement) => {
                let doubt = lock(&self.doubts).remove(&hold).ok_or_else(|| unknown(hold));
                Reply::Settled(match doubt {
                    Ok(doubt) => store.settle_late(doubt, settlement).await.map(plain),
                    Err(error) => Err(error),
                })
            }
            Call::Resolve(hold, billed, why) => Reply::Done(store.resolve(hold, billed, why).await),
            Call::Forget(key, why) => Reply::Done(store.forget(key, why).await),
            Call::Limit(budget, origin) => Reply::Done(store.limit(budget, origin).await),
            Call::Price(price) => Reply::Done(store.price(price).await),
            Call::Tally(tally) => {
                store.tally(tally);
                Reply::Done(Ok(()))
            }
            Call::Present => Reply::Present(store.present().await),
            Call::Synced => Reply::Synced(store.synced()),
            Call::Lost(hold) => Reply::Done(self.held(hold).map(drop)),
            Call::Abandon(hold) => Reply::Done(match self.held(hold) {
                Ok(reservation) => store.release(reservation, crate::entry::Cause::Abandoned).await,
                Err(error) => Err(error),
            }),
        }
    }

    fn held(&self, hold: HoldId) -> Result<Reservation, StoreError> {
        lock(&self.holds).remove(&hold).ok_or_else(|| unknown(hold))
    }
}

fn plain(records: Vec<Arc<crate::answer::Record>>) -> Vec<crate::answer::Record> {
    records.into_iter().map(|record| (*record).clone()).collect()
}

fn unknown(hold: HoldId) -> StoreError {
    StoreError::Contradiction(format!("hold {} is not one of this connection", hold.0))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
