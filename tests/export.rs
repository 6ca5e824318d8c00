//! What was bought, in files that others read. Wants the Python package `parquet`.
//! Invariant: every form says the same, and its dollars add up to the statement.

use crate::support::{Client, Python, TestServer, Upstream, price, teacher};
use serde_json::{Value, json};
use std::fs;

const BUDGET: &str = "[[budget]]\nname = \"pilot\"\ncalls = 50\nusd = \"1.00\"";

fn chat(content: &str) -> String {
    json!({"model": "scripted", "messages": [{"role": "user", "content": content}]}).to_string()
}

/// Nano-dollars of a decimal with nine places.
fn nanos(usd: &Value) -> u64 {
    let (whole, places) = usd.as_str().unwrap().split_once('.').unwrap();
    assert_eq!(places.len(), 9, "{usd}");
    format!("{whole}{places}").parse().unwrap()
}

fn lines(server: &TestServer, file: &str) -> Vec<Value> {
    let text = fs::read_to_string(server.folder().join(file)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_bought_is_read_by_others_and_adds_up() {
    let upstream = Upstream::start().await;
    let server = TestServer::start(&format!("{}\n{}\n{BUDGET}", teacher(&upstream, ""), price()));
    let client = Client::new(&server.url());
    let pilot = client.with("x-tuition-run", "pilot");
    for (client, body) in [(&client, chat("one, with \"quotes\", commas\nand lines")), (&pilot, chat("two"))]
    {
        assert_eq!(client.post("/v1/chat/completions", body).await.unwrap().status, 200);
    }
    let refresh = pilot.with("x-tuition-mode", "refresh");
    assert_eq!(refresh.post("/v1/chat/completions", chat("two")).await.unwrap().status, 200);
    let texts = json!({"model": "scripted", "input": ["a", "b"]}).to_string();
    assert_eq!(pilot.post("/v1/embeddings", texts).await.unwrap().status, 200);
    let settled = nanos(&client.statement().await.0["totals"]["usd"]["settled"]);

    let export = |arguments: &str| {
        let arguments: Vec<&str> = std::iter::once("export").chain(arguments.split(' ')).collect();
        server.json(&arguments, 0)["rows"].clone()
    };
    // Beside the running server. The answer that was bought again is served once, and was paid twice.
    assert_eq!(export("--format jsonl answers.jsonl"), 4);
    let answers = lines(&server, "answers.jsonl");
    let first = &answers[0];
    let shown = server.json(&["cache", "show", first["key"].as_str().unwrap()], 0);
    for (name, of) in
        [("teacher", "teacher"), ("model", "model"), ("at", "at"), ("media", "media"), ("usd", "usd")]
    {
        assert_eq!(first[name], shown[of], "{name}");
    }
    let question: Value = serde_json::from_str(first["question"].as_str().unwrap()).unwrap();
    assert_eq!((&question, first["answer"].as_str().is_some()), (&shown["question"], true));
    assert_eq!(export("--format jsonl --run pilot pilot.jsonl"), 3);

    assert_eq!(export("--format csv answers.csv"), 4);
    let text = fs::read_to_string(server.folder().join("answers.csv")).unwrap();
    assert!(text.starts_with("key,at,teacher,revision,run,client,model,"), "{text}");

    assert_eq!(export("--format parquet answers.parquet"), 4);
    let read = async |file: &str| {
        let path = server.folder().join(file);
        Python::with("parquet").run("columns.py", &[path.to_str().unwrap()], &Value::Null).await
    };
    let table = read("answers.parquet").await;
    let types = &table["types"];
    let expected = ["string", "timestamp[ms, tz=UTC]", "uint64", "decimal128(38, 9)"];
    assert_eq!(["key", "at", "calls", "usd"].map(|name| types[name].as_str().unwrap()), expected, "{types}");
    for (row, line) in table["rows"].as_array().unwrap().iter().zip(&answers) {
        for name in ["key", "teacher", "run", "question", "answer", "text", "calls", "tokens", "usd"] {
            assert_eq!(row[name], line[name], "{name}");
        }
    }

    let entries = export("--format jsonl --what entries entries.jsonl");
    assert_eq!(entries, server.json(&["audit"], 0)["entries"]);
    let fees = lines(&server, "entries.jsonl");
    let fees = fees.iter().filter(|entry| entry["fact"] == "Settled").map(|entry| nanos(&entry["usd"]));
    assert_eq!(fees.sum::<u64>(), settled);
    assert_eq!(export("--format parquet --what entries entries.parquet"), entries);
    assert_eq!(
        read("entries.parquet").await["rows"].as_array().unwrap().len() as u64,
        entries.as_u64().unwrap()
    );

    assert_eq!(export("--format hf set"), 4);
    assert_eq!(read("set/data/train-00000-of-00001.parquet").await, table);
    assert!(fs::read_to_string(server.folder().join("set/README.md")).unwrap().starts_with("---\nconfigs:"));

    // What is there is not overwritten unasked, and nothing half done is left.
    server.json(&["export", "--format", "csv", "answers.csv"], 2);
    assert_eq!(export("--format csv --force answers.csv"), 4);
    assert_eq!(export("--format hf --force set"), 4);
    fs::write(server.folder().join("set/thesis.txt"), "years of work").unwrap();
    server.json(&["export", "--format", "csv", "--force", "set"], 2);
    assert!(server.folder().join("set/thesis.txt").exists());
    server.json(&["export", "--format", "parquet", "-"], 2);
    server.json(&["export", "--format", "csv", "no/such/answers.csv"], 2);
    let left = fs::read_dir(server.folder()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(left.filter(|name| name.to_string_lossy().contains("partial")).count(), 0);
}
