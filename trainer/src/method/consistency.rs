//! Consistency with pseudo-labels: of an image that nobody asked about the student names the class from a weak view, and where
//! it is sure enough, it shall name it from a strong view too. It costs no call.
//!
//! mean over the batch of 1[max p_weak >= threshold] CE(argmax p_weak, strong view). The weak view is the run's own
//! augmentation. Source: FixMatch, arXiv 2001.07685. With the average of the student's weights for the weak view and the
//! mean square of the differences of all probabilities it is a mean teacher, arXiv 1703.01780.
//!
//! It must not know the loop. Invariant: no gradient flows through a weak view, and no answer is looked at.

use candle_core::{DType, Result, Tensor};
use candle_nn::ops::{log_softmax, softmax};
use serde::{Deserialize, Serialize};

use super::MethodConfig;
use super::warm_up::views;
use crate::augment::Augment;
use crate::range::{Judged, OutOfRange};
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
    /// Who says what the strong view is held to.
    #[serde(default)]
    pub by: By,
    /// What it is held to.
    #[serde(default)]
    pub form: ConsistencyForm,
    /// The strong view.
    #[serde(default = "views")]
    pub strong: Augment,
}

/// Who says what a strong view is held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// The student, of the weak view.
    #[default]
    Student,
    /// The average of its weights, of the weak view: a mean teacher.
    Average,
}

/// What a strong view is held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConsistencyForm {
    /// The most probable class, by cross-entropy.
    #[default]
    Class,
    /// All probabilities, by the mean square of the differences.
    Mse,
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
    /// An average that is not kept.
    #[error("`method.consistency.by = \"average\"` needs the decay of the average, `ema`")]
    Average,
    /// A number out of its range.
    #[error(transparent)]
    Range(#[from] OutOfRange),
}

impl ConsistencyConfig {
    /// Checks it against the student and the number of inputs of the pool.
    pub(crate) fn check(
        &self,
        method: &MethodConfig,
        student: &StudentConfig,
        pool: usize,
        ema: Option<f64>,
    ) -> std::result::Result<(), ConsistencyError> {
        let table = Judged("method.consistency");
        table.check("batch", self.batch > 0, self.batch, "1 or more")?;
        table.check("weight", self.weight > 0.0 && self.weight.is_finite(), self.weight, "above 0")?;
        table.check("threshold", (0.0..=1.0).contains(&self.threshold), self.threshold, "0 to 1")?;
        let image = student.image().ok_or(ConsistencyError::Images { student: student.name() })?;
        self.strong.check(image, "method.consistency.strong")?;
        if self.by == By::Average && ema.is_none() {
            return Err(ConsistencyError::Average);
        }
        if method.mixes() {
            return Err(ConsistencyError::Mixup);
        }
        if pool == 0 { Err(ConsistencyError::Pool) } else { Ok(()) }
    }

    /// The term of logits of weak and strong views of the same inputs, `[n, C]` each, with its weight.
    pub(crate) fn term(&self, weak: &Tensor, strong: &Tensor) -> Result<Tensor> {
        let sure = softmax(&weak.detach(), 1)?;
        let counts = sure.max_keepdim(1)?.ge(self.threshold)?.to_dtype(DType::F32)?;
        let apart = match self.form {
            ConsistencyForm::Class => log_softmax(strong, 1)?.gather(&sure.argmax_keepdim(1)?, 1)?.neg()?,
            ConsistencyForm::Mse => (softmax(strong, 1)? - sure)?.sqr()?.mean_keepdim(1)?,
        };
        (apart * counts)?.mean_all()? * self.weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::tests::{Fixture, check};
    use candle_core::{Device, Var};

    fn config(text: &str) -> ConsistencyConfig {
        toml::from_str(text).unwrap()
    }

    // p, q = F.softmax(w, 1), F.softmax(s, 1): F.mse_loss(q, p) with w = [[4, 0], [0, 1]], s = [[0, 1], [5, 0]]
    //   # ((.2689414 - .9820138)^2 + (.9933072 - .2689414)^2) / 2
    #[test]
    fn all_probabilities_are_held_together_where_that_is_asked() {
        let config = config("form = 'mse'\nthreshold = 0.0");
        let rows = |rows: [[f32; 2]; 2]| Tensor::new(&rows, &Device::Cpu).unwrap();
        let term = config.term(&rows([[4.0, 0.0], [0.0, 1.0]]), &rows([[0.0, 1.0], [5.0, 0.0]])).unwrap();
        assert!((term.to_scalar::<f32>().unwrap() - 0.516_589).abs() < 1e-5, "{term}");
    }

    // p, c = F.softmax(t, 1).max(1)
    // 2 * (F.cross_entropy(s, c, reduction="none") * (p >= .9)).mean()
    // 2 * F.mse_loss(F.softmax(s, 1), F.softmax(t, 1))
    #[test]
    fn both_forms_equal_pytorch() {
        let by = |text: &str| {
            let config = config(text);
            move |Fixture { s, t, .. }: &Fixture| config.term(t, s)
        };
        check(by("weight = 2.0\nthreshold = 0.9"), 0.348_910_9, -0.205_101_2, 0.0);
        check(by("weight = 2.0\nthreshold = 0.0\nform = 'mse'"), 0.046_135_2, -0.039_871, 0.003_010_1);
    }

    #[test]
    fn only_sure_views_teach_and_only_strong_ones_learn() {
        let config = config("weight = 2.0\nthreshold = 0.9");
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
