//! The teacher's side of the desk: what it is asked, what it replies, and how it fails.
//!
//! Must not know HTTP or ONNX. Invariant: a failure says whether the call may have been billed, and when in doubt it may.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::answer::{Answer, Usage};
use crate::desk::live::Live;
use crate::desk::order::Order;
use crate::entry::Cause;

/// A complete answer to an exchange.
#[derive(Clone, Debug)]
pub struct Reply {
    /// What the teacher says it used.
    pub usage: Option<Usage>,
    /// The media type.
    pub media: String,
    /// The reply around its items; empty where the reply is the one item's body.
    pub envelope: Bytes,
    /// One answer for each item asked, in that order.
    pub answers: Vec<Answer>,
}

/// Whether a failed call may appear on the bill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Billing {
    /// Surely not: the hold is released, and the call may be tried again.
    Unbilled {
        /// Whether trying again can help (a refused connection, 429, 503; not a 400).
        retry: bool,
        /// How long the teacher asked to wait.
        after: Option<Duration>,
    },
    /// Perhaps: the hold is unknown until it is resolved.
    Unknown,
}

/// Why there is no complete answer.
#[derive(Clone, Debug, thiserror::Error)]
#[error("teacher `{teacher}`: {message}")]
pub struct Failure {
    /// The teacher.
    pub teacher: String,
    /// What happened, for the record.
    pub cause: Cause,
    /// What happened, for people.
    pub message: String,
    /// Whether it may have been billed.
    pub billing: Billing,
    /// The teacher's status, where it answered.
    pub status: Option<u16>,
    /// The media type of `body`.
    pub media: String,
    /// The teacher's own body, as far as it came.
    pub body: Bytes,
}

/// Somebody who answers for a fee.
#[async_trait]
pub trait Teacher: Send + Sync {
    /// Its name in the configuration.
    fn name(&self) -> &str;

    /// How long a whole answer may take.
    fn timeout(&self) -> Duration;

    /// How often a surely unbilled failure is tried again.
    fn retries(&self) -> u32;

    /// Asks for the items `led` (indices into the order's items, ascending) in one exchange. A streamed answer's events
    /// go to `live` as they come; those from the first completing one on are held back there.
    async fn ask(&self, order: &Arc<Order>, led: &[usize], live: &Live) -> Result<Reply, Failure>;
}
