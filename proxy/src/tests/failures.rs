//! What goes wrong behind the proxy: surely unbilled or unknown, and what the client is told.

use std::time::Duration;

use serde_json::json;
use tokio::net::TcpListener;

use super::{Reply, Setup, TestServer};

/// Status, `x-should-retry`, and settled, reserved and unknown calls after asking about `text`.
async fn after(text: &str) -> (Reply, [u64; 3], u64) {
    let server = TestServer::start(Setup::default()).await;
    let reply = server.chat(text, json!({})).await;
    (reply, server.calls().await, server.upstream.bill(|bill| bill.requests))
}

#[tokio::test]
async fn every_failure_is_judged() {
    let unbilled = [0, 0, 0];
    let unknown = [0, 0, 1];
    let rows: [(&str, u16, &str, [u64; 3], u64); 9] = [
        ("status 400", 400, "", unbilled, 1),
        ("status 404", 404, "", unbilled, 1),
        ("status 429", 429, "", unbilled, 3),
        ("status 503", 502, "", unbilled, 3),
        ("status 507", 502, "", unbilled, 3),
        ("status 408", 502, "false", unknown, 1),
        ("status 500", 502, "false", unknown, 1),
        ("plain-503", 502, "false", unknown, 1),
        ("nonsense", 502, "false", unknown, 1),
    ];
    for (text, status, should_retry, calls, requests) in rows {
        let (reply, found, asked) = after(text).await;
        assert_eq!(
            (reply.status, reply.should_retry.as_str()),
            (status, should_retry),
            "{text}: {}",
            reply.body
        );
        assert_eq!((found, asked), (calls, requests), "{text}");
        if text.starts_with("status") {
            let own = format!("scripted {}", &text[7..]);
            assert_eq!(reply.json()["error"]["message"], own.as_str(), "the teacher's own words");
        }
    }
    let server = TestServer::start(Setup::default()).await;
    let stream = server.chat("status 400", json!({"stream": true})).await;
    assert_eq!((stream.status, stream.json()["error"]["code"].as_u64()), (400, Some(400)));
    let (reply, ..) = after("plain-503").await;
    assert_eq!(reply.json()["error"]["teacher_body"], "no upstream");
}

#[tokio::test]
async fn a_busy_teacher_is_asked_again() {
    let (reply, calls, requests) = after("busy 2").await;
    assert_eq!((reply.status, calls, requests), (200, [1, 0, 0], 3));
}

#[tokio::test]
async fn a_teacher_that_is_not_there_bills_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Some(format!("http://{}/v1", listener.local_addr().unwrap()));
    drop(listener);
    let server = TestServer::start(Setup { url, ..Setup::default() }).await;
    let reply = server.chat("hi", json!({})).await;
    assert_eq!((reply.status, reply.should_retry.as_str()), (502, ""));
    assert!(reply.json()["error"]["message"].as_str().unwrap().contains("no connection came about"));
    assert_eq!(server.calls().await, [0, 0, 0]);
}

#[tokio::test]
async fn a_silent_teacher_may_have_billed() {
    let timeout = Duration::from_millis(50);
    let server = TestServer::start(Setup { timeout, ..Setup::default() }).await;
    let reply = server.chat("hold", json!({})).await;
    assert_eq!((reply.status, reply.should_retry.as_str()), (504, "false"));
    assert_eq!(reply.json()["error"]["code"], "teacher_timed_out");
    assert_eq!(server.calls().await, [0, 0, 1]);
}

#[tokio::test]
async fn a_broken_stream_is_not_served() {
    for text in ["cut", "sour"] {
        let server = TestServer::start(Setup::default()).await;
        let question = super::chat(text, json!({"stream": true})).to_string();
        let begun = server.send("/v1/chat/completions", &[], question).await;
        assert_eq!(begun.status(), 200);
        server.upstream.held().await;
        server.upstream.let_go();
        let reply = Reply::of(begun).await;
        assert!(!reply.body.contains("[DONE]"), "{text}: {}", reply.body);
        let last = reply.body.trim_end().rsplit("data: ").next().unwrap().to_owned();
        let error: serde_json::Value = serde_json::from_str(&last).unwrap();
        assert_eq!(error["error"]["code"], "teacher_failed", "{text}");
        assert_eq!(server.calls().await, [0, 0, 1]);
        let replay = [("x-tuition-mode", "replay")];
        let again = server.post("/v1/chat/completions", &replay, &super::chat(text, json!({}))).await;
        assert_eq!(again.status, 409);
    }
}
