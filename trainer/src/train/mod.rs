//! The loop, read downwards, with its settings, its errors and the state that resumes it.
//!
//! This room must not know what becomes of a trained student, nor print. Invariants: the same split, settings and seed
//! give the same bits; twenty steps, a stop and twenty more give what forty give; the validation part decides when to
//! stop and which step is kept, and the test part is never looked at.

mod augment;
mod checkpoint;
mod sampler;
mod stage;
mod task;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Tensor;
use candle_core::backprop::GradStore;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Deserializer, Serialize};

use crate::compare::Comparison;
use crate::example::{SplitError, argmax};
use crate::loss::{Batch, LossError, cross_entropy, kd, total};
use crate::method::{CurriculumError, Mixup, PlanError, ProgressiveError, fix_offset};
use crate::optimizer::{Optimizer, Rule, Schedule, Settings};
use crate::student::{Built, Inputs, Mode, Student, StudentError};
use checkpoint::{About, State};
use sampler::{Sampler, stream};
use stage::Stage;
use task::Part;

pub use augment::Augment;
pub(crate) use checkpoint::replace;
pub(crate) use task::{Task, digests};

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
            evaluate_every: 100,
            patience: 0,
            until: None,
            checkpoint_every: 500,
            seeds: vec![0],
        }
    }
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
    fn check(&self) -> Result<(), TrainError> {
        let check = |field, fine: bool, value: String, range| {
            if fine { Ok(()) } else { Err(TrainError::Range { field, value, range }) }
        };
        check("steps", self.steps > 0, self.steps.to_string(), "1 or more")?;
        check("batch", self.batch > 0, self.batch.to_string(), "1 or more")?;
        check("lr", self.lr > 0.0 && self.lr.is_finite(), self.lr.to_string(), "above 0")?;
        check("weight_decay", self.weight_decay >= 0.0, self.weight_decay.to_string(), "0 or more")?;
        check("momentum", (0.0..1.0).contains(&self.momentum), self.momentum.to_string(), "0 to below 1")?;
        check("clip", self.clip.is_none_or(|clip| clip > 0.0), format!("{:?}", self.clip), "above 0")?;
        let fine = self.until.is_none_or(|until| until > 0.0 && until <= 1.0);
        check("until", fine, format!("{:?}", self.until), "above 0, at most 1")?;
        check("evaluate_every", self.evaluate_every > 0, self.evaluate_every.to_string(), "1 or more")?;
        let distinct = self.seeds.iter().collect::<std::collections::BTreeSet<_>>().len();
        let fine = !self.seeds.is_empty() && distinct == self.seeds.len();
        check("seeds", fine, format!("{:?}", self.seeds), "at least one, each once")
    }

    fn settings(&self) -> Settings {
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

/// Why a student was not trained.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The data set cannot be used.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// The losses cannot be used.
    #[error(transparent)]
    Loss(#[from] LossError),
    /// The curriculum cannot be followed.
    #[error(transparent)]
    Curriculum(#[from] CurriculumError),
    /// The checkpoints cannot be followed.
    #[error(transparent)]
    Progressive(#[from] ProgressiveError),
    /// The student cannot be used.
    #[error(transparent)]
    Student(#[from] StudentError),
    /// A setting out of its range.
    #[error("`train.{field}` is {value}; it must be {range}")]
    Range {
        /// The field.
        field: &'static str,
        /// What it holds.
        value: String,
        /// What it may hold.
        range: &'static str,
    },
    /// Mixup where nothing can be mixed.
    #[error(
        "`mixup` needs inputs of numbers and losses of single examples; student `{student}` with these losses has not both"
    )]
    Mixup {
        /// The student's kind.
        student: &'static str,
    },
    /// Augmentation where there are no images.
    #[error("`train.augment` changes images; student `{student}` takes none")]
    Augment {
        /// The student's kind.
        student: &'static str,
    },
    /// The loss left the numbers.
    #[error("the loss of seed {seed} is {loss} at step {step}; try a lower `train.lr` or `train.clip`")]
    Diverged {
        /// The seed.
        seed: u64,
        /// The step.
        step: usize,
        /// The loss.
        loss: f32,
    },
    /// A checkpoint that cannot be read or written.
    #[error("checkpoint `{}`: {reason}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A checkpoint that belongs to other settings or data.
    #[error("checkpoint `{}` belongs to a run with other settings or data", path.display())]
    OtherRun {
        /// The file.
        path: PathBuf,
    },
    /// A file that cannot be read or written.
    #[error("cannot use `{}`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The exported model.
    #[error("cannot export the student: {0}")]
    Export(String),
    /// An operation on tensors.
    #[error("a tensor operation failed")]
    Tensor(#[from] candle_core::Error),
}

impl From<PlanError> for TrainError {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Curriculum(error) => error.into(),
            PlanError::Progressive(error) => error.into(),
            PlanError::Tensor(error) => error.into(),
        }
    }
}

/// How the caller watches and stops a run.
#[derive(Clone)]
pub struct Control<'a> {
    /// Set from outside: the step is finished, the state saved, and the run says that it was interrupted.
    pub interrupt: Arc<AtomicBool>,
    /// Called after each step.
    pub progress: &'a (dyn Fn(&Progress) + Sync),
    /// Whether checkpoints of the same run are gone on from; otherwise they are overwritten.
    pub resume: bool,
}

/// Where a run stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// The method in training.
    pub method: String,
    /// The seed in training.
    pub seed: u64,
    /// Steps taken.
    pub step: usize,
    /// The most steps it takes.
    pub steps: usize,
    /// The last training loss.
    pub loss: f32,
    /// The last validation loss.
    pub validation: Option<f32>,
}

/// One line of `metrics.jsonl`; numbers of 32 bits, which text holds exactly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricRow {
    /// The seed.
    pub seed: u64,
    /// Steps taken.
    pub step: usize,
    /// The training loss of that step.
    pub loss: f32,
    /// The learning rate of that step.
    pub lr: f32,
    /// The norm of all gradients before clipping.
    pub gradient_norm: f32,
    /// KL from the teacher's distribution, or cross-entropy with its labels where it gives no more.
    pub validation_loss: Option<f32>,
    /// The share of the validation part where student and teacher name the same class.
    pub validation_agreement: Option<f32>,
}

/// A student after its last step.
pub(crate) struct Trained {
    pub(crate) student: Built,
    pub(crate) rows: Vec<MetricRow>,
}

/// How a seed ended.
pub(crate) enum Ended {
    Finished(Box<Trained>),
    Interrupted { step: usize },
}

/// Where a seed's state is kept: a folder, and the name of the run within it.
pub(crate) type Kept<'a> = Option<(&'a Path, &'a str)>;

/// Trains one seed to its end, or to the interrupt.
pub(crate) fn train(
    task: &Task<'_>,
    seed: u64,
    kept: Kept<'_>,
    control: &Control<'_>,
) -> Result<Ended, TrainError> {
    let config = task.config;
    let file = kept.map(|(folder, name)| checkpoint::path(folder, name, seed));
    let mut run = Run::start(task, seed)?;
    if let (Some(file), true) = (&file, control.resume)
        && let Some(state) = checkpoint::load(file, &task.digest())?
    {
        run.restore(state).ok_or_else(|| TrainError::OtherRun { path: file.clone() })?;
    }
    while run.step < config.steps && !run.stopped {
        let loss = run.loss()?;
        let value = loss.to_scalar::<f32>()?;
        let step = run.taken();
        if !value.is_finite() {
            return Err(TrainError::Diverged { seed, step, loss: value });
        }
        let (lr, gradient_norm) = run.take(&loss.backward()?)?;
        let row = MetricRow { seed, step: step + 1, loss: value, lr, gradient_norm, ..EMPTY };
        run.look(row)?;
        let validation = run.rows.last().and_then(|row| row.validation_loss);
        let (step, steps, method) = (run.taken(), run.most(), task.method.name());
        (control.progress)(&Progress { method, seed, step, steps, loss: value, validation });
        let interrupted = control.interrupt.load(Ordering::Relaxed);
        let due = config.checkpoint_every > 0 && step.is_multiple_of(config.checkpoint_every);
        if let (Some(file), true) = (&file, interrupted || due) {
            checkpoint::save(file, &run.state()?)?;
        }
        if interrupted {
            return Ok(Ended::Interrupted { step });
        }
    }
    if let Some(file) = &file {
        checkpoint::save(file, &run.state()?)?;
    }
    run.finish().map(|trained| Ended::Finished(Box::new(trained)))
}

const EMPTY: MetricRow = MetricRow {
    seed: 0,
    step: 0,
    loss: 0.0,
    lr: 0.0,
    gradient_norm: 0.0,
    validation_loss: None,
    validation_agreement: None,
};

/// A seed between two steps.
struct Run<'a> {
    task: &'a Task<'a>,
    seed: u64,
    student: Built,
    optimizer: Optimizer,
    comparisons: Option<Vec<Comparison>>,
    sampler: Sampler,
    mixing: ChaCha8Rng,
    augmenting: ChaCha8Rng,
    /// The phase of the curriculum that is learnt now; none once the losses are.
    stage: Option<Stage>,
    /// Steps of the curriculum's phases so far.
    before: usize,
    /// Steps on the losses.
    step: usize,
    stopped: bool,
    best: Option<(f32, Vec<Vec<f32>>)>,
    stale: usize,
    rows: Vec<MetricRow>,
}

impl<'a> Run<'a> {
    fn start(task: &'a Task<'a>, seed: u64) -> Result<Self, TrainError> {
        let student = task.build(seed)?;
        let vars = student.parameters().all().iter().map(|(_, var)| var.clone()).collect();
        let comparisons = task.comparisons(&mut stream(seed, 1));
        let count = comparisons.as_ref().map_or(task.train.count, Vec::len);
        Ok(Self {
            optimizer: Optimizer::new(task.config.settings(), vars),
            sampler: Sampler::new(count, stream(seed, 2)),
            mixing: stream(seed, 3),
            augmenting: stream(seed, 4),
            stage: Stage::start(task, seed, 0, &student)?,
            before: 0,
            task,
            seed,
            student,
            comparisons,
            step: 0,
            stopped: false,
            best: None,
            stale: 0,
            rows: Vec::new(),
        })
    }

    /// Steps so far, those of the curriculum included.
    fn taken(&self) -> usize {
        self.before + self.step
    }

    /// The most steps that it will have taken.
    fn most(&self) -> usize {
        let ahead = self.stage.as_ref().map_or(0, |stage| stage.left(self.task));
        self.before + ahead + self.task.config.steps
    }

    /// Steps along the gradients; the rate, and the norm of all gradients.
    fn take(&mut self, gradients: &GradStore) -> candle_core::Result<(f32, f32)> {
        if let Some(stage) = &mut self.stage {
            self.before += 1;
            return stage.take(gradients);
        }
        let lr = self.task.config.settings().lr_at(self.step) as f32;
        let norm = self.optimizer.step(gradients)? as f32;
        self.step += 1;
        Ok((lr, norm))
    }

    /// The loss of the next batch.
    fn loss(&mut self) -> candle_core::Result<Tensor> {
        if let Some(stage) = &mut self.stage {
            return stage.loss(self.task, &self.student);
        }
        let losses = &self.task.method.losses;
        let drawn = self.sampler.draw(self.task.config.batch);
        if self.task.method.mixup {
            let mixup = Mixup::draw(&drawn, &mut self.mixing);
            let (inputs, own, other) = self.task.mixed(&drawn, &mixup)?;
            let inputs = self.augmented(inputs)?;
            let logits = self.student.forward(&inputs, Mode::Training)?;
            let own = (total(losses, &logits, &own)? * mixup.lambda)?;
            return own + (total(losses, &logits, &other)? * (1.0 - mixup.lambda))?;
        }
        let (inputs, batch) = match &self.comparisons {
            None => self.task.batch(&drawn, None)?,
            Some(all) => self.compared(&drawn, all)?,
        };
        let inputs = self.augmented(inputs)?;
        total(losses, &self.student.forward(&inputs, Mode::Training)?, &batch)
    }

    /// The inputs of a batch, changed where the run asks for it.
    fn augmented(&mut self, inputs: Inputs) -> candle_core::Result<Inputs> {
        match (&self.task.config.augment, self.task.student.image()) {
            (Some(augment), Some(image)) => augment.apply(inputs, image, &mut self.augmenting),
            _ => Ok(inputs),
        }
    }

    /// The examples of the drawn tuples, tuple after tuple, with their weights.
    fn compared(&self, drawn: &[u32], all: &[Comparison]) -> candle_core::Result<(Inputs, Batch)> {
        let tuples = || drawn.iter().map(|at| &all[*at as usize]);
        let rows: Vec<u32> = tuples().flat_map(|tuple| tuple.items.iter().copied()).collect();
        let weights: Vec<f32> = tuples().flat_map(|tuple| tuple.weights.iter().copied()).collect();
        let weights = Tensor::from_vec(weights, (drawn.len(), ()), &self.task.device)?;
        self.task.batch(&rows, Some(weights))
    }

    /// After a step: goes on to the next phase where one is over; where it is time, looks at the validation part, keeps
    /// the best step, and decides whether to stop.
    fn look(&mut self, mut row: MetricRow) -> Result<(), TrainError> {
        let (every, steps) = (self.task.config.evaluate_every, self.task.config.steps);
        if let Some(stage) = &mut self.stage {
            let over = stage.is_over(self.task, row.loss);
            if over || row.step.is_multiple_of(every) {
                self.rows.push(row);
            }
            if over {
                self.stage = Stage::start(self.task, self.seed, stage.phase() + 1, &self.student)?;
            }
            return Ok(());
        }
        if !self.step.is_multiple_of(every) && self.step != steps {
            return Ok(());
        }
        if let Some(validation) = &self.task.validation {
            let bias = self.student.output_bias().copy()?;
            self.put_offset_back()?;
            let (loss, agreement) = validate(&self.student, validation)?;
            (row.validation_loss, row.validation_agreement) = (Some(loss), Some(agreement));
            if self.best.as_ref().is_none_or(|(best, _)| loss < *best) {
                self.best = Some((loss, values(&self.student)?));
                self.stale = 0;
            } else {
                self.stale += 1;
            }
            let patience = self.task.config.patience;
            let reached = self.task.config.until.is_some_and(|until| f64::from(agreement) >= until);
            self.stopped = reached || (patience > 0 && self.stale >= patience);
            // The fix is for looking: training goes on from where it was, however often it is looked at.
            self.student.output_bias().set(&bias)?;
        }
        self.rows.push(row);
        Ok(())
    }

    fn put_offset_back(&self) -> Result<(), TrainError> {
        if let (true, Some(teacher)) = (self.task.method.fixes_offset(), &self.task.train.teacher) {
            fix_offset(&self.student, &self.task.train.inputs, teacher)?;
        }
        Ok(())
    }

    fn finish(self) -> Result<Trained, TrainError> {
        match &self.best {
            Some((_, best)) => set_values(&self.student, best)?,
            None => self.put_offset_back()?,
        }
        Ok(Trained { student: self.student, rows: self.rows })
    }

    fn state(&self) -> Result<State, TrainError> {
        Ok(State {
            about: About {
                digest: self.task.digest(),
                seed: self.seed,
                step: self.step,
                stopped: self.stopped,
                sampler: self.sampler.place(),
                mixing: self.mixing.get_word_pos().to_string(),
                augmenting: self.augmenting.get_word_pos().to_string(),
                before: self.before,
                stage: self.stage.as_ref().map(Stage::place),
                best_bits: self.best.as_ref().map(|(loss, _)| loss.to_bits()),
                stale: self.stale,
                rows: self.rows.clone(),
            },
            values: values(&self.student)?,
            head: self.stage.as_ref().map_or_else(|| Ok(vec![]), Stage::head)?,
            slots: self.stage.as_ref().map_or(&self.optimizer, Stage::optimizer).state().1.to_vec(),
            best: self.best.as_ref().map(|(_, values)| values.clone()),
        })
    }

    /// Goes on from a state; `None` if it is not one of this run.
    fn restore(&mut self, state: State) -> Option<()> {
        let About {
            seed,
            step,
            stopped,
            sampler,
            mixing,
            augmenting,
            before,
            stage,
            best_bits,
            stale,
            rows,
            ..
        } = state.about;
        let sizes = |values: &[Vec<f32>]| values.iter().map(Vec::len).collect::<Vec<_>>();
        let parameters = self.student.parameters();
        let expected: Vec<usize> = parameters.kept().map(|(_, var)| var.elem_count()).collect();
        let slots = parameters.all().len() + state.head.len();
        if seed != self.seed || sizes(&state.values) != expected || state.slots.len() != slots {
            return None;
        }
        set_values(&self.student, &state.values).ok()?;
        self.before = before;
        self.stage = match &stage {
            Some(place) => {
                Some(Stage::restore(self.task, seed, place, &self.student, (&state.head, &state.slots))?)
            }
            None => None,
        };
        if stage.is_none() {
            self.optimizer.restore(step, state.slots);
        }
        self.sampler.go_to(&sampler)?;
        self.mixing.set_word_pos(mixing.parse().ok()?);
        self.augmenting.set_word_pos(augmenting.parse().ok()?);
        self.best = best_bits.map(f32::from_bits).zip(state.best);
        (self.step, self.stopped, self.stale, self.rows) = (step, stopped, stale, rows);
        Some(())
    }
}

/// All that is kept of a student, running statistics included.
fn values(student: &Built) -> candle_core::Result<Vec<Vec<f32>>> {
    let kept = student.parameters().kept();
    kept.map(|(_, var)| var.flatten_all()?.to_vec1::<f32>()).collect()
}

fn set_values(student: &Built, values: &[Vec<f32>]) -> candle_core::Result<()> {
    for ((_, var), values) in student.parameters().kept().zip(values) {
        var.set(&Tensor::from_slice(values, var.dims(), var.device())?)?;
    }
    Ok(())
}

/// Examples that are looked at together; more would keep every hidden value of all of them.
const LOOK: usize = 1024;

/// The logits of a part, as an answer gives them.
fn answers(student: &Built, part: &Part) -> candle_core::Result<Tensor> {
    let chunks = (0..part.count).step_by(LOOK).map(|start| {
        let inputs = part.inputs.narrow(start, LOOK.min(part.count - start))?;
        Ok(student.forward(&inputs, Mode::Inference)?.detach())
    });
    let chunks = chunks.collect::<candle_core::Result<Vec<_>>>()?;
    if let [one] = &chunks[..] { Ok(one.clone()) } else { Tensor::cat(&chunks, 0) }
}

/// The loss on the teacher's answers, and the agreement with its labels.
fn validate(student: &Built, part: &Part) -> candle_core::Result<(f32, f32)> {
    let logits = answers(student, part)?;
    let loss = match &part.teacher {
        Some(teacher) => kd(&logits, teacher, 1.0)?,
        None => cross_entropy(&logits, &part.labels)?,
    };
    let labels = part.labels.to_vec1::<u32>()?;
    let rows = logits.to_vec2::<f32>()?;
    let agreed = rows.iter().zip(&labels).filter(|(row, label)| argmax(row) == **label).count();
    Ok((loss.to_scalar::<f32>()?, agreed as f32 / part.count as f32))
}

#[cfg(test)]
mod tests;
