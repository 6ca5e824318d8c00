//! The problem: samples, a teacher that learns them by their labels, and what it says about each.
//!
//! Must not know the students.

use std::sync::Arc;

use rand::{Rng, RngExt, SeedableRng, seq::index};
use rand_chacha::ChaCha8Rng;
use tuition_trainer::hidden::Projection;
use tuition_trainer::{
    CHECKPOINT, Control, Example, Input, MetricRow, Model, Outcome, RunConfig, Spend, Split, Target,
    TrainConfig, train_run,
};

use crate::{Failure, STEPS_MAX, STUDENT, Setting, sgd};

pub(crate) const POOL: usize = 200_000;
pub(crate) const HELD_OUT: usize = 4096;
/// Signs whose product is the class.
pub(crate) const RELEVANT: usize = 5;
/// A converged teacher has taken so many times the steps after which it was first right on 99.9 %: then its outputs say little
/// more than labels do. Another stops there.
const CONVERGED: usize = 4;

/// The problem with everything that a student may learn from.
pub(crate) struct World {
    /// All samples, those that are learnt from with the teacher's outputs, an earlier checkpoint's and projections.
    pub(crate) split: Split,
    /// Whether the teacher went on after it was right.
    pub(crate) converged: bool,
    pub(crate) teacher_steps: usize,
    pub(crate) teacher_accuracy: f32,
    /// Steps after which the earlier checkpoint was taken.
    pub(crate) checkpoint_steps: usize,
}

impl World {
    /// Draws the samples, trains the teacher and asks it about all of them.
    pub(crate) fn new(setting: &Setting, converged: bool) -> Result<Self, Failure> {
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
        if converged {
            (rows, teacher) = teach(setting, &labelled(&split), CONVERGED * right, None)?;
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
                for (((example, logits), young), hidden) in
                    chunk.iter_mut().zip(logits).zip(young).zip(hidden)
                {
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
        Ok(Self {
            split,
            converged,
            teacher_steps: last.step,
            teacher_accuracy: last.validation_agreement.unwrap_or_default(),
            checkpoint_steps: young,
        })
    }
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

/// The split as the teacher sees it: labels, and nothing of a teacher.
fn labelled(split: &Split) -> Split {
    Split { layers: vec![], ..split.clone() }
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
