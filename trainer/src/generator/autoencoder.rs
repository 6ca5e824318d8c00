//! An autoencoder as a generator, plain or variational: an encoder and a decoder of one hidden layer each.
//!
//! Plain: the mean squared error of the decoded inputs. Variational: latents are drawn from N(mu, sigma^2) of an input, and `kl`
//! times KL(N(mu, sigma^2) || N(0, 1)) is added; the latent of an input is its mu. Source: Auto-Encoding Variational Bayes,
//! arXiv 1312.6114.
//!
//! It must not know what is done with latents. Invariant: the same inputs, settings and seed give the same bits.

use candle_core::{Result, Tensor};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::pca::latent;
use super::{GeneratorError, LEAST_DEVIATION, TABLE, Whitening};
use crate::machine::Machine;
use crate::normal::normal;
use crate::optimizer::{Optimizer, Rule, Schedule, Settings};
use crate::student::{Linear, Parameters};
use crate::train::{Sampler, stream};

/// The random streams: batches, and the noise of a variational encoder.
const BATCHES: u64 = (1 << 34) + 1;
const NOISE: u64 = (1 << 34) + 2;

/// The settings of the generators `autoencoder` and `vae`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutoencoderConfig {
    /// The latents.
    #[serde(default = "latent")]
    pub latent: usize,
    /// The width of the hidden layers.
    #[serde(default = "width")]
    pub width: usize,
    /// The steps.
    #[serde(default = "steps")]
    pub steps: usize,
    /// Inputs a step.
    #[serde(default = "batch")]
    pub batch: usize,
    /// The learning rate; it falls along half a cosine to zero.
    #[serde(default = "lr")]
    pub lr: f64,
    /// For `vae`: the weight of the divergence; none: 0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
}

fn width() -> usize {
    64
}

fn steps() -> usize {
    2000
}

fn batch() -> usize {
    64
}

fn lr() -> f64 {
    3e-3
}

impl Default for AutoencoderConfig {
    fn default() -> Self {
        Self { latent: latent(), width: width(), steps: steps(), batch: batch(), lr: lr(), kl: None }
    }
}

impl AutoencoderConfig {
    pub(super) fn kl(&self) -> f64 {
        self.kl.unwrap_or(0.1)
    }

    pub(super) fn check(&self, variational: bool) -> std::result::Result<(), GeneratorError> {
        TABLE.check("latent", self.latent > 0, self.latent, "1 or more")?;
        TABLE.check("width", self.width > 0, self.width, "1 or more")?;
        TABLE.check("steps", self.steps > 0, self.steps, "1 or more")?;
        TABLE.check("batch", self.batch > 0, self.batch, "1 or more")?;
        TABLE.check("lr", self.lr > 0.0 && self.lr.is_finite(), self.lr, "above 0")?;
        TABLE.check(
            "kl",
            variational || self.kl.is_none(),
            self.kl(),
            "absent: it is the weight of kind `vae`",
        )?;
        Ok(TABLE.check("kl", self.kl() >= 0.0 && self.kl().is_finite(), self.kl(), "0 or more")?)
    }
}

/// A trained encoder and decoder.
#[derive(Debug)]
pub(crate) struct Autoencoder {
    /// Inputs, hidden layer, latents: for a variational one their means, then the logarithms of their variances.
    encoder: [Linear; 2],
    /// Latents, hidden layer, inputs.
    decoder: [Linear; 2],
    latent: usize,
    /// Inputs less their mean, over one deviation for all columns.
    mean: Tensor,
    deviation: f64,
    whitening: Option<Whitening>,
}

impl Autoencoder {
    /// Trains one on `rows` `[n, d]`; with `kl` a variational one.
    pub(super) fn fit(
        config: &AutoencoderConfig,
        rows: &Tensor,
        seed: u64,
        kl: Option<f64>,
    ) -> std::result::Result<Self, GeneratorError> {
        let (count, columns) = rows.dims2()?;
        let mean = rows.mean(0)?;
        let spread = rows.broadcast_sub(&mean)?.sqr()?.mean_all()?.to_scalar::<f32>()?;
        let mut parameters = Parameters::new(seed, &Machine::cpu());
        let latents = config.latent * if kl.is_some() { 2 } else { 1 };
        let mut autoencoder = Self {
            encoder: [
                parameters.linear("encoder.0", columns, config.width)?,
                parameters.linear("encoder.1", config.width, latents)?,
            ],
            decoder: [
                parameters.linear("decoder.0", config.latent, config.width)?,
                parameters.linear("decoder.1", config.width, columns)?,
            ],
            latent: config.latent,
            mean,
            deviation: f64::from(spread).sqrt().max(LEAST_DEVIATION),
            whitening: None,
        };
        let vars = parameters.all().iter().map(|(_, var)| var.clone()).collect();
        let mut optimizer = Optimizer::new(settings(config), vars)?;
        let mut sampler = Sampler::new(count, stream(seed, BATCHES));
        let mut noise = stream(seed, NOISE);
        for step in 0..config.steps {
            let drawn = Tensor::new(sampler.draw(config.batch), rows.device())?;
            let loss = autoencoder.loss(&rows.index_select(&drawn, 0)?, kl, &mut noise)?;
            let value = loss.to_scalar::<f32>()?;
            if !value.is_finite() {
                return Err(GeneratorError::Diverged { step, loss: value });
            }
            optimizer.step(&loss.backward()?)?;
        }
        let raw = autoencoder.raw(rows)?.narrow(1, 0, config.latent)?.detach();
        autoencoder.whitening = Some(Whitening::of(&raw)?);
        Ok(autoencoder)
    }

    /// The squared error, summed over the columns, and `kl` times the divergence; the mean over rows, by column.
    fn loss(&self, rows: &Tensor, kl: Option<f64>, noise: &mut ChaCha8Rng) -> Result<Tensor> {
        let raw = self.raw(rows)?;
        let mu = raw.narrow(1, 0, self.latent)?;
        let (latents, divergence) = match kl {
            None => (mu, None),
            Some(weight) => {
                let log_variance = raw.narrow(1, self.latent, self.latent)?;
                let drawn: Vec<f32> = (0..mu.elem_count()).map(|_| normal(noise) as f32).collect();
                let drawn = Tensor::from_vec(drawn, mu.dims(), mu.device())?;
                let latents = (&mu + ((&log_variance * 0.5)?.exp()? * drawn)?)?;
                let terms = (((mu.sqr()? + log_variance.exp()?)? - 1.0)? - log_variance)?;
                (latents, Some((terms.sum(1)?.mean_all()? * (0.5 * weight))?))
            }
        };
        let error = (self.scaled(&self.raw_decoded(&latents)?)? - self.scaled(rows)?)?;
        let error = error.sqr()?.sum(1)?.mean_all()?;
        let sum = match divergence {
            Some(divergence) => (error + divergence)?,
            None => error,
        };
        sum / rows.dim(1)? as f64
    }

    fn scaled(&self, rows: &Tensor) -> Result<Tensor> {
        rows.broadcast_sub(&self.mean)? / self.deviation
    }

    fn raw(&self, rows: &Tensor) -> Result<Tensor> {
        self.encoder[1].forward(&self.encoder[0].forward(&self.scaled(rows)?)?.relu()?)
    }

    fn raw_decoded(&self, latents: &Tensor) -> Result<Tensor> {
        let scaled = self.decoder[1].forward(&self.decoder[0].forward(latents)?.relu()?)?;
        (scaled * self.deviation)?.broadcast_add(&self.mean)
    }

    pub(super) fn encode(&self, rows: &Tensor) -> Result<Tensor> {
        let latents = self.raw(rows)?.narrow(1, 0, self.latent)?.detach();
        self.whitening.as_ref().map_or_else(|| Ok(latents.clone()), |whitening| whitening.apply(&latents))
    }

    pub(super) fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        match &self.whitening {
            Some(whitening) => self.raw_decoded(&whitening.undo(latents)?),
            None => self.raw_decoded(latents),
        }
    }
}

fn settings(config: &AutoencoderConfig) -> Settings {
    Settings {
        rule: Rule::Adamw,
        lr: config.lr,
        schedule: Schedule::Cosine,
        warmup: 0,
        steps: config.steps,
        weight_decay: 0.0,
        momentum: 0.0,
        nesterov: false,
        clip: None,
    }
}
