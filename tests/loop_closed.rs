//! The loop closed: answers that a client bought through the proxy from a server nobody here wrote become a student,
//! with the teacher and the proxy gone; and the student's own ONNX file is the next teacher.
//! Wants the Python packages `infer` and ONNX Runtime.

use crate::support::{Client, Python, TestServer, Upstream, price, teacher};
use serde_json::{Value, json};
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Digits that the client asks about: training and validation, and the held-out part.
const DIGITS: usize = 600;
const FIRST_RUN: &str = r#"
name = "digits-ckd"
[teacher]
name = "digits"
[data]
source = "record"
run = "digits"
test = 0.3
[budget]
calls = 350
[student]
kind = "mlp"
hidden = [32]
[method]
losses = [{ kind = "ckd", form = "mse", weight = 1.0 }]
[train]
steps = 600
lr = 1e-2
seeds = [0]
"#;

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn mean(report: &Value, measure: &str) -> f64 {
    report["test"][measure]["mean"].as_f64().unwrap_or_else(|| panic!("no `{measure}` in {report}"))
}

fn report(server: &TestServer, run: &str) -> Value {
    let path = server.folder().join("runs").join(run).join("report.json");
    serde_json::from_str(
        &fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
    )
    .unwrap()
}

async fn digits(arguments: &[&str]) -> Value {
    Python::with("infer").run("digits.py", arguments, &Value::Null).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_bought_becomes_a_student_and_the_student_a_teacher() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().to_str().unwrap();
    let ports: Vec<String> = (0..3).map(|_| free_port().to_string()).collect();
    let fitted = digits(&["fit", folder, &ports[0], &ports[1], &ports[2]]).await;
    assert!(fitted["accuracy"].as_f64().unwrap() > 0.85, "{fitted}");
    let mlserver =
        Python::with("infer").start("digits.py", &["serve", folder], &place.path().join("mlserver.log"));
    let direct = Client::new(&format!("http://127.0.0.1:{}", ports[0]));
    direct.until_ready("/v2/models/digits/ready").await;

    let teacher_table = format!(
        "[[teacher]]\nname = \"digits\"\napi = \"open-inference\"\nurl = \"http://127.0.0.1:{}\"\nrevision = \"1\"\nbatch_axis = 0\n\
         ask = {{ model = \"digits\", input = \"predict\", datatype = \"FP64\", outputs = [\"predict_proba\"] }}\n\
         [[budget]]\nname = \"digits\"\nrun = \"digits\"\ncalls = {DIGITS}\n",
        ports[0]
    );
    let mut server = TestServer::start(&teacher_table);
    let address = server.url().trim_start_matches("http://").to_owned();
    let count = DIGITS.to_string();
    let bought = digits(&["ask", &address, &count]).await;
    assert_eq!(bought["classes"].as_array().unwrap().len(), DIGITS);
    // The second time everything is known: the budget has nothing left, and nobody notices.
    assert_eq!(digits(&["ask", &address, &count]).await, bought);
    let client = Client::new(&server.url());
    assert_eq!(client.statement().await.total("settled").calls, DIGITS as u64);
    fs::copy(place.path().join("digits.csv"), server.folder().join("digits.csv")).unwrap();
    let taught = a_data_set_is_asked_over_http(&server);
    server.kill();
    mlserver.kill().await;
    // Nobody can be asked any more: what was bought is all that is needed, and the numbers are the same to the bit.
    server.json(&["train", "taught.toml", "--offline"], 0);
    assert_eq!(report(&server, "taught")["test"], taught["test"]);

    fs::write(server.folder().join("run.toml"), FIRST_RUN).unwrap();
    let trained = server.json(&["train", "run.toml", "--offline"], 0);
    let first = report(&server, "digits-ckd");
    assert!(mean(&first, "agreement") > 0.85, "{first}");
    assert_eq!(first["calls"], 350, "{trained}");
    let audit = server.json(&["audit", "--verify"], 0);
    let of_others: u64 = ["asked", "taught", "taught/test"].iter().map(|run| settled(&server, run)).sum();
    let settled = audit["totals"]["calls"]["settled"].as_u64().unwrap();
    assert_eq!(settled, DIGITS as u64 + of_others, "training bought something");
    run_folder_is_whole(&server.folder().join("runs/digits-ckd"));

    everything_works_beside_a_loaded_serve(&mut server).await;
}

/// `label`, `plan` and `train` ask a server whose metadata are empty, by what its table says; beside a running `serve`.
fn a_data_set_is_asked_over_http(server: &TestServer) -> Value {
    let label = |command: &str| {
        let arguments = "--teacher digits --data digits.csv --label label --run asked --calls 60";
        let arguments: Vec<&str> = std::iter::once(command).chain(arguments.split(' ')).collect();
        server.json(&arguments, 0)
    };
    let plan = label("plan");
    assert_eq!((&plan["known"], &plan["unknown"]), (&json!(0), &json!(60)), "{plan}");
    let bought = label("label");
    assert_eq!((&bought["bought"], &bought["calls"]), (&json!(60), &json!(60)), "{bought}");
    let again = label("label");
    assert_eq!((&again["known"], &again["calls"]), (&json!(60), &json!(0)), "{again}");
    assert_eq!(settled(server, "asked"), 60);
    let run = FIRST_RUN
        .replace("name = \"digits-ckd\"", "name = \"taught\"")
        .replace(
            "source = \"record\"\nrun = \"digits\"",
            "source = \"csv\"\npath = \"digits.csv\"\nlabel = \"label\"",
        )
        .replace("test = 0.3", "test = 0.03")
        .replace("calls = 350", "calls = 60");
    fs::write(server.folder().join("taught.toml"), run).unwrap();
    server.json(&["train", "taught.toml"], 0);
    let taught = report(server, "taught");
    assert_eq!(taught["calls"], 60, "{taught}");
    // The same order of buying: only what the one held out and the other did not is bought anew.
    assert!(settled(server, "taught") < 10, "the labelled answers are bought again");
    let held_out = settled(server, "taught/test");
    assert!((30..80).contains(&held_out), "3 % of 1,797 rows are held out, and {held_out} were bought");
    taught
}

/// The calls that a run has settled.
fn settled(server: &TestServer, run: &str) -> u64 {
    let by = server.json(&["audit", "--by", "run"], 0)["by"].clone();
    let row = by.as_array().unwrap().iter().find(|row| row["run"] == run).cloned();
    row.map_or(0, |row| row["calls"]["settled"].as_u64().unwrap())
}

/// The exported student is a local ONNX teacher now. While `serve` is under load, every other command does its job.
async fn everything_works_beside_a_loaded_serve(server: &mut TestServer) {
    let upstream = Upstream::start().await;
    let model = server.folder().join("runs/digits-ckd/model/model.onnx");
    let config = |own_address: &str| {
        format!(
            "{}\n{}\n[[teacher]]\nname = \"student\"\napi = \"onnx\"\npath = \"{}\"\nrevision = \"1\"\nhidden = {{ every = 1, width = 16 }}\n\
             [[teacher]]\nname = \"young\"\napi = \"onnx\"\npath = \"{}\"\nrevision = \"0\"\n\
             [[teacher]]\nname = \"remote\"\napi = \"open-inference\"\nurl = \"{}\"\nmodels = [\"student\"]\nbatch_axis = 0\n\
             [[budget]]\nname = \"served\"\nteacher = \"student\"\ncalls = 100000\n\
             [[budget]]\nname = \"younger\"\nteacher = \"young\"\ncalls = 50\n\
             [[budget]]\nname = \"load\"\nteacher = \"scripted\"\ncalls = 1000000\nusd = \"50.00\"\n",
            teacher(&upstream, "timeout_s = 1"),
            price(),
            model.display(),
            model.display(),
            own_address
        )
    };
    server.configure("", &config("http://127.0.0.1:9"));
    server.restart();
    // The address is known now; the other commands read the file anew.
    server.configure("", &config(&server.url()));
    let client = Client::new(&server.url());
    let stalled = client.post("/v1/chat/completions", question("[stall]")).await.unwrap();
    assert_eq!(stalled.status, 504, "{stalled:?}");
    let load = Load::start(&client);

    let label = |calls: &'static str| {
        [
            "--teacher",
            "student",
            "--data",
            "digits.csv",
            "--label",
            "label",
            "--run",
            "second",
            "--calls",
            calls,
        ]
    };
    let with = |command: &'static str, arguments: [&'static str; 10]| {
        let mut all = vec![command];
        all.extend(arguments);
        all
    };
    let plan = server.json(&with("plan", label("200")), 0);
    assert_eq!((&plan["known"], &plan["unknown"]), (&json!(0), &json!(200)), "{plan}");
    assert_eq!(settled(server, "second"), 0, "`plan` bought something");

    server.json(&with("label", label("120")), 0);
    assert_eq!(settled(server, "second"), 120);
    server.json(&with("label", label("200")), 0);
    assert_eq!(settled(server, "second"), 200, "N is the run's total, also when resumed");
    let plan = server.json(&with("plan", label("200")), 0);
    assert_eq!((&plan["known"], &plan["unknown"]), (&json!(200), &json!(0)), "{plan}");

    let run = FIRST_RUN
        .replace("digits-ckd", "second")
        .replace("name = \"digits\"", "name = \"student\"")
        .replace("run = \"digits\"", "run = \"second\"")
        .replace("calls = 350", "calls = 100");
    fs::write(server.folder().join("second.toml"), &run).unwrap();
    server.json(&["train", "second.toml", "--offline"], 0);
    let second = report(server, "second");
    assert!(mean(&second, "agreement") > 0.7, "{second}");
    assert_eq!(settled(server, "second"), 200, "`--offline` bought something");

    // The same answers teach a second student layer by layer: what they hold of the teacher's inside was bought with them.
    let curriculum = run
        .replace("name = \"second\"", "name = \"extracted\"")
        .replace("hidden = [32]", "hidden = [24, 16]")
        .replace("[train]", "curriculum = { steps = 150 }\n[train]");
    fs::write(server.folder().join("extracted.toml"), &curriculum).unwrap();
    server.json(&["train", "extracted.toml", "--offline"], 0);
    let extracted = report(server, "extracted");
    assert!(mean(&extracted, "agreement") > 0.7, "{extracted}");
    assert_eq!(extracted["method"], "curriculum, then ckd", "{extracted}");
    assert_eq!(settled(server, "second"), 200, "the curriculum bought something");
    let without =
        curriculum.replace("run = \"second\"", "run = \"digits\"").replace("\"student\"", "\"digits\"");
    fs::write(server.folder().join("without.toml"), without).unwrap();
    let refused = server.run(&["train", "without.toml", "--offline"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success()
            && said.contains("holds none, but the run learns from the teacher's hidden tensors"),
        "{said}"
    );

    let from_csv = run.replace("name = \"second\"", "name = \"third\"").replace(
        "source = \"record\"\nrun = \"second\"",
        "source = \"csv\"\npath = \"digits.csv\"\nlabel = \"label\"",
    );
    fs::write(server.folder().join("third.toml"), from_csv).unwrap();
    server.json(&["train", "third.toml", "--offline"], 1);
    server.json(&["train", "third.toml"], 0);
    let third = report(server, "third");
    assert!(mean(&third, "accuracy") > 0.6, "{third}");
    // Again, offline: everything is known, and the numbers are the same to the bit.
    server.json(&["train", "third.toml", "--offline"], 0);
    assert_eq!(report(server, "third")["test"], third["test"]);

    // Progressive distillation asks an earlier checkpoint about what is learnt from, within its own budget; once.
    let progressive = fs::read_to_string(server.folder().join("third.toml"))
        .unwrap()
        .replace("name = \"third\"", "name = \"fourth\"")
        .replace("name = \"student\"", "name = \"student\"\ncheckpoints = [\"young\"]")
        .replace("calls = 100", "calls = 50")
        .replace("[train]", "progressive = { steps = 100 }\n[train]");
    fs::write(server.folder().join("fourth.toml"), &progressive).unwrap();
    server.json(&["train", "fourth.toml"], 0);
    assert_eq!(report(server, "fourth")["method"], "progressive, then ckd");
    assert_eq!(settled(server, "fourth/checkpoint.young"), 50);
    server.json(&["train", "fourth.toml", "--offline"], 0);
    assert_eq!(settled(server, "fourth/checkpoint.young"), 50, "`--offline` bought something");
    let idle = progressive.replace("progressive = { steps = 100 }\n", "");
    fs::write(server.folder().join("idle.toml"), idle).unwrap();
    let refused = server.run(&["train", "idle.toml", "--offline"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("their answers cost"), "{said}");

    // A teacher over HTTP whose metadata say what its rows are: the student behind this very proxy.
    let remote = "label --teacher remote --data digits.csv --label label --run remote --calls 20";
    let remote = server.json(&remote.split(' ').collect::<Vec<_>>(), 0);
    assert_eq!((&remote["bought"], &remote["stopped"]), (&json!(20), &json!(null)), "{remote}");

    let added = server.json(&["budget", "add", "more", "--run", "later", "--calls", "7"], 0);
    assert_eq!(added["budgets"][0]["limit"]["calls"], 7, "{added}");
    let limited = client.with("x-tuition-run", "later");
    let texts: Vec<String> = (0..8).map(|at| format!("later {at}")).collect();
    let refused = limited
        .post("/v1/embeddings", json!({"model": "scripted", "input": texts}).to_string())
        .await
        .unwrap();
    assert_eq!(refused.status, 402, "the new limit is not in force: {refused:?}");

    let unknown = server.json(&["audit"], 0)["unknown"][0]["id"].as_u64().unwrap().to_string();
    server.json(&["resolve", &unknown, "--free", "--why", "not on the bill"], 0);
    let answered = load.stop().await;
    assert!(answered > 50, "only {answered} answers: `serve` was not under load");

    let audit = server.json(&["audit", "--verify"], 0);
    assert_eq!((&audit["discrepancies"], &audit["unknown"]), (&json!([]), &json!([])));
    // The stalled call is on the teacher's bill: a person said otherwise, and the record says who was believed.
    let bill = upstream.bill();
    assert_eq!(client.statement().await.budget("load")["settled"]["calls"], bill.inferences - 1);
}

fn question(content: &str) -> String {
    json!({"model": "scripted", "messages": [{"role": "user", "content": content}]}).to_string()
}

/// Clients that ask new questions until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<u64>>,
}

impl Load {
    const CLIENTS: usize = 4;

    fn start(client: &Client) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let work = |at: usize| {
            let (client, stop) = (client.clone(), Arc::clone(&stop));
            async move {
                let mut answered = 0;
                while !stop.load(Ordering::Relaxed) {
                    let body = question(&format!("load {at} {answered} [slow 20]"));
                    let reply = client.post("/v1/chat/completions", body).await.unwrap();
                    assert_eq!(reply.status, 200, "{reply:?}");
                    answered += 1;
                }
                answered
            }
        };
        let clients = (0..Load::CLIENTS).map(|at| tokio::spawn(work(at))).collect();
        Load { stop, clients }
    }

    /// Answers in all.
    async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let mut answered = 0;
        for client in self.clients {
            answered += client.await.unwrap();
        }
        answered
    }
}

fn run_folder_is_whole(folder: &Path) {
    for name in [
        "config.toml",
        "manifest.json",
        "metrics.jsonl",
        "checkpoints",
        "report.html",
        "report.json",
        "model/config.json",
        "model/model.safetensors",
        "model/model.onnx",
        "model/README.md",
    ] {
        assert!(folder.join(name).exists(), "{name} is missing in the run folder");
    }
    let report: Value =
        serde_json::from_str(&fs::read_to_string(folder.join("report.json")).unwrap()).unwrap();
    for member in ["method", "calls", "seeds", "test", "teacher", "student_alone", "spend"] {
        assert_ne!(report[member], json!(null), "`{member}` is missing in report.json");
    }
}
