//! Linear layers that stand on a student while it learns and are thrown away with what they served.
//!
//! It must not know losses or phases. Invariant: the same random numbers make the same head.

use candle_core::{Result, Tensor, Var};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::parameters::Linear;
use crate::machine::Machine;
#[cfg(test)]
use crate::ops::Precision;

/// Linear layers with ReLU between them.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    layers: Vec<Linear>,
}

impl Head {
    /// Layers of these widths, from the input on; uniform in 1/sqrt(inputs), as every linear layer here.
    pub(crate) fn new(widths: &[usize], rng: &mut ChaCha8Rng, machine: &Machine) -> Result<Self> {
        let Machine { device, precision } = machine;
        let layer = |pair: &[usize]| {
            let (width, outputs) = (pair[0], pair[1]);
            let bound = (1.0 / width as f32).sqrt();
            let mut uniform = |count: usize| -> Vec<f32> {
                (0..count).map(|_| (rng.random::<f32>() * 2.0 - 1.0) * bound).collect()
            };
            let weight = Tensor::from_vec(uniform(outputs * width), (outputs, width), device)?;
            let bias = Tensor::from_vec(uniform(outputs), outputs, device)?;
            let (weight, bias) = (Var::from_tensor(&weight)?, Var::from_tensor(&bias)?);
            Ok(Linear { weight, bias, precision: *precision })
        };
        Ok(Self { layers: widths.windows(2).map(layer).collect::<Result<_>>()? })
    }

    /// One layer of these numbers, for a test.
    #[cfg(test)]
    pub(crate) fn of(weight: &Tensor, bias: &Tensor) -> Result<Self> {
        let (weight, bias) = (Var::from_tensor(weight)?, Var::from_tensor(bias)?);
        let layer = Linear { weight, bias, precision: Precision::F32 };
        Ok(Self { layers: vec![layer] })
    }

    /// Its variables, in order.
    pub(crate) fn vars(&self) -> Vec<Var> {
        self.layers.iter().flat_map(|layer| [layer.weight.clone(), layer.bias.clone()]).collect()
    }

    /// What it makes of `[n, input]`.
    pub(crate) fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        let mut value = rows.clone();
        for (at, layer) in self.layers.iter().enumerate() {
            if at > 0 {
                value = value.relu()?;
            }
            value = layer.forward(&value)?;
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    // torch: h @ R.T + c with h = [[1, 2], [0, -1]], R = [[.5, -1]], c = [.25]   # [[-1.25], [1.25]]
    #[test]
    fn it_is_linear_with_a_bias() {
        let tensor =
            |rows: &[[f32; 2]]| Tensor::from_slice(&rows.concat(), (rows.len(), 2), &Device::Cpu).unwrap();
        let bias = Tensor::new(&[0.25f32], &Device::Cpu).unwrap();
        let head = Head::of(&tensor(&[[0.5, -1.0]]), &bias).unwrap();
        let found = head.forward(&tensor(&[[1.0, 2.0], [0.0, -1.0]])).unwrap();
        assert_eq!(found.to_vec2::<f32>().unwrap(), [[-1.25], [1.25]]);
    }
}
