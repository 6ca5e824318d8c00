//! Opens the store for a command that changes something, and brings the record up to the configuration.
//!
//! Must not decide what may be spent. Invariant: prices and limits of the configuration are in the record before
//! anybody is asked.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tuition_ledger::{Clock, Desk, OpenStore, Origin, Settings, Store, Timestamp, open_store};

use crate::config::Config;
use crate::print;
use crate::words::Trouble;

/// The version that the record names.
pub(crate) const PROGRAM: &str = concat!("tuition ", env!("CARGO_PKG_VERSION"));

/// Unknown answers in a row after which a teacher is left alone, and how long.
const BREAKER: (u32, Duration) = (5, Duration::from_secs(30));

/// How a desk behaves by the configuration.
pub(crate) fn settings(config: &Config) -> Settings {
    Settings {
        unbudgeted: config.serve.unbudgeted,
        hold_wait: config.serve.hold_wait,
        breaker_failures: BREAKER.0,
        breaker_pause: BREAKER.1,
    }
}

/// The desk over an opened store.
pub(crate) fn desk(config: &Config, opened: &OpenStore) -> Arc<Desk> {
    Desk::new(Arc::clone(&opened.store), config.prices.clone(), settings(config), clock())
}

/// The clock of this machine.
pub(crate) fn clock() -> Clock {
    Arc::new(now)
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Opens the store, or connects to its owner; says what a crash left behind.
///
/// # Errors
/// The store cannot be opened, or its owner does not answer.
pub(crate) async fn open(config: &Config) -> Result<OpenStore, Trouble> {
    let opened = open_store(&config.store, clock(), PROGRAM).await?;
    if let Some(recovery) = &opened.recovery {
        if let Some((offset, aside)) = &recovery.torn {
            print::aside(&format!(
                "note: the journal ended in the middle of an entry (byte {offset}) that was never acknowledged; it was put aside to `{}`",
                aside.display()
            ));
        }
        if !recovery.crashed.is_empty() {
            print::aside(&format!(
                "note: {} calls were under way when the last owner ended; they are unknown and counted in full (`tuition audit` lists them)",
                recovery.crashed.len()
            ));
        }
    }
    Ok(opened)
}

/// Brings prices and limits of the configuration into the record. A limit that has not changed in the configuration
/// since it was last applied stays as a later command set it.
///
/// # Errors
/// The store cannot be written.
pub(crate) async fn apply(config: &Config, store: &dyn Store) -> Result<(), Trouble> {
    for price in config.prices.iter() {
        store.price(price.clone()).await?;
    }
    for budget in &config.budgets {
        store.limit(budget.clone(), Origin::Config).await?;
    }
    Ok(())
}

/// The names of budgets that are in force though the configuration does not have them.
///
/// # Errors
/// The store cannot be read.
pub(crate) async fn beside(config: &Config, store: &dyn Store) -> Result<Vec<String>, Trouble> {
    let present = store.present().await?;
    let configured = |name: &String| config.budgets.iter().any(|budget| budget.name == *name);
    Ok(present.budgets.into_iter().map(|(budget, _)| budget.name).filter(|name| !configured(name)).collect())
}

/// Closes an owned store in good order; a connection is just given up.
///
/// # Errors
/// The end mark could not be written; nothing acknowledged is lost.
pub(crate) async fn close(opened: OpenStore) -> Result<(), Trouble> {
    // It joins threads and syncs files.
    let closed = tokio::task::spawn_blocking(move || opened.close()).await;
    closed.map_err(|error| Trouble::failed(format!("the store was not closed in good order: {error}")))??;
    Ok(())
}
