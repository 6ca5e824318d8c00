//! Between rows `[N, C*H*W]`, as data sets and linear layers have them, and images `[H, W, N, C]`.
//!
//! It must not know what images show. Invariant: the two directions are exact inverses, and each is the gradient of the
//! other.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{Precision, composed, ours, values};

/// Rows `[N, C*H*W]`, channel after channel and line after line, to images `[H, W, N, C]`; `image` is `[C, H, W]`.
///
/// # Errors
/// Rows of another width.
pub fn to_images(rows: &Tensor, image: [usize; 3]) -> Result<Tensor> {
    let (n, width) = rows.dims2()?;
    if width != image.iter().product::<usize>() {
        candle_core::bail!("`to_images`: rows of {width} values are no images of {image:?}");
    }
    if !ours(rows, Precision::F32) {
        return composed::to_images(rows, image);
    }
    rows.contiguous()?.apply_op1(Transposed { n, image, back: false })
}

/// Images `[H, W, N, C]` to rows `[N, C*H*W]`.
///
/// # Errors
/// A tensor that holds no images.
pub fn to_rows(images: &Tensor) -> Result<Tensor> {
    let (height, width, n, channels) = images.dims4()?;
    let image = [channels, height, width];
    if !ours(images, Precision::F32) {
        return composed::to_rows(images);
    }
    images.contiguous()?.apply_op1(Transposed { n, image, back: true })
}

struct Transposed {
    n: usize,
    image: [usize; 3],
    /// From images to rows.
    back: bool,
}

impl CustomOp1 for Transposed {
    fn name(&self) -> &'static str {
        if self.back { "to_rows" } else { "to_images" }
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let from = values(self.name(), storage, layout)?;
        let [channels, height, width] = self.image;
        let (n, pixels) = (self.n, height * width);
        let mut to = vec![0.0; from.len()];
        for row in 0..n {
            for channel in 0..channels {
                let in_rows = (row * channels + channel) * pixels;
                let in_images = row * channels + channel;
                for pixel in 0..pixels {
                    let (row_at, image_at) = (in_rows + pixel, in_images + pixel * n * channels);
                    if self.back {
                        to[row_at] = from[image_at];
                    } else {
                        to[image_at] = from[row_at];
                    }
                }
            }
        }
        let shape: Shape = match self.back {
            true => (n, channels * pixels).into(),
            false => (height, width, n, channels).into(),
        };
        Ok((CpuStorage::F32(to), shape))
    }

    fn bwd(&self, from: &Tensor, _to: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        if !from.track_op() {
            return Ok(None);
        }
        (if self.back { to_images(gradient, self.image) } else { to_rows(gradient) }).map(Some)
    }
}
