//! Which part an input belongs to, and in which order inputs are bought: both follow from its key and a seed alone.
//!
//! It must not know where an input came from or what was answered. Invariant: an input lands on the same side whatever
//! else is in the data set, and the first n of an order are the first n of every longer one, so that a larger budget
//! keeps what a smaller one bought.

/// What a draw is for; draws for different purposes are independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draw {
    /// Whether an input is held out for the test.
    Test,
    /// Whether a bought answer is for validation.
    Validation,
    /// When an input is bought.
    Order,
}

impl Draw {
    fn name(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Validation => "validation",
            Self::Order => "order",
        }
    }

    /// A number that is as good as uniformly drawn, from the seed, the purpose and the key.
    #[must_use]
    pub fn number(self, seed: u64, key: &str) -> u64 {
        let mut hasher = blake3::Hasher::new_derive_key("tuition 2026 draw by key");
        hasher.update(&seed.to_le_bytes());
        hasher.update(self.name().as_bytes());
        hasher.update(&[0]);
        hasher.update(key.as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        u64::from_le_bytes(first)
    }

    /// Whether the key falls into the given fraction.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a draw needs 53 bits and no more")]
    pub fn holds(self, seed: u64, key: &str, fraction: f64) -> bool {
        // The upper 53 bits: exactly representable, and below one.
        ((self.number(seed, key) >> 11) as f64) / ((1_u64 << 53) as f64) < fraction
    }
}

/// The indices of `keys` in the order in which they are bought.
#[must_use]
pub fn order<K: AsRef<str>>(seed: u64, keys: &[K]) -> Vec<usize> {
    let mut drawn: Vec<(u64, &str, usize)> = keys
        .iter()
        .enumerate()
        .map(|(index, key)| (Draw::Order.number(seed, key.as_ref()), key.as_ref(), index))
        .collect();
    drawn.sort_unstable();
    drawn.into_iter().map(|(_, _, index)| index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(count: usize) -> Vec<String> {
        (0..count).map(|index| format!("key-{index}")).collect()
    }

    #[test]
    fn a_fraction_is_kept_and_draws_are_independent() {
        let keys = keys(4000);
        let side =
            |draw: Draw, seed| -> Vec<bool> { keys.iter().map(|key| draw.holds(seed, key, 0.3)).collect() };
        let test = side(Draw::Test, 7);
        let count = test.iter().filter(|held| **held).count();
        assert!((1080..1320).contains(&count), "{count} of 4000 at 0.3");
        let both = test
            .iter()
            .zip(side(Draw::Validation, 7))
            .filter(|(test, validation)| **test && *validation)
            .count();
        assert!((290..430).contains(&both), "{both} of 4000 at 0.09");
        assert_ne!(test, side(Draw::Test, 8));
        assert!(keys.iter().all(|key| Draw::Test.holds(0, key, 1.0) && !Draw::Test.holds(0, key, 0.0)));
    }

    #[test]
    fn an_input_keeps_its_place_when_others_come_or_go() {
        let all = keys(500);
        let few: Vec<&String> = all.iter().step_by(3).collect();
        let of_all: Vec<&String> = order(3, &all).into_iter().map(|index| &all[index]).collect();
        let of_few: Vec<&String> = order(3, &few).into_iter().map(|index| few[index]).collect();
        let kept: Vec<&String> = of_all.into_iter().filter(|key| few.contains(key)).collect();
        assert_eq!(kept, of_few);
        assert_ne!(order(3, &all), order(4, &all));
    }
}
