//! Why a student was not trained, by name.
//!
//! It must not know the loop.

use std::path::PathBuf;

use crate::example::SplitError;
use crate::loss::LossError;
use crate::machine::MachineError;
use crate::method::{
    ConsistencyError, CurriculumError, PlanError, ProgressiveError, ProxyError, WarmUpError,
};
use crate::range::OutOfRange;
use crate::student::StudentError;

/// Why a student was not trained.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The data set cannot be used.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// The losses cannot be used.
    #[error(transparent)]
    Loss(#[from] LossError),
    /// The curriculum cannot be followed.
    #[error(transparent)]
    Curriculum(#[from] CurriculumError),
    /// The checkpoints cannot be followed.
    #[error(transparent)]
    Progressive(#[from] ProgressiveError),
    /// There is no warm-up.
    #[error(transparent)]
    WarmUp(#[from] WarmUpError),
    /// There is no proxy teacher.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// Nothing can be consistent.
    #[error(transparent)]
    Consistency(#[from] ConsistencyError),
    /// The student cannot be used.
    #[error(transparent)]
    Student(#[from] StudentError),
    /// There is no such device.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A number out of its range.
    #[error(transparent)]
    Range(#[from] OutOfRange),
    /// Mixup where nothing can be mixed.
    #[error(
        "`mixup` needs inputs of numbers (`cutmix` images) and losses of single examples, and only one of them can be; student `{student}` with these losses has not all of that"
    )]
    Mixup {
        /// The student's kind.
        student: &'static str,
    },
    /// Augmentation where there are no images.
    #[error("`train.augment` changes images; student `{student}` takes none")]
    Augment {
        /// The student's kind.
        student: &'static str,
    },
    /// The loss left the numbers.
    #[error("the loss of seed {seed} is {loss} at step {step}; try a lower `train.lr` or `train.clip`")]
    Diverged {
        /// The seed.
        seed: u64,
        /// The step.
        step: usize,
        /// The loss.
        loss: f32,
    },
    /// A checkpoint that cannot be read or written.
    #[error("checkpoint `{}`: {reason}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A checkpoint that belongs to other settings or data.
    #[error("checkpoint `{}` belongs to a run with other settings or data", path.display())]
    OtherRun {
        /// The file.
        path: PathBuf,
    },
    /// A file that cannot be read or written.
    #[error("cannot use `{}`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The exported model.
    #[error("cannot export the student: {0}")]
    Export(String),
    /// An operation on tensors.
    #[error("a tensor operation failed")]
    Tensor(#[from] candle_core::Error),
}

impl From<PlanError> for TrainError {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Curriculum(error) => error.into(),
            PlanError::Progressive(error) => error.into(),
            PlanError::WarmUp(error) => error.into(),
            PlanError::Tensor(error) => error.into(),
        }
    }
}
