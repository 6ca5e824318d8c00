//! A teacher made here, from labels alone, and students of it that choose what they buy and learn from what they do not.
//! Wants ONNX Runtime.

use crate::support::tuition;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Rings around the origin: the class is which ring.
pub(crate) fn rings(rows: usize) -> String {
    let mut text = String::from("x,y,label\n");
    for at in 0..rows {
        let (angle, radius) = (at as f64 * 2.4, ((at * 7919) % 1000) as f64 / 333.4);
        writeln!(text, "{:.4},{:.4},{}", radius * angle.cos(), radius * angle.sin(), radius as usize)
            .unwrap();
    }
    text
}

pub(crate) const TEACHER: &str = r#"
name = "teacher"
[data]
source = "csv"
path = "rings.csv"
label = "label"
[student]
kind = "mlp"
hidden = [48]
[method]
losses = [{ kind = "labels", of = "truth" }]
[train]
steps = 1500
lr = 1e-2
"#;

const STUDENT: &str = r#"
name = "student"
[teacher]
name = "rings"
[data]
source = "csv"
path = "rings.csv"
label = "label"
[budget]
calls = 100
[acquire]
first = "k-means"
policy = "margin"
rounds = 3
steps = 150
candidates = 300
[student]
kind = "mlp"
hidden = [16]
[method]
losses = [{ kind = "labels" }, { kind = "kd" }]
[method.proxy]
student = { kind = "mlp", hidden = [48] }
batch = 96
warm_up = { kind = "autoencoder", steps = 50 }
[train]
steps = 400
lr = 1e-2
ema = 0.99
seeds = "0..2"
"#;

pub(crate) const CONFIG: &str = r#"
[[teacher]]
name = "rings"
api = "onnx"
path = "runs/teacher/model/model.onnx"
revision = "1"
"#;

/// Runs a command: its status, what it printed as JSON, and what it said.
pub(crate) fn run(folder: &Path, arguments: &[&str]) -> (i32, Value, String) {
    let output = tuition(folder, arguments).output().unwrap();
    let printed = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().unwrap(), printed, String::from_utf8_lossy(&output.stderr).into_owned())
}

pub(crate) fn settled(folder: &Path) -> u64 {
    let (code, audit, said) = run(folder, &["audit", "--verify", "--json"]);
    assert_eq!((code, &audit["discrepancies"]), (0, &json!([])), "{said}");
    audit["totals"]["calls"]["settled"].as_u64().unwrap()
}

pub(crate) fn report(folder: &Path, run: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(folder.join("runs").join(run).join("report.json")).unwrap())
        .unwrap()
}

#[test]
fn a_teacher_of_labels_teaches_a_student_that_chooses_what_it_buys() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    fs::write(folder.join("rings.csv"), rings(1500)).unwrap();
    fs::write(folder.join("teacher.toml"), TEACHER).unwrap();
    fs::write(folder.join("student.toml"), STUDENT).unwrap();
    let (code, taught, said) = run(folder, &["train", "teacher.toml", "--json"]);
    assert_eq!(code, 0, "{said}");
    let spend = &taught["report"]["spend"];
    assert_eq!((&spend["calls"], &spend["usd"]), (&json!(0), &json!("0.000000000")));
    assert!(taught["report"]["test"]["accuracy"]["mean"].as_f64().unwrap() > 0.95, "{taught}");

    fs::write(folder.join("tuition.toml"), CONFIG).unwrap();
    // What could not be learnt from is refused before it is bought.
    for (set, words) in [
        ("method.losses.1.temperature=0.0", "`temperature` of loss `kd` is 0"),
        ("train.lr=0.0", "`train.lr` is 0; it must be above 0"),
        ("method.proxy.student={ kind = 'cnn', image = [1, 2, 2] }", "takes images of 4 values"),
        ("method.warm_up={ kind = 'simclr', steps = 9 }", "a `simclr` warm-up compares views of images"),
        ("method.cutmix=true", "`cutmix` images"),
    ] {
        let (code, _, said) = run(folder, &["train", "student.toml", "--set", set]);
        assert!(code == 2 && said.contains(words), "{set}: {code} {said}");
    }
    assert!(!folder.join("tuition.store").exists(), "a run that cannot be trained bought something");
    let (code, _, said) = run(folder, &["train", "student.toml", "--json"]);
    assert_eq!(code, 0, "{said}");
    let student = report(folder, "student");
    assert_eq!(student["method"], "labels + kd with a proxy teacher");
    assert_eq!(student["calls"], 100);
    let test = student["test"].clone();
    assert!(test["agreement"]["mean"].as_f64().unwrap() > 0.85, "{student}");
    let held_out = student["spend"]["calls"].as_u64().unwrap() - 100;
    assert_eq!(settled(folder), 100 + held_out, "three rounds are one budget");

    // Each answer is accounted for: by round, by what chose it, and with its chance where it was drawn.
    let account = fs::read_to_string(folder.join("runs/student/acquired.csv")).unwrap();
    let mut rounds: BTreeMap<(String, String), usize> = BTreeMap::new();
    for line in account.lines().skip(1) {
        let [key, round, by, score, chance] = line.split(',').collect::<Vec<_>>().try_into().unwrap();
        assert_eq!(
            (key.len(), score.is_empty(), chance.is_empty()),
            (64, by != "margin", by != "random"),
            "{line}"
        );
        // 20 that validate, out of all that may be asked about; two of the 1,500 rows are the origin.
        if by == "random" {
            let open = 20.0 / chance.parse::<f64>().unwrap();
            assert!((open - (1499 - held_out) as f64).abs() < 1e-6, "{line}: {open}");
        }
        *rounds.entry((round.to_owned(), by.to_owned())).or_default() += 1;
    }
    let named = |round: &str, by: &str, count: usize| ((round.to_owned(), by.to_owned()), count);
    let expected = [
        named("0", "random", 20),
        named("1", "k-means", 40),
        named("2", "margin", 20),
        named("3", "margin", 20),
    ];
    assert_eq!(rounds, BTreeMap::from(expected));

    // Again, offline: the same choices, the same numbers, nothing bought.
    let (code, _, said) = run(folder, &["train", "student.toml", "--offline", "--json"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(report(folder, "student")["test"], test);
    assert_eq!(settled(folder), 100 + held_out);
    // Another draw is another hundred answers: offline they are missing, and the budget of the run is spent.
    let other = ["train", "student.toml", "--set", "acquire.seed=1", "--json"];
    let (code, _, said) = run(folder, &[&other[..], &["--offline"]].concat());
    assert_eq!(code, 1, "{said}");
    let (code, _, said) = run(folder, &other);
    assert_eq!(code, 3, "{said}");
    assert_eq!(settled(folder), 100 + held_out, "a refused purchase bought something");
}

#[test]
fn what_a_run_without_a_teacher_or_a_policy_without_a_purchase_asks_for_is_refused_by_name() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    fs::write(folder.join("rings.csv"), rings(60)).unwrap();
    fs::write(folder.join("teacher.toml"), TEACHER).unwrap();
    fs::write(folder.join("unlabelled.csv"), "x,y\n0.5,1.5\n1.0,2.0\n1.5,2.5\n2.0,1.0\n").unwrap();
    for (set, words) in [
        (
            "method.losses.0.of=teacher",
            "loss `labels` learns from a teacher, and the run file has no [teacher]",
        ),
        ("method.losses.0={ kind = 'kd' }", "loss `kd` learns from a teacher"),
        ("acquire.policy=margin", "`acquire` chooses what is bought, and this run buys nothing"),
        ("acquire.policy=margins", "unknown kind `margins`, did you mean `margin`?"),
        (
            "method.proxy={ student = { kind = 'mlp', hidden = [4] } }",
            "`method.proxy` labels inputs one by one",
        ),
        (
            "data={ source = 'csv', path = 'unlabelled.csv' }",
            "has no label, and the run file has no [teacher]",
        ),
    ] {
        let (code, _, said) = run(folder, &["train", "teacher.toml", "--set", set]);
        assert!(code == 2 && said.contains(words), "{set}: {code} {said}");
    }
    assert!(!folder.join("tuition.store").exists(), "nothing was to be bought");
}

/// Two blobs in files of each kind: what is learnt from one is learnt from the others, to the bit.
#[test]
fn lines_of_json_teach_what_a_csv_file_teaches() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    let csv = rings(200);
    let lines = csv.lines().skip(1).map(|line| {
        let [x, y, label] = line.split(',').collect::<Vec<_>>().try_into().unwrap();
        format!("{{\"point\": [{x}, {y}], \"ring\": {label}}}\n")
    });
    fs::write(folder.join("rings.jsonl"), lines.collect::<String>()).unwrap();
    fs::write(folder.join("rings.csv"), &csv).unwrap();
    let of_csv = TEACHER.replace("steps = 1500", "steps = 40");
    let of_lines = of_csv
        .replace("name = \"teacher\"", "name = \"lines\"")
        .replace("source = \"csv\"", "source = \"jsonl\"");
    let of_lines = of_lines
        .replace("rings.csv", "rings.jsonl")
        .replace("label = \"label\"", "input = \"point\"\nlabel = \"ring\"");
    for (name, text) in [("csv.toml", of_csv), ("lines.toml", of_lines)] {
        fs::write(folder.join(name), text).unwrap();
        let (code, _, said) = run(folder, &["train", name, "--json"]);
        assert_eq!(code, 0, "{said}");
    }
    assert_eq!(report(folder, "teacher")["test"], report(folder, "lines")["test"]);
    let (code, _, said) = run(folder, &["train", "lines.toml", "--set", "data.label=rings"]);
    assert!(code == 2 && said.contains("has no column `rings`, did you mean `ring`?"), "{said}");
    let (code, _, said) = run(folder, &["train", "csv.toml", "--set", "data.input=x"]);
    assert!(code == 2 && said.contains("`data.input` is `x`; it must be absent"), "{said}");
    // And it is asked about as the same questions.
    let teacher = "[[teacher]]\nname = \"rings\"\napi = \"onnx\"\npath = \"runs/teacher/model/model.onnx\"\nrevision = \"1\"\n[[budget]]\nname = \"all\"\ncalls = 500\n";
    fs::write(folder.join("tuition.toml"), teacher).unwrap();
    fs::rename(folder.join("rings.jsonl"), folder.join("rings.log")).unwrap();
    let label = |more: &str| {
        let all = format!("label --teacher rings --json {more}");
        run(folder, &all.split(' ').collect::<Vec<_>>())
    };
    let (code, bought, said) = label("--run csv --data rings.csv --label label");
    assert_eq!((code, &bought["bought"]), (0, &json!(200)), "{bought} {said}");
    let (code, known, said) = label("--run log --data rings.log --source jsonl --input point --label ring");
    assert_eq!((code, &known["known"], &known["bought"]), (0, &json!(200), &json!(0)), "{known} {said}");
    for (flags, words) in [
        ("--data rings.csv --input x", "`data.input` is `x`; it must be absent"),
        ("--data rings.csv --source cvs", "did you mean `csv`?"),
        ("--data rings.csv --image 2,2", "three numbers, such as 1,28,28"),
    ] {
        let (code, _, said) = label(&format!("--run r {flags}"));
        assert!(code == 2 && said.contains(words), "{flags}: {code} {said}");
    }
}
