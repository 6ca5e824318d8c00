//! Comparative distillation: the student's differences between inputs against the teacher's cached ones.
//!
//! Both forms as in the authors' released code: the one of 2023 (KL between softened differences) and the one of
//! 2025 (MSE). Neither has a term on single outputs, so the student's outputs float by a constant for each class;
//! `method` puts that offset back. For a white-box teacher the same differences are taken of features: the student's, through a
//! linear map that is learnt beside it, against a recorded hidden tensor. Source: arXiv 2311.02253, code alextxu/ckd.

use candle_core::{Result, Tensor};

use serde::{Deserialize, Serialize};

use super::{Batch, Judge, Labels, Loss, LossError, four, missing, one, one_hot};
use super::{kd::kd, logit_mse::logit_mse};
use crate::compare::{Combine, Shape, all_tuples_mse, combine};
use crate::example::Signal;

/// The published forms.
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

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compared {
    /// The student's outputs and the teacher's.
    #[default]
    Outputs,
    /// Their features.
    Features,
}

/// The settings of the loss `ckd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CkdLoss {
    /// The weight in the sum.
    #[serde(default = "one")]
    pub weight: f64,
    /// What is compared.
    #[serde(default, skip_serializing_if = "is_outputs")]
    pub on: Compared,
    /// The published form.
    #[serde(default)]
    pub form: Form,
    /// How many examples of a tuple count as positive.
    #[serde(default = "one_example")]
    pub positives: usize,
    /// How many count as negative.
    #[serde(default = "one_example")]
    pub negatives: usize,
    /// How outputs are combined.
    #[serde(default)]
    pub combine: Combine,
    /// Sampled tuples or all of them.
    #[serde(default)]
    pub tuples: Tuples,
    /// The weight of the term on labels; default 0 for MSE, 1 for KL.
    pub w_cls: Option<f64>,
    /// The weight of the term on the teacher's outputs.
    #[serde(default = "one")]
    pub w_rel: f64,
    /// The temperature of the KL form.
    #[serde(default = "four")]
    pub temperature: f64,
    /// Whose class the term on labels takes.
    #[serde(default)]
    pub of: Labels,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_outputs(on: &Compared) -> bool {
    *on == Compared::Outputs
}

fn one_example() -> usize {
    1
}

impl CkdLoss {
    fn w_cls(&self) -> f64 {
        self.w_cls.unwrap_or(if self.form == Form::Kl { 1.0 } else { 0.0 })
    }

    fn shape(&self) -> Shape {
        Shape { positives: self.positives, negatives: self.negatives, combine: self.combine }
    }

    /// Differences of features, `[n, r]` each.
    fn of_features(&self, batch: &Batch) -> Result<Tensor> {
        let (student, teacher) = batch.features()?;
        let apart = if self.tuples == Tuples::All {
            all_tuples_mse(&(student - teacher)?, &self.shape().weights(0.0))?
        } else {
            let weights = batch.weights.as_ref().ok_or_else(|| missing("tuples"))?;
            logit_mse(&combine(student, weights)?, &combine(teacher, weights)?)?
        };
        apart * self.w_rel
    }

    /// Over every tuple of the batch, in closed form.
    fn all(&self, logits: &Tensor, teacher: &Tensor, hot: &Tensor) -> Result<Tensor> {
        let weights = self.shape().weights(0.0);
        let on_teacher = (all_tuples_mse(&(logits - teacher)?, &weights)? * self.w_rel)?;
        if self.w_cls() == 0.0 {
            return Ok(on_teacher);
        }
        on_teacher + (all_tuples_mse(&(logits - hot)?, &weights)? * self.w_cls())?
    }
}

impl Loss for CkdLoss {
    fn weight(&self) -> f64 {
        self.weight
    }

    fn needs(&self) -> Signal {
        if self.compares_features() { Signal::Label } else { Signal::Logits }
    }

    fn check(&self, judge: Judge) -> std::result::Result<(), LossError> {
        judge.positive("positives", self.positives as f64)?;
        judge.positive("negatives", self.negatives as f64)?;
        judge.not_negative("w_cls", self.w_cls())?;
        judge.not_negative("w_rel", self.w_rel)?;
        judge.positive("w_rel + w_cls", self.w_rel + self.w_cls())?;
        judge.positive("temperature", self.temperature)?;
        if self.tuples == Tuples::All && (self.form == Form::Kl || self.combine == Combine::Mixup) {
            return Err(LossError::ClosedForm);
        }
        if self.compares_features() && (self.form == Form::Kl || self.w_cls() != 0.0) {
            return Err(LossError::Features);
        }
        Ok(())
    }

    fn asks_truth(&self) -> bool {
        self.of == Labels::Truth && self.w_cls() != 0.0
    }

    fn floats(&self) -> bool {
        self.combine == Combine::Difference && !self.compares_features()
    }

    fn compares_features(&self) -> bool {
        self.on == Compared::Features
    }

    fn maps(&self, features: usize, hidden: usize) -> [Option<[usize; 2]>; 2] {
        [self.compares_features().then_some([features, hidden]), None]
    }

    fn tuples(&self) -> Option<Shape> {
        (self.tuples == Tuples::Sampled).then(|| self.shape())
    }

    fn evaluate(&self, logits: &Tensor, batch: &Batch) -> Result<Tensor> {
        if self.compares_features() {
            return self.of_features(batch);
        }
        let hot = one_hot(batch.classes(self.of)?, logits.dim(1)?)?;
        if self.tuples == Tuples::All {
            return self.all(logits, batch.teacher()?, &hot);
        }
        let weights = batch.weights.as_ref().ok_or_else(|| missing("tuples"))?;
        let student = combine(logits, weights)?;
        let teacher = combine(batch.teacher()?, weights)?;
        let labels = combine(&hot, weights)?;
        let (w_cls, w_rel) = (self.w_cls(), self.w_rel);
        match self.form {
            Form::Mse => ckd_mse(&student, &teacher, &labels, w_cls, w_rel),
            Form::Kl => ckd_kl(&student, &teacher, &labels, self.temperature, w_cls, w_rel),
        }
    }
}

/// The form of 2025: `w_cls` MSE(d_s, d_y) + `w_rel` MSE(d_s, d_t), over combined outputs `[m, C]`.
fn ckd_mse(student: &Tensor, teacher: &Tensor, labels: &Tensor, w_cls: f64, w_rel: f64) -> Result<Tensor> {
    (logit_mse(student, labels)? * w_cls)? + (logit_mse(student, teacher)? * w_rel)?
}

/// The form of 2023: `w_cls` T^2 KL(d_y || d_s) + `w_rel` T^2 KL(d_t || d_s), each softened by `temperature`.
fn ckd_kl(
    student: &Tensor,
    teacher: &Tensor,
    labels: &Tensor,
    temperature: f64,
    w_cls: f64,
    w_rel: f64,
) -> Result<Tensor> {
    (kd(student, labels, temperature)? * w_cls)? + (kd(student, teacher, temperature)? * w_rel)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::tests::{Fixture, check};
    use candle_core::Device;

    fn pairs(rows: &Tensor) -> Result<Tensor> {
        combine(rows, &Tensor::new(&[[1f32, -1.0], [1.0, -1.0]], &Device::Cpu)?)
    }

    // d = lambda z: z[[0, 2]] - z[[1, 3]]
    // ds, dt, dy = d(s), d(t), d(F.one_hot(y, 3).float())
    // F.mse_loss(ds, dy) + F.mse_loss(ds, dt)   # 7.1770830; gradient [0,0] -1.3333334, [3,1] -0.6666667
    // F.mse_loss(ds, dt)                        # 4.8229165; gradient [0,0] -1.3333334, [3,1] -0.7500000
    #[test]
    fn the_mse_form_equals_pytorch() {
        let loss = |w_cls| {
            move |Fixture { s, t, hot, .. }: &Fixture| {
                ckd_mse(&pairs(s)?, &pairs(t)?, &pairs(hot)?, w_cls, 1.0)
            }
        };
        check(loss(1.0), 7.177_083, -1.333_333_4, -0.666_666_7);
        check(loss(0.0), 4.822_916_5, -1.333_333_4, -0.75);
    }

    // The same with s and t as features, that is d(s) and d(t), and over all pairs by their mean.
    #[test]
    fn differences_of_features_are_those_of_the_mse_form() {
        let loss = |text: &str| -> CkdLoss { toml::from_str(&format!("on = 'features'\n{text}")).unwrap() };
        let of = |text: &'static str| {
            move |Fixture { s, t, y, .. }: &Fixture| {
                let weights = Tensor::new(&[[1f32, -1.0], [1.0, -1.0]], &Device::Cpu)?;
                let (features, hidden) = (Some(s.clone()), Some(t.clone()));
                let batch = Batch { features, hidden, weights: Some(weights), ..Batch::of(None, y.clone()) };
                loss(text).evaluate(s, &batch)
            }
        };
        check(of(""), 4.822_916_5, -1.333_333_4, -0.75);
        let of_outputs: CkdLoss = toml::from_str("tuples = 'all'").unwrap();
        let (_, Fixture { s, t, y, .. }) = crate::loss::tests::fixture();
        let expected = of_outputs.evaluate(&s, &Batch::of(Some(t), y)).unwrap().to_scalar::<f32>().unwrap();
        let found =
            of("tuples = 'all'")(&crate::loss::tests::fixture().1).unwrap().to_scalar::<f32>().unwrap();
        assert_eq!(found, expected);
    }

    // kl = lambda a, b: F.kl_div(F.log_softmax(a/4, 1), F.softmax(b/4, 1), reduction='batchmean') * 16
    // kl(ds, dy) + kl(ds, dt)   # 2.2938814; gradient [0,0] -0.6481658, [3,1] 0.1127896
    #[test]
    fn the_kl_form_equals_pytorch() {
        check(
            |Fixture { s, t, hot, .. }| ckd_kl(&pairs(s)?, &pairs(t)?, &pairs(hot)?, 4.0, 1.0, 1.0),
            2.293_881_4,
            -0.648_165_8,
            0.112_789_6,
        );
    }
}
