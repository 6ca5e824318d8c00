//! The other processes' side of `desk.sock`: a store whose decisions are made by the owner.
//!
//! Must not decide or remember anything about money. Invariant: a reservation exists here only while the owner keeps one
//! for this connection.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    Address, Call, FIND_MAX, GREETING_BYTES, MESSAGE_BYTES_MAX, Reply, Request, Response, check_greeting,
    encode, greeting, receive,
};
use crate::answer::Record;
use crate::book::{Claim, Present};
use crate::budget::Budget;
use crate::entry::{Cause, HoldId, Origin, Tally};
use crate::price::Price;
use crate::query::QueryKey;
use crate::store::{Doubt, Lost, Reservation, ReserveError, Settlement, Store, StoreError};

/// How long the owner may take to say up to where the journal is durable.
const SYNCED_WAIT: Duration = Duration::from_secs(10);

/// A store that another process owns.
pub struct Remote {
    out: mpsc::UnboundedSender<Vec<u8>>,
    // Locked to put in or take out one call.
    waiting: Arc<Mutex<Waiting>>,
    next: AtomicU64,
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Waiting {
    calls: HashMap<u64, oneshot::Sender<Delivered>>,
    /// Set once the owner went away.
    gone: Option<String>,
}

/// An answer; if it grants a hold that nobody waits for any more, dropping it gives the hold back.
struct Delivered {
    reply: Reply,
    unclaimed: Option<Unclaimed>,
}

struct Unclaimed {
    hold: HoldId,
    out: mpsc::WeakUnboundedSender<Vec<u8>>,
    claimed: bool,
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if !self.claimed {
            tell(&self.out, Call::Abandon(self.hold));
        }
    }
}

/// Sends a call that wants no answer; where the owner is gone, it has forfeited the holds anyway.
fn tell(out: &mpsc::WeakUnboundedSender<Vec<u8>>, call: Call) {
    if let (Some(out), Ok(bytes)) = (out.upgrade(), encode(&Request { id: 0, call })) {
        let _ = out.send(bytes);
    }
}

impl Remote {
    /// Connects to the owner of the store in `folder`.
    ///
    /// # Errors
    /// Nobody listens there, or it speaks another version.
    pub async fn connect(folder: &Path) -> io::Result<Arc<Self>> {
        let address = Address::new(folder)?;
        let mut stream = UnixStream::connect(&address.path).await?;
        stream.write_all(&greeting()).await?;
        let mut hello = [0; GREETING_BYTES];
        stream.read_exact(&mut hello).await?;
        check_greeting(&hello)?;
        let (read, mut write) = stream.into_split();
        let (out, mut queue) = mpsc::unbounded_channel::<Vec<u8>>();
        // Ends when the store is dropped or the owner goes away; closing the connection gives the holds up.
        tokio::spawn(async move {
            while let Some(bytes) = queue.recv().await {
                if write.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        });
        let waiting = Arc::new(Mutex::default());
        let changes = watch::Sender::new(0);
        let store = Arc::new(Self { out, waiting: Arc::clone(&waiting), next: AtomicU64::new(1), changes });
        tokio::spawn(listen(read, Arc::downgrade(&store), waiting));
        Ok(store)
    }

    /// Sends a call; from then on the owner works on it, whether or not anybody waits.
    fn send(&self, call: Call) -> Result<Answering<'_>, StoreError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let bytes =
            encode(&Request { id, call }).map_err(|error| StoreError::Contradiction(error.to_string()))?;
        let (sender, receiver) = oneshot::channel();
        let mut waiting = lock(&self.waiting);
        if let Some(why) = &waiting.gone {
            return Err(StoreError::Gone(why.clone()));
        }
        waiting.calls.insert(id, sender);
        drop(waiting);
        self.out.send(bytes).map_err(|_| self.gone())?;
        Ok(Answering { store: self, receiver })
    }

    async fn call(&self, call: Call) -> Result<Delivered, StoreError> {
        self.send(call)?.delivered().await
    }

    fn gone(&self) -> StoreError {
        let why = lock(&self.waiting).gone.clone();
        StoreError::Gone(why.unwrap_or_else(|| "the connection broke off".to_owned()))
    }

    fn lost(&self) -> Lost {
        let out = self.out.downgrade();
        Box::new(move |hold| tell(&out, Call::Lost(hold)))
    }
}

/// A call that was sent.
struct Answering<'a> {
    store: &'a Remote,
    receiver: oneshot::Receiver<Delivered>,
}

impl Answering<'_> {
    async fn delivered(self) -> Result<Delivered, StoreError> {
        self.receiver.await.map_err(|_| self.store.gone())
    }

    async fn done(self) -> Result<(), StoreError> {
        match self.delivered().await?.reply {
            Reply::Done(result) => result,
            _ => Err(out_of_turn()),
        }
    }

    async fn settled(self) -> Result<Vec<Arc<Record>>, StoreError> {
        match self.delivered().await?.reply {
            Reply::Settled(result) => Ok(result?.into_iter().map(Arc::new).collect()),
            Reply::Done(Err(error)) => Err(error),
            _ => Err(out_of_turn()),
        }
    }
}

fn out_of_turn() -> StoreError {
    StoreError::Gone("it answered something else than was asked".into())
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands answers to whoever waits for them, until the owner or the store goes away.
async fn listen(mut read: OwnedReadHalf, store: Weak<Remote>, waiting: Arc<Mutex<Waiting>>) {
    let why = loop {
        match receive::<Response>(&mut read).await {
            Ok(Some(Response { id, reply })) => {
                let Some(store) = store.upgrade() else { return };
                if let Reply::Changed(number) = reply {
                    store.changes.send_replace(number);
                    continue;
                }
                let unclaimed = match &reply {
                    Reply::Reserved(Ok(hold)) => {
                        Some(Unclaimed { hold: *hold, out: store.out.downgrade(), claimed: false })
                    }
                    _ => None,
                };
                let sender = lock(&waiting).calls.remove(&id);
                if let Some(sender) = sender {
                    // Nobody waits: the answer is dropped, and a hold in it given back.
                    drop(sender.send(Delivered { reply, unclaimed }));
                }
            }
            Ok(None) => break "it closed the connection".to_owned(),
            Err(error) => break error.to_string(),
        }
    };
    let mut waiting = lock(&waiting);
    waiting.gone = Some(why);
    waiting.calls.clear();
}

#[async_trait]
impl Store for Remote {
    async fn find(&self, keys: &[QueryKey]) -> Result<Vec<Option<Arc<Record>>>, StoreError> {
        let calls = keys.chunks(FIND_MAX).map(|keys| self.call(Call::Find(keys.to_vec())));
        let mut found = Vec::with_capacity(keys.len());
        for delivered in futures::future::try_join_all(calls).await? {
            match delivered.reply {
                Reply::Found(records) => {
                    found.extend(records?.into_iter().map(|record| record.map(Arc::new)));
                }
                Reply::Done(Err(error)) => return Err(error),
                _ => return Err(out_of_turn()),
            }
        }
        if found.len() == keys.len() { Ok(found) } else { Err(out_of_turn()) }
    }

    async fn reserve(&self, claim: Claim) -> Result<Reservation, ReserveError> {
        let mut delivered = self.call(Call::Reserve(claim)).await.map_err(ReserveError::Store)?;
        match &delivered.reply {
            Reply::Reserved(Ok(hold)) => {
                let reservation = Reservation::new(*hold, self.lost());
                if let Some(unclaimed) = &mut delivered.unclaimed {
                    unclaimed.claimed = true;
                }
                Ok(reservation)
            }
            Reply::Reserved(Err(error)) => Err(error.clone()),
            _ => Err(ReserveError::Store(out_of_turn())),
        }
    }

    async fn settle(
        &self,
        reservation: Reservation,
        settlement: Settlement,
    ) -> Result<Vec<Arc<Record>>, StoreError> {
        // A reservation that could not be sent for is dropped, and so forfeited.
        let answering = self.send(Call::Settle(reservation.hold(), settlement))?;
        reservation.into_hold();
        answering.settled().await
    }

    async fn release(&self, reservation: Reservation, cause: Cause) -> Result<(), StoreError> {
        let answering = self.send(Call::Release(reservation.hold(), cause))?;
        reservation.into_hold();
        answering.done().await
    }

    async fn forfeit(
        &self,
        reservation: Reservation,
        cause: Cause,
        evidence: Bytes,
    ) -> Result<Doubt, StoreError> {
        let answering = self.send(Call::Forfeit(reservation.hold(), cause, evidence))?;
        let hold = reservation.into_hold();
        answering.done().await?;
        Ok(Doubt::new(hold))
    }

    async fn settle_late(
        &self,
        doubt: Doubt,
        settlement: Settlement,
    ) -> Result<Vec<Arc<Record>>, StoreError> {
        self.send(Call::SettleLate(doubt.into_hold(), settlement))?.settled().await
    }

    async fn resolve(&self, hold: HoldId, billed: bool, why: String) -> Result<(), StoreError> {
        self.send(Call::Resolve(hold, billed, why))?.done().await
    }

    async fn forget(&self, key: QueryKey, why: String) -> Result<(), StoreError> {
        self.send(Call::Forget(key, why))?.done().await
    }

    async fn limit(&self, budget: Budget, origin: Origin) -> Result<(), StoreError> {
        self.send(Call::Limit(budget, origin))?.done().await
    }

    async fn price(&self, price: Price) -> Result<(), StoreError> {
        self.send(Call::Price(price))?.done().await
    }

    fn tally(&self, tally: Tally) {
        tell(&self.out.downgrade(), Call::Tally(tally));
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    async fn present(&self) -> Result<Present, StoreError> {
        match self.call(Call::Present).await?.reply {
            Reply::Present(present) => present,
            _ => Err(out_of_turn()),
        }
    }
}

/// Up to which offset the owner of the store in `folder` has made the journal durable; none without an owner that
/// answers. Blocks, and needs no runtime.
pub(crate) fn synced_by_owner(folder: &Path) -> Option<u64> {
    let ask = || -> io::Result<u64> {
        let address = Address::new(folder)?;
        let mut stream = std::os::unix::net::UnixStream::connect(&address.path)?;
        stream.set_read_timeout(Some(SYNCED_WAIT))?;
        stream.write_all(&greeting())?;
        let mut hello = [0; GREETING_BYTES];
        stream.read_exact(&mut hello)?;
        check_greeting(&hello)?;
        stream.write_all(&encode(&Request { id: 1, call: Call::Synced })?)?;
        loop {
            let mut length = [0; 4];
            stream.read_exact(&mut length)?;
            let length = u32::from_le_bytes(length) as usize;
            if length > MESSAGE_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut bytes = vec![0; length];
            stream.read_exact(&mut bytes)?;
            let response: Response = postcard::from_bytes(&bytes).map_err(io::Error::other)?;
            if let Reply::Synced(offset) = response.reply {
                return Ok(offset);
            }
        }
    };
    ask().ok()
}
