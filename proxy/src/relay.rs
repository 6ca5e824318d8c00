//! Streams to clients: an answer under way as it comes, a known one at once.
//!
//! Must not know how a teacher is asked. Invariants: what completes an answer goes out only after the answer is
//! durable; a client that goes away leaves the call as it is; a stream that fails ends with an error event and no end
//! mark.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Response};
use bytes::Bytes;
use futures::stream;
use tokio::sync::OwnedSemaphorePermit;
use tuition_ledger::{DeskError, Ending, LiveReader, Order, Outcome, Record, ServedItem, Step, Streamed};

use crate::dialect::openai::stream as chunks;
use crate::dialect::{Operation, Presentation, essence};
use crate::front::Front;
use crate::order::Made;
use crate::problem::Problem;
use crate::receipt::{self, Receipt};

/// What a live stream carries along until its last byte.
struct Relay {
    front: Arc<Front>,
    order: Arc<Order>,
    operation: Operation,
    wanted: Presentation,
    outcome: Outcome,
    reader: LiveReader,
    first: Option<Bytes>,
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

/// Answers a one-item order as a stream.
pub(crate) async fn stream(
    front: &Arc<Front>,
    operation: Operation,
    made: Made<'_>,
    permit: OwnedSemaphorePermit,
) -> Result<Response<Body>, Problem> {
    let Made { route, order, wanted } = made;
    let failed = |error: DeskError| {
        front.note(&error);
        Problem::from(error)
    };
    loop {
        let streamed = front.proxy.desk.stream(Arc::clone(&route.teacher), Arc::clone(&order)).await;
        let (mut reader, outcome) = match streamed.map_err(failed)? {
            Streamed::Known(record) => return whole(front, operation, &wanted, record, Outcome::Known),
            Streamed::Live { reader, outcome } => (reader, outcome),
        };
        match reader.next().await {
            Step::Chunk(first) => {
                let receipt = Receipt {
                    outcome: receipt::word(outcome),
                    calls: if outcome == Outcome::Bought {
                        order.items.iter().map(|item| item.calls).sum()
                    } else {
                        0
                    },
                    key: order.items.first().map(|item| item.key),
                    cost: None,
                };
                let mut response = Response::new(Body::empty());
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(chunks::MEDIA));
                receipt.write(response.headers_mut());
                let (front, first) = (Arc::clone(front), Some(first));
                let relay = Relay {
                    front,
                    order,
                    operation,
                    wanted,
                    outcome,
                    reader,
                    first,
                    ended: false,
                    _permit: permit,
                };
                *response.body_mut() = Body::from_stream(stream::unfold(relay, Relay::next));
                return Ok(response);
            }
            Step::Ended(Ending::Failed(error)) => return Err(failed((*error).clone())),
            Step::Ended(Ending::Answered(records)) => {
                let record = own(&order, &records).ok_or_else(|| missing(&order))?;
                if outcome == Outcome::Followed {
                    front.proxy.desk.followed(&order, &record);
                }
                return whole(front, operation, &wanted, record, outcome);
            }
            Step::Ended(Ending::Vacant) => {}
        }
    }
}

impl Relay {
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        loop {
            if self.ended {
                return None;
            }
            let step = match self.first.take() {
                Some(first) => Step::Chunk(first),
                None => self.reader.next().await,
            };
            match step {
                Step::Chunk(bytes) => {
                    let bytes = self.presented(bytes);
                    if !bytes.is_empty() {
                        return Some((Ok(bytes), self));
                    }
                }
                Step::Ended(ending) => {
                    self.ended = true;
                    let error = self.end(ending)?;
                    return Some((Ok(error), self));
                }
            }
        }
    }

    /// The events as this client wants them: chunks hold whole events.
    fn presented(&self, bytes: Bytes) -> Bytes {
        match self.wanted {
            Presentation::Chat { include_usage: false, .. } => chunks::without_usage(&bytes),
            _ => bytes,
        }
    }

    /// Counts the end; an error event where the answer failed.
    fn end(&self, ending: Ending) -> Option<Bytes> {
        let name = self.operation.name();
        let error = match ending {
            Ending::Answered(records) => {
                self.front.metrics.request(name, receipt::word(self.outcome));
                if let Some(record) = own(&self.order, &records)
                    && self.outcome == Outcome::Followed
                {
                    self.front.proxy.desk.followed(&self.order, &record);
                }
                return None;
            }
            Ending::Failed(error) => (*error).clone(),
            Ending::Vacant => DeskError::Draining,
        };
        self.front.note(&error);
        let problem = Problem::from(error);
        self.front.metrics.request(name, problem.code());
        Some(format!("data: {}\n\n", problem.body(self.operation.api())).into())
    }
}

/// The order's own record among those of a leader.
fn own(order: &Order, records: &[Arc<Record>]) -> Option<Arc<Record>> {
    let key = order.items.first()?.key;
    records.iter().find(|record| record.key == key).cloned()
}

fn missing(order: &Order) -> Problem {
    let key = order.items.first().map(|item| item.key.to_string()).unwrap_or_default();
    crate::dialect::Unreadable(format!("the answer {key} is not among those that were recorded")).into()
}

/// A complete answer, as the stream that the client wants.
fn whole(
    front: &Front,
    operation: Operation,
    wanted: &Presentation,
    record: Arc<Record>,
    outcome: Outcome,
) -> Result<Response<Body>, Problem> {
    let bought = outcome == Outcome::Bought;
    let receipt = Receipt {
        outcome: receipt::word(outcome),
        calls: if bought { record.share.calls } else { 0 },
        key: Some(record.key),
        cost: record.cost().map(|cost| if bought { cost } else { tuition_ledger::Usd::ZERO }),
    };
    let rendered = operation.render(wanted, &[ServedItem { record, outcome }])?;
    debug_assert_eq!(essence(&rendered.media), chunks::MEDIA);
    front.metrics.request(operation.name(), receipt.outcome);
    Ok(receipt.response(rendered))
}
