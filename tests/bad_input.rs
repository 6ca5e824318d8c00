//! Bad input: a clear error that names the thing, the nearest known name where there is one, and nothing changed.
//! Wants nothing but the built command, and ONNX Runtime for the rows about models.

use crate::support::{Client, TestServer, Upstream, price, teacher, tuition};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

const END_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs a command in a folder that holds `files`; it must fail with 2, say each of `words`, and leave the files alone.
fn check(files: &[(&str, &[u8])], arguments: &[&str], words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let mut child =
        tuition(folder.path(), arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > END_TIMEOUT {
            child.kill().unwrap();
            panic!("{arguments:?} did not end: it was not refused");
        }
        std::thread::yield_now();
    }
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{arguments:?}: `{word}` is not in: {said}");
    }
    assert!(!said.contains("panicked"), "{arguments:?}: {said}");
    for (name, content) in files {
        assert_eq!(fs::read(folder.path().join(name)).unwrap(), *content, "{arguments:?} changed `{name}`");
    }
}

fn check_config(text: &str, words: &[&str]) {
    check(&[("tuition.toml", text.as_bytes())], &["serve"], words);
}

const TEACHER: &str =
    "[[teacher]]\nname = \"gpt\"\napi = \"openai\"\nurl = \"http://127.0.0.1:9/v1\"\nrevision = \"1\"\n";

#[test]
fn a_configuration_is_refused_by_its_key_and_its_line() {
    check_config("[serve]\nlissten = \"127.0.0.1:0\"", &["tuition.toml", "line 2", "`lissten`", "`listen`"]);
    check_config("[[teechar]]\nname = \"x\"", &["`teechar`", "`teacher`"]);
    check_config(&TEACHER.replace("openai", "opnai"), &["teacher.gpt.api", "`opnai`", "`openai`"]);
    check_config(&TEACHER.replace("http://", "ftp://"), &["teacher.gpt.url"]);
    check_config("[[budget]]\nname = \"pilot\"\nusd = 20.00", &["line 3", "\"20.00\""]);
    check_config("[[budget]]\nname = \"pilot\"\nusd = \"twenty\"", &["budget.pilot.usd", "twenty"]);
    check_config("[[budget]]\nname = \"pilot\"\ncalls = -5", &["line 3"]);
    check_config("[[budget]]\nname = \"pilot\"", &["budget.pilot"]);
    check_config(
        "[[budget]]\nname = \"pilot\"\ncalls = 5\nteacher = \"gtp\"",
        &["budget.pilot.teacher", "`gtp`"],
    );
    check_config(
        "[[budget]]\nname = \"pilot\"\ncalls = 5\nwindow = \"dya\"",
        &["budget.pilot.window", "`dya`"],
    );
    check_config("[serve", &["tuition.toml", "line 1"]);
    check_config(&format!("{TEACHER}key_env = \"TUITION_IS_NOT_SET\""), &["`gpt`", "`TUITION_IS_NOT_SET`"]);
    check_config("[serve]\nlisten = \"0.0.0.0:0\"", &["[[key]]"]);
    check_config("[store]\nurl = \"sqlite:./x\"", &["store.url", "sqlite"]);
}

#[test]
fn an_argument_that_names_nothing_is_refused() {
    let config: &[(&str, &[u8])] = &[("tuition.toml", b"[[budget]]\nname = \"pilot\"\ncalls = 5\n")];
    check(config, &["--config", "nowhere.toml", "audit"], &["`nowhere.toml`"]);
    check(config, &["resolve", "7", "--free", "--why", "x"], &["7"]);
    check(config, &["train", "nowhere.toml"], &["nowhere.toml"]);
    check(config, &["label", "--teacher", "gpt", "--data", "x.csv", "--run", "r"], &["`gpt`"]);
}

#[test]
fn a_run_file_is_refused_by_its_key() {
    let run = "name = \"r\"\n[teacher]\nname = \"gpt\"\n[data]\nsource = \"csv\"\npath = \"d.csv\"\n[budget]\ncalls = 5\n\
               [student]\nkind = \"mlp\"\nhidden = [4]\n[method]\nlosses = [{ kind = \"kd\" }]\n";
    let with = |run: String, words: &[&str]| {
        let files: [(&str, &[u8]); 2] = [("tuition.toml", TEACHER.as_bytes()), ("run.toml", run.as_bytes())];
        check(&files, &["train", "run.toml"], words);
    };
    with(run.replace("hidden", "hiden"), &["`hiden`", "`hidden`"]);
    with(run.replace("\"kd\"", "\"kdd\""), &["`kdd`", "`kd`"]);
    with(run.replace("calls = 5", "calls = 0"), &["budget.calls"]);
    with(run.replace("name = \"gpt\"", "name = \"gtp\""), &["`gtp`", "`gpt`"]);
    with(run.to_owned(), &["`gpt`", "Open Inference", "x-tuition-run"]);
}

#[test]
fn data_and_models_are_refused_by_their_file() {
    let onnx = "[[teacher]]\nname = \"local\"\napi = \"onnx\"\npath = \"model.onnx\"\nrevision = \"1\"\n[[budget]]\nname = \"b\"\ncalls = 9\n";
    let label = &["label", "--teacher", "local", "--data", "d.csv", "--run", "r"];
    let with = |model: &[u8], data: &[u8], words: &[&str]| {
        check(&[("tuition.toml", onnx.as_bytes()), ("model.onnx", model), ("d.csv", data)], label, words);
    };
    with(b"this is no model", b"a,b\n1,2\n", &["model.onnx"]);
    let sums = sums_model();
    with(&sums, b"", &["d.csv", "empty"]);
    with(&sums, b"a,b\n1,2\n3\n", &["d.csv", "line 3"]);
    with(&sums, b"a,b\n1,2\n3,x\n", &["d.csv", "line 3", "`b`", "`x`"]);
    with(&sums, b"a,b,c\n1,2,3\n", &["x"]);
    check(&[("tuition.toml", onnx.as_bytes()), ("model.onnx", &sums)], label, &["d.csv"]);
}

#[test]
fn a_store_of_a_newer_format_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let config = "[[budget]]\nname = \"pilot\"\ncalls = 5\n";
    fs::write(folder.path().join("tuition.toml"), config).unwrap();
    let add = tuition(folder.path(), &["budget", "add", "more", "--calls", "3"]).output().unwrap();
    assert!(add.status.success(), "{add:?}");
    let journal = journal_of(&folder.path().join("tuition.store"));
    let mut bytes = fs::read(&journal).unwrap();
    // The version is the first number after the magic word: whichever byte holds it, the file is no longer readable.
    let version = bytes.iter().position(|byte| *byte == 1).expect("format 1 says so");
    bytes[version] = 2;
    fs::write(&journal, &bytes).unwrap();
    for arguments in
        [&["audit"][..], &["serve", "--listen", "127.0.0.1:0"], &["budget", "set", "more", "--calls", "4"]]
    {
        let output = tuition(folder.path(), arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains("format 2") || said.contains("newer"), "{arguments:?}: {said}");
        assert_eq!(fs::read(&journal).unwrap(), bytes, "{arguments:?} changed the journal");
    }
}

fn journal_of(store: &Path) -> std::path::PathBuf {
    let mut found: Vec<_> = fs::read_dir(store)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("journal"))
        .collect();
    found.sort();
    found.into_iter().find(|path| path.is_file()).expect("the store has a journal")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_refused_by_its_field_and_nothing_is_held() {
    let upstream = Upstream::start().await;
    let budget = "[[budget]]\nname = \"pilot\"\nusd = \"1.00\"";
    let server = TestServer::start(&format!("{}\n{}\n{budget}", teacher(&upstream, ""), price()));
    let client = Client::new(&server.url());
    let chat = "/v1/chat/completions";
    let large = format!("{{\"model\":\"scripted\",\"messages\":[],\"x\":\"{}\"}}", "y".repeat(33 << 20));
    let rows = [
        (chat, 400, "{\"model\":\"scripted\"".to_owned(), ""),
        (chat, 400, "[]".to_owned(), ""),
        (chat, 400, json!({"messages": [{"role": "user", "content": "x"}]}).to_string(), "`model`"),
        (chat, 400, "{\"model\":\"scripted\",\"model\":\"scripted\",\"messages\":[]}".to_owned(), "`model`"),
        (
            chat,
            400,
            json!({"model": "scripted", "n": 0, "messages": [{"role": "user", "content": "x"}]}).to_string(),
            "`n`",
        ),
        ("/v1/embeddings", 400, json!({"model": "scripted"}).to_string(), "`input`"),
        ("/v1/embeddings", 400, json!({"model": "scripted", "input": []}).to_string(), "`input`"),
        (
            chat,
            402,
            json!({"model": "nobody-priced", "messages": [{"role": "user", "content": "x"}]}).to_string(),
            "`nobody-priced`",
        ),
        (chat, 413, large, ""),
    ];
    for (path, status, body, word) in rows {
        let shown: String = body.chars().take(100).collect();
        let reply = client.post(path, body).await.unwrap();
        assert_eq!(reply.status, status, "{shown}: {reply:?}");
        let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(word), "{shown}: {message}");
    }
    assert_eq!(upstream.asked(), 0);
    assert_eq!(client.statement().await.committed().calls, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tensor_that_does_not_fit_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.onnx");
    fs::write(&model, sums_model()).unwrap();
    let server = TestServer::start(&format!(
        "[[teacher]]\nname = \"sums\"\napi = \"onnx\"\npath = \"{}\"\nrevision = \"1\"\n[[budget]]\nname = \"b\"\ncalls = 9\n",
        model.display()
    ));
    let client = Client::new(&server.url());
    let ask = |name: &str, datatype: &str, shape: &[usize], data: serde_json::Value| {
        let body = json!({"inputs": [{"name": name, "datatype": datatype, "shape": shape, "data": data}]});
        let client = client.clone();
        async move { client.post("/v2/models/sums/infer", body.to_string()).await.unwrap() }
    };
    let fine = ask("x", "FP32", &[2, 2], json!([1, 2, 3, 4])).await;
    assert_eq!(fine.status, 200, "{fine:?}");
    let sums: Vec<f64> = serde_json::from_value(fine.json()["outputs"][0]["data"].clone()).unwrap();
    assert_eq!(sums, [3.0, 7.0]);
    for (reply, word) in [
        (ask("y", "FP32", &[1, 2], json!([1, 2])).await, "`y`"),
        (ask("x", "INT64", &[1, 2], json!([1, 2])).await, "`x`"),
        (ask("x", "FP32", &[1, 3], json!([1, 2, 3])).await, "`x`"),
        (ask("x", "FP32", &[1, 2], json!([1, 2, 3])).await, "`x`"),
    ] {
        assert_eq!(reply.status, 400, "{reply:?}");
        assert!(reply.body.contains(word), "{reply:?}");
    }
    assert_eq!(client.statement().await.committed().calls, 2);
}

/// An ONNX model by hand: `x` of f32[n, 2], `sums = ReduceSum(x, axis 1)` of f32[n, 1]; each field is a protobuf field.
fn sums_model() -> Vec<u8> {
    let field = |number: u8, body: &[u8]| {
        let mut bytes = vec![number << 3 | 2, u8::try_from(body.len()).expect("a small model")];
        bytes.extend_from_slice(body);
        bytes
    };
    let number = |field: u8, value: u8| vec![field << 3, value];
    let dimension = |value: Option<u8>| match value {
        Some(value) => field(1, &number(1, value)),
        None => field(1, &field(2, b"n")),
    };
    let value_info = |name: &[u8], columns: u8| {
        let shape = field(2, &[dimension(None), dimension(Some(columns))].concat());
        let tensor = field(1, &[number(1, 1), shape].concat());
        [field(1, name), field(2, &tensor)].concat()
    };
    // axes = [1] as an initializer of INT64: dims, data_type, int64_data, name.
    let axes = [number(1, 1), number(2, 7), number(7, 1), field(8, b"axes")].concat();
    let node = [field(1, b"x"), field(1, b"axes"), field(2, b"sums"), field(4, b"ReduceSum")].concat();
    let graph = [
        field(1, &node),
        field(2, b"sums"),
        field(5, &axes),
        field(11, &value_info(b"x", 2)),
        field(12, &value_info(b"sums", 1)),
    ]
    .concat();
    [number(1, 8), field(7, &graph), field(8, &number(2, 13))].concat()
}
