//! Operators over the last dimension: layer normalisation, softmax and its logarithm.
//!
//! candle's fused forms of these have no gradient and say nothing; these have one. They must not know what a row is.
//! Invariant: a row's result depends on that row alone. Source: Ba et al., "Layer Normalization", arXiv 1607.06450.

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor};

use super::{Precision, composed, ours, read, values};

/// exp(x) / sum(exp(x)) over the last dimension.
///
/// # Errors
/// A tensor without dimensions.
pub fn softmax(input: &Tensor) -> Result<Tensor> {
    width(input)?;
    if !ours(input, Precision::F32) {
        return composed::softmax(input);
    }
    input.contiguous()?.apply_op1(Softmax { logarithm: false })
}

/// x - log(sum(exp(x))) over the last dimension.
///
/// # Errors
/// A tensor without dimensions.
pub fn log_softmax(input: &Tensor) -> Result<Tensor> {
    width(input)?;
    if !ours(input, Precision::F32) {
        return composed::log_softmax(input);
    }
    input.contiguous()?.apply_op1(Softmax { logarithm: true })
}

/// (x - mean) / sqrt(variance + epsilon) * gamma + beta, mean and variance over the last dimension `D`; gamma and beta
/// are `[D]`.
///
/// # Errors
/// Shapes that do not fit each other.
pub fn layer_norm(input: &Tensor, gamma: &Tensor, beta: &Tensor, epsilon: f64) -> Result<Tensor> {
    let width = width(input)?;
    if gamma.dims() != [width] || beta.dims() != [width] {
        candle_core::bail!(
            "`layer_norm`: rows of {width}, but parameters of {:?} and {:?}",
            gamma.dims(),
            beta.dims()
        );
    }
    if !ours(input, Precision::F32) {
        return composed::layer_norm(input, gamma, beta, epsilon);
    }
    input.contiguous()?.apply_op3(&gamma.contiguous()?, &beta.contiguous()?, LayerNorm { epsilon })
}

fn width(input: &Tensor) -> Result<usize> {
    match input.dims().last() {
        Some(width) if *width > 0 => Ok(*width),
        _ => candle_core::bail!("an operator over rows was given {:?}", input.dims()),
    }
}

/// A sum in sixteen parts, which the compiler keeps in registers.
fn sum(values: impl ExactSizeIterator<Item = f32>) -> f32 {
    let mut parts = [0f32; 16];
    for (at, value) in values.enumerate() {
        parts[at % 16] += value;
    }
    parts.iter().sum()
}

struct Softmax {
    logarithm: bool,
}

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        if self.logarithm { "log_softmax" } else { "softmax" }
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = layout.dims().last().copied().unwrap_or(1);
        let mut out = values(self.name(), storage, layout)?.to_vec();
        for row in out.chunks_exact_mut(width) {
            let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            if self.logarithm {
                let log = sum(row.iter().map(|value| (value - highest).exp())).ln();
                row.iter_mut().for_each(|value| *value = *value - highest - log);
            } else {
                row.iter_mut().for_each(|value| *value = (*value - highest).exp());
                let share = 1.0 / sum(row.iter().copied());
                row.iter_mut().for_each(|value| *value *= share);
            }
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, input: &Tensor, out: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let width = width(input)?;
        let to = read(self.name(), [out, gradient], |[out, gradient]| {
            let mut to = gradient.to_vec();
            for (to, out) in to.chunks_exact_mut(width).zip(out.chunks_exact(width)) {
                if self.logarithm {
                    let whole = sum(to.iter().copied());
                    to.iter_mut().zip(out).for_each(|(to, out)| *to -= out.exp() * whole);
                } else {
                    let whole = sum(to.iter().zip(out).map(|(to, out)| to * out));
                    to.iter_mut().zip(out).for_each(|(to, out)| *to = out * (*to - whole));
                }
            }
            to
        })?;
        Tensor::from_vec(to, input.shape(), input.device()).map(Some)
    }
}

struct LayerNorm {
    epsilon: f64,
}

impl LayerNorm {
    /// Mean and 1 / sqrt(variance + epsilon) of a row.
    fn moments(&self, row: &[f32]) -> (f32, f32) {
        let share = 1.0 / row.len() as f32;
        let mean = sum(row.iter().copied()) * share;
        let variance = sum(row.iter().map(|value| (value - mean).powi(2))) * share;
        (mean, (1.0 / (f64::from(variance) + self.epsilon).sqrt()) as f32)
    }

    /// The gradients of values, gamma and beta.
    fn backward(&self, input: &[f32], gamma: &[f32], gradient: &[f32]) -> [Vec<f32>; 3] {
        let width = gamma.len();
        let share = 1.0 / width as f32;
        let (mut to, mut of_gamma, mut of_beta) =
            (vec![0.0; input.len()], vec![0f64; width], vec![0f64; width]);
        let rows = input.chunks_exact(width).zip(gradient.chunks_exact(width));
        for (to, (row, gradient)) in to.chunks_exact_mut(width).zip(rows) {
            let (mean, inverse) = self.moments(row);
            let unit = |value: &f32| (value - mean) * inverse;
            for (at, (value, gradient)) in row.iter().zip(gradient).enumerate() {
                of_gamma[at] += f64::from(gradient * unit(value));
                of_beta[at] += f64::from(*gradient);
            }
            let scaled = || gradient.iter().zip(gamma).map(|(gradient, gamma)| gradient * gamma);
            let whole = sum(scaled()) * share;
            let along = sum(scaled().zip(row).map(|(scaled, value)| scaled * unit(value))) * share;
            for ((to, scaled), value) in to.iter_mut().zip(scaled()).zip(row) {
                *to = inverse * (scaled - whole - unit(value) * along);
            }
        }
        let single = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect();
        [to, single(of_gamma), single(of_beta)]
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn cpu_fwd(
        &self,
        input: &CpuStorage,
        at: &Layout,
        gamma: &CpuStorage,
        gamma_at: &Layout,
        beta: &CpuStorage,
        beta_at: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let name = self.name();
        let (gamma, beta) = (values(name, gamma, gamma_at)?, values(name, beta, beta_at)?);
        let mut out = values(name, input, at)?.to_vec();
        for row in out.chunks_exact_mut(gamma.len()) {
            let (mean, inverse) = self.moments(row);
            for ((value, gamma), beta) in row.iter_mut().zip(gamma).zip(beta) {
                *value = (*value - mean) * inverse * gamma + beta;
            }
        }
        Ok((CpuStorage::F32(out), at.shape().clone()))
    }

    fn bwd(
        &self,
        input: &Tensor,
        gamma: &Tensor,
        beta: &Tensor,
        _out: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [to, of_gamma, of_beta] =
            read(self.name(), [input, gamma, gradient], |[input, gamma, gradient]| {
                self.backward(input, gamma, gradient)
            })?;
        let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device()).map(Some);
        Ok((tensor(to, input)?, tensor(of_gamma, gamma)?, tensor(of_beta, beta)?))
    }
}
