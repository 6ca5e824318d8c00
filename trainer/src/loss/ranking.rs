//! The teacher's order of the classes and nothing else: for a teacher that gives a ranking.
//!
//! For every two classes of which the teacher puts i above j, - log sigma((log q_i - log q_j) / tau), summed over the pairs.
//! Source: arXiv 2504.20482 (GRKD).

use candle_core::{DType, Result, Tensor};
use serde::{Deserialize, Serialize};

use super::{Batch, Judge, Loss, LossError, one};
use crate::example::Signal;

/// The settings of the loss `ranking`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RankingLoss {
    /// The weight in the sum.
    #[serde(default = "one")]
    pub weight: f64,
    /// tau: how far apart two classes must be to count as in order.
    #[serde(default = "one")]
    pub temperature: f64,
}

impl Loss for RankingLoss {
    fn weight(&self) -> f64 {
        self.weight
    }

    fn needs(&self) -> Signal {
        Signal::LogProbabilities
    }

    fn check(&self, judge: Judge) -> std::result::Result<(), LossError> {
        judge.positive("temperature", self.temperature)
    }

    fn evaluate(&self, logits: &Tensor, batch: &Batch) -> Result<Tensor> {
        ranking(logits, batch.teacher()?, self.temperature)
    }
}

/// The sum over the teacher's ordered pairs, the mean over rows.
fn ranking(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    let differences = |rows: &Tensor| rows.unsqueeze(2)?.broadcast_sub(&rows.unsqueeze(1)?);
    let above = differences(teacher)?.gt(0f64)?.to_dtype(DType::F32)?;
    // Of logits as of log-probabilities: what a row has in common cancels.
    let apart = (differences(student)? / temperature)?;
    // log sigma(x) = min(x, 0) - log(1 + exp(-|x|)).
    let log_sigma = (apart.minimum(0f64)? - (apart.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
    (above * log_sigma)?.sum((1, 2))?.mean_all()?.neg()
}

#[cfg(test)]
mod tests {
    use crate::loss::tests::{Fixture, check};

    // lq = F.log_softmax(s, 1); d = lq.unsqueeze(2) - lq.unsqueeze(1); m = (t.unsqueeze(2) > t.unsqueeze(1)).float()
    // -(m * F.logsigmoid(d)).sum((1, 2)).mean()   # 1.2938039; gradient [0,0] -0.1258117, [3,1] -0.1172171
    #[test]
    fn equals_pytorch() {
        check(|Fixture { s, t, .. }| super::ranking(s, t, 1.0), 1.293_803_9, -0.125_811_7, -0.117_217_1);
    }
}
