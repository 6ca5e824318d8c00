//! Consistency with pseudo-labels: of an image that nobody asked about the student names the class from a weak view, and where
//! it is sure enough, it shall name it from a strong view too. It costs no call.
//!
//! mean over the batch of 1[max p_weak >= threshold] CE(argmax p_weak, strong view). The weak view is the run's own
//! augmentation. Source: FixMatch, arXiv 2001.07685.
//!
//! It must not know the loop. Invariant: no gradient flows through a weak view, and no answer is looked at.

use candle_core::{DType, Result, Tensor};
use candle_nn::ops::{log_softmax, softmax};
use serde::{Deserialize, Serialize};

use super::MethodConfig;
use super::warm_up::views;
use crate::augment::{Augment, AugmentError};
use crate::student::StudentConfig;

/// The `[method.consistency]` table of a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsistencyConfig {
    /// Inputs of the pool in a step.
    #[serde(default = "batch")]
    pub batch: usize,
    /// The weight of the term.
    #[serde(default = "weight")]
    pub weight: f64,
    /// The least probability of a class that counts.
    #[serde(default = "threshold")]
    pub threshold: f64,
    /// The strong view.
    #[serde(default = "views")]
    pub strong: Augment,
}

fn batch() -> usize {
    128
}

fn weight() -> f64 {
    1.0
}

fn threshold() -> f64 {
    0.95
}

/// Why nothing can be consistent.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ConsistencyError {
    /// Views are of images.
    #[error("`method.consistency` compares views of images; student `{student}` takes none")]
    Images {
        /// The student's kind.
        student: &'static str,
    },
    /// Nothing to be consistent on.
    #[error(
        "`method.consistency` learns from inputs that nobody asked about, and there are none: `budget.calls` covers them all, or the source is a record"
    )]
    Pool,
    /// Two ways of making a batch.
    #[error("`method.consistency` does not go together with `mixup` or `cutmix`")]
    Mixup,
    /// A number out of its range.
    #[error("`method.consistency.{field}` is {value}; it must be {range}")]
    Range {
        /// The field.
        field: &'static str,
        /// What it holds.
        value: f64,
        /// What it may hold.
        range: &'static str,
    },
    /// A view that images do not bear.
    #[error(transparent)]
    Views(#[from] AugmentError),
}

impl ConsistencyConfig {
    /// Checks it against the student and the number of inputs of the pool.
    pub(crate) fn check(
        &self,
        method: &MethodConfig,
        student: &StudentConfig,
        pool: usize,
    ) -> std::result::Result<(), ConsistencyError> {
        let check = |field, fine: bool, value: f64, range| {
            if fine { Ok(()) } else { Err(ConsistencyError::Range { field, value, range }) }
        };
        check("batch", self.batch > 0, self.batch as f64, "1 or more")?;
        check("weight", self.weight > 0.0 && self.weight.is_finite(), self.weight, "above 0")?;
        check("threshold", (0.0..=1.0).contains(&self.threshold), self.threshold, "0 to 1")?;
        let image = student.image().ok_or(ConsistencyError::Images { student: student.name() })?;
        self.strong.check(image, "method.consistency.strong")?;
        if method.mixes() {
            return Err(ConsistencyError::Mixup);
        }
        if pool == 0 { Err(ConsistencyError::Pool) } else { Ok(()) }
    }

    /// The term of logits of weak and strong views of the same inputs, `[n, C]` each, with its weight.
    pub(crate) fn term(&self, weak: &Tensor, strong: &Tensor) -> Result<Tensor> {
        let sure = softmax(&weak.detach(), 1)?;
        let counts = sure.max_keepdim(1)?.ge(self.threshold)?.to_dtype(DType::F32)?;
        let classes = sure.argmax_keepdim(1)?;
        let named = log_softmax(strong, 1)?.gather(&classes, 1)?;
        (named * counts)?.mean_all()? * -self.weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn only_sure_views_teach_and_only_strong_ones_learn() {
        let config = ConsistencyConfig { batch: 2, weight: 2.0, threshold: 0.9, strong: Augment::default() };
        let var = |rows: [[f32; 2]; 2]| Var::new(&rows, &Device::Cpu).unwrap();
        // The first is sure of class 0 (p = .982), the second is not (p = .731).
        let (weak, strong) = (var([[4.0, 0.0], [0.0, 1.0]]), var([[0.0, 1.0], [5.0, 0.0]]));
        let term = config.term(&weak, &strong).unwrap();
        // 2 * ln(1 + e) / 2
        assert!((term.to_scalar::<f32>().unwrap() - 1.313_261_7).abs() < 1e-5);
        let gradients = term.backward().unwrap();
        assert!(gradients.get(&weak).is_none());
        let found = gradients.get(&strong).unwrap().to_vec2::<f32>().unwrap();
        assert!((found[0][1] - 0.731_058_6).abs() < 1e-5 && found[1] == [0.0, 0.0], "{found:?}");
    }
}
