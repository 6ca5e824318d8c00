//! A record against its seal: what a forger who recomputes everything can do to a record, and what a seal says to it.
//! Wants the built command, and a PostgreSQL for one test.
//! Invariant: whatever was sealed and is not there any more as it was is named, exit 1; growing is fine.

use crate::support::{Client, Cluster, Frame, Journal, TestServer, Upstream, price, teacher};
use serde_json::{Value, json};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

const BUDGET: &str = "[[budget]]\nname = \"pilot\"\ncalls = 50\nusd = \"1.00\"";
/// The forger's journal in which nothing is forged: what is found in the others is not its handwriting.
const UNTOUCHED: &str = "untouched";
const SEALED: [&str; 5] = ["audit", "--against", "seal.json", "--key", "seal.key"];

async fn ask(server: &TestServer, names: &[&str]) {
    let client = Client::new(&server.url());
    for name in names {
        let body = json!({"model": "scripted", "messages": [{"role": "user", "content": name}]});
        let reply = client.post("/v1/chat/completions", body.to_string()).await.unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
    }
}

fn stop(server: &mut TestServer) {
    server.terminate();
    assert!(server.wait().success());
}

/// Makes a key and a seal, as files of the server's folder; gives the seal.
fn seal(server: &TestServer) -> Value {
    server.json(&["key", "seal", "seal.key"], 0);
    let sealed = server.run(&["audit", "--seal", "--key", "seal.key"]);
    assert_eq!(sealed.status.code(), Some(0), "{sealed:?}");
    fs::write(server.folder().join("seal.json"), &sealed.stdout).unwrap();
    serde_json::from_slice(&sealed.stdout).unwrap()
}

/// What is printed and said, and the exit code.
fn said(server: &TestServer, arguments: &[&str], exit: i32) -> [String; 2] {
    let output = server.run(arguments);
    let words = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert_eq!(output.status.code(), Some(exit), "{arguments:?} {words:?}");
    words
}

/// Holds the store in the folder `name` against the seal: each difference as its entry and words.
fn differences(server: &TestServer, name: &str) -> Vec<(u64, String)> {
    let store = format!("sled:./{name}");
    let found = server.json(&[&["--store", &store], &SEALED[..]].concat(), i32::from(name != UNTOUCHED));
    let read = |found: &Value| (found["entry"].as_u64().unwrap(), found["what"].as_str().unwrap().to_owned());
    found["differences"].as_array().unwrap().iter().map(read).collect()
}

fn first<'a>(journal: &'a mut Journal, name: &str) -> (usize, &'a mut Frame) {
    let at = journal.frames.iter_mut().position(|frame| frame.fact(name).is_some());
    let at = at.unwrap_or_else(|| panic!("no `{name}` in the journal"));
    (at, &mut journal.frames[at])
}

/// One output token less, in all places that add up to it.
fn cheapen(journal: &mut Journal) {
    let settled = first(journal, "Settled").1.fact("Settled").unwrap();
    let less = |value: &mut Value, by: u64| *value = (value.as_u64().unwrap() - by).into();
    less(&mut settled["usage"]["output"], 1);
    for amount in ["/fee", "/items/0/share"] {
        let amount = settled.pointer_mut(amount).unwrap();
        less(&mut amount["tokens"], 1);
        less(&mut amount["usd"], 600);
    }
}

/// A paid call that never cost anything.
fn free(journal: &mut Journal) {
    let frame = first(journal, "Settled").1;
    let hold = frame.fact("Settled").unwrap()["hold"].clone();
    frame.payload["entry"]["fact"] = json!({"Released": {"hold": hold, "cause": "NotConnected"}});
    frame.payload["blobs"] = json!([]);
    frame.blobs.clear();
}

/// Another run paid.
fn blame(journal: &mut Journal) {
    first(journal, "Reserved").1.fact("Reserved").unwrap()["exchange"]["who"]["run"] = "other".into();
}

fn delete(journal: &mut Journal) {
    let closed = |frame: &Frame| frame.payload["entry"]["fact"] == "Closed";
    let at = journal.frames.iter().position(closed).unwrap();
    journal.frames.remove(at);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_rewritten_with_its_chain_passes_every_check_but_the_seal() {
    let upstream = Upstream::start().await;
    let mut server = TestServer::start(&format!("{}\n{}\n{BUDGET}", teacher(&upstream, ""), price()));
    ask(&server, &["a", "b"]).await;
    stop(&mut server);
    let sealed = seal(&server);
    let entries = sealed["entries"].as_u64().unwrap();
    let mut statement = server.json(&["audit"], 0);
    assert_eq!((&sealed["totals"], &sealed["entries"]), (&statement["totals"].take(), &statement["entries"]));
    let [words, _] = said(&server, &SEALED, 0);
    let at = sealed["at"].as_str().unwrap();
    assert_eq!(words, format!("{entries} entries are as they were sealed at {at}; 0 came later\n"));
    // It grows, and is held against the seal beside its owner.
    server.restart();
    ask(&server, &["a", "c"]).await;
    let grown = server.json(&SEALED, 0);
    assert!(grown["later"].as_u64().unwrap() >= 3, "{grown}");
    assert_eq!(grown["differences"], json!([]));
    stop(&mut server);

    let store = server.folder().join("tuition.store/journal");
    let journal = Journal::read(&store);
    let (rewritten, totals) = ("were rewritten", "totals.usd.settled");
    type Forge = fn(&mut Journal);
    let forgeries: [(&str, Forge, &[&str]); 5] = [
        (UNTOUCHED, |_| (), &[]),
        ("cheaper", cheapen, &[rewritten, "totals.tokens.settled", totals]),
        ("freed", free, &[rewritten, "totals.calls.settled", "totals.tokens.settled", totals]),
        ("blamed", blame, &[rewritten]),
        ("deleted", delete, &[rewritten]),
    ];
    for (name, forge, expected) in forgeries {
        let mut forged = journal.clone();
        forge(&mut forged);
        forged.write(&server.folder().join(name));
        let store = format!("sled:./{name}");
        assert_eq!(
            server.json(&["--store", &store, "audit", "--verify"], 0)["discrepancies"],
            json!([]),
            "{name}"
        );
        let found = differences(&server, name);
        assert_eq!(found.len(), expected.len(), "{name}: {found:?}");
        for ((entry, what), expected) in found.iter().zip(expected) {
            assert!(*entry == entries && what.contains(expected), "{name}: {found:?}");
        }
    }

    // Cut where an entry ends: nothing in the journal tells.
    let bytes = fs::read(&store).unwrap();
    let offsets = journal.offsets(&store);
    let kept = usize::try_from(entries).unwrap() - 1;
    let place = |name: &str, bytes: &[u8]| {
        fs::create_dir(server.folder().join(name)).unwrap();
        fs::write(server.folder().join(name).join("journal"), bytes).unwrap();
    };
    place("cut", &bytes[..offsets[kept]]);
    server.json(&["--store", "sled:./cut", "audit", "--verify"], 0);
    let gone = format!("it is missing: the record ends before it, and {entries} were sealed");
    assert_eq!(differences(&server, "cut"), [(entries, gone)]);
    // Without recomputing: one amount edited, one entry taken out.
    let (at, _) = first(&mut journal.clone(), "Settled");
    let mut edited = bytes.clone();
    let digit = (offsets[at] + 72..).find(|at| bytes[*at..].starts_with(b"\"usd\":")).unwrap() + 6;
    edited[digit] = if edited[digit] == b'1' { b'2' } else { b'1' };
    place("edited", &edited);
    place("gap", &[&bytes[..offsets[at]], &bytes[offsets[at + 1]..]].concat());
    for name in ["edited", "gap"] {
        let found = server.json(&["--store", &format!("sled:./{name}"), "audit", "--verify"], 1);
        let against = differences(&server, name);
        // The audit says more about it than that it is damaged: both name the same entry.
        assert_eq!(found["discrepancies"][0]["entry"], at as u64 + 1, "{name}");
        assert!(matches!(against[..], [(entry, _)] if entry == at as u64 + 1), "{name}: {against:?}");
    }
    // An answer that was sealed is erased: the chain covers its digest, not its bytes.
    let answers = server.json(&["cache", "list"], 0);
    let key = answers["answers"][0]["key"].as_str().unwrap();
    server.json(&["cache", "forget", key, "--why", "asked to"], 0);
    assert_eq!(server.json(&SEALED, 0)["differences"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seal_is_believed_only_with_its_key_and_nothing_that_is_wrong_is_sealed() {
    let upstream = Upstream::start().await;
    let mut server = TestServer::start(&format!("{}\n{}\n{BUDGET}", teacher(&upstream, ""), price()));
    ask(&server, &["a"]).await;
    stop(&mut server);
    let at = |name: &str| server.folder().join(name);
    let sealed = seal(&server);
    let key = fs::read_to_string(at("seal.key")).unwrap();
    assert_eq!((key.len(), fs::metadata(at("seal.key")).unwrap().permissions().mode() & 0o777), (65, 0o600));
    let [_, words] = said(&server, &["key", "seal", "seal.key"], 2);
    assert!(words.contains("`seal.key` is there already"), "{words}");
    assert_eq!(fs::read_to_string(at("seal.key")).unwrap(), key);

    server.json(&["key", "seal", "other.key"], 0);
    let mut cheaper = sealed.clone();
    cheaper["totals"]["usd"]["settled"] = "0.000000001".into();
    fs::write(at("cheaper.json"), cheaper.to_string()).unwrap();
    fs::write(at("pretty.json"), serde_json::to_string_pretty(&sealed).unwrap()).unwrap();
    fs::write(at("short.key"), "00\n").unwrap();
    fs::set_permissions(at("short.key"), Permissions::from_mode(0o600)).unwrap();
    fs::write(at("open.key"), &key).unwrap();
    fs::set_permissions(at("open.key"), Permissions::from_mode(0o640)).unwrap();
    let edited = "was made with another key, or was changed since";
    for (seal, key, exit, expected) in [
        ("pretty.json", "seal.key", 0, "are as they were sealed"),
        ("seal.json", "other.key", 2, edited),
        ("cheaper.json", "seal.key", 2, edited),
        ("tuition.toml", "seal.key", 2, "`tuition.toml` is no seal"),
        ("none.json", "seal.key", 2, "`none.json`"),
        ("seal.json", "open.key", 2, "others may read or change (its mode is 0640)"),
        ("seal.json", "short.key", 2, "holds no key for seals"),
        ("seal.json", "none.key", 2, "`none.key`"),
    ] {
        let words = said(&server, &["audit", "--against", seal, "--key", key], exit).concat();
        assert!(words.contains(expected), "{seal} {key}: {words}");
        assert!(!words.contains(fs::read_to_string(at("seal.key")).unwrap().trim()), "{words}");
    }
    let [_, words] = said(&server, &["audit", "--key", "seal.key"], 2);
    assert!(words.contains("`--key` alone says nothing"), "{words}");
    let [_, words] = said(&server, &["--store", "sled:./nothing", "audit", "--seal", "--key", "seal.key"], 2);
    assert!(words.contains("there is no store"), "{words}");

    let journal = at("tuition.store/journal");
    let mut damaged = fs::read(&journal).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(&journal, damaged).unwrap();
    let [printed, words] = said(&server, &["audit", "--seal", "--key", "seal.key"], 1);
    assert_eq!(printed, "", "a seal of a damaged record");
    assert!(words.contains("not sealed") && words.contains("of the journal is damaged"), "{words}");
    let listed = server.json(&["audit", "--seal", "--key", "seal.key"], 1);
    assert!(listed["discrepancies"][0]["entry"].as_u64().unwrap() > 1, "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_several_writers_is_sealed_with_the_head_of_each() {
    let upstream = Upstream::start().await;
    let url = Cluster::shared().database();
    let config = format!("{}\n{}\n{BUDGET}", teacher(&upstream, ""), price());
    let mut server = TestServer::start_at(&url, "", &config);
    ask(&server, &["a"]).await;
    stop(&mut server);
    server.restart();
    ask(&server, &["b"]).await;
    let sealed = seal(&server);
    assert!(sealed["heads"].as_array().unwrap().len() >= 2, "{sealed}");
    ask(&server, &["c"]).await;
    let grown = server.json(&SEALED, 0);
    assert!(grown["later"].as_u64().unwrap() >= 2, "{grown}");
    stop(&mut server);
    let changed = "UPDATE tuition.entry SET payload = replace(payload, 'pilot', 'other') WHERE payload LIKE '%Limited%'";
    Cluster::shared().sql(&url, changed);
    let found = server.json(&SEALED, 1);
    let what = found["differences"][0]["what"].as_str().unwrap();
    assert!(what.contains("is damaged"), "{found}");
}
