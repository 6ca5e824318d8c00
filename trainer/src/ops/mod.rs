//! Operators behind candle's tensors that are fast on a processor, forward and backward: what students are made of.
//!
//! Images are `[H, W, N, C]`, so that the channels of one pixel of all images lie next to each other; `to_images` makes
//! them from rows once, at a student's input, and `to_rows` ends them. The room must not know students or losses.
//! Invariants: every operator has a gradient or refuses aloud (candle drops some silently); on the CPU tensors are f32,
//! and anything else is an error by the operator's name; the number of threads changes no bit of a result. On another device
//! the same operators are composed of candle's own.

mod activation;
mod composed;
mod convolution;
mod layout;
mod linear;
mod normalization;
mod pooling;
mod product;
mod rows;

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use activation::{Activation, add_relu, bias_relu, relu};
pub use convolution::convolve;
pub use layout::{to_images, to_rows};
pub use linear::linear;
pub use normalization::{Statistics, batch_norm, normalize};
pub use pooling::{max_pool, mean_pool};
pub use rows::{layer_norm, log_softmax, softmax};

/// `train.precision`: what the factors of convolutions, linear layers and attention are rounded to before they are multiplied.
/// Variables, sums, normalisations, losses and the optimizer stay in f32 (mixed precision, arXiv 1710.03740).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// Single precision: nothing is rounded.
    #[default]
    F32,
    /// bfloat16, whose range is that of f32, so that no loss has to be scaled. On CUDA alone.
    Bf16,
}

/// Whether the operators of this room compute it; anything else is composed of candle's own.
fn ours(tensor: &Tensor, precision: Precision) -> bool {
    tensor.device().is_cpu() && precision == Precision::F32
}

/// The product of two matrices, or of two stacks of them of one size: `[.., m, k]` and `[.., k, n]` to `[.., m, n]`, in f32.
///
/// # Errors
/// Shapes that do not fit each other.
pub fn product(one: &Tensor, two: &Tensor, precision: Precision) -> Result<Tensor> {
    composed::product(one, two, precision)
}

/// The values of an operator's argument in the order of its shape.
fn values<'a>(operator: &'static str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(values) = storage else {
        candle_core::bail!("`{operator}` takes f32 tensors");
    };
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("`{operator}` takes contiguous tensors");
    };
    Ok(&values[start..end])
}

/// Hands the values of tensors to `compute`, each in the order of its shape.
fn read<const N: usize, R>(
    operator: &'static str,
    tensors: [&Tensor; N],
    compute: impl FnOnce([&[f32]; N]) -> R,
) -> Result<R> {
    let tensors: Vec<Tensor> = tensors.into_iter().map(Tensor::contiguous).collect::<Result<_>>()?;
    let guards: Vec<_> = tensors.iter().map(Tensor::storage_and_layout).collect();
    let mut slices: [&[f32]; N] = [&[]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&guards) {
        let Storage::Cpu(storage) = &**storage else {
            candle_core::bail!("`{operator}` runs on the CPU only");
        };
        *slice = values(operator, storage, layout)?;
    }
    Ok(compute(slices))
}

/// Below so many multiplications or values a second thread costs more than it does.
const SERIAL: usize = 1 << 18;

/// Fills each chunk of `out` from its number, on several threads where `work` is worth it.
fn each_chunk(out: &mut [f32], size: usize, work: usize, fill: impl Fn(usize, &mut [f32]) + Sync) {
    if work < SERIAL || rayon::current_num_threads() == 1 {
        out.chunks_mut(size).enumerate().for_each(|(at, chunk)| fill(at, chunk));
    } else {
        out.par_chunks_mut(size).enumerate().for_each(|(at, chunk)| fill(at, chunk));
    }
}

#[cfg(test)]
mod tests;
