//! KL over the teacher's k most probable classes and, as one class more, the mass of all others: what can be learnt from an API
//! that gives top-k log-probabilities.
//!
//! With P and Q the teacher's and the student's mass on the top-k set T, sum over T of p log(p / q), plus
//! (1 - P) log((1 - P) / (1 - Q)). Without the last term it could be negative, and a student could win by moving mass to T.

use candle_core::{Result, Tensor};
use candle_nn::ops::log_softmax;
use serde::{Deserialize, Serialize};

use super::{Batch, Judge, Loss, LossError, one};
use crate::example::Signal;

/// The least mass of the other classes that a logarithm is taken of.
const LEAST_MASS: f64 = 1e-12;

/// The settings of the loss `top-k`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopKLoss {
    /// The weight in the sum.
    #[serde(default = "one")]
    pub weight: f64,
    /// How many classes count one by one.
    pub k: usize,
}

impl Loss for TopKLoss {
    fn weight(&self) -> f64 {
        self.weight
    }

    fn needs(&self) -> Signal {
        Signal::LogProbabilities
    }

    fn check(&self, judge: Judge) -> std::result::Result<(), LossError> {
        judge.positive("k", self.k as f64)
    }

    fn evaluate(&self, logits: &Tensor, batch: &Batch) -> Result<Tensor> {
        top_k(logits, batch.teacher()?, self.k)
    }
}

/// The (k+1)-way KL, the mean over rows; all classes where there are no more than k.
fn top_k(student: &Tensor, teacher: &Tensor, k: usize) -> Result<Tensor> {
    let classes = teacher.dim(1)?;
    let k = k.min(classes);
    let (student, teacher) = (log_softmax(student, 1)?, log_softmax(teacher, 1)?);
    let order = teacher.arg_sort_last_dim(false)?;
    let part =
        |log: &Tensor, from: usize, count: usize| log.gather(&order.narrow(1, from, count)?.contiguous()?, 1);
    let (p, q) = (part(&teacher, 0, k)?, part(&student, 0, k)?);
    let listed = (p.exp()? * (&p - &q)?)?.sum(1)?;
    if k == classes {
        return listed.mean_all();
    }
    // The others' mass as their sum: 1 - Q would lose what is small.
    let mass = |log: &Tensor| part(log, k, classes - k)?.exp()?.sum(1)?.maximum(LEAST_MASS);
    let (p, q) = (mass(&teacher)?, mass(&student)?);
    (listed + (&p * (p.log()? - q.log()?)?)?)?.mean_all()
}

#[cfg(test)]
mod tests {
    use crate::loss::tests::{Fixture, check};

    // p, q = F.softmax(t, 1), F.softmax(s, 1); i = p.topk(k, 1).indices; P, Q = p.gather(1, i), q.gather(1, i)
    // ((P * (P / Q).log()).sum(1) + (1 - P.sum(1)) * ((1 - P.sum(1)) / (1 - Q.sum(1))).log()).mean()
    // # k = 2: 0.1650432; k = 1: 0.0960263; gradient [0,0] -0.0797406, [3,1] 0.0198074 for both
    #[test]
    fn equals_pytorch() {
        check(|Fixture { s, t, .. }| super::top_k(s, t, 2), 0.165_043_2, -0.079_740_6, 0.019_807_4);
        check(|Fixture { s, t, .. }| super::top_k(s, t, 1), 0.096_026_3, -0.079_740_6, 0.019_807_4);
    }

    #[test]
    fn all_classes_are_plain_kl() {
        let all = |Fixture { s, t, .. }: &Fixture| super::top_k(s, t, 9)? - crate::loss::kd(s, t, 1.0)?;
        check(all, 0.0, 0.0, 0.0);
    }
}
