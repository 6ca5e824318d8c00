//! kill -9 at a hundred moments of a load with plain calls, streams, batches and retries in flight.
//! Wants nothing but the built command. Each round asks new questions; the store, the teacher and its bill go on.
//! Invariant: after each restart the limits hold, the teacher's bill lies within the statement, and what a client got
//! in full is known.

use crate::support::{Client, TestServer, Upstream, content, price, read, teacher};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

const ROUNDS: usize = 100;
const SEED: u64 = 20_261_122;
/// Calls that each round's own budget allows: fewer than a round asks for, so that the limit bites while the kill comes.
const ROUND_CALLS: u64 = 12;
const WORKERS_OF_A_KIND: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Plain,
    Stream,
    Batch,
    Retry,
}

const KINDS: [Kind; 4] = [Kind::Plain, Kind::Stream, Kind::Batch, Kind::Retry];

/// An answer that a client got in full.
struct Got {
    path: &'static str,
    body: String,
    content: Value,
}

/// The load of one round: who is asking now, and what has been asked.
struct Load {
    round: usize,
    in_flight: [AtomicUsize; KINDS.len()],
    asked: AtomicU64,
    refused: AtomicU64,
}

impl Kind {
    fn request(self, round: usize, number: u64) -> (&'static str, String) {
        let slow = 5 + number * 7 % 40;
        let chat = |content: String, stream: bool| {
            let mut body = json!({"model": "scripted", "messages": [{"role": "user", "content": content}]});
            if stream {
                body["stream"] = json!(true);
                body["stream_options"] = json!({"include_usage": true});
            }
            ("/v1/chat/completions", body.to_string())
        };
        match self {
            Kind::Plain => chat(format!("plain {round} {number} [slow {slow}]"), false),
            Kind::Stream => chat(format!("stream {round} {number} of many words [slow {slow}]"), true),
            Kind::Retry => chat(format!("retry {round} {number} [503 once] [slow {slow}]"), false),
            Kind::Batch => {
                // Neighbours share texts, so that batches lead some items and follow or know others.
                let texts: Vec<String> =
                    (number..number + 3).map(|text| format!("{round} text {}", text / 2)).collect();
                let mut texts = texts;
                texts.push(format!("{round} tail {number} [slow {slow}]"));
                ("/v1/embeddings", json!({"model": "scripted", "input": texts}).to_string())
            }
        }
    }
}

/// Asks one new question after the other until the server is gone.
async fn work(load: Arc<Load>, client: Client, kind: Kind, limited: bool) -> Vec<Got> {
    let run = format!("round-{}", load.round);
    let mut own = if limited { client.with("x-tuition-run", &run) } else { client.clone() };
    let in_flight = &load.in_flight[kind as usize];
    let mut got = Vec::new();
    loop {
        let (path, body) = kind.request(load.round, load.asked.fetch_add(1, Ordering::Relaxed));
        in_flight.fetch_add(1, Ordering::SeqCst);
        let reply = own.send(path, body.clone()).await;
        let Ok(response) = reply else { break };
        let status = response.status().as_u16();
        let answer = read(response).await;
        in_flight.fetch_sub(1, Ordering::SeqCst);
        match (status, content(&answer)) {
            (200, Some(content)) => got.push(Got { path, body, content }),
            (200, None) => {}
            (402, _) if limited => {
                load.refused.fetch_add(1, Ordering::Relaxed);
                own = client.clone();
            }
            _ => panic!("{status} for {body}: {answer}"),
        }
    }
    got
}

fn configuration(upstream: &Upstream) -> String {
    let mut text = format!("{}\n{}", teacher(upstream, "retries = 2"), price());
    text.push_str("[[budget]]\nname = \"all\"\ncalls = 100000\nusd = \"50.00\"\n");
    for round in 0..ROUNDS {
        text.push_str(&format!(
            "[[budget]]\nname = \"round-{round}\"\nrun = \"round-{round}\"\ncalls = {ROUND_CALLS}\n"
        ));
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_kills_lose_no_money_and_no_answer() {
    let upstream = Upstream::start().await;
    let mut server = TestServer::start(&configuration(&upstream));
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let mut answers = 0;
    let mut limits_met = 0;
    for round in 0..ROUNDS {
        let load = Arc::new(Load {
            round,
            in_flight: Default::default(),
            asked: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        let client = Client::new(&server.url());
        let workers: Vec<_> = (0..KINDS.len() * WORKERS_OF_A_KIND)
            .map(|at| work(Arc::clone(&load), client.clone(), KINDS[at % KINDS.len()], at % 3 == 0))
            .map(tokio::spawn)
            .collect();
        tokio::time::sleep(Duration::from_micros(random.random_range(20_000..250_000))).await;
        while load.in_flight.iter().any(|kind| kind.load(Ordering::SeqCst) == 0) {
            tokio::task::yield_now().await;
        }
        server.kill();
        let mut got = Vec::new();
        for worker in workers {
            got.extend(worker.await.unwrap());
        }
        server.restart();
        answers += got.len();
        limits_met += usize::from(load.refused.load(Ordering::Relaxed) > 0);
        check(round, &upstream, &server, got).await;
    }
    assert!(answers > ROUNDS, "only {answers} answers: the load did nothing");
    assert!(limits_met > ROUNDS / 10, "only {limits_met} rounds met their limit");
    let audit = server.json(&["audit", "--verify"], 0);
    assert_eq!(audit["discrepancies"], json!([]));
}

/// What must hold after a restart.
async fn check(round: usize, upstream: &Upstream, server: &TestServer, got: Vec<Got>) {
    let client = Client::new(&server.url());
    let before = upstream.bill();
    let statement = client.statement().await;
    statement.assert_within_limits();
    statement.assert_covers(before, upstream.bill());
    assert_eq!(
        statement.total("reserved").calls,
        0,
        "round {round}: a hold of the killed process is still open"
    );

    let replay = client.with("x-tuition-mode", "replay");
    let asked = upstream.asked();
    for Got { path, body, content: expected } in got {
        let reply = replay.post(path, body.clone()).await.unwrap();
        let outcome = reply.header("x-tuition-outcome");
        assert_eq!((reply.status, outcome), (200, "known"), "round {round}: {body}: {reply:?}");
        assert_eq!(content(&reply.body).unwrap(), expected, "round {round}: {body}");
    }
    assert_eq!(upstream.asked(), asked, "round {round}: replay asked the teacher");
}
