//! Decoupled distillation: KL on whether it is the labelled class, and KL among the other classes, weighed apart.
//! Source: Zhao et al., "Decoupled Knowledge Distillation", arXiv 2203.08679, and its released code (alpha 1, beta 8, T 4).

use candle_core::{Result, Tensor};
use candle_nn::ops::log_softmax;
use serde::{Deserialize, Serialize};

use super::{Batch, Judge, Labels, Loss, LossError, four, one, one_hot};
use crate::example::Signal;

/// Takes the labelled class out of a softmax, as in the released code.
const AWAY: f64 = 1000.0;

/// The settings of the loss `dkd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DkdLoss {
    /// The weight in the sum.
    #[serde(default = "one")]
    pub weight: f64,
    /// Divides both sides' logits.
    #[serde(default = "four")]
    pub temperature: f64,
    /// The weight of the labelled class against the rest.
    #[serde(default = "one")]
    pub alpha: f64,
    /// The weight of the rest among themselves.
    #[serde(default = "eight")]
    pub beta: f64,
    /// Whose class is the labelled one.
    #[serde(default)]
    pub of: Labels,
}

fn eight() -> f64 {
    8.0
}

impl Loss for DkdLoss {
    fn weight(&self) -> f64 {
        self.weight
    }

    fn needs(&self) -> Signal {
        Signal::LogProbabilities
    }

    fn check(&self, judge: Judge) -> std::result::Result<(), LossError> {
        judge.positive("temperature", self.temperature)?;
        judge.not_negative("alpha", self.alpha)?;
        judge.not_negative("beta", self.beta)?;
        judge.positive("alpha + beta", self.alpha + self.beta)
    }

    fn asks_truth(&self) -> bool {
        self.of == Labels::Truth
    }

    fn evaluate(&self, logits: &Tensor, batch: &Batch) -> Result<Tensor> {
        let hot = one_hot(batch.classes(self.of)?, logits.dim(1)?)?;
        let (labelled, rest) = dkd(logits, batch.teacher()?, &hot, self.temperature)?;
        (labelled * self.alpha)? + (rest * self.beta)?
    }
}

/// T^2 times both KL divergences, means over rows; `hot` marks the labelled class of each row, `[n, C]`.
fn dkd(student: &Tensor, teacher: &Tensor, hot: &Tensor, temperature: f64) -> Result<(Tensor, Tensor)> {
    let square = temperature * temperature;
    let (student, teacher) = ((student / temperature)?, (teacher / temperature)?);
    let away = (hot * AWAY)?;
    let (log_student, log_teacher) = (log_softmax(&student, 1)?, log_softmax(&teacher, 1)?);
    let rest_of = |logits: &Tensor| log_softmax(&(logits - &away)?, 1);
    let (student_rest, teacher_rest) = (rest_of(&student)?, rest_of(&teacher)?);
    let divergence = |log_p: &Tensor, log_q: &Tensor| (log_p.exp()? * (log_p - log_q)?)?.sum(1);
    // log P of the labelled class, and of all the others: log p_j - log p_j given that it is another, for any other j.
    let parts = |log: &Tensor, rest: &Tensor| -> Result<Tensor> {
        let labelled = (log * hot)?.sum_keepdim(1)?;
        let others = ((log - rest)? * (1.0 - hot)?)?.sum_keepdim(1)?;
        let count = hot.dim(1)?.saturating_sub(1).max(1) as f64;
        Tensor::cat(&[labelled, (others / count)?], 1)
    };
    let labelled = divergence(&parts(&log_teacher, &teacher_rest)?, &parts(&log_student, &student_rest)?)?;
    let rest = divergence(&teacher_rest, &student_rest)?;
    Ok(((labelled.mean_all()? * square)?, (rest.mean_all()? * square)?))
}

#[cfg(test)]
mod tests {
    use crate::loss::tests::{Fixture, check};

    // The released code: gt marks y; cat(p) = [(p * gt).sum(1), (p * ~gt).sum(1)]; ps, pt = F.softmax(s/4, 1), F.softmax(t/4, 1)
    // kl = lambda a, b: F.kl_div(a, b, reduction='sum') * 16 / 4
    // kl(torch.log(cat(ps)), cat(pt)) + 8 * kl(F.log_softmax(s/4 - 1000*gt, 1), F.softmax(t/4 - 1000*gt, 1))
    // # 4.2535362; gradient [0,0] -0.1280412, [3,1] -0.2041296
    #[test]
    fn equals_pytorch() {
        let both = |Fixture { s, t, hot, .. }: &Fixture| {
            let (labelled, rest) = super::dkd(s, t, hot, 4.0)?;
            labelled + (rest * 8.0)?
        };
        check(both, 4.253_536, -0.128_041_2, -0.204_129_6);
    }
}
