//! Numbers from the standard normal distribution.
//!
//! It must not know what they are for. Invariant: each takes two numbers of its stream, so that the same stream gives the
//! same numbers in whatever portions they are drawn.

use rand::{Rng, RngExt};

/// One number from N(0, 1): Box and Muller's, of which one half is used.
pub(crate) fn normal(rng: &mut impl Rng) -> f64 {
    // 1 - u is never 0.
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn its_moments_are_those_of_the_distribution() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let drawn: Vec<f64> = (0..20_000).map(|_| normal(&mut rng)).collect();
        let moment = |power: i32| drawn.iter().map(|value| value.powi(power)).sum::<f64>() / 20_000.0;
        assert!(moment(1).abs() < 0.03, "{}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.05, "{}", moment(2));
        assert!((moment(4) - 3.0).abs() < 0.3, "{}", moment(4));
    }
}
