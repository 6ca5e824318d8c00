//! The whole path of a request, on one screen: admit, authenticate, read, order, ask, render.
//!
//! Must not know any API's fields. Invariant: the reply to a request is made of durable answers only.

use std::sync::Arc;

use axum::body::{Body, BodyDataStream};
use axum::extract::Request;
use axum::http::{HeaderMap, Response, StatusCode};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::time::timeout;

use crate::dialect::{Operation, Target};
use crate::front::{Front, Limits};
use crate::order::{self, Whose, Wish};
use crate::problem::Problem;
use crate::receipt::Receipt;
use crate::relay;

/// Answers a request, or says in its API's shape why not.
pub(crate) async fn answer(
    front: Arc<Front>,
    operation: Operation,
    target: Target,
    request: Request,
) -> Response<Body> {
    handle(&front, operation, target, request).await.unwrap_or_else(|problem| {
        front.metrics.request(operation.name(), problem.code());
        problem.render(operation.api())
    })
}

async fn handle(
    front: &Arc<Front>,
    operation: Operation,
    target: Target,
    request: Request,
) -> Result<Response<Body>, Problem> {
    let permit = front.admit()?;
    let (head, body) = request.into_parts();
    let client = front.authenticate(&head.headers)?;
    let wish = Wish::read(&head.headers, front.proxy.mode, client)?;
    let body = read(&head.headers, body, &front.proxy.limits).await?;
    let whose = Whose { client, private: front.is_private() };
    let made = order::make(&front.proxy.teachers, operation, target, &head.headers, whose, wish, body)?;
    if made.wanted.is_stream() {
        return relay::stream(front, operation, made, permit).await;
    }
    let served = front.proxy.desk.ask(Arc::clone(&made.route.teacher), made.order).await;
    let served = served.inspect_err(|error| front.note(error))?;
    let receipt = Receipt::of(&served);
    let rendered = operation.render(&made.wanted, &served.items)?;
    front.metrics.request(operation.name(), receipt.outcome);
    Ok(receipt.response(rendered))
}

/// Reads a body within the limits; one that comes in one piece is not copied.
async fn read(headers: &HeaderMap, body: Body, limits: &Limits) -> Result<Bytes, Problem> {
    let (limit, wait) = (limits.body_bytes, limits.body_wait);
    let announced = headers.get("content-length").and_then(|length| length.to_str().ok()?.parse().ok());
    let mut chunks = body.into_data_stream();
    if announced.is_some_and(|length: usize| length > limit) {
        if !headers.contains_key("expect") {
            // As much as is read of a body that does not say its length: the limit, and as much again.
            let _ = timeout(wait, discard(&mut chunks, limit.saturating_mul(2))).await;
        }
        return Err(Problem::too_large(limit));
    }
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    while let Some(chunk) = timeout(wait, chunks.next()).await.map_err(|_| Problem::too_slow(wait))? {
        let chunk = chunk.map_err(|error| {
            let message = format!("the request's body broke off: {error}");
            Problem::new(StatusCode::BAD_REQUEST, "bad_request", message)
        })?;
        if first.len() + whole.len() + chunk.len() > limit {
            let _ = timeout(wait, discard(&mut chunks, limit)).await;
            return Err(Problem::too_large(limit));
        }
        if first.is_empty() && whole.is_empty() {
            first = chunk;
            continue;
        }
        if whole.is_empty() {
            whole.extend_from_slice(&std::mem::take(&mut first));
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(if whole.is_empty() { first } else { whole.freeze() })
}

/// Reads what a client still sends, up to `most` bytes: many read no reply before they have sent their whole body.
async fn discard(chunks: &mut BodyDataStream, most: usize) {
    let mut read = 0;
    while let Some(Ok(chunk)) = chunks.next().await {
        read += chunk.len();
        if read > most {
            break;
        }
    }
}
