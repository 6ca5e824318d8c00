//! ReLU, alone, behind the sum of two branches, and behind a bias.
//!
//! It must not know what comes before or after. Invariant: at zero the gradient is zero, as in PyTorch.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use pulp::Arch;

use super::normalization::channel_sums;
use super::{Precision, composed, ours, read, values};

/// What follows a normalisation in the same pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// max(x, 0).
    Relu,
}

/// max(x, 0) of every value; any shape.
///
/// # Errors
/// A tensor that is not f32 on the CPU.
pub fn relu(input: &Tensor) -> Result<Tensor> {
    if !ours(input, Precision::F32) {
        return composed::relu(input);
    }
    input.contiguous()?.apply_op1(Relu)
}

/// max(x + y, 0), value by value; both of one shape. The end of a residual block, arXiv 1512.03385.
///
/// # Errors
/// Two shapes.
pub fn add_relu(one: &Tensor, two: &Tensor) -> Result<Tensor> {
    if one.dims() != two.dims() {
        candle_core::bail!("`add_relu`: shapes {:?} and {:?}", one.dims(), two.dims());
    }
    if !ours(one, Precision::F32) {
        return composed::add_relu(one, two);
    }
    one.contiguous()?.apply_op2(&two.contiguous()?, AddRelu)
}

/// max(x + b, 0): x `[..., C]`, b `[C]`.
///
/// # Errors
/// Shapes that do not fit each other.
pub fn bias_relu(input: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let channels = input.dims().last().copied().unwrap_or(0);
    if channels == 0 || bias.dims() != [channels] {
        candle_core::bail!("`bias_relu`: {channels} channels, but a bias of {:?}", bias.dims());
    }
    if !ours(input, Precision::F32) {
        return composed::bias_relu(input, bias);
    }
    input.contiguous()?.apply_op2(&bias.contiguous()?, BiasRelu)
}

/// The gradient where the result is above zero.
fn masked(operator: &'static str, out: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    let kept = read(operator, [out, gradient], |[out, gradient]| -> Vec<f32> {
        out.iter().zip(gradient).map(|(out, gradient)| if *out > 0.0 { *gradient } else { 0.0 }).collect()
    })?;
    Tensor::from_vec(kept, out.shape(), out.device())
}

struct Relu;

impl CustomOp1 for Relu {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let input = values(self.name(), storage, layout)?;
        let out = input.iter().map(|value| value.max(0.0)).collect();
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, _input: &Tensor, out: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        masked(self.name(), out, gradient).map(Some)
    }
}

struct AddRelu;

impl CustomOp2 for AddRelu {
    fn name(&self) -> &'static str {
        "add_relu"
    }

    fn cpu_fwd(
        &self,
        one: &CpuStorage,
        at: &Layout,
        two: &CpuStorage,
        from: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (one, two) = (values(self.name(), one, at)?, values(self.name(), two, from)?);
        let out = one.iter().zip(two).map(|(one, two)| (one + two).max(0.0)).collect();
        Ok((CpuStorage::F32(out), at.shape().clone()))
    }

    fn bwd(
        &self,
        _one: &Tensor,
        _two: &Tensor,
        out: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let kept = masked(self.name(), out, gradient)?;
        Ok((Some(kept.clone()), Some(kept)))
    }
}

struct BiasRelu;

impl CustomOp2 for BiasRelu {
    fn name(&self) -> &'static str {
        "bias_relu"
    }

    fn cpu_fwd(
        &self,
        input: &CpuStorage,
        at: &Layout,
        bias: &CpuStorage,
        from: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (input, bias) = (values(self.name(), input, at)?, values(self.name(), bias, from)?);
        let mut out = input.to_vec();
        Arch::new().dispatch(|| {
            for row in out.chunks_exact_mut(bias.len()) {
                row.iter_mut().zip(bias).for_each(|(out, bias)| *out = (*out + bias).max(0.0));
            }
        });
        Ok((CpuStorage::F32(out), at.shape().clone()))
    }

    fn bwd(
        &self,
        _input: &Tensor,
        bias: &Tensor,
        out: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let kept = masked(self.name(), out, gradient)?;
        let sums = read(self.name(), [&kept], |[kept]| channel_sums(kept, bias.elem_count()))?;
        let sums: Vec<f32> = sums.into_iter().map(|sum| sum as f32).collect();
        Ok((Some(kept), Some(Tensor::from_vec(sums, bias.shape(), bias.device())?)))
    }
}
