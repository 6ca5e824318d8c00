//! Chats: bought once, served in any form, never complete before they are durable.

use futures::StreamExt;
use futures::future::join_all;
use serde_json::{Value, json};

use super::{Setup, TestServer, chat};

/// What a client reads out of a chat, whatever its form.
fn read(whole: &Value) -> (Value, Value, Value, Value) {
    let choice = &whole["choices"][0];
    let message = (choice["message"]["content"].clone(), choice["logprobs"].clone());
    (message.0, message.1, choice["finish_reason"].clone(), whole["usage"].clone())
}

#[tokio::test]
async fn a_question_is_bought_once() {
    let server = TestServer::start(Setup::default()).await;
    let first = server.chat("hi", json!({})).await;
    assert_eq!((first.status, first.outcome.as_str(), first.calls.as_str()), (200, "bought", "1"));
    // Another order of members, white space, another spelling of a number, and presentation.
    let body = r#"{ "messages": [ {"content":"hi", "role":"user"} ], "user":"u", "model":"m" }"#;
    let second = super::Reply::of(server.send("/v1/chat/completions", &[], body).await).await;
    assert_eq!((second.status, second.outcome.as_str(), second.calls.as_str()), (200, "known", "0"));
    assert_eq!((&second.body, &second.key), (&first.body, &first.key));
    assert_eq!(server.upstream.calls(), 1);
    let sample =
        server.post("/v1/chat/completions", &[("x-tuition-sample", "1")], &chat("hi", json!({}))).await;
    assert_eq!(sample.outcome, "bought");
    let refreshed =
        server.post("/v1/chat/completions", &[("x-tuition-mode", "refresh")], &chat("hi", json!({}))).await;
    assert_eq!(refreshed.outcome, "bought");
    assert_eq!(server.upstream.calls(), 3);
    assert_eq!(server.calls().await, [3, 0, 0]);
}

#[tokio::test]
async fn a_form_does_not_change_an_answer() {
    let stream = json!({"stream": true, "stream_options": {"include_usage": true}});
    for forms in [[stream.clone(), json!({}), stream.clone()], [json!({}), stream.clone(), json!({})]] {
        let server = TestServer::start(Setup::default()).await;
        let mut replies = vec![];
        for form in forms {
            replies.push(server.chat("hi", form).await);
        }
        let outcomes: Vec<_> = replies.iter().map(|reply| reply.outcome.as_str()).collect();
        assert_eq!(outcomes, ["bought", "known", "known"]);
        let first = read(&replies[0].whole());
        assert_eq!(first.0, "echo hi");
        assert_eq!(first.1["content"][0]["logprob"], -0.1);
        assert_eq!(first.3["prompt_tokens"], 10);
        assert!(replies.iter().all(|reply| read(&reply.whole()) == first));
        assert_eq!(server.upstream.calls(), 1);
        let quiet = server.chat("hi", json!({"stream": true})).await;
        assert_eq!((quiet.outcome.as_str(), quiet.whole().get("usage")), ("known", None));
        assert!(quiet.body.ends_with("data: [DONE]\n\n"));
    }
}

#[tokio::test]
async fn every_choice_is_a_call() {
    let server = TestServer::start(Setup::default()).await;
    let plain = server.chat("hi", json!({"n": 3})).await;
    assert_eq!((plain.calls.as_str(), plain.json()["choices"].as_array().unwrap().len()), ("3", 3));
    let stream = server.chat("ho", json!({"n": 2, "stream": true})).await;
    assert_eq!((stream.calls.as_str(), stream.whole()["choices"].as_array().unwrap().len()), ("2", 2));
    assert_eq!((server.upstream.calls(), server.calls().await), (5, [5, 0, 0]));
}

#[tokio::test]
async fn the_same_question_at_once_is_one_call() {
    let server = TestServer::start(Setup::default()).await;
    let asked = join_all((0..40).map(|index| server.chat("hold", json!({"user": index.to_string()}))));
    let let_go = async {
        server.upstream.held().await;
        server.upstream.let_go();
    };
    let (replies, ()) = futures::join!(asked, let_go);
    assert!(replies.iter().all(|reply| reply.status == 200 && reply.body == replies[0].body));
    assert_eq!(replies.iter().filter(|reply| reply.outcome == "bought").count(), 1);
    assert_eq!((server.upstream.calls(), server.calls().await), (1, [1, 0, 0]));
}

#[tokio::test]
async fn a_stream_flows_and_its_end_is_held_back() {
    let server = TestServer::start(Setup::default()).await;
    let question = chat("gate", json!({"stream": true})).to_string();
    let leader = server.send("/v1/chat/completions", &[], question.clone()).await;
    assert_eq!(leader.headers()["x-tuition-outcome"], "bought");
    let mut leader = leader.bytes_stream();
    let first = leader.next().await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&first).contains("echo"));
    server.upstream.held().await;
    // The answer is under way: who follows sees its beginning at once.
    let follower = server.send("/v1/chat/completions", &[], question).await;
    assert_eq!(follower.headers()["x-tuition-outcome"], "followed");
    let mut follower = follower.bytes_stream();
    let begun = follower.next().await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&begun).contains("echo"));
    assert_eq!(server.calls().await, [0, 1, 0]);
    server.upstream.let_go();
    for (mut rest, mut text) in [(leader, first.to_vec()), (follower, begun.to_vec())] {
        while let Some(chunk) = rest.next().await {
            text.extend_from_slice(&chunk.unwrap());
            if String::from_utf8_lossy(&text).contains(r#""finish_reason":"stop""#) {
                // What completes an answer is seen only once it is settled.
                assert_eq!(server.calls().await, [1, 0, 0]);
            }
        }
        assert!(text.ends_with(b"data: [DONE]\n\n"));
        assert!(!String::from_utf8_lossy(&text).contains("prompt_tokens"));
    }
    assert_eq!(server.calls().await, [1, 0, 0]);
}

#[tokio::test]
async fn a_client_that_hangs_up_is_billed_once_and_its_answer_kept() {
    let server = TestServer::start(Setup::default()).await;
    let question = chat("gate", json!({"stream": true})).to_string();
    let mut reply = server.send("/v1/chat/completions", &[], question).await;
    assert!(reply.chunk().await.unwrap().is_some());
    server.upstream.held().await;
    drop(reply);
    let mut changes = server.store.changes();
    server.upstream.let_go();
    while server.calls().await != [1, 0, 0] {
        changes.changed().await.unwrap();
    }
    let known = server.chat("gate", json!({})).await;
    // The book counts the answer a moment before the call has ended: whoever asks in between follows it.
    assert!(["known", "followed"].contains(&known.outcome.as_str()), "{}", known.outcome);
    assert_eq!(known.whole()["choices"][0]["message"]["content"].as_str(), Some("echo gate"));
    assert_eq!(server.upstream.calls(), 1);
}
