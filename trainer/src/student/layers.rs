//! What a network of images is made of: convolutions, batch normalisation, and the trait through which it is walked.
//!
//! A network is written down once, as a walk over `Layers`; the forward pass walks it with tensors, the export with the
//! nodes of a graph, so that both are the same network. This file must not know architectures or files. Invariant: only
//! a training pass moves running statistics, and it moves them once.

use candle_core::{Result, Tensor, Var};

use super::Mode;
use super::parameters::{Linear, Parameters};
use crate::ops::{self, Activation, Precision, Statistics};

/// Keeps the division of a normalisation from zero, as in PyTorch.
pub(crate) const EPSILON: f64 = 1e-5;
/// The share of a batch in the running statistics, as in PyTorch.
pub(crate) const MOMENTUM: f64 = 0.1;

/// A 2-d convolution without bias.
#[derive(Debug, Clone)]
pub(crate) struct Convolution {
    /// `[filters, channels, kernel, kernel]`.
    pub(crate) weight: Var,
    pub(crate) stride: usize,
    pub(crate) padding: usize,
    pub(crate) precision: Precision,
}

impl Convolution {
    /// Adds a convolution whose weights are uniform in `-bound..bound`; its padding keeps the extent at stride 1 where
    /// the kernel is odd.
    pub(crate) fn new(
        parameters: &mut Parameters,
        name: &str,
        [channels, filters]: [usize; 2],
        kernel: usize,
        stride: usize,
        bound: f32,
    ) -> Result<Self> {
        let weight =
            parameters.uniform(&format!("{name}.weight"), &[filters, channels, kernel, kernel], bound)?;
        Ok(Self { weight, stride, padding: (kernel - 1) / 2, precision: parameters.precision() })
    }

    /// The extent of its output for an extent of its input.
    pub(crate) fn extent(input: usize, kernel: usize, stride: usize) -> Option<usize> {
        (input + 2 * ((kernel - 1) / 2)).checked_sub(kernel).map(|rest| rest / stride + 1)
    }
}

/// Batch normalisation with its running statistics.
#[derive(Debug, Clone)]
pub(crate) struct BatchNorm {
    pub(crate) gamma: Var,
    pub(crate) beta: Var,
    pub(crate) running_mean: Var,
    /// Divided by one less than the number of values, as in PyTorch.
    pub(crate) running_variance: Var,
}

impl BatchNorm {
    /// Adds a normalisation of `channels`: gamma 1, beta 0, and buffers of mean 0 and variance 1.
    pub(crate) fn new(parameters: &mut Parameters, name: &str, channels: usize) -> Result<Self> {
        Ok(Self {
            gamma: parameters.constant(&format!("{name}.weight"), channels, 1.0)?,
            beta: parameters.constant(&format!("{name}.bias"), channels, 0.0)?,
            running_mean: parameters.buffer(&format!("{name}.running_mean"), channels, 0.0)?,
            running_variance: parameters.buffer(&format!("{name}.running_var"), channels, 1.0)?,
        })
    }

    fn forward(&self, images: &Tensor, activation: Activation, mode: Mode) -> Result<Tensor> {
        let (gamma, beta) = (self.gamma.as_tensor(), self.beta.as_tensor());
        if mode == Mode::Inference {
            let (mean, variance) = (self.running_mean.to_vec1()?, self.running_variance.to_vec1()?);
            let statistics = Statistics { mean, variance, count: 0 };
            return ops::normalize(images, gamma, beta, &statistics, EPSILON, activation);
        }
        let (out, statistics) = ops::batch_norm(images, gamma, beta, EPSILON, activation)?;
        follow(&self.running_mean, &statistics.mean)?;
        follow(&self.running_variance, &statistics.unbiased_variance())?;
        Ok(out)
    }
}

/// Moves a running value towards that of a batch.
fn follow(running: &Var, batch: &[f32]) -> Result<()> {
    let moved = running.to_vec1::<f32>()?.into_iter().zip(batch);
    let moved: Vec<f32> = moved
        .map(|(old, new)| ((1.0 - MOMENTUM) * f64::from(old) + MOMENTUM * f64::from(*new)) as f32)
        .collect();
    running.set(&Tensor::from_vec(moved, running.dims(), running.device())?)
}

/// The layers that a network of images walks through, applied to whatever stands for its values.
pub(crate) trait Layers {
    /// A value between two layers.
    type Value: Clone;
    /// Convolves.
    fn convolve(&mut self, input: &Self::Value, layer: &Convolution) -> Result<Self::Value>;
    /// Normalises, and activates in the same pass.
    fn normalize(
        &mut self,
        input: &Self::Value,
        layer: &BatchNorm,
        activation: Activation,
    ) -> Result<Self::Value>;
    /// The sum of two values.
    fn add(&mut self, one: &Self::Value, two: &Self::Value) -> Result<Self::Value>;
    /// ReLU of the sum of two values.
    fn add_relu(&mut self, one: &Self::Value, two: &Self::Value) -> Result<Self::Value>;
    /// The maximum of squares.
    fn max_pool(&mut self, input: &Self::Value, size: usize) -> Result<Self::Value>;
    /// The mean over all pixels, as a row an image.
    fn mean_pool(&mut self, input: &Self::Value) -> Result<Self::Value>;
    /// All pixels as a row an image.
    fn rows(&mut self, input: &Self::Value) -> Result<Self::Value>;
    /// A linear layer over rows.
    fn linear(&mut self, input: &Self::Value, layer: &Linear) -> Result<Self::Value>;
}

/// The walk that computes.
pub(crate) struct Forward {
    pub(crate) mode: Mode,
}

impl Layers for Forward {
    type Value = Tensor;

    fn convolve(&mut self, input: &Tensor, layer: &Convolution) -> Result<Tensor> {
        ops::convolve(input, &layer.weight, layer.stride, layer.padding, layer.precision)
    }

    fn normalize(&mut self, input: &Tensor, layer: &BatchNorm, activation: Activation) -> Result<Tensor> {
        layer.forward(input, activation, self.mode)
    }

    fn add(&mut self, one: &Tensor, two: &Tensor) -> Result<Tensor> {
        one + two
    }

    fn add_relu(&mut self, one: &Tensor, two: &Tensor) -> Result<Tensor> {
        ops::add_relu(one, two)
    }

    fn max_pool(&mut self, input: &Tensor, size: usize) -> Result<Tensor> {
        ops::max_pool(input, [size; 2])
    }

    fn mean_pool(&mut self, input: &Tensor) -> Result<Tensor> {
        ops::mean_pool(input)
    }

    fn rows(&mut self, input: &Tensor) -> Result<Tensor> {
        ops::to_rows(input)
    }

    fn linear(&mut self, input: &Tensor, layer: &Linear) -> Result<Tensor> {
        layer.forward(input)
    }
}
