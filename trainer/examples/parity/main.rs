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
//! students are the same perceptron of 32, by SGD with rate 0.1 and batches of 32, the same seeds for every method. What has a
//! first phase is run twice: with the length of a pilot, and with the length that five seeds of their own liked best. Sources:
//! arXiv 2503.17494 and 2410.05464; the settings follow them as far as they are published. A plot is left beside the page.

mod page;
mod world;

use std::error::Error;
use std::io::Write as _;
use std::ops::{Range, RangeInclusive};
use std::path::Path;

use rayon::prelude::*;
use tuition_trainer::plot::alone;
use tuition_trainer::{MethodConfig, Rule, StudentConfig, TrainConfig, score_seeds};

use page::Page;
use world::World;

const STUDENT: usize = 32;
const SEEDS: Range<u64> = 0..10;
/// The seeds that say how long a first phase is to be; they count for nothing else.
const TUNING: Range<u64> = 100..105;
/// The lengths that are tried, in quarters of the pilot's.
const QUARTERS: RangeInclusive<usize> = 1..=5;
const LOOK_EVERY: usize = 250;
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
/// Those with a first phase.
const PHASED: RangeInclusive<usize> = PROGRESSIVE..=HEAD;

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

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let usage = "usage: parity 50|40 PAGE.md [converged|early]";
    let (signs, file, converged) = match &arguments[..] {
        [signs, file] => (signs, file, true),
        [signs, file, teacher] if teacher == "converged" => (signs, file, true),
        [signs, file, teacher] if teacher == "early" => (signs, file, false),
        _ => return Err(usage.into()),
    };
    let file = Path::new(file);
    let svg = file.with_extension("svg");
    let plot = svg.file_name().ok_or(usage)?.to_string_lossy();
    let setting = SETTINGS.iter().find(|setting| setting.signs.to_string() == *signs).ok_or(usage)?;
    let started = std::time::Instant::now();
    let world = World::new(setting, converged)?;
    let mut out = std::io::stdout();
    writeln!(
        out,
        "teacher {:.4} after {} steps, checkpoint at {}; {:.0} s",
        world.teacher_accuracy,
        world.teacher_steps,
        world.checkpoint_steps,
        started.elapsed().as_secs_f64()
    )?;
    let of_pilot: Vec<(usize, usize)> = (0..METHODS.len()).map(|method| (method, setting.phase)).collect();
    let of_pilot = rows(&world, &of_pilot, SEEDS)?;
    let tuned = rows(&world, &tune(&world, setting)?, SEEDS)?;
    let minutes = started.elapsed().as_secs_f64() / 60.0;
    let page = Page { setting, world: &world, of_pilot: &of_pilot, tuned: &tuned, plot: &plot, minutes };
    let (text, drawn) = (page.markdown()?, page.plot().ok_or("no student was looked at")?);
    writeln!(out, "{text}")?;
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(file, text)?;
    std::fs::write(svg, alone(&drawn))?;
    Ok(())
}

/// A method with one length of its first phase, and what became of its students.
struct Row {
    method: usize,
    phase: usize,
    students: Vec<Student>,
}

/// Trains the students of methods, each with the steps of its first phase; all of them side by side.
fn rows(world: &World, methods: &[(usize, usize)], seeds: Range<u64>) -> Result<Vec<Row>, Failure> {
    let jobs: Vec<(usize, usize, u64)> = methods
        .iter()
        .flat_map(|(method, phase)| seeds.clone().map(move |seed| (*method, *phase, seed)))
        .collect();
    let mut students =
        jobs.into_par_iter().map(|job| student(world, job)).collect::<Result<Vec<_>, Failure>>()?.into_iter();
    let row = |(method, phase): &(usize, usize)| Row {
        method: *method,
        phase: *phase,
        students: students.by_ref().take(seeds.clone().count()).collect(),
    };
    Ok(methods.iter().map(row).collect())
}

/// For each method with a first phase, the length that the tuning seeds liked best: the lowest median of steps, then the
/// shorter one.
fn tune(world: &World, setting: &Setting) -> Result<Vec<(usize, usize)>, Failure> {
    let tried: Vec<(usize, usize)> = PHASED
        .flat_map(|method| QUARTERS.map(move |quarters| (method, quarters * setting.phase / 4)))
        .collect();
    let tried = rows(world, &tried, TUNING)?;
    let best = |method: usize| {
        let of_it = tried.iter().filter(|row| row.method == method);
        let best = of_it.min_by(|one, other| median(&one.students).total_cmp(&median(&other.students)));
        best.map(|row| (method, row.phase)).ok_or_else(|| "no length was tried".into())
    };
    PHASED.map(best).collect()
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

/// Steps until a student saw the parity, and until it was done, where it was; and each look at it, with its accuracy.
struct Student {
    seen: Option<usize>,
    done: Option<usize>,
    looks: Vec<(usize, f32)>,
}

fn student(world: &World, (method, phase, seed): (usize, usize, u64)) -> Result<Student, Failure> {
    let method: MethodConfig = toml::from_str(&METHODS[method].1.replace("PHASE", &phase.to_string()))?;
    let config = TrainConfig { until: Some(DONE), ..sgd(STEPS_MAX, seed) };
    let student = StudentConfig::Mlp { hidden: vec![STUDENT] };
    let (_, rows) = score_seeds(&world.split, &student, &method, &config)?;
    let looks: Vec<(usize, f32)> =
        rows.iter().filter_map(|row| Some((row.step, row.validation_agreement?))).collect();
    let first = |least: f32| looks.iter().find(|(_, right)| *right >= least).map(|(step, _)| *step);
    Ok(Student { seen: first(SEEN), done: first(DONE as f32), looks })
}

/// The median of steps; a seed that never got there counts as the most.
fn median(ran: &[Student]) -> f64 {
    let mut steps: Vec<usize> = ran.iter().map(|ran| ran.seen.unwrap_or(STEPS_MAX)).collect();
    steps.sort_unstable();
    let middle = steps.len() / 2;
    if steps.len() % 2 == 1 { steps[middle] as f64 } else { (steps[middle - 1] + steps[middle]) as f64 / 2.0 }
}
