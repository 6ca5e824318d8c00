//! The limits of the server: what is beyond one is told so, and what stands still is closed.
//!
//! Time-outs are short here; nothing but them is waited for.

use std::time::Duration;

use futures::FutureExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Reply, Setup, TestServer, chat};
use crate::Limits;
use crate::problem::Problem;

const SHORT: Duration = Duration::from_millis(100);
const HEALTH: &str = "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";

async fn start(limits: Limits) -> TestServer {
    TestServer::start(Setup { limits, ..Setup::default() }).await
}

impl TestServer {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.url.trim_start_matches("http://")).await.unwrap()
    }
}

/// Everything until the other side closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset is an end as well.
    let _ = stream.read_to_end(&mut bytes).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// One reply that has no more than a small body.
async fn one(stream: &mut TcpStream) -> String {
    let mut bytes = vec![0; 4096];
    let count = stream.read(&mut bytes).await.unwrap();
    String::from_utf8_lossy(&bytes[..count]).into_owned()
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_in_the_apis_shape() {
    let server = start(Limits::default()).await;
    let check = async |path: &str, headers: &[(&str, &str)], status: u16, code: &str| {
        let reply = server.post(path, headers, &json!({})).await;
        let error = &reply.json()["error"];
        let words = if path.starts_with("/v2") { error.as_str() } else { error["message"].as_str() };
        assert!(words.is_some_and(|words| words.starts_with("the request")), "{reply:?}");
        assert_eq!(reply.status, status, "{reply:?}");
        assert!(path.starts_with("/v2") || error["code"] == code, "{reply:?}");
    };
    let long = "a".repeat(9000);
    check(&format!("/v1/chat/completions?{long}"), &[], 414, "url_too_long").await;
    check(&format!("/v2/models/{long}/infer"), &[], 414, "").await;
    let names: Vec<String> = (0..70).map(|number| format!("x-{number}")).collect();
    let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "1")).collect();
    check("/v1/chat/completions", &many, 431, "headers_too_large").await;
    check("/v2/models/m/infer", &many, 431, "").await;
    let large = "a".repeat(40_000);
    check("/v1/embeddings", &[("x-large", &large)], 431, "headers_too_large").await;
    assert_eq!(server.upstream.bill(|bill| bill.requests), 0);
    // Beyond what the HTTP library reads at all there is a status without a body.
    let mut stream = server.connect().await;
    let head = format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "a".repeat(200_000));
    let _ = stream.write_all(head.as_bytes()).await;
    let reply = rest(&mut stream).await;
    assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 431"), "{reply}");
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed() {
    let server = start(Limits { quiet: SHORT, ..Limits::default() }).await;
    for begun in ["", "POST /v1/chat/completions HTTP/1.1\r\nhost: loc", "PRI * HTTP/2.0\r\n\r\n"] {
        let mut stream = server.connect().await;
        stream.write_all(begun.as_bytes()).await.unwrap();
        assert_eq!(rest(&mut stream).await, "", "{begun}");
    }
    let mut stream = server.connect().await;
    stream.write_all(HEALTH.as_bytes()).await.unwrap();
    let reply = rest(&mut stream).await;
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    // An answer that takes longer than that is not broken off.
    let closing = async {
        server.upstream.held().await;
        for _ in 0..2 {
            assert_eq!(rest(&mut server.connect().await).await, "");
        }
        server.upstream.let_go();
    };
    let (reply, ()) = futures::join!(server.chat("hold", json!({})), closing);
    assert_eq!((reply.status, reply.outcome.as_str()), (200, "bought"));
}

#[tokio::test]
async fn a_body_that_stands_still_is_a_time_out() {
    let server = start(Limits { body_wait: SHORT, ..Limits::default() }).await;
    for path in ["/v1/chat/completions", "/v2/models/m/infer"] {
        let mut stream = server.connect().await;
        let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{{\"mod");
        stream.write_all(head.as_bytes()).await.unwrap();
        let reply = one(&mut stream).await;
        assert!(
            reply.starts_with("HTTP/1.1 408") && reply.contains("nothing of the request's body came"),
            "{reply}"
        );
    }
    assert_eq!(server.upstream.bill(|bill| bill.requests), 0);
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_left() {
    let server = start(Limits { write_wait: SHORT, ..Limits::default() }).await;
    let mut stream = server.connect().await;
    let many = HEALTH.replace("healthz", "").repeat(100);
    let writing = async { while stream.write_all(many.as_bytes()).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(30), writing)
        .await
        .expect("the server keeps the connection for ever");
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_a_place() {
    let server = start(Limits { connections: 1, ..Limits::default() }).await;
    let mut first = server.connect().await;
    first.write_all(HEALTH.as_bytes()).await.unwrap();
    assert!(one(&mut first).await.starts_with("HTTP/1.1 200"));
    let mut second = server.connect().await;
    second.write_all(HEALTH.as_bytes()).await.unwrap();
    // The first is answered twice more, the second not at all, until there is a place.
    for _ in 0..2 {
        first.write_all(HEALTH.as_bytes()).await.unwrap();
        assert!(one(&mut first).await.starts_with("HTTP/1.1 200"));
        assert!(second.readable().now_or_never().is_none(), "there was no place");
    }
    drop(first);
    assert!(one(&mut second).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn requests_beyond_the_limit_are_told_to_come_back() {
    let server = start(Limits { requests: 1, ..Limits::default() }).await;
    let question = chat("hold", json!({})).to_string();
    let (first, ()) = futures::join!(server.send("/v1/chat/completions", &[], question), async {
        server.upstream.held().await;
        let busy = server.send("/v1/chat/completions", &[], chat("b", json!({})).to_string()).await;
        assert_eq!((busy.status().as_u16(), busy.headers()["retry-after"].to_str().unwrap()), (503, "1"));
        assert_eq!(Reply::of(busy).await.json()["error"]["code"], "busy");
        server.upstream.let_go();
    });
    assert_eq!(first.status(), 200);
    let busy = tuition_ledger::DeskError::Busy { what: "too many", most: 1 };
    let rendered = Problem::from(busy).render(crate::Api::OpenAi);
    assert_eq!(
        (rendered.status().as_u16(), &rendered.headers()["retry-after"]),
        (503, &"1".parse().unwrap())
    );
    assert_eq!(server.get("/healthz").await.json(), json!({"live": true}) as Value);
}
