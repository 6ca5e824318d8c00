//! Similarity-preserving distillation: inputs that are alike to the teacher shall be alike to the student.
//!
//! With features A of a batch, one row an input, G = A A^T with each row scaled to length 1; the loss is
//! ||G_student - G_teacher||^2 / b^2. The student's features are those that its last linear layer sees; the teacher's are a
//! recorded hidden tensor, whose projection keeps inner products in expectation (Johnson and Lindenstrauss). Source: arXiv
//! 1907.09682.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use super::{Batch, Loss, one};
use crate::example::Signal;

/// The settings of the loss `sp`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpLoss {
    /// The weight in the sum; its authors': 3000.
    #[serde(default = "one")]
    pub weight: f64,
}

impl Loss for SpLoss {
    fn weight(&self) -> f64 {
        self.weight
    }

    fn needs(&self) -> Signal {
        Signal::Label
    }

    fn compares_features(&self) -> bool {
        true
    }

    fn evaluate(&self, _logits: &Tensor, batch: &Batch) -> Result<Tensor> {
        let (student, teacher) = batch.features()?;
        similar(student, teacher)
    }
}

/// The mean square of the differences between the scaled similarities of `[b, m]` and `[b, r]`.
fn similar(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let scaled = |rows: &Tensor| {
        let all = rows.matmul(&rows.t()?.contiguous()?)?;
        // A row without any length stays without.
        let lengths = (all.sqr()?.sum_keepdim(1)? + 1e-24)?.sqrt()?;
        all.broadcast_div(&lengths)
    };
    (scaled(student)? - scaled(teacher)?)?.sqr()?.mean_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::tests::{Fixture, check, fixture, is_the_definition};

    /// The definition in f64.
    fn by_definition(student: &[Vec<f64>], teacher: &[Vec<f64>]) -> f64 {
        let scaled = |rows: &[Vec<f64>]| -> Vec<Vec<f64>> {
            let dot = |one: &Vec<f64>, two: &Vec<f64>| one.iter().zip(two).map(|(a, b)| a * b).sum::<f64>();
            rows.iter()
                .map(|one| {
                    let row: Vec<f64> = rows.iter().map(|two| dot(one, two)).collect();
                    let length = row.iter().map(|value| value * value).sum::<f64>().sqrt();
                    row.into_iter().map(|value| value / length).collect()
                })
                .collect()
        };
        let (one, two) = (scaled(student).concat(), scaled(teacher).concat());
        one.iter().zip(&two).map(|(a, b)| (a - b).powi(2)).sum::<f64>() / one.len() as f64
    }

    // F.mse_loss(F.normalize(s @ s.T, dim=1), F.normalize(t @ t.T, dim=1))
    #[test]
    fn equals_pytorch() {
        check(|Fixture { s, t, .. }| similar(s, t), 0.090_251_8, 0.019_162_5, 0.000_678_1);
    }

    #[test]
    fn it_and_its_gradient_are_the_definition() {
        is_the_definition(|Fixture { s, t, .. }| similar(s, t), by_definition);
    }

    #[test]
    fn what_is_turned_and_stretched_is_as_similar_as_before() {
        let (_, Fixture { t, .. }) = fixture();
        let turn = Tensor::new(&[[0f32, -3.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 3.0]], t.device()).unwrap();
        let loss = similar(&t.matmul(&turn).unwrap(), &t).unwrap().to_scalar::<f32>().unwrap();
        assert!(loss < 1e-10, "{loss}");
    }
}
