//! 2-d convolution of images, with its gradients.
//!
//! Direct, without unfolding: each pixel of the result is a sum of small products, one a tap of the kernel. It must not
//! know what is normalised or activated behind it. Invariant: forward, gradient of the images and gradient of the
//! weights visit the same triples of output pixel, tap and input pixel.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::product::{Sizes, Tap, accumulate, gather, padded};
use super::{Precision, composed, each_chunk, ours, read, values};

/// Convolves images `[H, W, N, C]` with weights `[filters, C, KH, KW]` (PyTorch's order) to `[H', W', N, filters]`,
/// H' = (H + 2 padding - KH) / stride + 1. Beyond the edges are zeros; there is no bias.
///
/// # Errors
/// Shapes that do not fit each other.
pub fn convolve(
    images: &Tensor,
    weight: &Tensor,
    stride: usize,
    padding: usize,
    precision: Precision,
) -> Result<Tensor> {
    let geometry = Geometry::new(images, weight, stride, padding)?;
    if !ours(images, precision) {
        return composed::convolve(images, weight, stride, padding, precision);
    }
    images.contiguous()?.apply_op2(&weight.contiguous()?, Convolution { geometry })
}

/// The sizes of a convolution.
#[derive(Debug, Clone, Copy)]
struct Geometry {
    image: [usize; 2],
    n: usize,
    channels: usize,
    filters: usize,
    kernel: [usize; 2],
    stride: usize,
    padding: usize,
}

impl Geometry {
    fn new(images: &Tensor, weight: &Tensor, stride: usize, padding: usize) -> Result<Self> {
        let (height, width, n, channels) = images.dims4()?;
        let (filters, expected, rows, columns) = weight.dims4()?;
        if channels != expected {
            candle_core::bail!("`convolve`: images of {channels} channels, but weights for {expected}");
        }
        let fits = height + 2 * padding >= rows && width + 2 * padding >= columns;
        if stride == 0 || n == 0 || rows * columns * channels * filters == 0 || !fits {
            candle_core::bail!(
                "`convolve`: a kernel of {rows}x{columns} with stride {stride} does not fit into {n} images of \
                 {height}x{width} with padding {padding}"
            );
        }
        let (image, kernel) = ([height, width], [rows, columns]);
        Ok(Self { image, n, channels, filters, kernel, stride, padding })
    }

    fn output(&self, axis: usize) -> usize {
        (self.image[axis] + 2 * self.padding - self.kernel[axis]) / self.stride + 1
    }

    fn pixels(&self) -> usize {
        self.output(0) * self.output(1)
    }

    fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// The multiplications of one pass.
    fn work(&self) -> usize {
        self.pixels() * self.n * self.taps() * self.channels * self.filters
    }

    /// The input row or column that output `out` sees through tap `tap`, if it lies within the image.
    fn input(&self, axis: usize, out: usize, tap: usize) -> Option<usize> {
        (out * self.stride + tap).checked_sub(self.padding).filter(|at| *at < self.image[axis])
    }

    /// The output row or column that sees input `at` through tap `tap`, if there is one.
    fn seen_by(&self, axis: usize, at: usize, tap: usize) -> Option<usize> {
        let shifted = (at + self.padding).checked_sub(tap)?;
        let out = shifted / self.stride;
        (shifted.is_multiple_of(self.stride) && out < self.output(axis)).then_some(out)
    }

    /// The number of each tap that `pixel` sees within the other side, and the pixel there.
    fn partners(
        &self,
        pixel: usize,
        widths: [usize; 2],
        other: impl Fn(&Self, usize, usize, usize) -> Option<usize>,
    ) -> Vec<(usize, usize)> {
        let (row, column) = (pixel / widths[0], pixel % widths[0]);
        let mut found = Vec::with_capacity(self.taps());
        for tap_row in 0..self.kernel[0] {
            let Some(other_row) = other(self, 0, row, tap_row) else { continue };
            for tap_column in 0..self.kernel[1] {
                if let Some(other_column) = other(self, 1, column, tap_column) {
                    found.push((tap_row * self.kernel[1] + tap_column, other_row * widths[1] + other_column));
                }
            }
        }
        found
    }

    fn forward(&self, images: &[f32], weight: &[f32]) -> Vec<f32> {
        let sizes = Sizes { n: self.n, inner: self.channels, outer: self.filters };
        let packed = self.pack(weight, false);
        let mut out = vec![0.0; self.pixels() * self.n * self.filters];
        each_chunk(&mut out, self.n * self.filters, self.work(), |pixel, out| {
            let partners = self.partners(pixel, [self.output(1), self.image[1]], Self::input);
            gather(sizes, &taps(sizes, &partners), images, &packed, out);
        });
        out
    }

    fn images_gradient(&self, weight: &[f32], gradient: &[f32]) -> Vec<f32> {
        let sizes = Sizes { n: self.n, inner: self.filters, outer: self.channels };
        let packed = self.pack(weight, true);
        let mut out = vec![0.0; self.image[0] * self.image[1] * self.n * self.channels];
        each_chunk(&mut out, self.n * self.channels, self.work(), |pixel, out| {
            let partners = self.partners(pixel, [self.image[1], self.output(1)], Self::seen_by);
            gather(sizes, &taps(sizes, &partners), gradient, &packed, out);
        });
        out
    }

    fn weight_gradient(&self, images: &[f32], gradient: &[f32]) -> Vec<f32> {
        let sizes = Sizes { n: self.n, inner: self.channels, outer: self.filters };
        let mut pairs = vec![Vec::new(); self.taps()];
        for pixel in 0..self.pixels() {
            for (tap, source) in self.partners(pixel, [self.output(1), self.image[1]], Self::input) {
                pairs[tap].push((source * self.n * self.channels, pixel * self.n * self.filters));
            }
        }
        let columns = padded(self.filters);
        let mut packed = vec![0.0; self.taps() * self.channels * columns];
        each_chunk(&mut packed, self.channels * columns, self.work(), |tap, out| {
            accumulate(sizes, &pairs[tap], images, gradient, out);
        });
        let mut weight = vec![0.0; self.filters * self.channels * self.taps()];
        for (kernel, (filter, channel)) in weight.chunks_exact_mut(self.taps()).zip(self.kernels()) {
            for (tap, value) in kernel.iter_mut().enumerate() {
                *value = packed[(tap * self.channels + channel) * columns + filter];
            }
        }
        weight
    }

    /// Filter and channel of each kernel, in the order of the weights.
    fn kernels(&self) -> impl Iterator<Item = (usize, usize)> {
        let channels = self.channels;
        (0..self.filters).flat_map(move |filter| (0..channels).map(move |channel| (filter, channel)))
    }

    /// The weights as `[taps, channels, filters]`, or transposed as `[taps, filters, channels]`, the last padded.
    fn pack(&self, weight: &[f32], transposed: bool) -> Vec<f32> {
        let (rows, columns) =
            if transposed { (self.filters, self.channels) } else { (self.channels, self.filters) };
        let columns = padded(columns);
        let mut packed = vec![0.0; self.taps() * rows * columns];
        for (kernel, (filter, channel)) in weight.chunks_exact(self.taps()).zip(self.kernels()) {
            let (row, column) = if transposed { (filter, channel) } else { (channel, filter) };
            for (tap, value) in kernel.iter().enumerate() {
                packed[(tap * rows + row) * columns + column] = *value;
            }
        }
        packed
    }
}

fn taps(sizes: Sizes, partners: &[(usize, usize)]) -> Vec<Tap> {
    let weights = sizes.inner * padded(sizes.outer);
    let tap =
        |(tap, pixel): &(usize, usize)| Tap { source: pixel * sizes.n * sizes.inner, weights: tap * weights };
    partners.iter().map(tap).collect()
}

struct Convolution {
    geometry: Geometry,
}

impl CustomOp2 for Convolution {
    fn name(&self) -> &'static str {
        "convolve"
    }

    fn cpu_fwd(
        &self,
        images: &CpuStorage,
        at: &Layout,
        weight: &CpuStorage,
        from: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (images, weight) = (values(self.name(), images, at)?, values(self.name(), weight, from)?);
        let Geometry { n, filters, .. } = self.geometry;
        let shape = (self.geometry.output(0), self.geometry.output(1), n, filters);
        Ok((CpuStorage::F32(self.geometry.forward(images, weight)), shape.into()))
    }

    fn bwd(
        &self,
        images: &Tensor,
        weight: &Tensor,
        _out: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let device = images.device();
        let of_weight = read(self.name(), [images, gradient], |[images, gradient]| {
            self.geometry.weight_gradient(images, gradient)
        })?;
        let of_weight = Tensor::from_vec(of_weight, weight.shape(), device)?;
        // The first layer's input is no variable: its gradient would be computed for nobody.
        let of_images = if images.track_op() {
            let values = read(self.name(), [weight, gradient], |[weight, gradient]| {
                self.geometry.images_gradient(weight, gradient)
            })?;
            Some(Tensor::from_vec(values, images.shape(), device)?)
        } else {
            None
        };
        Ok((of_images, Some(of_weight)))
    }
}
