//! Temporally adaptive interpolated distillation: the target moves from the student's own distribution to the teacher's. A
//! curriculum out of outputs alone, for a teacher whose inside nobody sees.
//!
//! KL( softmax((1 - t) sg(z_s) + t z_t) || softmax(z_s) ). The share t starts at `start` and never falls behind a straight line
//! to `end`; where the loss falls it goes ahead: t <- min(end, max(line, t + rate sigma(m) (1 - t))), m an average (0.99) of
//! the relative drop of the step's loss. Source: arXiv 2501.16937 (TAID).

use candle_core::{Result, Tensor};
use candle_nn::ops::{log_softmax, softmax};
use serde::{Deserialize, Serialize};

use super::{Batch, Judge, Loss, LossError, one};
use crate::example::Signal;

/// The share of the past in the average of the relative drop.
const MOMENTUM: f64 = 0.99;

/// The settings of the loss `taid`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaidLoss {
    /// The weight in the sum.
    #[serde(default = "one")]
    pub weight: f64,
    /// The first share of the teacher.
    #[serde(default = "start")]
    pub start: f64,
    /// The last one.
    #[serde(default = "one")]
    pub end: f64,
    /// How far a falling loss drives it ahead.
    #[serde(default = "rate")]
    pub rate: f64,
}

fn start() -> f64 {
    0.4
}

fn rate() -> f64 {
    5e-4
}

impl Loss for TaidLoss {
    fn weight(&self) -> f64 {
        self.weight
    }

    fn needs(&self) -> Signal {
        Signal::Logits
    }

    fn check(&self, judge: Judge) -> std::result::Result<(), LossError> {
        judge.not_negative("start", self.start)?;
        judge.within(
            "end",
            self.end,
            self.end >= self.start && self.end <= 1.0,
            "at least `start`, at most 1",
        )?;
        judge.not_negative("rate", self.rate)
    }

    fn interpolates(&self) -> Option<&TaidLoss> {
        Some(self)
    }

    fn evaluate(&self, logits: &Tensor, batch: &Batch) -> Result<Tensor> {
        interpolated(logits, batch.teacher()?, batch.share)
    }
}

/// The mean KL from the target at share `share` to the student.
fn interpolated(student: &Tensor, teacher: &Tensor, share: f64) -> Result<Tensor> {
    let target = ((student.detach() * (1.0 - share))? + (teacher * share)?)?;
    let apart = (log_softmax(&target, 1)? - log_softmax(student, 1)?)?;
    (softmax(&target, 1)? * apart)?.sum(1)?.mean_all()
}

/// Where the share stands between two steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Interpolation {
    /// t.
    pub(crate) share: f64,
    /// m.
    pub(crate) drop: f64,
    /// The loss of the step before.
    pub(crate) last: Option<f64>,
}

impl Interpolation {
    /// Before the first step.
    pub(crate) fn start(loss: &TaidLoss) -> Self {
        Self { share: loss.start, drop: 0.0, last: None }
    }

    /// After a step that had this loss, when `done` of the run's steps are taken.
    pub(crate) fn follow(&mut self, config: &TaidLoss, loss: f64, done: f64) {
        if let Some(last) = self.last {
            let drop = (last - loss) / (last + 1e-15);
            self.drop = MOMENTUM * self.drop + (1.0 - MOMENTUM) * drop;
        }
        self.last = Some(loss);
        let ahead = config.rate / (1.0 + (-self.drop).exp()) * (1.0 - self.share);
        let line = config.start + (config.end - config.start) * done;
        self.share = line.max(self.share + ahead).min(config.end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::kd;
    use crate::loss::tests::{Fixture, check, fixture};

    #[test]
    fn at_the_end_it_is_kd_and_at_nought_it_is_nothing() {
        let (_, Fixture { s, t, .. }) = fixture();
        let at = |share| interpolated(&s, &t, share).unwrap().to_scalar::<f32>().unwrap();
        let whole = kd(&s, &t, 1.0).unwrap().to_scalar::<f32>().unwrap();
        assert!((at(1.0) - whole).abs() < 1e-6 && at(0.0).abs() < 1e-6);
        assert!(at(0.3) < at(0.6) && at(0.6) < whole);
    }

    // F.kl_div(F.log_softmax(s, 1), F.softmax(.5 * s.detach() + .5 * t, 1), reduction="batchmean")
    #[test]
    fn equals_pytorch() {
        check(|Fixture { s, t, .. }| interpolated(s, t, 0.5), 0.057_854_9, -0.050_831_2, 0.004_162_7);
    }

    // By definition: with the target held still the gradient is (softmax(z_s) - target) / n.
    #[test]
    fn its_gradient_holds_the_target_still() {
        let (var, Fixture { s, t, .. }) = fixture();
        let gradients = interpolated(&s, &t, 0.5).unwrap().backward().unwrap();
        let found = gradients.get(&var).unwrap().to_vec2::<f32>().unwrap();
        let target = softmax(&((&s + &t).unwrap() * 0.5).unwrap(), 1).unwrap();
        let expected = ((softmax(&s, 1).unwrap() - target).unwrap() / 4.0).unwrap().to_vec2::<f32>().unwrap();
        for (found, expected) in found.concat().iter().zip(expected.concat()) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

    #[test]
    fn the_share_follows_the_line_and_runs_ahead_of_it_while_the_loss_falls() {
        let config = TaidLoss { weight: 1.0, start: 0.4, end: 1.0, rate: 0.0 };
        let mut plain = Interpolation::start(&config);
        plain.follow(&config, 2.0, 0.5);
        assert!((plain.share - 0.7).abs() < 1e-12);
        let ahead = TaidLoss { rate: 0.1, ..config.clone() };
        let (mut falls, mut rises) = (Interpolation::start(&ahead), Interpolation::start(&ahead));
        for step in 1..=5 {
            falls.follow(&ahead, 1.0 / f64::from(step), 0.0);
            rises.follow(&ahead, f64::from(step), 0.0);
        }
        assert!(falls.share > rises.share && rises.share > 0.4, "{falls:?} {rises:?}");
        (0..2000).for_each(|_| falls.follow(&ahead, 0.1, 1.0));
        assert_eq!(falls.share, 1.0);
    }
}
