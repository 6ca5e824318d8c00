//! Ten thousand requests at once race for the last fifty calls of a budget.
//! Wants nothing but the built command, and 11,000 open files.
//! Invariant: exactly fifty are bought, whoever comes first, and everybody else is told that the budget is spent.

use crate::support::{Client, TestServer, Upstream, price, teacher};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use std::collections::BTreeSet;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const RACERS: usize = 10_000;
const LEFT: usize = 50;
const SPENT: usize = 10;
/// How many have to wait in turn before the fifty calls are answered.
const WAITING_MIN: u64 = 1_000;
const FILES_MIN: u64 = 11_000;

fn question(content: &str) -> String {
    json!({"model": "scripted", "messages": [{"role": "user", "content": content}]}).to_string()
}

/// One request on a connection of its own; the head and the body of its reply.
async fn race(address: String, number: usize) -> (String, String) {
    let body = question(&format!("racer {number} [gate]"));
    let mut stream =
        TcpStream::connect(&address).await.unwrap_or_else(|error| panic!("racer {number}: {error}"));
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap_or_else(|error| panic!("racer {number}: {error}"));
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap_or_else(|error| panic!("racer {number}: {error}"));
    let (head, body) =
        reply.split_once("\r\n\r\n").unwrap_or_else(|| panic!("racer {number}: no reply: {reply}"));
    (head.to_ascii_lowercase(), body.to_owned())
}

/// A figure of `/metrics`.
async fn figure(client: &Client, name: &str) -> u64 {
    let page = client.get("/metrics").await.unwrap().body;
    let line = page.lines().find(|line| line.split(' ').next() == Some(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("no `{name}`: {page}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_race_for_the_last_fifty_calls() {
    let files = getrlimit(Resource::Nofile);
    let most = files.maximum.unwrap_or(u64::MAX);
    assert!(
        most >= FILES_MIN,
        "{RACERS} connections need {FILES_MIN} open files, and {most} are allowed (`ulimit -Hn`)"
    );
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }).unwrap();

    let upstream = Upstream::start().await;
    let budget = format!("[[budget]]\nname = \"pilot\"\ncalls = {}\n", SPENT + LEFT);
    let server = TestServer::start_with(
        "hold_wait_s = 5",
        &format!("{}\n{}\n{budget}", teacher(&upstream, ""), price()),
    );
    let client = Client::new(&server.url());
    for number in 0..SPENT {
        let reply = client.post("/v1/chat/completions", question(&format!("spent {number}"))).await.unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
    }

    let address = server.url().trim_start_matches("http://").to_owned();
    let racers: Vec<_> = (0..RACERS).map(|number| tokio::spawn(race(address.clone(), number))).collect();
    upstream.at_the_gate(LEFT).await;
    // The connection that asked before is still there: every other place may be taken.
    while figure(&client, "tuition_calls_waiting").await < WAITING_MIN {
        tokio::task::yield_now().await;
    }
    upstream.open_the_gate(LEFT);

    let (mut bought, mut refused) = (0, 0);
    for racer in racers {
        let (head, body) = racer.await.unwrap();
        match head.split(' ').nth(1) {
            Some("200") => {
                assert!(head.contains("x-tuition-outcome: bought"), "{head}");
                bought += 1;
            }
            Some("402") => {
                assert!(
                    head.contains("x-should-retry: false") && body.contains("\"budget_exhausted\""),
                    "{head} {body}"
                );
                refused += 1;
            }
            _ => panic!("{head} {body}"),
        }
    }
    assert_eq!((bought, refused), (LEFT, RACERS - LEFT));

    let all = (SPENT + LEFT) as u64;
    let bill = upstream.bill();
    assert_eq!((bill.inferences, upstream.asked()), (all, all), "the teacher's own bill");
    let asked: BTreeSet<_> = upstream.charges().into_iter().flat_map(|charge| charge.items).collect();
    assert_eq!(asked.len() as u64, all, "a question was bought twice");
    let statement = client.statement().await;
    statement.assert_within_limits();
    statement.assert_covers(bill, bill);
    assert_eq!(statement.total("settled").calls, all);
    assert_eq!(statement.committed(), statement.total("settled"), "something is held or unknown");
    assert_eq!(statement.0["totals"]["usd"]["settled"], bill.usd());
    assert_eq!(statement.budget("pilot")["left"]["calls"], 0);
    for name in ["tuition_calls_waiting", "tuition_calls_in_flight", "tuition_requests_in_flight"] {
        assert_eq!(figure(&client, name).await, 0, "{name}");
    }
    // Exit code 0: nothing that the record says contradicts itself, so no key was held twice at once.
    let audit = server.json(&["audit", "--verify"], 0);
    assert_eq!(audit["discrepancies"], json!([]));
}
