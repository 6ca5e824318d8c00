//! ONNX models run in this process by ONNX Runtime: teachers, and the check of an exported student.
//!
//! The only module that names `ort`. It must not know queries, budgets, files of data or the environment: the caller
//! says where the runtime's library lies. Invariant: a tensor reaches the runtime only after its name, type and shape
//! were found to fit, so that every mistake of a caller is answered by name; and what the runtime ran on is reported,
//! not what was hoped for.

mod error;
mod runtime;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::session::Session;
use ort::value::{DynValue, Tensor as OrtTensor, TensorElementType, ValueType};
use tuition_ledger::{Elements, Tensor};

use crate::hidden::{Layers, expose};
use crate::port::{ElementType, Port};
use crate::processor::Processor;

pub use error::ModelError;
pub use runtime::Runtime;
use runtime::session;

/// The largest model file that is read: protocol buffers end at two gibibytes.
pub const MAX_MODEL_BYTES: u64 = 2 << 30;
/// The most values in the inputs of one run.
pub const MAX_BATCH_VALUES: usize = 1 << 28;

fn port(name: &str, kind: &ValueType) -> Port {
    let (element_type, shape) = match kind {
        ValueType::Tensor { ty, shape, .. } => {
            let extents = shape.iter().map(|extent| usize::try_from(*extent).ok()).collect();
            (element_type(*ty), extents)
        }
        other => (Err(other.to_string()), vec![]),
    };
    Port { name: name.to_owned(), element_type, shape }
}

fn check(port: &Port, tensor: &Tensor) -> Result<(), ModelError> {
    let name = || tensor.name.clone();
    let found = ElementType::of(&tensor.elements);
    if port.element_type.is_err() || port.element_type != found {
        let words =
            |kind: &Result<ElementType, String>| kind.as_ref().map_or_else(Clone::clone, ToString::to_string);
        let expected = words(&port.element_type);
        return Err(ModelError::Type { name: name(), found: words(&found), expected });
    }
    let fits = port.shape.len() == tensor.shape.len()
        && port.shape.iter().zip(&tensor.shape).all(|(stated, given)| {
            // The runtime takes no empty tensors.
            *given > 0 && stated.is_none_or(|stated| stated == *given)
        });
    if !fits {
        let expected = port.shape_words();
        return Err(ModelError::Shape { name: name(), found: tensor.shape.clone(), expected });
    }
    let room = tensor.shape.iter().try_fold(1_usize, |room, extent| room.checked_mul(*extent));
    let values = tensor.elements.len();
    if room != Some(values) {
        let room = room.unwrap_or(usize::MAX);
        return Err(ModelError::Count { name: name(), values, shape: tensor.shape.clone(), room });
    }
    Ok(())
}

fn element_type(kind: TensorElementType) -> Result<ElementType, String> {
    match kind {
        TensorElementType::Float32 => Ok(ElementType::F32),
        TensorElementType::Float64 => Ok(ElementType::F64),
        TensorElementType::Int32 => Ok(ElementType::I32),
        TensorElementType::Int64 => Ok(ElementType::I64),
        TensorElementType::Uint8 => Ok(ElementType::U8),
        TensorElementType::Bool => Ok(ElementType::Bool),
        other => Err(format!("{other}")),
    }
}

/// How a model is loaded.
#[derive(Debug, Clone, Copy)]
pub struct Load<'a> {
    /// Threads of a run on the processor.
    pub threads: usize,
    /// The hidden tensors that are given like outputs.
    pub layers: Option<&'a Layers>,
    /// What it is to run on, or not at all; none: CUDA where the runtime has a part for it and it works, else the processor
    /// ([`Model::refusal`] says why).
    pub on: Option<Processor>,
}

/// A loaded model.
pub struct Model {
    path: PathBuf,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    /// Hidden tensors that can be asked for like outputs.
    hidden: Vec<Port>,
    device: Processor,
    refusal: Option<String>,
    /// One run at a time: the runtime's own threads do the parallel part.
    session: Mutex<Session>,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Model {
    /// Loads a model file, to run on `threads` threads of the processor.
    ///
    /// # Errors
    /// When the file cannot be read, is no ONNX model, or is one that this runtime cannot run.
    pub fn load(runtime: &Runtime, path: &Path, threads: usize) -> Result<Self, ModelError> {
        Self::load_with(runtime, path, Load { threads, layers: None, on: Some(Processor::Cpu) })
    }

    /// As [`Model::load`], with hidden tensors that [`Model::run`] gives like outputs (weights must be inside the file, and it
    /// costs some of the runtime's graph fusions), and on another device.
    ///
    /// # Errors
    /// As [`Model::load`], when the model has not the hidden tensors that are asked for, or they are not of f32, and when it does
    /// not run on the device that is asked for.
    pub fn load_with(runtime: &Runtime, path: &Path, load: Load<'_>) -> Result<Self, ModelError> {
        let path = path.to_owned();
        let metadata =
            std::fs::metadata(&path).map_err(|source| ModelError::Read { path: path.clone(), source })?;
        if !metadata.is_file() {
            let source = std::io::Error::from(std::io::ErrorKind::IsADirectory);
            return Err(ModelError::Read { path, source });
        }
        if metadata.len() > MAX_MODEL_BYTES {
            return Err(ModelError::TooLarge { path, bytes: metadata.len() });
        }
        let exposed = load
            .layers
            .map(|layers| {
                let bytes =
                    std::fs::read(&path).map_err(|source| ModelError::Read { path: path.clone(), source })?;
                expose(&bytes, layers).map_err(|source| ModelError::Hidden { path: path.clone(), source })
            })
            .transpose()?;
        let (bytes, names) = exposed.map_or((None, vec![]), |(bytes, names)| (Some(bytes), names));
        let session = |on: Processor| session(runtime, &path, bytes.as_deref(), load.threads, on);
        let (session, device, refusal) = match load.on {
            Some(on) => (session(on)?, on, None),
            None if !runtime.has_cuda() => (session(Processor::Cpu)?, Processor::Cpu, None),
            None => match session(Processor::Cuda) {
                Ok(session) => (session, Processor::Cuda, None),
                Err(refusal) => (session(Processor::Cpu)?, Processor::Cpu, Some(refusal.to_string())),
            },
        };
        let ports = |outlets: &[ort::value::Outlet]| {
            outlets.iter().map(|outlet| port(outlet.name(), outlet.dtype())).collect()
        };
        let (inputs, outputs): (_, Vec<Port>) = (ports(session.inputs()), ports(session.outputs()));
        let (hidden, outputs): (Vec<Port>, Vec<Port>) =
            outputs.into_iter().partition(|port| names.contains(&port.name));
        if let Some(Port { name, element_type, .. }) =
            hidden.iter().find(|port| port.element_type != Ok(ElementType::F32))
        {
            let found = element_type.as_ref().map_or_else(Clone::clone, ToString::to_string);
            return Err(ModelError::HiddenType { name: name.clone(), found });
        }
        Ok(Self { path, inputs, outputs, hidden, device, refusal, session: Mutex::new(session) })
    }

    /// The file it came from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its inputs, in the model's order.
    #[must_use]
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// Its outputs, in the model's order.
    #[must_use]
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// Its hidden tensors that can be asked for, in the graph's order.
    #[must_use]
    pub fn hidden(&self) -> &[Port] {
        &self.hidden
    }

    /// What runs it.
    #[must_use]
    pub fn device(&self) -> Processor {
        self.device
    }

    /// Why CUDA does not run it, where the runtime has a part for CUDA and nobody said what it is to run on.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// The input of that name.
    ///
    /// # Errors
    /// Names the inputs that there are.
    pub fn input(&self, name: &str) -> Result<&Port, ModelError> {
        find("input", &self.inputs, name)
    }

    /// The output of that name.
    ///
    /// # Errors
    /// Names the outputs that there are.
    pub fn output(&self, name: &str) -> Result<&Port, ModelError> {
        find("output", &self.outputs, name)
    }

    /// Runs the model on named inputs and returns the outputs or hidden tensors named in `wanted`, in that order.
    ///
    /// # Errors
    /// When an input or output is not the model's, does not fit, is missing, or the run fails.
    pub fn run(&self, inputs: Vec<Tensor>, wanted: &[&str]) -> Result<Vec<Tensor>, ModelError> {
        self.check(&inputs, wanted)?;
        let failed = |error: ort::Error| ModelError::Run {
            path: self.path.clone(),
            reason: error.message().to_owned(),
        };
        let mut fed = Vec::with_capacity(inputs.len());
        for tensor in inputs {
            fed.push((tensor.name, to_ort(tensor.shape, tensor.elements).map_err(failed)?));
        }
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let outputs = session.run(fed).map_err(failed)?;
        wanted
            .iter()
            .map(|name| {
                let value = outputs.get(name).expect("the name was checked against the model's outputs");
                from_ort(name, value)
            })
            .collect()
    }

    fn check(&self, inputs: &[Tensor], wanted: &[&str]) -> Result<(), ModelError> {
        for (index, tensor) in inputs.iter().enumerate() {
            check(self.input(&tensor.name)?, tensor)?;
            if inputs[..index].iter().any(|earlier| earlier.name == tensor.name) {
                return Err(ModelError::Twice { name: tensor.name.clone() });
            }
        }
        if let Some(port) =
            self.inputs.iter().find(|port| !inputs.iter().any(|given| given.name == port.name))
        {
            return Err(ModelError::Missing { name: port.name.clone() });
        }
        for name in wanted {
            if self.hidden.iter().any(|port| port.name == *name) {
                continue;
            }
            let port = self.output(name)?;
            if let Err(found) = &port.element_type {
                return Err(ModelError::Output { name: port.name.clone(), found: found.clone() });
            }
        }
        let values = inputs.iter().map(|tensor| tensor.elements.len()).sum();
        if values > MAX_BATCH_VALUES {
            return Err(ModelError::Batch { values });
        }
        Ok(())
    }
}

fn find<'a>(direction: &'static str, ports: &'a [Port], name: &str) -> Result<&'a Port, ModelError> {
    ports.iter().find(|port| port.name == name).ok_or_else(|| ModelError::Name {
        direction,
        name: name.to_owned(),
        known: ports.iter().map(|port| port.name.clone()).collect(),
    })
}

fn to_ort(shape: Vec<usize>, elements: Elements) -> ort::Result<DynValue> {
    Ok(match elements {
        Elements::F32(values) => OrtTensor::from_array((shape, values))?.into_dyn(),
        Elements::F64(values) => OrtTensor::from_array((shape, values))?.into_dyn(),
        Elements::I32(values) => OrtTensor::from_array((shape, values))?.into_dyn(),
        Elements::I64(values) => OrtTensor::from_array((shape, values))?.into_dyn(),
        Elements::U8(values) => OrtTensor::from_array((shape, values))?.into_dyn(),
        Elements::Bool(values) => OrtTensor::from_array((shape, values))?.into_dyn(),
        Elements::Text(_) => return Err(ort::Error::new("text is not taken")),
    })
}

fn from_ort(name: &str, value: &DynValue) -> Result<Tensor, ModelError> {
    fn read<T: ort::value::PrimitiveTensorElementType + Clone>(value: &DynValue) -> ort::Result<Vec<T>> {
        value.try_extract_tensor::<T>().map(|(_, values)| values.to_vec())
    }
    let unreadable = |found: String| ModelError::Output { name: name.to_owned(), found };
    let ValueType::Tensor { ty, shape, .. } = value.dtype() else {
        return Err(unreadable(value.dtype().to_string()));
    };
    let extents = shape.iter().map(|extent| usize::try_from(*extent).unwrap_or(0)).collect();
    let elements = match element_type(*ty).map_err(&unreadable)? {
        ElementType::F32 => read(value).map(Elements::F32),
        ElementType::F64 => read(value).map(Elements::F64),
        ElementType::I32 => read(value).map(Elements::I32),
        ElementType::I64 => read(value).map(Elements::I64),
        ElementType::U8 => read(value).map(Elements::U8),
        ElementType::Bool => read(value).map(Elements::Bool),
    };
    let elements = elements.map_err(|error| unreadable(error.message().to_owned()))?;
    Ok(Tensor { name: name.to_owned(), shape: extents, elements })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::files;
    use crate::example::PADDING;
    use crate::installed;

    fn magika() -> Model {
        Model::load(&installed::runtime(), &installed::magika_model(), 1).unwrap()
    }

    fn bytes(rows: usize, name: &str, elements: Elements) -> Tensor {
        Tensor { name: name.to_owned(), shape: vec![rows, elements.len() / rows], elements }
    }

    #[test]
    fn a_model_states_what_it_takes_and_gives() {
        let model = magika();
        let port = |name: &str, element_type, width| Port {
            name: name.to_owned(),
            element_type: Ok(element_type),
            shape: vec![None, Some(width)],
        };
        assert_eq!(model.inputs(), [port("bytes", ElementType::I32, 2048)]);
        assert_eq!(model.outputs(), [port("target_label", ElementType::F32, 214)]);
        assert_eq!((model.device(), model.refusal()), (Processor::Cpu, None));
    }

    /// Labels and scores of `Magika().identify_bytes(content).prediction` of the Python package magika 1.0.3.
    #[test]
    fn magika_says_what_it_says_in_python() {
        let python: Vec<u8> =
            (0..300).flat_map(|i| format!("def f{i}(x):\n    return x + {i}\n\n\n").into_bytes()).collect();
        let cases: [(&[u8], &str, f32); 5] = [
            (
                b"  \n//! A greeting.\n\nuse std::io;\n\nfn main() -> io::Result<()> {\n    \
                  println!(\"hello, {}\", std::env::args().count());\n    Ok(())\n}\n\n\n",
                "rust",
                0.999_706,
            ),
            (
                b"{\"name\": \"tuition\", \"version\": [0, 1, 0], \"private\": true, \
                  \"scripts\": {\"test\": \"cargo test\"}}\n",
                "json",
                0.731_037,
            ),
            (&[b"import os\n\n".as_slice(), &python].concat(), "python", 0.929_215),
            (
                b"\x0b\x0c <!DOCTYPE html>\n<html><head><title>x</title></head>\n\
                  <body><p>Some words in a paragraph.</p></body></html> \r\n\r\n",
                "html",
                0.954_357,
            ),
            (
                &(0..9000_u32).map(|i| ((i * 7919 + i * i * 31) % 256) as u8).collect::<Vec<_>>(),
                "swf",
                0.459_644,
            ),
        ];
        let (window, classes) = files::published(&installed::magika_config()).unwrap();
        assert_eq!(window, files::Window::default());
        let folder = tempfile::tempdir().unwrap();
        let model = magika();
        for (content, label, score) in cases {
            let path = folder.path().join(label);
            std::fs::write(&path, content).unwrap();
            let symbols = window.of_file(&path).unwrap().unwrap().into_iter().map(i32::from).collect();
            let outputs =
                model.run(vec![bytes(1, "bytes", Elements::I32(symbols))], &["target_label"]).unwrap();
            assert_eq!(outputs[0].shape, [1, classes.len()]);
            let scores = outputs[0].elements.to_f32().unwrap();
            let best = crate::example::argmax(&scores) as usize;
            assert_eq!(classes[best], label);
            assert!((scores[best] - score).abs() < 1e-5, "{label}: {} instead of {score}", scores[best]);
        }
    }

    // Where the runtime has no part for CUDA, nobody is told that it runs there.
    #[test]
    fn a_device_that_is_not_there_is_an_error_that_says_what_is_missing() {
        let runtime = installed::runtime();
        let load = |on| {
            let load = Load { threads: 1, layers: None, on };
            Model::load_with(&runtime, &installed::magika_model(), load)
        };
        assert!(!runtime.has_cuda());
        let refused = load(Some(Processor::Cuda)).unwrap_err().to_string();
        assert!(
            refused.contains("does not run on CUDA") && refused.contains("libonnxruntime_providers_cuda.so"),
            "{refused}"
        );
        let by_itself = load(None).unwrap();
        assert_eq!((by_itself.device(), by_itself.refusal()), (Processor::Cpu, None));
    }

    #[test]
    fn hidden_tensors_of_a_real_model_are_those_that_its_output_comes_from() {
        let logits = "jax2tf_get_logits_/pjit_get_logits_/MagikaV2/Dense_1/AddV2:0";
        let load = |layers: &Layers| {
            let load = Load { threads: 1, layers: Some(layers), on: Some(Processor::Cpu) };
            Model::load_with(&installed::runtime(), &installed::magika_model(), load)
        };
        let model = load(&Layers::Named(vec![logits.to_owned()])).unwrap();
        assert_eq!(model.outputs(), magika().outputs());
        let symbols = || {
            let text = "fn main() {}".bytes().map(i32::from);
            Elements::I32(text.chain(std::iter::repeat(i32::from(PADDING))).take(2048).collect())
        };
        let found = model.run(vec![bytes(1, "bytes", symbols())], &["target_label", logits]).unwrap();
        let values = |tensor: &Tensor| tensor.elements.to_f32().unwrap();
        let (probabilities, logits) = (values(&found[0]), values(&found[1]));
        let most = logits.iter().copied().fold(f32::MIN, f32::max);
        let sum: f32 = logits.iter().map(|logit| (logit - most).exp()).sum();
        for (logit, probability) in logits.iter().zip(&probabilities) {
            assert!(((logit - most).exp() / sum - probability).abs() < 1e-5);
        }
        let plain = magika().run(vec![bytes(1, "bytes", symbols())], &["target_label"]).unwrap();
        assert!(values(&plain[0]).iter().zip(&probabilities).all(|(a, b)| (a - b).abs() < 1e-5));
        let tanh = load(&Layers::Every(2)).unwrap();
        assert!(tanh.hidden()[0].name.ends_with("ApplyActivation_1/Tanh:0") && tanh.hidden().len() == 1);
        let error = load(&Layers::Named(vec!["Dense_1".to_owned()])).expect_err("there is none");
        assert!(matches!(error, ModelError::Hidden { .. }), "{error}");
        let whole = "jax2tf_get_logits_/Shape:0".to_owned();
        let error = load(&Layers::Named(vec![whole])).expect_err("whole numbers are not projected");
        assert!(error.to_string().contains("is i"), "{error}");
    }

    #[test]
    fn a_tensor_that_does_not_fit_is_named() {
        let model = magika();
        let symbols = || Elements::I32(vec![i32::from(PADDING); 2048]);
        let good = || bytes(1, "bytes", symbols());
        let check = |inputs: Vec<Tensor>, wanted: &[&str], expected: &str| {
            let error = model.run(inputs, wanted).expect_err(expected);
            assert_eq!(error.to_string(), expected);
        };
        check(
            vec![bytes(1, "byte", symbols())],
            &["target_label"],
            "the model has no input `byte`, did you mean `bytes`?; it has `bytes`",
        );
        check(vec![good()], &["logits"], "the model has no output `logits`; it has `target_label`");
        check(vec![], &["target_label"], "the input `bytes` is missing");
        check(vec![good(), good()], &["target_label"], "the input `bytes` is given twice");
        check(
            vec![bytes(1, "bytes", Elements::F32(vec![0.0; 2048]))],
            &["target_label"],
            "the input `bytes` is f32, but the model takes i32",
        );
        check(
            vec![bytes(1, "bytes", Elements::I32(vec![0; 64]))],
            &["target_label"],
            "the input `bytes` has shape [1, 64], but the model takes [any, 2048]",
        );
        check(
            vec![Tensor { shape: vec![2, 2048], ..good() }],
            &["target_label"],
            "the input `bytes` has 2048 values, but its shape [2, 2048] has room for 4096",
        );
        assert!(model.run(vec![good()], &["target_label"]).is_ok());
    }

    #[test]
    fn a_file_that_is_no_model_is_named() {
        let runtime = installed::runtime();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        std::fs::write(&path, "this is a text, and no model").unwrap();
        let error = Model::load(&runtime, &path, 1).expect_err("a text is no model");
        assert!(matches!(error, ModelError::NotOnnx { .. }), "{error:?}");
        assert!(
            error.to_string().starts_with(&format!("`{}` is not an ONNX model", path.display())),
            "{error}"
        );
        let whole = std::fs::read(installed::magika_model()).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let error = Model::load(&runtime, &path, 1).expect_err("half a model is none");
        assert!(matches!(error, ModelError::NotOnnx { .. }), "{error:?}");
        let error = Model::load(&runtime, folder.path(), 1).expect_err("a folder is no model");
        assert!(matches!(error, ModelError::Read { .. }), "{error:?}");
    }

    #[test]
    fn a_runtime_that_is_none_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("libonnxruntime.so");
        let error = Runtime::load(&missing).expect_err("there is no such library").to_string();
        assert!(error.contains("libonnxruntime.so"), "{error}");
        let loaded = installed::runtime();
        assert_eq!(Runtime::load(loaded.library()).unwrap().library(), loaded.library());
        let other = folder.path().join("other.so");
        std::fs::copy(loaded.library(), &other).unwrap();
        let error = Runtime::load(&other).expect_err("another library is loaded already");
        assert!(matches!(error, ModelError::OtherRuntime { .. }), "{error}");
    }
}
