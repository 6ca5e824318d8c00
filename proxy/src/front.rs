//! What every request shares: the desk, the teachers, the client keys, the limits, and the counters.
//!
//! Must not know any path. Invariant: a request is counted from its admission to the last byte of its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::http::HeaderMap;
use futures::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tuition_ledger::{Billing, Desk, DeskError, Mode};

use crate::access::{self, ClientKey};
use crate::alert::{self, Alert, Alerts};
use crate::metrics::{Gauges, Metrics};
use crate::problem::{Problem, unit_name};
use crate::route::Route;
use crate::teacher::Secret;

/// Budgets are looked at no more often.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// Makes the statement that `/api/statement` shows.
pub type StatementSource =
    Arc<dyn Fn() -> BoxFuture<'static, Result<serde_json::Value, String>> + Send + Sync>;

/// Whose answers a client is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Share {
    /// Everybody's.
    #[default]
    All,
    /// Those that were bought with the same client key.
    Key,
}

/// How much is taken at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a request's body (413 `request_too_large`).
    pub body_bytes: usize,
    /// Open connections; further ones wait to be accepted.
    pub connections: usize,
    /// Requests under way; further ones are refused (503 `busy`).
    pub requests: usize,
    /// Bytes of a request's URL (414 `url_too_long`).
    pub url_bytes: usize,
    /// Headers of a request, and the bytes of their names and values (431 `headers_too_large`).
    pub headers: usize,
    /// See `headers`.
    pub header_bytes: usize,
    /// How long a connection may be open without a whole head of a request, and idle between two requests; then it is
    /// closed.
    pub quiet: Duration,
    /// How long a request's body may stand still (408 `request_timeout`).
    pub body_wait: Duration,
    /// How long a client may read nothing of a reply that is being sent; then its connection is closed.
    pub write_wait: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 32 << 20,
            connections: 16_384,
            requests: 16_384,
            url_bytes: 8 << 10,
            headers: 64,
            header_bytes: 32 << 10,
            quiet: Duration::from_secs(30),
            body_wait: Duration::from_secs(30),
            write_wait: Duration::from_secs(60),
        }
    }
}

/// Everything that a proxy needs.
#[derive(Clone)]
pub struct Proxy {
    /// Asks, counts and records.
    pub desk: Arc<Desk>,
    /// The teachers in the order of the configuration; the first that lists a model serves it.
    pub teachers: Vec<Route>,
    /// Who may ask; none: everybody on this machine, and nobody else.
    pub keys: Vec<ClientKey>,
    /// The server's mode; a header can only be stricter.
    pub mode: Mode,
    /// Whose answers a client is served.
    pub share: Share,
    /// How much is taken at once.
    pub limits: Limits,
    /// Makes the statement.
    pub statement: StatementSource,
    /// The webhook that is told when a budget comes near its end.
    pub alert_url: Option<Secret>,
}

/// A proxy at work.
pub(crate) struct Front {
    pub(crate) proxy: Proxy,
    pub(crate) metrics: Metrics,
    alerts: Alerts,
    requests: Arc<Semaphore>,
    draining: AtomicBool,
}

impl Front {
    pub(crate) fn new(proxy: Proxy) -> Arc<Self> {
        let requests = Arc::new(Semaphore::new(proxy.limits.requests));
        let (metrics, alerts) = (Metrics::default(), Alerts::default());
        Arc::new(Self { proxy, metrics, alerts, requests, draining: AtomicBool::new(false) })
    }

    /// Lets a request in, until the permit is dropped.
    pub(crate) fn admit(&self) -> Result<OwnedSemaphorePermit, Problem> {
        if self.is_draining() {
            return Err(Problem::draining());
        }
        Arc::clone(&self.requests).try_acquire_owned().map_err(|_| Problem::busy())
    }

    /// The client; none where no keys are asked for.
    pub(crate) fn authenticate(&self, headers: &HeaderMap) -> Result<Option<&ClientKey>, Problem> {
        if !self.proxy.keys.is_empty() {
            let client = access::client(&self.proxy.keys, headers).ok_or_else(Problem::unauthorized)?;
            return Ok(Some(client));
        }
        if access::is_cross_site(headers) {
            return Err(Problem::forbidden("a page of another origin may not ask without a client key"));
        }
        if !access::is_local_name(headers) {
            let message = "without client keys only requests to `localhost` or a loopback address are answered: the `Host` header names another";
            return Err(Problem::forbidden(message));
        }
        Ok(None)
    }

    /// Whether each client key has answers of its own.
    pub(crate) fn is_private(&self) -> bool {
        self.proxy.share == Share::Key
    }

    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Counts a failed call, and a refusal that shows a budget at its end.
    pub(crate) fn note(&self, error: &DeskError) {
        if let DeskError::Refused(refusal) = error
            && let Some(alert) = self.alerts.refused(refusal)
        {
            self.raise(&alert);
        }
        if let DeskError::Teacher(failure) = error {
            let unknown = failure.billing == Billing::Unknown;
            tracing::warn!(teacher = failure.teacher, unknown, "{}", failure.message);
            self.metrics.failure(&failure.teacher, if unknown { "unknown" } else { "unbilled" });
        }
    }

    /// Looks at the budgets after every change, at most once a second, for ever.
    pub(crate) async fn watch_budgets(self: Arc<Self>) {
        let store = Arc::clone(self.proxy.desk.store());
        let mut changes = store.changes();
        loop {
            changes.borrow_and_update();
            if let Ok(present) = store.present().await {
                self.alerts.see(&present).iter().for_each(|alert| self.raise(alert));
            }
            tokio::time::sleep(LOOK_PAUSE).await;
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Logs and counts an alert, and sends it on its way; nobody waits for a webhook.
    fn raise(&self, alert: &Alert) {
        tracing::warn!("{}", alert.words());
        self.metrics.alert(&alert.budget, unit_name(alert.unit), alert.level);
        if let Some(url) = &self.proxy.alert_url {
            tokio::spawn(alert::send(url.clone(), alert.message()));
        }
    }

    pub(crate) fn gauges(&self) -> Gauges {
        Gauges {
            requests: self.proxy.limits.requests.saturating_sub(self.requests.available_permits()),
            calls: self.proxy.desk.under_way(),
            waiting: self.proxy.desk.waiting(),
            draining: self.is_draining(),
        }
    }
}
