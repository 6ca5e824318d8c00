//! A scripted teacher on a loopback port that keeps its own bill.
//! It speaks the OpenAI and the Open Inference API; it must not know the proxy, nor read the proxy's headers.
//! Invariant: what it begins to answer, it charges, whatever happens to the connection afterwards; what it refuses it does not.

mod bill;
mod chat;
mod embeddings;
mod infer;
mod mischief;

pub(crate) use bill::{Bill, CACHED, Charge, INPUT, OUTPUT};
pub(crate) use embeddings::vector;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use mischief::{Mischief, Verdict};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

/// The running teacher; it stops with the test's runtime.
pub(crate) struct Upstream {
    address: SocketAddr,
    desk: Arc<Desk>,
}

/// What the handlers share.
pub(crate) struct Desk {
    charges: Mutex<Vec<Charge>>,
    asked: Mutex<u64>,
    headers: Mutex<Vec<HeaderMap>>,
    misbehaved: Mutex<BTreeSet<String>>,
    gate: Semaphore,
    at_the_gate: watch::Sender<usize>,
    charged: watch::Sender<usize>,
}

impl Upstream {
    /// Binds a port of its own and answers from now on.
    pub(crate) async fn start() -> Upstream {
        let desk = Arc::new(Desk {
            charges: Mutex::default(),
            asked: Mutex::default(),
            headers: Mutex::default(),
            misbehaved: Mutex::default(),
            gate: Semaphore::new(0),
            at_the_gate: watch::Sender::new(0),
            charged: watch::Sender::new(0),
        });
        let routes = Router::new()
            .route("/v1/chat/completions", post(chat_completions))
            .route("/v1/embeddings", post(embed))
            .route("/v1/models", get(|| async { axum::Json(json!({"object": "list", "data": []})) }))
            .route("/v2/health/ready", get(|| async { StatusCode::OK }))
            .route("/v2/models/{model}/infer", post(infer_rows))
            .with_state(Arc::clone(&desk));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Upstream { address, desk }
    }

    /// The address of the server, without a path: an OpenAI base URL is this and `/v1`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it would put on an invoice now.
    pub(crate) fn bill(&self) -> Bill {
        Bill::of(&self.desk.charges.lock().unwrap(), |_| true)
    }

    /// What it would put on the invoice of one API key.
    pub(crate) fn bill_of(&self, key: &str) -> Bill {
        Bill::of(&self.desk.charges.lock().unwrap(), |charge| charge.key == key)
    }

    /// Every charge so far, in order.
    pub(crate) fn charges(&self) -> Vec<Charge> {
        self.desk.charges.lock().unwrap().clone()
    }

    /// Requests that arrived, the refused ones too.
    pub(crate) fn asked(&self) -> u64 {
        *self.desk.asked.lock().unwrap()
    }

    /// The headers of every request that arrived.
    pub(crate) fn headers(&self) -> Vec<HeaderMap> {
        self.desk.headers.lock().unwrap().clone()
    }

    /// Waits until `count` questions with `[gate]` in them have arrived and wait.
    pub(crate) async fn at_the_gate(&self, count: usize) {
        let mut waiting = self.desk.at_the_gate.subscribe();
        waiting.wait_for(|waiting| *waiting >= count).await.unwrap();
    }

    /// Waits until `count` requests have been charged.
    pub(crate) async fn charged(&self, count: usize) {
        let mut charged = self.desk.charged.subscribe();
        charged.wait_for(|charged| *charged >= count).await.unwrap();
    }

    /// Lets `count` questions through the gate.
    pub(crate) fn open_the_gate(&self, count: usize) {
        self.desk.gate.add_permits(count);
    }
}

/// An answer before it is sent: what it costs and its bytes, whole or as events.
struct Served {
    charge: Charge,
    content_type: &'static str,
    body: Vec<u8>,
}

impl Desk {
    /// One request from its first byte to its answer; `answer` is called only if nothing refuses it.
    async fn serve(
        &self,
        headers: HeaderMap,
        question: &str,
        answer: impl FnOnce() -> Result<Served, String>,
    ) -> Response {
        *self.asked.lock().unwrap() += 1;
        let key = bearer(&headers);
        self.headers.lock().unwrap().push(headers);
        let mischief = Mischief::asked_for(question);
        let first = self.misbehaved.lock().unwrap().insert(question.to_owned());
        if let Verdict::Refuse(status, headers) = mischief.verdict(first) {
            return (status, headers, axum::Json(error(status, "refused as asked"))).into_response();
        }
        let mut served = match answer() {
            Ok(served) => served,
            Err(message) => {
                return (StatusCode::BAD_REQUEST, axum::Json(error(StatusCode::BAD_REQUEST, &message)))
                    .into_response();
            }
        };
        served.charge.key = key;
        self.charges.lock().unwrap().push(served.charge);
        self.charged.send_modify(|charged| *charged += 1);
        if mischief.gate {
            self.at_the_gate.send_modify(|waiting| *waiting += 1);
            self.gate.acquire().await.expect("the gate is never closed").forget();
        }
        if mischief.stall {
            std::future::pending::<()>().await;
        }
        if mischief.fail {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            return (status, axum::Json(error(status, "failed as asked"))).into_response();
        }
        send(served.content_type, served.body, &mischief)
    }
}

/// The body in small pieces that cut events, lines and characters anywhere; half of it where a cut was asked for.
fn send(content_type: &'static str, body: Vec<u8>, mischief: &Mischief) -> Response {
    const PIECE: usize = 97;
    let whole = body.len();
    let end = if mischief.cut { whole / 2 } else { whole };
    let cut = mischief.cut;
    let pause = mischief.slow / u32::try_from(end / PIECE + 1).expect("bodies are short");
    let pieces = futures::stream::unfold(0, move |at| {
        let piece = Bytes::copy_from_slice(&body[at.min(end)..(at + PIECE).min(end)]);
        async move {
            if pause > Duration::ZERO && at < end {
                tokio::time::sleep(pause).await;
            }
            match (at < end, cut) {
                (true, _) => Some((Ok(piece), at + PIECE)),
                (false, true) if at < end + PIECE => {
                    // The connection is reset only after what was written has had time to leave.
                    tokio::task::yield_now().await;
                    Some((Err(std::io::Error::other("cut as asked")), end + PIECE))
                }
                (false, _) => None,
            }
        }
    });
    ([(header::CONTENT_TYPE, content_type)], Body::from_stream(pieces)).into_response()
}

fn bearer(headers: &HeaderMap) -> String {
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.trim_start_matches("Bearer ").to_owned()
}

fn error(status: StatusCode, message: &str) -> Value {
    let kind = if status == StatusCode::TOO_MANY_REQUESTS { "rate_limit_exceeded" } else { "server_error" };
    json!({"error": {"message": message, "type": kind, "param": null, "code": kind}})
}

fn parse(body: &Bytes) -> Value {
    serde_json::from_slice(body).unwrap_or(Value::Null)
}

async fn chat_completions(State(desk): State<Arc<Desk>>, headers: HeaderMap, body: Bytes) -> Response {
    let request = parse(&body);
    let question = chat::question(&request);
    desk.serve(headers, &question, || chat::answer(&request)).await
}

async fn embed(State(desk): State<Arc<Desk>>, headers: HeaderMap, body: Bytes) -> Response {
    let request = parse(&body);
    let texts = embeddings::texts(&request);
    desk.serve(headers, &texts.join("\n"), || embeddings::answer(&request)).await
}

/// A model that is named after a mischief behaves so: rows of numbers hold no words.
async fn infer_rows(
    State(desk): State<Arc<Desk>>,
    Path(model): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let request = parse(&body);
    desk.serve(headers, &format!("[{model}]"), || infer::answer(&request)).await
}

/// FNV-1a: the same pseudo-random number for the same text, in every run.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
