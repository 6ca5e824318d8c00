//! Linear layers that stand on a student while it learns and are thrown away with what they served.
//!
//! It must not know losses or phases. Invariant: the same random numbers make the same head.

use candle_core::{Device, Result, Tensor, Var};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Linear layers with ReLU between them.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    /// `[output, input]` and `[output]`.
    layers: Vec<(Var, Var)>,
}

impl Head {
    /// Layers of these widths, from the input on; uniform in 1/sqrt(inputs), as every linear layer here.
    pub(crate) fn new(widths: &[usize], rng: &mut ChaCha8Rng, device: &Device) -> Result<Self> {
        let layer = |pair: &[usize]| {
            let (width, outputs) = (pair[0], pair[1]);
            let bound = (1.0 / width as f32).sqrt();
            let mut uniform = |count: usize| -> Vec<f32> {
                (0..count).map(|_| (rng.random::<f32>() * 2.0 - 1.0) * bound).collect()
            };
            let weight = Tensor::from_vec(uniform(outputs * width), (outputs, width), device)?;
            let bias = Tensor::from_vec(uniform(outputs), outputs, device)?;
            Ok((Var::from_tensor(&weight)?, Var::from_tensor(&bias)?))
        };
        Ok(Self { layers: widths.windows(2).map(layer).collect::<Result<_>>()? })
    }

    /// Its variables, in order.
    pub(crate) fn vars(&self) -> Vec<Var> {
        self.layers.iter().flat_map(|(weight, bias)| [weight.clone(), bias.clone()]).collect()
    }

    /// What it makes of `[n, input]`.
    pub(crate) fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        let mut value = rows.clone();
        for (at, (weight, bias)) in self.layers.iter().enumerate() {
            if at > 0 {
                value = value.relu()?;
            }
            value = value.matmul(&weight.t()?)?.broadcast_add(bias)?;
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // torch: h @ R.T + c with h = [[1, 2], [0, -1]], R = [[.5, -1]], c = [.25]   # [[-1.25], [1.25]]
    #[test]
    fn it_is_linear_with_a_bias() {
        let tensor =
            |rows: &[[f32; 2]]| Tensor::from_slice(&rows.concat(), (rows.len(), 2), &Device::Cpu).unwrap();
        let weight = Var::from_tensor(&tensor(&[[0.5, -1.0]])).unwrap();
        let bias = Var::from_tensor(&Tensor::new(&[0.25f32], &Device::Cpu).unwrap()).unwrap();
        let head = Head { layers: vec![(weight, bias)] };
        let found = head.forward(&tensor(&[[1.0, 2.0], [0.0, -1.0]])).unwrap();
        assert_eq!(found.to_vec2::<f32>().unwrap(), [[-1.25], [1.25]]);
    }
}
