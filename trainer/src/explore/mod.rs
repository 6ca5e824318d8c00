//! Exploring: inputs that a generator makes beyond those that there are, for a teacher to be asked about.
//!
//! Source: Teacher-Guided Training, arXiv 2208.06825 (random and gradient exploration); `mixup` is active mixup, arXiv
//! 2003.13960. This room must not know teachers or money: it makes inputs, and is told what was answered. Invariants: what
//! validates or is held out is never a start, and no input is made twice; the same answers, settings and seed make the same
//! inputs, bit for bit; every value stays within the range of its column.

mod draw;
mod explorer;
mod ranges;

use serde::{Deserialize, Serialize};

use crate::generator::{GeneratorConfig, GeneratorError};
use crate::range::{Judged, OutOfRange};
use crate::train::TrainError;

pub use explorer::{Explored, Explorer};

/// How inputs are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExploreKind {
    /// Dec(Enc(x) + nu), nu ~ N(0, sigma^2).
    #[default]
    Random,
    /// The same, moved along the gradient of the student's disagreement with the teacher's answer to x.
    Gradient,
    /// The one of several of the first kind that the student is least sure of.
    Choice,
    /// lambda x + (1 - lambda) y, where the student's highest probability is the least.
    Mixup,
    /// x + nu, nu ~ N(0, sigma^2) in deviations of each column.
    Noise,
}

/// The inputs that generators and ranges are fitted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fit {
    /// All that may be asked about, those that nobody asked about among them.
    #[default]
    Pool,
    /// Those that were bought.
    Bought,
}

/// The `[explore]` table of a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExploreConfig {
    /// How many of `budget.calls` are for made inputs; the others are for real ones, which are bought first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls: Option<u64>,
    /// In the place of `calls`: how many are for real inputs; all others are for made ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub real: Option<u64>,
    /// How inputs are made.
    #[serde(default)]
    pub kind: ExploreKind,
    /// What the generator and the ranges are fitted to.
    #[serde(default)]
    pub fit: Fit,
    /// The generator; none: principal components. Kinds `mixup` and `noise` have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generator: Option<GeneratorConfig>,
    /// The deviation of the noise, in whitened units.
    #[serde(default = "one")]
    pub sigma: f64,
    /// For `gradient`: the length of a step, in whitened units.
    #[serde(default = "half")]
    pub step: f64,
    /// For `gradient`: the steps.
    #[serde(default = "two")]
    pub steps: usize,
    /// For `choice` and `mixup`: candidates for each input that is asked about.
    #[serde(default = "four")]
    pub candidates: usize,
    /// The rounds in which made inputs are bought, where each of them looks at the answers before.
    #[serde(default = "four")]
    pub rounds: usize,
    /// Whether real inputs of classes that the teacher named seldom are started from more often.
    #[serde(default)]
    pub long_tail: bool,
}

fn one() -> f64 {
    1.0
}

fn half() -> f64 {
    0.5
}

fn two() -> usize {
    2
}

fn four() -> usize {
    4
}

/// Why inputs cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ExploreError {
    /// A number out of its range.
    #[error(transparent)]
    Range(#[from] OutOfRange),
    /// Inputs that are no vectors.
    #[error("`explore` makes vectors, and the inputs of the data set are {found}")]
    Vectors {
        /// What they are.
        found: &'static str,
    },
    /// Too few real inputs to start from.
    #[error("`explore` starts from {needs} real inputs or more that are learnt from, and there are {have}")]
    Starts {
        /// How many are needed.
        needs: usize,
        /// How many there are.
        have: usize,
    },
    /// All that can be made was asked about.
    #[error(
        "`explore` found {found} of {wanted} inputs that were not asked about before, and no more: try a greater `explore.sigma` or fewer `explore.calls`"
    )]
    Exhausted {
        /// How many were found.
        found: usize,
        /// How many were wanted.
        wanted: usize,
    },
    /// The generator.
    #[error(transparent)]
    Generator(#[from] GeneratorError),
    /// The student that is asked where to go.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// An operation on tensors.
    #[error("a tensor operation failed")]
    Tensor(#[from] candle_core::Error),
}

impl ExploreKind {
    /// Its name in the account of what was bought.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "explore-random",
            Self::Gradient => "explore-gradient",
            Self::Choice => "explore-choice",
            Self::Mixup => "explore-mixup",
            Self::Noise => "explore-noise",
        }
    }

    /// Whether a student is asked where to go.
    #[must_use]
    pub fn asks_student(self) -> bool {
        matches!(self, Self::Gradient | Self::Choice | Self::Mixup)
    }

    /// Whether inputs are decoded from latents.
    fn decodes(self) -> bool {
        matches!(self, Self::Random | Self::Gradient | Self::Choice)
    }
}

impl ExploreConfig {
    /// How many of `budget` answers are for real inputs.
    #[must_use]
    pub fn real(&self, budget: usize) -> usize {
        let number = |calls: u64| usize::try_from(calls).unwrap_or(usize::MAX);
        match (self.real, self.calls) {
            (Some(real), _) => number(real).min(budget),
            (None, Some(calls)) => budget.saturating_sub(number(calls)),
            (None, None) => budget,
        }
    }

    /// How many made inputs are asked about, where `bought` real ones were: with `real` all that is left of `budget`.
    #[must_use]
    pub fn made(&self, budget: usize, bought: usize) -> usize {
        match self.real {
            Some(_) => budget.saturating_sub(bought),
            None => budget.saturating_sub(self.real(budget)),
        }
    }

    /// How many made inputs each round buys, of `total`; one round where none looks at the answers before it.
    #[must_use]
    pub fn rounds(&self, total: usize) -> Vec<usize> {
        let rounds = if self.kind.asks_student() || self.long_tail { self.rounds } else { 1 };
        let share = |at: usize| total / rounds + usize::from(at < total % rounds);
        (0..rounds).map(share).filter(|count| *count > 0).collect()
    }

    /// The generator that inputs are decoded with, if they are.
    #[must_use]
    pub fn decoder(&self) -> Option<GeneratorConfig> {
        self.kind.decodes().then(|| self.generator.clone().unwrap_or_default())
    }

    /// Whether ONNX Runtime is needed.
    #[must_use]
    pub fn wants_runtime(&self) -> bool {
        matches!(self.generator, Some(GeneratorConfig::Onnx(_)))
    }

    /// Checks the settings against `budget.calls`.
    ///
    /// # Errors
    /// The first that does not fit.
    pub fn check(&self, budget: u64) -> Result<(), ExploreError> {
        let table = Judged("explore");
        match (self.calls, self.real) {
            (Some(calls), None) => {
                let fine = calls > 0 && calls < budget;
                table.check("calls", fine, calls, "1 or more and below `budget.calls`")?;
            }
            (None, Some(real)) => {
                let fine = real > 0 && real < budget;
                table.check("real", fine, real, "1 or more and below `budget.calls`")?;
            }
            (None, None) => {
                table.check("calls", false, "missing", "there, or `explore.real` in its place")?;
            }
            (Some(calls), Some(_)) => {
                table.check("calls", false, calls, "absent where `explore.real` is there")?;
            }
        }
        let (least, needed) = match self.kind {
            ExploreKind::Gradient => (self.sigma >= 0.0, "0 or more"),
            _ => (self.sigma > 0.0, "above 0"),
        };
        table.check("sigma", least && self.sigma.is_finite(), self.sigma, needed)?;
        let fine = self.step > 0.0 && self.step.is_finite();
        table.check("step", fine, self.step, "above 0")?;
        table.check("steps", self.steps > 0, self.steps, "1 or more")?;
        table.check("candidates", self.candidates > 0, self.candidates, "1 or more")?;
        table.check("rounds", self.rounds > 0, self.rounds, "1 or more")?;
        let fine = !self.long_tail || self.kind != ExploreKind::Mixup;
        table.check("long_tail", fine, true, "false with kind `mixup`, which starts from pairs")?;
        if let Some(generator) = &self.generator {
            let named = || format!("`{}`", generator.name());
            let fine = self.kind.decodes();
            table.check(
                "generator",
                fine,
                named(),
                "absent with kinds `mixup` and `noise`, which decode nothing",
            )?;
            let fine = self.kind != ExploreKind::Gradient || generator.is_differentiable();
            let needed = "`pca`, `autoencoder` or `vae` with kind `gradient`, which needs gradients through the decoder";
            table.check("generator", fine, named(), needed)?;
            generator.check()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
