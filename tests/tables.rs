//! The audit of a record in PostgreSQL whose tables somebody edited: each change of a copy is named, and several at once.
//! Wants the built command and the system's PostgreSQL programs; edits by SQL, as one who knows docs/postgres.md.
//! Invariant: what was edited is a copy; an untouched copy is verified without a finding.

use crate::support::{Client, Cluster, TestServer, Upstream, price, teacher, tuition};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU32, Ordering};

const BUDGET: &str = "[[budget]]\nname = \"pilot\"\ncalls = 50\nusd = \"1.00\"";

/// Keys that refer to other tables are nobody's concern here.
const FREELY: &str = "SET session_replication_role = replica; ";
/// One byte of a body is another.
const FLIPPED: &str = "bytes = set_byte(bytes, 12, 255 - get_byte(bytes, 12))";
/// As `tuition cache forget` does it.
const ERASED: &str = "bytes = NULL";
const UNSAID: &str = "was erased, and no entry says that it was forgotten";

/// A record of two writers, both of which have ended.
struct Tables {
    cluster: &'static Cluster,
    server: TestServer,
    url: String,
    copies: AtomicU32,
}

impl Tables {
    async fn new() -> Self {
        let (cluster, upstream) = (Cluster::shared(), Upstream::start().await);
        let url = cluster.database();
        let configuration = format!("{}\n{}\n{BUDGET}", teacher(&upstream, ""), price());
        let mut server = TestServer::start_at(&url, "", &configuration);
        for round in 0..2 {
            let client = Client::new(&server.url());
            for at in 0..3 {
                let question = json!({"role": "user", "content": format!("audited {}", 2 * round + at)});
                let body = json!({"model": "scripted", "messages": [question]}).to_string();
                assert_eq!(client.post("/v1/chat/completions", body).await.unwrap().status, 200);
            }
            server.terminate();
            assert!(server.wait().success());
            if round == 0 {
                server.restart();
            }
        }
        Self { cluster, server, url, copies: AtomicU32::new(0) }
    }

    fn last(&self) -> u64 {
        self.cluster.sql(&self.url, "SELECT seq FROM tuition.head").parse().unwrap()
    }

    /// The numbers of the entries whose fact has this name.
    fn entries(&self, fact: &str) -> Vec<u64> {
        let named = format!("strpos(payload, '\"fact\":{{\"{fact}\"') > 0");
        let found = format!("SELECT seq FROM tuition.entry WHERE {named} ORDER BY seq");
        self.cluster.sql(&self.url, &found).lines().map(|seq| seq.parse().unwrap()).collect()
    }

    /// Verifies a copy after the `edits`: the exit code is 1 where there is something to be said, and these are the
    /// discrepancies, as entry and words.
    #[track_caller]
    fn check(&self, edits: &[&str], expected: &[(u64, &str)]) {
        let (server, name) = self.url.rsplit_once('/').unwrap();
        let copy = format!("{name}_{}", self.copies.fetch_add(1, Ordering::Relaxed));
        self.cluster.sql(&format!("{server}/postgres"), &format!("CREATE DATABASE {copy} TEMPLATE {name}"));
        let url = format!("{server}/{copy}");
        self.cluster.sql(&url, &(FREELY.to_owned() + &edits.join("; ")));
        let audited = ["--store", &url, "audit", "--verify", "--json"];
        let output = tuition(self.server.folder(), &audited).output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        let stated: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{words}"));
        let found = stated["discrepancies"].as_array().unwrap();
        assert_eq!(output.status.code(), Some(i32::from(!expected.is_empty())), "{found:#?} {words}");
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, (entry, what)) in found.iter().zip(expected) {
            assert_eq!(found["entry"], *entry, "`{what}` is not said: {found}");
            assert!(found["what"].as_str().unwrap().contains(what), "`{what}` is not said: {found}");
        }
    }
}

/// The first byte of an entry is a space, so that it can no longer be read.
fn byte(seq: u64) -> String {
    format!("UPDATE tuition.entry SET payload = overlay(payload placing ' ' from 1 for 1) WHERE seq = {seq}")
}

/// A hold of one call is one of none.
fn amount(seq: u64) -> String {
    let amount = "'\"amount\":{\"calls\":1', '\"amount\":{\"calls\":0'";
    format!("UPDATE tuition.entry SET payload = replace(payload, {amount}) WHERE seq = {seq}")
}

fn gone(seq: u64) -> String {
    format!("DELETE FROM tuition.entry WHERE seq = {seq}")
}

/// Two entries change places, with what belongs to them.
fn swap(one: u64, other: u64) -> String {
    let (one, other) = (one.cast_signed(), other.cast_signed());
    let place = |table, (from, to)| format!("UPDATE tuition.{table} SET seq = {to} WHERE seq = {from}");
    let moves = [(one, -1), (other, one), (-1, other)];
    let all = ["entry", "blob"].into_iter().flat_map(|table| moves.map(|moved| place(table, moved)));
    all.collect::<Vec<_>>().join("; ")
}

fn blob(seq: u64, part: u32, set: &str) -> String {
    format!("UPDATE tuition.blob SET {set} WHERE seq = {seq} AND part = {part}")
}

fn counter(writer: u32) -> String {
    format!("UPDATE tuition.writer SET entries = entries + 1 WHERE id = {writer}")
}

fn end(by: i64) -> String {
    format!("UPDATE tuition.head SET seq = seq + {by}")
}

fn gap(number: u64) -> String {
    format!("figures behind entry {} are not complete", number - 1)
}

fn unchained(number: u64, writer: u32) -> String {
    format!("entry {number} of the record does not continue the chain of writer {writer}")
}

/// In a record whose first writer wrote it up to here.
fn unproven(number: u64) -> String {
    format!("entry {number} of the record cannot be checked: number {} of writer 1", number - 1)
}

fn misplaced(number: u64, found: u64) -> String {
    format!("entry {number} of the record is number {found} of writer 1, not {number}")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_edit_of_a_database_is_found_and_named() {
    let tables = Tables::new().await;
    // Writer 1 bought three answers, writer 2 two; the first that writer 2 was asked for was known.
    let (holds, answers) = (tables.entries("Reserved"), tables.entries("Settled"));
    let (hold, answer, last) = (holds[1], answers[1], tables.last());
    assert_eq!((holds.len(), hold + 1), (5, answer), "a call was bought in between");
    tables.check(&[], &[]);
    tables.check(&[&byte(hold)], &[(hold, &unchained(hold, 1)), (hold, &gap(hold))]);
    tables.check(
        &[&amount(hold)],
        &[
            (hold, &unchained(hold, 1)),
            (hold, "is of 0 calls for items of 1"),
            (answer, "by its usage and price it is 0 calls"),
        ],
    );
    let missing = format!("entry {hold} is missing from the record");
    tables.check(&[&gone(hold)], &[(hold, &missing), (hold, &gap(hold)), (answer, &unproven(answer))]);
    tables.check(
        &[&swap(hold, answer)],
        &[
            (hold, &misplaced(hold, answer)),
            // What that makes of the order of things.
            (hold, "is settled although it is not known"),
            (hold, "the book refuses it"),
            (hold, "it settles a hold that is not open"),
            (answer, &misplaced(answer, hold)),
            (answer, "its time"),
            (answer, "is bought although it is known"),
        ],
    );
    tables.check(&[&counter(2)], &[(last, "writer 2 has ")]);
    let chain = "UPDATE tuition.writer SET chain = set_byte(chain, 0, 255 - get_byte(chain, 0)) WHERE id = 2";
    let ends = format!("the chain of writer 2 does not end with entry {last} as the writer says");
    tables.check(&[chain], &[(last, &ends)]);
    tables.check(&[&end(1)], &[(last + 1, "is missing from the record")]);
    tables.check(
        &["DELETE FROM tuition.head", &counter(2)],
        &[(1, "the record's row of `head` is missing"), (last, "writer 2 has ")],
    );
    tables.check(&[&end(-1)], &[(last, "of writer 2, stands behind its end")]);

    // All of them in one database.
    let (first, third, fourth, fifth) = (holds[0], answers[2], answers[3], answers[4]);
    tables.check(
        &[
            &gone(first),
            &amount(hold),
            &blob(answer, 2, FLIPPED),
            &blob(third, 2, ERASED),
            &byte(fourth),
            &blob(fifth, 1, FLIPPED),
            &counter(1),
            &end(-1),
        ],
        &[
            (first, &format!("entry {first} is missing from the record")),
            (first, &gap(first)),
            (first + 1, &unproven(first + 1)),
            (hold, &unchained(hold, 1)),
            (answer, "blob 2, of writer 1"),
            (third, UNSAID),
            (third + 1, "writer 1 has "),
            (fourth, &unchained(fourth, 2)),
            (fifth, "blob 1, of writer 2"),
            (last, "stands behind its end"),
        ],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_part_of_an_answer_that_was_changed_or_erased_is_named() {
    let tables = Tables::new().await;
    let answers = tables.entries("Settled");
    let answer = answers[1];
    let damaged = |part: u32, why: &str| {
        format!("entry {answer} of the record is damaged: {why}: blob {part}, of writer 1")
    };
    tables.check(
        &[&blob(answer, 1, FLIPPED), &blob(answer, 2, "bytes = '\\x00'"), &blob(answer, 3, "part = 9")],
        &[
            (answer, "of writer 1, has a blob 9 that it does not name"),
            (answer, &damaged(1, "a blob does not match its checksum")),
            (answer, &damaged(2, "a blob's header is cut off")),
            (answer, &damaged(3, "a blob is missing")),
        ],
    );
    // An answer to something else, whole.
    let other = format!("bytes = (SELECT bytes FROM tuition.blob WHERE seq = {} AND part = 2)", answers[0]);
    tables.check(&[&blob(answer, 2, &other)], &[(answer, &damaged(2, "a blob does not match its digest"))]);
    // Without its hold it is no answer that could be unpacked, and is looked at all the same.
    let hold = answer - 1;
    tables.check(
        &[&gone(hold), &blob(answer, 2, &other), &blob(answer, 3, ERASED)],
        &[
            (hold, "is missing from the record"),
            (hold, &gap(hold)),
            (answer, &unproven(answer)),
            (answer, &damaged(2, "a blob does not match its digest")),
            (answer, UNSAID),
        ],
    );
    for part in 1..=3 {
        tables.check(&[&blob(answer, part, ERASED)], &[(answer, UNSAID)]);
    }
    tables.check(&[&blob(answer, 0, ERASED)], &[(answer, "the envelope of its answers was erased")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_forgotten_with_its_entry_is_no_finding() {
    let mut tables = Tables::new().await;
    let key = "SELECT encode(key, 'hex') FROM tuition.answer ORDER BY settled LIMIT 1";
    let key = tables.cluster.sql(&tables.url, key);
    tables.server.restart();
    tables.server.json(&["cache", "forget", &key, "--why", "asked to"], 0);
    assert_eq!(tables.server.json(&["audit", "--verify"], 0)["forgotten"], 1);
    tables.server.terminate();
    assert!(tables.server.wait().success());
    tables.check(&[], &[]);
    // Its entry explains what went before it, and nothing else.
    let answer = tables.entries("Settled")[1];
    let erased = format!("UPDATE tuition.blob SET bytes = NULL WHERE seq = {answer}");
    tables.check(&[&erased], &[(answer, UNSAID)]);
}
