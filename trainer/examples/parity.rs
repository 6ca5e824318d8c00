//! The sparse parity experiment: what a curriculum extracted from one teacher is worth beside labels, one-shot distillation and
//! progressive distillation, in steps until a student sees the parity.
//!
//! `cargo run --release -p tuition-trainer --example parity -- 50 docs/results/parity-50.md` (or `40`; a third argument `early`
//! stops the teacher as soon as it is right)
//!
//! Inputs are d signs, the class is the product of k = 5 of them. A pool of samples is drawn once; no student sees a tenth
//! of it more often than a few times, and 4,096 further ones are held out. The teacher is a perceptron of one wide
//! layer, trained here by the labels; its outputs, those of one earlier checkpoint (the first look at which it is right on
//! three of four held-out samples) and 32 random projections of its hidden layer are what a student may learn from. All
//! students are the same perceptron of 32, by SGD with rate 0.1 and batches of 32, the same seeds for every method. Sources:
//! arXiv 2503.17494 and 2410.05464; the settings follow them as far as they are published.

use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use rand::{Rng, RngExt, SeedableRng, seq::index};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use tuition_trainer::hidden::Projection;
use tuition_trainer::{
    CHECKPOINT, Control, Example, Input, MethodConfig, MetricRow, Model, Outcome, Rule, RunConfig, Spend,
    Split, StudentConfig, Target, TrainConfig, score_seeds, train_run,
};

const POOL: usize = 200_000;
const HELD_OUT: usize = 4096;
/// Signs whose product is the class.
const RELEVANT: usize = 5;
const STUDENT: usize = 32;
const SEEDS: std::ops::Range<u64> = 0..10;
const LOOK_EVERY: usize = 250;
/// A converged teacher has taken so many times the steps after which it was first right on 99.9 %: then its outputs say little
/// more than labels do. An early one stops there.
const CONVERGED: usize = 4;
const STEPS_MAX: usize = 150_000;
/// What counts as seeing the parity, and where a student stops.
const SEEN: f32 = 0.9;
const DONE: f64 = 0.98;

/// Name and `[method]` table; PHASE stands for the steps of the first phase.
const METHODS: [(&str, &str); 5] = [
    ("labels", "losses = [{ kind = 'labels', of = 'truth' }]"),
    ("one-shot KD", "losses = [{ kind = 'kd', temperature = 1.0 }]"),
    (
        "progressive, two checkpoints",
        "losses = [{ kind = 'kd', temperature = 1.0 }]\nprogressive = { steps = PHASE }",
    ),
    (
        "extraction, direct",
        "losses = [{ kind = 'kd', temperature = 1.0 }]\ncurriculum = { steps = PHASE, match = 'direct' }",
    ),
    (
        "extraction, linear head",
        "losses = [{ kind = 'kd', temperature = 1.0 }]\ncurriculum = { steps = PHASE }",
    ),
];
const LABELS: usize = 0;
const ONE_SHOT: usize = 1;
const PROGRESSIVE: usize = 2;
const HEAD: usize = 4;

/// As in the program: with glibc's, a third of the time of a step goes into pages that come and go.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn Error + Send + Sync>;

/// What is known of one size of the problem.
struct Setting {
    signs: usize,
    teacher: usize,
    phase: usize,
}

const SETTINGS: [Setting; 2] =
    [Setting { signs: 50, teacher: 2000, phase: 5000 }, Setting { signs: 40, teacher: 1500, phase: 4000 }];

/// How the teacher was settled on.
const SETTLED: &str = "
How the teacher was settled on: a first run stopped it as soon as it was right, and missed two of the bars (docs/results/parity-50-early.md): an early teacher's soft
outputs still say which signs matter. The converged teacher was chosen after that, with its length (four times as many steps) fixed before it was run, once; the
papers distil from teachers trained to their end.";

/// The problem with everything that a student may learn from.
struct World {
    split: Split,
    teacher_steps: usize,
    teacher_accuracy: f32,
    checkpoint_steps: usize,
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let usage = "usage: parity 50|40 PAGE.md [converged|early]";
    let (signs, page, trained) = match &arguments[..] {
        [signs, page] => (signs, page, CONVERGED),
        [signs, page, teacher] if teacher == "converged" => (signs, page, CONVERGED),
        [signs, page, teacher] if teacher == "early" => (signs, page, 1),
        _ => return Err(usage.into()),
    };
    let setting = SETTINGS.iter().find(|setting| setting.signs.to_string() == *signs).ok_or(usage)?;
    let started = std::time::Instant::now();
    let world = world(setting, trained)?;
    let mut out = std::io::stdout();
    writeln!(
        out,
        "teacher {:.4} after {} steps, checkpoint at {}; {:.0} s",
        world.teacher_accuracy,
        world.teacher_steps,
        world.checkpoint_steps,
        started.elapsed().as_secs_f64()
    )?;
    let jobs: Vec<(usize, u64)> =
        (0..METHODS.len()).rev().flat_map(|method| SEEDS.map(move |seed| (method, seed))).collect();
    let ran: Vec<((usize, u64), Student)> = jobs
        .into_par_iter()
        .map(|job| Ok((job, student(&world, setting, job)?)))
        .collect::<Result<_, Failure>>()?;
    let of = |method: usize| -> Vec<Student> {
        SEEDS
            .filter_map(|seed| ran.iter().find(|(job, _)| *job == (method, seed)).map(|(_, ran)| *ran))
            .collect()
    };
    let all: Vec<Vec<Student>> = (0..METHODS.len()).map(of).collect();
    let minutes = started.elapsed().as_secs_f64() / 60.0;
    let text = write_page(setting, (&world, trained), &all, minutes)?;
    writeln!(out, "{text}")?;
    if let Some(folder) = Path::new(page).parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(page, text)?;
    Ok(())
}

fn samples(signs: usize, relevant: &[usize], count: usize, first: usize, rng: &mut impl Rng) -> Vec<Example> {
    let example = |at: usize| {
        let values: Vec<f32> = (0..signs).map(|_| if rng.random::<bool>() { 1.0 } else { -1.0 }).collect();
        let product: f32 = relevant.iter().map(|sign| values[*sign]).product();
        let class = u32::from(product > 0.0);
        Example {
            key: format!("{at:07}"),
            input: Input::Vector(values),
            target: Some(Target::Label(class)),
            truth: Some(class),
            hidden: vec![],
        }
    };
    (first..first + count).map(example).collect()
}

/// Draws the samples, trains the teacher and asks it about all of them.
fn world(setting: &Setting, trained: usize) -> Result<World, Failure> {
    let mut rng = ChaCha8Rng::seed_from_u64(setting.signs as u64);
    let relevant = index::sample(&mut rng, setting.signs, RELEVANT).into_vec();
    let train = samples(setting.signs, &relevant, POOL, 0, &mut rng);
    let held_out = samples(setting.signs, &relevant, HELD_OUT, POOL, &mut rng);
    let mut split = Split {
        train,
        validation: held_out.clone(),
        // The report of a run wants a test part; nothing here looks at it.
        test: samples(setting.signs, &relevant, 64, POOL + HELD_OUT, &mut rng),
        classes: vec!["-1".into(), "1".into()],
        layers: vec![format!("{CHECKPOINT}young"), "relu1".into()],
        ..Split::default()
    };
    let (mut rows, mut teacher) = teach(setting, &labelled(&split), STEPS_MAX, Some(0.999))?;
    let right = rows.last().ok_or("the teacher took no step")?.step;
    if trained > 1 {
        (rows, teacher) = teach(setting, &labelled(&split), trained * right, None)?;
    }
    let last = rows.last().ok_or("the teacher took no step")?;
    let young = rows.iter().find(|row| row.validation_agreement >= Some(0.75));
    let young = young.ok_or("the teacher never saw the parity")?.step;
    let (_, earlier) = teach(setting, &labelled(&split), young, None)?;
    let projection = Projection::new(STUDENT, 0);
    for part in [&mut split.train, &mut split.validation] {
        for chunk in part.chunks_mut(1000) {
            let asked: Vec<&Example> = chunk.iter().collect();
            let (logits, young) = (teacher.logits(&asked)?, earlier.logits(&asked)?);
            let hidden = teacher.hidden(&asked, 0)?;
            for (((example, logits), young), hidden) in chunk.iter_mut().zip(logits).zip(young).zip(hidden) {
                example.target = Some(Target::Logits(logits));
                example.hidden = vec![young, projection.project("relu1", &hidden)];
            }
        }
    }
    // Held out are the true classes: agreement with them is accuracy.
    for example in &mut split.validation {
        let truth = example.truth.unwrap_or_default();
        example.target = Some(Target::Logits(vec![-(truth as f32), truth as f32 - 1.0]));
    }
    Ok(World {
        split,
        teacher_steps: last.step,
        teacher_accuracy: last.validation_agreement.unwrap_or_default(),
        checkpoint_steps: young,
    })
}

/// The split as the teacher sees it: labels, and nothing of a teacher.
fn labelled(split: &Split) -> Split {
    Split { layers: vec![], ..split.clone() }
}

fn sgd(steps: usize, seed: u64) -> TrainConfig {
    TrainConfig {
        steps,
        batch: 32,
        optimizer: Rule::Sgd,
        lr: 0.1,
        momentum: 0.0,
        evaluate_every: LOOK_EVERY,
        checkpoint_every: 0,
        seeds: vec![seed],
        ..TrainConfig::default()
    }
}

/// A teacher after so many steps: the same seed goes the same way, so that a shorter run is a checkpoint of a longer one.
fn teach(
    setting: &Setting,
    split: &Split,
    steps: usize,
    until: Option<f64>,
) -> Result<(Vec<MetricRow>, Model), Failure> {
    let text = format!(
        "name = 'teacher'\nteacher = {{ name = 'labels' }}\ndata = {{ source = 'csv', path = '-' }}\nbudget = {{ calls = {POOL} }}\n\
         student = {{ kind = 'mlp', hidden = [{}] }}\nmethod = {{ losses = [{{ kind = 'labels' }}] }}\n",
        setting.teacher
    );
    let config = RunConfig { train: TrainConfig { until, ..sgd(steps, 0) }, ..RunConfig::parse(&text, &[])? };
    let folder = tempfile::tempdir()?;
    let control = Control { interrupt: Arc::default(), progress: &|_| {}, resume: false };
    let Outcome::Finished(_) = train_run(&config, split, Spend::default(), folder.path(), &control)? else {
        return Err("nobody interrupts a teacher".into());
    };
    let rows = std::fs::read_to_string(folder.path().join("metrics.jsonl"))?;
    let rows = rows.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    Ok((rows, Model::load(&folder.path().join("model"))?))
}

/// Steps until a student saw the parity, and until it was done, where it was.
#[derive(Clone, Copy)]
struct Student {
    seen: Option<usize>,
    done: Option<usize>,
}

fn student(world: &World, setting: &Setting, (method, seed): (usize, u64)) -> Result<Student, Failure> {
    let method: MethodConfig =
        toml::from_str(&METHODS[method].1.replace("PHASE", &setting.phase.to_string()))?;
    let config = TrainConfig { until: Some(DONE), ..sgd(STEPS_MAX, seed) };
    let student = StudentConfig::Mlp { hidden: vec![STUDENT] };
    let (_, rows) = score_seeds(&world.split, &student, &method, &config)?;
    let first =
        |least: f32| rows.iter().find(|row| row.validation_agreement >= Some(least)).map(|row| row.step);
    Ok(Student { seen: first(SEEN), done: first(DONE as f32) })
}

/// The median of steps; a seed that never got there counts as the most.
fn median(ran: &[Student]) -> f64 {
    let mut steps: Vec<usize> = ran.iter().map(|ran| ran.seen.unwrap_or(STEPS_MAX)).collect();
    steps.sort_unstable();
    let middle = steps.len() / 2;
    if steps.len() % 2 == 1 { steps[middle] as f64 } else { (steps[middle - 1] + steps[middle]) as f64 / 2.0 }
}

fn thousands(steps: usize) -> String {
    format!("{:.2}k", steps as f64 / 1000.0)
}

fn write_page(
    setting: &Setting,
    (world, trained): (&World, usize),
    all: &[Vec<Student>],
    minutes: f64,
) -> Result<String, Failure> {
    let mut page = String::new();
    let Setting { signs, teacher, phase } = setting;
    writeln!(page, "# Sparse parity, d = {signs}, k = {RELEVANT}\n")?;
    writeln!(
        page,
        "`cargo run --release -p tuition-trainer --example parity -- {signs} docs/results/parity-{signs}{}.md {}`\n",
        if trained > 1 { "" } else { "-early" },
        if trained > 1 { "converged" } else { "early" },
    )?;
    writeln!(
        page,
        "A teacher of one hidden layer of {teacher} ReLUs ({} steps of SGD on labels, {:.2} % right on {HELD_OUT} held-out samples), students of\n\
         {STUDENT}, seeds {} to {}; batches of 32, rate 0.1, no momentum; the first phase of progressive distillation and of extraction takes {phase}\n\
         steps, which are counted. Progressive distillation starts from the teacher after {} steps: the first look at which it was right on three of\n\
         four. Extraction sees {STUDENT} projections of the teacher's hidden layer. Samples come from a pool of {POOL}, in shuffled passes, where the\n\
         papers draw fresh ones. A look is taken every {LOOK_EVERY} steps, at most {STEPS_MAX} steps. {minutes:.0} minutes on two cores.\n",
        world.teacher_steps,
        100.0 * world.teacher_accuracy,
        SEEDS.start,
        SEEDS.end - 1,
        world.checkpoint_steps,
    )?;
    writeln!(
        page,
        "| steps to {:.0} % on held-out samples, phase one included | median | seeds, sorted | seeds that reach {:.0} % |",
        100.0 * SEEN,
        100.0 * DONE
    )?;
    writeln!(page, "| --- | --- | --- | --- |")?;
    for ((name, _), ran) in METHODS.iter().zip(all) {
        let mut steps: Vec<Option<usize>> = ran.iter().map(|ran| ran.seen).collect();
        steps.sort_unstable_by_key(|steps| steps.unwrap_or(usize::MAX));
        let steps: Vec<String> =
            steps.into_iter().map(|steps| steps.map_or_else(|| "stuck".to_owned(), thousands)).collect();
        let done = ran.iter().filter(|ran| ran.done.is_some()).count();
        writeln!(
            page,
            "| {name} | {:.2}k | {} | {done} of {} |",
            median(ran) / 1000.0,
            steps.join(", "),
            ran.len()
        )?;
    }
    let ratio = |above: usize, below: usize| median(&all[above]) / median(&all[below]);
    let verdict = |holds: bool| if holds { "holds" } else { "**is missed**" };
    let every = all[HEAD].iter().all(|ran| ran.done.is_some());
    writeln!(page, "\n## The bars\n")?;
    let bars = [
        (
            format!(
                "one-shot KD takes at least 5 times the steps of extraction (linear head): {:.1} times",
                ratio(ONE_SHOT, HEAD)
            ),
            ratio(ONE_SHOT, HEAD) >= 5.0,
        ),
        (
            format!(
                "extraction takes at most 1.5 times the steps of progressive distillation: {:.2} times",
                ratio(HEAD, PROGRESSIVE)
            ),
            ratio(HEAD, PROGRESSIVE) <= 1.5,
        ),
        (format!("every seed of extraction reaches {:.0} %", 100.0 * DONE), every),
        (
            format!("one-shot KD is within 40 % of labels: {:.2} times", ratio(ONE_SHOT, LABELS)),
            (0.6..=1.4).contains(&ratio(ONE_SHOT, LABELS)),
        ),
    ];
    for (bar, holds) in bars {
        writeln!(page, "- {bar}: {}.", verdict(holds))?;
    }
    writeln!(
        page,
        "\nA seed that does not get there counts as {STEPS_MAX} steps in the median. Calls: a sample is asked once for labels and one-shot\ndistillation, once for extraction (its answer holds the projections), and once for each of two checkpoints for progressive distillation."
    )?;
    if trained > 1 {
        writeln!(page, "{SETTLED}")?;
    }
    Ok(page)
}
