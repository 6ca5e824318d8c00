//! Money when things go wrong: time-outs, hang-ups, cut streams, refusals, and a bill that agrees to nine places.
//! Wants nothing but the built command.

use crate::support::{Client, Reply, Statement, TestServer, Upstream, price, teacher};
use futures::StreamExt as _;
use serde_json::json;

const BUDGET: &str = "[[budget]]\nname = \"pilot\"\ncalls = 100\nusd = \"1.00\"";

fn question(content: &str) -> String {
    json!({"model": "scripted", "messages": [{"role": "user", "content": content}]}).to_string()
}

fn stream(content: &str) -> String {
    json!({
        "model": "scripted", "messages": [{"role": "user", "content": content}],
        "stream": true, "stream_options": {"include_usage": true},
    })
    .to_string()
}

async fn chat(client: &Client, body: String) -> Reply {
    client.post("/v1/chat/completions", body).await.unwrap()
}

async fn served(upstream: &Upstream, more: &str) -> (TestServer, Client) {
    let server = TestServer::start(&format!("{}\n{}\n{BUDGET}", teacher(upstream, more), price()));
    let client = Client::new(&server.url());
    (server, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_statement_equals_the_teachers_bill_to_nine_places() {
    let upstream = Upstream::start().await;
    let (server, client) = served(&upstream, "").await;
    let embeddings = |texts: &[&str]| json!({"model": "scripted", "input": texts}).to_string();
    let mut asked = Vec::new();
    for at in 0..8 {
        let plain = json!({
            "model": "scripted", "n": 1 + at % 3, "max_tokens": 5,
            "messages": [{"role": "user", "content": format!("how much is {at} [cached {}]", at * 7)}],
        });
        asked.push(("/v1/chat/completions", plain.to_string()));
        asked.push(("/v1/chat/completions", stream(&format!("say {at} slowly"))));
        asked.push(("/v1/chat/completions", question(&format!("again {at} [503 once]"))));
        let (one, two) = (format!("text {at}"), format!("text {} and more", at + 1));
        asked.push(("/v1/embeddings", embeddings(&[&one, &two, "common"])));
        asked.push(("/v1/chat/completions", question(&format!("wrong {at} [400]"))));
    }
    let replies =
        futures::future::join_all(asked.into_iter().map(|(path, body)| client.post(path, body))).await;
    for reply in replies {
        let reply = reply.unwrap();
        assert!([200, 400].contains(&reply.status), "{reply:?}");
    }
    let (statement, audit) = Statement::with_audit(&client, &server).await;
    let bill = upstream.bill();
    assert_eq!(statement.0["totals"]["usd"]["settled"], bill.usd());
    assert_eq!(statement.total("settled").calls, bill.inferences);
    assert_eq!(statement.total("settled").tokens, bill.tokens);
    assert_eq!(statement.committed(), statement.total("settled"), "nothing is held or unknown");
    assert_eq!(statement.budget("pilot")["settled"]["usd"], bill.usd());
    assert_eq!(audit["totals"], statement.0["totals"]);
    assert_eq!(audit["discrepancies"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dollar_budget_is_never_overspent_by_calls_at_once() {
    let upstream = Upstream::start().await;
    let budget = "[[budget]]\nname = \"pilot\"\nusd = \"0.001\"";
    let server = TestServer::start_with(
        "hold_wait_s = 5",
        &format!("{}\n{}\n{budget}", teacher(&upstream, ""), price()),
    );
    let client = Client::new(&server.url());
    let asked = (0..300).map(|at| chat(&client, question(&format!("costly question number {at}"))));
    let replies = futures::future::join_all(asked).await;
    let refused = replies.iter().filter(|reply| reply.status == 402).count();
    let bought = replies.iter().filter(|reply| reply.status == 200).count();
    assert_eq!(refused + bought, 300);
    assert!(refused > 0 && bought > 0, "{bought} bought, {refused} refused");
    let statement = client.statement().await;
    statement.assert_within_limits();
    assert_eq!(statement.0["totals"]["usd"]["settled"], upstream.bill().usd());
    assert!(upstream.bill().nanos <= 1_000_000);
    let refusal = replies.iter().find(|reply| reply.status == 402).unwrap().json();
    assert_eq!(refusal["error"]["code"], "budget_exhausted");
    assert!(refusal["error"]["message"].as_str().unwrap().contains("`pilot`"), "{refusal}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_call_is_unknown_until_a_person_says_what_it_was() {
    let upstream = Upstream::start().await;
    let (server, client) = served(&upstream, "timeout_s = 1").await;
    let reply = chat(&client, question("never answered [stall]")).await;
    assert_eq!((reply.status, reply.header("x-should-retry")), (504, "false"), "{reply:?}");
    let statement = client.statement().await;
    assert_eq!(statement.total("unknown").calls, 1);
    statement.assert_covers(upstream.bill(), upstream.bill());

    let replay = client.with("x-tuition-mode", "replay");
    let missed = chat(&replay, question("never answered [stall]")).await;
    assert_eq!((missed.status, missed.header("x-should-retry")), (409, "false"), "{missed:?}");
    assert_eq!(upstream.asked(), 1, "an unknown call was asked again by itself");

    let unknown = &server.json(&["audit"], 0)["unknown"];
    let id = unknown[0]["id"].to_string();
    assert_eq!(unknown.as_array().map(Vec::len), Some(1), "{unknown}");
    server.json(
        &["resolve", id.trim_matches('"'), "--free", "--why", "the provider's log has no such call"],
        0,
    );
    let statement = client.statement().await;
    assert_eq!(statement.committed().calls, 0);
    assert_eq!(statement.budget("pilot")["left"]["calls"], 100);

    // Asked again on purpose, it is a new call under a new hold, which alone is unknown now.
    let again = chat(&client, question("never answered [stall]")).await;
    assert_eq!((again.status, upstream.asked()), (504, 2), "{again:?}");
    assert_eq!(client.statement().await.total("unknown").calls, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_leaves_a_known_answer() {
    let upstream = Upstream::start().await;
    let (_server, client) = served(&upstream, "").await;
    for body in [question("wait for me [gate]"), stream("wait for me, slowly [gate]")] {
        let asked = tokio::spawn({
            let (client, body) = (client.clone(), body.clone());
            async move { client.post("/v1/chat/completions", body).await }
        });
        let arrived = usize::try_from(upstream.asked()).unwrap() + 1;
        upstream.at_the_gate(arrived).await;
        asked.abort();
        assert!(asked.await.unwrap_err().is_cancelled());
        upstream.open_the_gate(1);
        // Whoever asks now waits for the call that still runs, or finds its answer.
        let reply = chat(&client, body).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        assert!(["followed", "known"].contains(&reply.header("x-tuition-outcome")), "{reply:?}");
    }
    assert_eq!(upstream.asked(), 2);
    assert_eq!(client.statement().await.total("settled").calls, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_in_a_stream_leaves_a_known_answer() {
    let upstream = Upstream::start().await;
    let (_server, client) = served(&upstream, "").await;
    let body = stream("a long story about many things [slow 500]");
    let response = client.send("/v1/chat/completions", body.clone()).await.unwrap();
    let mut pieces = response.bytes_stream();
    assert!(!pieces.next().await.unwrap().unwrap().is_empty());
    drop(pieces);
    let reply = chat(&client, body).await;
    assert_eq!(reply.status, 200);
    assert!(
        reply.body.contains("\"finish_reason\":\"stop\"") && reply.body.ends_with("data: [DONE]\n\n"),
        "{reply:?}"
    );
    assert_eq!(upstream.asked(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_cut_by_the_teacher_is_unknown_and_not_served() {
    let upstream = Upstream::start().await;
    let (_server, client) = served(&upstream, "").await;
    for (count, body) in [(1, stream("a story [cut]")), (2, question("a fact [cut]"))] {
        let told = client.post("/v1/chat/completions", body.clone()).await;
        let complete =
            told.is_ok_and(|reply| reply.status == 200 && reply.body.contains("\"finish_reason\":\"stop\""));
        assert!(!complete, "a cut answer looked complete");
        let statement = client.statement().await;
        assert_eq!(statement.total("unknown").calls, count);
        statement.assert_covers(upstream.bill(), upstream.bill());
        let again = client.with("x-tuition-mode", "replay").post("/v1/chat/completions", body).await.unwrap();
        assert_eq!((again.status, again.header("x-should-retry")), (409, "false"), "{again:?}");
        assert_eq!(upstream.asked(), count);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_call_is_unknown_and_a_refused_one_is_free() {
    let upstream = Upstream::start().await;
    let (_server, client) = served(&upstream, "retries = 1").await;
    let rows =
        [("[400]", 400, 0, 1), ("[503 once]", 200, 0, 2), ("[429 once]", 200, 0, 2), ("[500]", 502, 1, 1)];
    for (word, status, unknown, asked) in rows {
        let before = (upstream.asked(), client.statement().await.total("unknown").calls);
        let reply = chat(&client, question(&format!("please {word}"))).await;
        assert_eq!(reply.status, status, "{word}: {reply:?}");
        let statement = client.statement().await;
        assert_eq!(statement.total("unknown").calls - before.1, unknown, "{word}");
        assert_eq!(upstream.asked() - before.0, asked, "{word}");
        assert_eq!(statement.total("reserved").calls, 0, "{word}");
    }
    let reply = chat(&client, question("please [503]")).await;
    assert_eq!(client.statement().await.total("unknown").calls, 1);
    assert!(reply.status >= 500, "{reply:?}");
    assert!(reply.body.contains("refused as asked"), "the teacher's own words are lost: {reply:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_the_call_in_flight_end() {
    let upstream = Upstream::start().await;
    let (mut server, client) = served(&upstream, "").await;
    let asked = tokio::spawn({
        let client = client.clone();
        async move { chat(&client, question("the last one [gate]")).await }
    });
    upstream.at_the_gate(1).await;
    server.terminate();
    upstream.open_the_gate(1);
    assert_eq!(asked.await.unwrap().status, 200);
    assert!(server.wait().success());
    server.restart();
    let client = Client::new(&server.url());
    let reply = chat(&client, question("the last one [gate]")).await;
    assert_eq!(reply.header("x-tuition-outcome"), "known", "{reply:?}");
    assert_eq!(client.statement().await.committed().calls, 1);
}
