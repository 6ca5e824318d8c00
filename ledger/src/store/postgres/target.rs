//! A database that a record is copied into, in one transaction.
//!
//! Must not decide anything. Invariant: until the end nobody sees any of it; an attempt that is given up leaves an empty
//! store.

use sqlx::PgConnection;
use tokio::runtime::Runtime;

use super::fold::{Drafted, Fold};
use super::link::{self, Link};
use super::{log, read};
use crate::store::StoreError;
use crate::store::copy::CopyError;
use crate::store::embedded::OpenError;
use crate::store::read::ReadEntry;
use crate::store::url::{DatabaseUrl, StoreUrl};

/// Entries and bytes written at a time.
const STEP: usize = 500;
const STEP_BYTES: u64 = 16 << 20;

/// The name of the writer that stands for everybody who wrote the source.
const PROGRAM: &str = "copied";

/// The database.
pub(crate) struct Target {
    runtime: Runtime,
    connection: PgConnection,
    fold: Fold,
    writer: i64,
    drafted: Vec<Drafted>,
    bytes: u64,
}

impl Target {
    /// Locks an empty record, and makes the tables where there are none.
    pub(crate) fn begin(url: &DatabaseUrl) -> Result<Self, CopyError> {
        let link = Link::new(url)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| link.unfit(error))?;
        let begun = runtime.block_on(async {
            let unfit = |error: link::Unfit| link.unfit(error);
            let mut connection = link.connect().await.map_err(unfit)?;
            link::migrate(&mut connection).await.map_err(unfit)?;
            let begun = begin(&mut connection).await.map_err(|error| link.unfit(error))?;
            Ok::<_, OpenError>(begun.map(|(fold, writer)| (connection, fold, writer)))
        });
        let Some((connection, fold, writer)) = begun? else {
            return Err(CopyError::NotEmpty(StoreUrl::Postgres(url.clone())));
        };
        Ok(Self { runtime, connection, fold, writer, drafted: Vec::new(), bytes: 0 })
    }

    /// Writes one more entry.
    pub(crate) fn append(&mut self, read: &ReadEntry) -> Result<(), CopyError> {
        let drafted = self.fold.copy(self.writer, read).map_err(CopyError::Target)?;
        self.bytes += drafted.draft.bytes();
        self.drafted.push(drafted);
        if self.drafted.len() < STEP && self.bytes < STEP_BYTES {
            return Ok(());
        }
        self.write()
    }

    fn write(&mut self) -> Result<(), CopyError> {
        let drafted = std::mem::take(&mut self.drafted);
        self.bytes = 0;
        let written = log::write(&mut self.connection, self.writer, &drafted, false);
        self.runtime.block_on(written).map(drop).map_err(broke_off)
    }

    /// Gives every entry that was written to `judge`.
    pub(crate) fn verify(
        &mut self,
        mut judge: impl FnMut(Option<ReadEntry>) -> Result<(), CopyError>,
    ) -> Result<(), CopyError> {
        self.write()?;
        let mut judged = Ok(());
        let read = read::entries(&mut self.connection, |entry, _| {
            judged = judge(Some(entry));
            judged.is_ok()
        });
        let read = self.runtime.block_on(read);
        judged?;
        read.map_err(|error| CopyError::Differs {
            number: error.entry().unwrap_or_default(),
            what: error.to_string(),
        })
    }

    /// Makes it a store. Holds that are under way in it become unknown when it is first opened.
    pub(crate) fn finish(mut self) -> Result<(), CopyError> {
        let connection = &mut self.connection;
        let ended = self.fold.under_way(&[self.writer]).is_empty();
        let finished = async {
            log::leave_writer(connection, self.writer, ended).await?;
            log::commit(connection).await
        };
        self.runtime.block_on(finished).map_err(broke_off)
    }
}

/// None where the record holds something.
async fn begin(connection: &mut PgConnection) -> Result<Option<(Fold, i64)>, sqlx::Error> {
    let head = log::lock(connection).await?;
    log::take_time(connection).await?;
    if head.seq > 0 || log::has_writers(connection).await? {
        return Ok(None);
    }
    let fold = Fold::new(log::name(connection).await?);
    let writer = log::begin_writer(connection, &fold.chains.record, PROGRAM).await?;
    Ok(Some((fold, writer)))
}

fn broke_off(error: sqlx::Error) -> CopyError {
    CopyError::Target(StoreError::Unwritable(error.to_string()))
}
