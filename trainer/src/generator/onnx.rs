//! An encoder and a decoder that were made elsewhere, as ONNX models.
//!
//! It must not know the runtime, only models that were loaded. Invariant: what they take and give is looked at before anything
//! is bought; their latents are whitened like all others.

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use std::path::Path;
use tuition_ledger::{Elements, Tensor as Values};

use super::{GeneratorError, Whitening};
use crate::port::{ElementType, Port};
use crate::teacher::{Model, Runtime};

/// The settings of the generator `onnx`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnnxConfig {
    /// The model from inputs to latents.
    pub encoder: String,
    /// The model from latents to inputs.
    pub decoder: String,
}

/// The two models.
#[derive(Debug)]
pub(crate) struct Onnx {
    encoder: Map,
    decoder: Map,
    whitening: Whitening,
}

impl Onnx {
    /// Loads both and sends `rows` `[n, d]` there and back.
    pub(super) fn load(
        config: &OnnxConfig,
        rows: &Tensor,
        runtime: &Runtime,
    ) -> Result<Self, GeneratorError> {
        let encoder = Map::load("encoder", &config.encoder, runtime)?;
        let decoder = Map::load("decoder", &config.decoder, runtime)?;
        let latents = encoder.apply(rows)?;
        let (found, expected) = (decoder.apply(&latents.narrow(0, 0, 1)?)?.dim(1)?, rows.dim(1)?);
        if found != expected {
            return Err(GeneratorError::Width { found, expected });
        }
        Ok(Self { encoder, decoder, whitening: Whitening::of(&latents)? })
    }

    pub(super) fn encode(&self, rows: &Tensor) -> Result<Tensor, GeneratorError> {
        Ok(self.whitening.apply(&self.encoder.apply(rows)?)?)
    }

    pub(super) fn decode(&self, latents: &Tensor) -> Result<Tensor, GeneratorError> {
        self.decoder.apply(&self.whitening.undo(latents)?)
    }
}

/// A model from rows to rows.
#[derive(Debug)]
struct Map {
    part: &'static str,
    path: String,
    model: Model,
    input: String,
    output: String,
    /// Rows of one run.
    batch: usize,
}

/// Rows of one run where the model takes any number.
const BATCH: usize = 256;

impl Map {
    fn load(part: &'static str, path: &str, runtime: &Runtime) -> Result<Self, GeneratorError> {
        let model = Model::load(runtime, Path::new(path), 1)
            .map_err(|source| GeneratorError::Model { part, source })?;
        let ports = |found: String| GeneratorError::Ports { part, path: path.to_owned(), found };
        let only = |direction: &str, all: &[Port]| match all {
            [port] if port.element_type == Ok(ElementType::F32) => Ok(port.clone()),
            [port] => Err(ports(format!("has the {direction} `{}` of another type", port.name))),
            _ => Err(ports(format!("has {} {direction}s", all.len()))),
        };
        let (input, output) = (only("input", model.inputs())?, only("output", model.outputs())?);
        if input.shape.len() != 2 {
            return Err(ports(format!("takes {}", input.shape_words())));
        }
        let batch = input.shape[0].unwrap_or(BATCH).max(1);
        let one_by_one = input.shape[0].is_some();
        if one_by_one && batch != 1 {
            return Err(ports(format!("takes exactly {batch} rows")));
        }
        Ok(Self { part, path: path.to_owned(), model, input: input.name, output: output.name, batch })
    }

    fn apply(&self, rows: &Tensor) -> Result<Tensor, GeneratorError> {
        let (count, width) = rows.dims2()?;
        let (mut values, mut given) = (Vec::new(), None);
        for start in (0..count).step_by(self.batch) {
            let some = self.batch.min(count - start);
            let fed = Values {
                name: self.input.clone(),
                shape: vec![some, width],
                elements: Elements::F32(rows.narrow(0, start, some)?.flatten_all()?.to_vec1()?),
            };
            let failed = |source| GeneratorError::Model { part: self.part, source };
            let output = self.model.run(vec![fed], &[&self.output]).map_err(failed)?.remove(0);
            let wrong = |found: String| {
                let (part, path) = (self.part, self.path.clone());
                GeneratorError::Ports { part, path, found }
            };
            let ([rows, width], Elements::F32(given_values)) = (&output.shape[..], &output.elements) else {
                return Err(wrong(format!("gives an output of shape {:?}", output.shape)));
            };
            if *rows != some || *given.get_or_insert(*width) != *width {
                return Err(wrong(format!("gives {rows} rows of {width} values for {some} rows")));
            }
            if let Some(value) = given_values.iter().find(|value| !value.is_finite()) {
                return Err(wrong(format!("gives {value}")));
            }
            values.extend_from_slice(given_values);
        }
        Ok(Tensor::from_vec(values, (count, given.unwrap_or(0)), &Device::Cpu)?)
    }
}
