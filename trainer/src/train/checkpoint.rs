//! A run's whole state in one safetensors file: variables, optimizer, samplers, the best so far, the metrics so far.
//!
//! It must not know the loop. Invariants: a file is whole or absent (written beside, synced, renamed); what is read back
//! is bit for bit what was written; a checkpoint of another run is refused by its digest.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::draws::Places;
use super::stage::StagePlace;
use super::{MetricRow, TrainError};
use crate::optimizer::Slot;

/// The key under which the part that is no tensor stands in the file's metadata.
const STATE: &str = "tuition";

/// A run between two steps.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct State {
    pub(crate) about: About,
    /// The variables, then the buffers, in the student's order.
    pub(crate) values: Vec<Vec<f32>>,
    /// The head of the phase that is learnt; empty without one.
    pub(crate) head: Vec<Vec<f32>>,
    /// What the losses learn beside the student.
    pub(crate) maps: Vec<Vec<f32>>,
    /// The optimizer's, of the student's variables and then the head's, or those of the maps.
    pub(crate) slots: Vec<Slot>,
    /// The running average of the variables, where the run keeps one.
    pub(crate) average: Option<Vec<Vec<f32>>>,
    /// The values at the best validation so far.
    pub(crate) best: Option<Vec<Vec<f32>>>,
}

/// The part of a state that is no tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct About {
    pub(crate) digest: String,
    pub(crate) seed: u64,
    pub(crate) step: usize,
    pub(crate) stopped: bool,
    pub(super) draws: Places,
    /// Steps of the curriculum's phases so far.
    #[serde(default)]
    pub(crate) before: usize,
    /// The phase that is learnt now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stage: Option<StagePlace>,
    /// The bits of a moving target's share, of the average drop of the loss, and of the last loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) interpolation: Option<(u64, u64, Option<u64>)>,
    /// The bits of the best validation loss; text would round it.
    pub(crate) best_bits: Option<u32>,
    pub(crate) stale: usize,
    pub(crate) rows: Vec<MetricRow>,
}

/// Where random numbers begin: what checkpoints say that are older than what draws them.
pub(super) fn start() -> String {
    "0".to_owned()
}

/// The checkpoint of one seed in a folder.
pub(crate) fn path(folder: &Path, name: &str, seed: u64) -> PathBuf {
    folder.join(format!("{name}-seed-{seed}.safetensors"))
}

/// Writes a state; the file is whole or what it was before.
pub(crate) fn save(path: &Path, state: &State) -> Result<(), TrainError> {
    let about = serde_json::to_string(&state.about)
        .map_err(|error| TrainError::Checkpoint { path: path.to_owned(), reason: error.to_string() })?;
    let mut tensors: Vec<(String, Vec<u8>)> = Vec::new();
    let mut add = |kind: &str, at: usize, values: &[f32]| {
        tensors
            .push((format!("{kind}.{at:03}"), values.iter().flat_map(|value| value.to_le_bytes()).collect()));
    };
    state.values.iter().enumerate().for_each(|(at, values)| add("values", at, values));
    state.head.iter().enumerate().for_each(|(at, values)| add("head", at, values));
    state.maps.iter().enumerate().for_each(|(at, values)| add("map", at, values));
    for (at, slot) in state.slots.iter().enumerate() {
        add("momentum", at, &slot.momentum);
        add("square", at, &slot.square);
    }
    state.average.iter().flatten().enumerate().for_each(|(at, values)| add("average", at, values));
    state.best.iter().flatten().enumerate().for_each(|(at, values)| add("best", at, values));
    let bytes = pack(&tensors, HashMap::from([(STATE.to_owned(), about)]))
        .map_err(|reason| TrainError::Checkpoint { path: path.to_owned(), reason })?;
    replace(path, &bytes)
}

fn pack(tensors: &[(String, Vec<u8>)], metadata: HashMap<String, String>) -> Result<Vec<u8>, String> {
    let views = tensors
        .iter()
        .map(|(name, bytes)| {
            TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes).map(|view| (name, view))
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| error.to_string())?;
    safetensors::serialize(views, Some(metadata)).map_err(|error| error.to_string())
}

/// Puts `bytes` in the place of `path`, so that a crash leaves the old file or the new one.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let at = |source| TrainError::Io { path: path.to_owned(), source };
    let beside = path.with_extension("new");
    let mut file = fs::File::create(&beside).map_err(at)?;
    file.write_all(bytes).map_err(at)?;
    file.sync_all().map_err(at)?;
    fs::rename(&beside, path).map_err(at)
}

/// Reads a state back; `None` if there is no file. The digest must be the run's.
pub(crate) fn load(path: &Path, digest: &str) -> Result<Option<State>, TrainError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(TrainError::Io { path: path.to_owned(), source }),
    };
    let wrong = |reason: String| TrainError::Checkpoint { path: path.to_owned(), reason };
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| wrong(error.to_string()))?;
    let about = metadata.metadata().as_ref().and_then(|all| all.get(STATE));
    let about = about.ok_or_else(|| wrong("it holds no state of a run".into()))?;
    let about: About = serde_json::from_str(about).map_err(|error| wrong(error.to_string()))?;
    if about.digest != digest {
        return Err(TrainError::OtherRun { path: path.to_owned() });
    }
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| wrong(error.to_string()))?;
    let read = |kind: &str| -> Vec<Vec<f32>> {
        (0..)
            .map_while(|at| tensors.tensor(&format!("{kind}.{at:03}")).ok())
            .map(|view| {
                let numbers = view.data().chunks_exact(4);
                numbers.map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect()
            })
            .collect()
    };
    let slots = read("momentum").into_iter().zip(read("square"));
    let average = Some(read("average")).filter(|average| !average.is_empty());
    let best = about.best_bits.map(|_| read("best"));
    Ok(Some(State {
        values: read("values"),
        head: read("head"),
        maps: read("map"),
        slots: slots.map(|(momentum, square)| Slot { momentum, square }).collect(),
        average,
        best,
        about,
    }))
}
