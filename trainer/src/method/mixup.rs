//! Mixing inputs in pairs, with the targets of both: x = lambda x_i + (1 - lambda) x_j and the losses of both targets in
//! the same proportion. Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", arXiv 1710.09412.
//!
//! The teacher is not asked about mixed inputs: its recorded answers to both sides stand in. That is exact for losses
//! that are linear in the target, which labels and KD are up to a constant.

use rand::{Rng, RngExt, seq::SliceRandom};

/// How the rows of one batch are mixed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Mixup {
    /// The share of each row itself, uniform in 0..1, which is Beta(1, 1).
    pub(crate) lambda: f64,
    /// The row that it is mixed with.
    pub(crate) partners: Vec<u32>,
}

impl Mixup {
    /// Draws one share for the batch and a permutation of its rows.
    pub(crate) fn draw(rows: &[u32], rng: &mut impl Rng) -> Self {
        let lambda = rng.random::<f64>();
        let mut partners = rows.to_vec();
        partners.shuffle(rng);
        Self { lambda, partners }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn partners_are_the_same_rows_in_another_order() {
        let rows = [4, 8, 15, 16, 23, 42];
        let drawn = Mixup::draw(&rows, &mut ChaCha8Rng::seed_from_u64(1));
        assert_eq!(drawn, Mixup::draw(&rows, &mut ChaCha8Rng::seed_from_u64(1)));
        assert!((0.0..1.0).contains(&drawn.lambda));
        assert_ne!(drawn.partners, rows);
        let mut sorted = drawn.partners;
        sorted.sort_unstable();
        assert_eq!(sorted, rows);
    }
}
