//! A phase before a run's own losses: what the student learns in it, from which recorded signal or from inputs alone, and
//! for how long.
//!
//! It must not know which method planned it, nor the loop. Invariant: a phase's targets are recorded answers to the
//! training examples, one row an example; a phase without targets sees the inputs that nobody asked about too.

use candle_core::{Device, Result, Tensor};

use super::curriculum::CurriculumError;
use super::progressive::ProgressiveError;
use super::warm_up::{WarmUpError, nt_xent};
use crate::augment::Augment;
use crate::example::Example;
use crate::loss::kd;
use crate::student::{Head, Inputs, Mode, Student};

/// What stands in front of an earlier checkpoint's name among the signals of a split.
pub const CHECKPOINT: &str = "checkpoint.";

/// What a phase learns.
#[derive(Debug, Clone)]
pub(crate) enum Learns {
    /// A hidden layer, from 0 on, through a linear head or as it is, against `[N, r]`.
    Layer { layer: usize, head: bool, targets: Tensor },
    /// The outputs, against logits `[N, C]`.
    Outputs { targets: Tensor },
    /// That two views of an image are alike.
    Views { temperature: f64 },
    /// To give inputs back from the features of their views.
    Inputs,
}

/// One phase.
#[derive(Debug, Clone)]
pub(crate) struct Phase {
    pub(crate) learns: Learns,
    /// The most steps.
    pub(crate) steps: usize,
    /// Looks without progress before it ends; 0: by steps alone.
    pub(crate) patience: usize,
    /// Its rate; none: the run's.
    pub(crate) lr: Option<f64>,
    /// Inputs of a step; none: the run's.
    pub(crate) batch: Option<usize>,
    /// How views differ from images.
    pub(crate) views: Option<Augment>,
    /// The width of its head's hidden layer, or of the projection.
    pub(crate) width: usize,
}

impl Phase {
    /// A phase on recorded answers, at the run's rate and batch.
    pub(crate) fn recorded(learns: Learns, steps: usize, patience: usize) -> Self {
        Self { learns, steps, patience, lr: None, batch: None, views: None, width: 0 }
    }

    /// Whether it has no targets, and so may see any input.
    pub(crate) fn sees_everything(&self) -> bool {
        matches!(self.learns, Learns::Views { .. } | Learns::Inputs)
    }

    /// The widths of the head that is thrown away after it, from its input on; none without a head.
    ///
    /// # Errors
    /// When the student cannot be run on `sample`.
    pub(crate) fn head(&self, student: &dyn Student, sample: &Inputs) -> Result<Option<Vec<usize>>> {
        let features = || student.features(sample, Mode::Inference)?.dim(1);
        Ok(match &self.learns {
            Learns::Outputs { .. } | Learns::Layer { head: false, .. } => None,
            Learns::Layer { layer, head: true, targets } => {
                Some(vec![student.hidden(sample, *layer, Mode::Inference)?.dim(1)?, targets.dim(1)?])
            }
            Learns::Views { .. } => Some(vec![features()?, 2 * self.width, self.width]),
            Learns::Inputs => Some(vec![features()?, self.width, sample.0[0].dim(1)?]),
        })
    }
}

/// Why no phases were made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    #[error(transparent)]
    Curriculum(#[from] CurriculumError),
    #[error(transparent)]
    Progressive(#[from] ProgressiveError),
    #[error(transparent)]
    WarmUp(#[from] WarmUpError),
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
    /// The loss of the examples at `rows`: their inputs and, where it has no targets, their views.
    pub(crate) fn loss(
        &self,
        student: &dyn Student,
        head: Option<&Head>,
        rows: &Tensor,
        inputs: &Inputs,
        mut view: impl FnMut(&Inputs) -> Result<Inputs>,
    ) -> Result<Tensor> {
        match &self.learns {
            Learns::Layer { layer, targets, .. } => {
                let hidden = student.hidden(inputs, *layer, Mode::Training)?;
                layer_loss(&hidden, head, &targets.index_select(rows, 0)?)
            }
            Learns::Outputs { targets } => {
                kd(&student.forward(inputs, Mode::Training)?, &targets.index_select(rows, 0)?, 1.0)
            }
            Learns::Views { temperature } => {
                let both = view(inputs)?.and(&view(inputs)?)?;
                let features = student.features(&both, Mode::Training)?;
                nt_xent(&through(&features, head)?, *temperature)
            }
            Learns::Inputs => {
                let features = student.features(&view(inputs)?, Mode::Training)?;
                layer_loss(&features, head, &inputs.0[0])
            }
        }
    }
}

fn through(features: &Tensor, head: Option<&Head>) -> Result<Tensor> {
    head.map_or_else(|| Ok(features.clone()), |head| head.forward(features))
}

/// A layer `[n, m]`, through its head where it has one, against targets `[n, r]`: the mean square.
fn layer_loss(layer: &Tensor, head: Option<&Head>, targets: &Tensor) -> Result<Tensor> {
    (through(layer, head)? - targets)?.sqr()?.mean_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    // torch: F.mse_loss(h, t) with h = [[1, 2], [0, -1]], t = [[1, 0], [0, 0]]   # 1.25
    #[test]
    fn a_phase_is_the_mean_square_through_its_head() {
        let tensor =
            |rows: &[[f32; 2]]| Tensor::from_slice(&rows.concat(), (rows.len(), 2), &Device::Cpu).unwrap();
        let hidden = tensor(&[[1.0, 2.0], [0.0, -1.0]]);
        let direct = layer_loss(&hidden, None, &tensor(&[[1.0, 0.0], [0.0, 0.0]])).unwrap();
        assert!((direct.to_scalar::<f32>().unwrap() - 1.25).abs() < 1e-6);
        let head = Head::new(&[2, 1], &mut ChaCha8Rng::seed_from_u64(0), &Machine::cpu()).unwrap();
        let said = head.forward(&hidden).unwrap();
        assert_eq!(layer_loss(&hidden, Some(&head), &said).unwrap().to_scalar::<f32>().unwrap(), 0.0);
    }
}
