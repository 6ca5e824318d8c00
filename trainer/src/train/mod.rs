//! The loop, read downwards, and the state that resumes it.
//!
//! This room must not know what becomes of a trained student, nor print. Invariants: the same split, settings and seed
//! give the same bits; twenty steps, a stop and twenty more give what forty give; the validation part decides when to
//! stop and which step is kept, and the test part is never looked at.

mod average;
mod checkpoint;
mod config;
mod draws;
mod error;
mod proxies;
mod sampler;
mod stage;
mod task;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::example::argmax;
use crate::loss::{Batch, Interpolation, Maps, cross_entropy, kd, total};
use crate::method::{By, fix_offset};
use crate::optimizer::Optimizer;
use crate::student::{Built, Inputs, Mode, Student};
use average::Average;
use checkpoint::{About, State};
use draws::{Draws, Mixed};
use proxies::{Labelled, labels};
pub(crate) use sampler::Sampler;
pub(crate) use sampler::stream;
use stage::Stage;
use task::Part;

pub(crate) use checkpoint::replace;
pub use config::{TrainConfig, parse_seeds};
pub use error::TrainError;
pub(crate) use task::{Task, digests, fits, proxied};

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

/// Trains one seed to its end, or to the interrupt; where there are proxy teachers, those first.
pub(crate) fn train(
    task: &Task,
    seed: u64,
    kept: Kept<'_>,
    control: &Control<'_>,
) -> Result<Ended, TrainError> {
    let config = &task.config;
    let file = kept.map(|(folder, name)| checkpoint::path(folder, name, seed));
    let labels = match labels(task, seed, kept, control)? {
        Labelled::By(labels) => labels,
        Labelled::Interrupted { step } => return Ok(Ended::Interrupted { step }),
    };
    let mut run = Run::start(task, seed, labels)?;
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
        let (lr, gradient_norm) = run.take(&loss.backward()?, value)?;
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
    task: &'a Task,
    seed: u64,
    student: Built,
    optimizer: Optimizer,
    /// What the losses learn beside the student.
    maps: Vec<Maps>,
    draws: Draws,
    average: Option<Average>,
    /// What the average makes of an input, where it teaches.
    shadow: Option<Built>,
    /// The teacher's share in a target that moves towards it.
    interpolation: Option<Interpolation>,
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
    fn start(task: &'a Task, seed: u64, labels: Option<Tensor>) -> Result<Self, TrainError> {
        let student = task.build(seed)?;
        let maps = task.maps(&student, &mut stream(seed, 7))?;
        let mut vars: Vec<Var> = student.parameters().all().iter().map(|(_, var)| var.clone()).collect();
        vars.extend(maps.iter().flat_map(Maps::vars));
        let by_average =
            task.method.consistency.as_ref().is_some_and(|consistency| consistency.by == By::Average);
        Ok(Self {
            optimizer: Optimizer::new(task.config.settings(), vars)?,
            maps,
            draws: Draws::start(task, seed, labels),
            shadow: by_average.then(|| task.build(seed)).transpose()?,
            average: task.config.ema.map(Average::new),
            interpolation: task.interpolates().map(Interpolation::start),
            stage: Stage::start(task, seed, 0, &student)?,
            before: 0,
            task,
            seed,
            student,
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
    fn take(&mut self, gradients: &GradStore, loss: f32) -> candle_core::Result<(f32, f32)> {
        if let Some(stage) = &mut self.stage {
            self.before += 1;
            return stage.take(gradients);
        }
        let lr = self.task.config.settings().lr_at(self.step) as f32;
        let norm = self.optimizer.step(gradients)? as f32;
        self.step += 1;
        if let Some(average) = &mut self.average {
            average.follow(&self.student)?;
        }
        if let (Some(interpolation), Some(config)) = (&mut self.interpolation, self.task.interpolates()) {
            let done = self.step as f64 / self.task.config.steps as f64;
            interpolation.follow(config, f64::from(loss), done);
        }
        Ok((lr, norm))
    }

    /// The loss of the next batch.
    fn loss(&mut self) -> candle_core::Result<Tensor> {
        if let Some(stage) = &mut self.stage {
            return stage.loss(self.task, &self.student);
        }
        let (task, losses) = (self.task, &self.task.method.losses);
        let share = self.interpolation.map_or(1.0, |interpolation| interpolation.share);
        if task.method.mixes() {
            let Mixed { inputs, own, other, lambda } = self.draws.mixed(task)?;
            let logits = self.student.forward(&inputs, Mode::Training)?;
            let own = (total(losses, &[], &logits, &Batch { share, ..own })? * lambda)?;
            return own + (total(losses, &[], &logits, &Batch { share, ..other })? * (1.0 - lambda))?;
        }
        let (answered, batch) = self.draws.answered(task)?;
        let labelled = self.draws.labelled(task)?;
        let views = self.draws.views(task)?;
        // One pass over everything, so that batches are normalised over all of it.
        let mut inputs = answered;
        if let Some((others, _)) = &labelled {
            inputs = inputs.and(others)?;
        }
        if let Some([weak, strong]) = &views {
            inputs = if self.shadow.is_some() { inputs } else { inputs.and(weak)? }.and(strong)?;
        }
        let features = self.student.features(&inputs, Mode::Training)?;
        let logits = self.student.output().forward(&features)?;
        let mut seen = 0;
        let mut next = |count: usize| {
            seen += count;
            logits.narrow(0, seen - count, count)
        };
        let own = batch.labels.dim(0)?;
        let batch = Batch { features: Some(features.narrow(0, 0, own)?), share, ..batch };
        let mut loss = total(losses, &self.maps, &next(own)?, &batch)?;
        if let (Some((_, theirs)), Some(proxy)) = (labelled, &task.method.proxy) {
            let logits = next(theirs.labels.dim(0)?)?;
            loss = (loss + (total(losses, &[], &logits, &Batch { share, ..theirs })? * proxy.weight)?)?;
        }
        if let (Some([weak, strong]), Some(consistency)) = (views, &task.method.consistency) {
            let named = match self.named(&weak)? {
                Some(named) => named,
                None => next(weak.count()?)?,
            };
            loss = (loss + consistency.term(&named, &next(strong.count()?)?)?)?;
        }
        Ok(loss)
    }

    /// What the average of the student makes of inputs, where it teaches.
    fn named(&self, inputs: &Inputs) -> candle_core::Result<Option<Tensor>> {
        let (Some(shadow), Some(average)) = (&self.shadow, &self.average) else { return Ok(None) };
        average.show(&self.student, shadow)?;
        Ok(Some(shadow.forward(inputs, Mode::Training)?.detach()))
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
            let before = values(&self.student)?;
            self.settle()?;
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
            // Looking changes nothing: training goes on from where it was, however often it is looked at.
            set_values(&self.student, &before)?;
        }
        self.rows.push(row);
        Ok(())
    }

    /// Makes the student what it would be if this were its last step: the average, its offset put back.
    fn settle(&self) -> Result<(), TrainError> {
        if let Some(average) = &self.average {
            average.put(&self.student, self.task)?;
        }
        if let (true, Some(teacher)) = (self.task.method.fixes_offset(), &self.task.train.teacher) {
            fix_offset(&self.student, &self.task.train.inputs, teacher)?;
        }
        Ok(())
    }

    fn finish(self) -> Result<Trained, TrainError> {
        match &self.best {
            Some((_, best)) => set_values(&self.student, best)?,
            None => self.settle()?,
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
                draws: self.draws.places(),
                interpolation: self.interpolation.map(|Interpolation { share, drop, last }| {
                    (share.to_bits(), drop.to_bits(), last.map(f64::to_bits))
                }),
                before: self.before,
                stage: self.stage.as_ref().map(Stage::place),
                best_bits: self.best.as_ref().map(|(loss, _)| loss.to_bits()),
                stale: self.stale,
                rows: self.rows.clone(),
            },
            values: values(&self.student)?,
            maps: self
                .maps
                .iter()
                .flat_map(Maps::vars)
                .map(|var| var.flatten_all()?.to_vec1())
                .collect::<candle_core::Result<_>>()?,
            head: self.stage.as_ref().map_or_else(|| Ok(vec![]), Stage::head)?,
            slots: self.stage.as_ref().map_or(&self.optimizer, Stage::optimizer).slots()?,
            average: self.average.as_ref().and_then(|average| average.values.clone()),
            best: self.best.as_ref().map(|(_, values)| values.clone()),
        })
    }

    /// Goes on from a state; `None` if it is not one of this run.
    fn restore(&mut self, state: State) -> Option<()> {
        let About {
            seed, step, stopped, draws, interpolation, before, stage, best_bits, stale, rows, ..
        } = state.about;
        let sizes = |values: &[Vec<f32>]| values.iter().map(Vec::len).collect::<Vec<_>>();
        let parameters = self.student.parameters();
        let expected: Vec<usize> = parameters.kept().map(|(_, var)| var.elem_count()).collect();
        let maps: Vec<Var> = self.maps.iter().flat_map(Maps::vars).collect();
        let beside = if stage.is_some() { state.head.len() } else { maps.len() };
        let slots = parameters.all().len() + beside;
        if maps.len() != state.maps.len() {
            return None;
        }
        if seed != self.seed || sizes(&state.values) != expected || state.slots.len() != slots {
            return None;
        }
        set_values(&self.student, &state.values).ok()?;
        for (var, values) in maps.iter().zip(&state.maps) {
            var.set(&Tensor::from_slice(values, var.dims(), var.device()).ok()?).ok()?;
        }
        self.before = before;
        self.stage = match &stage {
            Some(place) => {
                Some(Stage::restore(self.task, seed, place, &self.student, (&state.head, &state.slots))?)
            }
            None => None,
        };
        if stage.is_none() {
            self.optimizer.restore(step, state.slots).ok()?;
        }
        self.draws.go_to(&draws)?;
        if self.interpolation.is_some() {
            let (share, drop, last) = interpolation?;
            let [share, drop] = [share, drop].map(f64::from_bits);
            self.interpolation = Some(Interpolation { share, drop, last: last.map(f64::from_bits) });
        }
        if let Some(average) = &mut self.average {
            average.values = state.average;
        }
        self.best = best_bits.map(f32::from_bits).zip(state.best);
        (self.step, self.stopped, self.stale, self.rows) = (step, stopped, stale, rows);
        Some(())
    }
}

/// All that is kept of a student, running statistics included.
pub(crate) fn values(student: &Built) -> candle_core::Result<Vec<Vec<f32>>> {
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

/// The logits of `count` inputs, as an answer gives them.
fn answers(student: &Built, inputs: &Inputs, count: usize) -> candle_core::Result<Tensor> {
    let chunks = (0..count).step_by(LOOK).map(|start| {
        let inputs = inputs.narrow(start, LOOK.min(count - start))?;
        Ok(student.forward(&inputs, Mode::Inference)?.detach())
    });
    let chunks = chunks.collect::<candle_core::Result<Vec<_>>>()?;
    if let [one] = &chunks[..] { Ok(one.clone()) } else { Tensor::cat(&chunks, 0) }
}

/// The loss on the teacher's answers, and the agreement with its labels.
fn validate(student: &Built, part: &Part) -> candle_core::Result<(f32, f32)> {
    let logits = answers(student, &part.inputs, part.count)?;
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
