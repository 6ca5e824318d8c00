//! Residual students of small images: the CIFAR family of ResNet and one wide ResNet.
//!
//! Sources: He et al., "Deep Residual Learning", arXiv 1512.03385, section 4.2, with projections where the shape changes;
//! Zagoruyko and Komodakis, "Wide Residual Networks", arXiv 1605.07146; the widths of `resnet8x4` are those of Tian et
//! al., arXiv 1910.10699. It must not know how it is trained. Invariant: the walk is the network.

use candle_core::Result;
use serde::{Deserialize, Serialize};

use super::image::Network;
use super::layers::{BatchNorm, Convolution, Layers};
use super::parameters::{Linear, Parameters};
use super::{StudentError, WIDTH_LIMIT, size};
use crate::machine::Machine;
use crate::ops::Activation;

/// The members of the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResnetModel {
    /// Depth 8, widths 16, 32, 64.
    #[serde(rename = "resnet8")]
    Resnet8,
    /// Depth 20, widths 16, 32, 64.
    #[serde(rename = "resnet20")]
    Resnet20,
    /// Depth 32, widths 16, 32, 64.
    #[serde(rename = "resnet32")]
    Resnet32,
    /// Depth 8, widths 64, 128, 256 behind a stem of 32.
    #[serde(rename = "resnet8x4")]
    Resnet8x4,
    /// A wide ResNet of depth 16 and factor 2, normalised before its convolutions.
    #[serde(rename = "wrn-16-2")]
    Wrn16x2,
}

/// The settings of a residual student.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResnetConfig {
    /// Channels, height and width of an image; its values lie channel after channel, line after line.
    pub image: [usize; 3],
    /// Which member of the family.
    pub model: ResnetModel,
}

impl ResnetConfig {
    pub(super) fn check(&self) -> std::result::Result<(), StudentError> {
        size("image", self.image[1].min(self.image[2]), 4, WIDTH_LIMIT)
    }
}

impl ResnetModel {
    /// The filters of the stem.
    fn stem(self) -> usize {
        if self == Self::Resnet8x4 { 32 } else { 16 }
    }

    /// The filters of the three stages.
    fn widths(self) -> [usize; 3] {
        let factor = match self {
            Self::Resnet8 | Self::Resnet20 | Self::Resnet32 => 1,
            Self::Resnet8x4 => 4,
            Self::Wrn16x2 => 2,
        };
        [16, 32, 64].map(|width| width * factor)
    }

    /// The blocks of each stage: depth 6n + 2, or 6n + 4 for the wide form, which counts its projections.
    fn blocks(self) -> usize {
        match self {
            Self::Resnet8 | Self::Resnet8x4 => 1,
            Self::Wrn16x2 => 2,
            Self::Resnet20 => 3,
            Self::Resnet32 => 5,
        }
    }

    /// Whether blocks normalise before they convolve, arXiv 1603.05027.
    fn normalizes_first(self) -> bool {
        self == Self::Wrn16x2
    }
}

/// Two convolutions and the way around them.
#[derive(Debug)]
struct Block {
    convolutions: [Convolution; 2],
    norms: [BatchNorm; 2],
    /// A projection where the shape changes, with its own normalisation unless the block normalises first.
    shortcut: Option<(Convolution, Option<BatchNorm>)>,
}

/// A residual student.
#[derive(Debug)]
pub(crate) struct Resnet {
    parameters: Parameters,
    model: ResnetModel,
    stem: Convolution,
    /// Behind the stem, or before the last layer where blocks normalise first.
    norm: BatchNorm,
    blocks: Vec<Block>,
    output: Linear,
}

/// Adds a convolution with weights as He et al. draw them, arXiv 1502.01852: of variance 2 / (kernel^2 filters).
fn convolution(
    parameters: &mut Parameters,
    name: &str,
    channels: [usize; 2],
    kernel: usize,
    stride: usize,
) -> Result<Convolution> {
    let bound = (6.0 / (kernel * kernel * channels[1]) as f32).sqrt();
    Convolution::new(parameters, name, channels, kernel, stride, bound)
}

impl Resnet {
    /// Makes the student for `classes` from a seed.
    pub(crate) fn new(config: &ResnetConfig, classes: usize, seed: u64, machine: &Machine) -> Result<Self> {
        let mut parameters = Parameters::new(seed, machine);
        let (model, first) = (config.model, config.model.normalizes_first());
        let mut channels = model.stem();
        let stem = convolution(&mut parameters, "stem.convolution", [config.image[0], channels], 3, 1)?;
        let norm_channels = if first { model.widths()[2] } else { channels };
        let norm = BatchNorm::new(&mut parameters, if first { "norm" } else { "stem.norm" }, norm_channels)?;
        let mut blocks = Vec::new();
        for (stage, width) in model.widths().into_iter().enumerate() {
            for at in 0..model.blocks() {
                let stride = if stage > 0 && at == 0 { 2 } else { 1 };
                let name = format!("stages.{stage}.{at}");
                blocks.push(Block::new(&mut parameters, &name, [channels, width], stride, first)?);
                channels = width;
            }
        }
        let output = parameters.linear("output", channels, classes)?;
        Ok(Self { parameters, model, stem, norm, blocks, output })
    }
}

impl Network for Resnet {
    fn features<L: Layers>(&self, layers: &mut L, images: L::Value) -> Result<L::Value> {
        let mut hidden = self.hidden(layers, images, self.depth() - 1)?;
        if self.model.normalizes_first() {
            hidden = layers.normalize(&hidden, &self.norm, Activation::Relu)?;
        }
        layers.mean_pool(&hidden)
    }

    fn output(&self) -> &Linear {
        &self.output
    }

    fn depth(&self) -> usize {
        self.blocks.len()
    }

    fn hidden<L: Layers>(&self, layers: &mut L, images: L::Value, layer: usize) -> Result<L::Value> {
        let first = self.model.normalizes_first();
        let mut hidden = layers.convolve(&images, &self.stem)?;
        if !first {
            hidden = layers.normalize(&hidden, &self.norm, Activation::Relu)?;
        }
        for block in &self.blocks[..=layer] {
            hidden = if first { block.wide(layers, &hidden)? } else { block.basic(layers, &hidden)? };
        }
        Ok(hidden)
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}

impl Block {
    fn new(
        parameters: &mut Parameters,
        name: &str,
        [channels, width]: [usize; 2],
        stride: usize,
        first: bool,
    ) -> Result<Self> {
        let one = convolution(parameters, &format!("{name}.convolution.0"), [channels, width], 3, stride)?;
        let two = convolution(parameters, &format!("{name}.convolution.1"), [width, width], 3, 1)?;
        let norms = [
            BatchNorm::new(parameters, &format!("{name}.norm.0"), if first { channels } else { width })?,
            BatchNorm::new(parameters, &format!("{name}.norm.1"), width)?,
        ];
        let shortcut = if stride == 1 && channels == width {
            None
        } else {
            let name = format!("{name}.shortcut");
            let projection =
                convolution(parameters, &format!("{name}.convolution"), [channels, width], 1, stride)?;
            let norm = match first {
                true => None,
                false => Some(BatchNorm::new(parameters, &format!("{name}.norm"), width)?),
            };
            Some((projection, norm))
        };
        Ok(Self { convolutions: [one, two], norms, shortcut })
    }

    /// relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)).
    fn basic<L: Layers>(&self, layers: &mut L, input: &L::Value) -> Result<L::Value> {
        let hidden = layers.convolve(input, &self.convolutions[0])?;
        let hidden = layers.normalize(&hidden, &self.norms[0], Activation::Relu)?;
        let hidden = layers.convolve(&hidden, &self.convolutions[1])?;
        let hidden = layers.normalize(&hidden, &self.norms[1], Activation::None)?;
        let around = self.around(layers, input)?;
        layers.add_relu(&hidden, &around)
    }

    /// With y = relu(norm(x)): conv(relu(norm(conv(y)))) + x, or + shortcut(y) where the shape changes.
    fn wide<L: Layers>(&self, layers: &mut L, input: &L::Value) -> Result<L::Value> {
        let active = layers.normalize(input, &self.norms[0], Activation::Relu)?;
        let hidden = layers.convolve(&active, &self.convolutions[0])?;
        let hidden = layers.normalize(&hidden, &self.norms[1], Activation::Relu)?;
        let hidden = layers.convolve(&hidden, &self.convolutions[1])?;
        let around = if self.shortcut.is_some() { self.around(layers, &active)? } else { input.clone() };
        layers.add(&hidden, &around)
    }

    fn around<L: Layers>(&self, layers: &mut L, input: &L::Value) -> Result<L::Value> {
        let Some((projection, norm)) = &self.shortcut else { return Ok(input.clone()) };
        let projected = layers.convolve(input, projection)?;
        match norm {
            Some(norm) => layers.normalize(&projected, norm, Activation::None),
            None => Ok(projected),
        }
    }
}
