//! A multi-layer perceptron with ReLU between its layers.
//!
//! It must not know how it is trained. Invariant: plain candle operators only, whose gradients are right.

use candle_core::{Result, Tensor};

use super::parameters::{Linear, Parameters};
use super::{Inputs, Mode, Student, vectors};
use crate::example::Example;
use crate::machine::Machine;

/// Linear layers with ReLU between them.
#[derive(Debug)]
pub(crate) struct Mlp {
    parameters: Parameters,
    layers: Vec<Linear>,
}

impl Mlp {
    /// Makes `input`-`hidden...`-`classes` from a seed.
    pub(crate) fn new(
        input: usize,
        hidden: &[usize],
        classes: usize,
        seed: u64,
        machine: &Machine,
    ) -> Result<Self> {
        let mut parameters = Parameters::new(seed, machine);
        let widths: Vec<usize> = [&[input], hidden, &[classes]].concat();
        let layers = widths
            .windows(2)
            .enumerate()
            .map(|(at, pair)| parameters.linear(&format!("layers.{at}"), pair[0], pair[1]))
            .collect::<Result<_>>()?;
        Ok(Self { parameters, layers })
    }

    /// The layers from input to output.
    pub(crate) fn layers(&self) -> &[Linear] {
        &self.layers
    }
}

impl Student for Mlp {
    fn inputs(&self, examples: &[&Example]) -> Result<Inputs> {
        vectors(examples, self.layers[0].weight.dim(1)?, self.parameters.device())
    }

    fn features(&self, inputs: &Inputs, mode: Mode) -> Result<Tensor> {
        match self.depth().checked_sub(1) {
            Some(last) => self.hidden(inputs, last, mode),
            None => Ok(inputs.0[0].clone()),
        }
    }

    fn depth(&self) -> usize {
        self.layers.len() - 1
    }

    fn hidden(&self, inputs: &Inputs, layer: usize, _mode: Mode) -> Result<Tensor> {
        let mut hidden = self.layers[0].forward(&inputs.0[0])?.relu()?;
        for next in &self.layers[1..=layer] {
            hidden = next.forward(&hidden)?.relu()?;
        }
        Ok(hidden)
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn output(&self) -> &Linear {
        &self.layers[self.depth()]
    }

    fn mixable(&self) -> bool {
        true
    }
}
