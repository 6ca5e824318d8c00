//! Distillation with a temperature. Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network",
//! arXiv 1503.02531.

use candle_core::{Result, Tensor};
use candle_nn::ops::log_softmax;
use serde::{Deserialize, Serialize};

use super::{Batch, Judge, Loss, LossError, four, one};
use crate::example::Signal;

/// The settings of the loss `kd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KdLoss {
    /// The weight in the sum.
    #[serde(default = "one")]
    pub weight: f64,
    /// Divides both sides' logits.
    #[serde(default = "four")]
    pub temperature: f64,
}

impl Loss for KdLoss {
    fn weight(&self) -> f64 {
        self.weight
    }

    fn needs(&self) -> Signal {
        Signal::LogProbabilities
    }

    fn check(&self, judge: Judge) -> std::result::Result<(), LossError> {
        judge.positive("temperature", self.temperature)
    }

    fn evaluate(&self, logits: &Tensor, batch: &Batch) -> Result<Tensor> {
        kd(logits, batch.teacher()?, self.temperature)
    }
}

/// T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over rows.
pub(crate) fn kd(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    let student = log_softmax(&(student / temperature)?, 1)?;
    let teacher = log_softmax(&(teacher / temperature)?, 1)?;
    let divergence = (teacher.exp()? * (teacher - student)?)?.sum(1)?.mean_all()?;
    divergence * (temperature * temperature)
}

#[cfg(test)]
mod tests {
    use crate::loss::tests::{Fixture, check};

    // T = 4.0
    // F.kl_div(F.log_softmax(s/T, 1), F.softmax(t/T, 1), reduction='batchmean') * T * T
    // # 0.5778781; gradient [0,0] -0.1280411, [3,1] 0.0215541
    #[test]
    fn equals_pytorch() {
        check(|Fixture { s, t, .. }| super::kd(s, t, 4.0), 0.577_878_1, -0.128_041_1, 0.021_554_1);
    }
}
