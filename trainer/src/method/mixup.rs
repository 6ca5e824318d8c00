//! Mixing inputs in pairs, with the targets of both in the same proportion: value by value, x = lambda x_i + (1 - lambda) x_j
//! (mixup, arXiv 1710.09412), or a box of the one image in the other, lambda the share of the image outside it (CutMix, arXiv
//! 1905.04899).
//!
//! The teacher is not asked about mixed inputs: its recorded answers to both sides stand in. That is exact for losses
//! that are linear in the target, which labels and KD are up to a constant.

use rand::{Rng, RngExt, seq::SliceRandom};

/// How the rows of one batch are mixed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Mixup {
    /// The share of each row itself.
    pub(crate) lambda: f64,
    /// The row that it is mixed with.
    pub(crate) partners: Vec<u32>,
    /// For CutMix: 1 where a row keeps its own value, 0 inside the box; one number a value of the input.
    pub(crate) kept: Option<Vec<f32>>,
}

impl Mixup {
    /// Draws one share for the batch, uniform in 0..1, which is Beta(1, 1), and a permutation of its rows.
    pub(crate) fn draw(rows: &[u32], rng: &mut impl Rng) -> Self {
        let lambda = rng.random::<f64>();
        let mut partners = rows.to_vec();
        partners.shuffle(rng);
        Self { lambda, partners, kept: None }
    }

    /// Draws a box for images of `[C, H, W]`: of the share 1 - lambda of each side's square, about a uniform middle and cut off
    /// at the border; lambda becomes what is left outside it.
    pub(crate) fn cut(rows: &[u32], [channels, height, width]: [usize; 3], rng: &mut impl Rng) -> Self {
        let drawn = Self::draw(rows, rng);
        let share = (1.0 - drawn.lambda).sqrt();
        let mut side = |extent: usize| {
            let (middle, half) =
                (rng.random_range(0..extent as u32) as usize, (extent as f64 * share) as usize / 2);
            middle.saturating_sub(half)..(middle + half).min(extent)
        };
        let (lines, columns) = (side(height), side(width));
        let plane = (0..height * width).map(|at| {
            let inside = lines.contains(&(at / width)) && columns.contains(&(at % width));
            f32::from(u8::from(!inside))
        });
        let plane: Vec<f32> = plane.collect();
        let area = lines.len() * columns.len();
        let lambda = 1.0 - area as f64 / (height * width) as f64;
        Self { lambda, kept: Some(plane.repeat(channels)), ..drawn }
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

    #[test]
    fn a_box_has_the_area_that_lambda_says() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..300 {
            let cut = Mixup::cut(&[0, 1, 2], [2, 6, 5], &mut rng);
            let kept = cut.kept.unwrap();
            assert_eq!(kept[..30], kept[30..], "all channels alike");
            let outside: f32 = kept[..30].iter().sum();
            assert!((f64::from(outside) / 30.0 - cut.lambda).abs() < 1e-6);
            seen.insert(outside as usize);
        }
        assert!(seen.len() > 8 && seen.contains(&30), "{seen:?}");
    }
}
