//! Losses: one file each, with its formula, its settings and what it needs; here the list of them and what all share.
//!
//! This file must not know students, optimizers or where targets came from. Invariants: every loss names the signal
//! that it needs, and a teacher that does not give it is refused by name before anything starts; a batch carries what
//! its losses need, so that evaluating them cannot fail for want of a target.

mod ckd;
mod crd;
mod dist;
mod dkd;
mod fitnet;
mod kd;
mod labels;
mod logit_mse;
mod ranking;
mod rkd;
mod sampled;
mod sp;
mod taid;
mod top_k;

use candle_core::{DType, Device, Result, Tensor, Var};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::compare::Shape;
use crate::example::Signal;
use crate::student::Head;

pub use ckd::{CkdLoss, Compared, Form, Tuples};
pub use crd::CrdLoss;
pub use dist::DistLoss;
pub use dkd::DkdLoss;
pub use fitnet::FitnetLoss;
pub use kd::KdLoss;
pub(crate) use kd::kd;
pub use labels::LabelsLoss;
pub(crate) use labels::{balance, cross_entropy};
pub use logit_mse::LogitMseLoss;
pub use ranking::RankingLoss;
pub use rkd::RkdLoss;
pub use sampled::SampledLoss;
pub use sp::SpLoss;
pub(crate) use taid::Interpolation;
pub use taid::TaidLoss;
pub use top_k::TopKLoss;

/// What a loss says of itself.
pub(crate) trait Loss {
    /// Its weight in the sum.
    fn weight(&self) -> f64;
    /// The signal that it needs from the teacher.
    fn needs(&self) -> Signal;
    /// Judges its settings, but for the weight.
    fn check(&self, _judge: Judge) -> std::result::Result<(), LossError> {
        Ok(())
    }
    /// Whether it asks for the true classes.
    fn asks_truth(&self) -> bool {
        false
    }
    /// Whether it weighs inputs by how rare their class is among the training answers.
    fn is_balanced(&self) -> bool {
        false
    }
    /// Whether it compares inputs only, so that the student's outputs float by a constant for each class.
    fn floats(&self) -> bool {
        false
    }
    /// The shape of the tuples that it wants drawn, if any.
    fn tuples(&self) -> Option<Shape> {
        None
    }
    /// Its settings, if it learns classes that are drawn once for each example.
    fn samples(&self) -> Option<&SampledLoss> {
        None
    }
    /// Its settings, if its target moves from the student to the teacher.
    fn interpolates(&self) -> Option<&TaidLoss> {
        None
    }
    /// Whether it holds the student's features against a hidden tensor of the teacher's.
    fn compares_features(&self) -> bool {
        false
    }
    /// The widths, input and output, of the linear maps that it learns: of the student's features and of the teacher's.
    fn maps(&self, _features: usize, _hidden: usize) -> [Option<[usize; 2]>; 2] {
        [None, None]
    }
    /// The loss of a batch before its weight; a scalar. Features come through its maps.
    fn evaluate(&self, logits: &Tensor, batch: &Batch) -> Result<Tensor>;
}

/// The kinds of losses: a variant, its settings, and its name in a run file.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident($settings:ty) = $name:literal,)*) => {
        /// One loss of a run file, with its weight in the sum.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "kind")]
        pub enum LossConfig {
            $($(#[$doc])* #[serde(rename = $name)] $kind($settings),)*
        }

        impl LossConfig {
            /// The name of its kind in a run file.
            #[must_use]
            pub fn name(&self) -> &'static str {
                match self { $(Self::$kind(_) => $name,)* }
            }

            fn loss(&self) -> &dyn Loss {
                match self { $(Self::$kind(settings) => settings,)* }
            }
        }
    };
}

kinds! {
    /// Cross-entropy with one class.
    Labels(LabelsLoss) = "labels",
    /// KL between softened outputs.
    Kd(KdLoss) = "kd",
    /// Squared difference of logits.
    LogitMse(LogitMseLoss) = "logit-mse",
    /// Comparative distillation.
    Ckd(CkdLoss) = "ckd",
    /// Relational distillation.
    Rkd(RkdLoss) = "rkd",
    /// Correlations within rows and columns.
    Dist(DistLoss) = "dist",
    /// Decoupled distillation.
    Dkd(DkdLoss) = "dkd",
    /// KL over the most probable classes and the mass of the rest.
    TopK(TopKLoss) = "top-k",
    /// The teacher's order of the classes.
    Ranking(RankingLoss) = "ranking",
    /// A few classes drawn from the teacher's distribution.
    Sampled(SampledLoss) = "sampled",
    /// A target between the student and the teacher.
    Taid(TaidLoss) = "taid",
    /// Similarities between inputs.
    Sp(SpLoss) = "sp",
    /// The teacher's features through a learnt map.
    Fitnet(FitnetLoss) = "fitnet",
    /// The teacher's features told from those of other inputs.
    Crd(CrdLoss) = "crd",
}

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

/// The default weight.
fn one() -> f64 {
    1.0
}

/// The default temperature.
fn four() -> f64 {
    4.0
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
    /// Features are compared, and the answers hold none.
    #[error("loss `{loss}` compares the teacher's hidden tensors, and its answers hold none")]
    Hidden {
        /// The loss.
        loss: &'static str,
    },
    /// Features alone are learnt.
    #[error("loss `{loss}` teaches the student's features alone: add one that teaches its outputs")]
    Outputs {
        /// The loss.
        loss: &'static str,
    },
    /// Features are compared in a form that is made for outputs.
    #[error(
        "`on = \"features\"` compares differences of features: with `form = \"mse\"` and without `w_cls`"
    )]
    Features,
    /// Two losses of a kind whose state a run holds once.
    #[error("a run has at most one loss `{loss}`")]
    Twice {
        /// The loss.
        loss: &'static str,
    },
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
    /// The weights of the classes, where a loss wants them.
    pub(crate) balance: Option<Balance>,
    /// The weights `[m, k]` of tuples, where the batch is one of tuples: n = m k.
    pub(crate) weights: Option<Tensor>,
    /// The shares `[n, C]` of classes drawn from the teacher's distribution, where a loss wants them.
    pub(crate) samples: Option<Tensor>,
    /// The teacher's last recorded hidden tensor `[n, r]`, where a loss wants it.
    pub(crate) hidden: Option<Tensor>,
    /// The student's features `[n, m]`, where a loss wants them.
    pub(crate) features: Option<Tensor>,
    /// The teacher's share in a target that moves from the student to it.
    pub(crate) share: f64,
    /// How many training answers there are in all.
    pub(crate) answers: usize,
}

/// The weight `[C]` of each class among the training answers.
#[derive(Debug, Clone)]
pub(crate) struct Balance {
    /// By the teacher's classes.
    pub(crate) teacher: Tensor,
    /// By the true ones, where all are known.
    pub(crate) truth: Option<Tensor>,
}

impl Batch {
    /// A batch of answers alone.
    pub(crate) fn of(teacher: Option<Tensor>, labels: Tensor) -> Self {
        Self {
            teacher,
            labels,
            truth: None,
            balance: None,
            weights: None,
            samples: None,
            hidden: None,
            features: None,
            share: 1.0,
            answers: 0,
        }
    }

    fn classes(&self, of: Labels) -> Result<&Tensor> {
        match of {
            Labels::Teacher => Ok(&self.labels),
            Labels::Truth => self.truth.as_ref().ok_or_else(|| missing("truth")),
        }
    }

    fn balance(&self, of: Labels) -> Result<&Tensor> {
        let balance = self.balance.as_ref().ok_or_else(|| missing("weights of classes"))?;
        match of {
            Labels::Teacher => Ok(&balance.teacher),
            Labels::Truth => balance.truth.as_ref().ok_or_else(|| missing("truth")),
        }
    }

    /// The student's features and the teacher's.
    fn features(&self) -> Result<(&Tensor, &Tensor)> {
        self.features.as_ref().zip(self.hidden.as_ref()).ok_or_else(|| missing("features"))
    }

    fn teacher(&self) -> Result<&Tensor> {
        self.teacher.as_ref().ok_or_else(|| missing("teacher's outputs"))
    }
}

/// Judges the numbers of one loss.
#[derive(Clone, Copy)]
pub(crate) struct Judge {
    loss: &'static str,
}

impl Judge {
    /// A number above 0.
    pub(crate) fn positive(self, field: &'static str, value: f64) -> std::result::Result<(), LossError> {
        self.within(field, value, value > 0.0, "above 0")
    }

    /// A number that is not below 0.
    pub(crate) fn not_negative(self, field: &'static str, value: f64) -> std::result::Result<(), LossError> {
        self.within(field, value, value >= 0.0, "0 or more")
    }

    fn within(
        self,
        field: &'static str,
        value: f64,
        fine: bool,
        range: &'static str,
    ) -> std::result::Result<(), LossError> {
        if fine && value.is_finite() {
            return Ok(());
        }
        Err(LossError::Range { loss: self.loss, field, value, range })
    }
}

fn missing(what: &str) -> candle_core::Error {
    candle_core::Error::Msg(format!("the batch holds no {what}, which the losses were checked for"))
}

impl LossConfig {
    /// The signal that it needs from the teacher.
    #[must_use]
    pub fn needs(&self) -> Signal {
        self.loss().needs()
    }

    /// Whether it asks for the true classes.
    pub(crate) fn asks_truth(&self) -> bool {
        self.loss().asks_truth()
    }

    /// Whether it weighs inputs by how rare their class is among the training answers.
    pub(crate) fn is_balanced(&self) -> bool {
        self.loss().is_balanced()
    }

    /// Whether it compares inputs only, so that the student's outputs float by a constant for each class.
    pub(crate) fn floats(&self) -> bool {
        self.loss().floats()
    }

    /// The shape of the tuples that it wants drawn, if any.
    pub(crate) fn tuples(&self) -> Option<Shape> {
        self.loss().tuples()
    }

    /// Its settings, if it learns classes that are drawn once for each example.
    pub(crate) fn samples(&self) -> Option<&SampledLoss> {
        self.loss().samples()
    }

    /// Its settings, if its target moves from the student to the teacher.
    pub(crate) fn interpolates(&self) -> Option<&TaidLoss> {
        self.loss().interpolates()
    }

    /// Whether it holds the student's features against a hidden tensor of the teacher's.
    pub(crate) fn compares_features(&self) -> bool {
        self.loss().compares_features()
    }

    /// The maps that it learns beside a student of so many features, of a teacher's so many.
    pub(crate) fn maps(
        &self,
        [features, hidden]: [usize; 2],
        rng: &mut ChaCha8Rng,
        device: &Device,
    ) -> Result<Maps> {
        let [features, hidden] = self.loss().maps(features, hidden);
        let mut map =
            |widths: Option<[usize; 2]>| widths.map(|widths| Head::new(&widths, rng, device)).transpose();
        Ok(Maps { features: map(features)?, hidden: map(hidden)? })
    }

    fn check(&self) -> std::result::Result<(), LossError> {
        let judge = Judge { loss: self.name() };
        judge.positive("weight", self.loss().weight())?;
        self.loss().check(judge)
    }

    /// The weighted loss of a batch, whose features go through the maps where there are any; a scalar.
    fn evaluate(&self, maps: Option<&Maps>, logits: &Tensor, batch: &Batch) -> Result<Tensor> {
        let loss = match maps.filter(|maps| maps.vars().next().is_some()) {
            None => self.loss().evaluate(logits, batch)?,
            Some(maps) => self.loss().evaluate(logits, &maps.through(batch)?)?,
        };
        loss * self.loss().weight()
    }
}

/// The linear maps that one loss learns beside the student; they are thrown away with it.
#[derive(Debug, Clone)]
pub(crate) struct Maps {
    features: Option<Head>,
    hidden: Option<Head>,
}

impl Maps {
    /// Their variables, in order.
    pub(crate) fn vars(&self) -> impl Iterator<Item = Var> {
        self.features.iter().chain(&self.hidden).flat_map(Head::vars)
    }

    /// A batch with its features mapped.
    fn through(&self, batch: &Batch) -> Result<Batch> {
        let mapped = |map: &Option<Head>, rows: &Option<Tensor>| match (map, rows) {
            (Some(map), Some(rows)) => map.forward(rows).map(Some),
            _ => Ok(rows.clone()),
        };
        let (features, hidden) =
            (mapped(&self.features, &batch.features)?, mapped(&self.hidden, &batch.hidden)?);
        Ok(Batch { features, hidden, ..batch.clone() })
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
    if let (Some(loss), true) = (losses.first(), losses.iter().all(LossConfig::compares_features)) {
        return Err(LossError::Outputs { loss: loss.name() });
    }
    for (loss, stateful) in [
        ("taid", losses.iter().filter(|loss| loss.interpolates().is_some()).count()),
        ("sampled", losses.iter().filter(|loss| loss.samples().is_some()).count()),
    ] {
        if stateful > 1 {
            return Err(LossError::Twice { loss });
        }
    }
    let mut shapes = losses.iter().filter(|loss| matches!(loss, LossConfig::Ckd(_))).map(LossConfig::tuples);
    if let Some(first) = shapes.next()
        && shapes.any(|shape| shape != first)
    {
        return Err(LossError::Tuples);
    }
    Ok(())
}

/// The sum of the weighted losses of a batch; a scalar. `maps` are those of each loss; empty where none compares features.
pub(crate) fn total(losses: &[LossConfig], maps: &[Maps], logits: &Tensor, batch: &Batch) -> Result<Tensor> {
    let mut parts = losses.iter().enumerate().map(|(at, loss)| loss.evaluate(maps.get(at), logits, batch));
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

    pub(crate) fn fixture() -> (Var, Fixture) {
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

    /// Holds a loss of `s` and `t` and all of its gradient to a definition in f64 and its slopes.
    pub(crate) fn is_the_definition(
        loss: impl Fn(&Fixture) -> Result<Tensor>,
        by_definition: impl Fn(&[Vec<f64>], &[Vec<f64>]) -> f64,
    ) {
        let (var, fixture) = fixture();
        let wide = |rows: &Tensor| -> Vec<Vec<f64>> {
            let rows = rows.to_vec2::<f32>().unwrap();
            rows.into_iter().map(|row| row.into_iter().map(f64::from).collect()).collect()
        };
        let (student, teacher) = (wide(&fixture.s), wide(&fixture.t));
        let loss = loss(&fixture).unwrap();
        let (value, expected) = (loss.to_scalar::<f32>().unwrap(), by_definition(&student, &teacher));
        assert!((f64::from(value) - expected).abs() < 1e-5 * expected.abs().max(1.0), "{value} {expected}");
        let gradients = loss.backward().unwrap();
        let found = gradients.get(&var).unwrap().to_vec2::<f32>().unwrap();
        for (row, values) in found.iter().enumerate() {
            for (column, found) in values.iter().enumerate() {
                let moved = |by: f64| {
                    let mut student = student.clone();
                    student[row][column] += by;
                    by_definition(&student, &teacher)
                };
                let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                assert!((f64::from(*found) - slope).abs() < 1e-5 * slope.abs().max(1.0), "{found} {slope}");
            }
        }
    }

    fn parse(text: &str) -> LossConfig {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn losses_compose_with_their_weights() {
        let (_, Fixture { s, t, y, .. }) = fixture();
        let weights = Tensor::new(&[[1f32, -1.0], [1.0, -1.0]], &Device::Cpu).unwrap();
        let batch = Batch { weights: Some(weights), ..Batch::of(Some(t), y) };
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
            let found = total(&parsed, &[], &s, &batch).unwrap().to_scalar::<f32>().unwrap();
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
        check(
            "kind = 'ckd'\non = 'features'\nform = 'kl'",
            Signal::Label,
            "`on = \"features\"` compares differences of features: with `form = \"mse\"` and without `w_cls`",
        );
        let features = [parse("kind = 'fitnet'"), parse("kind = 'crd'")];
        assert_eq!(check_losses(&features, Signal::Logits), Err(LossError::Outputs { loss: "fitnet" }));
        let pair = [parse("kind = 'ckd'"), parse("kind = 'ckd'\npositives = 2")];
        assert_eq!(check_losses(&pair, Signal::Logits), Err(LossError::Tuples));
    }
}
