//! Principal components as a generator: the encoder projects, the decoder puts back.
//!
//! It must not know what is done with latents. Invariant: what lies in the span of the components is decoded to itself.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use super::{GeneratorError, TABLE};
use crate::space::Components;
use crate::train::stream;

/// The random stream of the components' start.
const STREAM: u64 = 1 << 34;
/// A component with less than this share of the greatest variance is rounding, not data.
const LEAST_SHARE: f32 = 1e-6;

/// The settings of the generator `pca`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PcaConfig {
    /// The most components; those along which nothing varies are left out.
    #[serde(default = "latent")]
    pub latent: usize,
}

pub(super) fn latent() -> usize {
    16
}

impl Default for PcaConfig {
    fn default() -> Self {
        Self { latent: latent() }
    }
}

/// Fitted components with the deviation along each.
#[derive(Debug)]
pub(crate) struct Pca {
    components: Components,
    deviation: Tensor,
}

impl Pca {
    pub(super) fn fit(
        config: &PcaConfig,
        rows: &Tensor,
        seed: u64,
    ) -> std::result::Result<Self, GeneratorError> {
        let mut components = Components::of(rows, config.latent, &mut stream(seed, STREAM))?;
        let most = components.variances.first().copied().unwrap_or(0.0);
        let varies = |variance: &&f32| **variance > most * LEAST_SHARE && **variance > 0.0;
        let kept = components.variances.iter().take_while(varies).count();
        if kept == 0 {
            return Err(TABLE.refused("latent", config.latent, "fitted to inputs that differ").into());
        }
        components.variances.truncate(kept);
        components.axes = components.axes.narrow(1, 0, kept)?.contiguous()?;
        let deviation: Vec<f32> = components.variances.iter().map(|variance| variance.sqrt()).collect();
        let deviation = Tensor::from_vec(deviation, kept, rows.device())?;
        Ok(Self { components, deviation })
    }

    pub(super) fn encode(&self, rows: &Tensor) -> Result<Tensor> {
        self.components.places(rows)?.broadcast_div(&self.deviation)
    }

    pub(super) fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let places = latents.broadcast_mul(&self.deviation)?;
        places.matmul(&self.components.axes.t()?)?.broadcast_add(&self.components.mean)
    }
}
