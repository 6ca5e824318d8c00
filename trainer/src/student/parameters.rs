//! A student's named variables and buffers in a fixed order, made from a seed.
//!
//! A variable is learnt by its gradient; a buffer (a running statistic) has none, and is kept, restored and exported with
//! the variables. This file must not know architectures or optimizers. Invariant: the same seed and the same calls in the
//! same order give the same numbers on every machine, and the order never changes afterwards.

use candle_core::{Device, Result, Tensor, Var};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::machine::Machine;
use crate::ops::{self, Precision};

/// Named variables, made in order from one stream of random numbers.
#[derive(Debug)]
pub(crate) struct Parameters {
    all: Vec<(String, Var)>,
    buffers: Vec<(String, Var)>,
    rng: ChaCha8Rng,
    machine: Machine,
}

impl Parameters {
    /// An empty list whose numbers will come from `seed`.
    pub(crate) fn new(seed: u64, machine: &Machine) -> Self {
        Self {
            all: Vec::new(),
            buffers: Vec::new(),
            rng: ChaCha8Rng::seed_from_u64(seed),
            machine: machine.clone(),
        }
    }

    /// The device that they lie on.
    pub(crate) fn device(&self) -> &Device {
        &self.machine.device
    }

    /// How precisely what is made of them is multiplied.
    pub(crate) fn precision(&self) -> Precision {
        self.machine.precision
    }

    /// Adds a variable with values uniform in `-bound..bound`.
    pub(crate) fn uniform(&mut self, name: &str, shape: &[usize], bound: f32) -> Result<Var> {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| (self.rng.random::<f32>() * 2.0 - 1.0) * bound).collect();
        let var = Var::from_tensor(&Tensor::from_vec(values, shape, &self.machine.device)?)?;
        self.all.push((name.to_owned(), var.clone()));
        Ok(var)
    }

    /// Adds a variable `[count]` of one value.
    pub(crate) fn constant(&mut self, name: &str, count: usize, value: f32) -> Result<Var> {
        let var = Var::from_tensor(&Tensor::from_vec(vec![value; count], count, &self.machine.device)?)?;
        self.all.push((name.to_owned(), var.clone()));
        Ok(var)
    }

    /// Adds a buffer `[count]` of one value.
    pub(crate) fn buffer(&mut self, name: &str, count: usize, value: f32) -> Result<Var> {
        let buffer = Var::from_tensor(&Tensor::from_vec(vec![value; count], count, &self.machine.device)?)?;
        self.buffers.push((name.to_owned(), buffer.clone()));
        Ok(buffer)
    }

    /// A linear layer's weight `[output, input]` and bias, uniform in 1/sqrt(input) as PyTorch does it.
    pub(crate) fn linear(&mut self, name: &str, input: usize, output: usize) -> Result<Linear> {
        let bound = (1.0 / input as f32).sqrt();
        let weight = self.uniform(&format!("{name}.weight"), &[output, input], bound)?;
        let bias = self.uniform(&format!("{name}.bias"), &[output], bound)?;
        Ok(Linear { weight, bias, precision: self.machine.precision })
    }

    /// The variables in the order in which they were added.
    pub(crate) fn all(&self) -> &[(String, Var)] {
        &self.all
    }

    /// The buffers in the order in which they were added.
    pub(crate) fn buffers(&self) -> &[(String, Var)] {
        &self.buffers
    }

    /// All that is kept of a student: the variables, then the buffers.
    pub(crate) fn kept(&self) -> impl Iterator<Item = &(String, Var)> {
        self.all.iter().chain(&self.buffers)
    }

    /// The number of scalars that are learnt.
    pub(crate) fn count(&self) -> usize {
        self.all.iter().map(|(_, var)| var.elem_count()).sum()
    }
}

/// x W^T + b.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    pub(crate) weight: Var,
    pub(crate) bias: Var,
    pub(crate) precision: Precision,
}

impl Linear {
    /// Maps `[n, input]` to `[n, output]`.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        ops::linear(input, &self.weight, &self.bias, self.precision)
    }
}
