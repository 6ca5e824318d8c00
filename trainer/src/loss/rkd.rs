//! Relational distillation: how far apart the outputs of two inputs are, in units of the batch's mean, and at what angle
//! the outputs of two inputs are seen from that of a third.
//! Source: Park et al., "Relational Knowledge Distillation", arXiv 1904.05068, and its released code.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use super::{Batch, Judge, Loss, LossError, one};
use crate::example::Signal;

/// The settings of the loss `rkd`; its authors weigh distances 25 and angles 50.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RkdLoss {
    /// The weight in the sum.
    #[serde(default = "one")]
    pub weight: f64,
    /// The weight of the distances within it.
    #[serde(default = "one")]
    pub distance: f64,
    /// The weight of the angles within it; they cost O(n^3) for a batch of n.
    #[serde(default)]
    pub angle: f64,
}

impl Loss for RkdLoss {
    fn weight(&self) -> f64 {
        self.weight
    }

    fn needs(&self) -> Signal {
        Signal::Logits
    }

    fn check(&self, judge: Judge) -> std::result::Result<(), LossError> {
        judge.not_negative("distance", self.distance)?;
        judge.not_negative("angle", self.angle)?;
        judge.positive("distance + angle", self.distance + self.angle)
    }

    fn evaluate(&self, logits: &Tensor, batch: &Batch) -> Result<Tensor> {
        let teacher = batch.teacher()?;
        let distance = (rkd_distance(logits, teacher)? * self.distance)?;
        if self.angle == 0.0 {
            return Ok(distance);
        }
        distance + (rkd_angle(logits, teacher)? * self.angle)?
    }
}

/// The smooth L1 distance between the mean-normalised pairwise distances of student and teacher, over all pairs.
fn rkd_distance(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    smooth_l1(&(distances(student)? - distances(&teacher.detach())?)?)
}

/// The smooth L1 distance between the cosines of student and teacher at the corners of all triples of inputs.
fn rkd_angle(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    smooth_l1(&(angles(student)? - angles(&teacher.detach())?)?)
}

/// The mean smooth L1 norm of differences.
fn smooth_l1(difference: &Tensor) -> Result<Tensor> {
    // Smooth L1 with beta 1: 0.5 d^2 below 1, |d| - 0.5 above, written as m (|d| - m / 2) with m = min(|d|, 1).
    let magnitude = difference.abs()?;
    let inner = magnitude.minimum(1f64)?;
    (&inner * (&magnitude - (&inner * 0.5)?)?)?.mean_all()
}

/// Cosines `[n, n, n]` of the angles at input i between the ways to j and to l; zero where a way has no length.
fn angles(rows: &Tensor) -> Result<Tensor> {
    let ways = rows.unsqueeze(0)?.broadcast_sub(&rows.unsqueeze(1)?)?;
    // The floor keeps the root's slope finite on the diagonal.
    let lengths = ways.sqr()?.sum_keepdim(2)?.maximum(1e-24)?.sqrt()?;
    let units = ways.broadcast_div(&lengths)?;
    units.matmul(&units.transpose(1, 2)?.contiguous()?)
}

/// Pairwise Euclidean distances `[n, n]` over the mean of the positive ones; the diagonal is zero.
fn distances(rows: &Tensor) -> Result<Tensor> {
    let n = rows.dim(0)?;
    let squares = rows.sqr()?.sum_keepdim(1)?;
    let squared = (squares.broadcast_add(&squares.t()?)? - (rows.matmul(&rows.t()?)? * 2.0)?)?;
    let off_diagonal = (1.0 - Tensor::eye(n, rows.dtype(), rows.device())?)?;
    // The floor keeps the root's slope finite where two outputs coincide, as in the released code.
    let distances = (squared.maximum(1e-12)?.sqrt()? * off_diagonal)?;
    let mean = (distances.sum_all()? / (n * n.saturating_sub(1)).max(1) as f64)?;
    distances.broadcast_div(&mean.maximum(1e-12)?)
}

#[cfg(test)]
mod tests {
    use crate::loss::tests::{Fixture, check};

    // The released code: pdist(e) = sqrt(clamp(|a|^2 + |b|^2 - 2 a.b, 1e-12)) with a zero diagonal, divided by the mean
    // of its positive entries; F.smooth_l1_loss(d_s, d_t)   # 0.0366078; gradient [0,0] -0.0029446, [3,1] 0.0088481
    #[test]
    fn equals_pytorch() {
        check(|Fixture { s, t, .. }| super::rkd_distance(s, t), 0.036_607_8, -0.002_944_6, 0.008_848_1);
    }

    // The released code: d = z.unsqueeze(0) - z.unsqueeze(1); n = F.normalize(d, p=2, dim=2)
    // a = lambda z: torch.bmm(n, n.transpose(1, 2)).view(-1)
    // F.smooth_l1_loss(a(s), a(t))   # 0.0298719; gradient [0,0] 0.0039974, [3,1] -0.0016818
    #[test]
    fn angles_equal_pytorch() {
        check(|Fixture { s, t, .. }| super::rkd_angle(s, t), 0.029_871_9, 0.003_997_4, -0.001_681_8);
    }
}
