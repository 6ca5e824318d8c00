//! ReLU, alone and behind the sum of two branches.
//!
//! It must not know what comes before or after. Invariant: at zero the gradient is zero, as in PyTorch.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

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
