//! Batch normalisation over all but the last dimension, with ReLU in the same pass. Source: Ioffe and Szegedy,
//! "Batch Normalization", arXiv 1502.03167.
//!
//! It must not know where running statistics are kept. Invariants: sums are taken in blocks of a fixed size and the
//! blocks are added in their order, so that threads change nothing; in training the gradient flows through the
//! statistics of the batch, with given ones it does not.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::{Activation, Precision, SERIAL, composed, each_chunk, ours, read, values};

/// Mean and variance of each channel, and how many values they were taken over.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// The means.
    pub mean: Vec<f32>,
    /// The variances, divided by `count`.
    pub variance: Vec<f32>,
    /// Values a channel; 0 for given statistics.
    pub count: usize,
}

/// (x - mean) / sqrt(variance + epsilon) * gamma + beta by the statistics of `[..., C]` itself, which come back too;
/// gamma and beta are `[C]`.
///
/// # Errors
/// Shapes that do not fit each other.
pub fn batch_norm(
    images: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    epsilon: f64,
    activation: Activation,
) -> Result<(Tensor, Statistics)> {
    let channels = gamma.dims1()?;
    if !ours(images, Precision::F32) {
        return composed::batch_norm(images, gamma, beta, epsilon, activation);
    }
    let statistics = read("batch_norm", [images], |[values]| Statistics::of(values, channels))?;
    Ok((apply(images, gamma, beta, &statistics, epsilon, activation, true)?, statistics))
}

/// The same by given statistics, as at inference.
///
/// # Errors
/// Shapes that do not fit each other.
pub fn normalize(
    images: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    statistics: &Statistics,
    epsilon: f64,
    activation: Activation,
) -> Result<Tensor> {
    if !ours(images, Precision::F32) {
        return composed::normalize(images, gamma, beta, statistics, epsilon, activation);
    }
    apply(images, gamma, beta, statistics, epsilon, activation, false)
}

fn apply(
    images: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    statistics: &Statistics,
    epsilon: f64,
    activation: Activation,
    own: bool,
) -> Result<Tensor> {
    let channels = images.dims().last().copied().unwrap_or(0);
    let sizes = [gamma.dims1()?, beta.dims1()?, statistics.mean.len(), statistics.variance.len()];
    if channels == 0 || sizes.iter().any(|size| *size != channels) {
        candle_core::bail!("`batch_norm`: {channels} channels, but parameters and statistics of {sizes:?}");
    }
    let inverse =
        statistics.variance.iter().map(|variance| (1.0 / (f64::from(*variance) + epsilon).sqrt()) as f32);
    let normalize = Normalize { mean: statistics.mean.clone(), inverse: inverse.collect(), activation, own };
    images.contiguous()?.apply_op3(&gamma.contiguous()?, &beta.contiguous()?, normalize)
}

impl Statistics {
    /// Of values `[..., channels]`; two passes, since the mean may be large beside the deviation.
    fn of(values: &[f32], channels: usize) -> Self {
        let count = values.len() / channels.max(1);
        let share = 1.0 / count as f64;
        let sums = channel_sums(values, channels);
        let mean: Vec<f32> = sums.iter().map(|sum| (sum * share) as f32).collect();
        let [rests, squares] = column_sums(channels, values, Factor::None, &tiled(&mean));
        // What rounding the mean left over is taken out again.
        let variance = squares.iter().zip(&rests).map(|(squares, rest)| {
            let variance = squares * share - (rest * share).powi(2);
            variance.max(0.0) as f32
        });
        Self { variance: variance.collect(), mean, count }
    }

    /// The variance that a larger population would have: divided by `count - 1`, as PyTorch's running variance is.
    #[must_use]
    pub fn unbiased_variance(&self) -> Vec<f32> {
        let factor = self.count as f32 / (self.count.max(2) - 1) as f32;
        self.variance.iter().map(|variance| variance * factor).collect()
    }
}

/// Values that loops run over at a time: whole rows of channels, and at least 64.
fn period(channels: usize) -> usize {
    channels * (64 / channels.max(1)).max(1)
}

/// One value a channel, repeated to a period.
fn tiled(values: &[f32]) -> Vec<f32> {
    values.iter().copied().cycle().take(period(values.len())).collect()
}

/// Periods in a block of a sum.
const BLOCK: usize = 64;

/// What the deviations from the mean are multiplied by.
#[derive(Clone, Copy)]
enum Factor<'a> {
    /// By themselves.
    None,
    /// By a gradient.
    Gradient(&'a [f32]),
    /// By a gradient that counts where the second, the result, is above zero.
    Masked(&'a [f32], &'a [f32]),
}

impl<'a> Factor<'a> {
    fn part(self, part: Range<usize>) -> Self {
        match self {
            Self::None => Self::None,
            Self::Gradient(gradient) => Self::Gradient(&gradient[part]),
            Self::Masked(gradient, out) => Self::Masked(&gradient[part.clone()], &out[part]),
        }
    }
}

/// The sum of each channel of `[..., channels]`.
pub(super) fn channel_sums(values: &[f32], channels: usize) -> Vec<f64> {
    let [sums, _] = column_sums(channels, values, Factor::None, &vec![0.0; period(channels)]);
    sums
}

/// For each channel the sum of the factor (of the deviation, if there is none), and of factor times deviation.
fn column_sums(channels: usize, values: &[f32], factor: Factor<'_>, mean: &[f32]) -> [Vec<f64>; 2] {
    let size = mean.len() * BLOCK;
    let blocks = values.len().div_ceil(size.max(1));
    let sum = |block: usize| {
        let part = block * size..((block + 1) * size).min(values.len());
        let mut sums = [vec![0.0; mean.len()], vec![0.0; mean.len()]];
        let (values, factor) = (&values[part.clone()], factor.part(part));
        Arch::new().dispatch(Sums { values, factor, mean, sums: &mut sums });
        sums
    };
    let parts: Vec<[Vec<f32>; 2]> = if values.len() < SERIAL || rayon::current_num_threads() == 1 {
        (0..blocks).map(sum).collect()
    } else {
        (0..blocks).into_par_iter().map(sum).collect()
    };
    let mut total = [vec![0.0; channels], vec![0.0; channels]];
    for part in &parts {
        for (total, part) in total.iter_mut().zip(part) {
            for row in part.chunks_exact(channels) {
                total.iter_mut().zip(row).for_each(|(total, value)| *total += f64::from(*value));
            }
        }
    }
    total
}

struct Sums<'a> {
    values: &'a [f32],
    factor: Factor<'a>,
    mean: &'a [f32],
    sums: &'a mut [Vec<f32>; 2],
}

impl WithSimd for Sums<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let size = self.mean.len();
        let [first, second] = self.sums;
        for (at, values) in self.values.chunks(size).enumerate() {
            let part = at * size..at * size + values.len();
            let deviations = values.iter().zip(self.mean).map(|(value, mean)| value - mean);
            let row = deviations.zip(first.iter_mut().zip(second.iter_mut()));
            match self.factor.part(part) {
                Factor::None => row.for_each(|(deviation, (first, second))| {
                    *first += deviation;
                    *second += deviation * deviation;
                }),
                Factor::Gradient(gradient) => {
                    row.zip(gradient).for_each(|((deviation, (first, second)), gradient)| {
                        *first += gradient;
                        *second += gradient * deviation;
                    });
                }
                Factor::Masked(gradient, out) => {
                    row.zip(gradient).zip(out).for_each(|(((deviation, (first, second)), gradient), out)| {
                        let gradient = if *out > 0.0 { *gradient } else { 0.0 };
                        *first += gradient;
                        *second += gradient * deviation;
                    });
                }
            }
        }
    }
}

struct Normalize {
    mean: Vec<f32>,
    /// 1 / sqrt(variance + epsilon).
    inverse: Vec<f32>,
    activation: Activation,
    /// Whether the statistics are those of the batch.
    own: bool,
}

impl Normalize {
    /// One value a channel, repeated to a period.
    fn each(&self, value: impl Fn(usize) -> f32) -> Vec<f32> {
        tiled(&(0..self.mean.len()).map(value).collect::<Vec<_>>())
    }

    fn forward(&self, values: &[f32], gamma: &[f32], beta: &[f32]) -> Vec<f32> {
        let scale = self.each(|at| gamma[at] * self.inverse[at]);
        let shift = self.each(|at| beta[at] - self.mean[at] * gamma[at] * self.inverse[at]);
        let floor = if self.activation == Activation::Relu { 0.0 } else { f32::NEG_INFINITY };
        let size = scale.len() * BLOCK;
        let mut out = vec![0.0; values.len()];
        each_chunk(&mut out, size, values.len(), |block, out| {
            let values = &values[block * size..][..out.len()];
            Arch::new().dispatch(Scale { values, scale: &scale, shift: &shift, floor, out });
        });
        out
    }

    /// The gradients of values, gamma and beta.
    fn backward(&self, values: &[f32], gamma: &[f32], out: &[f32], gradient: &[f32]) -> [Vec<f32>; 3] {
        let channels = self.mean.len();
        let count = (values.len() / channels) as f32;
        let mean = tiled(&self.mean);
        let factor = match self.activation {
            Activation::None => Factor::Gradient(gradient),
            Activation::Relu => Factor::Masked(gradient, out),
        };
        let [sums, products] = column_sums(channels, values, factor, &mean);
        let of_gamma: Vec<f32> =
            products.iter().zip(&self.inverse).map(|(sum, inverse)| *sum as f32 * inverse).collect();
        let of_beta: Vec<f32> = sums.iter().map(|sum| *sum as f32).collect();
        let own = if self.own { 1.0 } else { 0.0 };
        let scale = self.each(|at| gamma[at] * self.inverse[at]);
        let slope = self.each(|at| -own * gamma[at] * self.inverse[at].powi(2) * of_gamma[at] / count);
        let shift = self.each(|at| -own * gamma[at] * self.inverse[at] * of_beta[at] / count);
        let size = mean.len() * BLOCK;
        let mut of_values = vec![0.0; values.len()];
        each_chunk(&mut of_values, size, values.len(), |block, to| {
            let part = block * size..block * size + to.len();
            let (values, factor) = (&values[part.clone()], factor.part(part));
            let each = [&mean[..], &scale, &slope, &shift];
            Arch::new().dispatch(Gradient { values, factor, each, to });
        });
        [of_values, of_gamma, of_beta]
    }
}

struct Scale<'a> {
    values: &'a [f32],
    scale: &'a [f32],
    shift: &'a [f32],
    floor: f32,
    out: &'a mut [f32],
}

impl WithSimd for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let size = self.scale.len();
        for (out, values) in self.out.chunks_mut(size).zip(self.values.chunks(size)) {
            for (((out, value), scale), shift) in out.iter_mut().zip(values).zip(self.scale).zip(self.shift) {
                *out = (value * scale + shift).max(self.floor);
            }
        }
    }
}

struct Gradient<'a> {
    values: &'a [f32],
    factor: Factor<'a>,
    /// Mean, scale, slope and shift of a period.
    each: [&'a [f32]; 4],
    to: &'a mut [f32],
}

impl WithSimd for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let [mean, scale, slope, shift] = self.each;
        let size = mean.len();
        for (at, (to, values)) in self.to.chunks_mut(size).zip(self.values.chunks(size)).enumerate() {
            let part = at * size..at * size + values.len();
            let numbers = mean.iter().zip(scale).zip(slope).zip(shift);
            let row = to.iter_mut().zip(values.iter().zip(numbers));
            match self.factor.part(part) {
                Factor::None => row.for_each(|(to, _)| *to = 0.0),
                Factor::Gradient(gradient) => {
                    row.zip(gradient).for_each(
                        |((to, (value, (((mean, scale), slope), shift))), gradient)| {
                            *to = gradient * scale + (value - mean) * slope + shift;
                        },
                    );
                }
                Factor::Masked(gradient, out) => row.zip(gradient).zip(out).for_each(
                    |(((to, (value, (((mean, scale), slope), shift))), gradient), out)| {
                        let gradient = if *out > 0.0 { *gradient } else { 0.0 };
                        *to = gradient * scale + (value - mean) * slope + shift;
                    },
                ),
            }
        }
    }
}

impl CustomOp3 for Normalize {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn cpu_fwd(
        &self,
        images: &CpuStorage,
        at: &Layout,
        gamma: &CpuStorage,
        gamma_at: &Layout,
        beta: &CpuStorage,
        beta_at: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let name = self.name();
        let (gamma, beta) = (values(name, gamma, gamma_at)?, values(name, beta, beta_at)?);
        let out = self.forward(values(name, images, at)?, gamma, beta);
        Ok((CpuStorage::F32(out), at.shape().clone()))
    }

    fn bwd(
        &self,
        images: &Tensor,
        gamma: &Tensor,
        beta: &Tensor,
        out: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [of_images, of_gamma, of_beta] =
            read(self.name(), [images, gamma, out, gradient], |[values, gamma, out, gradient]| {
                self.backward(values, gamma, out, gradient)
            })?;
        let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device()).map(Some);
        Ok((tensor(of_images, images)?, tensor(of_gamma, gamma)?, tensor(of_beta, beta)?))
    }
}
