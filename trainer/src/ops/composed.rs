//! The same operators made of candle's own, whose gradients candle takes: for devices that are not the processor, and for
//! products in half precision.
//!
//! It must not know which device it is. Invariant: shapes and meaning are those of the operator of the same name, to rounding
//! (the tests hold each to the other on the processor); of equal maxima any one may get the gradient.

use candle_core::{D, DType, Result, Tensor};

use super::{Activation, Precision, Statistics};

/// The product of two matrices, or of two stacks of them, in f32; the factors are rounded first where `precision` says so.
pub(super) fn product(one: &Tensor, two: &Tensor, precision: Precision) -> Result<Tensor> {
    match precision {
        Precision::F32 => one.matmul(two),
        Precision::Bf16 => {
            one.to_dtype(DType::BF16)?.matmul(&two.to_dtype(DType::BF16)?)?.to_dtype(DType::F32)
        }
    }
}

pub(super) fn linear(input: &Tensor, weight: &Tensor, bias: &Tensor, precision: Precision) -> Result<Tensor> {
    product(input, &weight.t()?, precision)?.broadcast_add(bias)
}

/// Unfolded: the pixels that each tap of the kernel sees, side by side, times the weights.
pub(super) fn convolve(
    images: &Tensor,
    weight: &Tensor,
    stride: usize,
    padding: usize,
    precision: Precision,
) -> Result<Tensor> {
    let ((height, width, n, channels), (filters, _, rows, columns)) = (images.dims4()?, weight.dims4()?);
    let [down, across] = [(height, rows), (width, columns)]
        .map(|(extent, kernel)| (extent + 2 * padding - kernel) / stride + 1);
    let pixels = images.reshape((height * width, n * channels))?;
    // Beyond the edges is one more pixel, of zeros.
    let pixels = Tensor::cat(&[&pixels, &Tensor::zeros((1, n * channels), DType::F32, images.device())?], 0)?;
    let place = |line: usize, column: usize| -> u32 {
        let within = |at: usize, extent: usize| at.checked_sub(padding).filter(|at| *at < extent);
        let pixel = within(line, height).zip(within(column, width));
        pixel.map_or(height * width, |(line, column)| line * width + column) as u32
    };
    let mut taps = Vec::with_capacity(rows * columns);
    for tap in 0..rows * columns {
        let (row, column) = (tap / columns, tap % columns);
        let seen: Vec<u32> = (0..down * across)
            .map(|out| place(out / across * stride + row, out % across * stride + column))
            .collect();
        let seen = pixels.index_select(&Tensor::new(seen, images.device())?, 0)?;
        taps.push(seen.reshape((down * across * n, channels))?);
    }
    let unfolded = Tensor::cat(&taps, 1)?;
    let weight = weight.permute((2, 3, 1, 0))?.reshape((rows * columns * channels, filters))?;
    product(&unfolded, &weight, precision)?.reshape((down, across, n, filters))
}

pub(super) fn relu(input: &Tensor) -> Result<Tensor> {
    input.relu()
}

pub(super) fn add_relu(one: &Tensor, two: &Tensor) -> Result<Tensor> {
    (one + two)?.relu()
}

pub(super) fn bias_relu(input: &Tensor, bias: &Tensor) -> Result<Tensor> {
    input.broadcast_add(bias)?.relu()
}

fn activated(values: Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::None => Ok(values),
        Activation::Relu => values.relu(),
    }
}

pub(super) fn batch_norm(
    images: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    epsilon: f64,
    activation: Activation,
) -> Result<(Tensor, Statistics)> {
    let rows = images.reshape(((), images.dim(D::Minus1)?))?;
    let mean = rows.mean_keepdim(0)?;
    let centred = rows.broadcast_sub(&mean)?;
    let variance = centred.sqr()?.mean_keepdim(0)?;
    let scaled = centred.broadcast_div(&(&variance + epsilon)?.sqrt()?)?;
    let out = scaled.broadcast_mul(gamma)?.broadcast_add(beta)?.reshape(images.dims())?;
    let values = |row: &Tensor| row.detach().squeeze(0)?.to_vec1::<f32>();
    let statistics = Statistics { mean: values(&mean)?, variance: values(&variance)?, count: rows.dim(0)? };
    Ok((activated(out, activation)?, statistics))
}

pub(super) fn normalize(
    images: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    statistics: &Statistics,
    epsilon: f64,
    activation: Activation,
) -> Result<Tensor> {
    let row = |values: &[f32]| Tensor::from_slice(values, values.len(), images.device());
    let deviation = (row(&statistics.variance)? + epsilon)?.sqrt()?;
    let scaled = images.broadcast_sub(&row(&statistics.mean)?)?.broadcast_div(&deviation)?;
    activated(scaled.broadcast_mul(gamma)?.broadcast_add(beta)?, activation)
}

pub(super) fn max_pool(images: &Tensor, [rows, columns]: [usize; 2]) -> Result<Tensor> {
    let (height, width, n, channels) = images.dims4()?;
    let (down, across) = (height / rows, width / columns);
    let whole = images.narrow(0, 0, down * rows)?.narrow(1, 0, across * columns)?.contiguous()?;
    let windows = whole.reshape((down, rows, across, columns, n * channels))?.permute((1, 3, 0, 2, 4))?;
    let windows = windows.contiguous()?.reshape((rows * columns, down * across * n * channels))?;
    // By its place: candle's own maximum hands the gradient to every value that ties.
    let highest = windows.detach().argmax_keepdim(0)?;
    windows.gather(&highest, 0)?.reshape((down, across, n, channels))
}

pub(super) fn mean_pool(images: &Tensor) -> Result<Tensor> {
    images.mean((0, 1))
}

pub(super) fn to_images(rows: &Tensor, [channels, height, width]: [usize; 3]) -> Result<Tensor> {
    rows.reshape(((), channels, height, width))?.permute((2, 3, 0, 1))?.contiguous()
}

pub(super) fn to_rows(images: &Tensor) -> Result<Tensor> {
    let (height, width, n, channels) = images.dims4()?;
    images.permute((2, 3, 0, 1))?.contiguous()?.reshape((n, channels * height * width))
}

pub(super) fn softmax(input: &Tensor) -> Result<Tensor> {
    candle_nn::ops::softmax(input, D::Minus1)
}

pub(super) fn log_softmax(input: &Tensor) -> Result<Tensor> {
    candle_nn::ops::log_softmax(input, D::Minus1)
}

pub(super) fn layer_norm(input: &Tensor, gamma: &Tensor, beta: &Tensor, epsilon: f64) -> Result<Tensor> {
    let centred = input.broadcast_sub(&input.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let scaled = centred.broadcast_div(&(variance + epsilon)?.sqrt()?)?;
    scaled.broadcast_mul(gamma)?.broadcast_add(beta)
}
