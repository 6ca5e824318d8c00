//! Why a local model cannot be loaded or asked, by name.
//!
//! It must not know the runtime.

use std::path::PathBuf;

use super::{MAX_BATCH_VALUES, MAX_MODEL_BYTES};
use crate::hidden::HiddenError;
use crate::nearest::nearest;

/// Why a local model cannot be loaded or asked.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The runtime's library is missing, broken or too old.
    #[error("ONNX Runtime does not load from `{path}`: {reason}")]
    Runtime {
        /// Where it was looked for.
        path: PathBuf,
        /// What the loader said.
        reason: String,
    },
    /// The process already runs another library.
    #[error("ONNX Runtime is already loaded from `{loaded}`, so `{path}` cannot be")]
    OtherRuntime {
        /// The library in use.
        loaded: PathBuf,
        /// The library asked for.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("the model `{path}` cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is larger than any ONNX file can be.
    #[error("the model `{path}` has {bytes} bytes, more than the {MAX_MODEL_BYTES} of the largest ONNX file")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The bytes are something else.
    #[error("`{path}` is not an ONNX model: {reason}")]
    NotOnnx {
        /// The file.
        path: PathBuf,
        /// What the runtime said.
        reason: String,
    },
    /// An ONNX file that this runtime cannot run.
    #[error("ONNX Runtime cannot run the model `{path}`: {reason}")]
    Refused {
        /// The file.
        path: PathBuf,
        /// What the runtime said.
        reason: String,
    },
    /// A tensor name that the model does not have.
    #[error("the model has no {direction} `{name}`{hint}; it has {known}", known = listed(known), hint = hint(name, known))]
    Name {
        /// `input` or `output`.
        direction: &'static str,
        /// The name asked for.
        name: String,
        /// The names that it has.
        known: Vec<String>,
    },
    /// An input that was not given.
    #[error("the input `{name}` is missing")]
    Missing {
        /// The input.
        name: String,
    },
    /// An input given twice.
    #[error("the input `{name}` is given twice")]
    Twice {
        /// The input.
        name: String,
    },
    /// An input of another element type.
    #[error("the input `{name}` is {found}, but the model takes {expected}")]
    Type {
        /// The input.
        name: String,
        /// The type given.
        found: String,
        /// The type that the model states.
        expected: String,
    },
    /// An input of another shape.
    #[error("the input `{name}` has shape {found:?}, but the model takes {expected}")]
    Shape {
        /// The input.
        name: String,
        /// The shape given.
        found: Vec<usize>,
        /// The shape that the model states.
        expected: String,
    },
    /// A shape and a number of values that contradict each other.
    #[error("the input `{name}` has {values} values, but its shape {shape:?} has room for {room}")]
    Count {
        /// The input.
        name: String,
        /// How many values there are.
        values: usize,
        /// The shape given.
        shape: Vec<usize>,
        /// The product of the shape.
        room: usize,
    },
    /// Hidden tensors that the model does not have.
    #[error("the hidden tensors of the model `{path}` cannot be recorded")]
    Hidden {
        /// The model.
        path: PathBuf,
        /// Why.
        #[source]
        source: HiddenError,
    },
    /// A hidden tensor that is no row of numbers.
    #[error("the hidden tensor `{name}` is {found}, but only tensors of f32 are projected")]
    HiddenType {
        /// The tensor.
        name: String,
        /// What it is.
        found: String,
    },
    /// More values than one run takes.
    #[error("one run takes at most {MAX_BATCH_VALUES} values, but {values} were given")]
    Batch {
        /// How many values there were.
        values: usize,
    },
    /// An output that is no tensor of numbers.
    #[error(
        "the output `{name}` is {found}, but only tensors of f32, f64, i32, i64, u8 and bool can be read"
    )]
    Output {
        /// The output.
        name: String,
        /// What it is.
        found: String,
    },
    /// CUDA was asked for, and does not run it.
    #[error("the model `{path}` does not run on CUDA: {reason}")]
    Cuda {
        /// The model.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// The run itself failed.
    #[error("the model `{path}` failed: {reason}")]
    Run {
        /// The model.
        path: PathBuf,
        /// What the runtime said.
        reason: String,
    },
}

fn listed(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

fn hint(name: &str, known: &[String]) -> String {
    nearest(name, known.iter().map(String::as_str))
        .map(|near| format!(", did you mean `{near}`?"))
        .unwrap_or_default()
}
