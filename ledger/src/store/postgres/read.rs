//! Reading the log without writing to it: one snapshot, from a thread of its own.
//!
//! Must not lock anything. Invariants: every entry is checked against its writer's chain, and the end against what the
//! database says that it holds; damage is an error, never an early end, and reading goes on behind it only for a survey.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use bytes::Bytes;
use futures::TryStreamExt as _;
use sqlx::postgres::PgRow;
use sqlx::{FromRow as _, PgConnection, Row as _};

use super::fold::{Chains, Row};
use super::link::{self, Link};
use super::log;
use super::survey::{LogFault, Says, Survey};
use crate::journal::{BodyFault, read_apart, survey_apart};
use crate::store::embedded::OpenError;
use crate::store::read::{Head, ReadEntry, ReadError};
use crate::store::url::DatabaseUrl;

/// Entries read ahead.
const AHEAD: usize = 64;

/// How far a log is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// Its first fault.
    Fault,
    /// Its end.
    End,
}

/// The entries of a log, in order.
pub(crate) struct Log {
    owned: bool,
    entries: Receiver<Result<(ReadEntry, Head), ReadError>>,
    heads: BTreeMap<String, Head>,
    until: Until,
    thread: Option<JoinHandle<()>>,
    done: bool,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("owned", &self.owned).finish_non_exhaustive()
    }
}

/// The entries of the record in the database at `url`, beside whoever writes it.
///
/// # Errors
/// The database does not answer, or holds no record, or a newer one.
pub(crate) fn read_log(url: &DatabaseUrl) -> Result<Log, OpenError> {
    begin(url, Until::Fault)
}

/// As [`read_log`], but each error is one fault, and entries behind it follow.
///
/// # Errors
/// As [`read_log`].
pub(crate) fn survey_log(url: &DatabaseUrl) -> Result<Log, OpenError> {
    begin(url, Until::End)
}

fn begin(url: &DatabaseUrl, until: Until) -> Result<Log, OpenError> {
    let link = Link::new(url)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| link.unfit(error))?;
    let (begun, beginning) = sync_channel(1);
    let (send, entries) = sync_channel(AHEAD);
    let task = link.clone();
    let thread = std::thread::Builder::new().name("tuition-read".into());
    let reading = move || runtime.block_on(read(&task, until, &begun, &send));
    let thread = thread.spawn(reading).map_err(|error| link.unfit(error))?;
    let owned = beginning.recv().unwrap_or_else(|_| Err(link.unfit("the reading thread ended")))?;
    Ok(Log { owned, entries, heads: BTreeMap::new(), until, thread: Some(thread), done: false })
}

impl Log {
    /// Whether some process writes the record.
    pub(crate) fn is_owned(&self) -> bool {
        self.owned
    }

    /// Where the chain of each writer stands.
    pub(crate) fn heads(&self) -> Vec<Head> {
        self.heads.values().cloned().collect()
    }
}

impl Iterator for Log {
    type Item = Result<ReadEntry, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        match self.entries.recv().ok() {
            Some(Ok((entry, head))) => {
                self.heads.insert(head.writer.clone(), head);
                Some(Ok(entry))
            }
            Some(Err(error)) => {
                self.done = self.until == Until::Fault;
                Some(Err(error))
            }
            None => {
                self.done = true;
                // A thread that panicked has not read to the end.
                if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
                    std::panic::resume_unwind(panic);
                }
                None
            }
        }
    }
}

type Send = SyncSender<Result<(ReadEntry, Head), ReadError>>;

async fn read(link: &Link, until: Until, begun: &SyncSender<Result<bool, OpenError>>, send: &Send) {
    let beginning = async {
        let mut connection = link.connect_to_read().await.map_err(|error| link.unfit(error))?;
        if link::version(&mut connection).await.map_err(|error| link.unfit(error))?.is_none() {
            return Err(OpenError::Absent(link.url().clone()));
        }
        let unfit = |error: sqlx::Error| link.unfit(error);
        sqlx::query("BEGIN ISOLATION LEVEL REPEATABLE READ").execute(&mut connection).await.map_err(unfit)?;
        let owned = log::is_written(&mut connection).await.map_err(unfit)?;
        Ok((connection, owned))
    };
    let mut connection = match beginning.await {
        Ok((connection, owned)) => {
            if begun.send(Ok(owned)).is_err() {
                return;
            }
            connection
        }
        // Whoever asked may have gone away.
        Err(error) => return drop(begun.send(Err(error))),
    };
    let read = match until {
        Until::Fault => entries(&mut connection, |entry, head| send.send(Ok((entry, head))).is_ok()).await,
        Until::End => survey(&mut connection, |read| send.send(read).is_ok()).await,
    };
    if let Err(error) = read {
        drop(send.send(Err(error)));
    }
}

/// Gives every entry of the record to `take`, until that has enough; checks chains and end.
pub(crate) async fn entries(
    connection: &mut PgConnection,
    mut take: impl FnMut(ReadEntry, Head) -> bool,
) -> Result<(), ReadError> {
    let mut chains = Chains::new(log::name(connection).await.map_err(ReadError::Database)?);
    let mut rows = sqlx::query(
        "SELECT seq, writer, number, payload, chain,
            (SELECT array_agg(bytes ORDER BY part) FROM tuition.blob WHERE blob.seq = entry.seq) AS blobs
         FROM tuition.entry ORDER BY seq",
    )
    .fetch(&mut *connection);
    while let Some(found) = rows.try_next().await.map_err(ReadError::Database)? {
        let row = Row::from_row(&found).map_err(ReadError::Database)?;
        chains.take(&row)?;
        let number = chains.seq;
        let blobs: Option<Vec<Option<Vec<u8>>>> = found.try_get("blobs").map_err(ReadError::Database)?;
        let blobs = blobs.unwrap_or_default().into_iter().map(|blob| blob.map(Bytes::from));
        let (entry, blobs) = read_apart(row.payload.as_bytes(), blobs).map_err(|fault| {
            let why = match fault {
                BodyFault::Damaged(why) => why.to_owned(),
                BodyFault::NotUnderstood(error) => format!("this version does not understand it: {error}"),
            };
            ReadError::Damaged { number, why }
        })?;
        let chain = chains.of(row.writer);
        let head = Head { writer: row.writer.to_string(), entries: chain.number, chain: chain.chain };
        let entry = ReadEntry {
            number,
            offset: 0,
            writer: Some(row.writer),
            entry,
            blobs,
            payload: row.payload.into(),
        };
        if !take(entry, head) {
            return Ok(());
        }
    }
    drop(rows);
    end(connection, &chains).await
}

/// Compares the end of what was read with what the database says that it holds.
async fn end(connection: &mut PgConnection, chains: &Chains) -> Result<(), ReadError> {
    let head = log::head(connection).await.map_err(ReadError::Database)?;
    let number = chains.seq + 1;
    let damaged = |why: String| Err(ReadError::Damaged { number, why });
    if head.seq != chains.seq {
        return damaged(format!("it is missing, though the record says that it has {} entries", head.seq));
    }
    let writers: Vec<(i64, i64, Vec<u8>)> =
        sqlx::query_as("SELECT id, entries, chain FROM tuition.writer ORDER BY id")
            .fetch_all(connection)
            .await
            .map_err(ReadError::Database)?;
    for (writer, entries, chain) in writers {
        let found = chains.of(writer);
        if entries.cast_unsigned() != found.number || chain != found.chain {
            return damaged(format!(
                "writer {writer} has {} entries, and says that it has {entries}",
                found.number
            ));
        }
    }
    Ok(())
}

/// Number, entries and chain as a writer says, and the chain that the entry of that number has.
type WriterRow = (i64, i64, Vec<u8>, Option<Vec<u8>>);

/// Gives every entry of the record that can be read to `take`, and every fault, until that has enough.
async fn survey(
    connection: &mut PgConnection,
    mut take: impl FnMut(Result<(ReadEntry, Head), ReadError>) -> bool,
) -> Result<(), ReadError> {
    let database = ReadError::Database;
    let head: Option<(Vec<u8>, i64)> = sqlx::query_as("SELECT store, seq FROM tuition.head")
        .fetch_optional(&mut *connection)
        .await
        .map_err(database)?;
    let head = head.and_then(|(name, end)| Some((name.try_into().ok()?, end)));
    if head.is_none() && !take(Err(ReadError::Unfit(LogFault::Headless))) {
        return Ok(());
    }
    let mut survey = Survey::new(head);
    let mut rows = sqlx::query(
        "SELECT seq, writer, number, payload, chain,
            (SELECT array_agg(part ORDER BY part) FROM tuition.blob WHERE blob.seq = entry.seq) AS parts,
            (SELECT array_agg(bytes ORDER BY part) FROM tuition.blob WHERE blob.seq = entry.seq) AS blobs,
            (SELECT other.chain FROM tuition.entry AS other WHERE other.writer = entry.writer
             AND other.number = CASE WHEN entry.number > 1 THEN entry.number - 1 END LIMIT 1) AS before
         FROM tuition.entry ORDER BY seq",
    )
    .fetch(&mut *connection);
    while let Some(found) = rows.try_next().await.map_err(database)? {
        let mut faults = Vec::new();
        let read = judge(&found, &mut survey, &mut faults).map_err(database);
        let faults = faults.into_iter().map(|fault| Err(ReadError::Unfit(fault)));
        if !faults.chain(read.transpose()).all(&mut take) {
            return Ok(());
        }
    }
    drop(rows);
    let writers: Vec<WriterRow> = sqlx::query_as(
        "SELECT id, entries, chain,
            (SELECT entry.chain FROM tuition.entry WHERE writer = id AND number = entries LIMIT 1)
         FROM tuition.writer ORDER BY id",
    )
    .fetch_all(connection)
    .await
    .map_err(database)?;
    let says = |(writer, entries, chain, last)| Says { writer, entries, chain, last };
    let says: Vec<_> = writers.into_iter().map(says).collect();
    survey.end(&says).into_iter().all(|fault| take(Err(ReadError::Unfit(fault))));
    Ok(())
}

/// The entry that a row holds, if it holds one; adds to `faults` what is wrong with it.
fn judge(
    found: &PgRow,
    survey: &mut Survey,
    faults: &mut Vec<LogFault>,
) -> Result<Option<(ReadEntry, Head)>, sqlx::Error> {
    let row = Row::from_row(found)?;
    let before: Option<Vec<u8>> = found.try_get("before")?;
    let parts: Option<Vec<i32>> = found.try_get("parts")?;
    let blobs: Option<Vec<Option<Vec<u8>>>> = found.try_get("blobs")?;
    let Some(number) = survey.take(&row, before.as_deref(), faults) else { return Ok(None) };
    let blobs = blobs.unwrap_or_default().into_iter().map(|blob| blob.map(Bytes::from));
    let blobs = parts.unwrap_or_default().into_iter().zip(blobs).collect();
    let (entry, blobs) = match survey_apart(row.payload.as_bytes(), blobs) {
        Ok((entry, blobs, unnamed)) => {
            let writer = row.writer;
            faults.extend(unnamed.into_iter().map(|part| LogFault::Unnamed { number, writer, part }));
            (entry, blobs)
        }
        // A text that was changed is named already, and need be no entry any more.
        Err(_) if faults.iter().any(LogFault::is_of_the_text) => return Ok(None),
        Err(error) => {
            faults.push(LogFault::NotUnderstood { number, writer: row.writer, why: error.to_string() });
            return Ok(None);
        }
    };
    let chain = row.chain.as_slice().try_into().unwrap_or_default();
    let head = Head { writer: row.writer.to_string(), entries: row.number.cast_unsigned(), chain };
    Ok(Some((
        ReadEntry { number, offset: 0, writer: Some(row.writer), entry, blobs, payload: row.payload.into() },
        head,
    )))
}
