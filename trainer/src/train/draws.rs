//! What each step sees: the drawn examples or tuples, inputs of the pool with a proxy's labels and without, and how all of them
//! are changed on the way.
//!
//! It must not know the student's values or the optimizer. Invariant: `places` and `go_to` are exact inverses, so that a
//! resumed run sees what the interrupted one would have seen.

use candle_core::{Result, Tensor};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::sampler::{Place, Sampler, stream};
use super::task::Task;
use crate::compare::Comparison;
use crate::loss::Batch;
use crate::method::Mixup;
use crate::student::Inputs;

/// The draws of one seed.
pub(super) struct Draws {
    examples: Sampler,
    /// The tuples that are drawn in the place of examples, where a loss compares them.
    comparisons: Option<Vec<Comparison>>,
    mixing: ChaCha8Rng,
    augmenting: ChaCha8Rng,
    /// What the proxies say of the pool, and the order in which it is learnt.
    labelled: Option<(Tensor, Sampler)>,
    /// The order in which inputs of the pool are held together.
    unasked: Option<Sampler>,
}

/// Where the draws of a seed stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Places {
    examples: Place,
    mixing: String,
    augmenting: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    labelled: Option<Place>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unasked: Option<Place>,
}

/// A batch whose inputs are mixed in pairs, with the targets of both sides.
pub(super) struct Mixed {
    pub(super) inputs: Inputs,
    pub(super) own: Batch,
    pub(super) other: Batch,
    /// The share of `own`.
    pub(super) lambda: f64,
}

impl Draws {
    /// The draws before the first step; `labels` are what the proxies say of the pool.
    pub(super) fn start(task: &Task, seed: u64, labels: Option<Tensor>) -> Self {
        let comparisons = task.comparisons(&mut stream(seed, 1));
        let count = comparisons.as_ref().map_or(task.train.count, Vec::len);
        let pool = task.pool.as_ref();
        let of_pool = |number| pool.map(|pool| Sampler::new(pool.count, stream(seed, number)));
        Self {
            examples: Sampler::new(count, stream(seed, 2)),
            comparisons,
            mixing: stream(seed, 3),
            augmenting: stream(seed, 4),
            labelled: labels.zip(of_pool(5)),
            unasked: task.method.consistency.as_ref().and_then(|_| of_pool(6)),
        }
    }

    /// The next examples or tuples with the teacher's answers.
    pub(super) fn answered(&mut self, task: &Task) -> Result<(Inputs, Batch)> {
        let drawn = self.examples.draw(task.config.batch);
        let (inputs, batch) = match &self.comparisons {
            None => task.batch(&drawn, None)?,
            Some(all) => compared(task, &drawn, all)?,
        };
        Ok((self.augmented(task, inputs)?, batch))
    }

    /// The next examples, each mixed with another of them.
    pub(super) fn mixed(&mut self, task: &Task) -> Result<Mixed> {
        let drawn = self.examples.draw(task.config.batch);
        let mixup = match task.student.image().filter(|_| task.method.cutmix) {
            Some(image) => Mixup::cut(&drawn, image, &mut self.mixing),
            None => Mixup::draw(&drawn, &mut self.mixing),
        };
        let (inputs, own, other) = task.mixed(&drawn, &mixup)?;
        Ok(Mixed { inputs: self.augmented(task, inputs)?, own, other, lambda: mixup.lambda })
    }

    /// The next inputs of the pool with the proxies' labels.
    pub(super) fn labelled(&mut self, task: &Task) -> Result<Option<(Inputs, Batch)>> {
        let Some(((labels, sampler), proxy)) = self.labelled.as_mut().zip(task.method.proxy.as_ref()) else {
            return Ok(None);
        };
        let drawn = sampler.draw(proxy.batch);
        let (inputs, batch) = task.proxied(&drawn, labels)?;
        Ok(Some((self.augmented(task, inputs)?, batch)))
    }

    /// A weak and a strong view of the next inputs of the pool.
    pub(super) fn views(&mut self, task: &Task) -> Result<Option<[Inputs; 2]>> {
        let (Some(sampler), Some(consistency)) = (&mut self.unasked, &task.method.consistency) else {
            return Ok(None);
        };
        let (Some(pool), Some(image)) = (&task.pool, task.student.image()) else { return Ok(None) };
        let drawn = sampler.draw(consistency.batch);
        let inputs = pool.inputs.select(&Tensor::new(&drawn[..], &task.machine.device)?)?;
        let weak = self.augmented(task, inputs.clone())?;
        let strong = consistency.strong.apply(inputs, image, &mut self.augmenting)?;
        Ok(Some([weak, strong]))
    }

    /// Inputs, changed where the run asks for it.
    fn augmented(&mut self, task: &Task, inputs: Inputs) -> Result<Inputs> {
        match (&task.config.augment, task.student.image()) {
            (Some(augment), Some(image)) => augment.apply(inputs, image, &mut self.augmenting),
            _ => Ok(inputs),
        }
    }

    /// Where they stand.
    pub(super) fn places(&self) -> Places {
        Places {
            examples: self.examples.place(),
            mixing: self.mixing.get_word_pos().to_string(),
            augmenting: self.augmenting.get_word_pos().to_string(),
            labelled: self.labelled.as_ref().map(|(_, sampler)| sampler.place()),
            unasked: self.unasked.as_ref().map(Sampler::place),
        }
    }

    /// Goes to where others of the same task and seed stood; `None` if those are no places of these.
    pub(super) fn go_to(&mut self, places: &Places) -> Option<()> {
        self.examples.go_to(&places.examples)?;
        self.mixing.set_word_pos(places.mixing.parse().ok()?);
        self.augmenting.set_word_pos(places.augmenting.parse().ok()?);
        if let Some((_, sampler)) = &mut self.labelled {
            sampler.go_to(places.labelled.as_ref()?)?;
        }
        if let Some(sampler) = &mut self.unasked {
            sampler.go_to(places.unasked.as_ref()?)?;
        }
        Some(())
    }
}

/// The examples of the drawn tuples, tuple after tuple, with their weights.
fn compared(task: &Task, drawn: &[u32], all: &[Comparison]) -> Result<(Inputs, Batch)> {
    let tuples = || drawn.iter().map(|at| &all[*at as usize]);
    let rows: Vec<u32> = tuples().flat_map(|tuple| tuple.items.iter().copied()).collect();
    let weights: Vec<f32> = tuples().flat_map(|tuple| tuple.weights.iter().copied()).collect();
    let weights = Tensor::from_vec(weights, (drawn.len(), ()), &task.machine.device)?;
    task.batch(&rows, Some(weights))
}
