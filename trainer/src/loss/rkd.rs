//! Relational distillation by distances: how far apart the outputs of two inputs are, in units of the batch's mean.
//! Source: Park et al., "Relational Knowledge Distillation", arXiv 1904.05068, and its released code.

use candle_core::{Result, Tensor};

/// The smooth L1 distance between the mean-normalised pairwise distances of student and teacher, over all pairs.
pub(crate) fn rkd_distance(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let difference = (distances(student)? - distances(&teacher.detach())?)?;
    // Smooth L1 with beta 1: 0.5 d^2 below 1, |d| - 0.5 above, written as m (|d| - m / 2) with m = min(|d|, 1).
    let magnitude = difference.abs()?;
    let inner = magnitude.minimum(1f64)?;
    (&inner * (&magnitude - (&inner * 0.5)?)?)?.mean_all()
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
}
