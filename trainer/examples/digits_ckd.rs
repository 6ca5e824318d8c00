//! The digits experiment: comparative distillation beside its rivals at 50 to 400 calls, ten seeds, paired.
//!
//! `cargo run --release -p tuition-trainer --example digits_ckd -- digits.csv.gz docs/results/digits.md`
//!
//! A third argument chooses the setting: `converged` (the default); `soft`, whose teacher is narrower and held back by
//! weight decay, so that its logits are small; or, both with the teacher of `converged`, inputs standardised over the rows
//! without their labels, and one learning rate for every method: `untuned` (a run file's default rate) and `one-rate`
//! (the double of it, on seeds of its own).
//!
//! The file is the one inside the `scikit-learn` package (`sklearn/datasets/data/digits.csv.gz`): 64 pixels and a label a
//! row. Each seed shuffles the rows, trains a wide teacher of its own on some of them by their true labels, and holds 500
//! back for the test; a call is the teacher's logits on one of the remaining rows. A method sees N training answers and
//! N / 5 validation answers; all methods of a seed see the same ones. Where it is tuned, the learning rate of each method is
//! the best of the same five by validation agreement at N = 100 on seeds of their own; the test part chooses nothing.

use std::error::Error;
use std::fmt::Write as _;
use std::io::Read as _;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use tuition_trainer::{
    Control, Example, Input, Measure, MethodConfig, Model, Outcome, RunConfig, Schedule, Spend, Split,
    StudentConfig, Target, TrainConfig, score_seeds, train_run,
};

const CALLS: [usize; 4] = [50, 100, 200, 400];
const TUNING_SEEDS: std::ops::Range<u64> = 100..103;
const TUNING_CALLS: usize = 100;
const RATES: [f64; 5] = [3e-4, 1e-3, 3e-3, 1e-2, 3e-2];
const TEST_ROWS: usize = 500;

/// Name and `[method]` table of each row of the result.
const METHODS: [(&str, &str); 12] = [
    ("labels only (the teacher's)", "losses = [{ kind = 'labels' }]"),
    ("CE + KD (T=4)", "losses = [{ kind = 'labels' }, { kind = 'kd', temperature = 4.0 }]"),
    ("logit-MSE", "losses = [{ kind = 'logit-mse' }]"),
    ("CKD-MSE, teacher term alone, no anchor", "losses = [{ kind = 'ckd' }]\noffset_fix = false"),
    ("the fixed students below, fix withheld", "losses = [{ kind = 'ckd' }]\noffset_fix = false"),
    ("CKD-MSE + offset fix", "losses = [{ kind = 'ckd' }]"),
    ("CKD-MSE k=3 + offset fix", "losses = [{ kind = 'ckd', positives = 2, negatives = 1 }]"),
    ("CKD-KL as released", "losses = [{ kind = 'ckd', form = 'kl' }]\noffset_fix = false"),
    ("CE + RKD-distance", "losses = [{ kind = 'labels' }, { kind = 'rkd', weight = 25.0 }]"),
    ("mixup (CE + KD)", "losses = [{ kind = 'labels' }, { kind = 'kd', temperature = 4.0 }]\nmixup = true"),
    ("CKD-MSE as published (both terms)", "losses = [{ kind = 'ckd', w_cls = 1.0 }]\noffset_fix = false"),
    ("the published pair of terms + offset fix", "losses = [{ kind = 'ckd', w_cls = 1.0 }]"),
];
/// How the teacher is trained, and how much is chosen for the students.
struct Setting {
    name: &'static str,
    words: &'static str,
    rows: usize,
    hidden: &'static str,
    train: &'static str,
    /// Whether inputs have mean 0 and deviation 1 in each pixel, instead of lying in 0..1.
    standardised: bool,
    /// The learning rate of every method; none: each has its own, tuned.
    rate: Option<f64>,
    seeds: std::ops::Range<u64>,
}

const CONVERGED: Setting = Setting {
    name: "converged",
    words: "64-256-256-10, 3,000 steps, no weight decay",
    rows: 817,
    hidden: "[256, 256]",
    train: "steps = 3000, lr = 1e-3",
    standardised: false,
    rate: None,
    seeds: 0..10,
};
const SETTINGS: [Setting; 4] = [
    CONVERGED,
    Setting {
        name: "soft",
        words: "64-256-10, 1,500 steps, weight decay 0.01, cosine to zero",
        rows: 700,
        hidden: "[256]",
        train: "steps = 1500, lr = 2e-3, weight_decay = 0.01, schedule = 'cosine'",
        ..CONVERGED
    },
    Setting { name: "untuned", standardised: true, rate: Some(1e-3), ..CONVERGED },
    Setting { name: "one-rate", standardised: true, rate: Some(2e-3), seeds: 20..30, ..CONVERGED },
];
const LABELS_AND_KD: usize = 1;
const LOGIT_MSE: usize = 2;
const UNANCHORED: usize = 3;
const WITHHELD: usize = 4;
const FIXED: usize = 5;
const RKD: usize = 8;
const MIXUP: usize = 9;
const PUBLISHED: usize = 10;

type Failure = Box<dyn Error + Send + Sync>;

/// One seed's rows: what may be asked, and the test part, all with the teacher's logits.
struct World {
    seed: u64,
    pool: Vec<Example>,
    test: Vec<Example>,
    teacher_accuracy: f64,
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (digits, page, kind) = match &arguments[..] {
        [digits, page] => (digits, page, "converged"),
        [digits, page, kind] => (digits, page, kind.as_str()),
        _ => return Err("usage: digits_ckd DIGITS.csv.gz PAGE.md [converged|soft|untuned|one-rate]".into()),
    };
    let kind = SETTINGS
        .iter()
        .find(|setting| setting.name == kind)
        .ok_or("the setting is `converged`, `soft`, `untuned` or `one-rate`")?;
    let started = std::time::Instant::now();
    let mut rows = read(Path::new(digits))?;
    if kind.standardised {
        standardise(&mut rows);
    }
    let mut out = std::io::stdout();
    let mut rates = vec![kind.rate.unwrap_or_default(); METHODS.len()];
    if kind.rate.is_none() {
        let tuning = worlds(&rows, kind, TUNING_SEEDS)?;
        for (method, rate) in rates.iter_mut().enumerate().filter(|(method, _)| *method != WITHHELD) {
            *rate = tune(&tuning, method)?;
        }
        // The same training as with the fix, so that the row shows what the fix alone does.
        rates[WITHHELD] = rates[FIXED];
    }
    writeln!(out, "learning rates: {rates:?}; {:.0} s", started.elapsed().as_secs_f64())?;
    let worlds = worlds(&rows, kind, kind.seeds.clone())?;
    let mut accuracy: Vec<Vec<Measure>> = Vec::new();
    let mut agreement: Vec<Vec<Measure>> = Vec::new();
    for (method, (name, _)) in METHODS.iter().enumerate() {
        let (right, agreed) = run_method(&worlds, method, rates[method])?;
        writeln!(out, "{name}: {}; {:.0} s", cells(&right), started.elapsed().as_secs_f64())?;
        accuracy.push(right);
        agreement.push(agreed);
    }
    let teacher = Measure::of(worlds.iter().map(|world| 100.0 * world.teacher_accuracy).collect());
    let minutes = started.elapsed().as_secs_f64() / 60.0;
    if let Some(folder) = Path::new(page).parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(page, write_page(kind, &accuracy, &agreement, &rates, &teacher, minutes)?)?;
    Ok(())
}

/// Pixels in 0..1 and the digit of each row.
fn read(path: &Path) -> Result<Vec<(Vec<f32>, u32)>, Failure> {
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path)?).read_to_string(&mut text)?;
    let mut rows = Vec::new();
    // With a line of column names, as the tests' copy has it, or without, as in the package.
    for line in text.lines().filter(|line| !line.starts_with("pixel")) {
        let values: Vec<f32> = line.split(',').map(str::parse).collect::<Result<_, _>>()?;
        let (label, pixels) = values.split_last().ok_or("an empty row")?;
        rows.push((pixels.iter().map(|pixel| pixel / 16.0).collect(), *label as u32));
    }
    Ok(rows)
}

/// Moves each pixel to mean 0 and deviation 1 over all rows; one that never changes only to mean 0.
fn standardise(rows: &mut [(Vec<f32>, u32)]) {
    let count = rows.len() as f64;
    for pixel in 0..rows.first().map_or(0, |(pixels, _)| pixels.len()) {
        let mean = rows.iter().map(|(pixels, _)| f64::from(pixels[pixel])).sum::<f64>() / count;
        let off = |(pixels, _): &(Vec<f32>, u32)| (f64::from(pixels[pixel]) - mean).powi(2);
        let deviation = (rows.iter().map(off).sum::<f64>() / count).sqrt();
        let scale = if deviation > 1e-6 { deviation } else { 1.0 };
        for (pixels, _) in rows.iter_mut() {
            pixels[pixel] = ((f64::from(pixels[pixel]) - mean) / scale) as f32;
        }
    }
}

fn worlds(
    rows: &[(Vec<f32>, u32)],
    kind: &Setting,
    seeds: std::ops::Range<u64>,
) -> Result<Vec<World>, Failure> {
    seeds.into_par_iter().map(|seed| world(rows, kind, seed)).collect()
}

fn world(rows: &[(Vec<f32>, u32)], kind: &Setting, seed: u64) -> Result<World, Failure> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let mut examples = order.iter().map(|at| {
        let (pixels, digit) = &rows[*at];
        let target = Some(Target::Label(*digit));
        Example {
            key: format!("{at:04}"),
            input: Input::Vector(pixels.clone()),
            target,
            truth: Some(*digit),
            hidden: vec![],
        }
    });
    let taught: Vec<Example> = examples.by_ref().take(kind.rows).collect();
    let mut test: Vec<Example> = examples.by_ref().take(TEST_ROWS).collect();
    let mut pool: Vec<Example> = examples.collect();
    let folder = tempfile::tempdir()?;
    let config = RunConfig::parse(
        &format!(
            "name = 'teacher'\nteacher = {{ name = 'truth' }}\ndata = {{ source = 'csv', path = 'digits' }}\nbudget = {{ calls = \
             1 }}\nstudent = {{ kind = 'mlp', hidden = {} }}\nmethod = {{ losses = [{{ kind = 'labels' }}] }}\ntrain = {{ {}, \
             seeds = [{seed}] }}",
            kind.hidden, kind.train
        ),
        &[],
    )?;
    let split = Split {
        train: taught,
        validation: vec![],
        test: test.clone(),
        classes: classes(),
        ..Split::default()
    };
    let control = Control { interrupt: Arc::default(), progress: &|_| {}, resume: false };
    let outcome = train_run(&config, &split, Spend::default(), folder.path(), &control)?;
    let Outcome::Finished(report) = outcome else {
        return Err("nobody interrupts this".into());
    };
    let teacher = Model::load(&folder.path().join("model"))?;
    for part in [&mut pool, &mut test] {
        let logits = teacher.logits(&part.iter().collect::<Vec<_>>())?;
        for (example, logits) in part.iter_mut().zip(logits) {
            example.target = Some(Target::Logits(logits));
        }
    }
    Ok(World { seed, pool, test, teacher_accuracy: report.test.accuracy.mean.unwrap_or_default() })
}

fn classes() -> Vec<String> {
    (0..10).map(|digit| digit.to_string()).collect()
}

/// Test accuracy, test agreement and validation agreement of one student.
fn student(world: &World, calls: usize, method: usize, lr: f64) -> Result<(f64, f64, f64), Failure> {
    let split = Split {
        train: world.pool[..calls].to_vec(),
        validation: world.pool[calls..calls + calls / 5].to_vec(),
        test: world.test.clone(),
        classes: classes(),
        ..Split::default()
    };
    let method: MethodConfig = toml::from_str(METHODS[method].1)?;
    let config = TrainConfig {
        steps: 2000,
        batch: 64,
        lr,
        schedule: Schedule::Cosine,
        weight_decay: 1e-4,
        // One look, at the last step: validation chooses the learning rate and nothing else.
        evaluate_every: 2000,
        seeds: vec![world.seed],
        ..TrainConfig::default()
    };
    let (test, looks) = score_seeds(&split, &StudentConfig::Mlp { hidden: vec![32] }, &method, &config)?;
    let validation = looks.last().and_then(|look| look.validation_agreement).unwrap_or_default();
    Ok((
        test.accuracy.mean.unwrap_or_default(),
        test.agreement.mean.unwrap_or_default(),
        f64::from(validation),
    ))
}

/// The learning rate with the best validation agreement; ties go to the lower one.
fn tune(worlds: &[World], method: usize) -> Result<f64, Failure> {
    let mut best = (RATES[0], f64::MIN);
    for lr in RATES {
        let validations: Vec<f64> = worlds
            .par_iter()
            .map(|world| student(world, TUNING_CALLS, method, lr).map(|scores| scores.2))
            .collect::<Result<_, _>>()?;
        let mean = validations.iter().sum::<f64>() / validations.len() as f64;
        if mean > best.1 {
            best = (lr, mean);
        }
    }
    Ok(best.0)
}

/// Accuracy and agreement over seeds, one measure for each number of calls, in percent.
fn run_method(worlds: &[World], method: usize, lr: f64) -> Result<(Vec<Measure>, Vec<Measure>), Failure> {
    let (mut accuracy, mut agreement) = (Vec::new(), Vec::new());
    for calls in CALLS {
        let scores: Vec<(f64, f64, f64)> =
            worlds.par_iter().map(|world| student(world, calls, method, lr)).collect::<Result<_, _>>()?;
        accuracy.push(Measure::of(scores.iter().map(|scores| 100.0 * scores.0).collect()));
        agreement.push(Measure::of(scores.iter().map(|scores| 100.0 * scores.1).collect()));
    }
    Ok((accuracy, agreement))
}

fn cell(measure: &Measure) -> String {
    format!("{:.1} ± {:.1}", measure.mean.unwrap_or(f64::NAN), measure.ci95.unwrap_or(f64::NAN))
}

fn cells(measures: &[Measure]) -> String {
    measures.iter().map(cell).collect::<Vec<_>>().join(" | ")
}

/// Prints `one - other` at each number of calls.
fn differences(table: &[Vec<Measure>], one: usize, other: usize) -> Vec<Measure> {
    table[one].iter().zip(&table[other]).map(|(one, other)| Measure::paired(one, other)).collect()
}

fn write_page(
    kind: &Setting,
    accuracy: &[Vec<Measure>],
    agreement: &[Vec<Measure>],
    rates: &[f64],
    teacher: &Measure,
    minutes: f64,
) -> Result<String, Failure> {
    let mut page = String::from("# Digits: what comparisons of few answers are worth\n\n");
    writeln!(
        page,
        "Made by `cargo run --release -p tuition-trainer --example digits_ckd -- digits.csv.gz PAGE.md {}` in {minutes:.0} minutes. The file is inside the `scikit-learn` package: `sklearn/datasets/data/digits.csv.gz`.\n",
        kind.name
    )?;
    let inputs = if kind.standardised {
        "Pixels have mean 0 and deviation 1 over all images (labels play no part in that)"
    } else {
        "Pixels lie between 0 and 1"
    };
    let rate = match kind.rate {
        None => format!(
            "The learning rate is the best of {RATES:?} by validation agreement at N = {TUNING_CALLS} on three other seeds, the same effort for each; the test part chose nothing"
        ),
        Some(rate) => format!("No method is tuned: the learning rate is {rate} for each"),
    };
    let (first, last) = (kind.seeds.start, kind.seeds.end - 1);
    writeln!(
        page,
        "Ten seeds, {first} to {last}; each shuffles the 1,797 images, trains a teacher of its own ({}) on {} by their true labels (test accuracy {} %), and tests on 500. {inputs}. A call is the teacher's logits on one of the rest. The student is 64-32-10, AdamW, 2,000 steps of 64 (tuples, for comparisons), cosine to zero, weight decay 1e-4. N answers train, N / 5 more validate; every method of a seed sees the same ones. {rate}. Means ± half of the 95 % interval (Student's t) over seeds.\n",
        kind.words,
        kind.rows,
        cell(teacher)
    )?;
    for (title, table) in
        [("Test accuracy, %", accuracy), ("Agreement with the teacher on the test part, %", agreement)]
    {
        writeln!(
            page,
            "## {title}\n\n| method | learning rate | N=50 | 100 | 200 | 400 |\n| --- | --- | --- | --- | --- | --- |"
        )?;
        for (at, (name, _)) in METHODS.iter().enumerate() {
            writeln!(page, "| {name} | {} | {} |", rates[at], cells(&table[at]))?;
        }
        page.push('\n');
    }
    writeln!(
        page,
        "## Paired differences of CKD-MSE + offset fix, percentage points of accuracy\n\n| minus | N=50 | 100 | 200 | 400 |\n| --- | --- | --- | --- | --- |"
    )?;
    for (at, (name, _)) in METHODS.iter().enumerate().filter(|(at, _)| *at != FIXED) {
        writeln!(page, "| {name} | {} |", cells(&differences(accuracy, FIXED, at)))?;
    }
    writeln!(page, "\n## The bars\n")?;
    let means = |other: usize| -> Vec<f64> {
        differences(accuracy, FIXED, other).iter().map(|measure| measure.mean.unwrap_or(f64::NAN)).collect()
    };
    let mut bar = |text: &str, held: bool| {
        writeln!(page, "- {text}: **{}**", if held { "holds" } else { "does not hold" })
    };
    bar(
        "CKD with the offset fix is at least CE + KD at every N",
        means(LABELS_AND_KD).iter().all(|gap| *gap >= 0.0),
    )?;
    for (name, rival) in [("CE + RKD", RKD), ("mixup", MIXUP)] {
        bar(
            &format!("it is at least {name} + 1 point at N = 50 and 100"),
            means(rival)[..2].iter().all(|gap| *gap >= 1.0),
        )?;
    }
    let bare = [
        ("as published, both terms", PUBLISHED),
        ("the teacher's term alone", UNANCHORED),
        ("the same students, fix withheld", WITHHELD),
    ];
    for (name, bare) in bare {
        bar(
            &format!("without its anchor ({name}) it loses 3 points or more at N = 200 and 400"),
            means(bare)[2..].iter().all(|gap| *gap >= 3.0),
        )?;
    }
    let same = means(LOGIT_MSE).iter().all(|gap| gap.abs() <= 1.0);
    bar("CKD with the offset fix minus logit-MSE is 0 ± 1 point", same)?;
    if same {
        page.push_str("\nIn plain words: comparative distillation with the offset fix equals logit-MSE within noise here. That is what the algebra says: over all pairs the comparative loss is logit-MSE with a free constant for each class, and the fix sets that constant. What it gains over labels, plain regression of the logits gains as well; without the fix it is worse.\n");
    }
    Ok(page)
}
