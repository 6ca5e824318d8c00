//! Contrastive representation distillation: the student's features of an input are told from its features of the others by the
//! teacher's.
//!
//! Both sides go through linear maps that are learnt beside the student and thrown away, and are scaled to length 1. With
//! s_ij = g_S(x_i) . g_T(x_j) / t, N = b - 1 others in the batch, M training answers and h_ij = e^s_ij / (e^s_ij + N / M) the loss is
//! the mean over i of - log h_ii - sum over j != i of log(1 - h_ij), which looks from both sides. The others are those of the batch
//! (its authors keep a memory of all answers and draw 16,384 of them, which few answers do not have). Source: arXiv 1910.10699.

use candle_core::{DType, Result, Tensor};
use serde::{Deserialize, Serialize};

use super::{Batch, Judge, Loss, LossError, one};
use crate::example::Signal;

/// The settings of the loss `crd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CrdLoss {
    /// The weight in the sum; its authors': 0.8.
    #[serde(default = "one")]
    pub weight: f64,
    /// The width that both sides are mapped to.
    #[serde(default = "width")]
    pub width: usize,
    /// The temperature of the similarities.
    #[serde(default = "temperature")]
    pub temperature: f64,
}

fn width() -> usize {
    128
}

fn temperature() -> f64 {
    0.07
}

impl Loss for CrdLoss {
    fn weight(&self) -> f64 {
        self.weight
    }

    fn needs(&self) -> Signal {
        Signal::Label
    }

    fn check(&self, judge: Judge) -> std::result::Result<(), LossError> {
        judge.positive("width", self.width as f64)?;
        judge.positive("temperature", self.temperature)
    }

    fn compares_features(&self) -> bool {
        true
    }

    fn maps(&self, features: usize, hidden: usize) -> [Option<[usize; 2]>; 2] {
        [Some([features, self.width]), Some([hidden, self.width])]
    }

    fn evaluate(&self, _logits: &Tensor, batch: &Batch) -> Result<Tensor> {
        let (student, teacher) = batch.features()?;
        crd(student, teacher, self.temperature, batch.answers)
    }
}

/// Of mapped features `[b, r]` each, among `answers` training answers.
fn crd(student: &Tensor, teacher: &Tensor, temperature: f64, answers: usize) -> Result<Tensor> {
    let count = student.dim(0)?;
    let scaled = |rows: &Tensor| rows.broadcast_div(&(rows.sqr()?.sum_keepdim(1)? + 1e-24)?.sqrt()?);
    let likeness = (scaled(student)?.matmul(&scaled(teacher)?.t()?.contiguous()?)? / temperature)?;
    // A batch of one has no others: nothing is told from anything.
    let share = ((count.max(2) - 1) as f64 / answers.max(1) as f64).ln();
    let odds = (likeness - share)?;
    // -log h is softplus(-u) and -log(1 - h) is softplus(u), with u = s - ln(N / M).
    let own = Tensor::eye(count, DType::F32, student.device())?;
    let signed = (&odds * (1.0 - (&own * 2.0)?)?)?;
    let softplus = (signed.relu()? + (signed.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
    softplus.sum_all()? / count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::tests::{Fixture, check, fixture, is_the_definition};

    /// The definition in f64, of four rows among ten answers at temperature 0.5.
    fn by_definition(student: &[Vec<f64>], teacher: &[Vec<f64>]) -> f64 {
        let unit = |row: &Vec<f64>| -> Vec<f64> {
            let length = row.iter().map(|value| value * value).sum::<f64>().sqrt();
            row.iter().map(|value| value / length).collect()
        };
        let h = |i: usize, j: usize| {
            let (one, two) = (unit(&student[i]), unit(&teacher[j]));
            let likeness = one.iter().zip(&two).map(|(a, b)| a * b).sum::<f64>() / 0.5;
            likeness.exp() / (likeness.exp() + 3.0 / 10.0)
        };
        let of = |i: usize| -> f64 {
            -h(i, i).ln() - (0..4).filter(|j| *j != i).map(|j| (1.0 - h(i, j)).ln()).sum::<f64>()
        };
        (0..4).map(of).sum::<f64>() / 4.0
    }

    // u = F.normalize(s, dim=1) @ F.normalize(t, dim=1).T / .5 - log(3 / 10)
    // F.binary_cross_entropy_with_logits(u, torch.eye(4), reduction="sum") / 4
    #[test]
    fn equals_pytorch() {
        check(|Fixture { s, t, .. }| crd(s, t, 0.5, 10), 4.632_692, 0.091_321_7, 0.083_732_4);
    }

    #[test]
    fn it_and_its_gradient_are_the_definition() {
        is_the_definition(|Fixture { s, t, .. }| crd(s, t, 0.5, 10), by_definition);
    }

    #[test]
    fn the_right_pairing_costs_least() {
        let (_, Fixture { t, .. }) = fixture();
        let turned = Tensor::cat(&[&t.narrow(0, 1, 3).unwrap(), &t.narrow(0, 0, 1).unwrap()], 0).unwrap();
        let loss = |student: &Tensor| crd(student, &t, 0.07, 100).unwrap().to_scalar::<f32>().unwrap();
        assert!(loss(&t) < loss(&turned));
    }
}
