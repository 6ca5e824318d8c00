//! The statement against the teacher's bill: it adds up, an unknown call is named, and what is no bill is refused.
//! Wants nothing but the built command.

use crate::support::{Bill, Client, TestServer, Upstream, price, teacher};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs;

const BUDGET: &str = "[[budget]]\nname = \"pilot\"\ncalls = 100\nusd = \"1.00\"";

async fn served(upstream: &Upstream, more: &str) -> (TestServer, Client) {
    let server = TestServer::start(&format!("{}\n{}\n{BUDGET}", teacher(upstream, more), price()));
    let client = Client::new(&server.url());
    (server, client)
}

async fn ask(client: &Client, content: &str, n: u64, status: u16) {
    let body = json!({"model": "scripted", "n": n, "messages": [{"role": "user", "content": content}]});
    let reply = client.post("/v1/chat/completions", body.to_string()).await.unwrap();
    assert_eq!(reply.status, status, "{reply:?}");
}

/// The day of each charge: the statement's, in the order of the calls, for midnight may pass between them.
fn days(server: &TestServer) -> Vec<String> {
    let rows = server.json(&["audit", "--by", "day"], 0)["by"].clone();
    let of_day = |row: &Value| {
        let count = usize::try_from(row["exchanges"].as_u64().unwrap()).unwrap();
        vec![row["day"].as_str().unwrap().to_owned(); count]
    };
    rows.as_array().unwrap().iter().flat_map(of_day).collect()
}

/// The bill in three forms: OpenAI's usage and costs exports, and a CSV of a provider's own.
fn exports(upstream: &Upstream, server: &TestServer) {
    let mut usage =
        "start_time_iso,model,num_model_requests,input_tokens,output_tokens,input_cached_tokens\n".to_owned();
    let mut costs = "start_time_iso,amount_value,amount_currency,line_item\n".to_owned();
    let mut own = "Day,Name,Requests,Tokens,Dollars\n".to_owned();
    let (charges, days) = (upstream.charges(), days(server));
    assert_eq!(charges.len(), days.len());
    for (charge, day) in charges.iter().zip(days) {
        let usd = Bill::of(std::slice::from_ref(charge), |_| true).usd();
        let (input, output) = (charge.input_tokens, charge.output_tokens);
        let cached = charge.cached_tokens;
        writeln!(usage, "{day}T00:00:00+00:00,scripted-2026-01-01,1.0,{input}.0,{output}.0,{cached}.0")
            .unwrap();
        writeln!(costs, "{day}T00:00:00+00:00,{usd}0000000,usd,\"scripted, Input\"").unwrap();
        writeln!(own, "{day},\"Scripted \"\"One\"\"\",1,{},{usd}", input + output).unwrap();
    }
    for (name, text) in [("usage.csv", usage), ("costs.csv", costs), ("own.csv", own)] {
        fs::write(server.folder().join(name), text).unwrap();
    }
}

const OWN: [&str; 4] = [
    "--columns",
    "day=Day,model=Name,calls=Requests,tokens=Tokens,usd=Dollars",
    "--rename",
    "Scripted \"One\"=scripted",
];

fn reconcile(server: &TestServer, file: &str, more: &[&str], exit: i32) -> Value {
    server.json(&[&["audit", "--reconcile", file][..], more].concat(), exit)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_statement_adds_up_with_the_teachers_exports() {
    let upstream = Upstream::start().await;
    let (server, client) = served(&upstream, "").await;
    ask(&client, "how much is one", 1, 200).await;
    ask(&client, "how much are two [cached 7]", 2, 200).await;
    ask(&client, "how much is one", 1, 200).await;
    let texts = json!({"model": "scripted", "input": ["a text", "another text"]}).to_string();
    assert_eq!(client.post("/v1/embeddings", texts).await.unwrap().status, 200);
    exports(&upstream, &server);
    for (file, more) in [
        ("usage.csv", &[][..]),
        ("usage.csv", &["--format", "openai", "--teacher", "scripted"]),
        ("costs.csv", &["--format", "openai"]),
        ("own.csv", &OWN),
    ] {
        let shown = reconcile(&server, file, more, 0);
        assert_eq!(shown["adds_up"], true, "{shown}");
        assert_eq!(shown["discrepancies"], 0);
    }
    let bill = upstream.bill();
    // Five inferences, three requests: a provider counts requests.
    assert_eq!((bill.requests, bill.inferences), (3, 5));
    let shown = reconcile(&server, "own.csv", &OWN, 0)["totals"]["figures"].clone();
    assert_eq!(shown["calls"]["statement"], 3);
    assert_eq!(shown["tokens"]["bill"], bill.tokens);
    assert_eq!(shown["usd"]["bill"], bill.usd());
    assert_eq!(shown["usd"]["delta"], "0.000000000");
    assert!(upstream.charges().iter().any(|charge| charge.cached_tokens > 0));

    // One token more than was recorded is a difference.
    let usage = fs::read_to_string(server.folder().join("usage.csv")).unwrap();
    let input = upstream.charges()[0].input_tokens;
    let other = usage.replacen(&format!(",{input}.0,"), &format!(",{}.0,", input + 1), 1);
    fs::write(server.folder().join("other.csv"), other).unwrap();
    let shown = reconcile(&server, "other.csv", &[], 1)["rows"][0]["figures"].clone();
    assert_eq!((&shown["input"]["delta"], &shown["input"]["finding"]), (&json!(1), &json!("unexplained")));
    assert_eq!(shown["calls"]["finding"], "equal");
    // Outside the days that are asked for there is nothing to compare.
    assert_eq!(reconcile(&server, "other.csv", &["--until", "2026-01-01"], 0)["rows"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_call_that_was_billed_is_named() {
    let upstream = Upstream::start().await;
    let (server, client) = served(&upstream, "timeout_s = 1").await;
    ask(&client, "answered", 1, 200).await;
    ask(&client, "never answered [stall]", 1, 504).await;
    exports(&upstream, &server);
    let id = server.json(&["audit"], 0)["unknown"][0]["id"].clone();
    let shown = reconcile(&server, "usage.csv", &[], 1);
    let row = shown["rows"].as_array().unwrap().iter().find(|row| row["adds_up"] == false).unwrap();
    assert_eq!((&row["model"], &row["unknown"][0]["id"]), (&json!("scripted"), &id), "{row}");
    for (figure, finding) in [
        ("calls", "unknown_calls"),
        ("input", "unknown_calls"),
        ("output", "unknown_calls"),
        ("cached_input", "equal"),
    ] {
        assert_eq!(row["figures"][figure]["finding"], finding, "{row}");
    }
    assert_eq!(row["figures"]["calls"]["delta"], 1);
    let output = server.run(&["audit", "--reconcile", "usage.csv"]);
    let page = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        page.contains(&format!("call {id} (unknown, up to ")) && page.contains("would explain it"),
        "{page}"
    );

    // Its dollars lie within what is held; once it is closed as billed, the whole hold is charged, and named.
    let usd = |shown: &Value| shown["totals"]["figures"]["usd"].clone();
    let billed = Bill::of(&upstream.charges()[1..], |_| true);
    let shown = usd(&reconcile(&server, "own.csv", &OWN, 1));
    assert_eq!((&shown["delta"], &shown["finding"]), (&json!(billed.usd()), &json!("unknown_calls")));
    server.json(&["resolve", &id.to_string(), "--billed", "--why", "it is on the bill"], 0);
    let shown = reconcile(&server, "own.csv", &OWN, 1);
    assert!(usd(&shown)["delta"].as_str().unwrap().starts_with("-0.00"), "{shown}");
    for (figure, finding) in [("calls", "equal"), ("tokens", "whole_holds"), ("usd", "whole_holds")] {
        assert_eq!(shown["totals"]["figures"][figure]["finding"], finding, "{shown}");
    }
    assert_eq!(shown["totals"]["charged_whole"][0]["id"], id);
    assert_eq!(shown["totals"]["unknown"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_reconciled_is_refused_by_name() {
    let upstream = Upstream::start().await;
    let (server, client) = served(&upstream, "").await;
    ask(&client, "one", 1, 200).await;
    exports(&upstream, &server);
    for (file, more, words) in [
        ("nowhere.csv", &[][..], &["`nowhere.csv`", "No such file"][..]),
        ("own.csv", &[], &["`own.csv`", "`Requests`", "OpenAI", "--columns"]),
        ("own.csv", &["--format", "openai"], &["num_model_requests", "`Requests`"]),
        ("own.csv", &["--format", "generic"], &["--format generic", "--columns day="]),
        ("own.csv", &["--format", "openai", OWN[0], OWN[1]], &["`--columns`"]),
        ("own.csv", &["--columns", "day=Day,model=Nmae,usd=Dollars"], &["`Nmae`", "did you mean `Name`?"]),
        (
            "own.csv",
            &["--columns", "day=Name,model=Name,usd=Dollars"],
            &["line 2", "column `Name`", "no day"],
        ),
        ("usage.csv", &["--teacher", "scriptde"], &["`scriptde`", "did you mean `scripted`?"]),
        ("usage.csv", &["--rename", "scripte=m"], &["`scripte`", "did you mean `scripted`?"]),
        ("usage.csv", &["--since", "2026-01-01T01:00:00Z"], &["`--since`", "name a day"]),
    ] {
        let arguments = [&["audit", "--reconcile", file][..], more].concat();
        let output = server.run(&arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{arguments:?}: `{word}` is not in: {said}");
        }
    }
}
