//! A proxy teacher: a network of our own, as a rule wider than the student, is trained on the bought answers first; then it
//! labels the inputs that nobody asked about, and the student learns from both. It costs no call. Several of them label by
//! the mean of their logits, and a proxy may have been taught by a proxy of its own.
//!
//! Each step sees a batch of answered inputs with the teacher's answers, and one of the pool with the proxy's, in one forward
//! pass; the losses of both are added, those of the pool with a weight. It is a teacher assistant (arXiv 1902.03393) whose
//! labels go to inputs of which the teacher was never asked, as in self-training with a larger model (arXiv 2006.10029).
//!
//! It must not know the loop. Invariant: what the teacher answered is never replaced by what the proxy says.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use super::{ConsistencyConfig, MethodConfig, WarmUpConfig};
use crate::loss::LossConfig;
use crate::range::{Judged, OutOfRange};
use crate::student::StudentConfig;

/// The `[method.proxy]` table of a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyConfig {
    /// The proxy's own network.
    pub student: StudentConfig,
    /// Its steps; none: the run's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Its learning rate; none: the run's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// How many of them are trained, each from a seed of its own.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub members: usize,
    /// What it learns before the answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<WarmUpConfig>,
    /// Held together over views of the pool while it learns the answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<ConsistencyConfig>,
    /// Its own proxy teacher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Box<ProxyConfig>>,
    /// The decay of the average of its weights that labels; none: its last weights do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
    /// Inputs of the pool in a step of the student, beside the answered ones.
    #[serde(default = "batch")]
    pub batch: usize,
    /// The weight of the losses on them.
    #[serde(default = "weight")]
    pub weight: f64,
}

fn one() -> usize {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_one(value: &usize) -> bool {
    *value == 1
}

fn batch() -> usize {
    128
}

fn weight() -> f64 {
    2.0
}

/// Why there can be no proxy.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ProxyError {
    /// Nothing to label.
    #[error(
        "`method.proxy` labels inputs that nobody asked about, and there are none: `budget.calls` covers them all, or the source is a record"
    )]
    Pool,
    /// A loss that its labels cannot serve.
    #[error("`method.proxy` labels inputs one by one, and loss `{loss}` {why}")]
    Loss {
        /// The loss.
        loss: &'static str,
        /// What it wants instead.
        why: &'static str,
    },
    /// Two ways of making a batch.
    #[error("`method.proxy` does not go together with `mixup` or `cutmix`")]
    Mixup,
    /// A number out of its range.
    #[error(transparent)]
    Range(#[from] OutOfRange),
}

impl ProxyConfig {
    /// Checks it against the method that it stands in and the number of inputs that it would label.
    pub(crate) fn check(&self, method: &MethodConfig, pool: usize) -> std::result::Result<(), ProxyError> {
        let table = Judged("method.proxy");
        table.check("batch", self.batch > 0, self.batch, "1 or more")?;
        table.check("members", self.members > 0, self.members, "1 or more")?;
        table.check("steps", self.steps != Some(0), 0, "1 or more")?;
        table.check("weight", self.weight > 0.0 && self.weight.is_finite(), self.weight, "above 0")?;
        let fine = self.ema.is_none_or(|decay| (0.0..1.0).contains(&decay));
        table.check("ema", fine, self.ema.unwrap_or(0.0), "0 to below 1")?;
        table.check("lr", self.lr.is_none_or(|lr| lr > 0.0), self.lr.unwrap_or(0.0), "above 0")?;
        if method.mixes() {
            return Err(ProxyError::Mixup);
        }
        let refused = |loss: &LossConfig| match loss {
            loss if loss.tuples().is_some() => {
                Some("compares drawn tuples: `tuples = \"all\"` compares a batch")
            }
            loss if loss.asks_truth() => Some("asks for the truth"),
            loss if loss.samples().is_some() => Some("draws from recorded answers"),
            loss if loss.compares_features() => Some("compares the teacher's recorded features"),
            _ => None,
        };
        let found = method.losses.iter().find_map(|loss| refused(loss).map(|why| (loss.name(), why)));
        if let Some((loss, why)) = found {
            return Err(ProxyError::Loss { loss, why });
        }
        if pool == 0 { Err(ProxyError::Pool) } else { Ok(()) }
    }

    /// How the proxy itself learns.
    pub(crate) fn method(&self, method: &MethodConfig) -> MethodConfig {
        MethodConfig {
            warm_up: self.warm_up.clone(),
            proxy: self.proxy.as_deref().cloned(),
            consistency: self.consistency.clone(),
            curriculum: None,
            progressive: None,
            ..method.clone()
        }
    }
}

/// Each row less its mean: a constant of an input says nothing.
pub(crate) fn centred(logits: &Tensor) -> Result<Tensor> {
    logits.broadcast_sub(&logits.mean_keepdim(1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn method(text: &str) -> MethodConfig {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn a_proxy_that_cannot_be_is_refused_by_name() {
        let proxy = |more: &str| -> ProxyConfig {
            toml::from_str(&format!("student = {{ kind = 'mlp', hidden = [4] }}\n{more}")).unwrap()
        };
        let refused =
            |text: &str, more: &str, pool| proxy(more).check(&method(text), pool).unwrap_err().to_string();
        let kd = "losses = [{ kind = 'kd' }]";
        assert_eq!(proxy("").check(&method(kd), 5), Ok(()));
        assert!(
            refused(kd, "", 0)
                .starts_with("`method.proxy` labels inputs that nobody asked about, and there are none")
        );
        assert_eq!(refused(kd, "weight = 0.0", 5), "`method.proxy.weight` is 0; it must be above 0");
        assert_eq!(
            refused(&format!("{kd}\nmixup = true"), "", 5),
            "`method.proxy` does not go together with `mixup` or `cutmix`"
        );
        assert_eq!(
            refused("losses = [{ kind = 'labels', of = 'truth' }]", "", 5),
            "`method.proxy` labels inputs one by one, and loss `labels` asks for the truth"
        );
        assert_eq!(
            refused("losses = [{ kind = 'ckd' }]", "", 5),
            "`method.proxy` labels inputs one by one, and loss `ckd` compares drawn tuples: `tuples = \"all\"` compares a batch"
        );
    }

    #[test]
    fn centred_rows_have_the_mean_zero() {
        let rows = Tensor::new(&[[1f32, 2.0, 6.0], [0.0, 0.0, 0.0]], &candle_core::Device::Cpu).unwrap();
        assert_eq!(centred(&rows).unwrap().to_vec2::<f32>().unwrap(), [[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]]);
    }
}
