//! The teacher behind both: answers at once, with about a kilobyte, and counts.
//! Knows one shape of answer; must not be the bottleneck, and must not know who asks.
//! Invariant: the same question gets the same bytes.

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::post;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::net::TcpListener;

/// What a reply is filled up with.
const WORDS: &str = "The quick brown fox jumps over the lazy dog, and nobody is any the wiser for it. ";
const REPEATS: usize = 9;

pub(crate) struct Teacher {
    pub(crate) address: SocketAddr,
    asked: Arc<AtomicU64>,
}

impl Teacher {
    pub(crate) async fn start() -> std::io::Result<Teacher> {
        let asked = Arc::new(AtomicU64::new(0));
        let routes = Router::new().route("/v1/chat/completions", post(answer)).with_state(Arc::clone(&asked));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Ok(Teacher { address, asked })
    }

    /// Questions so far.
    pub(crate) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

async fn answer(State(asked): State<Arc<AtomicU64>>, body: Bytes) -> impl IntoResponse {
    asked.fetch_add(1, Ordering::Relaxed);
    let Ok(request) = serde_json::from_slice::<Value>(&body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let text = format!("{} {}", request["messages"][1]["content"], WORDS.repeat(REPEATS));
    let answer = json!({
        "id": "chatcmpl-bench", "object": "chat.completion", "created": 1_790_000_000, "model": request["model"],
        "choices": [{
            "index": 0, "finish_reason": "stop", "logprobs": null,
            "message": {"role": "assistant", "content": text},
        }],
        "usage": {"prompt_tokens": 24, "completion_tokens": 100, "total_tokens": 124},
    });
    // nginx keeps a reply only if it may: an hour is longer than any run.
    (
        [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "max-age=3600")],
        answer.to_string(),
    )
        .into_response()
}
