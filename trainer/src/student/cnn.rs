//! A plain convolutional student of images: stages of convolution, batch normalisation and ReLU, one linear layer.
//!
//! It must not know how it is trained. Invariant: the walk is the network, for training, inference and export alike.

use candle_core::Result;
use serde::{Deserialize, Serialize};

use super::image::Network;
use super::layers::{BatchNorm, Convolution, Layers};
use super::parameters::{Linear, Parameters};
use super::{StudentError, size};
use crate::machine::Machine;
use crate::ops::Activation;

/// The most stages.
const STAGES_LIMIT: usize = 64;
/// The most filters of a stage.
const CHANNELS_LIMIT: usize = 1 << 14;
/// The largest kernel.
const KERNEL_LIMIT: usize = 31;

/// One convolution, batch normalisation and ReLU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// The filters, before `width` multiplies them.
    pub channels: usize,
    /// The height and width of the kernel; the padding is `(kernel - 1) / 2`.
    #[serde(default = "three")]
    pub kernel: usize,
    /// The step of the kernel.
    #[serde(default = "one")]
    pub stride: usize,
}

fn three() -> usize {
    3
}

fn one() -> usize {
    1
}

fn two() -> usize {
    2
}

fn tiny() -> Vec<Stage> {
    vec![
        Stage { channels: 16, kernel: 5, stride: 2 },
        Stage { channels: 32, kernel: 3, stride: 2 },
        Stage { channels: 64, kernel: 3, stride: 1 },
    ]
}

/// The sizes of a convolutional student. The defaults take 28x28 grey pixels and have 29 thousand parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CnnConfig {
    /// Channels, height and width of an image; its values lie channel after channel, line after line.
    pub image: [usize; 3],
    /// The stages from input to output.
    #[serde(default = "tiny")]
    pub stages: Vec<Stage>,
    /// Multiplies the filters of every stage.
    #[serde(default = "one")]
    pub width: usize,
    /// The squares whose maximum is taken before the linear layer; 1 leaves all pixels.
    #[serde(default = "two")]
    pub pool: usize,
}

impl CnnConfig {
    /// The default sizes for images of `[channels, height, width]`.
    #[must_use]
    pub fn tiny(image: [usize; 3]) -> Self {
        Self { image, stages: tiny(), width: 1, pool: 2 }
    }

    pub(super) fn check(&self) -> std::result::Result<(), StudentError> {
        size("stages", self.stages.len(), 1, STAGES_LIMIT)?;
        size("width", self.width, 1, CHANNELS_LIMIT)?;
        let mut extents = [self.image[1], self.image[2]];
        for stage in &self.stages {
            size("stages.channels", stage.channels, 1, CHANNELS_LIMIT / self.width)?;
            size("stages.kernel", stage.kernel, 1, KERNEL_LIMIT)?;
            size("stages.stride", stage.stride, 1, extents[0].min(extents[1]))?;
            for extent in &mut extents {
                let most = *extent + 2 * ((stage.kernel - 1) / 2);
                *extent = match Convolution::extent(*extent, stage.kernel, stage.stride) {
                    Some(extent) => extent,
                    None => return size("stages.kernel", stage.kernel, 1, most),
                };
            }
        }
        size("pool", self.pool, 1, extents[0].min(extents[1]))
    }

    /// The width of the linear layer's input.
    fn features(&self) -> usize {
        let extent = |mut extent: usize| {
            for stage in &self.stages {
                extent = Convolution::extent(extent, stage.kernel, stage.stride).unwrap_or(0);
            }
            extent / self.pool
        };
        let channels = self.stages.last().map_or(0, |stage| stage.channels * self.width);
        channels * extent(self.image[1]) * extent(self.image[2])
    }
}

/// A convolutional student.
#[derive(Debug)]
pub(crate) struct Cnn {
    parameters: Parameters,
    stages: Vec<(Convolution, BatchNorm)>,
    pool: usize,
    output: Linear,
}

impl Cnn {
    /// Makes the student for `classes` from a seed, its weights uniform in 1/sqrt(inputs) as PyTorch does it.
    pub(crate) fn new(config: &CnnConfig, classes: usize, seed: u64, machine: &Machine) -> Result<Self> {
        let mut parameters = Parameters::new(seed, machine);
        let mut channels = config.image[0];
        let mut stages = Vec::new();
        for (at, stage) in config.stages.iter().enumerate() {
            let filters = stage.channels * config.width;
            let bound = (1.0 / (channels * stage.kernel * stage.kernel) as f32).sqrt();
            let name = format!("stages.{at}.convolution");
            let convolution = Convolution::new(
                &mut parameters,
                &name,
                [channels, filters],
                stage.kernel,
                stage.stride,
                bound,
            )?;
            stages
                .push((convolution, BatchNorm::new(&mut parameters, &format!("stages.{at}.norm"), filters)?));
            channels = filters;
        }
        let output = parameters.linear("output", config.features(), classes)?;
        Ok(Self { parameters, stages, pool: config.pool, output })
    }
}

impl Network for Cnn {
    fn features<L: Layers>(&self, layers: &mut L, images: L::Value) -> Result<L::Value> {
        let mut hidden = self.hidden(layers, images, self.depth() - 1)?;
        if self.pool > 1 {
            hidden = layers.max_pool(&hidden, self.pool)?;
        }
        layers.rows(&hidden)
    }

    fn output(&self) -> &Linear {
        &self.output
    }

    fn depth(&self) -> usize {
        self.stages.len()
    }

    fn hidden<L: Layers>(&self, layers: &mut L, images: L::Value, layer: usize) -> Result<L::Value> {
        let mut hidden = images;
        for (convolution, norm) in &self.stages[..=layer] {
            hidden = layers.convolve(&hidden, convolution)?;
            hidden = layers.normalize(&hidden, norm, Activation::Relu)?;
        }
        Ok(hidden)
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}
