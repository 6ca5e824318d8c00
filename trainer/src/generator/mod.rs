//! Generators: a few numbers behind inputs of many, fitted to inputs alone, from which new inputs are decoded.
//!
//! This room must not know answers, teachers or budgets. Invariants: latents are whitened, so that over the inputs that a
//! generator was fitted to each of them has mean 0 and deviation 1; the same inputs and seed give the same generator.

mod autoencoder;
mod onnx;
mod pca;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::range::{Judged, OutOfRange};
use crate::teacher::{ModelError, Runtime};
use autoencoder::Autoencoder;
use onnx::Onnx;
use pca::Pca;

pub use autoencoder::AutoencoderConfig;
pub use onnx::OnnxConfig;
pub use pca::PcaConfig;

/// The `generator` table under `[explore]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum GeneratorConfig {
    /// Principal components.
    Pca(PcaConfig),
    /// An encoder and a decoder of one hidden layer each.
    Autoencoder(AutoencoderConfig),
    /// The same with latents that are drawn, kept near N(0, 1). Source: arXiv 1312.6114.
    Vae(AutoencoderConfig),
    /// Models that were made elsewhere.
    Onnx(OnnxConfig),
}

impl Default for GeneratorConfig {
    fn default() -> Self {
        Self::Pca(PcaConfig::default())
    }
}

/// Why there is no generator.
#[derive(Debug, thiserror::Error)]
pub enum GeneratorError {
    /// A number out of its range.
    #[error(transparent)]
    Range(#[from] OutOfRange),
    /// A model that cannot be loaded or run.
    #[error("`explore.generator.{part}`")]
    Model {
        /// `encoder` or `decoder`.
        part: &'static str,
        /// Why.
        #[source]
        source: ModelError,
    },
    /// A model that is no map from rows to rows.
    #[error(
        "`explore.generator.{part}` `{path}` {found}; it must map one input of f32 rows to one output of f32 rows"
    )]
    Ports {
        /// `encoder` or `decoder`.
        part: &'static str,
        /// The file.
        path: String,
        /// What it states or gave.
        found: String,
    },
    /// A decoder that gives other inputs than the data set has.
    #[error(
        "`explore.generator.decoder` gives rows of {found} values, and an input of the data set has {expected}"
    )]
    Width {
        /// What it gives.
        found: usize,
        /// What the data set has.
        expected: usize,
    },
    /// A model to run, and nothing to run it on.
    #[error("generator `onnx` needs ONNX Runtime")]
    Runtime,
    /// Training left the numbers.
    #[error("the generator's loss is {loss} at step {step}; try a lower `explore.generator.lr`")]
    Diverged {
        /// The step.
        step: usize,
        /// The loss.
        loss: f32,
    },
    /// An operation on tensors.
    #[error("a tensor operation failed")]
    Tensor(#[from] candle_core::Error),
}

impl GeneratorConfig {
    /// Its name in a run file.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pca(_) => "pca",
            Self::Autoencoder(_) => "autoencoder",
            Self::Vae(_) => "vae",
            Self::Onnx(_) => "onnx",
        }
    }

    /// Whether there are gradients through its decoder.
    #[must_use]
    pub fn is_differentiable(&self) -> bool {
        !matches!(self, Self::Onnx(_))
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// The first that is out of its range.
    pub fn check(&self) -> Result<(), GeneratorError> {
        match self {
            Self::Pca(config) => Ok(TABLE.check("latent", config.latent > 0, config.latent, "1 or more")?),
            Self::Autoencoder(config) => config.check(false),
            Self::Vae(config) => config.check(true),
            Self::Onnx(_) => Ok(()),
        }
    }
}

/// Where a generator's settings stand.
const TABLE: Judged = Judged("explore.generator");

/// A fitted generator.
#[derive(Debug)]
pub(crate) enum Generator {
    Pca(Pca),
    Autoencoder(Autoencoder),
    Onnx(Box<Onnx>),
}

impl Generator {
    /// Fits one to `rows` `[n, d]`.
    pub(crate) fn fit(
        config: &GeneratorConfig,
        rows: &Tensor,
        seed: u64,
        runtime: Option<&Runtime>,
    ) -> Result<Self, GeneratorError> {
        Ok(match config {
            GeneratorConfig::Pca(config) => Self::Pca(Pca::fit(config, rows, seed)?),
            GeneratorConfig::Autoencoder(config) => {
                Self::Autoencoder(Autoencoder::fit(config, rows, seed, None)?)
            }
            GeneratorConfig::Vae(config) => {
                Self::Autoencoder(Autoencoder::fit(config, rows, seed, Some(config.kl()))?)
            }
            GeneratorConfig::Onnx(config) => {
                Self::Onnx(Box::new(Onnx::load(config, rows, runtime.ok_or(GeneratorError::Runtime)?)?))
            }
        })
    }

    /// Rows `[n, d]` to whitened latents `[n, k]`.
    pub(crate) fn encode(&self, rows: &Tensor) -> Result<Tensor, GeneratorError> {
        Ok(match self {
            Self::Pca(pca) => pca.encode(rows)?,
            Self::Autoencoder(autoencoder) => autoencoder.encode(rows)?,
            Self::Onnx(onnx) => onnx.encode(rows)?,
        })
    }

    /// Whitened latents `[n, k]` to rows `[n, d]`, with gradients where the configuration says that there are.
    pub(crate) fn decode(&self, latents: &Tensor) -> Result<Tensor, GeneratorError> {
        Ok(match self {
            Self::Pca(pca) => pca.decode(latents)?,
            Self::Autoencoder(autoencoder) => autoencoder.decode(latents)?,
            Self::Onnx(onnx) => onnx.decode(latents)?,
        })
    }
}

/// The least deviation that is divided by.
const LEAST_DEVIATION: f64 = 1e-6;

/// Where latents lie and how far they spread, `[k]` each.
#[derive(Debug)]
struct Whitening {
    mean: Tensor,
    deviation: Tensor,
}

impl Whitening {
    /// That of the latents `[n, k]`.
    fn of(latents: &Tensor) -> candle_core::Result<Self> {
        let mean = latents.mean(0)?;
        let deviation = latents.broadcast_sub(&mean)?.sqr()?.mean(0)?.sqrt()?.maximum(LEAST_DEVIATION)?;
        Ok(Self { mean, deviation })
    }

    fn apply(&self, latents: &Tensor) -> candle_core::Result<Tensor> {
        latents.broadcast_sub(&self.mean)?.broadcast_div(&self.deviation)
    }

    fn undo(&self, latents: &Tensor) -> candle_core::Result<Tensor> {
        latents.broadcast_mul(&self.deviation)?.broadcast_add(&self.mean)
    }
}

#[cfg(test)]
mod tests;
