//! Connections to the database: how each is set up, what a server must promise, and the version of the tables.
//!
//! Must not know entries. Invariants: a server that may forget what it committed is refused; a password is never part of
//! an error.

use std::str::FromStr;
use std::time::Duration;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, SqlSafeStr};

use crate::store::embedded::OpenError;
use crate::store::url::{DatabaseUrl, StoreUrl};

/// How long a connection may take to come about.
const CONNECT_WAIT: Duration = Duration::from_secs(3);
/// Connections that look answers up at a time.
const READERS_MAX: u32 = 8;
/// How long a look-up waits for a connection.
const READER_WAIT: Duration = Duration::from_secs(3);
/// The version of the tables that this program knows.
const VERSION: i64 = 1;
const MIGRATIONS: [&str; 1] = [include_str!("migrations/0001_record.sql")];

/// What every session is told. A replica that is paused inside a transaction loses it after `idle_in_transaction`, so that
/// it cannot keep the others waiting.
const SESSION: [(&str, &str); 6] = [
    ("synchronous_commit", "on"),
    ("default_transaction_isolation", "read committed"),
    ("idle_in_transaction_session_timeout", "2s"),
    ("lock_timeout", "4s"),
    ("statement_timeout", "30s"),
    ("tcp_user_timeout", "5s"),
];

/// Why the database does not do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfit {
    /// It cannot be reached, or broke off.
    #[error("{0}")]
    Away(#[from] sqlx::Error),
    /// No connection came about in time.
    #[error("no connection within {} s", CONNECT_WAIT.as_secs())]
    Silent,
    /// It may forget what it committed.
    #[error(
        "its setting `{setting}` is `{value}`: what it commits can be lost, so no money is trusted to it"
    )]
    Forgetful {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: String,
    },
    /// It takes no writes.
    #[error("it is a standby, which takes no entries")]
    Standby,
    /// A later version made its tables.
    #[error("its tables have version {found}; this program knows versions up to {VERSION}")]
    Newer {
        /// The version found.
        found: i64,
    },
    /// The tables could not be made.
    #[error("its tables could not be made: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
}

/// How to reach one database.
#[derive(Clone)]
pub(crate) struct Link {
    url: StoreUrl,
    options: PgConnectOptions,
}

impl Link {
    pub(crate) fn new(url: &DatabaseUrl) -> Result<Self, OpenError> {
        let shown = StoreUrl::Postgres(url.clone());
        let options = PgConnectOptions::from_str(url.secret())
            .map_err(|error| OpenError::Database { url: shown.clone(), why: error.to_string() })?;
        let options = options.application_name("tuition").options(SESSION).disable_statement_logging();
        Ok(Self { url: shown, options })
    }

    /// An error of opening, with the URL.
    pub(crate) fn unfit(&self, why: impl ToString) -> OpenError {
        OpenError::Database { url: self.url.clone(), why: why.to_string() }
    }

    /// The URL; it prints without a password.
    pub(crate) fn url(&self) -> &StoreUrl {
        &self.url
    }

    /// A connection to a server that keeps what it commits.
    pub(crate) async fn connect(&self) -> Result<PgConnection, Unfit> {
        let connecting = async {
            let mut connection = PgConnection::connect_with(&self.options).await?;
            check(&mut connection).await?;
            Ok(connection)
        };
        tokio::time::timeout(CONNECT_WAIT, connecting).await.unwrap_or(Err(Unfit::Silent))
    }

    /// A connection that only reads, for as long as its reader takes.
    pub(crate) async fn connect_to_read(&self) -> Result<PgConnection, Unfit> {
        let options = self.options.clone().options([
            ("default_transaction_read_only", "on"),
            ("idle_in_transaction_session_timeout", "0"),
            ("statement_timeout", "0"),
            ("tcp_user_timeout", "0"),
        ]);
        let connecting = tokio::time::timeout(CONNECT_WAIT, PgConnection::connect_with(&options));
        Ok(connecting.await.map_err(|_| Unfit::Silent)??)
    }

    /// Connections that are opened when they are needed, and again after the server was away.
    pub(crate) fn pool(&self) -> PgPool {
        PgPoolOptions::new()
            .max_connections(READERS_MAX)
            .acquire_timeout(READER_WAIT)
            .connect_lazy_with(self.options.clone())
    }
}

async fn check(connection: &mut PgConnection) -> Result<(), Unfit> {
    let (fsync, commit, standby): (String, String, bool) = sqlx::query_as(
        "SELECT current_setting('fsync'), current_setting('synchronous_commit'), pg_is_in_recovery()",
    )
    .fetch_one(connection)
    .await?;
    if fsync != "on" {
        return Err(Unfit::Forgetful { setting: "fsync", value: fsync });
    }
    if commit != "on" {
        return Err(Unfit::Forgetful { setting: "synchronous_commit", value: commit });
    }
    if standby { Err(Unfit::Standby) } else { Ok(()) }
}

/// The version of the tables; none where there are none yet.
pub(crate) async fn version(connection: &mut PgConnection) -> Result<Option<i64>, Unfit> {
    let there: bool = sqlx::query_scalar("SELECT to_regclass('tuition.migrations') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    if !there {
        return Ok(None);
    }
    let found: Option<i64> = sqlx::query_scalar("SELECT max(version) FROM tuition.migrations WHERE success")
        .fetch_one(connection)
        .await?;
    match found {
        Some(found) if found > VERSION => Err(Unfit::Newer { found }),
        found => Ok(found),
    }
}

/// Makes the tables, or brings them up to this version. Several processes may do so at once.
pub(crate) async fn migrate(connection: &mut PgConnection) -> Result<(), Unfit> {
    if version(connection).await? == Some(VERSION) {
        return Ok(());
    }
    let numbered = (1..).zip(MIGRATIONS);
    let migrations = numbered
        .map(|(number, sql)| {
            Migration::new(number, "record".into(), MigrationType::Simple, sql.into_sql_str(), false)
        })
        .collect();
    let mut migrator = Migrator::with_migrations(migrations);
    migrator.create_schema("tuition");
    migrator.dangerous_set_table_name("tuition.migrations");
    migrator.run_direct(None, connection, false).await?;
    Ok(())
}
