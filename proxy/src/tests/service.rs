//! What a server does beside answering: health, figures, model lists, the drain.

use serde_json::json;
use tokio::net::TcpListener;
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
