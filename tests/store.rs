//! The store when its index is gone, garbled or locked, and when two want to own it.
//! Wants nothing but the built command.
//! Invariant: the journal alone is enough; nothing is lost and nothing is bought again.

use crate::support::{Client, TestServer, Upstream, price, teacher, tuition};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

const BUDGET: &str = "[[budget]]\nname = \"pilot\"\ncalls = 50\nusd = \"1.00\"";
const QUESTIONS: usize = 6;

fn requests() -> Vec<(&'static str, String)> {
    let chat = |at: usize| {
        json!({"model": "scripted", "messages": [{"role": "user", "content": format!("kept {at}")}]})
            .to_string()
    };
    let mut requests: Vec<_> = (0..QUESTIONS).map(|at| ("/v1/chat/completions", chat(at))).collect();
    requests.push(("/v1/embeddings", json!({"model": "scripted", "input": ["one", "two"]}).to_string()));
    requests
}

async fn ask_all(server: &TestServer, expected: &str) -> Vec<Value> {
    let client = Client::new(&server.url());
    let mut answers = Vec::new();
    for (path, body) in requests() {
        let reply = client.post(path, body).await.unwrap();
        assert_eq!((reply.status, reply.header("x-tuition-outcome")), (200, expected), "{reply:?}");
        let answer = reply.json();
        answers.push(answer.get("choices").or(answer.get("data")).unwrap().clone());
    }
    answers
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// Buys, stops the server in `stop`'s way, spoils the store, starts again: all is known, and the statement is the same.
async fn survives(stop: fn(&mut TestServer), spoil: fn(&Path) -> Vec<File>) {
    let upstream = Upstream::start().await;
    let mut server = TestServer::start(&format!("{}\n{}\n{BUDGET}", teacher(&upstream, ""), price()));
    let bought = ask_all(&server, "bought").await;
    let before = Client::new(&server.url()).statement().await;
    stop(&mut server);
    let _held = spoil(&server.folder().join("tuition.store"));
    server.restart();
    assert_eq!(ask_all(&server, "known").await, bought);
    let after = Client::new(&server.url()).statement().await;
    assert_eq!(after.0["budgets"], before.0["budgets"]);
    assert_eq!(upstream.asked(), requests().len() as u64);
    assert_eq!(server.json(&["audit", "--verify"], 0)["discrepancies"], json!([]));
}

fn stopped(server: &mut TestServer) {
    server.terminate();
    assert!(server.wait().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_but_the_journal_may_be_deleted() {
    survives(TestServer::kill, |store| {
        for path in fs::read_dir(store).unwrap().map(|entry| entry.unwrap().path()) {
            let is_journal = path.file_name().unwrap().to_str().unwrap().starts_with("journal");
            if path.is_dir() && !is_journal {
                fs::remove_dir_all(&path).unwrap();
            } else if !is_journal {
                fs::remove_file(&path).unwrap();
            }
        }
        Vec::new()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_garbled_index_is_rebuilt() {
    survives(stopped, |store| {
        let spoilt = files(&store.join("index"));
        assert!(!spoilt.is_empty(), "the index holds no file");
        for path in spoilt {
            let length = fs::metadata(&path).unwrap().len().max(512);
            let garbage: Vec<u8> = (0..length).map(|at| (at * 31 % 251) as u8).collect();
            fs::write(path, garbage).unwrap();
        }
        Vec::new()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_index_is_rebuilt() {
    survives(TestServer::kill, |store| {
        for path in files(&store.join("index")) {
            let length = fs::metadata(&path).unwrap().len();
            File::options().write(true).open(&path).unwrap().set_len(length / 3).unwrap();
        }
        Vec::new()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_locked_by_a_leftover_is_not_needed() {
    survives(TestServer::kill, |store| {
        let locked: Vec<File> =
            files(&store.join("index")).iter().map(|path| File::open(path).unwrap()).collect();
        for file in &locked {
            rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        }
        locked
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_serve_is_refused_and_changes_nothing() {
    let upstream = Upstream::start().await;
    let server = TestServer::start(&format!("{}\n{}\n{BUDGET}", teacher(&upstream, ""), price()));
    ask_all(&server, "bought").await;
    let second = server.run(&["serve"]);
    let words = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(2), "{words}");
    assert!(words.contains("tuition.store"), "the store is not named: {words}");
    ask_all(&server, "known").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_journal_is_named_and_repaired_only_on_request() {
    let upstream = Upstream::start().await;
    let mut server = TestServer::start(&format!("{}\n{}\n{BUDGET}", teacher(&upstream, ""), price()));
    ask_all(&server, "bought").await;
    let owned = server.run(&["doctor", "--repair"]);
    assert_eq!(owned.status.code(), Some(2), "a repair beside an owner: {owned:?}");
    stopped(&mut server);
    let store = server.folder().join("tuition.store");
    let journal = store.join("journal");
    let whole = fs::read(&journal).unwrap();
    assert_eq!(server.json(&["doctor", "--repair"], 0)["repaired"], Value::Null);
    assert_eq!(fs::read(&journal).unwrap(), whole);
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 0x10;
    fs::write(&journal, &damaged).unwrap();
    // It is named by those who read it, and stays as it is.
    let found = server.json(&["audit", "--verify"], 1);
    let named = found["discrepancies"][0]["what"].as_str().unwrap().to_owned();
    let looked = server.json(&["doctor"], 1);
    let findings = looked["findings"].as_array().unwrap();
    let said =
        findings.iter().find(|finding| finding["what"] == "store").unwrap()["detail"].as_str().unwrap();
    assert!(named.contains("at offset") && said.contains(&named), "{named}\n{said}");
    assert!(said.contains("doctor --repair"), "{said}");
    assert_eq!(fs::read(&journal).unwrap(), damaged);
    // On request: the prefix is kept, the rest lies beside it.
    let repaired = server.json(&["doctor", "--repair"], 1)["repaired"].clone();
    let offset = usize::try_from(repaired["damage"]["offset"].as_u64().unwrap()).unwrap();
    assert!(named.contains(&format!("at offset {offset} ")), "{named}");
    let rest = fs::read(store.join(format!("journal.damaged-{offset}"))).unwrap();
    assert_eq!([fs::read(&journal).unwrap(), rest].concat(), damaged);
    assert_eq!(server.json(&["audit", "--verify"], 0)["discrepancies"], json!([]));
    server.restart();
    let client = Client::new(&server.url());
    let (path, body) = requests().swap_remove(0);
    assert_eq!(client.post(path, body).await.unwrap().header("x-tuition-outcome"), "known");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_index_is_filled_from_the_journal_and_the_log_says_so_without_a_bar() {
    let upstream = Upstream::start().await;
    let mut server = TestServer::start(&format!("{}\n{}\n{BUDGET}", teacher(&upstream, ""), price()));
    let bought = ask_all(&server, "bought").await;
    stopped(&mut server);
    fs::remove_dir_all(server.folder().join("tuition.store/index")).unwrap();
    let before = fs::read_to_string(server.folder().join("serve.log")).unwrap().len();
    server.restart();
    assert_eq!(ask_all(&server, "known").await, bought);
    stopped(&mut server);
    let log = fs::read_to_string(server.folder().join("serve.log")).unwrap().split_off(before);
    let answers = QUESTIONS + 2;
    assert!(
        log.contains("the index is filled from the journal") && log.contains("the index is whole"),
        "{log}"
    );
    assert!(log.contains(&format!("answers={answers}")), "{log}");
    assert!(!log.contains("filling the index") && !log.contains('\r'), "a bar that nobody watches: {log}");
}

/// `ulimit -f` makes every file that is larger unwritable: a full disk, met by a real process.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_a_command_fails_and_nothing_changes() {
    let upstream = Upstream::start().await;
    let mut server = TestServer::start(&format!("{}\n{}\n{BUDGET}", teacher(&upstream, ""), price()));
    ask_all(&server, "bought").await;
    stopped(&mut server);
    let journal = server.folder().join("tuition.store/journal");
    let before = (fs::read(&journal).unwrap(), server.json(&["audit"], 0));
    let full = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$0\" budget add more --calls 5"])
        .arg(env!("CARGO_BIN_EXE_tuition"))
        .current_dir(server.folder())
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&full.stderr).into_owned();
    assert_eq!(full.status.code(), Some(2), "{words}");
    assert!(words.contains("cannot be written"), "{words}");
    assert_eq!((fs::read(&journal).unwrap(), server.json(&["audit"], 0)), before);
    server.restart();
    ask_all(&server, "known").await;
}

#[cfg(target_os = "linux")]
#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    // Nobody writes there, not even root.
    let store = "/proc/sys/tuition.store";
    let mut command =
        tuition(folder.path(), &["--store", &format!("sled:{store}"), "budget", "add", "b", "--calls", "5"]);
    let output = command.output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{words}");
    assert!(words.contains(store), "{words}");
}

/// The bytes of every file of a folder that hold `text`.
fn holders(folder: &Path, text: &str) -> Vec<PathBuf> {
    let holds = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap_or_default();
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    };
    files(folder).into_iter().filter(holds).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_forgotten_beside_serve_is_gone_and_is_bought_anew() {
    let upstream = Upstream::start().await;
    let mut server = TestServer::start(&format!("{}\n{}\n{BUDGET}", teacher(&upstream, ""), price()));
    ask_all(&server, "bought").await;
    let client = Client::new(&server.url());
    // Too short to be compressed, so that its bytes can be looked for.
    let secret = json!({"model": "scripted", "messages": [{"role": "user", "content": "xyzzy"}]}).to_string();
    let bought = client.post("/v1/chat/completions", secret.clone()).await.unwrap();
    let key = bought.header("x-tuition-key").to_owned();
    let before = client.statement().await;
    let store = server.folder().join("tuition.store");
    assert!(!holders(&store, "xyzzy").is_empty(), "the journal holds it");
    let forgotten = server.json(&["cache", "forget", &key, "--why", "asked to"], 0);
    assert_eq!((&forgotten["key"], &forgotten["forgotten"]), (&json!(key), &json!(true)));
    assert_eq!(holders(&store, "xyzzy"), Vec::<PathBuf>::new());
    server.json(&["cache", "forget", &key], 1);
    let after = client.statement().await;
    assert_eq!((&after.0["totals"], &after.0["budgets"]), (&before.0["totals"], &before.0["budgets"]));
    assert_eq!(server.json(&["audit", "--verify"], 0)["discrepancies"], json!([]));
    let replay = client.with("x-tuition-mode", "replay");
    assert_eq!(replay.post("/v1/chat/completions", secret.clone()).await.unwrap().status, 409);
    ask_all(&server, "known").await;
    server.kill();
    server.restart();
    let client = Client::new(&server.url());
    let again = client.post("/v1/chat/completions", secret).await.unwrap();
    assert_eq!((again.status, again.header("x-tuition-outcome")), (200, "bought"), "{again:?}");
    ask_all(&server, "known").await;
}
