//! What is random about exploring: from which real input each walk starts, and its noise.
//!
//! It must not know generators or students. Invariant: what is drawn for the j-th made input depends on the seed and j alone
//! (and with `long_tail` on the answers so far), so that a greater budget goes on where a smaller one ended.

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::example::{Example, Target};
use crate::normal::normal;
use crate::train::stream;

/// The first of the random streams of made inputs, and of the passes over the starts.
const STREAMS: u64 = 1 << 35;
const PASSES: u64 = 1 << 36;

/// One made input in the making.
pub(super) struct Slot {
    number: usize,
    rng: ChaCha8Rng,
}

impl Slot {
    /// The `number`-th made input of a run.
    pub(super) fn new(seed: u64, number: usize) -> Self {
        Self { number, rng: stream(seed, STREAMS + number as u64) }
    }

    /// The real input that it starts from.
    pub(super) fn start(&mut self, starts: &Starts) -> usize {
        match starts {
            Starts::Even { seed, count } => {
                let mut order: Vec<usize> = (0..*count).collect();
                order.shuffle(&mut stream(*seed, PASSES + (self.number / count) as u64));
                order[self.number % count]
            }
            Starts::Weighted(sums) => {
                let total = sums.last().copied().unwrap_or(0.0);
                let at = self.rng.random::<f64>() * total;
                sums.partition_point(|sum| *sum <= at).min(sums.len().saturating_sub(1))
            }
        }
    }

    /// `count` numbers from N(0, sigma^2).
    pub(super) fn noise(&mut self, count: usize, sigma: f64) -> Vec<f32> {
        (0..count).map(|_| (normal(&mut self.rng) * sigma) as f32).collect()
    }
}

/// How often each real input is started from.
#[derive(Debug, PartialEq)]
pub(super) enum Starts {
    /// Shuffled passes, each once a pass.
    Even {
        /// The seed.
        seed: u64,
        /// How many there are.
        count: usize,
    },
    /// At random; the running sums of their weights.
    Weighted(Vec<f64>),
}

impl Starts {
    /// Each in proportion to the inverse of how often the teacher named its class in `answered`, of which the first `real`
    /// are the starts.
    pub(super) fn rare_first(answered: &[Example], real: usize) -> Self {
        let classes: Vec<usize> = answered
            .iter()
            .map(|example| example.target.as_ref().map_or(0, Target::label) as usize)
            .collect();
        let mut counts = vec![0usize; classes.iter().max().map_or(0, |most| most + 1)];
        classes.iter().for_each(|class| counts[*class] += 1);
        let weights = classes.iter().take(real).map(|class| 1.0 / counts[*class] as f64);
        let sums = weights.scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        });
        Self::Weighted(sums.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::Input;

    #[test]
    fn each_start_is_taken_once_a_pass_whatever_the_rounds() {
        let starts = Starts::Even { seed: 3, count: 7 };
        let mut taken = vec![0; 7];
        let all: Vec<usize> = (0..21).map(|at| Slot::new(3, at).start(&starts)).collect();
        all.iter().for_each(|at| taken[*at] += 1);
        assert_eq!(taken, [3; 7]);
        assert_ne!(all[..7], all[7..14], "the passes are the same");
    }

    #[test]
    fn the_long_tail_is_started_from_more_often() {
        // Of ten real inputs nine are of class 0, but all that was made since was class 1 as well.
        let example = |class: u32| Example {
            key: String::new(),
            input: Input::Vector(vec![]),
            target: Some(Target::Label(class)),
            truth: None,
            hidden: vec![],
        };
        let of_rare = |answered: &[Example]| {
            let starts = Starts::rare_first(answered, 10);
            (0..2000).filter(|at| Slot::new(0, *at).start(&starts) == 9).count()
        };
        let mut answered: Vec<Example> =
            [[0; 9].as_slice(), &[1]].concat().into_iter().map(example).collect();
        // Weights 1/9 nine times and 1: the rare one is half of the draws; evenly it would be a tenth.
        assert!((900..1100).contains(&of_rare(&answered)), "{}", of_rare(&answered));
        answered.extend((0..8).map(|_| example(1)));
        // Class 1 was named nine times by now: all alike.
        assert!((120..280).contains(&of_rare(&answered)), "{}", of_rare(&answered));
    }
}
