//! Reading a store without owning it: entries for the audit, records for the trainer.
//!
//! Must not lock or write anything. Invariant: what is read is durable; damage is an error, never an early end.

use std::collections::{BTreeMap, VecDeque};
use std::iter::FusedIterator;

use bytes::Bytes;

use super::embedded::{self, OpenError};
use super::postgres::{self, LogFault};
use super::url::StoreUrl;
use crate::answer::Record;
use crate::budget::Who;
use crate::entry::{Entry, Exchange, Fact, HoldId};
use crate::journal::{Blob, JournalError, unpack_settlement};
use crate::seal::SealedHead;

/// One entry of a record.
#[derive(Debug)]
pub struct ReadEntry {
    /// Its number in the record, from 1, without gaps.
    pub number: u64,
    /// Where it begins in its journal; 0 where the record is no file.
    pub offset: u64,
    /// Who wrote it, where a record has several writers.
    pub(crate) writer: Option<i64>,
    /// The entry.
    pub entry: Entry,
    /// What belongs to it; opened on demand.
    pub blobs: Vec<Blob>,
    /// The entry as it is chained.
    pub(crate) payload: Bytes,
}

/// Where the chain of one writer ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The writer's name.
    pub writer: String,
    /// Entries of this writer.
    pub entries: u64,
    /// The chain up to the last of them.
    pub chain: [u8; 32],
}

impl From<&Head> for SealedHead {
    fn from(Head { writer, entries, chain }: &Head) -> Self {
        Self { writer: writer.clone(), entries: *entries, chain: hex::encode(chain) }
    }
}

/// Why a record cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The journal is damaged or cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// An entry that is no file's is damaged or gone.
    #[error("entry {number} of the record is damaged: {why}")]
    Damaged {
        /// Its number.
        number: u64,
        /// How that is known.
        why: String,
    },
    /// A part of a log in a database is damaged, missing or out of place; reading went on behind it.
    #[error(transparent)]
    Unfit(#[from] LogFault),
    /// The database broke off.
    #[error("the database cannot be read: {0}")]
    Database(#[source] sqlx::Error),
}

impl ReadError {
    /// The entry that is damaged, where it is one.
    pub fn entry(&self) -> Option<u64> {
        match self {
            Self::Journal(
                JournalError::Corrupt { number, .. } | JournalError::NotUnderstood { number, .. },
            )
            | Self::Damaged { number, .. } => Some(*number),
            Self::Journal(JournalError::Unfit(fault)) => Some(fault.entry()),
            Self::Unfit(fault) => Some(fault.entry()),
            Self::Journal(_) | Self::Database(_) => None,
        }
    }
}

impl From<ReadError> for OpenError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Journal(error) => Self::Journal(error),
            error => Self::Read(error),
        }
    }
}

/// The entries of a record, in order.
#[derive(Debug)]
pub struct Entries(Source);

#[derive(Debug)]
enum Source {
    Journal(embedded::Entries),
    Log(postgres::Log),
}

/// The entries of a record that can be read, in the order of their numbers, and every damage between them.
#[derive(Debug)]
pub struct Survey(Surveyed);

#[derive(Debug)]
enum Surveyed {
    Journal(Box<embedded::Surveyed>),
    Log(postgres::Log),
}

/// A record, with the entry that holds it and who paid for it.
#[derive(Debug)]
pub struct Recorded {
    /// The number of its entry: a later one replaces an earlier one under the same key.
    pub number: u64,
    /// Who paid.
    pub who: Who,
    /// The record.
    pub record: Record,
}

/// What open holds ask: pairs an answer with its question as entries go by.
#[derive(Debug, Default)]
pub struct Asked {
    open: BTreeMap<HoldId, (Exchange, bool)>,
}

/// An exchange that was settled; its answers are not unpacked yet.
#[derive(Debug)]
pub struct Settled {
    read: ReadEntry,
    exchange: Exchange,
    priced: bool,
}

/// The recorded answers, in the order in which they were settled; erased ones are left out.
#[derive(Debug)]
pub struct Records {
    entries: Entries,
    run: Option<String>,
    asked: Asked,
    ready: VecDeque<Recorded>,
}

/// The entries of the store at `url`, beside whoever owns it.
///
/// # Errors
/// There is no store, or it is newer or damaged at its head.
pub fn read_entries(url: &StoreUrl) -> Result<Entries, OpenError> {
    match url {
        StoreUrl::Sled(folder) => {
            embedded::read_entries(folder).map(|entries| Entries(Source::Journal(entries)))
        }
        StoreUrl::Postgres(url) => postgres::read_log(url).map(|log| Entries(Source::Log(log))),
    }
}

/// As [`read_entries`], but reads on behind damage: each error is one damage, and an entry behind it may follow.
///
/// # Errors
/// There is no store, it is newer, or nothing of it can be read.
pub fn survey_entries(url: &StoreUrl) -> Result<Survey, OpenError> {
    Ok(Survey(match url {
        StoreUrl::Sled(folder) => Surveyed::Journal(Box::new(embedded::survey_entries(folder)?)),
        StoreUrl::Postgres(url) => Surveyed::Log(postgres::survey_log(url)?),
    }))
}

/// All records of the store at `url`.
///
/// # Errors
/// As [`read_entries`].
pub fn records(url: &StoreUrl) -> Result<Records, OpenError> {
    let entries = read_entries(url)?;
    Ok(Records { entries, run: None, asked: Asked::default(), ready: VecDeque::new() })
}

/// The records that `run` paid for.
///
/// # Errors
/// As [`read_entries`].
pub fn records_of_run(url: &StoreUrl, run: &str) -> Result<Records, OpenError> {
    Ok(Records { run: Some(run.to_owned()), ..records(url)? })
}

impl Entries {
    /// Whether a process owns the store.
    pub fn is_owned(&self) -> bool {
        match &self.0 {
            Source::Journal(entries) => entries.is_owned(),
            Source::Log(log) => log.is_owned(),
        }
    }

    /// Once the last entry was read: where bytes begin that were never acknowledged, if there are such.
    pub fn torn(&self) -> Option<u64> {
        match &self.0 {
            Source::Journal(entries) => entries.torn(),
            Source::Log(_) => None,
        }
    }

    /// Where the chain of every writer stands after the entries that were read so far.
    pub fn heads(&self) -> Vec<Head> {
        match &self.0 {
            Source::Journal(entries) => vec![entries.head()],
            Source::Log(log) => log.heads(),
        }
    }
}

impl Iterator for Entries {
    type Item = Result<ReadEntry, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Source::Journal(entries) => entries.next().map(|read| read.map_err(ReadError::Journal)),
            Source::Log(log) => log.next(),
        }
    }
}

impl FusedIterator for Entries {}

impl Survey {
    /// Where the chain of every writer stands after the entries that were read so far, as it is recorded.
    pub fn heads(&self) -> Vec<Head> {
        match &self.0 {
            Surveyed::Journal(entries) => vec![entries.head()],
            Surveyed::Log(log) => log.heads(),
        }
    }
}

impl Iterator for Survey {
    type Item = Result<ReadEntry, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Surveyed::Journal(entries) => entries.next().map(|read| read.map_err(ReadError::Journal)),
            Surveyed::Log(log) => log.next(),
        }
    }
}

impl ReadEntry {
    /// Opens what belongs to it, and names each part that does not check.
    pub fn faults(&self) -> Vec<ReadError> {
        let whose = self.writer.map(|writer| format!(", of writer {writer}")).unwrap_or_default();
        let why = |(part, blob): (usize, &Blob)| Some(format!("{}: blob {part}{whose}", blob.open().err()?));
        let faults = self.blobs.iter().enumerate().filter_map(why);
        faults.map(|why| Self::damaged(self.number, self.offset, &why)).collect()
    }

    fn damaged(number: u64, offset: u64, why: &str) -> ReadError {
        let why = why.to_owned();
        match offset {
            0 => ReadError::Damaged { number, why },
            _ => ReadError::Journal(JournalError::Corrupt { number, offset, why }),
        }
    }
}

impl Asked {
    /// Whether the next entry settles an exchange that is open.
    pub fn settles(&self, read: &ReadEntry) -> bool {
        matches!(&read.entry.fact, Fact::Settled { hold, .. } if self.open.contains_key(hold))
    }

    /// Takes the next entry in; gives the exchange that it settles, if it settles one.
    ///
    /// # Errors
    /// It settles a hold that is not open.
    pub fn take(&mut self, read: ReadEntry) -> Result<Option<Settled>, ReadError> {
        match &read.entry.fact {
            Fact::Reserved { hold, exchange, price, .. } => {
                self.open.insert(*hold, (exchange.clone(), price.is_some()));
            }
            Fact::Settled { hold, .. } => {
                let Some((exchange, priced)) = self.open.remove(hold) else {
                    let why = "it settles a hold that is not open";
                    return Err(ReadEntry::damaged(read.number, read.offset, why));
                };
                return Ok(Some(Settled { read, exchange, priced }));
            }
            Fact::Released { hold, .. } | Fact::Resolved { hold, .. } => {
                self.open.remove(hold);
            }
            _ => {}
        }
        Ok(None)
    }
}

impl Settled {
    /// Unpacks the answers, and checks them against their digests.
    ///
    /// # Errors
    /// Something of them does not match; [`Settled::faults`] names all that does not.
    pub fn unpack(&self) -> Result<Vec<Recorded>, ReadError> {
        let Self { read: ReadEntry { number, offset, entry, blobs, .. }, exchange, priced } = self;
        let number = *number;
        let records = unpack_settlement(exchange, *priced, entry, blobs);
        let records = records.map_err(|why| ReadEntry::damaged(number, *offset, why))?;
        let recorded = |record| Recorded { number, who: exchange.who.clone(), record };
        Ok(records.into_iter().map(recorded).collect())
    }
}

impl Settled {
    /// As [`ReadEntry::faults`].
    pub fn faults(&self) -> Vec<ReadError> {
        self.read.faults()
    }
}

impl Records {
    fn take(&mut self, read: ReadEntry) -> Result<(), ReadError> {
        if let Some(settled) = self.asked.take(read)?
            && (self.run.is_none() || self.run == settled.exchange.who.run)
        {
            self.ready.extend(settled.unpack()?);
        }
        Ok(())
    }
}

impl Iterator for Records {
    type Item = Result<Recorded, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(recorded) = self.ready.pop_front() {
                return Some(Ok(recorded));
            }
            match self.entries.next()?.and_then(|read| self.take(read)) {
                Ok(()) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
