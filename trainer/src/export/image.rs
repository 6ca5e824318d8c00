//! Networks of images as nodes of an ONNX graph: the walk of a network, with node names for values.
//!
//! It must not know architectures. Invariant: each layer becomes the node that does what its forward does at inference;
//! ONNX images are `[n, C, H, W]`, which is the order of a row's values, so a row is reshaped and never transposed.

use candle_core::{Result, Var};

use super::onnx::{Graph, INPUT, float, int, ints};
use crate::ops::Activation;
use crate::student::{BatchNorm, Convolution, EPSILON, ImageStudent, Layers, Linear, Network};

/// Adds a student's network to the graph; the name of its logits.
pub(super) fn network<N: Network>(graph: &mut Graph, student: &ImageStudent<N>) -> Result<String> {
    let [channels, height, width] = student.image().map(|extent| extent as i64);
    let shape = graph.integers(&[-1, channels, height, width]);
    let images = graph.op("Reshape", &[INPUT, &shape], vec![]);
    student.network().walk(&mut Nodes { graph }, images)
}

struct Nodes<'a> {
    graph: &'a mut Graph,
}

impl Nodes<'_> {
    fn values(&mut self, var: &Var) -> Result<String> {
        let dims: Vec<i64> = var.dims().iter().map(|extent| *extent as i64).collect();
        Ok(self.graph.floats(&dims, &var.flatten_all()?.to_vec1()?))
    }

    fn flat(&mut self, input: &str) -> String {
        self.graph.op("Flatten", &[input], vec![int("axis", 1)])
    }
}

impl Layers for Nodes<'_> {
    type Value = String;

    fn convolve(&mut self, input: &String, layer: &Convolution) -> Result<String> {
        let (_, _, rows, columns) = layer.weight.dims4()?;
        let weight = self.values(&layer.weight)?;
        let (stride, padding) = (layer.stride as i64, layer.padding as i64);
        let attributes = vec![
            ints("kernel_shape", &[rows as i64, columns as i64]),
            ints("strides", &[stride; 2]),
            ints("pads", &[padding; 4]),
        ];
        Ok(self.graph.op("Conv", &[input, &weight], attributes))
    }

    fn normalize(&mut self, input: &String, layer: &BatchNorm, activation: Activation) -> Result<String> {
        let gamma = self.values(&layer.gamma)?;
        let beta = self.values(&layer.beta)?;
        let mean = self.values(&layer.running_mean)?;
        let variance = self.values(&layer.running_variance)?;
        let inputs = [input, &gamma, &beta, &mean, &variance].map(String::as_str);
        let out = self.graph.op("BatchNormalization", &inputs, vec![float("epsilon", EPSILON as f32)]);
        Ok(match activation {
            Activation::None => out,
            Activation::Relu => self.graph.op("Relu", &[&out], vec![]),
        })
    }

    fn add(&mut self, one: &String, two: &String) -> Result<String> {
        Ok(self.graph.op("Add", &[one, two], vec![]))
    }

    fn add_relu(&mut self, one: &String, two: &String) -> Result<String> {
        let sum = self.add(one, two)?;
        Ok(self.graph.op("Relu", &[&sum], vec![]))
    }

    fn max_pool(&mut self, input: &String, size: usize) -> Result<String> {
        let size = [size as i64; 2];
        Ok(self.graph.op("MaxPool", &[input], vec![ints("kernel_shape", &size), ints("strides", &size)]))
    }

    fn mean_pool(&mut self, input: &String) -> Result<String> {
        let mean = self.graph.op("GlobalAveragePool", &[input], vec![]);
        Ok(self.flat(&mean))
    }

    fn rows(&mut self, input: &String) -> Result<String> {
        Ok(self.flat(input))
    }

    fn linear(&mut self, input: &String, layer: &Linear) -> Result<String> {
        self.graph.linear(input, layer)
    }
}
