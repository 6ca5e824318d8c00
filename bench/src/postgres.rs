//! Purchases over one PostgreSQL, with one and with three replicas: whether the one row that orders them is the limit.
//! Knows the pinned outside of the command; must not look into the tables.
//! Invariant: every reply that is counted was bought of the teacher, held and settled with its commits synced.

use crate::load::{self, Measured};
use crate::process::{self, Serve};
use crate::teacher::Teacher;
use crate::{BUDGET_CALLS, Failure, Settings, request};
use futures::future::try_join_all;
use std::time::Duration;

#[path = "../../tests/support/cluster.rs"]
#[expect(clippy::unwrap_used, reason = "a server that cannot be started ends the measurement")]
#[expect(dead_code, reason = "what the tests alone use of it")]
mod cluster;

/// Replicas, one after the other; the same clients share them.
const REPLICAS: [usize; 2] = [1, 3];

/// Measures, and says what was measured.
pub(crate) async fn purchases(settings: &Settings) -> Result<String, Failure> {
    let teacher = Teacher::start().await?;
    let command = process::command(settings.command.as_deref())?;
    let cluster = cluster::Cluster::start();
    let mut lines = vec![
        format!("{} clients in all, {} s each", settings.clients, settings.seconds),
        String::new(),
        "| purchases over one PostgreSQL, every commit synced | a second | p50 ms | p99 ms |".to_owned(),
        "| --- | --- | --- | --- |".to_owned(),
    ];
    for replicas in REPLICAS {
        eprintln!("{replicas} replicas, {} s", settings.seconds);
        let store = cluster.database();
        let asked = teacher.asked();
        let mut serving = Vec::new();
        for _ in 0..replicas {
            let folder = tempfile::tempdir()?;
            let serve = Serve::start(&command, folder.path(), &store, teacher.address, BUDGET_CALLS)?;
            serving.push((serve, folder));
        }
        let loads = serving.iter().enumerate().map(|(replica, (serve, _))| {
            let next = move |client: usize, number: usize| {
                request(&format!("{replicas} {replica} {client} {number}"))
            };
            let duration = Duration::from_secs(settings.seconds);
            load::repeat(serve.address, settings.clients.div_ceil(replicas), duration, next)
        });
        let mut all = Measured::default();
        for measured in try_join_all(loads).await? {
            all.beside(measured);
        }
        let bought = teacher.asked() - asked;
        if bought < all.count() {
            return Err(
                format!("{} answers were counted as bought, the teacher gave {bought}", all.count()).into()
            );
        }
        lines.push(format!(
            "| {replicas} replicas | {:.0} | {:.2} | {:.2} |",
            all.rate(),
            all.percentile(50.0),
            all.percentile(99.0)
        ));
    }
    Ok(lines.join("\n"))
}
