//! What lies between a model's input and its outputs: hidden tensors made outputs, and the few numbers kept of each.
//!
//! An ONNX file is a protocol buffer, and the bytes of two of them, one behind the other, are one message with the lists
//! of both: a graph's further outputs are appended to the file's own bytes, and nothing else of it is touched.
//!
//! A hidden tensor h of m numbers is recorded as P^T h, where P is m x r with entries from N(0, 1/m) that a seed and the
//! tensor's name decide. So one call buys the targets of every phase of a curriculum, at a few numbers each
//! (Efficient Knowledge Distillation via Curriculum Extraction, arXiv 2503.17494).
//!
//! It must not know runtimes or students. Invariant: the same seed, name and size give the same P on every machine.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use prost::Message;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::nearest::nearest;
use crate::normal::normal;

/// What stands in front of the seed and the name of a hidden tensor in a recorded answer.
pub const PREFIX: &str = "hidden.";
/// The operators that end a block, where every k-th one is asked for.
const ACTIVATIONS: [&str; 10] =
    ["Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Gelu", "Sigmoid", "Tanh", "Softplus", "HardSwish"];
/// The most numbers that are kept of a tensor.
pub const MAX_WIDTH: usize = 4096;

/// The name of a hidden tensor's projection in a recorded answer. The seed is part of it: projections of two seeds have
/// nothing in common, and must not be taken for each other.
#[must_use]
pub fn recorded_name(seed: u64, tensor: &str) -> String {
    format!("{PREFIX}{seed}.{tensor}")
}

/// The tensor's own name in what stands behind [`PREFIX`].
#[must_use]
pub fn tensor_name(recorded: &str) -> &str {
    recorded.split_once('.').map_or(recorded, |(_, tensor)| tensor)
}

/// Which hidden tensors of a model are recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layers {
    /// These, by the names that they have in the model's graph.
    Named(Vec<String>),
    /// Every k-th output of an activation, counted from the first, in the graph's order.
    Every(usize),
}

/// What is recorded of a model's hidden tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hidden {
    /// Which.
    pub layers: Layers,
    /// How many numbers of each, at most [`MAX_WIDTH`].
    pub width: usize,
    /// Decides the projections.
    pub seed: u64,
}

/// Why hidden tensors cannot be recorded.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HiddenError {
    /// The bytes are no model.
    #[error("its graph cannot be read: {0}")]
    Graph(String),
    /// A name that nothing in the graph has.
    #[error("it has no tensor `{name}`{}", hint.as_ref().map(|hint| format!(", did you mean `{hint}`?")).unwrap_or_default())]
    Name {
        /// The name.
        name: String,
        /// The nearest one that it has.
        hint: Option<String>,
    },
    /// An output of the model, which is recorded anyhow.
    #[error("`{0}` is an output of it and no hidden tensor")]
    Output(String),
    /// Fewer activations than one that is counted.
    #[error("it has {activations} activations, so there is no {every}th")]
    Every {
        /// The activations that it has.
        activations: usize,
        /// Which one was asked for.
        every: usize,
    },
}

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
}

#[derive(Clone, PartialEq, Message)]
struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    node: Vec<NodeProto>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfo>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeProto {
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(string, tag = "4")]
    op_type: String,
}

#[derive(Clone, PartialEq, Message)]
struct ValueInfo {
    #[prost(string, tag = "1")]
    name: String,
}

/// The bytes of `model` with its hidden `layers` as outputs behind its own, and their names in the graph's order.
///
/// # Errors
/// The bytes are no model, or it has not what is asked for.
pub fn expose(model: &[u8], layers: &Layers) -> Result<(Vec<u8>, Vec<String>), HiddenError> {
    let graph = ModelProto::decode(model).map_err(|error| HiddenError::Graph(error.to_string()))?.graph;
    let graph = graph.ok_or_else(|| HiddenError::Graph("it has none".to_owned()))?;
    let is_output = |name: &str| graph.output.iter().any(|output| output.name == name);
    let names = match layers {
        Layers::Named(wanted) => {
            let all: Vec<String> = graph.node.iter().flat_map(|node| node.output.clone()).collect();
            for name in wanted {
                if is_output(name) {
                    return Err(HiddenError::Output(name.clone()));
                }
                if !all.contains(name) {
                    let hint = nearest(name, all.iter().map(String::as_str)).map(str::to_owned);
                    return Err(HiddenError::Name { name: name.clone(), hint });
                }
            }
            all.into_iter().filter(|name| wanted.contains(name)).collect()
        }
        Layers::Every(every) => {
            let activations: Vec<&String> = graph
                .node
                .iter()
                .filter(|node| ACTIVATIONS.contains(&node.op_type.as_str()))
                .filter_map(|node| node.output.first().filter(|name| !is_output(name)))
                .collect();
            let every = (*every).max(1);
            let names: Vec<String> =
                activations.iter().skip(every - 1).step_by(every).map(|name| (*name).clone()).collect();
            if names.is_empty() {
                return Err(HiddenError::Every { activations: activations.len(), every });
            }
            names
        }
    };
    let output = names.iter().map(|name| ValueInfo { name: name.clone() }).collect();
    let more = ModelProto { graph: Some(GraphProto { node: vec![], output }) };
    Ok(([model, &more.encode_to_vec()].concat(), names))
}

/// Matrices by the tensor's name and size, row after row: a row holds what one of the m numbers adds to each of the r.
type Matrices = BTreeMap<(String, usize), Arc<Vec<f32>>>;

/// Projections of hidden tensors, each made when its tensor is first seen.
#[derive(Debug)]
pub struct Projection {
    width: usize,
    seed: u64,
    made: Mutex<Matrices>,
}

impl Projection {
    /// Projections to `width` numbers.
    #[must_use]
    pub fn new(width: usize, seed: u64) -> Self {
        Self { width, seed, made: Mutex::default() }
    }

    /// The name under which a tensor is recorded.
    #[must_use]
    pub fn recorded(&self, tensor: &str) -> String {
        recorded_name(self.seed, tensor)
    }

    /// How many numbers are kept.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// P^T h of the tensor `name`.
    #[must_use]
    pub fn project(&self, name: &str, values: &[f32]) -> Vec<f32> {
        let matrix = self.matrix(name, values.len());
        let mut projected = vec![0.0; self.width];
        for (value, row) in values.iter().zip(matrix.chunks_exact(self.width.max(1))) {
            for (sum, weight) in projected.iter_mut().zip(row) {
                *sum += value * weight;
            }
        }
        projected
    }

    fn matrix(&self, name: &str, size: usize) -> Arc<Vec<f32>> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || Arc::new(gaussian(self.seed, name, size, self.width));
        Arc::clone(made.entry((name.to_owned(), size)).or_insert_with(make))
    }
}

/// `size` rows of `width` numbers from N(0, 1/size).
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a size, and a weight of 32 bits"
)]
fn gaussian(seed: u64, name: &str, size: usize, width: usize) -> Vec<f32> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"tuition projection 1");
    hasher.update(&seed.to_le_bytes());
    hasher.update(name.as_bytes());
    let mut rng = ChaCha8Rng::from_seed(*hasher.finalize().as_bytes());
    let scale = 1.0 / (size as f64).sqrt();
    (0..size * width).map(|_| (normal(&mut rng) * scale) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Vec<u8> {
        let node = |op_type: &str, output: &str| NodeProto {
            op_type: op_type.to_owned(),
            output: vec![output.to_owned()],
        };
        let node = vec![
            node("Gemm", "gemm1"),
            node("Relu", "relu1"),
            node("Tanh", "tanh2"),
            node("Relu", "relu3"),
            node("Sigmoid", "scores"),
        ];
        let output = vec![ValueInfo { name: "scores".to_owned() }];
        ModelProto { graph: Some(GraphProto { node, output }) }.encode_to_vec()
    }

    fn named(names: &[&str]) -> Layers {
        Layers::Named(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn hidden_tensors_become_outputs_behind_the_others() {
        for (layers, expected) in [
            (named(&["relu3", "gemm1"]), vec!["gemm1", "relu3"]),
            (Layers::Every(1), vec!["relu1", "tanh2", "relu3"]),
            (Layers::Every(2), vec!["tanh2"]),
        ] {
            let (bytes, names) = expose(&model(), &layers).unwrap();
            assert_eq!(names, expected, "{layers:?}");
            let graph = ModelProto::decode(&bytes[..]).unwrap().graph.unwrap();
            assert_eq!(graph.node.len(), 5);
            let outputs: Vec<&str> = graph.output.iter().map(|output| output.name.as_str()).collect();
            assert_eq!(outputs, [vec!["scores"], expected].concat());
        }
    }

    #[test]
    fn what_is_no_hidden_tensor_is_named() {
        let refused = |layers: Layers| expose(&model(), &layers).expect_err("unfit").to_string();
        assert_eq!(refused(named(&["relu"])), "it has no tensor `relu`, did you mean `relu1`?");
        assert_eq!(refused(named(&["scores"])), "`scores` is an output of it and no hidden tensor");
        assert_eq!(refused(Layers::Every(4)), "it has 3 activations, so there is no 4th");
        assert!(expose(b"\xff\xff", &Layers::Every(1)).expect_err("unfit").to_string().contains("graph"));
    }

    #[test]
    fn a_projection_is_seeded_and_keeps_lengths_in_the_mean() {
        let values: Vec<f32> = (0..500_u16).map(|at| f32::from(at % 7) - 3.0).collect();
        let projected = Projection::new(64, 3).project("relu1", &values);
        assert_eq!(projected, Projection::new(64, 3).project("relu1", &values));
        assert_ne!(projected, Projection::new(64, 4).project("relu1", &values));
        assert_ne!(projected, Projection::new(64, 3).project("relu2", &values));
        // E ||P^T h||^2 = r ||h||^2 / m; with 64 numbers the mean square is within a third of it.
        let square = |values: &[f32]| values.iter().map(|value| value * value).sum::<f32>();
        let ratio = (square(&projected) / 64.0) / (square(&values) / 500.0);
        assert!((0.67..1.5).contains(&ratio), "{ratio}");
    }
}
