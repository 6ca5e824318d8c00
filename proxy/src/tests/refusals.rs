//! What is refused before anybody is asked, and in which words.

use serde_json::{Value, json};
use tuition_ledger::Mode;

use super::{Reply, Setup, TestServer, chat};
use crate::{Limits, Pins, Share};

#[tokio::test]
async fn a_spent_budget_is_402_with_every_figure() {
    let server = TestServer::start(Setup { calls: Some(2), ..Setup::default() }).await;
    assert_eq!(server.chat("a", json!({})).await.status, 200);
    let refused = server.chat("b", json!({"n": 2})).await;
    assert_eq!((refused.status, refused.should_retry.as_str()), (402, "false"));
    let error = json!({"message": "budget `pilot` is exhausted: limit 2 calls, settled 1 calls, held 0 calls, unknown 0 calls; this call would have held 2 calls",
        "code": "budget_exhausted", "type": "insufficient_quota", "param": null, "budget": "pilot", "unit": "calls",
        "limit": 2, "settled": 1, "reserved": 0, "unknown": 0, "needed": 2, "window": "forever"});
    assert_eq!(refused.json(), json!({"error": error}));
    let stream = server.chat("c", json!({"n": 2, "stream": true})).await;
    assert_eq!((stream.status, stream.should_retry.as_str()), (402, "false"));
    assert_eq!(server.chat("a", json!({})).await.outcome, "known");
    assert_eq!(server.upstream.calls(), 1);
    let input = json!({"name": "x", "shape": [2, 1], "datatype": "FP32", "data": [1, 2]});
    let refused = server.post("/v2/models/digits/infer", &[], &json!({"inputs": [input]})).await;
    assert_eq!((refused.status, &refused.json()["code"]), (402, &json!("budget_exhausted")));
    assert!(refused.json()["error"].is_string());
}

#[tokio::test]
async fn dollars_are_counted_to_the_ninth_place() {
    let server = TestServer::start(Setup { calls: None, usd: Some("1"), ..Setup::default() }).await;
    let bought = server.chat("a", json!({"max_tokens": 5})).await;
    // 10 input and 4 output tokens at 1 and 2 dollars a million, and a tenth of a cent a call.
    assert_eq!((bought.status, bought.cost.as_str()), (200, "0.001018000"));
    let known = server.chat("a", json!({"max_tokens": 5, "stream": true})).await;
    assert_eq!((known.outcome.as_str(), known.cost.as_str()), ("known", "0.000000000"));
    let unbounded = server.chat("a", json!({"web_search_options": {}})).await;
    assert_eq!((unbounded.status, &unbounded.json()["error"]["code"]), (402, &json!("unbounded_cost")));
    let body = json!({"model": "unpriced", "messages": []});
    let unpriced = server.post("/v1/chat/completions", &[], &body).await;
    assert_eq!(unpriced.status, 402);
    assert!(unpriced.json()["error"]["message"].as_str().unwrap().contains("model `unpriced` has no price"));
    assert_eq!(server.upstream.calls(), 1);
}

#[tokio::test]
async fn replay_asks_nobody() {
    let server = TestServer::start(Setup { mode: Mode::Replay, ..Setup::default() }).await;
    for form in [json!({}), json!({"stream": true})] {
        let miss = server.chat("a", form).await;
        assert_eq!((miss.status, miss.should_retry.as_str()), (409, "false"));
        let error = &miss.json()["error"];
        assert_eq!((&error["code"], error["key"].as_str().unwrap().len()), (&json!("not_recorded"), 64));
        assert_eq!(error["quote"]["calls"], 1);
    }
    for mode in ["record", "refresh"] {
        let refused =
            server.post("/v1/chat/completions", &[("x-tuition-mode", mode)], &chat("a", json!({}))).await;
        assert_eq!((refused.status, &refused.json()["error"]["code"]), (403, &json!("mode_not_allowed")));
    }
    assert_eq!(server.upstream.bill(|bill| bill.requests), 0);
}

#[tokio::test]
async fn a_client_key_opens_the_door_and_goes_no_further() {
    let setup = Setup { keys: vec!["alice", "bob"], share: Share::Key, ..Setup::default() };
    let server = TestServer::start(setup).await;
    let question = chat("a", json!({}));
    let ask = async |headers: &[(&str, &str)]| server.post("/v1/chat/completions", headers, &question).await;
    assert_eq!(ask(&[]).await.status, 401);
    assert_eq!(ask(&[("authorization", "Bearer key-of-eve")]).await.status, 401);
    assert_eq!(ask(&[("authorization", "Bearer key-of-alice")]).await.outcome, "bought");
    server.upstream.bill(|bill| {
        assert_eq!(bill.headers["authorization"], "Bearer teachers-secret");
        assert_eq!(bill.headers["x-extra"], "1");
        assert!(!bill.headers.contains_key("x-tuition-run"));
    });
    assert_eq!(ask(&[("x-api-key", "key-of-alice"), ("x-tuition-run", "r")]).await.outcome, "known");
    // Answers are not shared among keys here.
    assert_eq!(ask(&[("x-api-key", "key-of-bob"), ("x-tuition-run", "r")]).await.outcome, "bought");
    server.upstream.bill(|bill| {
        let sent: Vec<&str> = bill.headers.keys().map(axum::http::HeaderName::as_str).collect();
        assert!(!sent.iter().any(|name| name.starts_with("x-tuition") || *name == "x-api-key"), "{sent:?}");
    });
    assert_eq!((server.get("/metrics").await.status, server.get("/healthz").await.status), (401, 200));
}

#[tokio::test]
async fn a_key_does_what_it_is_pinned_to() {
    let names = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
    let key = ("x-api-key", "key-of-alice");
    let start =
        async |pins: Pins| TestServer::start(Setup { keys: vec!["alice"], pins, ..Setup::default() }).await;
    let ask = async |server: &TestServer, headers: &[(&str, &str)], expected: (u16, &str)| {
        let headers = [&[key], headers].concat();
        let reply = server.post("/v1/chat/completions", &headers, &chat("a", json!({}))).await;
        let error = reply.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
        assert_eq!((reply.status, error.as_str()), expected);
        if reply.status == 403 {
            assert_eq!(reply.should_retry, "false");
        }
    };

    let server = start(Pins { runs: names(&["r"]), ..Pins::default() }).await;
    ask(&server, &[], (200, "")).await;
    // Reading asks the store's owner how far it is durable: not on the thread that the owner runs on.
    let store = tuition_ledger::StoreUrl::Sled(server.folder.path().join("store"));
    let paid =
        tokio::task::spawn_blocking(move || tuition_ledger::records_of_run(&store, "r").unwrap().count());
    assert_eq!(paid.await.unwrap(), 1, "the only run that the key may ask for pays");
    ask(&server, &[("x-tuition-run", "s")], (403, "client key `alice` may ask for run `r`, not for run `s`"))
        .await;
    let server = start(Pins { runs: names(&["r", "s"]), ..Pins::default() }).await;
    let none = "client key `alice` may ask for runs `r`, `s`, and the request names no run (`x-tuition-run`)";
    ask(&server, &[], (403, none)).await;
    ask(&server, &[("x-tuition-run", "s")], (200, "")).await;

    let server = start(Pins { teachers: names(&["digits"]), ..Pins::default() }).await;
    ask(&server, &[], (403, "client key `alice` may ask teacher `digits`, not teacher `gpt`")).await;
    assert_eq!(server.upstream.calls(), 0);

    let server = start(Pins { mode: Mode::Replay, ..Pins::default() }).await;
    let reply = server.post("/v1/chat/completions", &[key], &chat("a", json!({}))).await;
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (409, &json!("not_recorded")));
    let reply = server
        .post("/v1/chat/completions", &[key, ("x-tuition-mode", "record")], &chat("a", json!({})))
        .await;
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (403, &json!("mode_not_allowed")));
    assert_eq!(server.upstream.calls(), 0);
}

#[tokio::test]
async fn a_header_that_changes_answers_is_part_of_the_key() {
    let server = TestServer::start(Setup::default()).await;
    let question = chat("a", json!({}));
    let ask = async |headers: &[(&str, &str)]| server.post("/v1/chat/completions", headers, &question).await;
    assert_eq!(ask(&[("openai-beta", "x")]).await.outcome, "bought");
    server.upstream.bill(|bill| assert_eq!(bill.headers["openai-beta"], "x"));
    assert_eq!(ask(&[]).await.outcome, "bought");
    assert_eq!(ask(&[("x-unheard-of", "x")]).await.outcome, "known");
    server.upstream.bill(|bill| assert!(!bill.headers.contains_key("x-unheard-of")));
}

#[tokio::test]
async fn a_bad_request_is_named_in_its_own_shape() {
    let limits = Limits { body_bytes: 400, ..Limits::default() };
    let setup = Setup { models: vec!["gpt-4", "gpt-4-mini"], limits, ..Setup::default() };
    let server = TestServer::start(setup).await;
    #[track_caller]
    fn check(reply: &Reply, status: u16, message: &str, param: Value) {
        let error = &reply.json()["error"];
        let found = (reply.status, error["message"].as_str().unwrap(), &error["param"]);
        assert_eq!(found, (status, message, &param));
    }
    let chats = "/v1/chat/completions";
    let send = async |path: &str, body: &str| Reply::of(server.send(path, &[], body.to_owned()).await).await;
    let twice = r#"{"model":"gpt-4","model":"gpt-4","messages":[]}"#;
    check(&send(chats, twice).await, 400, "member `model` stands twice in one object", json!("model"));
    check(&send(chats, "[]").await, 400, "`body` is not a JSON object", json!("body"));
    check(&send(chats, "{}").await, 400, "`model` is missing or is not a string", json!("model"));
    let unknown = r#"{"model":"gtp-4","messages":[]}"#;
    let nearest = "no teacher serves model `gtp-4`; the nearest is `gpt-4`";
    check(&send(chats, unknown).await, 404, nearest, json!("model"));
    let large = format!(r#"{{"model":"gpt-4","messages":[],"x":"{}"}}"#, "x".repeat(400));
    check(&send(chats, &large).await, 413, "the request's body is larger than 400 bytes", Value::Null);
    let pieces = futures::stream::iter(vec![Ok::<_, std::io::Error>(large)]);
    let chunked = server.send(chats, &[], reqwest::Body::wrap_stream(pieces)).await;
    assert_eq!(chunked.status(), 413);
    let malformed = send(chats, "{\"model\":").await;
    assert_eq!(malformed.status, 400);
    check(&send("/v1/completions", "{}").await, 404, "nothing is served at `/v1/completions`", Value::Null);
    check(&server.get(chats).await, 405, "`/v1/chat/completions` does not take GET", Value::Null);
    let headers = [("x-tuition-sample", "-1")];
    let sample = server.post(chats, &headers, &json!({"model": "gpt-4", "messages": []})).await;
    check(
        &sample,
        400,
        "header `x-tuition-sample` is not a sample index (0, 1, ...)",
        json!("x-tuition-sample"),
    );
    let binary =
        server.post("/v2/models/gpt-4/infer", &[("inference-header-content-length", "9")], &json!({})).await;
    assert_eq!(binary.status, 400);
    assert!(binary.json()["error"].as_str().unwrap().starts_with("binary tensors are not taken"));
    let page = server.post(chats, &[("origin", "https://evil.example")], &json!({})).await;
    assert_eq!(page.status, 403);
    assert_eq!(server.upstream.bill(|bill| bill.requests), 0);
}
