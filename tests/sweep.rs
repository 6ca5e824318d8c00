//! Methods, budgets and seeds on the same bought answers, with a real ONNX teacher. Wants ONNX Runtime.
//! Invariant: whatever a sweep went through (an interrupt, a lost report, a budget), it ends in the same bytes.

use crate::support::{linear_model, tuition};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStderr, Output, Stdio};
use tempfile::TempDir;

const WEIGHTS: [[f32; 3]; 2] = [[2.0, -1.0, -1.0], [0.0, 1.7, -1.7]];
const HELD_OUT: u64 = 25;
const ROWS: usize = 160;
const RUN: &str = r#"
name = "base"
[teacher]
name = "linear"
gives = "logits"
[data]
source = "csv"
path = "learn.csv"
label = "class"
test = "test.csv"
[budget]
calls = 1
[student]
kind = "mlp"
hidden = [8]
[method]
losses = [{ kind = "labels" }]
[train]
steps = 400
batch = 16
lr = 1e-2
"#;
const SWEEP: &str = r#"
name = "s"
run = "base.toml"
budgets = [20, 40]
seeds = [0, 1]
jobs = 2
baseline = "labels"
[[method]]
name = "labels"
[[method]]
name = "kd"
over.method.losses = [{ kind = "labels" }, { kind = "kd", temperature = 2.0 }]
"#;

/// Points of a spiral, and which of the teacher's scores is the highest.
fn rows(count: usize, turn: f32) -> String {
    let row = |at: usize| {
        let (angle, radius) = (at as f32 * 2.4 + turn, 0.2 + at as f32 / count as f32);
        let point = [radius * angle.cos(), radius * angle.sin()];
        let score = |class: usize| (0..2).map(|at| point[at] * WEIGHTS[at][class]).sum::<f32>();
        let class = (0..3).max_by(|a, b| score(*a).total_cmp(&score(*b))).unwrap();
        format!("{:.4},{:.4},{class}\n", point[0], point[1])
    };
    (0..count).map(row).fold("a,b,class\n".to_owned(), |all, row| all + &row)
}

/// A folder with the teacher, the data and a sweep; the table is added to tuition.toml.
fn folder(sweep: &str, table: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let teacher = "[[teacher]]\nname = \"linear\"\napi = \"onnx\"\npath = \"linear.onnx\"\nrevision = \"1\"\n\
                   [[price]]\nmodel = \"linear\"\nfrom = \"2026-01-01\"\nrequest = \"0.001\"\n";
    fs::write(folder.path().join("linear.onnx"), linear_model(WEIGHTS)).unwrap();
    for (name, text) in [
        ("learn.csv", rows(ROWS, 0.0).as_str()),
        ("test.csv", &rows(usize::try_from(HELD_OUT).unwrap(), 1.0)),
        ("tuition.toml", &format!("{teacher}{table}")),
        ("base.toml", RUN),
        ("sweep.toml", sweep),
    ] {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn output(folder: &Path, arguments: &[&str]) -> Output {
    tuition(folder, arguments).arg("--json").stdin(Stdio::null()).output().unwrap()
}

fn json_of(folder: &Path, arguments: &[&str], exit: i32) -> Value {
    let output = output(folder, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{arguments:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {said}"))
}

fn results(folder: &Path) -> String {
    fs::read_to_string(folder.join("runs/s/sweep.json")).unwrap()
}

#[test]
fn every_answer_is_bought_once_and_an_interrupted_sweep_ends_in_the_same_bytes() {
    let folder = folder(SWEEP, "");
    let folder = folder.path();
    let dry = json_of(folder, &["sweep", "sweep.toml", "--dry-run"], 0);
    assert_eq!((dry["cells"].as_array().unwrap().len(), &dry["finished"]), (8, &json!(0)), "{dry}");
    assert!(!folder.join("runs").exists() && !folder.join("tuition.store").exists(), "a dry run wrote");

    // Killed as soon as a first cell is trained: what the sweep leaves behind stops by itself, and the next one waits for it.
    let (mut child, _) = until_a_cell_is_trained(folder);
    child.kill().unwrap();
    child.wait().unwrap();
    // The signal is for the sweep alone.
    let (mut child, said) = until_a_cell_is_trained(folder);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let rest: Vec<String> = said.map(Result::unwrap).collect();
    assert!(rest.iter().any(|line| line.starts_with("stopping: ")), "{rest:?}");
    let stopped: Value = serde_json::from_reader(child.stdout.take().unwrap()).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(stopped["stopped"], "interrupted", "{stopped} {rest:?}");
    let finished = stopped["finished"].as_u64().unwrap();
    assert!((2..8).contains(&finished), "{stopped} {rest:?}");
    assert!(!folder.join("runs/s/sweep.json").exists());

    let resumed = json_of(folder, &["sweep", "sweep.toml"], 0);
    assert_eq!(
        (&resumed["found"], &resumed["trained"]),
        (&json!(finished), &json!(8 - finished)),
        "{resumed}"
    );
    bought_once(folder);
    let first = results(folder);
    table_is_sound(&serde_json::from_str(&first).unwrap());

    let again = json_of(folder, &["sweep", "runs/s/sweep.toml", "--offline"], 0);
    assert_eq!((&again["found"], &again["trained"]), (&json!(8), &json!(0)), "{again}");
    fs::remove_file(folder.join("runs/s.kd.20.s1/report.json")).unwrap();
    let again = json_of(folder, &["sweep", "sweep.toml", "--offline"], 0);
    assert_eq!((&again["found"], &again["trained"]), (&json!(7), &json!(1)), "{again}");
    assert_eq!(results(folder), first, "a cell that is trained again scores otherwise");
    for name in
        ["report.html", "report.md", "agreement-against-calls.svg", "sweep.toml", "cells/s.kd.20.s1.toml"]
    {
        assert!(folder.join("runs/s").join(name).exists(), "{name} is missing");
    }

    // Another setting of one method: its cells are trained anew, the others stay; with the old one all is as before.
    let other = SWEEP.replace("temperature = 2.0", "temperature = 3.0");
    fs::write(folder.join("sweep.toml"), other).unwrap();
    let changed = json_of(folder, &["sweep", "sweep.toml", "--offline"], 0);
    assert_eq!((&changed["found"], &changed["trained"]), (&json!(4), &json!(4)), "{changed}");
    assert_ne!(results(folder), first);

    let undisturbed = self::folder(SWEEP, "");
    let trained = json_of(undisturbed.path(), &["sweep", "sweep.toml", "--jobs", "3"], 0);
    assert_eq!((&trained["found"], &trained["trained"]), (&json!(0), &json!(8)), "{trained}");
    assert_eq!(results(undisturbed.path()), first, "the interrupt changed the numbers");
}

/// Starts the sweep and waits until it says that a cell is trained.
fn until_a_cell_is_trained(folder: &Path) -> (Child, Lines<BufReader<ChildStderr>>) {
    let mut command = tuition(folder, &["sweep", "sweep.toml", "--json"]);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().ends_with(" is trained")), "no cell was trained");
    (child, said)
}

/// One call a key, however many cells learn from it.
fn bought_once(folder: &Path) {
    let audit = json_of(folder, &["audit", "--by", "run", "--verify"], 0);
    assert_eq!(audit["discrepancies"], json!([]));
    let settled = |row: &Value| row["calls"]["settled"].as_u64().unwrap();
    let by = audit["by"].as_array().unwrap();
    let held_out: u64 =
        by.iter().filter(|row| row["run"].as_str().unwrap().ends_with("/test")).map(settled).sum();
    let all = by.iter().map(settled).sum::<u64>();
    assert_eq!(held_out, HELD_OUT, "{audit}");
    // Two seeds, each with its largest budget; what both draw is bought once.
    assert!((41..=80).contains(&(all - held_out)), "{audit}");
    json_of(folder, &["export", "--format", "jsonl", "answers.jsonl"], 0);
    let text = fs::read_to_string(folder.join("answers.jsonl")).unwrap();
    let keys: BTreeSet<String> =
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["key"].to_string()).collect();
    assert_eq!(keys.len() as u64, all, "an answer was bought twice");
}

fn table_is_sound(results: &Value) {
    let table = results["table"].as_array().unwrap();
    let row = |method: &str, budget: u64| {
        table.iter().find(|row| row["method"] == method && row["budget"] == budget).unwrap()
    };
    assert_eq!((table.len(), &results["unfinished"]), (4, &json!([])), "{results}");
    assert_eq!((&row("kd", 40)["usd"], &row("kd", 40)["seeds"]), (&json!("0.040000000"), &json!([0, 1])));
    let kd = &row("kd", 40)["test"]["agreement"];
    assert!(kd["mean"].as_f64().unwrap() > 0.8 && kd["ci95"].is_number(), "{results}");
    // Paired by hand, seed by seed.
    for at in 0..2 {
        let value = |method: &str| row(method, 20)["test"]["loss"]["values"][at].as_f64().unwrap();
        let difference = row("kd", 20)["against_baseline"]["loss"]["values"][at].as_f64().unwrap();
        assert_eq!(difference, value("kd") - value("labels"));
    }
    assert!(row("labels", 20)["against_baseline"].is_null());
    let races = results["calls_needed"].as_array().unwrap();
    let by: Vec<&str> = races.iter().map(|race| race["by"].as_str().unwrap()).collect();
    assert_eq!((by, &races[0]["budget"]), (vec!["accuracy", "agreement"], &json!(40)));
    assert_eq!(races[0]["methods"].as_array().unwrap().len(), 2);
    assert_eq!(results["teacher_accuracy"], 1.0);
}

#[test]
fn a_budget_or_a_miss_stops_a_cell_and_not_the_others() {
    let sweep = SWEEP.replace("seeds = [0, 1]", "seeds = [0]").replace("jobs = 2", "jobs = 1");
    let limit = |calls: u64| format!("[[budget]]\nname = \"all\"\ncalls = {calls}\n");
    let folder = folder(&sweep, &limit(HELD_OUT + 20));
    let folder = folder.path();
    let stopped = json_of(folder, &["sweep", "sweep.toml"], 3);
    let failed = stopped["failed"].as_array().unwrap();
    let names: Vec<&str> = failed.iter().map(|cell| cell["cell"].as_str().unwrap()).collect();
    assert_eq!((names, &stopped["trained"]), (vec!["s.labels.40.s0", "s.kd.40.s0"], &json!(2)), "{stopped}");
    assert!(
        failed.iter().all(|cell| cell["exit"] == 3 && cell["message"].as_str().unwrap().contains("`all`"))
    );
    assert_eq!(stopped["results"]["unfinished"], json!(["s.labels.40.s0", "s.kd.40.s0"]));

    let missed = json_of(folder, &["sweep", "sweep.toml", "--offline"], 1);
    assert_eq!((&missed["found"], &missed["failed"][1]["exit"]), (&json!(2), &json!(1)), "{missed}");

    json_of(folder, &["budget", "set", "all", "--calls", &(HELD_OUT + 40).to_string()], 0);
    let done = json_of(folder, &["sweep", "sweep.toml"], 0);
    assert_eq!((&done["found"], &done["trained"]), (&json!(2), &json!(2)), "{done}");
    let audit = json_of(folder, &["audit", "--verify"], 0);
    assert_eq!(audit["totals"]["calls"]["settled"], HELD_OUT + 40);
}

#[test]
fn a_sweep_file_is_refused_before_anything_is_bought() {
    let check = |from: &str, to: &str, words: &[&str]| {
        let folder = folder(&SWEEP.replace(from, to), "");
        let output = output(folder.path(), &["sweep", "sweep.toml"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{to}: {said}");
        for word in words {
            assert!(said.contains(word), "{to}: `{word}` is not in: {said}");
        }
        assert!(!folder.path().join("runs").exists() && !folder.path().join("tuition.store").exists());
    };
    check("budgets = [20, 40]", "bugdets = [20]", &["sweep.toml", "`bugdets`", "`budgets`"]);
    check("kind = \"kd\"", "kind = \"kdd\"", &["method `kd`", "base.toml", "`kdd`", "`kd`"]);
    check("baseline = \"labels\"", "baseline = \"lables\"", &["unknown method `lables`", "`labels`"]);
    check("over.method", "over.train.seeds = [5]\nover.method", &["method `kd`", "`over.train.seeds`"]);
    check("base.toml", "bass.toml", &["bass.toml"]);
}
