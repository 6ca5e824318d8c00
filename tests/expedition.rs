//! Students that learn from inputs which were made for them, each of them a paid call. Wants ONNX Runtime.
//! Invariant: real and made inputs together are one budget, and the same record makes the same inputs again.

use crate::classroom::{CONFIG, TEACHER, report, rings, run, settled};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

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
steps = 150
[explore]
calls = 60
rounds = 3
[student]
kind = "mlp"
hidden = [16]
[method]
losses = [{ kind = "labels" }, { kind = "kd" }]
[train]
steps = 300
lr = 1e-2
"#;

/// Kinds of exploring, and how many made inputs each round buys.
const KINDS: [(&str, &str, &[usize]); 6] = [
    ("random", "kind = 'random'", &[60]),
    ("tail", "kind = 'random', long_tail = true", &[20, 20, 20]),
    ("gradient", "kind = 'gradient', generator = { kind = 'vae', latent = 2, steps = 200 }", &[20, 20, 20]),
    ("choice", "kind = 'choice', fit = 'bought'", &[20, 20, 20]),
    ("mixup", "kind = 'mixup'", &[20, 20, 20]),
    ("noise", "kind = 'noise', sigma = 0.3", &[60]),
];

fn prepared(rows: usize) -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    fs::write(folder.join("rings.csv"), rings(rows)).unwrap();
    fs::write(folder.join("teacher.toml"), TEACHER).unwrap();
    fs::write(folder.join("student.toml"), STUDENT).unwrap();
    fs::write(folder.join("tuition.toml"), CONFIG).unwrap();
    place
}

/// What the account says of a run: how many answers each round bought, and by what.
fn account(folder: &Path, name: &str) -> BTreeMap<(usize, String), usize> {
    let text = fs::read_to_string(folder.join("runs").join(name).join("acquired.csv")).unwrap();
    let mut rounds = BTreeMap::new();
    for line in text.lines().skip(1) {
        let [key, round, by, score, chance] = line.split(',').collect::<Vec<_>>().try_into().unwrap();
        let asks_student = ["explore-gradient", "explore-choice", "explore-mixup"].contains(&by);
        assert_eq!(
            (key.len(), score.is_empty(), chance.is_empty()),
            (64, !asks_student, by != "random"),
            "{line}"
        );
        *rounds.entry((round.parse().unwrap(), by.to_owned())).or_default() += 1;
    }
    rounds
}

#[test]
fn real_and_made_inputs_are_one_budget_and_the_record_makes_the_same_again() {
    let place = prepared(900);
    let folder = place.path();
    let (code, _, said) = run(folder, &["train", "teacher.toml", "--json"]);
    assert_eq!(code, 0, "{said}");
    let mut before = 0;
    for (name, explore, rounds) in KINDS {
        let (name_set, explore) =
            (format!("name={name}"), format!("explore={{ calls = 60, rounds = 3, {explore} }}"));
        let train = ["train", "student.toml", "--json", "--set", &name_set, "--set", &explore];
        let (code, _, said) = run(folder, &train);
        assert_eq!(code, 0, "{name}: {said}");
        let first = report(folder, name);
        assert_eq!(first["calls"], 100, "{name}");
        // The first run buys the 40 real and the held-out answers, which the others know; made inputs are their own.
        let held_out = first["spend"]["calls"].as_u64().unwrap() - 100;
        let now = settled(folder);
        let (real, test) = if before == 0 { (40, held_out) } else { (0, 0) };
        assert_eq!(now - before, real + test + 60, "{name}");
        before = now;
        let by = if name == "tail" { "explore-random".to_owned() } else { format!("explore-{name}") };
        let mut expected = BTreeMap::from([((0, "random".to_owned()), 8), ((1, "random".to_owned()), 32)]);
        expected.extend(rounds.iter().enumerate().map(|(at, count)| ((at + 2, by.clone()), *count)));
        assert_eq!(account(folder, name), expected, "{name}");

        // Again, offline: the same inputs, bit for bit, so that nothing is missing and the student is the same.
        let kept = |file: &str| fs::read(folder.join("runs").join(name).join(file)).unwrap();
        let (student, acquired) = (kept("model/model.safetensors"), kept("acquired.csv"));
        let (code, _, said) = run(folder, &[&train[..], &["--offline"]].concat());
        assert_eq!(code, 0, "{name}: {said}");
        assert_eq!((kept("model/model.safetensors"), kept("acquired.csv")), (student, acquired), "{name}");
        assert_eq!((report(folder, name), settled(folder)), (first, before), "{name}");
    }
    // Another seed makes other inputs: offline they are missing.
    let other =
        ["train", "student.toml", "--json", "--offline", "--set", "name=random", "--set", "acquire.seed=1"];
    let (code, _, said) = run(folder, &other);
    assert_eq!(code, 1, "{said}");
    // Where no answers are looked at, a greater budget goes on where the smaller one ended.
    let more = |made: &str| {
        let made = format!("explore.calls={made}");
        run(
            folder,
            &["train", "student.toml", "--set", "name=random", "--set", "budget.calls=120", "--set", &made],
        )
    };
    let (code, _, said) = more("80");
    assert_eq!((code, settled(folder)), (0, before + 20), "{said}");
    // From fewer real inputs others are made, and the budget of the run is spent.
    let (code, _, said) = more("100");
    assert_eq!((code, settled(folder)), (3, before + 20), "{said}");
    let (code, dry, said) = run(folder, &["train", "student.toml", "--dry-run", "--json"]);
    assert_eq!((code, &dry["questions"]["made"]), (0, &json!(60)), "{said}");
}

#[test]
fn what_cannot_be_explored_is_refused_by_name_before_anything_is_bought() {
    let place = prepared(60);
    let folder = place.path();
    let refused = |file: &str, set: &[&str], words: &str| {
        let set: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
        let (code, _, said) = run(folder, &[&["train", file][..], &set].concat());
        assert!(code == 2 && said.contains(words), "{set:?}: {code} {said}");
    };
    refused(
        "teacher.toml",
        &["explore={ calls = 5 }"],
        "`explore` asks a teacher about inputs that are made, and this run buys nothing",
    );
    refused(
        "student.toml",
        &["data={ source = 'files', path = 'rings.csv' }"],
        "`explore` makes vectors, and the inputs of source `files` are bytes",
    );
    refused(
        "student.toml",
        &["explore.calls=100"],
        "`explore.calls` is 100; it must be 1 or more and below `budget.calls`",
    );
    refused(
        "student.toml",
        &["explore.kind=gradients"],
        "unknown kind `gradients`, did you mean `gradient`?",
    );
    refused("student.toml", &["explore.sgima=1.0"], "unknown key `sgima`, did you mean `sigma`?");
    refused(
        "student.toml",
        &["method.losses.0.of=truth"],
        "`explore` makes inputs without a true class, and loss `labels` asks for it",
    );
    refused(
        "student.toml",
        &["teacher.checkpoints=['early']", "method.progressive={ steps = 5 }"],
        "`explore` makes inputs for one teacher, and `teacher.checkpoints` would have to be asked about them too",
    );
    let onnx = "explore.generator={ kind = 'onnx', encoder = 'absent.onnx', decoder = 'absent.onnx' }";
    refused(
        "student.toml",
        &["explore.kind=gradient", onnx],
        "`explore.generator` is `onnx`; it must be `pca`, `autoencoder` or `vae`",
    );
    let (code, _, said) = run(folder, &["train", "teacher.toml", "--set", "train.steps=20"]);
    assert_eq!(code, 0, "{said}");
    refused("student.toml", &[onnx], "`explore.generator.encoder`: the model `absent.onnx` cannot be read");
    // The teacher's own model is no encoder of what it does not take back.
    let model = "runs/teacher/model/model.onnx";
    let own = format!("explore.generator={{ kind = 'onnx', encoder = '{model}', decoder = '{model}' }}");
    refused("student.toml", &[&own], "`explore.generator.decoder`");
    assert!(!folder.join("tuition.store").exists(), "something was bought");
}
