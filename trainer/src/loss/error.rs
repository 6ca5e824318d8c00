//! Why losses cannot be used, by name, and the judge of their numbers.

use crate::example::Signal;

/// Why a list of losses cannot be used.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum LossError {
    /// There is nothing to learn from.
    #[error("`method.losses` is empty")]
    None,
    /// The teacher's answers do not hold what a loss needs.
    #[error("loss `{loss}` needs {needs}, but the teacher gives {gives}")]
    Signal {
        /// The loss.
        loss: &'static str,
        /// What it needs.
        needs: Signal,
        /// What the teacher gives.
        gives: Signal,
    },
    /// True classes are asked for, and an example has none.
    #[error("loss `{loss}` needs the truth (`of = \"truth\"`), but `{key}` has none")]
    Truth {
        /// The loss.
        loss: &'static str,
        /// The first example without truth.
        key: String,
    },
    /// A number out of its range.
    #[error("`{field}` of loss `{loss}` is {value}; it must be {range}")]
    Range {
        /// The loss.
        loss: &'static str,
        /// The field.
        field: &'static str,
        /// What it holds.
        value: f64,
        /// What it may hold.
        range: &'static str,
    },
    /// Two comparative losses that look at different tuples.
    #[error("the `ckd` losses of one run must share `positives`, `negatives`, `combine` and `tuples`")]
    Tuples,
    /// Features are compared, and the answers hold none.
    #[error("loss `{loss}` compares the teacher's hidden tensors, and its answers hold none")]
    Hidden {
        /// The loss.
        loss: &'static str,
    },
    /// Features alone are learnt.
    #[error("loss `{loss}` teaches the student's features alone: add one that teaches its outputs")]
    Outputs {
        /// The loss.
        loss: &'static str,
    },
    /// Features are compared in a form that is made for outputs.
    #[error(
        "`on = \"features\"` compares differences of features: with `form = \"mse\"` and without `w_cls`"
    )]
    Features,
    /// Two losses of a kind whose state a run holds once.
    #[error("a run has at most one loss `{loss}`")]
    Twice {
        /// The loss.
        loss: &'static str,
    },
    /// A comparison that has no closed form.
    #[error(
        "`tuples = \"all\"` has a closed form for `form = \"mse\"` with `combine` other than \"mixup\" only"
    )]
    ClosedForm,
    /// Fewer examples than one tuple holds.
    #[error("a tuple of loss `ckd` takes {needs} examples, but there are {have}")]
    TooFew {
        /// The size of a tuple.
        needs: usize,
        /// How many examples there are.
        have: usize,
    },
}

/// Judges the numbers of one loss.
#[derive(Clone, Copy)]
pub(crate) struct Judge {
    pub(super) loss: &'static str,
}

impl Judge {
    /// A number above 0.
    pub(crate) fn positive(self, field: &'static str, value: f64) -> Result<(), LossError> {
        self.within(field, value, value > 0.0, "above 0")
    }

    /// A number that is not below 0.
    pub(crate) fn not_negative(self, field: &'static str, value: f64) -> Result<(), LossError> {
        self.within(field, value, value >= 0.0, "0 or more")
    }

    pub(super) fn within(
        self,
        field: &'static str,
        value: f64,
        fine: bool,
        range: &'static str,
    ) -> Result<(), LossError> {
        if fine && value.is_finite() {
            return Ok(());
        }
        Err(LossError::Range { loss: self.loss, field, value, range })
    }
}
