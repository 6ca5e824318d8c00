//! A run file is read or refused by name, and a run leaves the pinned folder.

use super::*;
use crate::augment::Augment;
use crate::example::{Input, argmax};
use crate::loss::CkdLoss;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const FILE: &str = r#"
name = "plane"
[teacher]
name = "line"
[data]
source = "csv"
path = "plane.csv"
label = "label"
test = 0.3
[budget]
calls = 60
validation = 0.2
[student]
kind = "mlp"
hidden = [8]
[method]
losses = [{ kind = "ckd", form = "mse", positives = 1, negatives = 1, weight = 1.0 }]
offset_fix = true
[train]
steps = 60
batch = 16
optimizer = "adamw"
lr = 1e-2
evaluate_every = 20
seeds = [0, 1]
"#;

fn parse(overrides: &[&str]) -> Result<RunConfig, ConfigError> {
    RunConfig::parse(FILE, &overrides.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
}

fn split() -> Split {
    let example = |at: usize| {
        let (x, y) = ((at as f32 * 1.7).sin(), (at as f32 * 0.9).cos());
        let scores = vec![3.0 * x, 3.0 * y - 1.0, -2.0 * x - y + 1.0];
        let truth = Some(argmax(&scores));
        Example {
            key: format!("k{at}"),
            input: Input::Vector(vec![x, y]),
            target: Some(Target::Logits(scores)),
            truth,
            hidden: vec![],
        }
    };
    let part = |range: std::ops::Range<usize>| range.map(example).collect();
    let classes = ["a", "b<", "c"].map(str::to_owned).to_vec();
    Split { train: part(0..48), validation: part(48..60), test: part(60..160), classes, ..Split::default() }
}

fn control(resume: bool) -> Control<'static> {
    Control { interrupt: Arc::default(), progress: &|_| {}, resume }
}

#[test]
fn a_run_file_resolves_to_itself() {
    let config = parse(&[]).unwrap();
    let again = RunConfig::parse(&config.to_toml().unwrap(), &[]).unwrap();
    assert_eq!(config, again);
    assert_eq!(config.train.weight_decay, 0.0);
}

#[test]
fn overrides_reach_tables_and_lists() {
    let config = parse(&[
        "train.lr=0.5",
        "train.seeds=\"0..3\"",
        "train.optimizer=sgd",
        "method.losses.0.weight = 2.5",
        "student.hidden.0=9",
        "name=other",
    ]);
    let config = config.unwrap();
    assert_eq!((config.train.lr, config.name.as_str()), (0.5, "other"));
    assert_eq!(config.train.seeds, [0, 1, 2]);
    assert_eq!(config.student, StudentConfig::Mlp { hidden: vec![9] });
    assert!(matches!(config.method.losses[0], LossConfig::Ckd(CkdLoss { weight: 2.5, .. })));
}

#[test]
fn what_is_unknown_or_out_of_range_is_named() {
    let check = |assignment: &str, expected: &str| {
        let error = parse(&[assignment]).expect_err(assignment).to_string();
        assert!(error.contains(expected), "{assignment}: {error}");
    };
    let later =
        ["teacher.checkpoints=[\"young\"]", "method.progressive={ steps = 3 }", "acquire.policy=margin"];
    assert_eq!(
        parse(&later).unwrap_err().to_string(),
        "`acquire.policy` is margin; it must be random with `teacher.checkpoints`, which are asked about the first round alone"
    );
    check("train.stes=3", "unknown key `stes`, did you mean `steps`?");
    check("bugdet.calls=3", "unknown key `bugdet`, did you mean `budget`?");
    check("student.kind=\"mlpp\"", "unknown kind `mlpp`, did you mean `mlp`?");
    check("student.hiden=[3]", "unknown key `hiden`, did you mean `hidden`?");
    check("method.losses.0.kind=\"ckdd\"", "unknown kind `ckdd`, did you mean `ckd`?");
    check("method.losses.0.wieght=1.0", "unknown key `wieght`, did you mean `weight`?");
    check(
        "data.source=\"parquets\"",
        "unknown kind `parquets`, did you mean `parquet`?; known here: csv, idx, images, jsonl, parquet, files, record",
    );
    check("train.optimizer=\"adam\"", "unknown kind `adam`, did you mean `adamw`?");
    check("data.source=\"record\"", "source `record` needs `data.run`");
    check("data.test=1.5", "`data.test` is 1.5; it must be between 0 and 1, or a path");
    check("budget.calls=0", "`budget.calls` is 0; it must be 1 or more");
    check("budget.calls=-1", "-1");
    check("train.seeds=\"4..0\"", "`4..0` is no list of seeds");
    check("name=\"../x\"", "`name` is \"../x\"");
    check("train.lr", "`train.lr` is no override: it has no `=`");
    check("method.losses.7.weight=1", "`7` is no place in a list");
    check("train.lr.x=1", "what stands before `x` holds no keys");
}

fn finished(outcome: Outcome) -> Report {
    match outcome {
        Outcome::Finished(report) => *report,
        Outcome::Interrupted { seed, step } => panic!("seed {seed} stopped at step {step}"),
    }
}

fn files(folder: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let mut found = std::collections::BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_string_lossy().replace('\\', "/");
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

#[test]
fn a_run_leaves_the_pinned_folder_and_the_same_one_again() {
    let (config, split) = (parse(&[]).unwrap(), split());
    let spend = || Spend { calls: 60, usd: Some("0.120000000".into()), learning_usd: None };
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let report = finished(train_run(&config, &split, spend(), one.path(), &control(false)).unwrap());
    assert_eq!((report.calls, report.seeds.clone()), (60, vec![0, 1]));
    assert!(report.test.accuracy.mean.unwrap() > 0.85, "{:?}", report.test.accuracy);
    assert_eq!(report.teacher.test.accuracy.mean, Some(1.0));

    let written = files(one.path());
    let names: Vec<&str> = written.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "checkpoints/alone-seed-0.safetensors",
            "checkpoints/alone-seed-1.safetensors",
            "checkpoints/student-seed-0.safetensors",
            "checkpoints/student-seed-1.safetensors",
            "config.toml",
            "manifest.json",
            "metrics.jsonl",
            "model/README.md",
            "model/config.json",
            "model/model.onnx",
            "model/model.safetensors",
            "report.html",
            "report.json",
            "tensorboard/seed-0/events.out.tfevents.0.tuition",
            "tensorboard/seed-1/events.out.tfevents.0.tuition",
        ]
    );
    let json: serde_json::Value = serde_json::from_slice(&written["report.json"]).unwrap();
    for measure in ["accuracy", "agreement", "ece", "loss"] {
        for row in ["test", "teacher", "student_alone"] {
            assert!(json[row][measure]["values"].is_array(), "{row} {measure}");
            assert!(json[row][measure]["mean"].is_number(), "{row} {measure}");
        }
        assert_eq!(json["test"][measure]["values"].as_array().unwrap().len(), 2);
    }
    assert_eq!(json["spend"]["calls"], 60);
    assert_eq!(json["spend"]["usd"], "0.120000000");
    let page = String::from_utf8(written["report.html"].clone()).unwrap();
    assert!(page.contains("<svg") && page.contains("polyline"));

    train_run(&config, &split, spend(), two.path(), &control(false)).unwrap();
    assert!(written == files(two.path()), "the same run writes the same bytes");

    // What was exported is the first seed's student.
    let model = export::Model::load(&one.path().join("model")).unwrap();
    assert_eq!(model.classes(), split.classes);
    let test: Vec<&Example> = split.test.iter().collect();
    let scores = score(&model.logits(&test).unwrap(), &test);
    assert_eq!(scores.accuracy, Some(report.test.accuracy.values[0]));
}

#[test]
fn an_interrupted_run_resumes_to_the_same_folder() {
    let (config, split) = (parse(&[]).unwrap(), split());
    let (straight, resumed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    finished(train_run(&config, &split, Spend::default(), straight.path(), &control(false)).unwrap());
    for (seed, step, alone) in [(0, 30, false), (1, 5, false), (1, 59, true)] {
        let interrupt: Arc<AtomicBool> = Arc::default();
        let stop = |progress: &crate::train::Progress| {
            let there =
                (progress.method == "labels") == alone && progress.seed == seed && progress.step == step;
            interrupt.store(there, Ordering::Relaxed);
        };
        let stopping = Control { interrupt: interrupt.clone(), progress: &stop, resume: true };
        let outcome = train_run(&config, &split, Spend::default(), resumed.path(), &stopping).unwrap();
        assert_eq!(outcome, Outcome::Interrupted { seed, step });
        assert!(!resumed.path().join("report.json").exists());
    }
    finished(train_run(&config, &split, Spend::default(), resumed.path(), &control(true)).unwrap());
    assert!(files(straight.path()) == files(resumed.path()));
}

#[test]
fn a_teacher_of_labels_gives_a_row_without_certainty() {
    let mut split = split();
    for example in split.train.iter_mut().chain(&mut split.validation).chain(&mut split.test) {
        example.target = example.target.as_ref().map(|target| Target::Label(target.label()));
    }
    let config = parse(&["method.losses=[{ kind = \"labels\" }]", "train.seeds=[3]"]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let report =
        finished(train_run(&config, &split, Spend::default(), folder.path(), &control(false)).unwrap());
    assert_eq!(report.teacher.test.agreement.mean, Some(1.0));
    assert_eq!((report.teacher.test.ece.mean, report.teacher.test.loss.mean), (None, None));
    assert_eq!(report.test, report.student_alone.test);
    let refused = parse(&[]).unwrap();
    let error = train_run(&refused, &split, Spend::default(), folder.path(), &control(false)).unwrap_err();
    assert_eq!(error.to_string(), "loss `ckd` needs logits, but the teacher gives label");
}

#[test]
fn images_and_their_augmentation_are_read_as_the_run_file_has_them() {
    let image = [
        "data.source=idx",
        "data.path=train-images-idx3-ubyte.gz",
        "data.label=train-labels-idx1-ubyte.gz",
        "data.test=t10k-images-idx3-ubyte.gz",
        "data.test_label=t10k-labels-idx1-ubyte.gz",
        "student={ kind = 'cnn', image = [1, 28, 28] }",
        "train.augment={ crop = 2, flip = true }",
    ];
    let config = parse(&image).unwrap();
    assert_eq!(config.data.source, Source::Idx);
    assert_eq!(config.data.test, TestPart::Path("t10k-images-idx3-ubyte.gz".into()));
    assert_eq!(config.train.augment, Some(Augment { crop: 2, flip: true, ..Augment::default() }));
    assert_eq!(RunConfig::parse(&config.to_toml().unwrap(), &[]).unwrap(), config);
    let refused = |overrides: &[&str]| parse(overrides).unwrap_err().to_string();
    assert_eq!(
        refused(&["data.test_label=labels"]),
        "`data.test_label` is `labels`; it must be absent, unless `data.test` is a path and `data.source` is `idx`"
    );
    let flop = refused(&[&image[..6], &["train.augment={ flop = true }"]].concat());
    assert!(flop.contains("`flop`") && flop.contains("`flip`"), "{flop}");
}
