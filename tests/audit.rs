//! The audit of a record that somebody edited: a copy of a store is changed in every way that matters, and each change is
//! named. Wants nothing but the built command; reads frames by the byte table of `docs/journal.md`.
//! Invariant: what was edited is a copy; an untouched copy is verified without a finding.

use crate::support::{Client, TestServer, Upstream, price, teacher, tuition};
use serde_json::{Value, json};
use std::fs;
use std::ops::Range;
use std::path::Path;

const BUDGET: &str = "[[budget]]\nname = \"pilot\"\ncalls = 50\nusd = \"1.00\"";
const QUESTIONS: usize = 4;
const FILE_HEADER_BYTES: usize = 40;
const HEADER_BYTES: usize = 72;
const BLOB_HEADER_BYTES: usize = 9;

/// A journal as its byte table says.
struct Journal(Vec<u8>);

impl Journal {
    fn number(&self, at: usize, bytes: usize) -> usize {
        self.0[at..at + bytes].iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
    }

    /// Where each frame stands, in the order of the file.
    fn frames(&self) -> Vec<Range<usize>> {
        let (mut frames, mut at) = (Vec::new(), FILE_HEADER_BYTES);
        while at < self.0.len() {
            assert_eq!(self.0[at..at + 4], [0xf7, 0x54, 0x75, 0x45]);
            let end = at + HEADER_BYTES + self.number(at + 4, 4) + self.number(at + 8, 8);
            frames.push(at..end);
            at = end;
        }
        frames
    }

    fn payload(&self, frame: &Range<usize>) -> Range<usize> {
        let start = frame.start + HEADER_BYTES;
        start..start + self.number(frame.start + 4, 4)
    }

    /// The number of the first entry whose fact has this name, and its frame.
    fn first(&self, fact: &str) -> (u64, Range<usize>) {
        let is = |frame: &Range<usize>| {
            let payload: Value = serde_json::from_slice(&self.0[self.payload(frame)]).unwrap();
            payload["entry"]["fact"].get(fact).is_some()
        };
        let frame = self.frames().into_iter().find(is).unwrap();
        (self.number(frame.start + 16, 8) as u64, frame)
    }

    /// Puts another amount of the same length into an entry and makes both checksums right again; the chain stays.
    fn forge(&mut self, frame: &Range<usize>, amount: &str, other: &str) {
        assert_eq!(amount.len(), other.len());
        let payload = self.payload(frame);
        let text = String::from_utf8(self.0[payload.clone()].to_vec()).unwrap();
        assert!(text.contains(amount), "{text}");
        self.0[payload.clone()].copy_from_slice(text.replace(amount, other).as_bytes());
        let crc = crc32([&self.0[payload]]).to_le_bytes();
        self.0[frame.start + 64..frame.start + 68].copy_from_slice(&crc);
        let crc = crc32([&self.0[12..28], &self.0[frame.start..frame.start + 68]]).to_le_bytes();
        self.0[frame.start + 68..frame.start + 72].copy_from_slice(&crc);
    }

    /// Where each blob of a frame stands.
    fn blobs(&self, frame: &Range<usize>) -> Vec<Range<usize>> {
        let (mut blobs, mut at) = (Vec::new(), self.payload(frame).end);
        while at < frame.end {
            let end = at + BLOB_HEADER_BYTES + self.number(at + 1, 4);
            blobs.push(at..end);
            at = end;
        }
        blobs
    }

    /// Erases a blob as `tuition cache forget` does it.
    fn erase(&mut self, blob: &Range<usize>) {
        self.0[blob.start] = 2;
        let crc = crc32([&self.0[blob.start..blob.start + 5]]).to_le_bytes();
        self.0[blob.start + 5..blob.start + BLOB_HEADER_BYTES].copy_from_slice(&crc);
        self.0[blob.start + BLOB_HEADER_BYTES..blob.end].fill(0);
    }

    fn swap(&mut self, one: &Range<usize>, other: &Range<usize>) {
        assert_eq!(one.end, other.start);
        self.0[one.start..other.end].rotate_left(one.len());
    }
}

/// CRC-32 as IEEE 802.3 has it.
fn crc32<const N: usize>(parts: [&[u8]; N]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    let bytes = parts.into_iter().flatten();
    !bytes.fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

/// A store in which a few answers were bought, and some asked for again; its server has stopped.
async fn record() -> TestServer {
    let upstream = Upstream::start().await;
    let mut server = TestServer::start(&format!("{}\n{}\n{BUDGET}", teacher(&upstream, ""), price()));
    let client = Client::new(&server.url());
    for at in (0..QUESTIONS).chain(0..2) {
        let question = json!({"role": "user", "content": format!("audited {at}")});
        let body = json!({"model": "scripted", "messages": [question]}).to_string();
        assert_eq!(client.post("/v1/chat/completions", body).await.unwrap().status, 200);
    }
    server.terminate();
    assert!(server.wait().success());
    server
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else if path.is_file() {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// Verifies a copy of the record after `edit`: the exit code is 1, and these are the discrepancies, as entry and words.
#[track_caller]
fn check(server: &TestServer, edit: impl FnOnce(&mut Journal), expected: &[(u64, &str)]) {
    let copied = tempfile::tempdir_in(server.folder()).unwrap();
    copy(&server.folder().join("tuition.store"), copied.path());
    let path = copied.path().join("journal");
    let mut journal = Journal(fs::read(&path).unwrap());
    edit(&mut journal);
    fs::write(&path, &journal.0).unwrap();
    let url = format!("sled:{}", copied.path().display());
    let output =
        tuition(server.folder(), &["--store", &url, "audit", "--verify", "--json"]).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = i32::from(!expected.is_empty());
    let stated: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{words}"));
    let found = stated["discrepancies"].as_array().unwrap();
    assert_eq!(output.status.code(), Some(code), "{found:?} {words}");
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, (entry, what)) in found.iter().zip(expected) {
        assert_eq!(found["entry"], *entry, "{found}");
        assert!(found["what"].as_str().unwrap().contains(what), "`{what}` is not said: {found}");
    }
    assert_eq!(fs::read(&path).unwrap(), journal.0, "verifying changed the journal");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_edit_of_a_copy_is_found_and_named() {
    let server = record().await;
    let journal = Journal(fs::read(server.folder().join("tuition.store/journal")).unwrap());
    let (reserved, hold) = journal.first("Reserved");
    let (settled, answer) = journal.first("Settled");
    assert!(reserved + 1 == settled, "a call was bought in between");
    let at = |frame: &Range<usize>| format!("offset {} ", frame.start);
    let incomplete = |missing: u64| format!("figures behind entry {} are not complete", missing - 1);
    check(&server, |_| {}, &[]);

    // One byte: of the header, of the entry, of an answer.
    for byte in [answer.start + 30, journal.payload(&answer).start + 40, answer.end - 1] {
        let named = format!("entry {settled} at {}of the journal is damaged", at(&answer));
        check(&server, |journal| journal.0[byte] ^= 1, &[(settled, &named), (settled, &incomplete(settled))]);
    }

    // One amount of a hold, by somebody who knows the format; its fee is settled as it was.
    let named = format!("entry {reserved} at {}of the journal does not continue the chain", at(&hold));
    let forge =
        |journal: &mut Journal| journal.forge(&hold, "\"amount\":{\"calls\":1", "\"amount\":{\"calls\":0");
    check(
        &server,
        forge,
        &[
            (reserved, "is of 0 calls for items of 1"),
            (reserved, &named),
            (settled, "by its usage and price it is 0 calls"),
        ],
    );

    // One entry taken out.
    let gap = incomplete(reserved);
    let missing = format!("entry {reserved} is missing from the journal, 1 in all");
    check(&server, |journal| drop(journal.0.drain(hold.clone())), &[(reserved, &missing), (reserved, &gap)]);

    // Two that changed places.
    check(
        &server,
        |journal| journal.swap(&hold, &answer),
        &[
            (reserved, &format!("out of place: entry {settled} belongs there")),
            (settled, &format!("out of place: entry {reserved} belongs there")),
        ],
    );

    // All of them in one journal.
    let frames = journal.frames();
    let last = frames.len();
    let number = |from_end: usize| (last - from_end + 1) as u64;
    let several = |journal: &mut Journal| {
        journal.swap(&frames[last - 3], &frames[last - 2]);
        journal.0[frames[last - 5].start + 20] ^= 1;
        journal.0.drain(hold.clone());
    };
    check(
        &server,
        several,
        &[
            (reserved, &missing),
            (reserved, &gap),
            (number(5), "is damaged"),
            (number(3), "out of place"),
            (number(2), "out of place"),
        ],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_erased_without_an_entry_is_named_and_what_was_forgotten_is_not() {
    let mut server = record().await;
    let path = server.folder().join("tuition.store/journal");
    let before = Journal(fs::read(&path).unwrap());
    let (settled, answer) = before.first("Settled");
    let blobs = before.blobs(&answer);
    assert_eq!(blobs.len(), 4, "the envelope, then question, answer and signals");
    let unsaid = (settled, "was erased, and no entry says that it was forgotten");
    let envelope = (settled, "the envelope of its answers was erased");
    for part in &blobs[1..] {
        check(&server, |journal| journal.erase(part), &[unsaid]);
    }
    check(&server, |journal| journal.erase(&blobs[0]), &[envelope]);
    check(&server, |journal| blobs.iter().for_each(|blob| journal.erase(blob)), &[unsaid]);

    // With its entry, as a whole or half way; the entry explains no other answer.
    let key = key_of(&before, &answer);
    server.restart();
    server.json(&["cache", "forget", &key, "--why", "asked to"], 0);
    server.terminate();
    assert!(server.wait().success());
    let after = Journal(fs::read(&path).unwrap());
    assert_eq!(after.blobs(&answer), blobs, "an erased blob keeps its length");
    check(&server, |_| {}, &[]);
    for blob in &blobs {
        assert_eq!(after.0[blob.start], 2, "a blob was not erased");
        check(&server, |journal| journal.0[blob.clone()].copy_from_slice(&before.0[blob.clone()]), &[]);
    }
    let other = after.frames().into_iter().filter(|frame| after.blobs(frame).len() == 4).nth(1).unwrap();
    let number = after.number(other.start + 16, 8) as u64;
    check(&server, |journal| journal.erase(&after.blobs(&other)[2]), &[(number, unsaid.1)]);
}

/// The key of the only answer in a frame.
fn key_of(journal: &Journal, frame: &Range<usize>) -> String {
    let payload: Value = serde_json::from_slice(&journal.0[journal.payload(frame)]).unwrap();
    payload["entry"]["fact"]["Settled"]["items"][0]["key"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cost_nothing_and_what_tokens_were_is_told_by_run() {
    let upstream = Upstream::start().await;
    let mut server = TestServer::start(&format!(
        "{}\n{}\n[[budget]]\nname = \"pilot\"\ncalls = 2\n",
        teacher(&upstream, ""),
        price()
    ));
    let client = Client::new(&server.url()).with("x-tuition-run", "pilot");
    let chat = |content: &str| {
        json!({"model": "scripted", "messages": [{"role": "user", "content": content}]}).to_string()
    };
    for (content, status) in
        [("one", 200), ("two [cached 7]", 200), ("one", 200), ("three", 402), ("four", 402), ("five", 402)]
    {
        assert_eq!(
            client.post("/v1/chat/completions", chat(content)).await.unwrap().status,
            status,
            "{content}"
        );
    }
    // A clean end writes what was counted.
    server.terminate();
    assert!(server.wait().success());
    let audit = server.json(&["audit", "--by", "run,day"], 0);
    let row = audit["by"].as_array().unwrap().iter().find(|row| row["run"] == "pilot").unwrap();
    for told in [&audit["served"], &row["served"]] {
        assert_eq!(
            (&told["known"], &told["followed"], &told["refused"]),
            (&json!(1), &json!(0), &json!(3)),
            "{told}"
        );
    }
    let bill = upstream.bill();
    let kinds = &audit["tokens_by_kind"];
    assert_eq!((&kinds["cached_input"], &kinds["unstated"]), (&json!(7), &json!(0)), "{kinds}");
    let sum: u64 = kinds.as_object().unwrap().values().map(|figure| figure.as_u64().unwrap()).sum();
    assert_eq!(sum, bill.tokens);
    assert_eq!(&row["tokens_by_kind"], kinds);
    let heads = audit["heads"].as_array().unwrap();
    assert_eq!((heads.len(), &heads[0]["entries"]), (1, &audit["entries"]));
    assert_eq!(heads[0]["chain"].as_str().unwrap().len(), 64);
}
