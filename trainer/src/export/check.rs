//! The exported ONNX model in ONNX Runtime, held to the student's own outputs.
//!
//! It must not know how either was made. Invariant: both see the same inputs, and what comes back is the largest
//! difference there was, not a verdict that hides it.

use std::path::Path;

use tuition_ledger::{Elements, Tensor};

use super::{INPUT, Model, OUTPUT};
use crate::example::{Example, Input};
use crate::teacher::{self, ModelError, Runtime};
use crate::train::TrainError;

/// The largest difference between two logits that is put down to rounding, for logits of about one; larger logits may
/// differ in proportion.
pub const TOLERANCE: f32 = 1e-4;

/// Why an exported model was not found to be right.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The runtime will not load or run it.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The student itself cannot be loaded or run.
    #[error(transparent)]
    Student(#[from] TrainError),
    /// There is nothing to compare by.
    #[error("no input was given to compare the exported model by")]
    Empty,
    /// The outputs differ by more than rounding.
    #[error("the exported model differs from the student by {found} at `{key}`, more than {allowed}")]
    Differs {
        /// The example.
        key: String,
        /// The largest difference at it.
        found: f32,
        /// What would have been put down to rounding.
        allowed: f32,
    },
}

/// Runs `model.onnx` of a model folder on examples and compares each logit with the student's own.
///
/// Returns the largest difference.
///
/// # Errors
/// When either does not run, or a logit differs by more than [`TOLERANCE`] in proportion to the largest of its row.
pub fn check_export(runtime: &Runtime, folder: &Path, examples: &[&Example]) -> Result<f32, CheckError> {
    let first = examples.first().ok_or(CheckError::Empty)?;
    let own = Model::load(folder)?.logits(examples)?;
    let exported = teacher::Model::load(runtime, &folder.join("model.onnx"), 1)?;
    let elements = match first.input {
        Input::Vector(_) => {
            Elements::F32(examples.iter().flat_map(|example| floats(&example.input)).collect())
        }
        Input::Bytes(_) => {
            Elements::I32(examples.iter().flat_map(|example| symbols(&example.input)).collect())
        }
    };
    let shape = vec![examples.len(), first.input.width()];
    let outputs = exported.run(vec![Tensor { name: INPUT.into(), shape, elements }], &[OUTPUT])?;
    let theirs: Vec<f32> = match outputs.into_iter().next().map(|tensor| tensor.elements) {
        Some(Elements::F32(values)) => values,
        _ => vec![],
    };
    let classes = own[0].len();
    let mut largest = 0f32;
    for (at, (example, own)) in examples.iter().zip(&own).enumerate() {
        let theirs = theirs.get(at * classes..(at + 1) * classes).unwrap_or_default();
        // A missing or non-finite logit differs by everything.
        let gap = |index: usize| match theirs.get(index) {
            Some(value) if value.is_finite() => (value - own[index]).abs(),
            _ => f32::INFINITY,
        };
        let found = (0..classes).map(gap).fold(0.0, f32::max);
        let allowed = TOLERANCE * own.iter().map(|value| value.abs()).fold(1.0, f32::max);
        if found > allowed {
            return Err(CheckError::Differs { key: example.key.clone(), found, allowed });
        }
        largest = largest.max(found);
    }
    Ok(largest)
}

fn floats(input: &Input) -> Vec<f32> {
    match input {
        Input::Vector(values) => values.clone(),
        Input::Bytes(_) => vec![],
    }
}

fn symbols(input: &Input) -> Vec<i32> {
    match input {
        Input::Bytes(symbols) => symbols.iter().map(|symbol| i32::from(*symbol)).collect(),
        Input::Vector(_) => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::PADDING;
    use crate::export::save;
    use crate::installed::runtime;
    use crate::machine::Machine;
    use crate::student::{
        ByteConvConfig, CnnConfig, Mode, ResnetConfig, ResnetModel, Stage, Student, StudentConfig,
        TransformerConfig,
    };

    fn examples(make: impl Fn(usize) -> Input) -> Vec<Example> {
        (0..9)
            .map(|at| Example {
                key: format!("k{at}"),
                input: make(at),
                target: None,
                truth: None,
                hidden: vec![],
            })
            .collect()
    }

    /// Text, noise, padding at the end, in the middle, and nothing but padding.
    fn bytes(at: usize) -> Input {
        let symbol = |i: usize| match at {
            0..=2 => u16::from(b"fn main() { let x = 42; }\n"[(i + at) % 26]),
            3 => PADDING,
            4 if i > 20 => PADDING,
            5 if (10..50).contains(&i) => PADDING,
            _ => ((i * i * 31 + at * 7) % 256) as u16,
        };
        Input::Bytes((0..64).map(symbol).collect())
    }

    fn check(config: &StudentConfig, examples: &[Example], seed: u64) -> Result<f32, CheckError> {
        let folder = tempfile::tempdir().unwrap();
        let input = &examples[0].input;
        let student = config.build(input, 5, seed, &Machine::cpu()).unwrap();
        let classes: Vec<String> = (0..5).map(|class| class.to_string()).collect();
        save(folder.path(), &student, config, input, &classes, "a card").unwrap();
        check_export(&runtime(), folder.path(), &examples.iter().collect::<Vec<_>>())
    }

    #[test]
    fn onnx_runtime_gives_the_students_own_outputs() {
        let vectors =
            examples(|at| Input::Vector((0..6).map(|i| ((at * 7 + i) as f32).sin() * 3.0).collect()));
        for hidden in [vec![], vec![8], vec![8, 5]] {
            let gap = check(&StudentConfig::Mlp { hidden }, &vectors, 1).unwrap();
            assert!(gap < 1e-5, "{gap}");
        }
        let inputs = examples(bytes);
        let whole = ByteConvConfig { hidden: 8, channels: 4, stride: 2, ..ByteConvConfig::default() };
        let views = [
            whole.clone(),
            ByteConvConfig { channels: 0, ..whole.clone() },
            ByteConvConfig { buckets: 0, shapes: 0, ..whole.clone() },
            ByteConvConfig { channels: 0, ends: 0, shapes: 0, buckets: 37, ..whole },
        ];
        for sizes in views {
            let gap = check(&StudentConfig::ByteConv { sizes }, &inputs, 2).unwrap();
            assert!(gap < 1e-4, "{gap}");
        }
    }

    #[test]
    fn onnx_runtime_normalises_images_by_the_running_statistics() {
        let image = [2, 13, 11];
        let inputs = examples(|at| {
            let value = |i: usize| (((at * 7 + 1) * (i + 1)) as f32 * 0.734_211).sin() * 0.5 + 0.5;
            Input::Vector((0..image.iter().product()).map(value).collect())
        });
        let stages = [(6, 5, 2), (9, 4, 1), (16, 3, 2)].map(|(channels, kernel, stride)| Stage {
            channels,
            kernel,
            stride,
        });
        let cnn = |pool| CnnConfig { image, stages: stages.to_vec(), width: 1, pool };
        let resnet = |model| StudentConfig::Resnet(ResnetConfig { image, model });
        for config in [
            StudentConfig::Cnn(cnn(2)),
            StudentConfig::Cnn(cnn(1)),
            resnet(ResnetModel::Resnet8),
            resnet(ResnetModel::Wrn16x2),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let student = config.build(&inputs[0].input, 5, 3, &Machine::cpu()).unwrap();
            let borrowed: Vec<&Example> = inputs.iter().collect();
            // Statistics that are not the ones a student starts with.
            for _ in 0..20 {
                let seen = student.inputs(&borrowed).unwrap();
                student.forward(&seen, Mode::Training).unwrap();
            }
            let classes: Vec<String> = (0..5).map(|class| class.to_string()).collect();
            save(folder.path(), &student, &config, &inputs[0].input, &classes, "a card").unwrap();
            let loaded = Model::load(folder.path()).unwrap().logits(&borrowed).unwrap();
            assert_eq!(loaded, student.logits(&borrowed).unwrap(), "{}", config.name());
            let gap = check_export(&runtime(), folder.path(), &borrowed).unwrap();
            assert!(gap < 1e-4, "{}: {gap}", config.name());
        }
    }

    #[test]
    fn onnx_runtime_attends_to_what_the_student_attends_to() {
        let wave = |at: usize, i: usize| (((at * 7 + 1) * (i + 1)) as f32 * 0.734_211).sin();
        let vectors = examples(|at| Input::Vector((0..36).map(|i| wave(at, i)).collect()));
        let bytes = examples(|at| Input::Bytes((0..20).map(|i| ((at * 31 + i * i) % 257) as u16).collect()));
        let sizes = TransformerConfig {
            width: 12,
            heads: 3,
            layers: 3,
            feed_forward: 20,
            ..TransformerConfig::default()
        };
        for (sizes, inputs) in [
            (TransformerConfig { token: 4, ..sizes.clone() }, &vectors),
            (TransformerConfig { image: Some([1, 6, 6]), patch: 2, ..sizes.clone() }, &vectors),
            (sizes, &bytes),
        ] {
            let gap = check(&StudentConfig::Transformer(sizes), inputs, 4).unwrap();
            assert!(gap < 1e-4, "{gap}");
        }
    }

    #[test]
    fn an_export_of_another_student_is_found_out() {
        let vectors = examples(|at| Input::Vector(vec![at as f32, 1.0]));
        let config = StudentConfig::Mlp { hidden: vec![4] };
        let classes: Vec<String> = (0..3).map(|class| class.to_string()).collect();
        let save_seed = |folder: &Path, seed| {
            let student = config.build(&vectors[0].input, 3, seed, &Machine::cpu()).unwrap();
            save(folder, &student, &config, &vectors[0].input, &classes, "a card").unwrap();
        };
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        save_seed(one.path(), 1);
        save_seed(two.path(), 2);
        std::fs::copy(two.path().join("model.onnx"), one.path().join("model.onnx")).unwrap();
        let error = check_export(&runtime(), one.path(), &vectors.iter().collect::<Vec<_>>()).unwrap_err();
        assert!(matches!(&error, CheckError::Differs { key, .. } if key == "k0"), "{error}");
        assert!(matches!(check_export(&runtime(), one.path(), &[]), Err(CheckError::Empty)));
    }
}
