//! Hints: the student's features, through a linear map that is learnt beside it and thrown away, are the teacher's.
//!
//! || R f_s + c - f_t ||^2, the mean over inputs and dimensions, on the features that the student's last linear layer sees and a
//! recorded hidden tensor. Source: FitNets, arXiv 1412.6550, as a term of the loss in the place of a stage of its own.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use super::logit_mse::logit_mse;
use super::{Batch, Loss, one};
use crate::example::Signal;

/// The settings of the loss `fitnet`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FitnetLoss {
    /// The weight in the sum; 100 in the comparisons of later papers.
    #[serde(default = "one")]
    pub weight: f64,
}

impl Loss for FitnetLoss {
    fn weight(&self) -> f64 {
        self.weight
    }

    fn needs(&self) -> Signal {
        Signal::Label
    }

    fn compares_features(&self) -> bool {
        true
    }

    fn maps(&self, features: usize, hidden: usize) -> [Option<[usize; 2]>; 2] {
        [Some([features, hidden]), None]
    }

    fn evaluate(&self, _logits: &Tensor, batch: &Batch) -> Result<Tensor> {
        let (student, teacher) = batch.features()?;
        logit_mse(student, teacher)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::tests::{Fixture, check};
    use crate::loss::{LossConfig, Maps};
    use crate::student::Head;

    // F.mse_loss(F.linear(s, tensor([[.5, -1, 0], [1, .25, 2]]), tensor([.25, -.5])), t[:, :2])
    #[test]
    fn equals_pytorch() {
        let loss: LossConfig = toml::from_str("kind = 'fitnet'").unwrap();
        let mapped = |Fixture { s, t, y, .. }: &Fixture| {
            let weight = Tensor::new(&[[0.5f32, -1.0, 0.0], [1.0, 0.25, 2.0]], s.device())?;
            let head = Head::of(&weight, &Tensor::new(&[0.25f32, -0.5], s.device())?)?;
            let maps = Maps { features: Some(head), hidden: None };
            let (features, hidden) = (Some(s.clone()), Some(t.narrow(1, 0, 2)?));
            let batch = Batch { features, hidden, ..Batch::of(None, y.clone()) };
            loss.evaluate(Some(&maps), s, &batch)
        };
        check(mapped, 13.672_363, 0.25, 0.230_468_8);
    }
}
