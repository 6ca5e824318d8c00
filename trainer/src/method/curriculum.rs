//! Curriculum extraction: before it learns the teacher's outputs, a student learns random projections of the teacher's
//! hidden layers, one after the other, from the input on.
//!
//! Source: Efficient Knowledge Distillation via Curriculum Extraction, arXiv 2503.17494. The paper's code is not published;
//! what stands here is a reconstruction: student layer l learns teacher layer tau(l) (evenly spread, or as the run file
//! says), whose projection P^T h was recorded with the answer; its target t is that, standardised over the training examples;
//! the loss of a phase is the mean square of R h_S + c - t, where R and c are a linear head that is thrown away after the
//! phase, or R = 1 and c = 0 ("direct") where both have as many numbers. Only layers up to l get a gradient.
//!
//! It must not know the loop. Invariant: a plan's phases name layers that the student has and targets that the answers
//! hold.

use candle_core::{Device, Result, Tensor};
use serde::{Deserialize, Serialize};

use super::phase::{CHECKPOINT, Learns, Phase, PlanError, column};
use crate::example::Example;
use crate::nearest::nearest;

/// How a student's layer is held against its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Match {
    /// Through a linear head that is thrown away afterwards.
    #[default]
    Head,
    /// As it is.
    Direct,
}

/// A student's layer and the hidden tensor that it learns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerPair {
    /// The student's layer, from 1 on.
    pub student: usize,
    /// The teacher's tensor, by its recorded name.
    pub teacher: String,
}

/// The `[method.curriculum]` table of a run file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CurriculumConfig {
    /// The most steps of each phase.
    pub steps: usize,
    /// Looks (every `train.evaluate_every` steps) at a phase's mean loss without progress before it ends; 0: by steps alone.
    #[serde(default)]
    pub patience: usize,
    /// With a head or direct.
    #[serde(default, rename = "match")]
    pub form: Match,
    /// The phases in order; none: every layer of the student, evenly spread over the recorded tensors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerPair>,
}

/// Why a curriculum cannot be followed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CurriculumError {
    /// The answers hold no hidden tensors.
    #[error("a curriculum learns the teacher's hidden tensors, and its answers hold none")]
    Nothing,
    /// The student has no hidden layers.
    #[error("student `{student}` has no hidden layers that a curriculum could teach")]
    NoLayers {
        /// The student's kind.
        student: &'static str,
    },
    /// A layer that the student does not have.
    #[error("`method.curriculum.layers` names layer {layer} of the student, which has layers 1 to {layers}")]
    Layer {
        /// The layer.
        layer: usize,
        /// How many it has.
        layers: usize,
    },
    /// A tensor that the answers do not hold.
    #[error("`method.curriculum.layers` names the hidden tensor `{name}`{hint}; the answers hold {known}")]
    Tensor {
        /// The name.
        name: String,
        /// The nearest one, as words.
        hint: String,
        /// Those that they hold.
        known: String,
    },
    /// Two sizes that do not fit without a head.
    #[error(
        "layer {layer} of the student has {has} numbers and `{teacher}` was recorded as {recorded}: `match = \"direct\"` needs as many; `match = \"head\"` does not"
    )]
    Direct {
        /// The student's layer.
        layer: usize,
        /// Its numbers.
        has: usize,
        /// The tensor.
        teacher: String,
        /// The numbers recorded of it.
        recorded: usize,
    },
    /// No steps.
    #[error("`method.curriculum.steps` is 0; it must be 1 or more")]
    Steps,
}

/// The phases of a curriculum for a student whose layers have `widths` numbers, out of the hidden tensors among `signals`.
pub(crate) fn extraction(
    config: &CurriculumConfig,
    student: &'static str,
    widths: &[usize],
    signals: &[String],
    examples: &[Example],
    device: &Device,
) -> std::result::Result<Vec<Phase>, PlanError> {
    let places: Vec<usize> =
        (0..signals.len()).filter(|place| !signals[*place].starts_with(CHECKPOINT)).collect();
    let tensors: Vec<String> = places.iter().map(|place| signals[*place].clone()).collect();
    let mut phases = Vec::new();
    for (layer, tensor) in pairs(config, student, widths.len(), &tensors)? {
        let recorded = examples.first().map_or(0, |example| example.hidden[places[tensor]].len());
        if config.form == Match::Direct && recorded != widths[layer] {
            let (layer, has, teacher) = (layer + 1, widths[layer], tensors[tensor].clone());
            return Err(CurriculumError::Direct { layer, has, teacher, recorded }.into());
        }
        let targets = standardised(&column(examples, places[tensor], recorded, device)?)?;
        let learns = Learns::Layer { layer, head: config.form == Match::Head, targets };
        phases.push(Phase::recorded(learns, config.steps, config.patience));
    }
    Ok(phases)
}

/// The student's layer and the place of the tensor, both from 0 on, phase by phase.
fn pairs(
    config: &CurriculumConfig,
    student: &'static str,
    layers: usize,
    tensors: &[String],
) -> std::result::Result<Vec<(usize, usize)>, CurriculumError> {
    if config.steps == 0 {
        return Err(CurriculumError::Steps);
    }
    if tensors.is_empty() {
        return Err(CurriculumError::Nothing);
    }
    if layers == 0 {
        return Err(CurriculumError::NoLayers { student });
    }
    if config.layers.is_empty() {
        // tau(l) = ceil(l T / L) - 1: the last layer learns the last tensor.
        return Ok((0..layers)
            .map(|layer| (layer, ((layer + 1) * tensors.len()).div_ceil(layers) - 1))
            .collect());
    }
    let pair = |LayerPair { student, teacher }: &LayerPair| {
        let layer = *student;
        if !(1..=layers).contains(&layer) {
            return Err(CurriculumError::Layer { layer, layers });
        }
        let tensor = tensors.iter().position(|name| name == teacher).ok_or_else(|| {
            let hint = nearest(teacher, tensors.iter().map(String::as_str))
                .map(|near| format!(" (did you mean `{near}`?)"));
            let known: Vec<String> = tensors.iter().map(|name| format!("`{name}`")).collect();
            let (name, hint) = (teacher.clone(), hint.unwrap_or_default());
            CurriculumError::Tensor { name, hint, known: known.join(", ") }
        })?;
        Ok((layer - 1, tensor))
    };
    config.layers.iter().map(pair).collect()
}

/// Each column with mean 0 and variance 1; a column that never changes becomes 0.
fn standardised(all: &Tensor) -> Result<Tensor> {
    /// Below it, a column is taken not to change.
    const LEAST_DEVIATION: f64 = 1e-6;
    let centred = all.broadcast_sub(&all.mean_keepdim(0)?)?;
    let deviation = centred.sqr()?.mean_keepdim(0)?.sqrt()?;
    centred.broadcast_div(&deviation.maximum(LEAST_DEVIATION)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> CurriculumConfig {
        toml::from_str(text).unwrap()
    }

    fn tensors(count: usize) -> Vec<String> {
        (1..=count).map(|at| format!("relu{at}")).collect()
    }

    #[test]
    fn layers_are_spread_evenly_or_as_the_run_file_says() {
        let even = |layers, count| pairs(&config("steps = 5"), "mlp", layers, &tensors(count)).unwrap();
        assert_eq!(even(2, 2), [(0, 0), (1, 1)]);
        assert_eq!(even(2, 4), [(0, 1), (1, 3)]);
        assert_eq!(even(3, 1), [(0, 0), (1, 0), (2, 0)]);
        let said = config("steps = 5\nlayers = [{ student = 2, teacher = 'relu1' }]");
        assert_eq!(pairs(&said, "mlp", 2, &tensors(3)).unwrap(), [(1, 0)]);
    }

    #[test]
    fn what_cannot_be_followed_is_named() {
        let refused = |text: &str, layers, count| {
            pairs(&config(text), "mlp", layers, &tensors(count)).expect_err(text).to_string()
        };
        assert_eq!(refused("steps = 0", 1, 1), "`method.curriculum.steps` is 0; it must be 1 or more");
        assert_eq!(
            refused("steps = 5", 1, 0),
            "a curriculum learns the teacher's hidden tensors, and its answers hold none"
        );
        assert_eq!(
            refused("steps = 5", 0, 1),
            "student `mlp` has no hidden layers that a curriculum could teach"
        );
        assert_eq!(
            refused("steps = 5\nlayers = [{ student = 3, teacher = 'relu1' }]", 2, 1),
            "`method.curriculum.layers` names layer 3 of the student, which has layers 1 to 2"
        );
        assert_eq!(
            refused("steps = 5\nlayers = [{ student = 1, teacher = 'relu9' }]", 2, 1),
            "`method.curriculum.layers` names the hidden tensor `relu9` (did you mean `relu1`?); the answers hold `relu1`"
        );
    }

    #[test]
    fn targets_have_mean_nought_and_variance_one() {
        let values = Tensor::new(&[[1f32, 7.0], [3.0, 7.0], [8.0, 7.0]], &Device::Cpu).unwrap();
        let rows = standardised(&values).unwrap().to_vec2::<f32>().unwrap();
        let first: Vec<f32> = rows.iter().map(|row| row[0]).collect();
        assert!(first.iter().sum::<f32>().abs() < 1e-6);
        assert!((first.iter().map(|value| value * value).sum::<f32>() - 3.0).abs() < 1e-5);
        assert!(rows.iter().all(|row| row[1] == 0.0), "a constant says nothing");
    }
}
