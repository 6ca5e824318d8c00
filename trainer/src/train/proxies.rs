//! The proxies of a task: trained on its answers before the student is, they label its pool.
//!
//! It must not know how the student learns from the labels. Invariant: the first proxy has the student's seed, so that one proxy is
//! the same alone and as the first of several.

use candle_core::Tensor;

use super::{Control, Ended, Kept, Task, TrainError, answers, train};
use crate::method::centred;

/// How the pool came to be labelled.
pub(super) enum Labelled {
    /// By proxies, in logits `[M, C]`; by nobody where there are none.
    By(Option<Tensor>),
    Interrupted {
        step: usize,
    },
}

/// The seed of a proxy: the student's for the first, and far from every other student's for the ones after it.
pub(super) fn member_seed(seed: u64, member: usize) -> u64 {
    seed.wrapping_add((member as u64) << 40)
}

/// Trains the proxies of a task and gives the mean of what they say of its pool: logits, each row less its mean.
pub(super) fn labels(
    task: &Task,
    seed: u64,
    kept: Kept<'_>,
    control: &Control<'_>,
) -> Result<Labelled, TrainError> {
    let (Some(proxy), Some(pool), Some(config)) = (&task.proxy, &task.pool, &task.method.proxy) else {
        return Ok(Labelled::By(None));
    };
    let mut sum: Option<Tensor> = None;
    for member in 0..config.members {
        let name = kept.map(|(_, name)| format!("{name}-proxy")).unwrap_or_default();
        let kept = kept.map(|(folder, _)| (folder, name.as_str()));
        let trained = match train(proxy, member_seed(seed, member), kept, control)? {
            Ended::Finished(trained) => trained,
            Ended::Interrupted { step } => return Ok(Labelled::Interrupted { step }),
        };
        let said = centred(&answers(&trained.student, &pool.inputs, pool.count)?)?;
        sum = Some(match sum {
            Some(sum) => (sum + said)?,
            None => said,
        });
    }
    let mean = sum.map(|sum| sum / config.members as f64).transpose()?;
    Ok(Labelled::By(mean))
}
