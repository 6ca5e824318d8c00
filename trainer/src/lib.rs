//! Students from bought answers: what was recorded becomes examples, comparisons, a trained student and a report.
//!
//! This crate must not know HTTP, command lines, clocks or the environment; it prints nothing. The modules below
//! stand in the order in which data flows; each uses only those above it.

mod range;
mod nearest;
mod normal;
mod processor;
mod example;
#[cfg(test)]
mod installed;
pub mod port;
pub mod hidden;
pub mod teacher;
pub mod form;
pub mod question;
pub mod local;
pub mod data;
mod space;
pub mod acquire;
pub mod baseline;
mod compare;
pub mod ops;
mod machine;
mod student;
mod augment;
mod loss;
mod method;
mod optimizer;
mod train;
mod selection;
mod generator;
mod explore;
mod evaluate;
pub mod html;
pub mod plot;
mod report;
mod export;
mod run;

pub use augment::Augment;
pub use compare::Combine;
pub use evaluate::{Measure, Measures};
pub use example::{Example, Input, PADDING, Signal, Split, SplitError, Target};
pub use explore::{ExploreConfig, ExploreError, ExploreKind, Explored, Explorer, Fit};
pub use export::{CheckError, Model, TOLERANCE, check_export};
pub use generator::{AutoencoderConfig, GeneratorConfig, GeneratorError, OnnxConfig, PcaConfig};
pub use loss::{
    CkdLoss, Compared, CrdLoss, DistLoss, DkdLoss, FitnetLoss, Form, KdLoss, Labels, LabelsLoss,
    LogitMseLoss, LossConfig, LossError, RankingLoss, RkdLoss, SampledLoss, SpLoss, TaidLoss, TopKLoss,
    Tuples, check_losses,
};
pub use machine::{BUILT_WITH_CUDA, MachineError};
pub use method::{
    By, CHECKPOINT, ConsistencyConfig, ConsistencyError, ConsistencyForm, CurriculumConfig, CurriculumError,
    LayerPair, Match, MethodConfig, ProgressiveConfig, ProgressiveError, ProxyConfig, ProxyError,
    WarmUpConfig, WarmUpError, WarmUpKind,
};
pub use nearest::nearest;
pub use ops::Precision;
pub use optimizer::{Rule, Schedule};
pub use processor::Processor;
pub use range::OutOfRange;
pub use report::{Report, Row, Spend};
pub use run::{
    BudgetConfig, ConfigError, DataConfig, Outcome, RunConfig, Source, TeacherConfig, TestPart, check_fit,
    score_seeds, train_run,
};
pub use selection::{AcquireConfig, First, Pick, Policy, Scorer, Selector, first, rounds};
pub use student::{
    ByteConvConfig, CnnConfig, ResnetConfig, ResnetModel, Stage, StudentConfig, StudentError,
    TransformerConfig,
};
pub use train::{Control, MetricRow, Progress, TrainConfig, TrainError, parse_seeds};
