//! Comparisons of cached answers: tuples of examples with weights that say how their outputs are combined.
//!
//! A comparison costs no call: `n` answers give many more comparisons than `n`. This file must not know losses or
//! students. Invariants: a tuple never holds an example twice, no tuple is drawn twice, and the same seed draws the
//! same tuples. Source: Comparative Knowledge Distillation, arXiv 2311.02253.

use std::collections::BTreeSet;

use candle_core::{Result, Tensor};
use rand::{Rng, RngExt, seq::index};
use serde::{Deserialize, Serialize};

/// The most tuples drawn before training, as in the authors' released code.
pub(crate) const TUPLES_LIMIT: usize = 100_000;

/// How the outputs of a tuple are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Combine {
    /// The mean over the positives minus the mean over the negatives.
    #[default]
    Difference,
    /// The plain mean over the whole tuple: 0.5 x + 0.5 y for a pair.
    Add,
    /// `lambda` times the mean over the positives plus `1 - lambda` times the mean over the negatives, with `lambda`
    /// uniform in 0..1 for each tuple, which is Beta(1, 1).
    Mixup,
}

/// The shape of the tuples of one loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// How many examples count as positive.
    pub(crate) positives: usize,
    /// How many count as negative.
    pub(crate) negatives: usize,
    /// How their outputs are combined.
    pub(crate) combine: Combine,
}

impl Shape {
    /// The number of examples in a tuple.
    pub(crate) fn len(self) -> usize {
        self.positives + self.negatives
    }

    /// The weights of a tuple's outputs, positives first. `lambda` is read by mixup only.
    pub(crate) fn weights(self, lambda: f32) -> Vec<f32> {
        let (p, q) = (self.positives as f32, self.negatives as f32);
        let (positive, negative) = match self.combine {
            Combine::Difference => (1.0 / p, -1.0 / q),
            Combine::Add => (1.0 / (p + q), 1.0 / (p + q)),
            Combine::Mixup => (lambda / p, (1.0 - lambda) / q),
        };
        [vec![positive; self.positives], vec![negative; self.negatives]].concat()
    }

    /// How many different tuples `n` examples have: an order within the positives or negatives makes no difference.
    fn count(self, n: usize) -> u128 {
        choose(n, self.positives) * choose(n.saturating_sub(self.positives), self.negatives)
    }
}

/// A tuple of examples, positives first, with the weight of each one's output.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Comparison {
    pub(crate) items: Vec<u32>,
    pub(crate) weights: Vec<f32>,
}

/// Draws distinct tuples uniformly: at most `limit`, or all that there are when they are fewer.
pub(crate) fn sample(n: usize, shape: Shape, limit: usize, rng: &mut impl Rng) -> Vec<Comparison> {
    let wanted = shape.count(n).min(limit as u128) as usize;
    let dense = shape.count(n) < 2 * limit as u128;
    let mut tuples: Vec<Vec<u32>> = if dense { every(n, shape) } else { draw(n, shape, wanted, rng) };
    if dense {
        let order = index::sample(rng, tuples.len(), wanted);
        tuples = order.iter().map(|at| tuples[at].clone()).collect();
    }
    tuples
        .into_iter()
        .map(|items| {
            let lambda = if shape.combine == Combine::Mixup { rng.random::<f32>() } else { 0.0 };
            Comparison { items, weights: shape.weights(lambda) }
        })
        .collect()
}

/// Draws until `wanted` different tuples are there; used only where at least twice as many exist, so that it ends.
fn draw(n: usize, shape: Shape, wanted: usize, rng: &mut impl Rng) -> Vec<Vec<u32>> {
    let mut seen = BTreeSet::new();
    let mut tuples = Vec::with_capacity(wanted);
    while tuples.len() < wanted {
        let mut items: Vec<u32> = index::sample(rng, n, shape.len()).iter().map(|at| at as u32).collect();
        items[..shape.positives].sort_unstable();
        items[shape.positives..].sort_unstable();
        if seen.insert(items.clone()) {
            tuples.push(items);
        }
    }
    tuples
}

/// Every tuple, in lexical order.
fn every(n: usize, shape: Shape) -> Vec<Vec<u32>> {
    let all: Vec<u32> = (0..n as u32).collect();
    let mut tuples = Vec::new();
    for positives in subsets(&all, shape.positives) {
        let rest: Vec<u32> = all.iter().copied().filter(|item| !positives.contains(item)).collect();
        for negatives in subsets(&rest, shape.negatives) {
            tuples.push([positives.clone(), negatives].concat());
        }
    }
    tuples
}

fn subsets(items: &[u32], size: usize) -> Vec<Vec<u32>> {
    if size == 0 {
        return vec![vec![]];
    }
    let mut found = Vec::new();
    for (at, first) in items.iter().enumerate() {
        for mut rest in subsets(&items[at + 1..], size - 1) {
            rest.insert(0, *first);
            found.push(rest);
        }
    }
    found
}

fn choose(n: usize, k: usize) -> u128 {
    if k > n {
        return 0;
    }
    (0..k as u128).fold(1, |total, step| total.saturating_mul(n as u128 - step) / (step + 1))
}

/// Combines the outputs of `m` tuples of `k`: rows `[m * k, C]` and weights `[m, k]` give `[m, C]`.
pub(crate) fn combine(rows: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let (m, k) = weights.dims2()?;
    let classes = rows.dim(1)?;
    rows.reshape((m, k, classes))?.broadcast_mul(&weights.unsqueeze(2)?)?.sum(1)
}

/// The mean over ALL tuples of the squared combination of `errors` `[n, C]`, averaged over classes, in O(n C).
///
/// With distinct members, E ||sum_j w_j e_j||^2 = sum_j w_j^2 A + (sum_{j != l} w_j w_l) B, where A is the mean of
/// ||e||^2 and B the mean of e_i . e_j over i != j, which is (n ||mean e||^2 - A) / (n - 1). For differences this is
/// (1/p + 1/q) n/(n-1) (A - ||mean e||^2): logit-MSE with a free offset for each class.
pub(crate) fn all_tuples_mse(errors: &Tensor, weights: &[f32]) -> Result<Tensor> {
    let n = errors.dim(0)? as f64;
    let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
    let squares: f64 = weights.iter().map(|weight| f64::from(*weight).powi(2)).sum();
    let crossed = total * total - squares;
    let square_of_mean = errors.mean(0)?.sqr()?.mean_all()?;
    // Taken from the spread around the mean, not as a difference of two large numbers: f32 would lose the answer.
    let spread = errors.broadcast_sub(&errors.mean_keepdim(0)?)?.sqr()?.mean_all()?;
    // A = spread + ||mean||^2 and B = ||mean||^2 - spread / (n - 1).
    let on_spread = squares - crossed / (n - 1.0);
    (spread * on_spread)? + (square_of_mean * (squares + crossed))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    fn shape(positives: usize, negatives: usize, combine: Combine) -> Shape {
        Shape { positives, negatives, combine }
    }

    #[test]
    fn all_tuples_in_closed_form_equal_brute_force() {
        let n = 7;
        let values: Vec<f32> = (0..n * 3).map(|at| ((at * 37 % 23) as f32 - 11.0) / 4.0 + 2.5).collect();
        let errors = Tensor::from_vec(values, (n, 3), &Device::Cpu).unwrap();
        for (p, q, how) in [
            (1, 1, Combine::Difference),
            (2, 1, Combine::Difference),
            (2, 3, Combine::Difference),
            (1, 1, Combine::Add),
            (2, 2, Combine::Add),
        ] {
            let shape = shape(p, q, how);
            let tuples = every(n, shape);
            assert_eq!(tuples.len() as u128, shape.count(n));
            let weights = shape.weights(0.0);
            let rows = Tensor::new(tuples.concat(), &Device::Cpu).unwrap();
            let rows = errors.index_select(&rows, 0).unwrap();
            let all = Tensor::new(weights.repeat(tuples.len()), &Device::Cpu).unwrap();
            let all = all.reshape((tuples.len(), p + q)).unwrap();
            let brute =
                combine(&rows, &all).unwrap().sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
            let closed = all_tuples_mse(&errors, &weights).unwrap().to_scalar::<f32>().unwrap();
            assert!(
                (brute - closed).abs() < 1e-5 * brute.max(1.0),
                "{p}+{q} {how:?}: {brute} against {closed}"
            );
        }
    }

    #[test]
    fn the_pair_identity_is_the_published_one() {
        let errors = Tensor::new(&[[1f32, 0.0], [3.0, -2.0], [0.0, 5.0]], &Device::Cpu).unwrap();
        // 2n/(n-1) (mean ||e||^2 - ||mean e||^2) with n = 3: 3 (39/3 - 25/9) = 30.6667, and 15.3333 a class.
        let closed = all_tuples_mse(&errors, &[1.0, -1.0]).unwrap().to_scalar::<f32>().unwrap();
        assert!((closed - 46.0 / 3.0).abs() < 1e-5, "{closed}");
    }

    #[test]
    fn tuples_are_distinct_seeded_and_uniform() {
        for (n, limit) in [(6, 1000), (6, 20), (40, 50)] {
            let shape = shape(2, 1, Combine::Difference);
            let drawn = sample(n, shape, limit, &mut ChaCha8Rng::seed_from_u64(3));
            assert_eq!(drawn, sample(n, shape, limit, &mut ChaCha8Rng::seed_from_u64(3)));
            assert_ne!(drawn, sample(n, shape, limit, &mut ChaCha8Rng::seed_from_u64(4)));
            assert_eq!(drawn.len(), limit.min(60.max(if n == 6 { 0 } else { limit })));
            let distinct: BTreeSet<_> = drawn.iter().map(|tuple| tuple.items.clone()).collect();
            assert_eq!(distinct.len(), drawn.len());
            for tuple in &drawn {
                assert_eq!(tuple.items.iter().collect::<BTreeSet<_>>().len(), 3, "an example met itself");
                assert!(tuple.items.iter().all(|item| (*item as usize) < n));
                assert_eq!(tuple.weights, [0.5, 0.5, -1.0]);
            }
        }
        // Each of 40 examples is negative in about 1/40 of the tuples.
        let drawn = sample(40, shape(1, 1, Combine::Difference), 700, &mut ChaCha8Rng::seed_from_u64(0));
        let mut counts = [0; 40];
        drawn.iter().for_each(|tuple| counts[tuple.items[1] as usize] += 1);
        assert!(counts.iter().all(|count| (5..=32).contains(count)), "{counts:?}");
    }

    #[test]
    fn mixup_weights_are_a_convex_combination() {
        let drawn = sample(30, shape(1, 1, Combine::Mixup), 200, &mut ChaCha8Rng::seed_from_u64(1));
        let lambdas: Vec<f32> = drawn.iter().map(|tuple| tuple.weights[0]).collect();
        assert!(drawn.iter().all(|tuple| (tuple.weights.iter().sum::<f32>() - 1.0).abs() < 1e-6));
        assert!(lambdas.iter().any(|lambda| *lambda < 0.2) && lambdas.iter().any(|lambda| *lambda > 0.8));
    }
}
