//! DIST: correlations instead of distances, within each row (which classes an input resembles) and within each column (which
//! inputs a class resembles). Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", arXiv 2205.10536, and its
//! released code.

use candle_core::{Result, Tensor};
use candle_nn::ops::softmax;
use serde::{Deserialize, Serialize};

use super::{Batch, Judge, Loss, LossError, four, one};
use crate::example::Signal;

/// Keeps a constant row from a division by zero, as in the released code.
const EPSILON: f64 = 1e-8;

/// The settings of the loss `dist`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistLoss {
    /// The weight in the sum.
    #[serde(default = "one")]
    pub weight: f64,
    /// Divides both sides' logits.
    #[serde(default = "four")]
    pub temperature: f64,
    /// The weight of the rows within it.
    #[serde(default = "one")]
    pub rows: f64,
    /// The weight of the columns within it.
    #[serde(default = "one")]
    pub columns: f64,
}

impl Loss for DistLoss {
    fn weight(&self) -> f64 {
        self.weight
    }

    fn needs(&self) -> Signal {
        Signal::LogProbabilities
    }

    fn check(&self, judge: Judge) -> std::result::Result<(), LossError> {
        judge.positive("temperature", self.temperature)?;
        judge.not_negative("rows", self.rows)?;
        judge.not_negative("columns", self.columns)?;
        judge.positive("rows + columns", self.rows + self.columns)
    }

    fn evaluate(&self, logits: &Tensor, batch: &Batch) -> Result<Tensor> {
        let (rows, columns) = dist(logits, batch.teacher()?, self.temperature)?;
        (rows * self.rows)? + (columns * self.columns)?
    }
}

/// T^2 (1 - the mean Pearson correlation of the softened outputs), over rows and over columns.
fn dist(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<(Tensor, Tensor)> {
    let student = softmax(&(student / temperature)?, 1)?;
    let teacher = softmax(&(teacher / temperature)?, 1)?;
    let apart = |student: &Tensor, teacher: &Tensor| {
        correlation(student, teacher)?
            .mean_all()?
            .affine(-temperature * temperature, temperature * temperature)
    };
    Ok((apart(&student, &teacher)?, apart(&student.t()?.contiguous()?, &teacher.t()?.contiguous()?)?))
}

/// The Pearson correlation of each row of `a` with that of `b`.
fn correlation(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let centred = |rows: &Tensor| rows.broadcast_sub(&rows.mean_keepdim(1)?);
    let length = |rows: &Tensor| rows.sqr()?.sum(1)?.maximum(EPSILON * EPSILON)?.sqrt();
    let (a, b) = (centred(a)?, centred(b)?);
    (&a * &b)?.sum(1)?.div(&((length(&a)? * length(&b)?)? + EPSILON)?)
}

#[cfg(test)]
mod tests {
    use crate::loss::tests::{Fixture, check};

    // cos = lambda a, b: (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)
    // pearson = lambda a, b: cos(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True))
    // a, b = F.softmax(s/4, 1), F.softmax(t/4, 1)
    // 16 * (1 - pearson(a, b).mean()) + 16 * (1 - pearson(a.t(), b.t()).mean())
    // # 5.4955959; gradient [0,0] -0.8872979, [3,1] -1.0935873
    #[test]
    fn equals_pytorch() {
        let both = |Fixture { s, t, .. }: &Fixture| {
            let (rows, columns) = super::dist(s, t, 4.0)?;
            rows + columns
        };
        check(both, 5.495_596, -0.887_297_9, -1.093_587_3);
    }
}
