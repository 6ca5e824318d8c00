//! What a student is trained on, and how precisely its products are taken.
//!
//! It must not know students or losses. Invariant: what is not there is refused by name; nothing falls back to the processor.

use std::sync::OnceLock;

use candle_core::Device;

use crate::ops::Precision;
use crate::processor::Processor;

/// Whether this program can train on CUDA.
pub const BUILT_WITH_CUDA: bool = cfg!(feature = "cuda");

/// Why it cannot be trained there.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A program without CUDA.
    #[error(
        "`train.device = \"cuda\"`: this program was built without CUDA (`cargo build --release --features cuda`)"
    )]
    NotBuilt,
    /// No device, or none that can be used.
    #[error("`train.device = \"cuda\"`: no CUDA device answers")]
    NoDevice(#[source] candle_core::Error),
    /// Half precision on the processor.
    #[error("`train.precision = \"bf16\"` wants `train.device = \"cuda\"`: products on the CPU are in f32")]
    Precision,
}

/// An open device, and the precision of products on it.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) device: Device,
    pub(crate) precision: Precision,
}

impl Machine {
    /// The processor, in single precision.
    pub(crate) fn cpu() -> Self {
        Self { device: Device::Cpu, precision: Precision::F32 }
    }

    /// Opens a device.
    ///
    /// # Errors
    /// What is not there, or does not go together.
    pub(crate) fn open(processor: Processor, precision: Precision) -> Result<Self, MachineError> {
        let device = match processor {
            Processor::Cpu if precision == Precision::Bf16 => return Err(MachineError::Precision),
            Processor::Cpu => Device::Cpu,
            Processor::Cuda if !BUILT_WITH_CUDA => return Err(MachineError::NotBuilt),
            Processor::Cuda => cuda()?,
        };
        Ok(Self { device, precision })
    }
}

/// One for the whole process: tensors of two openings of a device do not go together.
fn cuda() -> Result<Device, MachineError> {
    static OPENED: OnceLock<Device> = OnceLock::new();
    if let Some(device) = OPENED.get() {
        return Ok(device.clone());
    }
    let device = Device::new_cuda(0).map_err(MachineError::NoDevice)?;
    Ok(OPENED.get_or_init(|| device).clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_refused_by_its_key() {
        let half = Machine::open(Processor::Cpu, Precision::Bf16).unwrap_err().to_string();
        assert!(half.starts_with("`train.precision = \"bf16\"`"), "{half}");
        if let Err(refused) = Machine::open(Processor::Cuda, Precision::F32) {
            assert!(refused.to_string().starts_with("`train.device = \"cuda\"`"), "{refused}");
        }
    }
}
