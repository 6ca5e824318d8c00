//! What a method adds to the loop beside its losses.
//!
//! This room must not know files or the loop. Invariant: everything here works on answers that were already recorded;
//! no method asks a teacher.

mod consistency;
mod curriculum;
mod mixup;
mod offset;
mod phase;
mod progressive;
mod proxy;
mod warm_up;

use serde::{Deserialize, Serialize};

use crate::loss::LossConfig;

pub use consistency::{By, ConsistencyConfig, ConsistencyError, ConsistencyForm};
pub(crate) use curriculum::extraction;
pub use curriculum::{CurriculumConfig, CurriculumError, LayerPair, Match};
pub(crate) use mixup::Mixup;
pub(crate) use offset::fix_offset;
pub use phase::CHECKPOINT;
pub(crate) use phase::{Phase, PlanError, column};
pub(crate) use progressive::progressive;
pub use progressive::{ProgressiveConfig, ProgressiveError};
pub(crate) use proxy::centred;
pub use proxy::{ProxyConfig, ProxyError};
pub(crate) use warm_up::warm_up;
pub use warm_up::{WarmUpConfig, WarmUpError, WarmUpKind};

/// The `[method]` table of a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MethodConfig {
    /// The losses, summed with their weights.
    pub losses: Vec<LossConfig>,
    /// Whether comparative losses get their offset put back; `false` is the published form.
    #[serde(default = "yes")]
    pub offset_fix: bool,
    /// Whether inputs and their targets are mixed in pairs.
    #[serde(default)]
    pub mixup: bool,
    /// Whether boxes of images are, and their targets in proportion.
    #[serde(default, skip_serializing_if = "is_false")]
    pub cutmix: bool,
    /// What the student learns of the teacher's hidden layers first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub curriculum: Option<CurriculumConfig>,
    /// What it learns of earlier checkpoints of the teacher first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progressive: Option<ProgressiveConfig>,
    /// What it learns of inputs alone before anything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<WarmUpConfig>,
    /// Who labels the inputs that nobody asked about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxyConfig>,
    /// How views of inputs that nobody asked about are held together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<ConsistencyConfig>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands references")]
fn is_false(value: &bool) -> bool {
    !value
}

fn yes() -> bool {
    true
}

impl MethodConfig {
    /// A short name: the losses' kinds, and what departs from the default.
    #[must_use]
    pub fn name(&self) -> String {
        let losses: Vec<&str> = self.losses.iter().map(LossConfig::name).collect();
        let floats = self.losses.iter().any(LossConfig::floats);
        let offset = if floats && !self.offset_fix { " without offset fix" } else { "" };
        let before = match &self.curriculum {
            Some(CurriculumConfig { form: Match::Head, .. }) => "curriculum, then ",
            Some(CurriculumConfig { form: Match::Direct, .. }) => "direct curriculum, then ",
            None => "",
        };
        let progressive = if self.progressive.is_some() { "progressive, then " } else { "" };
        let warm_up = if self.warm_up.is_some() { "warm-up, then " } else { "" };
        let consistency = if self.consistency.is_some() { " with consistency" } else { "" };
        let proxy = if self.proxy.is_some() { " with a proxy teacher" } else { "" };
        format!(
            "{warm_up}{before}{progressive}{}{}{}{offset}{consistency}{proxy}",
            if self.mixup { "mixup " } else { "" },
            if self.cutmix { "cutmix " } else { "" },
            losses.join(" + ")
        )
    }

    /// Whether it has a use for inputs that nobody asked about.
    #[must_use]
    pub fn wants_pool(&self) -> bool {
        self.proxy.is_some() || self.warm_up.is_some() || self.consistency.is_some()
    }

    /// Whether it learns from the teacher's hidden tensors.
    #[must_use]
    pub fn wants_hidden(&self) -> bool {
        self.curriculum.is_some() || self.losses.iter().any(LossConfig::compares_features)
    }

    /// Whether inputs are mixed in pairs.
    pub(crate) fn mixes(&self) -> bool {
        self.mixup || self.cutmix
    }

    /// These losses and nothing else.
    #[must_use]
    pub fn of(losses: Vec<LossConfig>) -> Self {
        Self {
            losses,
            offset_fix: true,
            mixup: false,
            cutmix: false,
            curriculum: None,
            progressive: None,
            warm_up: None,
            proxy: None,
            consistency: None,
        }
    }

    /// Whether the student's outputs float and are to be put back.
    pub(crate) fn fixes_offset(&self) -> bool {
        self.offset_fix && self.losses.iter().any(LossConfig::floats)
    }
}
