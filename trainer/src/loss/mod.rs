//! Losses: free functions of tensors, one file each, and the list of them that a run file asks for.
//!
//! This file must not know students, optimizers or where targets came from. Invariants: every loss names the signal
//! that it needs, and a teacher that does not give it is refused by name before anything starts; a batch carries what
//! its losses need, so that evaluating them cannot fail for want of a target.

mod ckd;
mod kd;
mod labels;
mod logit_mse;
mod rkd;

use candle_core::{DType, Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::compare::{Combine, Shape, all_tuples_mse, combine};
use crate::example::Signal;

pub(crate) use kd::kd;
pub(crate) use labels::cross_entropy;

/// Whose word on an input's class a loss takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Labels {
    /// The class that the teacher's recorded answer names.
    #[default]
    Teacher,
    /// The true class from the data set.
    Truth,
}

/// The published forms of comparative distillation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// The form of 2025.
    #[default]
    Mse,
    /// The form of 2023.
    Kl,
}

/// Which comparisons a step looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tuples {
    /// A batch of tuples, drawn before training.
    #[default]
    Sampled,
    /// Every tuple within a batch of examples, in closed form.
    All,
}

/// One loss of a run file, with its weight in the sum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum LossConfig {
    /// Cross-entropy with one class.
    Labels {
        /// The weight in the sum.
        #[serde(default = "one")]
        weight: f64,
        /// Whose class.
        #[serde(default)]
        of: Labels,
    },
    /// KL between softened outputs.
    Kd {
        /// The weight in the sum.
        #[serde(default = "one")]
        weight: f64,
        /// Divides both sides' logits.
        #[serde(default = "four")]
        temperature: f64,
    },
    /// Squared difference of logits.
    LogitMse {
        /// The weight in the sum.
        #[serde(default = "one")]
        weight: f64,
    },
    /// Comparative distillation.
    Ckd {
        /// The weight in the sum.
        #[serde(default = "one")]
        weight: f64,
        /// The published form.
        #[serde(default)]
        form: Form,
        /// How many examples of a tuple count as positive.
        #[serde(default = "one_example")]
        positives: usize,
        /// How many count as negative.
        #[serde(default = "one_example")]
        negatives: usize,
        /// How outputs are combined.
        #[serde(default)]
        combine: Combine,
        /// Sampled tuples or all of them.
        #[serde(default)]
        tuples: Tuples,
        /// The weight of the term on labels; default 0 for MSE, 1 for KL.
        w_cls: Option<f64>,
        /// The weight of the term on the teacher's outputs.
        #[serde(default = "one")]
        w_rel: f64,
        /// The temperature of the KL form.
        #[serde(default = "four")]
        temperature: f64,
        /// Whose class the term on labels takes.
        #[serde(default)]
        of: Labels,
    },
    /// Relational distillation by distances; its authors weigh it 25.
    Rkd {
        /// The weight in the sum.
        #[serde(default = "one")]
        weight: f64,
    },
}

fn one() -> f64 {
    1.0
}

fn four() -> f64 {
    4.0
}

fn one_example() -> usize {
    1
}

/// Why a list of losses cannot be used.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum LossError {
    /// There is nothing to learn from.
    #[error("`method.losses` is empty")]
    None,
    /// The teacher's answers do not hold what a loss needs.
    #[error("loss `{loss}` needs {needs}, but the teacher gives {gives}")]
    Signal {
        /// The loss.
        loss: &'static str,
        /// What it needs.
        needs: Signal,
        /// What the teacher gives.
        gives: Signal,
    },
    /// True classes are asked for, and an example has none.
    #[error("loss `{loss}` needs the truth (`of = \"truth\"`), but `{key}` has none")]
    Truth {
        /// The loss.
        loss: &'static str,
        /// The first example without truth.
        key: String,
    },
    /// A number out of its range.
    #[error("`{field}` of loss `{loss}` is {value}; it must be {range}")]
    Range {
        /// The loss.
        loss: &'static str,
        /// The field.
        field: &'static str,
        /// What it holds.
        value: f64,
        /// What it may hold.
        range: &'static str,
    },
    /// Two comparative losses that look at different tuples.
    #[error("the `ckd` losses of one run must share `positives`, `negatives`, `combine` and `tuples`")]
    Tuples,
    /// A comparison that has no closed form.
    #[error(
        "`tuples = \"all\"` has a closed form for `form = \"mse\"` with `combine` other than \"mixup\" only"
    )]
    ClosedForm,
    /// Fewer examples than one tuple holds.
    #[error("a tuple of loss `ckd` takes {needs} examples, but there are {have}")]
    TooFew {
        /// The size of a tuple.
        needs: usize,
        /// How many examples there are.
        have: usize,
    },
}

/// What the losses of one step see beside the student's logits.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    /// The teacher's recorded logits or log-probabilities `[n, C]`, where it gives them.
    pub(crate) teacher: Option<Tensor>,
    /// The teacher's classes `[n]`.
    pub(crate) labels: Tensor,
    /// The true classes `[n]`, where all are known.
    pub(crate) truth: Option<Tensor>,
    /// The weights `[m, k]` of tuples, where the batch is one of tuples: n = m k.
    pub(crate) weights: Option<Tensor>,
}

impl Batch {
    fn classes(&self, of: Labels) -> Result<&Tensor> {
        match of {
            Labels::Teacher => Ok(&self.labels),
            Labels::Truth => self.truth.as_ref().ok_or_else(|| missing("truth")),
        }
    }

    fn teacher(&self) -> Result<&Tensor> {
        self.teacher.as_ref().ok_or_else(|| missing("teacher's outputs"))
    }
}

fn missing(what: &str) -> candle_core::Error {
    candle_core::Error::Msg(format!("the batch holds no {what}, which the losses were checked for"))
}

impl LossConfig {
    /// The name of its kind in a run file.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Labels { .. } => "labels",
            Self::Kd { .. } => "kd",
            Self::LogitMse { .. } => "logit-mse",
            Self::Ckd { .. } => "ckd",
            Self::Rkd { .. } => "rkd",
        }
    }

    /// The signal that it needs from the teacher.
    #[must_use]
    pub fn needs(&self) -> Signal {
        match self {
            Self::Labels { .. } => Signal::Label,
            Self::Kd { .. } => Signal::LogProbabilities,
            Self::LogitMse { .. } | Self::Ckd { .. } | Self::Rkd { .. } => Signal::Logits,
        }
    }

    /// Whether it asks for the true classes.
    pub(crate) fn asks_truth(&self) -> bool {
        match self {
            Self::Labels { of, .. } => *of == Labels::Truth,
            Self::Ckd { of, .. } => *of == Labels::Truth && self.w_cls() != 0.0,
            _ => false,
        }
    }

    /// Whether it compares inputs only, so that the student's outputs float by a constant for each class.
    pub(crate) fn floats(&self) -> bool {
        matches!(self, Self::Ckd { combine: Combine::Difference, .. })
    }

    /// The shape of the tuples that it wants drawn, if any.
    pub(crate) fn tuples(&self) -> Option<Shape> {
        match self {
            Self::Ckd { positives, negatives, combine, tuples: Tuples::Sampled, .. } => {
                Some(Shape { positives: *positives, negatives: *negatives, combine: *combine })
            }
            _ => None,
        }
    }

    fn w_cls(&self) -> f64 {
        match self {
            Self::Ckd { w_cls, form, .. } => w_cls.unwrap_or(if *form == Form::Kl { 1.0 } else { 0.0 }),
            _ => 0.0,
        }
    }

    fn check(&self) -> std::result::Result<(), LossError> {
        let positive = |field, value: f64| {
            if value > 0.0 && value.is_finite() {
                return Ok(());
            }
            Err(LossError::Range { loss: self.name(), field, value, range: "above 0" })
        };
        let not_negative = |field, value: f64| {
            if value >= 0.0 && value.is_finite() {
                return Ok(());
            }
            Err(LossError::Range { loss: self.name(), field, value, range: "0 or more" })
        };
        match self {
            Self::Labels { weight, .. } | Self::LogitMse { weight } | Self::Rkd { weight } => {
                positive("weight", *weight)
            }
            Self::Kd { weight, temperature } => {
                positive("weight", *weight)?;
                positive("temperature", *temperature)
            }
            Self::Ckd { weight, form, positives, negatives, combine, tuples, w_rel, temperature, .. } => {
                positive("weight", *weight)?;
                positive("positives", *positives as f64)?;
                positive("negatives", *negatives as f64)?;
                not_negative("w_cls", self.w_cls())?;
                not_negative("w_rel", *w_rel)?;
                positive("w_rel + w_cls", *w_rel + self.w_cls())?;
                positive("temperature", *temperature)?;
                if *tuples == Tuples::All && (*form == Form::Kl || *combine == Combine::Mixup) {
                    return Err(LossError::ClosedForm);
                }
                Ok(())
            }
        }
    }

    /// The weighted loss of a batch; a scalar.
    pub(crate) fn evaluate(&self, logits: &Tensor, batch: &Batch) -> Result<Tensor> {
        match self {
            Self::Labels { weight, of } => cross_entropy(logits, batch.classes(*of)?)? * *weight,
            Self::Kd { weight, temperature } => kd(logits, batch.teacher()?, *temperature)? * *weight,
            Self::LogitMse { weight } => logit_mse::logit_mse(logits, batch.teacher()?)? * *weight,
            Self::Rkd { weight } => rkd::rkd_distance(logits, batch.teacher()?)? * *weight,
            Self::Ckd { weight, form, tuples, w_rel, temperature, of, .. } => {
                let (w_cls, w_rel) = (self.w_cls(), *w_rel);
                let hot = one_hot(batch.classes(*of)?, logits.dim(1)?)?;
                let loss = match (tuples, form) {
                    (Tuples::All, _) => self.all(logits, batch.teacher()?, &hot, w_cls, w_rel)?,
                    (Tuples::Sampled, form) => {
                        let weights = batch.weights.as_ref().ok_or_else(|| missing("tuples"))?;
                        let student = combine(logits, weights)?;
                        let teacher = combine(batch.teacher()?, weights)?;
                        let labels = combine(&hot, weights)?;
                        match form {
                            Form::Mse => ckd::ckd_mse(&student, &teacher, &labels, w_cls, w_rel)?,
                            Form::Kl => ckd::ckd_kl(&student, &teacher, &labels, *temperature, w_cls, w_rel)?,
                        }
                    }
                };
                loss * *weight
            }
        }
    }

    fn all(&self, logits: &Tensor, teacher: &Tensor, hot: &Tensor, w_cls: f64, w_rel: f64) -> Result<Tensor> {
        let Self::Ckd { positives, negatives, combine, .. } = self else {
            return Err(missing("tuples"));
        };
        let weights = Shape { positives: *positives, negatives: *negatives, combine: *combine }.weights(0.0);
        let on_teacher = (all_tuples_mse(&(logits - teacher)?, &weights)? * w_rel)?;
        if w_cls == 0.0 {
            return Ok(on_teacher);
        }
        on_teacher + (all_tuples_mse(&(logits - hot)?, &weights)? * w_cls)?
    }
}

fn one_hot(classes: &Tensor, count: usize) -> Result<Tensor> {
    let all = Tensor::arange(0u32, count as u32, classes.device())?.unsqueeze(0)?;
    classes.unsqueeze(1)?.broadcast_eq(&all)?.to_dtype(DType::F32)
}

/// Checks a list of losses against what the teacher gives.
///
/// # Errors
/// The first loss that cannot be used, and why.
pub fn check_losses(losses: &[LossConfig], gives: Signal) -> std::result::Result<(), LossError> {
    if losses.is_empty() {
        return Err(LossError::None);
    }
    for loss in losses {
        loss.check()?;
        if !gives.serves(loss.needs()) {
            return Err(LossError::Signal { loss: loss.name(), needs: loss.needs(), gives });
        }
    }
    let mut shapes =
        losses.iter().filter(|loss| matches!(loss, LossConfig::Ckd { .. })).map(LossConfig::tuples);
    if let Some(first) = shapes.next()
        && shapes.any(|shape| shape != first)
    {
        return Err(LossError::Tuples);
    }
    Ok(())
}

/// The sum of the weighted losses of a batch; a scalar.
pub(crate) fn total(losses: &[LossConfig], logits: &Tensor, batch: &Batch) -> Result<Tensor> {
    let mut parts = losses.iter().map(|loss| loss.evaluate(logits, batch));
    let first = parts.next().ok_or_else(|| missing("losses"))??;
    parts.try_fold(first, |sum, part| sum + part?)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use candle_core::{Device, Var};

    /// The tensors behind the PyTorch numbers above each loss's test:
    /// `s = tensor([[1, -.5, .25], [0, 2, -1], [.5, .5, 3], [-1, .75, 0]], requires_grad=True)`,
    /// `t = tensor([[3, -1, .5], [-2, 4, 0], [1, -1.5, 2.5], [.5, 1, -.25]])`, `y = tensor([0, 1, 2, 0])`; PyTorch 2.15.
    pub(crate) struct Fixture {
        pub(crate) s: Tensor,
        pub(crate) t: Tensor,
        pub(crate) y: Tensor,
        pub(crate) hot: Tensor,
    }

    fn fixture() -> (Var, Fixture) {
        let cpu = &Device::Cpu;
        let s = Var::new(&[[1f32, -0.5, 0.25], [0.0, 2.0, -1.0], [0.5, 0.5, 3.0], [-1.0, 0.75, 0.0]], cpu)
            .unwrap();
        let t = Tensor::new(&[[3f32, -1.0, 0.5], [-2.0, 4.0, 0.0], [1.0, -1.5, 2.5], [0.5, 1.0, -0.25]], cpu)
            .unwrap();
        let y = Tensor::new(&[0u32, 1, 2, 0], cpu).unwrap();
        let hot = one_hot(&y, 3).unwrap();
        (s.clone(), Fixture { s: s.as_tensor().clone(), t, y, hot })
    }

    /// Holds a loss to PyTorch's value and two entries of its gradient.
    pub(crate) fn check(loss: impl Fn(&Fixture) -> Result<Tensor>, value: f32, first: f32, last: f32) {
        let (s, fixture) = fixture();
        let loss = loss(&fixture).unwrap();
        let gradient = loss.backward().unwrap().get(&s).unwrap().to_vec2::<f32>().unwrap();
        let found = [loss.to_scalar::<f32>().unwrap(), gradient[0][0], gradient[3][1]];
        for (found, expected) in found.into_iter().zip([value, first, last]) {
            assert!(
                (found - expected).abs() < 2e-6 * expected.abs().max(1.0),
                "{found} instead of {expected}"
            );
        }
    }

    fn parse(text: &str) -> LossConfig {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn losses_compose_with_their_weights() {
        let (_, Fixture { s, t, y, .. }) = fixture();
        let weights = Tensor::new(&[[1f32, -1.0], [1.0, -1.0]], &Device::Cpu).unwrap();
        let batch = Batch { teacher: Some(t), labels: y, truth: None, weights: Some(weights) };
        for (losses, expected) in [
            (vec!["kind = 'labels'", "kind = 'kd'\nweight = 2.0"], 0.774_566 + 2.0 * 0.577_878_1),
            (vec!["kind = 'logit-mse'\nweight = 0.5"], 0.5 * 1.682_291_6),
            (vec!["kind = 'ckd'"], 4.822_916_5),
            (vec!["kind = 'ckd'\nw_cls = 1.0"], 7.177_083),
            (vec!["kind = 'ckd'\nform = 'kl'"], 2.293_881_4),
            (vec!["kind = 'rkd'\nweight = 25.0"], 25.0 * 0.036_607_8),
        ] {
            let parsed: Vec<_> = losses.iter().map(|text| parse(text)).collect();
            check_losses(&parsed, Signal::Logits).unwrap();
            let found = total(&parsed, &s, &batch).unwrap().to_scalar::<f32>().unwrap();
            assert!((found - expected).abs() < 1e-5, "{losses:?}: {found} instead of {expected}");
        }
    }

    #[test]
    fn a_loss_without_its_signal_is_refused_by_name() {
        let check = |text: &str, gives, expected: &str| {
            let error = check_losses(&[parse("kind = 'labels'"), parse(text)], gives).expect_err(expected);
            assert_eq!(error.to_string(), expected);
        };
        check("kind = 'kd'", Signal::Label, "loss `kd` needs log-probabilities, but the teacher gives label");
        check(
            "kind = 'logit-mse'",
            Signal::Label,
            "loss `logit-mse` needs logits, but the teacher gives label",
        );
        check("kind = 'ckd'", Signal::Label, "loss `ckd` needs logits, but the teacher gives label");
        check("kind = 'rkd'", Signal::Label, "loss `rkd` needs logits, but the teacher gives label");
        check(
            "kind = 'ckd'\ntuples = 'all'\nform = 'kl'",
            Signal::Logits,
            "`tuples = \"all\"` has a closed form for `form = \"mse\"` with `combine` other than \"mixup\" only",
        );
        check(
            "kind = 'kd'\ntemperature = 0.0",
            Signal::Logits,
            "`temperature` of loss `kd` is 0; it must be above 0",
        );
        assert_eq!(check_losses(&[], Signal::Logits), Err(LossError::None));
        let pair = [parse("kind = 'ckd'"), parse("kind = 'ckd'\npositives = 2")];
        assert_eq!(check_losses(&pair, Signal::Logits), Err(LossError::Tuples));
    }
}
