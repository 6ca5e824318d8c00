//! The order in which a run sees its examples or tuples: shuffled passes, each thing once a pass.
//!
//! It must not know what the things are. Invariant: `place` and `go_to` are exact inverses, so that a resumed run sees
//! what the interrupted one would have seen.

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Hands out indices below a count in shuffled passes.
#[derive(Debug)]
pub(crate) struct Sampler {
    rng: ChaCha8Rng,
    /// Where the random numbers stood when this pass was shuffled.
    shuffled_from: u128,
    order: Vec<u32>,
    at: usize,
}

/// Where a sampler stands. The position is text: JSON numbers do not hold 128 bits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Place {
    shuffled_from: String,
    at: usize,
}

impl Sampler {
    /// A sampler over `count` things, at the start of its first pass.
    pub(crate) fn new(count: usize, rng: ChaCha8Rng) -> Self {
        let mut sampler = Self { rng, shuffled_from: 0, order: (0..count as u32).collect(), at: 0 };
        sampler.shuffle();
        sampler
    }

    fn shuffle(&mut self) {
        self.shuffled_from = self.rng.get_word_pos();
        self.order.sort_unstable();
        self.order.shuffle(&mut self.rng);
        self.at = 0;
    }

    /// The next `size` indices, at most one pass of them.
    pub(crate) fn draw(&mut self, size: usize) -> Vec<u32> {
        let mut drawn = Vec::with_capacity(size);
        for _ in 0..size.min(self.order.len()) {
            if self.at == self.order.len() {
                self.shuffle();
            }
            drawn.push(self.order[self.at]);
            self.at += 1;
        }
        drawn
    }

    /// Where it stands.
    pub(crate) fn place(&self) -> Place {
        Place { shuffled_from: self.shuffled_from.to_string(), at: self.at }
    }

    /// Goes to where another sampler of the same count and seed stood; `None` if that is no place of this one.
    pub(crate) fn go_to(&mut self, place: &Place) -> Option<()> {
        self.rng.set_word_pos(place.shuffled_from.parse().ok()?);
        self.shuffle();
        self.at = place.at;
        (place.at <= self.order.len()).then_some(())
    }
}

/// One of a seed's independent streams of random numbers.
pub(crate) fn stream(seed: u64, number: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(number);
    rng
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_sees_each_thing_once() {
        let mut sampler = Sampler::new(10, stream(1, 1));
        let mut pass: Vec<u32> = (0..5).flat_map(|_| sampler.draw(2)).collect();
        assert_ne!(pass, (0..10).collect::<Vec<_>>());
        pass.sort_unstable();
        assert_eq!(pass, (0..10).collect::<Vec<_>>());
        assert_eq!(sampler.draw(64).len(), 10, "a batch holds no more than there is");
    }

    #[test]
    fn a_sampler_goes_on_where_another_stood() {
        for draws in [0, 1, 5, 7, 20] {
            let mut straight = Sampler::new(10, stream(1, 1));
            (0..draws).for_each(|_| drop(straight.draw(2)));
            let mut resumed = Sampler::new(10, stream(1, 1));
            resumed.go_to(&straight.place()).unwrap();
            for _ in 0..12 {
                assert_eq!(straight.draw(3), resumed.draw(3), "after {draws} draws");
            }
        }
    }

    #[test]
    fn streams_of_one_seed_differ() {
        assert_ne!(Sampler::new(50, stream(1, 1)).draw(50), Sampler::new(50, stream(1, 2)).draw(50));
    }
}
