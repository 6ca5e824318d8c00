//! A trained student as files that other programs load: safetensors with its description, and ONNX.
//!
//! It must not know how the student was trained. Invariant: what `save` writes, `load` reads back bit for bit.

mod check;
mod image;
mod onnx;
mod transformer;

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::example::Input;
use crate::machine::Machine;
use crate::method::CurriculumError;
use crate::report::{make, pretty};
use crate::student::{Built, Mode, Student, StudentConfig};
use crate::train::{TrainError, replace};

pub use check::{CheckError, TOLERANCE, check_export};
pub(crate) use onnx::{INPUT, OUTPUT};

/// The content of a model folder's `config.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Description {
    model_type: String,
    student: StudentConfig,
    /// `vector` or `bytes`.
    input: String,
    /// Features or symbols of an input.
    width: usize,
    id2label: Vec<String>,
}

/// Writes `config.json`, `model.safetensors`, `model.onnx` and the card into a folder.
pub(crate) fn save(
    folder: &Path,
    student: &Built,
    config: &StudentConfig,
    input: &Input,
    classes: &[String],
    card: &str,
) -> Result<(), TrainError> {
    make(folder)?;
    let description = Description {
        model_type: "tuition-student".into(),
        student: config.clone(),
        input: input.kind().into(),
        width: input.width(),
        id2label: classes.to_vec(),
    };
    replace(&folder.join("config.json"), pretty(&description)?.as_bytes())?;
    replace(&folder.join("model.safetensors"), &weights(student)?)?;
    replace(&folder.join("model.onnx"), &onnx::model(student, input.width(), classes.len())?)?;
    replace(&folder.join("README.md"), card.as_bytes())
}

fn weights(student: &Built) -> Result<Vec<u8>, TrainError> {
    let wrong = |error: safetensors::SafeTensorError| TrainError::Export(error.to_string());
    let kept = student.parameters().kept();
    let bytes: Vec<(&str, &[usize], Vec<u8>)> = kept
        .map(|(name, var)| {
            let values = var.flatten_all()?.to_vec1::<f32>()?;
            Ok((name.as_str(), var.dims(), values.iter().flat_map(|value| value.to_le_bytes()).collect()))
        })
        .collect::<candle_core::Result<_>>()?;
    let views = bytes
        .iter()
        .map(|(name, dims, bytes)| {
            TensorView::new(Dtype::F32, dims.to_vec(), bytes).map(|view| (*name, view))
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(wrong)?;
    // Loaders of the usual libraries look for this key.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(metadata)).map_err(wrong)
}

/// A student read back from a model folder.
pub struct Model {
    student: Built,
    classes: Vec<String>,
}

impl Model {
    /// Reads `config.json` and `model.safetensors` of a folder.
    ///
    /// # Errors
    /// A file that cannot be read, or does not hold what the other one says.
    pub fn load(folder: &Path) -> Result<Self, TrainError> {
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read(&path).map_err(|source| TrainError::Io { path, source })
        };
        let wrong = |name: &str, reason: String| TrainError::Checkpoint { path: folder.join(name), reason };
        let description: Description = serde_json::from_slice(&read("config.json")?)
            .map_err(|error| wrong("config.json", error.to_string()))?;
        let input = match description.input.as_str() {
            "bytes" => Input::Bytes(vec![0; description.width]),
            _ => Input::Vector(vec![0.0; description.width]),
        };
        description.student.check(&input)?;
        let student = description.student.build(&input, description.id2label.len(), 0, &Machine::cpu())?;
        let bytes = read("model.safetensors")?;
        let wrong = |reason: String| wrong("model.safetensors", reason);
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| wrong(error.to_string()))?;
        for (name, var) in student.parameters().kept() {
            let view = tensors.tensor(name).map_err(|error| wrong(error.to_string()))?;
            if view.shape() != var.dims() || view.dtype() != Dtype::F32 {
                return Err(wrong(format!(
                    "`{name}` has shape {:?} instead of {:?}",
                    view.shape(),
                    var.dims()
                )));
            }
            let four = |four: &[u8]| f32::from_le_bytes([four[0], four[1], four[2], four[3]]);
            let values: Vec<f32> = view.data().chunks_exact(4).map(four).collect();
            var.set(&Tensor::from_vec(values, var.dims(), &Device::Cpu)?)?;
        }
        Ok(Self { student, classes: description.id2label })
    }

    /// The classes' names.
    #[must_use]
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The logits of examples, one row each.
    ///
    /// # Errors
    /// Inputs that are not of the student's kind.
    pub fn logits(&self, examples: &[&crate::example::Example]) -> Result<Vec<Vec<f32>>, TrainError> {
        Ok(self.student.logits(examples)?)
    }

    /// The numbers of hidden layer `layer`, from 0 on, for each example.
    ///
    /// # Errors
    /// Inputs that are not of the student's kind, or a layer that it does not have.
    pub fn hidden(
        &self,
        examples: &[&crate::example::Example],
        layer: usize,
    ) -> Result<Vec<Vec<f32>>, TrainError> {
        if layer >= self.student.depth() {
            return Err(CurriculumError::Layer { layer: layer + 1, layers: self.student.depth() }.into());
        }
        let inputs = self.student.inputs(examples)?;
        Ok(self.student.hidden(&inputs, layer, Mode::Inference)?.to_vec2::<f32>()?)
    }
}
