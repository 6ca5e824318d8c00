//! A phase of a curriculum between two steps: its head, its optimizer, its place, and when it is over.
//!
//! It must not know losses or validation. Invariants: of answers a phase sees those of the training part alone; the student
//! keeps what it learnt and the head is gone with its phase; `place`, `head` and the optimizer's state are all that a phase is made of.

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::checkpoint::start;
use super::sampler::{Place, Sampler, stream};
use super::task::Task;
use crate::optimizer::{Optimizer, Schedule, Settings, Slot};
use crate::student::{Built, Head, Inputs, Student};

/// The first of the random streams of phases: two for each.
const STREAMS: u64 = 16;

/// The first of the random streams of views: one for each phase.
const VIEWS: u64 = 1 << 32;

/// A phase that is under way.
pub(crate) struct Stage {
    phase: usize,
    taken: usize,
    head: Option<Head>,
    settings: Settings,
    optimizer: Optimizer,
    sampler: Sampler,
    views: ChaCha8Rng,
    /// The sum of the losses since the last look.
    sum: f64,
    best: Option<f64>,
    stale: usize,
}

/// Where a phase stands; sums as bits, for text would round them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StagePlace {
    phase: usize,
    taken: usize,
    sampler: Place,
    /// Where the random numbers of views stand.
    #[serde(default = "start")]
    views: String,
    sum_bits: u64,
    best_bits: Option<u64>,
    stale: usize,
}

impl Stage {
    /// The first step of a phase; none where there is no such phase.
    pub(crate) fn start(task: &Task, seed: u64, phase: usize, student: &Built) -> Result<Option<Self>> {
        let Some(learnt) = task.phases.get(phase) else { return Ok(None) };
        let streams = STREAMS + 2 * phase as u64;
        let mut vars: Vec<_> = student.parameters().all().iter().map(|(_, var)| var.clone()).collect();
        let sample = task.train.inputs.narrow(0, 1)?;
        let head = match learnt.head(student, &sample)? {
            None => None,
            Some(widths) => Some(Head::new(&widths, &mut stream(seed, streams), &task.machine)?),
        };
        vars.extend(head.iter().flat_map(Head::vars));
        // Each phase begins anew, at the full rate: the schedule is that of the steps on the losses.
        let settings = task.config.settings();
        let lr = learnt.lr.unwrap_or(settings.lr);
        let settings = Settings { schedule: Schedule::Constant, steps: learnt.steps, lr, ..settings };
        let count = if learnt.sees_everything() { task.everything() } else { task.train.count };
        Ok(Some(Self {
            phase,
            taken: 0,
            head,
            settings,
            optimizer: Optimizer::new(settings, vars)?,
            sampler: Sampler::new(count, stream(seed, streams + 1)),
            views: stream(seed, VIEWS + phase as u64),
            sum: 0.0,
            best: None,
            stale: 0,
        }))
    }

    /// Goes on from a saved state; none if it is not one of this run.
    pub(crate) fn restore(
        task: &Task,
        seed: u64,
        place: &StagePlace,
        student: &Built,
        (head, slots): (&[Vec<f32>], &[Slot]),
    ) -> Option<Self> {
        let mut stage = Self::start(task, seed, place.phase, student).ok()??;
        let vars: Vec<_> = stage.head.iter().flat_map(Head::vars).collect();
        if vars.len() != head.len() {
            return None;
        }
        for (var, values) in vars.iter().zip(head) {
            var.set(&Tensor::from_slice(values, var.dims(), var.device()).ok()?).ok()?;
        }
        stage.optimizer.restore(place.taken, slots.to_vec()).ok()?;
        stage.sampler.go_to(&place.sampler)?;
        stage.views.set_word_pos(place.views.parse().ok()?);
        stage.sum = f64::from_bits(place.sum_bits);
        stage.best = place.best_bits.map(f64::from_bits);
        (stage.taken, stage.stale) = (place.taken, place.stale);
        Some(stage)
    }

    /// Which phase it is, from 0 on.
    pub(crate) fn phase(&self) -> usize {
        self.phase
    }

    /// The most steps until the last phase ends.
    pub(crate) fn left(&self, task: &Task) -> usize {
        let behind = task.phases[self.phase..].iter().map(|phase| phase.steps).sum::<usize>();
        behind - self.taken
    }

    /// The loss of the next batch.
    pub(crate) fn loss(&mut self, task: &Task, student: &Built) -> Result<Tensor> {
        let phase = &task.phases[self.phase];
        let drawn = self.sampler.draw(phase.batch.unwrap_or(task.config.batch));
        let rows = Tensor::new(&drawn[..], &task.machine.device)?;
        let inputs =
            if phase.sees_everything() { task.any(&drawn)? } else { task.train.inputs.select(&rows)? };
        let view = |inputs: &Inputs| match (&phase.views, task.student.image()) {
            (Some(views), Some(image)) => views.apply(inputs.clone(), image, &mut self.views),
            _ => Ok(inputs.clone()),
        };
        phase.loss(student, self.head.as_ref(), &rows, &inputs, view)
    }

    /// Steps along the gradients; the rate, and the norm of all gradients.
    pub(crate) fn take(&mut self, gradients: &GradStore) -> Result<(f32, f32)> {
        let lr = self.settings.lr_at(self.taken) as f32;
        let norm = self.optimizer.step(gradients)? as f32;
        self.taken += 1;
        Ok((lr, norm))
    }

    /// Whether the step that had this loss was its last.
    pub(crate) fn is_over(&mut self, task: &Task, loss: f32) -> bool {
        self.sum += f64::from(loss);
        let patience = task.phases[self.phase].patience;
        if patience > 0 && self.taken.is_multiple_of(task.config.evaluate_every) {
            let sum = std::mem::take(&mut self.sum);
            if self.best.is_none_or(|best| sum < best) {
                (self.best, self.stale) = (Some(sum), 0);
            } else {
                self.stale += 1;
            }
        }
        self.taken >= self.settings.steps || (patience > 0 && self.stale >= patience)
    }

    /// Where it stands.
    pub(crate) fn place(&self) -> StagePlace {
        StagePlace {
            phase: self.phase,
            taken: self.taken,
            sampler: self.sampler.place(),
            views: self.views.get_word_pos().to_string(),
            sum_bits: self.sum.to_bits(),
            best_bits: self.best.map(f64::to_bits),
            stale: self.stale,
        }
    }

    /// The values of its head.
    pub(crate) fn head(&self) -> Result<Vec<Vec<f32>>> {
        self.head.iter().flat_map(Head::vars).map(|var| var.flatten_all()?.to_vec1::<f32>()).collect()
    }

    /// Its optimizer.
    pub(crate) fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }
}
