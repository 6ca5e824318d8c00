//! Losses: one file each, with its formula, its settings and what it needs; here the list of them and what all share.
//!
//! This file must not know students, optimizers or where targets came from. Invariants: every loss names the signal
//! that it needs, and a teacher that does not give it is refused by name before anything starts; a batch carries what
//! its losses need, so that evaluating them cannot fail for want of a target.

mod batch;
mod ckd;
mod crd;
mod dist;
mod dkd;
mod error;
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

use candle_core::{DType, Result, Tensor};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::compare::Shape;
use crate::example::Signal;
use crate::machine::Machine;
use crate::student::Head;

use batch::missing;
pub(crate) use batch::{Balance, Batch, Maps};
pub use ckd::{CkdLoss, Compared, Form, Tuples};
pub use crd::CrdLoss;
pub use dist::DistLoss;
pub use dkd::DkdLoss;
use error::Judge;
pub use error::LossError;
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
        machine: &Machine,
    ) -> Result<Maps> {
        let [features, hidden] = self.loss().maps(features, hidden);
        let mut map =
            |widths: Option<[usize; 2]>| widths.map(|widths| Head::new(&widths, rng, machine)).transpose();
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
    /// `t = tensor([[3, -1, .5], [-2, 4, 0], [1, -1.5, 2.5], [.5, 1, -.25]])`, `y = tensor([0, 1, 2, 0])`; PyTorch 1.13 and
    /// 2.15 (`F` is `torch.nn.functional`).
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
