//! Inputs as points: principal components, clusters and coverings of a pool, from its inputs alone.
//!
//! It must not know answers, students or budgets. Invariant: the same rows and the same random numbers give the same
//! points, clusters and choices.

use candle_core::{Device, Result, Tensor};
use rand::{Rng, RngExt, seq::index};

use crate::example::{Input, PADDING};

/// The most rows that components and centres are fitted to.
const SAMPLE: usize = 20_000;
/// Steps of the orthogonal iteration; the components are a means, not a result.
const ITERATIONS: usize = 30;
/// Steps of k-means.
const LLOYD: usize = 8;

/// Inputs as rows of numbers `[n, d]`: vectors as they are, bytes as the shares of their symbols.
pub(crate) fn rows<'a>(inputs: impl Iterator<Item = &'a Input>) -> Result<Tensor> {
    let (mut values, mut count) = (Vec::new(), 0);
    for input in inputs {
        count += 1;
        match input {
            Input::Vector(vector) => values.extend_from_slice(vector),
            Input::Bytes(symbols) => {
                let mut shares = vec![0.0f32; usize::from(PADDING) + 1];
                symbols.iter().for_each(|symbol| shares[usize::from(*symbol)] += 1.0 / symbols.len() as f32);
                values.extend(shares);
            }
        }
    }
    Tensor::from_vec(values, (count, ()), &Device::Cpu)
}

/// The first principal components of some rows.
#[derive(Debug, Clone)]
pub(crate) struct Components {
    /// `[d]`.
    pub(crate) mean: Tensor,
    /// Orthonormal columns `[d, k]`, the greatest variance first.
    pub(crate) axes: Tensor,
    /// The variance along each, `[k]`.
    pub(crate) variances: Vec<f32>,
}

impl Components {
    /// Fits `count` components (fewer where there are fewer columns) to `rows`, to a sample of them where there are many, by
    /// orthogonal iteration on the covariance (Golub and Van Loan, Matrix Computations, section 8.2.4).
    pub(crate) fn of(rows: &Tensor, count: usize, rng: &mut impl Rng) -> Result<Self> {
        let sample = rows.index_select(&Tensor::new(sample(rows.dim(0)?, rng), rows.device())?, 0)?;
        let (n, width) = sample.dims2()?;
        let count = count.min(width);
        let mean = sample.mean(0)?;
        let centred = sample.broadcast_sub(&mean)?;
        let covariance = (centred.t()?.contiguous()?.matmul(&centred)? / n as f64)?;
        let start: Vec<f32> = (0..width * count).map(|_| rng.random::<f32>() - 0.5).collect();
        let mut axes = orthonormal(&Tensor::from_vec(start, (width, count), rows.device())?)?;
        for _ in 0..ITERATIONS {
            axes = orthonormal(&covariance.matmul(&axes)?)?;
        }
        Ok(Self { variances: (covariance.matmul(&axes)? * &axes)?.sum(0)?.to_vec1()?, mean, axes })
    }

    /// Rows `[n, d]` to their places `[n, k]`.
    pub(crate) fn places(&self, rows: &Tensor) -> Result<Tensor> {
        rows.broadcast_sub(&self.mean)?.matmul(&self.axes)
    }
}

/// At most [`SAMPLE`] distinct rows, in ascending order.
fn sample(count: usize, rng: &mut impl Rng) -> Vec<u32> {
    if count <= SAMPLE {
        return (0..count as u32).collect();
    }
    let mut drawn: Vec<u32> = index::sample(rng, count, SAMPLE).into_iter().map(|at| at as u32).collect();
    drawn.sort_unstable();
    drawn
}

/// The columns made orthonormal, one after the other (Gram-Schmidt, twice, in f64).
fn orthonormal(columns: &Tensor) -> Result<Tensor> {
    let by_column: Vec<Vec<f32>> = columns.t()?.to_vec2()?;
    let mut done: Vec<Vec<f64>> = Vec::with_capacity(by_column.len());
    let dot = |one: &[f64], two: &[f64]| one.iter().zip(two).map(|(a, b)| a * b).sum::<f64>();
    for column in by_column {
        let mut column: Vec<f64> = column.into_iter().map(f64::from).collect();
        for _ in 0..2 {
            for earlier in &done {
                let along = dot(&column, earlier);
                column.iter_mut().zip(earlier).for_each(|(value, axis)| *value -= along * axis);
            }
        }
        let length = dot(&column, &column).sqrt();
        // A direction without variance stays out.
        column.iter_mut().for_each(|value| *value = if length > 1e-12 { *value / length } else { 0.0 });
        done.push(column);
    }
    let (count, width) = columns.t()?.dims2()?;
    let values: Vec<f32> = done.concat().into_iter().map(|value| value as f32).collect();
    Tensor::from_vec(values, (count, width), columns.device())?.t()?.contiguous()
}

/// Squared distances of `points` `[n, k]` from `centres` `[m, k]`: `[n, m]`.
fn distances(points: &Tensor, centres: &Tensor) -> Result<Tensor> {
    let squares = |all: &Tensor| all.sqr()?.sum_keepdim(1);
    let cross = (points.matmul(&centres.t()?.contiguous()?)? * -2.0)?;
    cross.broadcast_add(&squares(points)?)?.broadcast_add(&squares(centres)?.t()?)
}

/// Points looked at together: more would hold too many distances at once.
const CHUNK: usize = 2048;

/// The index of the nearest of `centres` for each of `points`.
fn nearest(points: &Tensor, centres: &Tensor) -> Result<Vec<u32>> {
    let count = points.dim(0)?;
    let mut all = Vec::with_capacity(count);
    for start in (0..count).step_by(CHUNK) {
        let chunk = points.narrow(0, start, CHUNK.min(count - start))?;
        all.extend(distances(&chunk, centres)?.argmin(1)?.to_vec1::<u32>()?);
    }
    Ok(all)
}

/// Clusters of points by k-means (Lloyd's algorithm from distinct random points).
#[derive(Debug, Clone)]
pub(crate) struct Clusters {
    centres: Tensor,
}

impl Clusters {
    /// Fits `count` centres (fewer where there are fewer points) to a sample of `points` `[n, k]`.
    pub(crate) fn of(points: &Tensor, count: usize, rng: &mut impl Rng) -> Result<Self> {
        let drawn = sample(points.dim(0)?, rng);
        let (device, sample) =
            (points.device(), points.index_select(&Tensor::new(drawn, points.device())?, 0)?);
        let (n, width) = sample.dims2()?;
        let first: Vec<u32> = index::sample(rng, n, count.min(n)).into_iter().map(|at| at as u32).collect();
        let mut centres = sample.index_select(&Tensor::new(first, device)?, 0)?;
        let rows = sample.to_vec2::<f32>()?;
        for _ in 0..LLOYD {
            let own = nearest(&sample, &centres)?;
            let mut moved = centres.to_vec2::<f32>()?;
            let (mut sums, mut counts) = (vec![vec![0f64; width]; moved.len()], vec![0usize; moved.len()]);
            for (row, own) in rows.iter().zip(own) {
                counts[own as usize] += 1;
                sums[own as usize].iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
            }
            for ((centre, sum), count) in
                moved.iter_mut().zip(sums).zip(counts).filter(|(_, count)| *count > 0)
            {
                centre.iter_mut().zip(sum).for_each(|(at, sum)| *at = (sum / count as f64) as f32);
            }
            centres = Tensor::from_vec(moved.concat(), (moved.len(), width), device)?;
        }
        Ok(Self { centres })
    }

    /// The cluster of each point.
    pub(crate) fn assign(&self, points: &Tensor) -> Result<Vec<u32>> {
        nearest(points, &self.centres)
    }

    /// For each centre the nearest of `points` that no earlier centre took.
    pub(crate) fn representatives(&self, points: &Tensor) -> Result<Vec<usize>> {
        let mut taken = vec![false; points.dim(0)?];
        let mut chosen = Vec::new();
        for start in (0..self.centres.dim(0)?).step_by(64) {
            let centres = self.centres.narrow(0, start, 64.min(self.centres.dim(0)? - start))?;
            for row in distances(&centres, points)?.to_vec2::<f32>()? {
                let free = row.iter().enumerate().filter(|(at, _)| !taken[*at]);
                let Some((at, _)) = free.min_by(|one, two| one.1.total_cmp(two.1)) else { break };
                taken[at] = true;
                chosen.push(at);
            }
        }
        Ok(chosen)
    }
}

/// Points chosen one by one, each the farthest from those `covered` `[m, k]` (none at first: the first point) and those chosen
/// before: the greedy k-centre algorithm (Gonzalez, 1985; arXiv 1708.00489). Indices into `points` `[n, k]`.
pub(crate) fn k_centre(points: &Tensor, covered: Option<&Tensor>, count: usize) -> Result<Vec<usize>> {
    let n = points.dim(0)?;
    let mut far = vec![f32::INFINITY; n];
    if let Some(covered) = covered {
        for start in (0..covered.dim(0)?).step_by(256) {
            let some = covered.narrow(0, start, 256.min(covered.dim(0)? - start))?;
            let nearest = distances(points, &some)?.min(1)?.to_vec1::<f32>()?;
            far.iter_mut().zip(nearest).for_each(|(far, new)| *far = far.min(new));
        }
    }
    let mut chosen: Vec<usize> = Vec::new();
    while chosen.len() < count.min(n) {
        let mut best = None;
        for (at, distance) in far.iter().enumerate() {
            if best.is_none_or(|best: usize| *distance > far[best]) && !chosen.contains(&at) {
                best = Some(at);
            }
        }
        let Some(at) = best else { break };
        chosen.push(at);
        let nearest = distances(points, &points.narrow(0, at, 1)?)?.flatten_all()?.to_vec1::<f32>()?;
        far.iter_mut().zip(nearest).for_each(|(far, new)| *far = far.min(new));
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    fn tensor(rows: &[[f32; 2]]) -> Tensor {
        Tensor::from_slice(&rows.concat(), (rows.len(), 2), &Device::Cpu).unwrap()
    }

    #[test]
    fn components_are_those_of_the_covariance() {
        // By definition: C v = variance v, and the axes are orthonormal.
        let rows = tensor(&[[3.0, 1.0], [-2.0, -1.5], [1.0, 1.0], [-3.0, -1.0], [1.0, 0.5]]);
        let found = Components::of(&rows, 5, &mut ChaCha8Rng::seed_from_u64(1)).unwrap();
        assert_eq!(found.mean.to_vec1::<f32>().unwrap(), [0.0, 0.0]);
        let centred = rows.to_vec2::<f32>().unwrap();
        let covariance = |i: usize, j: usize| centred.iter().map(|row| row[i] * row[j]).sum::<f32>() / 5.0;
        let axes = found.axes.t().unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(axes.len(), 2, "no more than there are columns");
        for (axis, variance) in axes.iter().zip(&found.variances) {
            for i in 0..2 {
                let applied = covariance(i, 0) * axis[0] + covariance(i, 1) * axis[1];
                assert!((applied - variance * axis[i]).abs() < 1e-4, "{axis:?} {variance}");
            }
            assert!((axis[0].powi(2) + axis[1].powi(2) - 1.0).abs() < 1e-5);
        }
        assert!((axes[0][0] * axes[1][0] + axes[0][1] * axes[1][1]).abs() < 1e-5);
        assert!(found.variances[0] > found.variances[1]);
        let trace = covariance(0, 0) + covariance(1, 1);
        assert!((found.variances.iter().sum::<f32>() - trace).abs() < 1e-4);
    }

    #[test]
    fn clusters_are_found_and_each_has_its_own_representative() {
        let blobs: Vec<[f32; 2]> = (0..90)
            .map(|at| {
                let [x, y] = [[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]][at % 3];
                [x + (at as f32).sin(), y + (at as f32).cos()]
            })
            .collect();
        let points = tensor(&blobs);
        for seed in 0..5 {
            let clusters = Clusters::of(&points, 9, &mut ChaCha8Rng::seed_from_u64(seed)).unwrap();
            let mut chosen = clusters.representatives(&points).unwrap();
            chosen.sort_unstable();
            chosen.dedup();
            assert_eq!(chosen.len(), 9, "each once");
            let own = clusters.assign(&points).unwrap();
            for (one, two) in
                own.iter().zip(&blobs).flat_map(|one| own.iter().zip(&blobs).map(move |two| (one, two)))
            {
                let apart = (one.1[0] - two.1[0]).hypot(one.1[1] - two.1[1]);
                assert!(one.0 != two.0 || apart < 3.0, "a cluster spans two blobs");
            }
        }
    }

    #[test]
    fn k_centre_takes_the_farthest_each_time() {
        let points = tensor(&[[0.0, 0.0], [1.0, 0.0], [5.0, 0.0], [9.0, 0.0], [4.0, 0.0]]);
        assert_eq!(k_centre(&points, None, 3).unwrap(), [0, 3, 2]);
        let covered = tensor(&[[9.0, 0.0]]);
        assert_eq!(k_centre(&points, Some(&covered), 2).unwrap(), [0, 2]);
        assert_eq!(k_centre(&points, None, 99).unwrap().len(), 5);
    }

    #[test]
    fn bytes_are_the_shares_of_their_symbols() {
        let inputs = [Input::Bytes(vec![1, 1, 256, 3])];
        let rows = rows(inputs.iter()).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!((rows[0][1], rows[0][3], rows[0][256], rows[0].len()), (0.5, 0.25, 0.25, 257));
    }
}
