//! Progressive distillation: a student learns the outputs of earlier checkpoints of its teacher, one after the other, before
//! it learns the teacher's own.
//!
//! Source: Progressive distillation induces an implicit curriculum, arXiv 2410.05464 (ICLR 2025). Every checkpoint is a teacher
//! that is asked: where curriculum extraction buys one answer for each input, this buys one for each checkpoint.
//!
//! It must not know the loop. Invariant: its phases follow the order in which the checkpoints are named.

use candle_core::Device;
use serde::{Deserialize, Serialize};

use super::phase::{CHECKPOINT, Learns, Phase, PlanError, column};
use crate::example::Example;

/// The `[method.progressive]` table of a run file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProgressiveConfig {
    /// The most steps on each checkpoint.
    pub steps: usize,
    /// Looks (every `train.evaluate_every` steps) at a phase's mean loss without progress before it ends; 0: by steps alone.
    #[serde(default)]
    pub patience: usize,
}

/// Why there is nothing to progress through.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProgressiveError {
    /// No checkpoint was asked.
    #[error("`method.progressive` learns from earlier checkpoints of the teacher, and none was asked")]
    Nothing,
    /// A checkpoint of another number of classes.
    #[error("checkpoint `{name}` has {found} classes, and the teacher {expected}")]
    Classes {
        /// The checkpoint.
        name: String,
        /// Its classes.
        found: usize,
        /// The teacher's.
        expected: usize,
    },
    /// No steps.
    #[error("`method.progressive.steps` is 0; it must be 1 or more")]
    Steps,
}

/// A phase for each checkpoint among `signals`, in their order.
pub(crate) fn progressive(
    config: &ProgressiveConfig,
    signals: &[String],
    classes: usize,
    examples: &[Example],
    device: &Device,
) -> Result<Vec<Phase>, PlanError> {
    if config.steps == 0 {
        return Err(ProgressiveError::Steps.into());
    }
    let mut phases = Vec::new();
    for (place, signal) in signals.iter().enumerate() {
        let Some(name) = signal.strip_prefix(CHECKPOINT) else { continue };
        let found = examples.first().map_or(0, |example| example.hidden[place].len());
        if found != classes {
            let name = name.to_owned();
            return Err(ProgressiveError::Classes { name, found, expected: classes }.into());
        }
        let targets = column(examples, place, classes, device)?;
        phases.push(Phase::recorded(Learns::Outputs { targets }, config.steps, config.patience));
    }
    if phases.is_empty() { Err(ProgressiveError::Nothing.into()) } else { Ok(phases) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::Input;

    #[test]
    fn each_checkpoint_is_a_phase_in_its_order() {
        let example = |at: f32| Example {
            key: at.to_string(),
            input: Input::Vector(vec![at]),
            target: None,
            truth: None,
            hidden: vec![vec![at, 0.0], vec![9.0; 7], vec![0.0, at]],
        };
        let examples = [example(1.0), example(2.0)];
        let signals: Vec<String> =
            ["checkpoint.young", "relu1", "checkpoint.older"].map(str::to_owned).to_vec();
        let config = ProgressiveConfig { steps: 5, patience: 0 };
        let phases = progressive(&config, &signals, 2, &examples, &Device::Cpu).unwrap();
        let targets = phases.iter().map(|phase| match &phase.learns {
            Learns::Outputs { targets } => targets.to_vec2::<f32>().unwrap(),
            other => panic!("{other:?}"),
        });
        let targets: Vec<_> = targets.collect();
        assert_eq!(targets, [[vec![1.0, 0.0], vec![2.0, 0.0]], [vec![0.0, 1.0], vec![0.0, 2.0]]]);
        let refused = |signals: &[String], classes| {
            progressive(&config, signals, classes, &examples, &Device::Cpu).unwrap_err().to_string()
        };
        assert_eq!(refused(&signals, 3), "checkpoint `young` has 2 classes, and the teacher 3");
        assert_eq!(
            refused(&signals[1..2], 2),
            "`method.progressive` learns from earlier checkpoints of the teacher, and none was asked"
        );
    }
}
