//! Regression of the teacher's logits. Source: Ba and Caruana, "Do Deep Nets Really Need to be Deep?", arXiv 1312.6184.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use super::{Batch, Loss, one};
use crate::example::Signal;

/// The settings of the loss `logit-mse`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogitMseLoss {
    /// The weight in the sum.
    #[serde(default = "one")]
    pub weight: f64,
}

impl Loss for LogitMseLoss {
    fn weight(&self) -> f64 {
        self.weight
    }

    fn needs(&self) -> Signal {
        Signal::Logits
    }

    fn evaluate(&self, logits: &Tensor, batch: &Batch) -> Result<Tensor> {
        logit_mse(logits, batch.teacher()?)
    }
}

/// The mean squared difference of the logits, over rows and classes.
pub(crate) fn logit_mse(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    (student - teacher)?.sqr()?.mean_all()
}

#[cfg(test)]
mod tests {
    use crate::loss::tests::{Fixture, check};

    // F.mse_loss(s, t)   # 1.6822916; gradient [0,0] -0.3333333, [3,1] -0.0416667
    #[test]
    fn equals_pytorch() {
        check(|Fixture { s, t, .. }| super::logit_mse(s, t), 1.682_291_6, -0.333_333_3, -0.041_666_7);
    }
}
