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

use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;
use std::ops::{Range, RangeInclusive};
use std::path::Path;
use std::sync::Arc;

use rand::{Rng, RngExt, SeedableRng, seq::index};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use tuition_trainer::hidden::Projection;
use tuition_trainer::plot::{Plot, Point, alone};
use tuition_trainer::{
    CHECKPOINT, Control, Example, Input, Measure, MethodConfig, MetricRow, Model, Outcome, Rule, RunConfig,
    Spend, Split, StudentConfig, Target, TrainConfig, score_seeds, train_run,
};

const POOL: usize = 200_000;
const HELD_OUT: usize = 4096;
/// Signs whose product is the class.
const RELEVANT: usize = 5;
const STUDENT: usize = 32;
const SEEDS: Range<u64> = 0..10;
/// The seeds that say how long a first phase is to be; they count for nothing else.
const TUNING: Range<u64> = 100..105;
/// The lengths that are tried, in quarters of the pilot's.
const QUARTERS: RangeInclusive<usize> = 1..=5;
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
/// Those with a first phase.
const PHASED: RangeInclusive<usize> = PROGRESSIVE..=HEAD;
/// Steps at which the plot looks.
const DRAWN: [usize; 15] =
    [500, 1000, 1500, 2000, 3000, 4000, 5000, 6000, 8000, 11_000, 15_000, 20_000, 27_000, 36_000, 48_000];

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
    let of_pilot: Vec<(usize, usize)> = (0..METHODS.len()).map(|method| (method, setting.phase)).collect();
    let of_pilot = rows(&world, &of_pilot, SEEDS)?;
    let tuned = rows(&world, &tune(&world, setting)?, SEEDS)?;
    let minutes = started.elapsed().as_secs_f64() / 60.0;
    let text = write_page(setting, (&world, trained), (&of_pilot, &tuned), minutes)?;
    writeln!(out, "{text}")?;
    if let Some(folder) = Path::new(page).parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(page, text)?;
    if let Some(svg) = draw(&of_pilot) {
        std::fs::write(Path::new(page).with_extension("svg"), alone(&svg))?;
    }
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

/// Held-out accuracy against steps, means over seeds; a student that was done stays where it was.
fn draw(rows: &[Row]) -> Option<String> {
    let point = |row: &Row, steps: usize| {
        let last = |student: &Student| {
            student
                .looks
                .iter()
                .take_while(|(step, _)| *step <= steps)
                .last()
                .map(|(_, right)| f64::from(*right))
        };
        let accuracy = Measure::of(row.students.iter().filter_map(last).collect());
        Some(Point { x: steps as f64, y: accuracy.mean?, half: accuracy.ci95 })
    };
    let curve = |row: &Row| {
        let points = DRAWN.iter().filter_map(|steps| point(row, *steps)).collect();
        (METHODS[row.method].0, points)
    };
    let plot = Plot {
        title: "Accuracy on held-out samples against steps",
        across: "steps, the first phase included",
        curves: rows.iter().map(curve).collect(),
        level: None,
    };
    plot.svg()
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

fn thousands(steps: usize) -> String {
    format!("{:.2}k", steps as f64 / 1000.0)
}

fn write_page(
    setting: &Setting,
    (world, trained): (&World, usize),
    (of_pilot, tuned): (&[Row], &[Row]),
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
    let name = if trained > 1 { format!("parity-{signs}") } else { format!("parity-{signs}-early") };
    writeln!(page, "![Accuracy on held-out samples against steps]({name}.svg)\n")?;
    page += &table(of_pilot)?;
    writeln!(page, "\n## The bars\n")?;
    page += &bars(of_pilot, of_pilot)?;
    writeln!(
        page,
        "\n## With the first phase as long as other seeds liked it\n\nThe pilot's length is one choice, with which the first bar is missed at d = 40; \
         this was added after that was seen. For each method with a first phase, {} to {}\nquarters of it were run on seeds {} to {}; \
         the one with the lowest median was taken, and run on the seeds above.\n",
        QUARTERS.start(),
        QUARTERS.end(),
        TUNING.start,
        TUNING.end - 1,
    )?;
    page += &table(tuned)?;
    writeln!(page)?;
    page += &bars(of_pilot, tuned)?;
    writeln!(
        page,
        "\nA seed that does not get there counts as {STEPS_MAX} steps in the median. Calls: a sample is asked once for labels and one-shot\ndistillation, once for extraction (its answer holds the projections), and once for each of two checkpoints for progressive distillation."
    )?;
    if trained > 1 {
        writeln!(page, "{SETTLED}")?;
    }
    Ok(page)
}

fn table(rows: &[Row]) -> Result<String, Failure> {
    let mut table = String::new();
    writeln!(
        table,
        "| steps to {:.0} % on held-out samples, phase one included | median | seeds, sorted | seeds that reach {:.0} % |",
        100.0 * SEEN,
        100.0 * DONE
    )?;
    writeln!(table, "| --- | --- | --- | --- |")?;
    for row in rows {
        let mut steps: Vec<Option<usize>> = row.students.iter().map(|ran| ran.seen).collect();
        steps.sort_unstable_by_key(|steps| steps.unwrap_or(usize::MAX));
        let steps: Vec<String> =
            steps.into_iter().map(|steps| steps.map_or_else(|| "stuck".to_owned(), thousands)).collect();
        let done = row.students.iter().filter(|ran| ran.done.is_some()).count();
        let phase =
            if PHASED.contains(&row.method) { format!(", {} steps", row.phase) } else { String::new() };
        writeln!(
            table,
            "| {}{phase} | {:.2}k | {} | {done} of {} |",
            METHODS[row.method].0,
            median(&row.students) / 1000.0,
            steps.join(", "),
            row.students.len()
        )?;
    }
    Ok(table)
}

/// What counts as reproduced: `plain` holds the methods without a first phase, `phased` those with one.
fn bars(plain: &[Row], phased: &[Row]) -> Result<String, Failure> {
    let of = |rows: &[Row], method: usize| {
        let row = rows.iter().find(|row| row.method == method).ok_or("a method has no row")?;
        Ok::<_, Failure>((median(&row.students), row.students.iter().all(|ran| ran.done.is_some())))
    };
    let ((labels, _), (one_shot, _)) = (of(plain, LABELS)?, of(plain, ONE_SHOT)?);
    let ((progressive, _), (head, every)) = (of(phased, PROGRESSIVE)?, of(phased, HEAD)?);
    let bars = [
        (
            format!(
                "one-shot KD takes at least 5 times the steps of extraction (linear head): {:.1} times",
                one_shot / head
            ),
            one_shot / head >= 5.0,
        ),
        (
            format!(
                "extraction takes at most 1.5 times the steps of progressive distillation: {:.2} times",
                head / progressive
            ),
            head / progressive <= 1.5,
        ),
        (format!("every seed of extraction reaches {:.0} %", 100.0 * DONE), every),
        (
            format!("one-shot KD is within 40 % of labels: {:.2} times", one_shot / labels),
            (0.6..=1.4).contains(&(one_shot / labels)),
        ),
    ];
    let verdict = |holds: bool| if holds { "holds" } else { "**is missed**" };
    let line = |(bar, holds): (String, bool)| format!("- {bar}: {}.\n", verdict(holds));
    Ok(bars.into_iter().map(line).collect())
}
