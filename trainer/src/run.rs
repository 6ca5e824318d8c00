//! A run from its file to its folder: what RUN.toml says, and the one call that trains all it asks for.
//!
//! It must not know where examples come from or what answers cost: a split and the spend are handed in. Invariant: the
//! resolved settings in the folder are enough to repeat the run.

mod config;
mod data;
mod error;

use std::path::Path;
use std::sync::Arc;

use crate::evaluate::{Measures, Scores, score};
use crate::example::{Example, Input, Split, Target};
use crate::export;
use crate::loss::{Labels, LabelsLoss, LossConfig};
use crate::method::MethodConfig;
use crate::range::Judged;
use crate::report::{self, Report, Row, Spend, make};
use crate::student::{Built, Student, StudentConfig};
use crate::train::{
    Control, Ended, Kept, MetricRow, Task, TrainConfig, TrainError, digests, fits, replace, train,
};

pub use config::{BudgetConfig, RunConfig, TeacherConfig};
pub use data::{DataConfig, Source, TestPart};
pub use error::ConfigError;

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Every seed is trained and the folder is written.
    Finished(Box<Report>),
    /// The interrupt was set: the state is saved, and the same run with `resume` goes on from it.
    Interrupted {
        /// The seed that was in training.
        seed: u64,
        /// Its steps.
        step: usize,
    },
}

/// The loss of the row `student_alone`: the classes alone that the teacher's answers name.
const ALONE: LossConfig =
    LossConfig::Labels(LabelsLoss { weight: 1.0, of: Labels::Teacher, balanced: false });

/// Checks whatever can be checked before anything is bought: that the run's student and method suit such inputs, and `pool` more
/// of them that nobody asks about.
///
/// # Errors
/// What cannot be trained, by name.
pub fn check_fit(config: &RunConfig, sample: &Input, pool: usize) -> Result<(), TrainError> {
    fits(&config.student, &config.method, &config.train, sample, pool)
}

/// Trains every seed of a run, scores it on the test part, and writes its folder.
///
/// Beside the method, the same student is trained on the teacher's classes alone, with the same seeds and settings: the
/// row `student_alone` says what the method adds.
///
/// # Errors
/// Whatever cannot be trained or written, by name; checked before the first step where it can be.
pub fn train_run(
    config: &RunConfig,
    split: &Split,
    spend: Spend,
    folder: &Path,
    control: &Control<'_>,
) -> Result<Outcome, TrainError> {
    let alone = MethodConfig::of(vec![ALONE]);
    split.check_test()?;
    let task = Task::new(split, &config.student, &config.method, &config.train)?;
    let checkpoints = folder.join("checkpoints");
    make(&checkpoints)?;
    let resolved = config.to_toml().map_err(|error| TrainError::Export(error.to_string()))?;
    replace(&folder.join("config.toml"), resolved.as_bytes())?;

    let seeds = match train_seeds(&task, split, Some((&checkpoints, "student")), control)? {
        Seeds::Trained(seeds) => seeds,
        Seeds::Interrupted { seed, step } => return Ok(Outcome::Interrupted { seed, step }),
    };
    // Without a teacher the labels are all there is.
    let same = config.method == alone || config.teacher.is_none();
    let alone_scores = if same {
        seeds.scores.clone()
    } else if config.train.alone {
        let task = Task::new(split, &config.student, &alone, &config.train)?;
        match train_seeds(&task, split, Some((&checkpoints, "alone")), control)? {
            Seeds::Trained(alone) => alone.scores,
            Seeds::Interrupted { seed, step } => return Ok(Outcome::Interrupted { seed, step }),
        }
    } else {
        vec![]
    };
    let report = Report {
        method: config.method.name(),
        calls: split.train.len() + split.validation.len(),
        seeds: config.train.seeds.clone(),
        test: Measures::of(&seeds.scores),
        teacher: Row { name: config.answers_from().into(), test: teacher_row(split) },
        student_alone: Row { name: config.labels_from().into(), test: Measures::of(&alone_scores) },
        spend,
    };
    let card = report::card(&config.name, &report, config.student.name(), &split.classes);
    let sample = &split.train[0].input;
    export::save(&folder.join("model"), &seeds.first, &config.student, sample, &split.classes, &card)?;
    report::write(folder, &config.name, &report, &seeds.rows, &manifest(config, split, &seeds.first))?;
    Ok(Outcome::Finished(Box::new(report)))
}

/// Trains every seed and scores it on the test part, keeping nothing: for experiments that compare methods.
///
/// # Errors
/// Whatever cannot be trained, by name. An interrupt is not looked for.
pub fn score_seeds(
    split: &Split,
    student: &StudentConfig,
    method: &MethodConfig,
    config: &TrainConfig,
) -> Result<(Measures, Vec<MetricRow>), TrainError> {
    split.check_test()?;
    let task = Task::new(split, student, method, config)?;
    let control = Control { interrupt: Arc::default(), progress: &|_| {}, resume: false };
    match train_seeds(&task, split, None, &control)? {
        Seeds::Trained(seeds) => Ok((Measures::of(&seeds.scores), seeds.rows)),
        Seeds::Interrupted { seed, step } => Err(TrainError::Diverged { seed, step, loss: f32::NAN }),
    }
}

struct Trained {
    first: Built,
    scores: Vec<Scores>,
    rows: Vec<MetricRow>,
}

enum Seeds {
    Trained(Box<Trained>),
    Interrupted { seed: u64, step: usize },
}

fn train_seeds(
    task: &Task,
    split: &Split,
    kept: Kept<'_>,
    control: &Control<'_>,
) -> Result<Seeds, TrainError> {
    let test: Vec<&Example> = split.test.iter().collect();
    let (mut first, mut scores, mut rows) = (None, Vec::new(), Vec::new());
    for seed in &task.config.seeds {
        let trained = match train(task, *seed, kept, control)? {
            Ended::Finished(trained) => trained,
            Ended::Interrupted { step } => return Ok(Seeds::Interrupted { seed: *seed, step }),
        };
        scores.push(score(&trained.student.logits(&test)?, &test));
        rows.extend(trained.rows);
        first.get_or_insert(trained.student);
    }
    let first = first.ok_or_else(|| Judged("train").refused("seeds", "[]", "at least one"))?;
    Ok(Seeds::Trained(Box::new(Trained { first, scores, rows })))
}

/// The teacher on the test part, by its recorded answers; empty where it was not asked about all of it.
fn teacher_row(split: &Split) -> Measures {
    let classes = split.classes.len();
    let logits: Option<Vec<Vec<f32>>> = split
        .test
        .iter()
        .map(|example| match example.target.as_ref()? {
            Target::Logits(scores) | Target::LogProbabilities(scores) => Some(scores.clone()),
            Target::Label(class) => {
                let mut certain = vec![f32::MIN / 2.0; classes];
                certain[*class as usize] = 0.0;
                Some(certain)
            }
        })
        .collect();
    let test: Vec<&Example> = split.test.iter().collect();
    let labels_only = test.iter().any(|example| matches!(example.target, Some(Target::Label(_))));
    let mut measured: Vec<Scores> = logits.iter().map(|logits| score(logits, &test)).collect();
    for scores in &mut measured {
        if labels_only {
            // A bare class says nothing about how sure the teacher was.
            (scores.ece, scores.loss) = (None, None);
        }
        if test.iter().any(|example| example.truth.is_none()) {
            // Against its own labels the teacher would look perfect.
            (scores.ece, scores.loss) = (None, None);
        }
    }
    Measures::of(&measured)
}

fn manifest(config: &RunConfig, split: &Split, student: &Built) -> serde_json::Value {
    let (data, record) = digests(split);
    serde_json::json!({
        "name": config.name,
        "tuition": env!("CARGO_PKG_VERSION"),
        "device": config.train.device.name(),
        "seeds": config.train.seeds,
        "digests": { "data": data, "record": record },
        "examples": {
            "train": split.train.len(),
            "validation": split.validation.len(),
            "test": split.test.len(),
        },
        "classes": split.classes.len(),
        "teacher": { "name": config.answers_from(), "gives": split.gives().map(|signal| signal.name()) },
        "student": { "kind": config.student.name(), "parameters": student.parameters().count() },
        "onnx": { "input": export::INPUT, "output": export::OUTPUT },
    })
}

#[cfg(test)]
mod tests;
