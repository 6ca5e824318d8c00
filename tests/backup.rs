//! A copy of the store beside a server that is buying. Wants nothing but the built command.
//! Invariant: what was durable when the copy was begun is in it, chain and money; what goes wrong leaves nothing.

use crate::support::{Client, TestServer, Upstream, price, teacher};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const BUDGET: &str = "[[budget]]\nname = \"pilot\"\ncalls = 1000000";
const WORKERS: usize = 4;

fn question(content: &str) -> String {
    json!({"model": "scripted", "messages": [{"role": "user", "content": content}]}).to_string()
}

fn names(folder: &Path) -> Vec<String> {
    let found = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut found: Vec<_> = found.collect();
    found.sort();
    found
}

/// Seals a store of the server's folder into a file there.
fn seal(server: &TestServer, store: &str, file: &str) -> Value {
    let sealed = server.run(&["--store", store, "audit", "--seal", "--key", "seal.key"]);
    assert_eq!(sealed.status.code(), Some(0), "{sealed:?}");
    fs::write(server.folder().join(file), &sealed.stdout).unwrap();
    serde_json::from_slice(&sealed.stdout).unwrap()
}

fn against(server: &TestServer, store: &str, file: &str) -> u64 {
    let held = server.json(&["--store", store, "audit", "--against", file, "--key", "seal.key"], 0);
    held["later"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_backup_beside_a_loaded_server_is_the_record_up_to_then() {
    const SOURCE: &str = "sled:./tuition.store";
    const COPY: &str = "sled:./copy";
    let upstream = Upstream::start().await;
    let server = TestServer::start(&format!("{}\n{}\n{BUDGET}", teacher(&upstream, ""), price()));
    let client = Client::new(&server.url());
    let over = Arc::new(AtomicBool::new(false));
    let worker = |worker: usize| {
        let (client, over) = (client.clone(), Arc::clone(&over));
        tokio::spawn(async move {
            for number in 0.. {
                let body = question(&format!("worker {worker} asks {number}"));
                assert_eq!(client.post("/v1/chat/completions", body).await.unwrap().status, 200);
                if over.load(Ordering::Relaxed) {
                    return;
                }
            }
        })
    };
    let held = client.clone();
    let held = tokio::spawn(async move { held.post("/v1/chat/completions", question("[gate]")).await });
    upstream.at_the_gate(1).await;
    let workers: Vec<_> = (0..WORKERS).map(worker).collect();
    upstream.charged(20).await;
    server.json(&["key", "seal", "seal.key"], 0);
    let before = seal(&server, SOURCE, "before.json");
    let made = server.json(&["backup", "copy"], 0);
    // The load goes on behind it.
    upstream.charged(upstream.charges().len() + 20).await;
    over.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.await.unwrap();
    }

    let copy = server.folder().join("copy");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (names(&copy), mode(&copy), mode(&copy.join("journal"))),
        (vec!["journal".into()], 0o700, 0o600)
    );
    assert_eq!(made["owned"], true);
    assert_eq!(made["bytes"], fs::metadata(copy.join("journal")).unwrap().len());
    let verified = server.json(&["--store", COPY, "audit", "--verify"], 0);
    assert_eq!((&verified["discrepancies"], &verified["entries"]), (&json!([]), &made["entries"]));
    // Each is the other's prefix: the seals say so, heads and money.
    let sealed = seal(&server, COPY, "copy.json");
    let entries = |seal: &Value| seal["entries"].as_u64().unwrap();
    assert_eq!((&sealed["heads"][0], &sealed["totals"]), (&made["head"], &verified["totals"]));
    assert_eq!(against(&server, COPY, "before.json"), entries(&sealed) - entries(&before));
    assert!(against(&server, SOURCE, "copy.json") >= 40);
    // Whoever opens the copy cannot know what became of the calls under way.
    let calls = |statement: &Value, part: &str| statement["totals"]["calls"][part].as_u64().unwrap();
    assert!(calls(&verified, "reserved") >= 1, "{verified}");
    server.json(&["--store", COPY, "budget", "add", "opened", "--calls", "5"], 0);
    let opened = server.json(&["--store", COPY, "audit", "--verify"], 0);
    assert_eq!(calls(&opened, "settled"), calls(&verified, "settled"));
    assert_eq!((calls(&opened, "reserved"), calls(&opened, "unknown")), (0, calls(&verified, "reserved")));
    assert!(against(&server, COPY, "copy.json") >= 2);
    // The source went on as if nothing had been.
    upstream.open_the_gate(1);
    assert_eq!(held.await.unwrap().unwrap().status, 200);
    server.json(&["audit", "--verify"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_named_and_leaves_nothing() {
    let upstream = Upstream::start().await;
    let server = TestServer::start(&format!("{}\n{}\n{BUDGET}", teacher(&upstream, ""), price()));
    let client = Client::new(&server.url());
    for number in 0..4 {
        client.post("/v1/chat/completions", question(&format!("asks {number}"))).await.unwrap();
    }
    let before = names(server.folder());
    let refused = |arguments: &[&str], expected: &[&str]| {
        let output = server.run(arguments);
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?} {words}");
        assert!(expected.iter().all(|expected| words.contains(expected)), "{words}");
        assert_eq!(names(server.folder()), before);
        words
    };
    refused(&["backup", "tuition.store"], &["`sled:tuition.store` is not empty"]);
    refused(&["backup", "tuition.toml"], &["`tuition.toml`"]);
    refused(&["backup", "none/copy"], &["`none/copy.partial`"]);
    refused(&["--store", "sled:./none", "backup", "copy"], &["there is no store"]);
    let database = ["--store", "postgres://me:pass-word@127.0.0.1/d", "backup", "copy"];
    let words = refused(&database, &["is a database", "tuition copy postgres://", "sled:copy", "pg_dump"]);
    assert!(!words.contains("pass-word"), "{words}");
    // `ulimit -f` makes every file that is larger unwritable: a full disk, met by a real process.
    let full = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$0\" backup copy"])
        .arg(env!("CARGO_BIN_EXE_tuition"))
        .current_dir(server.folder())
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&full.stderr).into_owned();
    assert_eq!(full.status.code(), Some(2), "{words}");
    assert!(words.contains("cannot be written to `copy.partial/journal`"), "{words}");
    assert_eq!(names(server.folder()), before);
    server.json(&["backup", "copy"], 0);
}
