//! Beside the committing task: the heartbeat of this replica, and the ear for what others write.
//!
//! Must not decide anything. Invariant: both end with the committing task's runtime, so a replica that cannot commit does
//! not say that it lives.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sqlx::PgConnection;
use sqlx::postgres::PgListener;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::commit::Shared;
use super::link::Link;
use super::log::{self, CHANNEL};

/// A replica says so often that it lives.
const BEAT: Duration = Duration::from_secs(2);
/// How long that may take.
const BEAT_WAIT: Duration = Duration::from_secs(2);
/// The pause before the ear is put to a database again that was away.
const LISTEN_PAUSE: Duration = Duration::from_millis(250);

/// Says for ever that this replica's writer lives.
pub(crate) async fn beat(link: Link, shared: Arc<Shared>) {
    let mut connection = None;
    let mut ticks = interval(BEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let writer = shared.writer.load(Ordering::Acquire);
        if writer == 0 {
            continue;
        }
        let beaten = timeout(BEAT_WAIT, beat_once(&link, &mut connection, writer)).await;
        if !matches!(beaten, Ok(true)) {
            connection = None;
        }
    }
}

/// False where the connection is of no more use.
async fn beat_once(link: &Link, connection: &mut Option<PgConnection>, writer: i64) -> bool {
    if connection.is_none() {
        *connection = link.connect().await.ok();
    }
    match connection {
        // A writer that was ended is replaced when this replica next writes.
        Some(connection) => log::beat(connection, writer).await.is_ok(),
        None => false,
    }
}

/// Wakes the committing task when others write.
pub(crate) async fn listen(link: Link, shared: Arc<Shared>) {
    let pool = link.pool();
    loop {
        if let Ok(mut listener) = PgListener::connect_with(&pool).await
            && listener.listen(CHANNEL).await.is_ok()
        {
            // None after the connection broke off and came back: something may have been missed.
            while listener.try_recv().await.is_ok() {
                shared.moved.notify_one();
            }
        }
        shared.moved.notify_one();
        sleep(LISTEN_PAUSE).await;
    }
}
