//! What the losses of one step see beside the student's logits, and the linear maps that they see features through.
//!
//! It must not know which losses there are. Invariant: what a batch lacks is an error by its name, never a default.

use candle_core::{Result, Tensor, Var};

use super::Labels;
use crate::student::Head;

/// What the losses of one step see beside the student's logits.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    /// The teacher's recorded logits or log-probabilities `[n, C]`, where it gives them.
    pub(crate) teacher: Option<Tensor>,
    /// The teacher's classes `[n]`.
    pub(crate) labels: Tensor,
    /// The true classes `[n]`, where all are known.
    pub(crate) truth: Option<Tensor>,
    /// The weights of the classes, where a loss wants them.
    pub(crate) balance: Option<Balance>,
    /// The weights `[m, k]` of tuples, where the batch is one of tuples: n = m k.
    pub(crate) weights: Option<Tensor>,
    /// The shares `[n, C]` of classes drawn from the teacher's distribution, where a loss wants them.
    pub(crate) samples: Option<Tensor>,
    /// The teacher's last recorded hidden tensor `[n, r]`, where a loss wants it.
    pub(crate) hidden: Option<Tensor>,
    /// The student's features `[n, m]`, where a loss wants them.
    pub(crate) features: Option<Tensor>,
    /// The teacher's share in a target that moves from the student to it.
    pub(crate) share: f64,
    /// How many training answers there are in all.
    pub(crate) answers: usize,
}

/// The weight `[C]` of each class among the training answers.
#[derive(Debug, Clone)]
pub(crate) struct Balance {
    /// By the teacher's classes.
    pub(crate) teacher: Tensor,
    /// By the true ones, where all are known.
    pub(crate) truth: Option<Tensor>,
}

impl Batch {
    /// A batch of answers alone.
    pub(crate) fn of(teacher: Option<Tensor>, labels: Tensor) -> Self {
        Self {
            teacher,
            labels,
            truth: None,
            balance: None,
            weights: None,
            samples: None,
            hidden: None,
            features: None,
            share: 1.0,
            answers: 0,
        }
    }

    pub(super) fn classes(&self, of: Labels) -> Result<&Tensor> {
        match of {
            Labels::Teacher => Ok(&self.labels),
            Labels::Truth => self.truth.as_ref().ok_or_else(|| missing("truth")),
        }
    }

    pub(super) fn balance(&self, of: Labels) -> Result<&Tensor> {
        let balance = self.balance.as_ref().ok_or_else(|| missing("weights of classes"))?;
        match of {
            Labels::Teacher => Ok(&balance.teacher),
            Labels::Truth => balance.truth.as_ref().ok_or_else(|| missing("truth")),
        }
    }

    /// The student's features and the teacher's.
    pub(super) fn features(&self) -> Result<(&Tensor, &Tensor)> {
        self.features.as_ref().zip(self.hidden.as_ref()).ok_or_else(|| missing("features"))
    }

    pub(super) fn teacher(&self) -> Result<&Tensor> {
        self.teacher.as_ref().ok_or_else(|| missing("teacher's outputs"))
    }
}

/// The linear maps that one loss learns beside the student; they are thrown away with it.
#[derive(Debug, Clone)]
pub(crate) struct Maps {
    pub(super) features: Option<Head>,
    pub(super) hidden: Option<Head>,
}

impl Maps {
    /// Their variables, in order.
    pub(crate) fn vars(&self) -> impl Iterator<Item = Var> {
        self.features.iter().chain(&self.hidden).flat_map(Head::vars)
    }

    /// A batch with its features mapped.
    pub(super) fn through(&self, batch: &Batch) -> Result<Batch> {
        let mapped = |map: &Option<Head>, rows: &Option<Tensor>| match (map, rows) {
            (Some(map), Some(rows)) => map.forward(rows).map(Some),
            _ => Ok(rows.clone()),
        };
        let (features, hidden) =
            (mapped(&self.features, &batch.features)?, mapped(&self.hidden, &batch.hidden)?);
        Ok(Batch { features, hidden, ..batch.clone() })
    }
}

/// The refusal of a batch without something.
pub(super) fn missing(what: &str) -> candle_core::Error {
    candle_core::Error::Msg(format!("the batch holds no {what}, which the losses were checked for"))
}
