//! A phase before a run's own losses: what the student learns in it, from which recorded signal, and for how long.
//!
//! It must not know which method planned it, nor the loop. Invariant: a phase's targets are recorded answers to the
//! training examples, one row an example.

use candle_core::{Device, Result, Tensor, Var};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::curriculum::CurriculumError;
use super::progressive::ProgressiveError;
use crate::example::Example;
use crate::loss::kd;
use crate::student::{Inputs, Mode, Student};

/// What stands in front of an earlier checkpoint's name among the signals of a split.
pub const CHECKPOINT: &str = "checkpoint.";

/// What of the student is held against a phase's targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Learns {
    /// A hidden layer, from 0 on, through a linear head or as it is.
    Layer { layer: usize, head: bool },
    /// Its outputs, against logits.
    Outputs,
}

/// One phase.
#[derive(Debug, Clone)]
pub(crate) struct Phase {
    pub(crate) learns: Learns,
    /// `[N, r]`, or logits `[N, C]`.
    pub(crate) targets: Tensor,
    /// The most steps.
    pub(crate) steps: usize,
    /// Looks without progress before it ends; 0: by steps alone.
    pub(crate) patience: usize,
}

/// Why no phases were made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    #[error(transparent)]
    Curriculum(#[from] CurriculumError),
    #[error(transparent)]
    Progressive(#[from] ProgressiveError),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// The signal at `place` of every example, `[N, width]`.
pub(crate) fn column(examples: &[Example], place: usize, width: usize, device: &Device) -> Result<Tensor> {
    let values: Vec<f32> =
        examples.iter().flat_map(|example| example.hidden[place].iter().copied()).collect();
    Tensor::from_vec(values, ((), width.max(1)), device)
}

impl Phase {
    /// The loss of a batch: its inputs, and their rows of the targets.
    pub(crate) fn loss(
        &self,
        student: &dyn Student,
        inputs: &Inputs,
        head: Option<&Head>,
        targets: &Tensor,
    ) -> Result<Tensor> {
        match self.learns {
            Learns::Layer { layer, .. } => {
                layer_loss(&student.hidden(inputs, layer, Mode::Training)?, head, targets)
            }
            Learns::Outputs => kd(&student.forward(inputs, Mode::Training)?, targets, 1.0),
        }
    }
}

/// A layer `[n, m]`, through its head where it has one, against targets `[n, r]`: the mean square.
fn layer_loss(layer: &Tensor, head: Option<&Head>, targets: &Tensor) -> Result<Tensor> {
    let seen = head.map_or_else(|| Ok(layer.clone()), |head| head.forward(layer))?;
    (seen - targets)?.sqr()?.mean_all()
}

/// R and c of one phase.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    /// `[r, m]`.
    weight: Var,
    /// `[r]`.
    bias: Var,
}

impl Head {
    /// Uniform in 1/sqrt(m), as every linear layer here.
    pub(crate) fn new(width: usize, outputs: usize, rng: &mut ChaCha8Rng, device: &Device) -> Result<Self> {
        let bound = (1.0 / width as f32).sqrt();
        let mut uniform = |count: usize| -> Vec<f32> {
            (0..count).map(|_| (rng.random::<f32>() * 2.0 - 1.0) * bound).collect()
        };
        let weight = Tensor::from_vec(uniform(outputs * width), (outputs, width), device)?;
        let bias = Tensor::from_vec(uniform(outputs), outputs, device)?;
        Ok(Self { weight: Var::from_tensor(&weight)?, bias: Var::from_tensor(&bias)? })
    }

    /// Its variables, in order.
    pub(crate) fn vars(&self) -> [Var; 2] {
        [self.weight.clone(), self.bias.clone()]
    }

    fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        hidden.matmul(&self.weight.t()?)?.broadcast_add(&self.bias)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // torch: F.mse_loss(h @ R.T + c, t) with h = [[1, 2], [0, -1]], R = [[.5, -1]], c = [.25], t = [[1], [0]]
    //   # 3.3125 = ((-1.25 - 1)^2 + 1.25^2) / 2
    #[test]
    fn a_phase_is_the_mean_square_through_its_head() {
        let tensor =
            |rows: &[[f32; 2]]| Tensor::from_slice(&rows.concat(), (rows.len(), 2), &Device::Cpu).unwrap();
        let head = Head {
            weight: Var::from_tensor(&tensor(&[[0.5, -1.0]])).unwrap(),
            bias: Var::from_tensor(&Tensor::new(&[0.25f32], &Device::Cpu).unwrap()).unwrap(),
        };
        let targets = Tensor::new(&[[1f32], [0.0]], &Device::Cpu).unwrap();
        let hidden = tensor(&[[1.0, 2.0], [0.0, -1.0]]);
        let loss = layer_loss(&hidden, Some(&head), &targets).unwrap().to_scalar::<f32>().unwrap();
        assert!((loss - 3.3125).abs() < 1e-6, "{loss}");
        let direct = layer_loss(&hidden, None, &tensor(&[[1.0, 0.0], [0.0, 0.0]])).unwrap();
        assert!((direct.to_scalar::<f32>().unwrap() - 1.25).abs() < 1e-6);
    }
}
