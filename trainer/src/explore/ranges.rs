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
