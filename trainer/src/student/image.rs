//! A network of images as a student: vectors become images at its input, and its walk becomes the forward pass.
//!
//! It must not know which network it is. Invariant: images are converted once a pass, and the rows that come in are
//! never written to.

use candle_core::{Result, Tensor};

use super::layers::{Forward, Layers};
use super::parameters::{Linear, Parameters};
use super::{Inputs, Mode, Student, vectors};
use crate::example::Example;
use crate::ops::to_images;

/// A network that is written down once as a walk.
pub(crate) trait Network {
    /// Images to what the last linear layer sees, a row an image.
    fn features<L: Layers>(&self, layers: &mut L, images: L::Value) -> Result<L::Value>;
    /// The last linear layer.
    fn output(&self) -> &Linear;
    /// Images to logits.
    fn walk<L: Layers>(&self, layers: &mut L, images: L::Value) -> Result<L::Value> {
        let rows = self.features(layers, images)?;
        layers.linear(&rows, self.output())
    }
    /// How many hidden layers it has: stages or blocks.
    fn depth(&self) -> usize;
    /// Images to what hidden layer `layer` gives.
    fn hidden<L: Layers>(&self, layers: &mut L, images: L::Value, layer: usize) -> Result<L::Value>;
    /// The variables and buffers.
    fn parameters(&self) -> &Parameters;
}

/// A network and the shape of its images.
#[derive(Debug)]
pub(crate) struct ImageStudent<N> {
    network: N,
    image: [usize; 3],
}

impl<N: Network> ImageStudent<N> {
    /// A student of images of `[channels, height, width]`.
    pub(crate) fn new(network: N, image: [usize; 3]) -> Self {
        Self { network, image }
    }

    /// The network.
    pub(crate) fn network(&self) -> &N {
        &self.network
    }

    /// Channels, height and width.
    pub(crate) fn image(&self) -> [usize; 3] {
        self.image
    }
}

impl<N: Network> Student for ImageStudent<N> {
    fn inputs(&self, examples: &[&Example]) -> Result<Inputs> {
        vectors(examples, self.image.iter().product(), self.parameters().device())
    }

    fn features(&self, inputs: &Inputs, mode: Mode) -> Result<Tensor> {
        self.network.features(&mut Forward { mode }, to_images(&inputs.0[0], self.image)?)
    }

    fn depth(&self) -> usize {
        self.network.depth()
    }

    fn hidden(&self, inputs: &Inputs, layer: usize, mode: Mode) -> Result<Tensor> {
        let mut layers = Forward { mode };
        let hidden = self.network.hidden(&mut layers, to_images(&inputs.0[0], self.image)?, layer)?;
        layers.rows(&hidden)
    }

    fn parameters(&self) -> &Parameters {
        self.network.parameters()
    }

    fn output(&self) -> &Linear {
        self.network.output()
    }

    fn mixable(&self) -> bool {
        true
    }
}
