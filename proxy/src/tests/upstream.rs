//! The scripted teacher: what the question says, it does; and it keeps its own bill.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Response, StatusCode};
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// What the teacher saw and billed.
#[derive(Default)]
pub(crate) struct Bill {
    /// Inferences answered.
    pub(crate) calls: u64,
    /// Requests that came.
    pub(crate) requests: u64,
    /// Headers of the last request.
    pub(crate) headers: HeaderMap,
    /// Body of the last request.
    pub(crate) body: String,
}

pub(crate) struct Shared {
    bill: Mutex<Bill>,
    /// A permit lets one question that asks to be held go on.
    gate: Semaphore,
    /// Gets a permit for each question that has come to its gate.
    waiting: Semaphore,
}

/// A teacher on loopback.
pub(crate) struct Upstream {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

impl Upstream {
    pub(crate) async fn start() -> Self {
        let (gate, waiting) = (Semaphore::new(0), Semaphore::new(0));
        let shared = Arc::new(Shared { bill: Mutex::default(), gate, waiting });
        let router = Router::new()
            .route("/v1/chat/completions", post(chat))
            .route("/v1/embeddings", post(embeddings))
            .route("/v1/models", get(models))
            .route("/v2/models/{model}/infer", post(infer))
            .route("/v2/models/{model}", get(metadata))
            .with_state(Arc::clone(&shared));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, shared }
    }

    pub(crate) fn calls(&self) -> u64 {
        self.bill(|bill| bill.calls)
    }

    pub(crate) fn bill<T>(&self, look: impl FnOnce(&Bill) -> T) -> T {
        look(&self.shared.bill.lock().unwrap())
    }

    /// Waits until a question is held.
    pub(crate) async fn held(&self) {
        self.shared.waiting.acquire().await.unwrap().forget();
    }

    /// Lets a held question go on.
    pub(crate) fn let_go(&self) {
        self.shared.gate.add_permits(1);
    }
}

impl Shared {
    fn note(&self, headers: &HeaderMap, body: &str) -> u64 {
        let mut bill = self.bill.lock().unwrap();
        bill.requests += 1;
        bill.headers = headers.clone();
        bill.body = body.to_owned();
        bill.requests
    }

    fn charge(&self, calls: u64) {
        self.bill.lock().unwrap().calls += calls;
    }

    async fn hold(&self) {
        self.waiting.add_permits(1);
        self.gate.acquire().await.unwrap().forget();
    }
}

fn reply(status: u16, media: &str, body: impl Into<Body>) -> Response<Body> {
    let reply =
        Response::builder().status(StatusCode::from_u16(status).unwrap()).header("content-type", media);
    reply.header("retry-after-ms", "0").body(body.into()).unwrap()
}

fn error(status: u16) -> Response<Body> {
    let body = json!({"error": {"message": format!("scripted {status}"), "code": status}});
    reply(status, "application/json", body.to_string())
}

async fn chat(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: String) -> Response<Body> {
    let requests = shared.note(&headers, &body);
    let asked: Value = serde_json::from_str(&body).unwrap();
    let text = asked["messages"][0]["content"].as_str().unwrap().to_owned();
    let choices = asked["n"].as_u64().unwrap_or(1);
    match text.split_once(' ').unwrap_or((&text, "")) {
        ("status", code) => return error(code.parse().unwrap()),
        ("busy", times) if requests <= times.parse().unwrap() => return error(503),
        ("plain-503", _) => return reply(503, "text/plain", "no upstream"),
        ("nonsense", _) => return reply(200, "application/json", "{\"choices\":"),
        ("hold", _) => shared.hold().await,
        ("cut" | "sour", _) => {
            shared.charge(choices);
            let (first, _) = chunks(&text, 1);
            let end = if text == "cut" {
                Err(std::io::Error::other("cut"))
            } else {
                Ok(Bytes::from_static(b"data: {\"error\":{\"message\":\"sour\"}}\n\ndata: [DONE]\n\n"))
            };
            let end = stream::once(async move {
                shared.hold().await;
                end
            });
            let body = stream::once(async move { Ok(first) }).chain(end);
            return reply(200, "text/event-stream", Body::from_stream(body));
        }
        _ => {}
    }
    shared.charge(choices);
    if asked["stream"] != json!(true) {
        return reply(200, "application/json", completion(&text, choices).to_string());
    }
    let (first, rest) = chunks(&text, choices);
    let gated = text.starts_with("gate");
    let body = stream::once(async move { Ok::<_, Infallible>(first) }).chain(stream::once(async move {
        if gated {
            shared.hold().await;
        }
        Ok(rest)
    }));
    reply(200, "text/event-stream", Body::from_stream(body))
}

fn logprobs(token: &str) -> Value {
    json!({"content": [{"token": token, "logprob": -0.1, "top_logprobs": [{"token": token, "logprob": -0.1}]}]})
}

const USAGE: &str = r#"{"prompt_tokens":10,"completion_tokens":4,"total_tokens":14,"prompt_tokens_details":{"cached_tokens":2}}"#;

fn completion(text: &str, choices: u64) -> Value {
    let usage: Value = serde_json::from_str(USAGE).unwrap();
    let choices: Vec<Value> = (0..choices)
        .map(|index| {
            json!({"index": index, "message": {"role": "assistant", "content": format!("echo {text}")},
                "logprobs": logprobs("echo"), "finish_reason": "stop"})
        })
        .collect();
    json!({"id": "c1", "object": "chat.completion", "created": 1, "model": "m-1", "choices": choices, "usage": usage})
}

/// The events before the gate and those behind it.
fn chunks(text: &str, choices: u64) -> (Bytes, Bytes) {
    let event = |choices: Value, usage: Value| {
        let chunk = json!({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m-1",
            "choices": choices, "usage": usage});
        format!("data: {chunk}\n\n")
    };
    let (mut first, mut rest) = (String::new(), String::new());
    for index in 0..choices {
        let choice = |delta: Value, logprobs: Value, finish: Value| json!([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]);
        let role = json!({"role": "assistant", "content": ""});
        first.push_str(&event(choice(role, Value::Null, Value::Null), Value::Null));
        first.push_str(&event(
            choice(json!({"content": "echo "}), logprobs("echo"), Value::Null),
            Value::Null,
        ));
        rest.push_str(&event(choice(json!({"content": text}), Value::Null, Value::Null), Value::Null));
        rest.push_str(&event(choice(json!({}), Value::Null, json!("stop")), Value::Null));
    }
    rest.push_str(&event(json!([]), serde_json::from_str(USAGE).unwrap()));
    rest.push_str("data: [DONE]\n\n");
    (first.into(), rest.into())
}

/// The vector of a text: its length and its first byte.
pub(crate) fn vector(text: &str) -> [f32; 2] {
    [text.len() as f32 + 0.1, f32::from(text.as_bytes()[0])]
}

async fn embeddings(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: String) -> Response<Body> {
    shared.note(&headers, &body);
    let asked: Value = serde_json::from_str(&body).unwrap();
    let texts = asked["input"].as_array().cloned().unwrap_or_else(|| vec![asked["input"].clone()]);
    shared.charge(texts.len() as u64);
    let data: Vec<Value> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| {
            let vector = vector(text.as_str().unwrap());
            let embedding = if asked["encoding_format"] == "base64" {
                let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
                json!(STANDARD.encode(bytes))
            } else {
                json!(vector)
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    let tokens = 3 * texts.len();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    let body = json!({"object": "list", "data": data, "model": "e-1", "usage": usage});
    reply(200, "application/json", body.to_string())
}

async fn models() -> Response<Body> {
    let data = json!([{"id": "m", "object": "model"}, {"id": "other", "object": "model"}]);
    reply(200, "application/json", json!({"object": "list", "data": data}).to_string())
}

async fn metadata(Path(model): Path<String>) -> Response<Body> {
    reply(200, "application/json", json!({"name": model, "platform": "scripted"}).to_string())
}

/// Answers each row with the sum of its elements.
async fn infer(
    State(shared): State<Arc<Shared>>,
    Path(model): Path<String>,
    headers: HeaderMap,
    body: String,
) -> Response<Body> {
    shared.note(&headers, &body);
    let asked: Value = serde_json::from_str(&body).unwrap();
    let input = &asked["inputs"][0];
    let (rows, width) = (input["shape"][0].as_u64().unwrap(), input["shape"][1].as_u64().unwrap());
    shared.charge(rows);
    let data: Vec<f64> =
        input["data"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
    let sums: Vec<f64> = data.chunks(usize::try_from(width).unwrap()).map(|row| row.iter().sum()).collect();
    let outputs = json!([{"name": "sum", "shape": [rows, 1], "datatype": "FP32", "data": sums}]);
    let body = json!({"model_name": model, "id": "random", "outputs": outputs});
    reply(200, "application/json", body.to_string())
}
