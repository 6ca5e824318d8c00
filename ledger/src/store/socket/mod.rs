//! The messages between the owner of a store and other processes of the machine, over `desk.sock`.
//!
//! Must not know what a store does with them. Invariant: both sides speak the same version, or say which they speak and
//! part.

pub(crate) mod client;
pub(crate) mod server;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{ReserveError, Settlement, StoreError};
use crate::answer::Record;
use crate::book::{Claim, Present};
use crate::budget::Budget;
use crate::entry::{Cause, HoldId, Origin, Tally};
use crate::price::Price;
use crate::query::QueryKey;

pub use client::Remote;

/// The socket's name in the store's folder.
pub(crate) const SOCKET: &str = "desk.sock";
/// Changes with every change of the messages below or of what they carry.
const PROTOCOL: u32 = 2;
const MAGIC: &[u8; 8] = b"TUIDESK\0";
const GREETING_BYTES: usize = 12;
/// The longest message.
const MESSAGE_BYTES_MAX: usize = 512 << 20;
/// Keys looked up in one message.
const FIND_MAX: usize = 64;
/// Longest path that fits the address of a socket on every system.
const ADDRESS_BYTES_MAX: usize = 100;

/// What a client asks; the answer has the same number.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    /// 0 where no answer is wanted.
    id: u64,
    call: Call,
}

#[derive(Debug, Serialize, Deserialize)]
enum Call {
    Find(Vec<QueryKey>),
    Reserve(Claim),
    Settle(HoldId, Settlement),
    Release(HoldId, Cause),
    Forfeit(HoldId, Cause, Bytes),
    SettleLate(HoldId, Settlement),
    Resolve(HoldId, bool, String),
    Forget(QueryKey, String),
    Limit(Budget, Origin),
    Price(Price),
    Tally(Tally),
    Present,
    /// Up to which offset is the journal durable?
    Synced,
    /// The client's reservation was dropped.
    Lost(HoldId),
    /// The client stopped waiting before it had the reservation.
    Abandon(HoldId),
}

/// What the owner answers; number 0 where nobody asked.
#[derive(Debug, Serialize, Deserialize)]
struct Response {
    id: u64,
    reply: Reply,
}

#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    Found(Result<Vec<Option<Record>>, StoreError>),
    Reserved(Result<HoldId, ReserveError>),
    Settled(Result<Vec<Record>, StoreError>),
    Done(Result<(), StoreError>),
    Present(Result<Present, StoreError>),
    Synced(u64),
    Changed(u64),
}

fn greeting() -> [u8; GREETING_BYTES] {
    let mut bytes = [0; GREETING_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..].copy_from_slice(&PROTOCOL.to_le_bytes());
    bytes
}

/// Checks what the other side said first.
fn check_greeting(bytes: &[u8; GREETING_BYTES]) -> io::Result<()> {
    let wrong = |why| Err(io::Error::new(io::ErrorKind::InvalidData, why));
    let (magic, version) = bytes.split_at(8);
    if magic != MAGIC {
        return wrong("what listens at the store's socket is no desk".to_owned());
    }
    let version = u32::from_le_bytes(version.try_into().expect("the rest has four bytes"));
    if version != PROTOCOL {
        return wrong(format!("it speaks version {version} of the desk's protocol, this program {PROTOCOL}"));
    }
    Ok(())
}

/// A message with its length in front.
fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = postcard::to_extend(message, vec![0; 4]).map_err(io::Error::other)?;
    let length = bytes.len() - 4;
    if length > MESSAGE_BYTES_MAX {
        return Err(io::Error::other(format!(
            "a message of {length} bytes is longer than the {MESSAGE_BYTES_MAX} that are allowed"
        )));
    }
    let length = u32::try_from(length).expect("checked against `MESSAGE_BYTES_MAX`");
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    Ok(bytes)
}

/// The next message; none at the end of the stream.
async fn receive<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = u32::from_le_bytes(length);
    if length as usize > MESSAGE_BYTES_MAX {
        return Err(io::Error::other(format!("a message of {length} bytes is too long")));
    }
    // Grows as bytes come: a length alone makes nobody set memory aside.
    let mut bytes = Vec::new();
    if stream.take(u64::from(length)).read_to_end(&mut bytes).await? < length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    postcard::from_bytes(&bytes).map(Some).map_err(io::Error::other)
}

/// The socket's address: a path, short enough on Linux whatever the folder's.
struct Address {
    path: PathBuf,
    _folder: Option<std::fs::File>,
}

impl Address {
    fn new(folder: &Path) -> io::Result<Self> {
        let path = folder.join(SOCKET);
        if path.as_os_str().len() <= ADDRESS_BYTES_MAX || !cfg!(target_os = "linux") {
            return Ok(Self { path, _folder: None });
        }
        use std::os::fd::AsRawFd;
        let folder = std::fs::File::open(folder)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()));
        Ok(Self { path, _folder: Some(folder) })
    }
}
