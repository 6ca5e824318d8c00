//! Cross-entropy with one class for each input.

use candle_core::{Result, Tensor};
use candle_nn::ops::log_softmax;
use serde::{Deserialize, Serialize};

use super::{Batch, Labels, Loss, one};
use crate::example::Signal;

/// The settings of the loss `labels`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelsLoss {
    /// The weight in the sum.
    #[serde(default = "one")]
    pub weight: f64,
    /// Whose class.
    #[serde(default)]
    pub of: Labels,
}

impl Loss for LabelsLoss {
    fn weight(&self) -> f64 {
        self.weight
    }

    fn needs(&self) -> Signal {
        Signal::Label
    }

    fn asks_truth(&self) -> bool {
        self.of == Labels::Truth
    }

    fn evaluate(&self, logits: &Tensor, batch: &Batch) -> Result<Tensor> {
        cross_entropy(logits, batch.classes(self.of)?)
    }
}

/// The mean cross-entropy of `logits` `[n, C]` with `classes` `[n]` (u32).
pub(crate) fn cross_entropy(logits: &Tensor, classes: &Tensor) -> Result<Tensor> {
    log_softmax(logits, 1)?.gather(&classes.unsqueeze(1)?, 1)?.mean_all()?.neg()
}

#[cfg(test)]
mod tests {
    use crate::loss::tests::{Fixture, check};

    // s, t, y = the fixture of loss/mod.rs
    // torch.nn.functional.cross_entropy(s, y)   # 0.7745660; gradient [0,0] -0.1025506, [3,1] 0.1518704
    #[test]
    fn equals_pytorch() {
        check(|Fixture { s, y, .. }| super::cross_entropy(s, y), 0.774_566, -0.102_550_6, 0.151_870_4);
    }
}
