//! Pooling of images: the maximum of windows, and the mean of everything.
//!
//! It must not know what the channels mean. Invariant: where several values of a window are the maximum, the first of
//! them gets the gradient, whole, as in PyTorch (candle's own hands it to all).

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use pulp::Arch;

use super::{Precision, composed, ours, read, values};

/// The maximum of each window of `[rows, columns]`, without overlap: `[H, W, N, C]` to `[H / rows, W / columns, N, C]`;
/// what is left at the lower and the right edge is dropped.
///
/// # Errors
/// A window larger than the images.
pub fn max_pool(images: &Tensor, size: [usize; 2]) -> Result<Tensor> {
    let (height, width, n, channels) = images.dims4()?;
    let [rows, columns] = size;
    if rows * columns == 0 || rows > height || columns > width {
        candle_core::bail!(
            "`max_pool`: windows of {rows}x{columns} do not fit into images of {height}x{width}"
        );
    }
    if !ours(images, Precision::F32) {
        return composed::max_pool(images, size);
    }
    images.contiguous()?.apply_op1(MaxPool { size, image: [height, width], pixel: n * channels })
}

/// The mean over all pixels: `[H, W, N, C]` to `[N, C]`.
///
/// # Errors
/// A tensor that holds no images.
pub fn mean_pool(images: &Tensor) -> Result<Tensor> {
    let (height, width, n, channels) = images.dims4()?;
    if !ours(images, Precision::F32) {
        return composed::mean_pool(images);
    }
    images.contiguous()?.apply_op1(MeanPool { pixels: height * width, shape: (n, channels) })
}

struct MaxPool {
    size: [usize; 2],
    image: [usize; 2],
    /// Values a pixel, over all images.
    pixel: usize,
}

impl MaxPool {
    fn output(&self) -> [usize; 2] {
        [self.image[0] / self.size[0], self.image[1] / self.size[1]]
    }

    /// Where the pixels of the window behind output pixel `at` begin.
    fn window(&self, at: usize) -> impl Iterator<Item = usize> + '_ {
        let ([rows, columns], width) = (self.size, self.output()[1]);
        let (row, column) = (at / width * rows, at % width * columns);
        (0..rows * columns)
            .map(move |tap| (row + tap / columns) * self.image[1] + column + tap % columns)
            .map(|pixel| pixel * self.pixel)
    }

    // Inlined, so that its loops use the registers that the machine was found to have.
    #[inline(always)]
    fn forward(&self, images: &[f32]) -> Vec<f32> {
        let [height, width] = self.output();
        let mut out = vec![f32::NEG_INFINITY; height * width * self.pixel];
        for (at, out) in out.chunks_exact_mut(self.pixel.max(1)).enumerate() {
            for from in self.window(at) {
                let values = &images[from..from + self.pixel];
                // A value that is no number goes through: the loss has to see it.
                out.iter_mut().zip(values).for_each(|(out, value)| {
                    *out = if *value > *out || value.is_nan() { *value } else { *out };
                });
            }
        }
        out
    }

    #[inline(always)]
    fn backward(&self, images: &[f32], out: &[f32], gradient: &[f32]) -> Vec<f32> {
        let mut to = vec![0.0; images.len()];
        let mut left = vec![0.0; self.pixel];
        let rows = out.chunks_exact(self.pixel.max(1)).zip(gradient.chunks_exact(self.pixel.max(1)));
        for (at, (out, gradient)) in rows.enumerate() {
            left.copy_from_slice(gradient);
            for from in self.window(at) {
                let part = from..from + self.pixel;
                let row = to[part.clone()].iter_mut().zip(&images[part]).zip(out).zip(&mut left);
                row.for_each(|(((to, value), out), left)| {
                    let is_it = value == out;
                    *to = if is_it { *left } else { 0.0 };
                    *left = if is_it { 0.0 } else { *left };
                });
            }
        }
        to
    }
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max_pool"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let images = values(self.name(), storage, layout)?;
        let out = Arch::new().dispatch(|| self.forward(images));
        let (_, _, n, channels) = layout.shape().dims4()?;
        let [height, width] = self.output();
        Ok((CpuStorage::F32(out), (height, width, n, channels).into()))
    }

    fn bwd(&self, images: &Tensor, out: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let to = read(self.name(), [images, out, gradient], |[images, out, gradient]| {
            Arch::new().dispatch(|| self.backward(images, out, gradient))
        })?;
        Tensor::from_vec(to, images.shape(), images.device()).map(Some)
    }
}

struct MeanPool {
    pixels: usize,
    shape: (usize, usize),
}

impl CustomOp1 for MeanPool {
    fn name(&self) -> &'static str {
        "mean_pool"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let images = values(self.name(), storage, layout)?;
        let mut out = vec![0.0; self.shape.0 * self.shape.1];
        for pixel in images.chunks_exact(out.len().max(1)) {
            out.iter_mut().zip(pixel).for_each(|(out, value)| *out += value);
        }
        let share = 1.0 / self.pixels as f32;
        out.iter_mut().for_each(|out| *out *= share);
        Ok((CpuStorage::F32(out), self.shape.into()))
    }

    fn bwd(&self, images: &Tensor, _out: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let share = 1.0 / self.pixels as f32;
        let to = read(self.name(), [gradient], |[gradient]| {
            let one: Vec<f32> = gradient.iter().map(|value| value * share).collect();
            one.repeat(self.pixels)
        })?;
        Tensor::from_vec(to, images.shape(), images.device()).map(Some)
    }
}
