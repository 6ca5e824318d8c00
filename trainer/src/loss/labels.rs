//! Cross-entropy with one class for each input; balanced, each class counts as much as any other.
//!
//! Balanced, an input of class c has the weight n / (k n_c), where n_c of the n training answers are of c and k classes occur
//! among them, and the loss of a batch is the weighted mean, as in PyTorch. Source of the weights: King and Zeng, Logistic
//! Regression in Rare Events Data, 2001.

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
    /// Whether rare classes weigh as much as common ones.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub balanced: bool,
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

    fn is_balanced(&self) -> bool {
        self.balanced
    }

    fn evaluate(&self, logits: &Tensor, batch: &Batch) -> Result<Tensor> {
        let classes = batch.classes(self.of)?;
        if self.balanced {
            return weighted(logits, classes, batch.balance(self.of)?);
        }
        cross_entropy(logits, classes)
    }
}

/// The weight `[C]` of each class among `classes`; 0 for one that does not occur.
pub(crate) fn balance(classes: &Tensor, count: usize) -> Result<Tensor> {
    let all = classes.to_vec1::<u32>()?;
    let mut counts = vec![0usize; count];
    all.iter().for_each(|class| counts[*class as usize] += 1);
    let seen = counts.iter().filter(|count| **count > 0).count();
    let weight = |own: &usize| if *own == 0 { 0.0 } else { all.len() as f32 / (seen * own) as f32 };
    Tensor::from_vec(counts.iter().map(weight).collect::<Vec<f32>>(), count, classes.device())
}

/// The mean cross-entropy of `logits` `[n, C]` with `classes` `[n]`, weighted by `weights` `[C]` of the classes.
fn weighted(logits: &Tensor, classes: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let own = log_softmax(logits, 1)?.gather(&classes.unsqueeze(1)?, 1)?.squeeze(1)?;
    let weights = weights.index_select(classes, 0)?;
    // A batch of none but unseen classes weighs nothing.
    let sum = (weights.sum_all()? + f64::from(f32::MIN_POSITIVE))?;
    (own * weights)?.sum_all()?.neg()? / sum
}

/// The mean cross-entropy of `logits` `[n, C]` with `classes` `[n]` (u32).
pub(crate) fn cross_entropy(logits: &Tensor, classes: &Tensor) -> Result<Tensor> {
    log_softmax(logits, 1)?.gather(&classes.unsqueeze(1)?, 1)?.mean_all()?.neg()
}

#[cfg(test)]
mod tests {
    use crate::loss::tests::{Fixture, check};
    use candle_core::{Device, Tensor};

    // s, t, y = the fixture of loss/mod.rs
    // torch.nn.functional.cross_entropy(s, y)   # 0.7745660; gradient [0,0] -0.1025506, [3,1] 0.1518704
    #[test]
    fn equals_pytorch() {
        check(|Fixture { s, y, .. }| super::cross_entropy(s, y), 0.774_566, -0.102_550_6, 0.151_870_4);
    }

    // F.cross_entropy(s, y, weight=tensor([2/3, 4/3, 4/3]))
    #[test]
    fn balanced_equals_pytorch() {
        check(
            |Fixture { s, y, .. }| super::weighted(s, y, &super::balance(y, 3).unwrap()),
            0.5700197,
            -0.0683671,
            0.1012469,
        );
        let weights = super::balance(&Tensor::new(&[0u32, 1, 3, 0], &Device::Cpu).unwrap(), 4).unwrap();
        let expected = [2.0 / 3.0, 4.0 / 3.0, 0.0, 4.0 / 3.0];
        assert_eq!(weights.to_vec1::<f32>().unwrap(), expected);
    }
}
