//! The two products that convolutions are made of, as pure functions on slices.
//!
//! It must not know tensors, images or threads. Both keep a tile of sums in registers and read rows of channels that lie
//! next to each other; what the machine has (AVX-512, AVX2 or neither) is found out at run time. Invariant: the order of
//! every sum follows from the sizes alone, so the same machine gives the same bits.

use std::array;

use pulp::{Arch, Simd, WithSimd};

/// The number of columns of packed weights is a multiple of this: the widest register's f32s.
const WIDEST: usize = 16;
/// The weights that one pass over the rows uses should stay in the first-level cache: 24 KiB.
const PASS: usize = 24 * 1024 / size_of::<f32>();

/// The number of columns that `columns` are padded to in packed weights.
pub(super) fn padded(columns: usize) -> usize {
    columns.next_multiple_of(WIDEST)
}

/// The sizes of a product: `n` rows of `inner` channels in, of `outer` channels out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) n: usize,
    pub(super) inner: usize,
    pub(super) outer: usize,
}

/// Where one summand of a product of rows and weights begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tap {
    /// In the source: `[n, inner]` from there.
    pub(super) source: usize,
    /// In the packed weights: `[inner, padded(outer)]` from there.
    pub(super) weights: usize,
}

/// out `[n, outer]` = the sum over `taps` of source `[n, inner]` times weights `[inner, outer]`; zero without a tap.
pub(super) fn gather(sizes: Sizes, taps: &[Tap], source: &[f32], weights: &[f32], out: &mut [f32]) {
    if taps.is_empty() {
        return out.fill(0.0);
    }
    Arch::new().dispatch(Gather { sizes, taps, source, weights, out });
}

/// out `[inner, padded(outer)]` += the sum over `pairs` of (source `[n, inner]`) transposed times (gradient
/// `[n, outer]`); a pair says where its two parts begin.
pub(super) fn accumulate(
    sizes: Sizes,
    pairs: &[(usize, usize)],
    source: &[f32],
    gradient: &[f32],
    out: &mut [f32],
) {
    Arch::new().dispatch(Accumulate { sizes, pairs, source, gradient, out });
}

struct Gather<'a> {
    sizes: Sizes,
    taps: &'a [Tap],
    source: &'a [f32],
    weights: &'a [f32],
    out: &'a mut [f32],
}

struct Accumulate<'a> {
    sizes: Sizes,
    pairs: &'a [(usize, usize)],
    source: &'a [f32],
    gradient: &'a [f32],
    out: &'a mut [f32],
}

// Sixteen sums in registers where there are 32 of them, else eight: as many columns as the weights have, the rest rows.
impl WithSimd for Gather<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let columns = padded(self.sizes.outer) / S::F32_LANES;
        match S::REGISTER_COUNT >= 32 && S::F32_LANES == WIDEST {
            true if columns.is_multiple_of(4) => self.run::<S, 4, 4>(simd),
            true if columns.is_multiple_of(2) => self.run::<S, 8, 2>(simd),
            true => self.run::<S, 16, 1>(simd),
            false => self.run::<S, 4, 2>(simd),
        }
    }
}

impl WithSimd for Accumulate<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let columns = padded(self.sizes.outer) / S::F32_LANES;
        match S::REGISTER_COUNT >= 32 && S::F32_LANES == WIDEST {
            true if columns.is_multiple_of(4) => self.run::<S, 4, 4>(simd),
            true if columns.is_multiple_of(2) => self.run::<S, 8, 2>(simd),
            true => self.run::<S, 16, 1>(simd),
            false => self.run::<S, 4, 2>(simd),
        }
    }
}

impl Gather<'_> {
    #[inline(always)]
    fn run<S: Simd, const ROWS: usize, const COLUMNS: usize>(mut self, simd: S) {
        let Sizes { n, inner, outer } = self.sizes;
        let pass = (PASS / (inner * padded(outer)).max(1)).max(1);
        let taps = self.taps;
        for (at, taps) in taps.chunks(pass).enumerate() {
            for column in (0..padded(outer)).step_by(COLUMNS * S::F32_LANES) {
                let whole = n - n % ROWS;
                for row in (0..whole).step_by(ROWS) {
                    self.tile::<S, ROWS, COLUMNS>(simd, taps, row, column, at == 0);
                }
                for row in whole..n {
                    self.tile::<S, 1, COLUMNS>(simd, taps, row, column, at == 0);
                }
            }
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const ROWS: usize, const COLUMNS: usize>(
        &mut self,
        simd: S,
        taps: &[Tap],
        row: usize,
        column: usize,
        first: bool,
    ) {
        let Sizes { inner, outer, .. } = self.sizes;
        let out = &mut self.out[row * outer..(row + ROWS) * outer];
        let mut sums = [[simd.splat_f32s(0.0); COLUMNS]; ROWS];
        if !first {
            for (sums, out) in sums.iter_mut().zip(out.chunks_exact(outer)) {
                *sums = load(simd, out, column);
            }
        }
        for tap in taps {
            let rows: [&[f32]; ROWS] =
                array::from_fn(|at| &self.source[tap.source + (row + at) * inner..][..inner]);
            let weights = &self.weights[tap.weights..][..inner * padded(outer)];
            for (at, weights) in weights.chunks_exact(padded(outer)).enumerate() {
                let weights: [S::f32s; COLUMNS] = load_whole::<S, COLUMNS>(weights, column);
                for (sums, row) in sums.iter_mut().zip(&rows) {
                    let value = simd.splat_f32s(row[at]);
                    for (sum, weights) in sums.iter_mut().zip(weights) {
                        *sum = simd.mul_add_e_f32s(value, weights, *sum);
                    }
                }
            }
        }
        for (sums, out) in sums.iter().zip(out.chunks_exact_mut(outer)) {
            store(simd, out, column, sums);
        }
    }
}

impl Accumulate<'_> {
    #[inline(always)]
    fn run<S: Simd, const ROWS: usize, const COLUMNS: usize>(mut self, simd: S) {
        let Sizes { n, inner, outer } = self.sizes;
        let (pairs, sources, gradients) = (self.pairs, self.source, self.gradient);
        for (source, gradient) in pairs {
            let (source, gradient) = (&sources[*source..][..n * inner], &gradients[*gradient..][..n * outer]);
            for column in (0..padded(outer)).step_by(COLUMNS * S::F32_LANES) {
                let whole = inner - inner % ROWS;
                for row in (0..whole).step_by(ROWS) {
                    self.tile::<S, ROWS, COLUMNS>(simd, source, gradient, row, column);
                }
                for row in whole..inner {
                    self.chains::<S, COLUMNS>(simd, source, gradient, row, column);
                }
            }
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const ROWS: usize, const COLUMNS: usize>(
        &mut self,
        simd: S,
        source: &[f32],
        gradient: &[f32],
        row: usize,
        column: usize,
    ) {
        let Sizes { inner, outer, .. } = self.sizes;
        let out = &mut self.out[row * padded(outer)..(row + ROWS) * padded(outer)];
        let mut sums = [[simd.splat_f32s(0.0); COLUMNS]; ROWS];
        for (sums, out) in sums.iter_mut().zip(out.chunks_exact(padded(outer))) {
            *sums = load_whole::<S, COLUMNS>(out, column);
        }
        for (source, gradient) in source.chunks_exact(inner).zip(gradient.chunks_exact(outer)) {
            let gradient: [S::f32s; COLUMNS] = load(simd, gradient, column);
            for (sums, value) in sums.iter_mut().zip(&source[row..row + ROWS]) {
                let value = simd.splat_f32s(*value);
                for (sum, gradient) in sums.iter_mut().zip(gradient) {
                    *sum = simd.mul_add_e_f32s(value, gradient, *sum);
                }
            }
        }
        for (sums, out) in sums.iter().zip(out.chunks_exact_mut(padded(outer))) {
            store(simd, out, column, sums);
        }
    }

    /// One row of the result, as four sums that do not wait for each other.
    #[inline(always)]
    fn chains<S: Simd, const COLUMNS: usize>(
        &mut self,
        simd: S,
        source: &[f32],
        gradient: &[f32],
        row: usize,
        column: usize,
    ) {
        const CHAINS: usize = 4;
        let Sizes { inner, outer, .. } = self.sizes;
        let out = &mut self.out[row * padded(outer)..(row + 1) * padded(outer)];
        let mut sums = [[simd.splat_f32s(0.0); COLUMNS]; CHAINS];
        sums[0] = load_whole::<S, COLUMNS>(out, column);
        let add = |sums: &mut [S::f32s; COLUMNS], source: &[f32], gradient: &[f32]| {
            let gradient: [S::f32s; COLUMNS] = load(simd, gradient, column);
            let value = simd.splat_f32s(source[row]);
            for (sum, gradient) in sums.iter_mut().zip(gradient) {
                *sum = simd.mul_add_e_f32s(value, gradient, *sum);
            }
        };
        let (sources, gradients) =
            (source.chunks_exact(CHAINS * inner), gradient.chunks_exact(CHAINS * outer));
        let rest = (sources.remainder(), gradients.remainder());
        for (source, gradient) in sources.zip(gradients) {
            for (at, sums) in sums.iter_mut().enumerate() {
                add(sums, &source[at * inner..][..inner], &gradient[at * outer..][..outer]);
            }
        }
        for (source, gradient) in rest.0.chunks_exact(inner).zip(rest.1.chunks_exact(outer)) {
            add(&mut sums[0], source, gradient);
        }
        let [a, b, c, d] = sums;
        let sum: [S::f32s; COLUMNS] =
            array::from_fn(|at| simd.add_f32s(simd.add_f32s(a[at], b[at]), simd.add_f32s(c[at], d[at])));
        store(simd, out, column, &sum);
    }
}

/// The registers from `column` on, all of them within the row.
#[inline(always)]
fn load_whole<S: Simd, const COLUMNS: usize>(row: &[f32], column: usize) -> [S::f32s; COLUMNS] {
    let (registers, _) = S::as_simd_f32s(&row[column..column + COLUMNS * S::F32_LANES]);
    array::from_fn(|at| registers[at])
}

/// The registers from `column` on, zero beyond the row's end.
#[inline(always)]
fn load<S: Simd, const COLUMNS: usize>(simd: S, row: &[f32], column: usize) -> [S::f32s; COLUMNS] {
    if column + COLUMNS * S::F32_LANES <= row.len() {
        return load_whole::<S, COLUMNS>(row, column);
    }
    array::from_fn(|at| {
        let start = (column + at * S::F32_LANES).min(row.len());
        simd.partial_load_f32s(&row[start..row.len().min(start + S::F32_LANES)])
    })
}

/// Puts registers back; what lies beyond the row's end is dropped.
#[inline(always)]
fn store<S: Simd, const COLUMNS: usize>(
    simd: S,
    row: &mut [f32],
    column: usize,
    values: &[S::f32s; COLUMNS],
) {
    let lanes = S::F32_LANES;
    if column + COLUMNS * lanes <= row.len() {
        let (registers, _) = S::as_mut_simd_f32s(&mut row[column..column + COLUMNS * lanes]);
        registers.copy_from_slice(values);
        return;
    }
    for (at, value) in values.iter().enumerate() {
        let start = (column + at * lanes).min(row.len());
        let end = row.len().min(start + lanes);
        simd.partial_store_f32s(&mut row[start..end], *value);
    }
}
