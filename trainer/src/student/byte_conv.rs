//! A student of bytes: short convolutions over embedded symbols, long hashed ones, and the two ends read in place.
//!
//! Four views of the same symbols, joined before the last layer:
//! - *short kernels*: an embedding of 257 symbols, two 1-d convolutions with stride, the maximum over positions;
//! - *long kernels*: every window of 1 to `orders` symbols hashed to one of `buckets` (a convolution over one-hot
//!   symbols whose filters share weights by hash), log(1 + count), scaled to unit length, one linear layer;
//! - *shapes*: the same over windows of 3 to 6 symbols whose letters, digits and upper bytes are each one symbol, since
//!   few answers tell more by the shape of a text (`aaa(aaa, 0);`) than by its words;
//! - *ends*: the first and the last `ends` symbols where they stand, since magic numbers and trailers have a place.
//!
//! It must not know how it is trained. Invariants: plain candle operators only, whose gradients are right; the hash is
//! the one that the ONNX export writes down, symbol for symbol.

use std::ops::RangeInclusive;

use candle_core::{Result, Tensor, Var};
use serde::{Deserialize, Serialize};

use super::parameters::{Linear, Parameters};
use super::{Inputs, Mode, Student};
use crate::example::{Example, Input, PADDING};
use crate::machine::Machine;
use crate::ops;

/// The hash of a window starts at its length and goes h <- (h * FACTOR + symbol + 1) mod MODULUS.
pub(crate) const FACTOR: i64 = 92_821;
/// A prime that buckets of a power of two do not line up with, small enough that FACTOR * MODULUS fits in 64 bits with room to spare.
pub(crate) const MODULUS: i64 = 1_000_003;
/// The unit length of a row of counts, so that the first layer sees values of about one.
pub(crate) const SCALE: f64 = 30.0;
/// Keeps an input without a single window from a division by zero.
pub(crate) const FLOOR: f64 = 1e-9;

/// The lengths of the windows of folded symbols.
pub(crate) const SHAPE_ORDERS: RangeInclusive<usize> = 3..=6;

/// The symbol that stands for all like it where shapes are looked at.
pub(crate) fn folded(symbol: u16) -> u16 {
    match symbol {
        48..=57 => 48,
        65..=90 => 65,
        97..=122 => 97,
        128..=255 => 128,
        other => other,
    }
}

/// The sizes of a byte student; the defaults are what the demonstration uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ByteConvConfig {
    /// The width of the symbols' embedding.
    pub embedding: usize,
    /// The filters of each short convolution; 0 leaves that view out.
    pub channels: usize,
    /// The length of the short kernels.
    pub kernel: usize,
    /// The step of each short convolution.
    pub stride: usize,
    /// The longest hashed window.
    pub orders: usize,
    /// The buckets of the hash; 0 leaves that view out.
    pub buckets: usize,
    /// The buckets of the hash of folded windows; 0 leaves that view out.
    pub shapes: usize,
    /// The width of the layers behind the buckets, the shapes and the ends.
    pub hidden: usize,
    /// How many symbols at each end are read in place; 0 leaves that view out.
    pub ends: usize,
}

impl Default for ByteConvConfig {
    fn default() -> Self {
        Self {
            embedding: 16,
            channels: 32,
            kernel: 5,
            stride: 4,
            orders: 4,
            buckets: 8192,
            shapes: 8192,
            hidden: 128,
            ends: 16,
        }
    }
}

/// The byte student.
#[derive(Debug)]
pub(crate) struct ByteConv {
    config: ByteConvConfig,
    parameters: Parameters,
    embedding: Option<Var>,
    short: Vec<Linear>,
    long: Option<Linear>,
    shapes: Option<Linear>,
    ends: Option<Linear>,
    output: Linear,
}

impl ByteConv {
    /// Makes the student for `classes` from a seed.
    pub(crate) fn new(config: &ByteConvConfig, classes: usize, seed: u64, machine: &Machine) -> Result<Self> {
        let mut parameters = Parameters::new(seed, machine);
        let ByteConvConfig { embedding: width, channels, kernel, buckets, shapes, hidden, ends, .. } =
            *config;
        let (mut joined, mut short, mut embedding) = (0, Vec::new(), None);
        let (mut long, mut shape, mut at_ends) = (None, None, None);
        if channels + ends > 0 {
            embedding =
                Some(parameters.uniform("embedding.weight", &[usize::from(PADDING) + 1, width], 1.0)?);
        }
        if channels > 0 {
            short.push(parameters.linear("short.0", kernel * width, channels)?);
            short.push(parameters.linear("short.1", kernel * channels, channels)?);
            joined += channels;
        }
        if buckets > 0 {
            long = Some(parameters.linear("long", buckets, hidden)?);
            joined += hidden;
        }
        if shapes > 0 {
            shape = Some(parameters.linear("shapes", shapes, hidden)?);
            joined += hidden;
        }
        if ends > 0 {
            at_ends = Some(parameters.linear("ends", 2 * ends * width, hidden)?);
            joined += hidden;
        }
        let output = parameters.linear("output", joined, classes)?;
        let config = config.clone();
        Ok(Self { config, parameters, embedding, short, long, shapes: shape, ends: at_ends, output })
    }

    /// The sizes.
    pub(crate) fn config(&self) -> &ByteConvConfig {
        &self.config
    }

    /// The table of the symbols' embedding.
    pub(crate) fn embedding(&self) -> Option<&Var> {
        self.embedding.as_ref()
    }

    /// The two short convolutions, or none.
    pub(crate) fn short(&self) -> &[Linear] {
        &self.short
    }

    /// The layer behind the hashed windows.
    pub(crate) fn long(&self) -> Option<&Linear> {
        self.long.as_ref()
    }

    /// The layer behind the folded windows.
    pub(crate) fn shapes(&self) -> Option<&Linear> {
        self.shapes.as_ref()
    }

    /// The layer behind the two ends.
    pub(crate) fn ends(&self) -> Option<&Linear> {
        self.ends.as_ref()
    }

    /// A convolution over positions without its bias: `[1, l, n, c]` to `[1, l', n, filters]`, l' = (l - kernel) / stride + 1.
    fn convolve(&self, input: &Tensor, layer: &Linear) -> Result<Tensor> {
        let ByteConvConfig { kernel, stride, .. } = self.config;
        let taps = layer.weight.reshape(((), kernel, input.dim(3)?))?;
        let taps = taps.transpose(1, 2)?.unsqueeze(2)?;
        ops::convolve(input, &taps, stride, 0, layer.precision)
    }

    /// The short kernels' view of symbols `[n, l]`, `[n, channels]`.
    fn short_view(&self, table: &Var, [first, second]: [&Linear; 2], symbols: &Tensor) -> Result<Tensor> {
        let (n, length) = symbols.dims2()?;
        let embedded = table.index_select(&symbols.t()?.flatten_all()?, 0)?;
        let embedded = embedded.reshape((1, length, n, self.config.embedding))?;
        let hidden = ops::bias_relu(&self.convolve(&embedded, first)?, &first.bias)?;
        // The maximum over positions, then bias and ReLU: neither changes which position it is.
        let seen = self.convolve(&hidden, second)?;
        let highest = ops::max_pool(&seen, [1, seen.dim(1)?])?.reshape((n, ()))?;
        ops::bias_relu(&highest, &second.bias)
    }
}

/// log(1 + count) of the hashed windows of `orders` symbols, at length SCALE; windows with padding do not count.
pub(crate) fn count_windows(symbols: &[u16], orders: RangeInclusive<usize>, buckets: usize) -> Vec<f32> {
    let mut counts = vec![0f32; buckets];
    for start in 0..symbols.len() {
        for order in *orders.start()..=(*orders.end()).min(symbols.len() - start) {
            let window = &symbols[start..start + order];
            if window.contains(&PADDING) {
                break;
            }
            let hash = window.iter().fold(order as i64, |hash, symbol| {
                (hash * FACTOR + i64::from(*symbol) + 1).rem_euclid(MODULUS)
            });
            counts[hash as usize % buckets] += 1.0;
        }
    }
    // Most buckets are empty, and log(1) is 0.
    counts.iter_mut().filter(|count| **count > 0.0).for_each(|count| *count = count.ln_1p());
    let length = counts.iter().map(|count| f64::from(*count).powi(2)).sum::<f64>().sqrt() + FLOOR;
    counts.iter_mut().for_each(|count| *count = (f64::from(*count) * SCALE / length) as f32);
    counts
}

impl Student for ByteConv {
    /// Symbols `[n, l]` (u32), the counts `[n, buckets]` and the shapes' counts `[n, shapes]` where
    /// those views are on: they have no parameters, so they are made once.
    fn inputs(&self, examples: &[&Example]) -> Result<Inputs> {
        let mut symbols: Vec<u32> = Vec::new();
        let (mut counts, mut shapes): (Vec<f32>, Vec<f32>) = (Vec::new(), Vec::new());
        for example in examples {
            let Input::Bytes(bytes) = &example.input else {
                candle_core::bail!("`{}` is a {} and no bytes", example.key, example.input.kind());
            };
            symbols.extend(bytes.iter().map(|symbol| u32::from(*symbol)));
            if self.long.is_some() {
                counts.extend(count_windows(bytes, 1..=self.config.orders, self.config.buckets));
            }
            if self.shapes.is_some() {
                let bytes: Vec<u16> = bytes.iter().copied().map(folded).collect();
                shapes.extend(count_windows(&bytes, SHAPE_ORDERS, self.config.shapes));
            }
        }
        let (n, device) = (examples.len(), self.parameters.device());
        let mut views = vec![Tensor::from_vec(symbols, (n, ()), device)?];
        if self.long.is_some() {
            views.push(Tensor::from_vec(counts, (n, self.config.buckets), device)?);
        }
        if self.shapes.is_some() {
            views.push(Tensor::from_vec(shapes, (n, self.config.shapes), device)?);
        }
        Ok(Inputs(views))
    }

    fn features(&self, inputs: &Inputs, mode: Mode) -> Result<Tensor> {
        self.hidden(inputs, 0, mode)
    }

    /// One: its views side by side.
    fn depth(&self) -> usize {
        1
    }

    fn hidden(&self, inputs: &Inputs, _layer: usize, _mode: Mode) -> Result<Tensor> {
        let symbols = &inputs.0[0];
        let (n, length) = symbols.dims2()?;
        let mut views = Vec::new();
        if let (Some(table), [first, second]) = (&self.embedding, &self.short[..]) {
            views.push(self.short_view(table, [first, second], symbols)?);
        }
        // In the order in which `inputs` made them.
        for (layer, counts) in [&self.long, &self.shapes].into_iter().flatten().zip(&inputs.0[1..]) {
            views.push(ops::relu(&layer.forward(counts)?)?);
        }
        if let (Some(table), Some(ends)) = (&self.embedding, &self.ends) {
            let width = self.config.ends;
            let both = [symbols.narrow(1, 0, width)?, symbols.narrow(1, length - width, width)?];
            let embedded = table.index_select(&Tensor::cat(&both, 1)?.flatten_all()?, 0)?;
            views.push(ops::relu(&ends.forward(&embedded.reshape((n, ()))?)?)?);
        }
        Tensor::cat(&views, 1)
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn output(&self) -> &Linear {
        &self.output
    }

    fn mixable(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_counted_by_their_content_and_padding_by_nothing() {
        let counts = |symbols: &[u16]| count_windows(symbols, 1..=2, 4096);
        let filled = |symbols: &[u16]| counts(symbols).iter().filter(|count| **count > 0.0).count();
        assert_eq!(filled(&[1, 2, 3]), 5, "three singles and two pairs");
        assert_eq!(filled(&[1, 1, 1]), 2, "one single and one pair, each more than once");
        assert_eq!(counts(&[1, 2, PADDING, PADDING]), counts(&[PADDING, 1, 2]));
        assert_eq!(filled(&[PADDING; 4]), 0);
        let shapes = |text: &str| {
            let symbols: Vec<u16> = text.bytes().map(|byte| folded(byte.into())).collect();
            count_windows(&symbols, SHAPE_ORDERS, 4096)
        };
        assert_eq!(shapes("let x1 = f(2);"), shapes("var y9 = g(0);"));
        assert_ne!(shapes("let x1 = f(2);"), shapes("Let x1 = f(2);"));
        let length: f32 = counts(&[7, 8, 9, 7]).iter().map(|count| count * count).sum::<f32>().sqrt();
        assert!((length - SCALE as f32).abs() < 1e-3, "{length}");
    }
}
