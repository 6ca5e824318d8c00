//! A linear layer, x W^T + b.
//!
//! candle's product makes the gradients of both its factors, wanted or not; of inputs that nobody learns that is half of the
//! work. It must not know whose layer it is. Invariant: what takes no gradient is given none.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use pulp::Arch;

use super::{Precision, composed, ours, values};

/// x W^T + b: x `[n, input]`, W `[output, input]` (PyTorch's order), b `[output]`, to `[n, output]`.
///
/// # Errors
/// Shapes that do not fit each other.
pub fn linear(input: &Tensor, weight: &Tensor, bias: &Tensor, precision: Precision) -> Result<Tensor> {
    let ((_, width), (outputs, expected)) = (input.dims2()?, weight.dims2()?);
    if width != expected || bias.dims() != [outputs] {
        candle_core::bail!(
            "`linear`: rows of {width}, but weights of {:?} and a bias of {:?}",
            weight.dims(),
            bias.dims()
        );
    }
    if !ours(input, precision) {
        return composed::linear(input, weight, bias, precision);
    }
    input.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Linear)
}

struct Linear;

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        input: &CpuStorage,
        rows: &Layout,
        weight: &CpuStorage,
        from: &Layout,
        bias: &CpuStorage,
        at: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (n, width) = rows.shape().dims2()?;
        let outputs = from.shape().dims2()?.0;
        let sizes = (1, n, outputs, width);
        let CpuStorage::F32(mut out) = input.matmul(weight, sizes, rows, &from.transpose(0, 1)?)? else {
            candle_core::bail!("`linear` takes f32 tensors");
        };
        let bias = values(self.name(), bias, at)?;
        Arch::new().dispatch(|| {
            for out in out.chunks_exact_mut(outputs.max(1)) {
                out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
            }
        });
        Ok((CpuStorage::F32(out), (n, outputs).into()))
    }

    fn bwd(
        &self,
        input: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _out: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let to_input = || gradient.matmul(weight);
        let to_weight = || gradient.t()?.matmul(input);
        Ok((
            input.track_op().then(to_input).transpose()?,
            weight.track_op().then(to_weight).transpose()?,
            bias.track_op().then(|| gradient.sum(0)).transpose()?,
        ))
    }
}
