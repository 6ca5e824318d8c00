//! What a server does beside answering: health, figures, model lists, the drain.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc::UnboundedSender;
use tuition_ledger::Mode;

use super::{Setup, TestServer};
use crate::server::ServeError;

#[tokio::test]
async fn health_figures_and_the_page_are_there() {
    let server = TestServer::start(Setup::default()).await;
    server.chat("a", json!({})).await;
    server.chat("a", json!({})).await;
    server.chat("status 500", json!({})).await;
    for path in ["/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/v2"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    let metrics = server.get("/metrics").await;
    for line in [
        "tuition_requests_total{operation=\"chat.completions\",outcome=\"bought\"} 1",
        "tuition_requests_total{operation=\"chat.completions\",outcome=\"known\"} 1",
        "tuition_requests_total{operation=\"chat.completions\",outcome=\"teacher_failed\"} 1",
        "tuition_teacher_failures_total{teacher=\"gpt\",kind=\"unknown\"} 1",
        "tuition_budget{budget=\"pilot\",state=\"limit\",unit=\"calls\"} 100",
        "tuition_budget{budget=\"pilot\",state=\"settled\",unit=\"calls\"} 1",
        "tuition_budget{budget=\"pilot\",state=\"unknown\",unit=\"calls\"} 1",
        "tuition_calls_in_flight 0",
        "tuition_answers 1",
    ] {
        assert!(metrics.body.lines().any(|found| found == line), "{line}\n{}", metrics.body);
    }
    assert_eq!(server.get("/api/statement").await.json()["totals"]["calls"]["settled"], 7);
    let page = server.get("/").await;
    assert!(page.media.starts_with("text/html") && page.body.contains("api/statement"));
}

#[tokio::test]
async fn a_budget_near_its_end_is_said_once() {
    let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let hook = |State(told): State<UnboundedSender<Value>>, body: String| async move {
        told.send(serde_json::from_str(&body).unwrap()).unwrap();
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook?secret=1", listener.local_addr().unwrap());
    let hook = Router::new().route("/hook", post(hook)).with_state(told);
    tokio::spawn(axum::serve(listener, hook).into_future());
    let server = TestServer::start(Setup { calls: Some(5), alert_url: Some(url), ..Setup::default() }).await;
    for question in ["a", "b", "c", "d"] {
        assert_eq!(server.chat(question, json!({})).await.status, 200);
    }
    let mut next =
        async || tokio::time::timeout(Duration::from_secs(20), hears.recv()).await.unwrap().unwrap();
    let first = next().await;
    let text = "tuition: budget `pilot` is at 80 %: 4 calls of 5 calls are committed";
    assert_eq!((&first["text"], &first["level"]), (&json!(text), &json!(80)));
    // A refused call shows the end of a budget at once.
    assert_eq!(server.chat("e", json!({"n": 2})).await.status, 402);
    assert_eq!(server.chat("f", json!({})).await.status, 200);
    assert_eq!(server.chat("g", json!({})).await.status, 402);
    assert_eq!(server.chat("h", json!({})).await.status, 402);
    let second = next().await;
    assert_eq!((&second["level"], &second["unit"]), (&json!(100), &json!("calls")));
    let metrics = server.get("/metrics").await.body;
    for level in [80, 100] {
        let line =
            format!("tuition_budget_alerts_total{{budget=\"pilot\",unit=\"calls\",level=\"{level}\"}} 1");
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
}

#[tokio::test]
async fn models_are_listed_without_a_call() {
    let server = TestServer::start(Setup { models: vec!["m"], ..Setup::default() }).await;
    let expected = json!({"object": "list", "data": [{"id": "m", "object": "model"}]});
    assert_eq!(server.get("/v1/models").await.json(), expected);
    let expected = json!({"name": "m", "platform": "scripted"});
    assert_eq!(server.get("/v2/models/m").await.json(), expected);
    assert_eq!(server.get("/v2/models/other").await.status, 404);
    assert_eq!((server.upstream.calls(), server.calls().await), (0, [0, 0, 0]));
    let server = TestServer::start(Setup { models: vec!["m"], mode: Mode::Replay, ..Setup::default() }).await;
    assert_eq!(server.get("/v1/models").await.json()["data"][0]["id"], "m");
    assert_eq!(server.get("/v2/models/m").await.status, 409);
}

#[tokio::test]
async fn a_drain_waits_for_what_is_under_way() {
    let mut server = TestServer::start(Setup::default()).await;
    let (stop, running) = (server.stop.take().unwrap(), server.running.take().unwrap());
    let asked = server.chat("hold", json!({}));
    let closing = async {
        server.upstream.held().await;
        stop.send(()).unwrap();
        // Nothing is accepted any more once the listener is closed.
        while server.client.get(format!("{}/healthz", server.url)).send().await.is_ok() {
            tokio::task::yield_now().await;
        }
        server.upstream.let_go();
    };
    let (reply, ()) = futures::join!(asked, closing);
    assert_eq!((reply.status, reply.outcome.as_str()), (200, "bought"));
    running.await.unwrap().unwrap();
    assert_eq!(server.calls().await, [1, 0, 0]);
}

#[tokio::test]
async fn without_keys_nobody_else_is_served() {
    let server = TestServer::start(Setup::default()).await;
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let proxy = server.proxy.clone();
    let refused = crate::run(listener, proxy, std::future::pending()).await;
    assert!(matches!(refused, Err(ServeError::Open(found)) if found == address));
}
