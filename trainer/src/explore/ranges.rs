//! Where the values of each column lie: what is made stays there, so that a teacher gets inputs like those it knows.
//!
//! It must not know how inputs are made. Invariant: what is within its range is not changed by a bit, but for the sign of
//! zero, which no question tells apart.

use candle_core::{Result, Tensor};

/// The least, the greatest and the deviation of each column.
#[derive(Debug)]
pub(super) struct Ranges {
    low: Vec<f32>,
    high: Vec<f32>,
    /// The standard deviations.
    pub(super) deviations: Vec<f32>,
}

impl Ranges {
    /// Those of `rows` `[n, d]`.
    pub(super) fn of(rows: &Tensor) -> Result<Self> {
        let mean = rows.mean(0)?;
        let deviations = rows.broadcast_sub(&mean)?.sqr()?.mean(0)?.sqrt()?;
        Ok(Self {
            low: rows.min(0)?.to_vec1()?,
            high: rows.max(0)?.to_vec1()?,
            deviations: deviations.to_vec1()?,
        })
    }

    /// The row with every value within its range.
    pub(super) fn clamp(&self, row: &[f32]) -> Vec<f32> {
        let bounds = self.low.iter().zip(&self.high);
        // Adding 0 makes -0 a 0.
        row.iter().zip(bounds).map(|(value, (low, high))| value.clamp(*low, *high) + 0.0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn what_is_made_stays_within_the_range_of_its_column() {
        let rows = Tensor::new(&[[0.0f32, -1.0], [2.0, -1.0], [4.0, -1.0]], &Device::Cpu).unwrap();
        let ranges = Ranges::of(&rows).unwrap();
        assert_eq!(ranges.clamp(&[5.0, 0.0]), [4.0, -1.0]);
        assert_eq!(ranges.clamp(&[-0.5, -7.0]), [0.0, -1.0]);
        assert_eq!(ranges.clamp(&[-0.0, -1.0])[0].to_bits(), 0.0f32.to_bits());
        assert_eq!(ranges.clamp(&[0.1, -1.0])[0].to_bits(), 0.1f32.to_bits());
        assert!((ranges.deviations[0] - (8.0f32 / 3.0).sqrt()).abs() < 1e-6, "{:?}", ranges.deviations);
        assert_eq!(ranges.deviations[1], 0.0);
    }
}
