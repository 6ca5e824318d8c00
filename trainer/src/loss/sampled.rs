//! Random-sampling distillation: cross-entropy with a few classes drawn from the teacher's distribution, for answers too large
//! to keep whole.
//!
//! The loss is - sum_i p^_i log q_i with p^_i = count_i / N over N draws from the teacher, made once for each example: unbiased
//! for the whole cross-entropy, where the truncated top k is not. Source: Sparse Logit Sampling, arXiv 2503.16870.

use candle_core::{Result, Tensor};
use candle_nn::ops::log_softmax;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{Batch, Judge, Loss, LossError, missing, one};
use crate::example::Signal;

/// The settings of the loss `sampled`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampledLoss {
    /// The weight in the sum.
    #[serde(default = "one")]
    pub weight: f64,
    /// N: draws for an example.
    #[serde(default = "draws")]
    pub draws: usize,
    /// The seed of the draws, beside the example's key.
    #[serde(default)]
    pub seed: u64,
}

fn draws() -> usize {
    12
}

impl Loss for SampledLoss {
    fn weight(&self) -> f64 {
        self.weight
    }

    fn needs(&self) -> Signal {
        Signal::LogProbabilities
    }

    fn check(&self, judge: Judge) -> std::result::Result<(), LossError> {
        judge.within("draws", self.draws as f64, self.draws > 0, "1 or more")
    }

    fn samples(&self) -> Option<&SampledLoss> {
        Some(self)
    }

    fn evaluate(&self, logits: &Tensor, batch: &Batch) -> Result<Tensor> {
        let shares = batch.samples.as_ref().ok_or_else(|| missing("drawn classes"))?;
        cross_entropy_with(logits, shares)
    }
}

/// The mean over rows of - sum p^ log q.
fn cross_entropy_with(logits: &Tensor, shares: &Tensor) -> Result<Tensor> {
    (log_softmax(logits, 1)? * shares)?.sum(1)?.mean_all()?.neg()
}

impl SampledLoss {
    /// The shares of the classes among the draws for the example under `key`, from its scores.
    pub(crate) fn shares(&self, key: &str, scores: &[f32]) -> Vec<f32> {
        let mut hasher = blake3::Hasher::new_derive_key("tuition 2026 draws of a sampled loss");
        hasher.update(&self.seed.to_le_bytes());
        hasher.update(key.as_bytes());
        drawn(scores, self.draws, &mut ChaCha8Rng::from_seed(*hasher.finalize().as_bytes()))
    }
}

fn drawn(scores: &[f32], draws: usize, rng: &mut impl Rng) -> Vec<f32> {
    let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = scores.iter().map(|score| f64::from(score - highest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    let mut shares = vec![0f32; scores.len()];
    for _ in 0..draws {
        let mut left = rng.random::<f64>() * sum;
        let at = powers.iter().position(|power| {
            left -= power;
            left < 0.0
        });
        shares[at.unwrap_or(scores.len() - 1)] += 1.0 / draws as f32;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::tests::{Fixture, check};

    // F.cross_entropy(s, p) with p = [[.5, .5, 0], [0, 1, 0], [.25, .25, .5], [1, 0, 0]]
    #[test]
    fn equals_pytorch() {
        let shares = [[0.5f32, 0.5, 0.0], [0.0, 1.0, 0.0], [0.25, 0.25, 0.5], [1.0, 0.0, 0.0]];
        let loss = |Fixture { s, .. }: &Fixture| cross_entropy_with(s, &Tensor::new(&shares, s.device())?);
        check(loss, 1.274_565_9, 0.022_449_4, 0.151_870_4);
    }

    #[test]
    fn draws_are_fixed_by_the_key_and_unbiased() {
        let loss = SampledLoss { weight: 1.0, draws: 4, seed: 0 };
        let scores = [3.0f32, -1.0, 0.5];
        assert_eq!(loss.shares("k1", &scores), loss.shares("k1", &scores));
        assert_ne!(
            (0..9).map(|at| loss.shares(&at.to_string(), &scores)).collect::<Vec<_>>(),
            (9..18).map(|at| loss.shares(&at.to_string(), &scores)).collect::<Vec<_>>()
        );
        let mut mean = [0f64; 3];
        for key in 0..20_000 {
            let shares = loss.shares(&key.to_string(), &scores);
            assert!((shares.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            mean.iter_mut().zip(shares).for_each(|(mean, share)| *mean += f64::from(share) / 20_000.0);
        }
        let sum: f64 = scores.iter().map(|score| f64::from(*score).exp()).sum();
        for (mean, score) in mean.iter().zip(scores) {
            // Five standard errors of 80,000 draws.
            assert!((mean - f64::from(score).exp() / sum).abs() < 0.009, "{mean} {score}");
        }
    }
}
