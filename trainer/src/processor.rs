//! What computes: the words for it, in run files and in the configuration.
//!
//! It must not know what is computed, nor open a device.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Processor {
    /// The CPU; what is trained there repeats bit for bit.
    #[default]
    Cpu,
    /// The first CUDA device.
    Cuda,
}

impl Processor {
    /// Its name in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

impl fmt::Display for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
