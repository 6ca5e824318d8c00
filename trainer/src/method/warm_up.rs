//! A warm-up without answers: before anything is learnt from a teacher, a network learns from inputs alone, those that nobody
//! asked about among them. It costs no call.
//!
//! `simclr`: two random views of an image are pulled together, and away from those of the other images of the batch, through
//! a projector that is thrown away. Source: A Simple Framework for Contrastive Learning of Visual Representations, arXiv
//! 2002.05709 (NT-Xent). `autoencoder`: the features are decoded back into the input by a decoder that is thrown away; of an
//! image a view is encoded and the image itself is decoded.
//!
//! It must not know the loop. Invariant: no target of any kind is looked at.

use candle_core::{D, Result, Tensor};
use serde::{Deserialize, Serialize};

use super::phase::{Learns, Phase, PlanError};
use crate::augment::Augment;
use crate::example::Input;
use crate::range::{Judged, OutOfRange};
use crate::student::StudentConfig;

/// The `warm_up` table under `[method]` or `[method.proxy]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmUpConfig {
    /// What is learnt.
    pub kind: WarmUpKind,
    /// The steps.
    pub steps: usize,
    /// Inputs of a step.
    #[serde(default = "batch")]
    pub batch: usize,
    /// The learning rate; none: the run's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// For `simclr`: the temperature of the similarities.
    #[serde(default = "temperature")]
    pub temperature: f64,
    /// The width of the projection, or of the decoder's hidden layer.
    #[serde(default = "width")]
    pub width: usize,
    /// How views of images differ from them; other inputs have none.
    #[serde(default = "views")]
    pub views: Augment,
}

/// The kinds of warm-ups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WarmUpKind {
    /// Views of one image are alike.
    Simclr,
    /// Features hold the input.
    Autoencoder,
}

fn batch() -> usize {
    96
}

fn temperature() -> f64 {
    0.2
}

fn width() -> usize {
    64
}

/// Views that small grey images bear.
pub(super) fn views() -> Augment {
    Augment { crop: 4, flip: true, rotate: 15.0, scale: 0.15, gain: 0.4, cutout: 12 }
}

/// Why there is no warm-up.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum WarmUpError {
    /// Views are of images.
    #[error("a `simclr` warm-up compares views of images; student `{student}` takes none")]
    Images {
        /// The student's kind.
        student: &'static str,
    },
    /// A decoder gives numbers.
    #[error("an `autoencoder` warm-up decodes vectors, and the inputs are {found}")]
    Vectors {
        /// What the data set holds.
        found: &'static str,
    },
    /// A number out of its range.
    #[error(transparent)]
    Range(#[from] OutOfRange),
}

fn check(
    config: &WarmUpConfig,
    student: &StudentConfig,
    sample: &Input,
) -> std::result::Result<(), WarmUpError> {
    let table = Judged("warm_up");
    table.check("steps", config.steps > 0, config.steps, "1 or more")?;
    let least = if config.kind == WarmUpKind::Simclr { 2 } else { 1 };
    table.check("batch", config.batch >= least, config.batch, "2 or more (autoencoder: 1)")?;
    table.check("width", config.width > 0, config.width, "1 or more")?;
    let fine = config.temperature > 0.0 && config.temperature.is_finite();
    table.check("temperature", fine, config.temperature, "above 0")?;
    table.check("lr", config.lr.is_none_or(|lr| lr > 0.0), config.lr.unwrap_or(0.0), "above 0")?;
    match (config.kind, student.image()) {
        (_, Some(image)) => config.views.check(image, "warm_up.views")?,
        (WarmUpKind::Simclr, None) => return Err(WarmUpError::Images { student: student.name() }),
        (WarmUpKind::Autoencoder, None) => {}
    }
    if let (WarmUpKind::Autoencoder, Input::Bytes(_)) = (config.kind, sample) {
        return Err(WarmUpError::Vectors { found: sample.kind() });
    }
    Ok(())
}

/// The phase of a warm-up for a student of such inputs.
pub(crate) fn warm_up(
    config: &WarmUpConfig,
    student: &StudentConfig,
    sample: &Input,
) -> std::result::Result<Phase, PlanError> {
    check(config, student, sample)?;
    let learns = match config.kind {
        WarmUpKind::Simclr => Learns::Views { temperature: config.temperature },
        WarmUpKind::Autoencoder => Learns::Inputs,
    };
    Ok(Phase {
        learns,
        steps: config.steps,
        patience: 0,
        lr: config.lr,
        batch: Some(config.batch),
        views: Some(config.views),
        width: config.width,
    })
}

/// The normalised temperature-scaled cross-entropy of projections `[2n, d]`, where row i and row n + i are views of the
/// same image: the mean over all rows of -log softmax over the other rows of their cosines, over the temperature.
pub(crate) fn nt_xent(projections: &Tensor, temperature: f64) -> Result<Tensor> {
    let rows = projections.dim(0)?;
    let device = projections.device();
    let lengths = (projections.sqr()?.sum_keepdim(1)? + 1e-12)?.sqrt()?;
    let unit = projections.broadcast_div(&lengths)?;
    let similar = (unit.matmul(&unit.t()?.contiguous()?)? / temperature)?;
    // No row is compared with itself.
    let itself = (Tensor::eye(rows, candle_core::DType::F32, device)? * -1e9)?;
    let similar = (similar + itself)?;
    let highest = similar.detach().max_keepdim(D::Minus1)?;
    let sums = similar.broadcast_sub(&highest)?.exp()?.sum_keepdim(1)?;
    let log_sums = (sums.log()? + highest)?;
    let other: Vec<u32> = (0..rows).map(|row| ((row + rows / 2) % rows) as u32).collect();
    let positive = similar.gather(&Tensor::from_vec(other, (rows, 1), device)?, 1)?;
    (log_sums - positive)?.mean_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::tests::{Fixture, check};
    use candle_core::{Device, Var};

    // The definition in f64: the published equation (1), averaged over both views.
    fn by_definition(rows: &[[f64; 2]], temperature: f64) -> f64 {
        let unit: Vec<[f64; 2]> = rows.iter().map(|[x, y]| [x / x.hypot(*y), y / x.hypot(*y)]).collect();
        let n = rows.len();
        let cosine = |i: usize, j: usize| (unit[i][0] * unit[j][0] + unit[i][1] * unit[j][1]) / temperature;
        let one = |i: usize| {
            let sum: f64 = (0..n).filter(|j| *j != i).map(|j| cosine(i, j).exp()).sum();
            sum.ln() - cosine(i, (i + n / 2) % n)
        };
        (0..n).map(one).sum::<f64>() / n as f64
    }

    // c = (F.normalize(s, dim=1) @ F.normalize(s, dim=1).T / .5).masked_fill(torch.eye(4).bool(), -inf)
    // F.cross_entropy(c, tensor([2, 3, 0, 1]))
    #[test]
    fn nt_xent_equals_pytorch() {
        check(|Fixture { s, .. }| nt_xent(s, 0.5), 0.367_001_3, 0.075_995_9, -0.073_917_3);
    }

    #[test]
    fn nt_xent_is_its_definition_and_so_is_its_gradient() {
        let rows = [[1.0, 2.0], [0.0, 1.0], [2.0, 1.0], [-1.0, 1.0]];
        let values: Vec<f32> = rows.concat().iter().map(|value| *value as f32).collect();
        let var = Var::from_tensor(&Tensor::from_vec(values, (4, 2), &Device::Cpu).unwrap()).unwrap();
        let loss = nt_xent(&var, 0.5).unwrap();
        let expected = by_definition(&rows, 0.5);
        assert!((f64::from(loss.to_scalar::<f32>().unwrap()) - expected).abs() < 1e-5);
        let gradients = loss.backward().unwrap();
        let gradient = gradients.get(&var).unwrap().to_vec2::<f32>().unwrap();
        for (row, columns) in gradient.iter().enumerate() {
            for (column, found) in columns.iter().enumerate() {
                let moved = |by: f64| {
                    let mut rows = rows;
                    rows[row][column] += by;
                    by_definition(&rows, 0.5)
                };
                let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                assert!((f64::from(*found) - slope).abs() < 1e-4, "{row} {column}: {found} {slope}");
            }
        }
    }

    #[test]
    fn equal_views_cost_least() {
        let tensor = |rows: [[f32; 2]; 4]| Tensor::new(&rows, &Device::Cpu).unwrap();
        let loss = |rows| nt_xent(&tensor(rows), 0.2).unwrap().to_scalar::<f32>().unwrap();
        let alike = loss([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]);
        let crossed = loss([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]);
        assert!(alike < 0.02 && crossed > 4.0, "{alike} {crossed}");
    }
}
