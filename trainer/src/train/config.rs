//! The `[train]` table of a run file: how long and how fast, and what each number may be.
//!
//! It must not know the loop. Invariant: a setting out of its range is refused by its name before the first step.

use serde::{Deserialize, Deserializer, Serialize};

use super::TrainError;
use crate::augment::Augment;
use crate::machine::Machine;
use crate::ops::Precision;
use crate::optimizer::{Rule, Schedule, Settings};
use crate::processor::Processor;
use crate::range::Judged;

/// The `[train]` table of a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// The most steps a seed takes.
    pub steps: usize,
    /// Examples or tuples a step.
    pub batch: usize,
    /// The rule of the optimizer.
    pub optimizer: Rule,
    /// The highest learning rate.
    pub lr: f64,
    /// How it changes.
    pub schedule: Schedule,
    /// Steps over which it rises from zero.
    pub warmup: usize,
    /// The pull of the weights towards zero.
    pub weight_decay: f64,
    /// SGD's momentum.
    pub momentum: f64,
    /// Whether SGD looks ahead.
    pub nesterov: bool,
    /// The largest norm of all gradients together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
    /// How images are changed before each step; the answer stays the one to the image itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub augment: Option<Augment>,
    /// The share of the past in a running average of the variables, by which the student is judged and kept; none: its last
    /// values. The running statistics of batch normalisation are taken anew for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
    /// Whether the same student is also trained on the teacher's classes alone, for the report's row `student_alone`; it takes
    /// as many steps again.
    pub alone: bool,
    /// What computes the steps.
    #[serde(skip_serializing_if = "is_default")]
    pub device: Processor,
    /// What the factors of products are rounded to.
    #[serde(skip_serializing_if = "is_default")]
    pub precision: Precision,
    /// Steps between two looks at the validation part.
    pub evaluate_every: usize,
    /// Looks without progress before a seed stops; 0 never stops.
    pub patience: usize,
    /// The agreement with the teacher on the validation part at which a seed stops; none: it goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<f64>,
    /// Steps between two checkpoints; 0 writes one at the end only.
    pub checkpoint_every: usize,
    /// The seeds: a list, or `"0..4"` for 0, 1, 2 and 3.
    #[serde(deserialize_with = "seeds")]
    pub seeds: Vec<u64>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            steps: 2000,
            batch: 64,
            optimizer: Rule::Adamw,
            lr: 1e-3,
            schedule: Schedule::Constant,
            warmup: 0,
            weight_decay: 0.0,
            momentum: 0.9,
            nesterov: false,
            clip: None,
            augment: None,
            ema: None,
            alone: true,
            device: Processor::Cpu,
            precision: Precision::F32,
            evaluate_every: 100,
            patience: 0,
            until: None,
            checkpoint_every: 500,
            seeds: vec![0],
        }
    }
}

/// What says nothing is left out of a resolved run file, so that those of before stay what they were.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The most seeds of one run.
const SEEDS_LIMIT: u64 = 1000;

fn seeds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        List(Vec<u64>),
        Range(String),
    }
    match Form::deserialize(deserializer)? {
        Form::List(list) => Ok(list),
        Form::Range(text) => parse_seeds(&text).map_err(serde::de::Error::custom),
    }
}

/// Reads `0..4` (0, 1, 2, 3), `0,3,7` or `5`.
///
/// # Errors
/// What the text should have been.
pub fn parse_seeds(text: &str) -> Result<Vec<u64>, String> {
    let wrong = || format!("`{text}` is no list of seeds: `0..4` is 0, 1, 2 and 3; `0,3,7` are three");
    let number = |part: &str| part.trim().parse::<u64>().map_err(|_| wrong());
    if let Some((first, end)) = text.split_once("..") {
        let (first, end) = (number(first)?, number(end)?);
        if first >= end || end - first > SEEDS_LIMIT {
            return Err(wrong());
        }
        return Ok((first..end).collect());
    }
    text.split(',').map(number).collect()
}

impl TrainConfig {
    pub(super) fn check(&self) -> Result<(), TrainError> {
        let table = Judged("train");
        table.check("steps", self.steps > 0, self.steps, "1 or more")?;
        table.check("batch", self.batch > 0, self.batch, "1 or more")?;
        table.check("lr", self.lr > 0.0 && self.lr.is_finite(), self.lr, "above 0")?;
        table.check("weight_decay", self.weight_decay >= 0.0, self.weight_decay, "0 or more")?;
        table.check("momentum", (0.0..1.0).contains(&self.momentum), self.momentum, "0 to below 1")?;
        table.check(
            "clip",
            self.clip.is_none_or(|clip| clip > 0.0),
            self.clip.unwrap_or_default(),
            "above 0",
        )?;
        let fine = self.until.is_none_or(|until| until > 0.0 && until <= 1.0);
        table.check("until", fine, self.until.unwrap_or_default(), "above 0, at most 1")?;
        let fine = self.ema.is_none_or(|decay| (0.0..1.0).contains(&decay));
        table.check("ema", fine, self.ema.unwrap_or_default(), "0 to below 1")?;
        table.check("evaluate_every", self.evaluate_every > 0, self.evaluate_every, "1 or more")?;
        Machine::open(self.device, self.precision)?;
        let distinct = self.seeds.iter().collect::<std::collections::BTreeSet<_>>().len();
        let fine = !self.seeds.is_empty() && distinct == self.seeds.len();
        Ok(table.check("seeds", fine, format!("{:?}", self.seeds), "at least one, each once")?)
    }

    pub(super) fn settings(&self) -> Settings {
        Settings {
            rule: self.optimizer,
            lr: self.lr,
            schedule: self.schedule,
            warmup: self.warmup,
            steps: self.steps,
            weight_decay: self.weight_decay,
            momentum: self.momentum,
            nesterov: self.nesterov,
            clip: self.clip,
        }
    }
}
