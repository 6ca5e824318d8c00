//! What passes between clients and teachers, and what does not.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::Response;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::{Setup, TestServer, chat};

/// A server that answers everything alike, and the paths that it was asked for.
async fn answering<F>(answer: F) -> (String, Arc<Mutex<Vec<String>>>)
where
    F: Fn(&Request) -> Response<Body> + Clone + Send + Sync + 'static,
{
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let paths = Arc::clone(&seen);
    let router = Router::new().fallback(move |request: Request| {
        paths.lock().unwrap().push(request.uri().path().to_owned());
        let answered = answer(&request);
        async move { answered }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(axum::serve(listener, router).into_future());
    (url, seen)
}

#[tokio::test]
async fn only_named_headers_of_a_client_reach_a_teacher() {
    let server = TestServer::start(Setup { keys: vec!["alice"], ..Setup::default() }).await;
    let headers = [
        ("x-api-key", "key-of-alice"),
        ("authorization", "Basic abc"),
        ("proxy-authorization", "Basic abc"),
        ("cookie", "a=b"),
        ("x-forwarded-for", "10.0.0.1"),
        ("x-real-ip", "10.0.0.1"),
        ("forwarded", "for=10.0.0.1"),
        ("via", "1.1 me"),
        ("origin", "http://localhost"),
        ("referer", "http://localhost/secret"),
        ("user-agent", "a-client"),
        ("accept-language", "de"),
        ("accept-encoding", "gzip"),
        ("accept", "application/json"),
        ("openai-organization", "org"),
        ("openai-project", "project"),
        ("openai-beta", "x"),
        ("anthropic-version", "2023-06-01"),
        ("x-stainless-lang", "python"),
        ("idempotency-key", "1"),
        ("connection", "x-hop, keep-alive"),
        ("x-hop", "1"),
        ("te", "trailers"),
        ("keep-alive", "timeout=5"),
        ("x-tuition-run", "r"),
        ("x-tuition-sample", "3"),
        ("x-tuition-unheard-of", "1"),
        ("x-unheard-of", "1"),
    ];
    let rows = json!({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]});
    let asked: [(&str, Value, &[&str]); 4] = [
        ("/v1/chat/completions", chat("a", json!({})), &["openai-beta"]),
        ("/v1/chat/completions", chat("a", json!({"stream": true, "seed": 1})), &["openai-beta"]),
        ("/v1/embeddings", json!({"model": "m", "input": "a"}), &["openai-beta"]),
        ("/v2/models/m/infer", rows, &[]),
    ];
    for (path, body, keyed) in asked {
        let reply = server.post(path, &headers, &body).await;
        assert_eq!((reply.status, reply.outcome.as_str()), (200, "bought"), "{path}: {}", reply.body);
        server.upstream.bill(|bill| {
            let sent: BTreeSet<&str> = bill.headers.keys().map(axum::http::HeaderName::as_str).collect();
            let own = [
                "accept",
                "authorization",
                "content-length",
                "content-type",
                "host",
                "user-agent",
                "x-extra",
            ];
            let expected: BTreeSet<&str> = own.iter().chain(keyed).copied().collect();
            assert_eq!(sent, expected, "{path}");
            assert_eq!(bill.headers["authorization"], "Bearer teachers-secret");
            assert!(bill.headers["user-agent"].to_str().unwrap().starts_with("tuition/"));
            assert!(server.upstream.url.ends_with(bill.headers["host"].to_str().unwrap()));
        });
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_may_have_been_billed() {
    let (elsewhere, seen) = answering(|_| Response::new(Body::from("{}"))).await;
    for status in [301, 302, 303, 307, 308] {
        let location = format!("{elsewhere}/v1/chat/completions");
        let (url, asked) = answering(move |_| {
            Response::builder()
                .status(status)
                .header("location", &location)
                .body(Body::from("moved"))
                .unwrap()
        })
        .await;
        let server = TestServer::start(Setup { url: Some(format!("{url}/v1")), ..Setup::default() }).await;
        let reply = server.chat("a", json!({})).await;
        assert_eq!((reply.status, reply.should_retry.as_str()), (502, "false"), "{status}: {}", reply.body);
        assert!(reply.body.contains("redirect, which is not followed"), "{}", reply.body);
        assert_eq!(server.calls().await, [0, 0, 1], "{status}");
        assert_eq!(server.get("/v1/models/m").await.status, 502);
        assert_eq!(asked.lock().unwrap().len(), 2, "{status}");
    }
    assert_eq!(*seen.lock().unwrap(), [""; 0], "the second server was asked");
}

#[tokio::test]
async fn a_path_does_not_lead_the_secret_elsewhere() {
    let (url, seen) = answering(|_| Response::new(Body::from("{\"all\": \"the account's secrets\"}"))).await;
    let server = TestServer::start(Setup { url: Some(format!("{url}/v1")), ..Setup::default() }).await;
    let address = server.url.trim_start_matches("http://");
    for (path, body) in [
        ("GET /v1/models/%2e%2e/files", ""),
        ("GET /v1/models/../files", ""),
        ("GET /v1/models/m/.%2E/.%2e/.%2e/admin", ""),
        ("GET /v1/models/..%5c..%5cadmin", ""),
        ("GET /v2/models/%2e%2e", ""),
        ("GET /v2/models/%2e%2e/ready", ""),
        (
            "POST /v2/models/%2e%2e/infer",
            "{\"inputs\":[{\"name\":\"x\",\"shape\":[1],\"datatype\":\"FP32\",\"data\":[1]}]}",
        ),
    ] {
        // A client of its own: others resolve the dots before they send.
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "{path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        assert!(reply.starts_with("HTTP/1.1 404"), "{path}: {reply}");
    }
    assert_eq!(*seen.lock().unwrap(), [""; 0]);
    assert_eq!(server.calls().await, [0, 0, 0]);
}

#[tokio::test]
async fn a_page_that_points_its_domain_here_is_refused() {
    let server = TestServer::start(Setup::default()).await;
    for host in ["evil.example", "evil.example:8080"] {
        let reply = server.post("/v1/chat/completions", &[("host", host)], &chat("a", json!({}))).await;
        assert_eq!((reply.status, &reply.json()["error"]["code"]), (403, &json!("forbidden")));
        for path in ["/api/statement", "/metrics", "/v1/models"] {
            let reply = server.client.get(format!("{}{path}", server.url)).header("host", host).send().await;
            assert_eq!(reply.unwrap().status(), 403, "{path}");
        }
    }
    assert_eq!(server.upstream.calls(), 0);
    // With a client key, the key decides.
    let server = TestServer::start(Setup { keys: vec!["alice"], ..Setup::default() }).await;
    let headers = [("host", "tuition.example.com"), ("x-api-key", "key-of-alice")];
    assert_eq!(server.post("/v1/chat/completions", &headers, &chat("a", json!({}))).await.status, 200);
}

#[tokio::test]
async fn a_teacher_that_repeats_its_secret_is_not_quoted() {
    for status in [401, 500, 503] {
        let (url, _) = answering(move |request| {
            let key = request.headers()["authorization"].to_str().unwrap().to_owned();
            let body = json!({"error": {"message": format!("not with {key}")}}).to_string();
            Response::builder()
                .status(status)
                .header("content-type", "application/json")
                .body(Body::from(body))
                .unwrap()
        })
        .await;
        let server = TestServer::start(Setup { url: Some(url), ..Setup::default() }).await;
        let reply = server.chat("a", json!({})).await;
        assert!(reply.body.contains("not with Bearer [secret]"), "{}", reply.body);
        let journal = std::fs::read(server.folder.path().join("store/journal")).unwrap();
        let secret = b"teachers-secret";
        assert!(!journal.windows(secret.len()).any(|part| part == secret), "{status}: it is in the record");
    }
}
