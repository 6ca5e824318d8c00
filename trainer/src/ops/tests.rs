//! Every operator against a plain f64 form of itself, its gradient against finite differences of that form, and both
//! against candle's own slow operators; and the same bits whatever the number of threads.

use candle_core::{Device, Result, Tensor, Var};

use super::*;

/// Reproducible values between -1 and 1 without a pattern that hides a swapped index.
fn noise(count: usize, salt: usize) -> Vec<f64> {
    (0..count).map(|at| f64::from((((at + 1) * (salt + 3)) as f64 * 0.734_211).sin() as f32)).collect()
}

fn var(values: &[f64], dims: &[usize]) -> Var {
    let values: Vec<f32> = values.iter().map(|value| *value as f32).collect();
    Var::from_tensor(&Tensor::from_vec(values, dims, &Device::Cpu).unwrap()).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
}

fn near(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs();
        assert!(
            error <= tolerance * expected.abs().max(1.0),
            "{what} at {at}: {found} instead of {expected}"
        );
    }
}

/// Holds an operator to its f64 form, and the gradients of a weighted sum of its outputs to the form's slopes.
fn check(
    what: &str,
    shapes: &[&[usize]],
    operator: impl Fn(&[Tensor]) -> Result<Tensor>,
    form: impl Fn(&[Vec<f64>]) -> Vec<f64>,
) {
    let mut inputs: Vec<Vec<f64>> =
        shapes.iter().enumerate().map(|(salt, dims)| noise(dims.iter().product(), salt)).collect();
    let vars: Vec<Var> = inputs.iter().zip(shapes).map(|(values, dims)| var(values, dims)).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let out = operator(&tensors).unwrap();
    near(&flat(&out), &form(&inputs), 2e-5, what);
    let weights = noise(out.elem_count(), 9);
    let weighted = (&out * var(&weights, out.dims()).as_tensor().detach()).unwrap();
    let gradients = weighted.sum_all().unwrap().backward().unwrap();
    let loss = |inputs: &[Vec<f64>]| -> f64 {
        form(inputs).iter().zip(&weights).map(|(out, weight)| out * weight).sum()
    };
    const STEP: f64 = 1e-6;
    for (which, var) in vars.iter().enumerate() {
        let gradient = flat(gradients.get(var).unwrap_or_else(|| panic!("{what}: no gradient of {which}")));
        let slopes: Vec<f64> = (0..inputs[which].len())
            .map(|at| {
                let before = inputs[which][at];
                let mut shifted = |by: f64| {
                    inputs[which][at] = before + by;
                    loss(&inputs)
                };
                let slope = (shifted(STEP) - shifted(-STEP)) / (2.0 * STEP);
                inputs[which][at] = before;
                slope
            })
            .collect();
        near(&gradient, &slopes, 1e-4, &format!("{what}, gradient of {which}"));
    }
}

/// Sizes with odd edges: height, width, n, channels, filters, kernel, stride, padding.
const CONVOLUTIONS: [[usize; 9]; 9] = [
    [5, 7, 3, 1, 4, 3, 3, 1, 1],
    [6, 5, 2, 3, 5, 3, 3, 2, 1],
    [7, 7, 1, 2, 17, 5, 5, 2, 2],
    [4, 5, 5, 4, 3, 1, 1, 1, 0],
    [5, 5, 2, 3, 2, 1, 1, 2, 0],
    [4, 6, 9, 2, 33, 2, 3, 1, 0],
    [5, 4, 17, 5, 16, 3, 2, 2, 2],
    [3, 3, 2, 18, 6, 3, 3, 1, 2],
    [6, 6, 3, 2, 2, 2, 2, 3, 1],
];

fn convolution(sizes: [usize; 9], images: &[f64], weight: &[f64]) -> Vec<f64> {
    let [height, width, n, channels, filters, rows, columns, stride, padding] = sizes;
    let (out_height, out_width) =
        ((height + 2 * padding - rows) / stride + 1, (width + 2 * padding - columns) / stride + 1);
    let mut out = vec![0.0; out_height * out_width * n * filters];
    for (at, out) in out.iter_mut().enumerate() {
        let (filter, image) = (at % filters, at / filters % n);
        let (row, column) = (at / filters / n / out_width, at / filters / n % out_width);
        for tap in 0..rows * columns * channels {
            let (channel, tap_row, tap_column) =
                (tap / (rows * columns), tap / columns % rows, tap % columns);
            let (y, x) = (row * stride + tap_row, column * stride + tap_column);
            if y < padding || x < padding || y >= height + padding || x >= width + padding {
                continue;
            }
            let pixel = (y - padding) * width + x - padding;
            *out += images[(pixel * n + image) * channels + channel]
                * weight[((filter * channels + channel) * rows + tap_row) * columns + tap_column];
        }
    }
    out
}

#[test]
fn convolutions_of_odd_sizes_and_their_gradients() {
    for sizes in CONVOLUTIONS {
        let [height, width, n, channels, filters, rows, columns, stride, padding] = sizes;
        check(
            &format!("convolve {sizes:?}"),
            &[&[height, width, n, channels], &[filters, channels, rows, columns]],
            |tensors| convolve(&tensors[0], &tensors[1], stride, padding, Precision::F32),
            |inputs| convolution(sizes, &inputs[0], &inputs[1]),
        );
    }
}

#[test]
fn convolutions_equal_candles_own() {
    // candle's own gradient fails on images that are not square.
    let square = |sizes: &[usize; 9]| sizes[0] == sizes[1] && sizes[5] == sizes[6];
    for sizes in CONVOLUTIONS.into_iter().filter(square) {
        let [height, width, n, channels, filters, kernel, _, stride, padding] = sizes;
        let images = var(&noise(height * width * n * channels, 1), &[n, channels * height * width]);
        let weight =
            var(&noise(filters * channels * kernel * kernel, 2), &[filters, channels, kernel, kernel]);
        let ours = to_images(&images, [channels, height, width]).unwrap();
        let ours = to_rows(&convolve(&ours, &weight, stride, padding, Precision::F32).unwrap()).unwrap();
        let theirs = images.reshape((n, channels, height, width)).unwrap();
        let theirs = theirs.conv2d(&weight, padding, stride, 1, 1).unwrap().flatten_from(1).unwrap();
        near(&flat(&ours), &flat(&theirs), 2e-5, "values");
        let gradients = [ours, theirs].map(|out| out.sqr().unwrap().sum_all().unwrap().backward().unwrap());
        for var in [&images, &weight] {
            let [ours, theirs] = gradients.each_ref().map(|gradients| flat(gradients.get(var).unwrap()));
            near(&ours, &theirs, 1e-4, &format!("gradients {sizes:?}"));
        }
    }
}

fn normalized(inputs: &[Vec<f64>], own: bool, relu: bool, epsilon: f64) -> Vec<f64> {
    let channels = inputs[1].len();
    let mut out = inputs[0].clone();
    for channel in 0..channels {
        let values = || inputs[0].iter().skip(channel).step_by(channels);
        let count = values().count() as f64;
        let mut mean = values().sum::<f64>() / count;
        let mut variance = values().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
        if !own {
            (mean, variance) = (0.25, 0.5 + channel as f64);
        }
        for value in out.iter_mut().skip(channel).step_by(channels) {
            *value = (*value - mean) / (variance + epsilon).sqrt() * inputs[1][channel] + inputs[2][channel];
            *value = if relu { value.max(0.0) } else { *value };
        }
    }
    out
}

#[test]
fn batch_norm_by_own_and_by_given_statistics_and_its_gradients() {
    for shape in [[2, 3, 5, 4], [1, 1, 7, 3], [3, 1, 30, 70], [2, 2, 9, 1]] {
        let parameters = [shape[3]];
        for (own, activation) in [
            (true, Activation::None),
            (true, Activation::Relu),
            (false, Activation::None),
            (false, Activation::Relu),
        ] {
            let given = Statistics {
                mean: vec![0.25; shape[3]],
                variance: (0..shape[3]).map(|channel| 0.5 + channel as f32).collect(),
                count: 0,
            };
            check(
                &format!("batch norm {shape:?} {own} {activation:?}"),
                &[&shape, &parameters, &parameters],
                |tensors| match own {
                    true => batch_norm(&tensors[0], &tensors[1], &tensors[2], 1e-3, activation)
                        .map(|(out, _)| out),
                    false => normalize(&tensors[0], &tensors[1], &tensors[2], &given, 1e-3, activation),
                },
                |inputs| normalized(inputs, own, activation == Activation::Relu, 1e-3),
            );
        }
    }
}

// Python: v = [(2 * i + c) ** 2 + 1000 for i in range(6)]; statistics.mean(v), statistics.variance(v) for c in (0, 1)
#[test]
fn statistics_are_right_even_far_from_zero() {
    let values: Vec<f64> = (0..12).map(|at| f64::from(at * at) + 1000.0).collect();
    let (_, statistics) = batch_norm(
        &var(&values, &[1, 1, 6, 2]),
        &var(&[1.0; 2], &[2]),
        &var(&[0.0; 2], &[2]),
        1e-5,
        Activation::None,
    )
    .unwrap();
    assert_eq!(statistics.count, 6);
    let found: Vec<f64> = statistics
        .mean
        .iter()
        .chain(&statistics.unbiased_variance())
        .map(|value| f64::from(*value))
        .collect();
    near(&found, &[1_036.666_7, 1_047.666_7, 1_519.466_7, 2_135.466_7], 1e-6, "statistics");
}

#[test]
fn activations_and_pools_and_their_gradients() {
    let shape = [5, 7, 3, 2];
    check(
        "relu",
        &[&shape],
        |tensors| relu(&tensors[0]),
        |inputs| inputs[0].iter().map(|value| value.max(0.0)).collect(),
    );
    check(
        "add_relu",
        &[&shape, &shape],
        |tensors| add_relu(&tensors[0], &tensors[1]),
        |inputs| inputs[0].iter().zip(&inputs[1]).map(|(one, two)| (one + two).max(0.0)).collect(),
    );
    check(
        "bias_relu",
        &[&shape, &[2]],
        |tensors| bias_relu(&tensors[0], &tensors[1]),
        |inputs| inputs[0].iter().zip(inputs[1].iter().cycle()).map(|(x, b)| (x + b).max(0.0)).collect(),
    );
    check(
        "mean_pool",
        &[&shape],
        |tensors| mean_pool(&tensors[0]),
        |inputs| (0..6).map(|at| inputs[0].iter().skip(at).step_by(6).sum::<f64>() / 35.0).collect(),
    );
    for size in [1, 2, 3] {
        check(
            "max_pool",
            &[&shape],
            |tensors| max_pool(&tensors[0], [size; 2]),
            |inputs| {
                let (height, width) = (5 / size, 7 / size);
                let value = |at: usize| {
                    let (pixel, rest) = (at / 6, at % 6);
                    let square = (0..size * size).map(|tap| {
                        let (row, column) =
                            (pixel / width * size + tap / size, pixel % width * size + tap % size);
                        inputs[0][(row * 7 + column) * 6 + rest]
                    });
                    square.fold(f64::NEG_INFINITY, f64::max)
                };
                (0..height * width * 6).map(value).collect()
            },
        );
    }
}

#[test]
fn of_equal_maxima_the_first_gets_the_gradient() {
    let images =
        Var::from_tensor(&Tensor::ones((2, 2, 1, 1), candle_core::DType::F32, &Device::Cpu).unwrap())
            .unwrap();
    let gradients = max_pool(&images, [2, 2]).unwrap().sum_all().unwrap().backward().unwrap();
    assert_eq!(flat(gradients.get(&images).unwrap()), [1.0, 0.0, 0.0, 0.0]);
}

#[test]
fn rows_and_their_gradients_equal_their_forms_and_candles() {
    let powers = |row: &[f64]| -> (Vec<f64>, f64) {
        let powers: Vec<f64> = row.iter().map(|value| value.exp()).collect();
        let sum = powers.iter().sum();
        (powers, sum)
    };
    for shape in [[4, 10], [3, 37], [5, 1]] {
        let width = shape[1];
        check(
            "softmax",
            &[&shape],
            |tensors| softmax(&tensors[0]),
            |inputs| {
                let rows = inputs[0].chunks(width).map(powers);
                rows.flat_map(|(powers, sum)| powers.into_iter().map(move |power| power / sum)).collect()
            },
        );
        check(
            "log_softmax",
            &[&shape],
            |tensors| log_softmax(&tensors[0]),
            |inputs| {
                let rows = inputs[0].chunks(width);
                rows.flat_map(|row| row.iter().map(move |value| value - powers(row).1.ln())).collect()
            },
        );
        if width > 1 {
            check(
                "layer_norm",
                &[&shape, &[width], &[width]],
                |tensors| layer_norm(&tensors[0], &tensors[1], &tensors[2], 1e-3),
                |inputs| {
                    let row = |row: &[f64]| -> Vec<f64> {
                        let mean = row.iter().sum::<f64>() / width as f64;
                        let variance =
                            row.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / width as f64;
                        let scale = 1.0 / (variance + 1e-3).sqrt();
                        let pairs = row.iter().zip(inputs[1].iter().zip(&inputs[2]));
                        pairs.map(|(value, (gamma, beta))| (value - mean) * scale * gamma + beta).collect()
                    };
                    inputs[0].chunks(width).flat_map(row).collect()
                },
            );
        }
        let values = var(&noise(shape.iter().product(), 4), &shape);
        let theirs = candle_nn::ops::log_softmax(&values, 1).unwrap();
        near(&flat(&log_softmax(&values).unwrap()), &flat(&theirs), 1e-6, "candle's log_softmax");
        let theirs = candle_nn::ops::softmax(&values, 1).unwrap();
        near(&flat(&softmax(&values).unwrap()), &flat(&theirs), 1e-6, "candle's softmax");
    }
}

#[test]
fn a_linear_layer_and_its_gradients() {
    check(
        "linear",
        &[&[5, 3], &[4, 3], &[4]],
        |tensors| linear(&tensors[0], &tensors[1], &tensors[2], Precision::F32),
        |inputs| {
            let [rows, weight, bias] = inputs else { unreachable!() };
            let product =
                |row: &[f64], weight: &[f64]| row.iter().zip(weight).map(|(a, b)| a * b).sum::<f64>();
            let of = |row: &[f64]| -> Vec<f64> {
                weight.chunks(3).zip(bias).map(|(weight, bias)| product(row, weight) + bias).collect()
            };
            rows.chunks(3).flat_map(of).collect()
        },
    );
}

#[test]
fn inputs_that_nobody_learns_get_no_gradient() {
    let (weight, bias) = (var(&noise(6, 1), &[2, 3]), var(&noise(2, 2), &[2]));
    let input = Tensor::ones((4, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
    let out = linear(&input, &weight, &bias, Precision::F32).unwrap();
    let gradients = out.sum_all().unwrap().backward().unwrap();
    assert!(gradients.get(&input).is_none());
    assert_eq!(flat(gradients.get(&weight).unwrap()), [4.0; 6]);
}

/// An operator and its composed form: what each makes of the same tensors.
type Pair = (&'static str, Vec<Vec<usize>>, fn(&[Tensor], bool) -> Result<Tensor>);

// What other devices compute is held to what the processor computes, values and gradients.
#[test]
fn composed_of_candles_own_each_operator_is_the_same() {
    const F32: Precision = Precision::F32;
    let pairs: [Pair; 12] = [
        ("convolve", vec![vec![5, 6, 3, 4], vec![7, 4, 3, 3]], |t, composed| match composed {
            true => composed::convolve(&t[0], &t[1], 2, 1, F32),
            false => convolve(&t[0], &t[1], 2, 1, F32),
        }),
        ("linear", vec![vec![5, 3], vec![4, 3], vec![4]], |t, composed| match composed {
            true => composed::linear(&t[0], &t[1], &t[2], F32),
            false => linear(&t[0], &t[1], &t[2], F32),
        }),
        ("relu", vec![vec![5, 3]], |t, composed| match composed {
            true => composed::relu(&t[0]),
            false => relu(&t[0]),
        }),
        ("add_relu", vec![vec![5, 3], vec![5, 3]], |t, composed| match composed {
            true => composed::add_relu(&t[0], &t[1]),
            false => add_relu(&t[0], &t[1]),
        }),
        ("bias_relu", vec![vec![5, 3], vec![3]], |t, composed| match composed {
            true => composed::bias_relu(&t[0], &t[1]),
            false => bias_relu(&t[0], &t[1]),
        }),
        ("batch_norm", vec![vec![4, 3, 2, 5], vec![5], vec![5]], |t, composed| match composed {
            true => composed::batch_norm(&t[0], &t[1], &t[2], 1e-5, Activation::Relu).map(|(out, _)| out),
            false => batch_norm(&t[0], &t[1], &t[2], 1e-5, Activation::Relu).map(|(out, _)| out),
        }),
        ("max_pool", vec![vec![5, 7, 3, 2]], |t, composed| match composed {
            true => composed::max_pool(&t[0], [2, 3]),
            false => max_pool(&t[0], [2, 3]),
        }),
        ("mean_pool", vec![vec![5, 7, 3, 2]], |t, composed| match composed {
            true => composed::mean_pool(&t[0]),
            false => mean_pool(&t[0]),
        }),
        ("to_rows", vec![vec![2, 3, 4, 5]], |t, composed| match composed {
            true => composed::to_rows(&composed::to_images(&composed::to_rows(&t[0])?, [5, 2, 3])?),
            false => to_rows(&to_images(&to_rows(&t[0])?, [5, 2, 3])?),
        }),
        ("softmax", vec![vec![5, 3]], |t, composed| match composed {
            true => composed::softmax(&t[0]),
            false => softmax(&t[0]),
        }),
        ("log_softmax", vec![vec![5, 3]], |t, composed| match composed {
            true => composed::log_softmax(&t[0]),
            false => log_softmax(&t[0]),
        }),
        ("layer_norm", vec![vec![5, 6], vec![6], vec![6]], |t, composed| match composed {
            true => composed::layer_norm(&t[0], &t[1], &t[2], 1e-5),
            false => layer_norm(&t[0], &t[1], &t[2], 1e-5),
        }),
    ];
    for (what, shapes, operator) in pairs {
        let made = |composed: bool| {
            let vars: Vec<Var> = shapes
                .iter()
                .enumerate()
                .map(|(salt, dims)| var(&noise(dims.iter().product(), salt), dims))
                .collect();
            let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
            let out = operator(&tensors, composed).unwrap();
            let weights = var(&noise(out.elem_count(), 9), out.dims());
            let loss = (&out * weights.as_tensor().detach()).unwrap().sum_all().unwrap();
            let gradients = loss.backward().unwrap();
            let of = |var: &Var| flat(gradients.get(var).unwrap_or_else(|| panic!("{what}: no gradient")));
            let all: Vec<f64> = flat(&out).into_iter().chain(vars.iter().flat_map(of)).collect();
            (out.dims().to_vec(), all)
        };
        let ((ours, expected), (theirs, found)) = (made(false), made(true));
        assert_eq!(ours, theirs, "{what}");
        near(&found, &expected, 1e-5, what);
    }
}

#[test]
fn composed_statistics_are_the_same_and_so_is_what_they_normalise() {
    let (images, row) = (var(&noise(120, 1), &[4, 3, 2, 5]), var(&noise(5, 2), &[5]));
    let (_, ours) = batch_norm(&images, &row, &row, 1e-5, Activation::None).unwrap();
    let (_, theirs) = composed::batch_norm(&images, &row, &row, 1e-5, Activation::None).unwrap();
    assert_eq!(ours.count, theirs.count);
    let wide = |values: &[f32]| values.iter().copied().map(f64::from).collect::<Vec<_>>();
    near(&wide(&theirs.mean), &wide(&ours.mean), 1e-6, "means");
    near(&wide(&theirs.variance), &wide(&ours.variance), 1e-6, "variances");
    let expected = normalize(&images, &row, &row, &ours, 1e-5, Activation::Relu).unwrap();
    let found = composed::normalize(&images, &row, &row, &ours, 1e-5, Activation::Relu).unwrap();
    near(&flat(&found), &flat(&expected), 1e-5, "normalize");
}

#[test]
fn rows_become_images_and_images_rows() {
    let rows = noise(24, 5);
    check(
        "to_images",
        &[&[2, 12]],
        |tensors| to_images(&tensors[0], [2, 2, 3]),
        |inputs| {
            let place = |at: usize| (at / 2 % 2) * 12 + (at % 2) * 6 + at / 4;
            (0..24).map(|at| inputs[0][place(at)]).collect()
        },
    );
    let there = to_images(&var(&rows, &[2, 12]), [2, 2, 3]).unwrap();
    assert_eq!(there.dims(), [2, 3, 2, 2]);
    assert_eq!(flat(&to_rows(&there).unwrap()), rows);
}

/// Values and gradients of a block of every operator that uses threads, as bits.
fn bits() -> Vec<u32> {
    let images = var(&noise(12 * 12 * 20 * 24, 1), &[12, 12, 20, 24]);
    let weight = var(&noise(40 * 24 * 9, 2), &[40, 24, 3, 3]);
    let (gamma, beta) = (var(&noise(40, 3), &[40]), var(&noise(40, 4), &[40]));
    let hidden = convolve(&images, &weight, 1, 1, Precision::F32).unwrap();
    let (out, statistics) = batch_norm(&hidden, &gamma, &beta, 1e-5, Activation::Relu).unwrap();
    let gradients = out.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let tensors = [&images, &weight, &gamma, &beta].map(|var| gradients.get(var).unwrap().clone());
    let values = tensors
        .iter()
        .chain([&out])
        .flat_map(|tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    values.chain(statistics.mean).chain(statistics.variance).map(f32::to_bits).collect()
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(bits)
    };
    let one = with(1);
    for threads in [2, 3, 5] {
        assert!(one == with(threads), "{threads} threads");
    }
}

#[test]
fn what_does_not_fit_is_refused_by_the_operators_name() {
    let of = |dims: &[usize]| Tensor::zeros(dims, candle_core::DType::F32, &Device::Cpu).unwrap();
    let images = of(&[4, 4, 2, 3]);
    let refused = |result: Result<Tensor>, expected: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused(
        convolve(&images, &of(&[2, 4, 3, 3]), 1, 0, Precision::F32),
        "images of 3 channels, but weights for 4",
    );
    refused(
        convolve(&images, &of(&[2, 3, 5, 5]), 1, 0, Precision::F32),
        "a kernel of 5x5 with stride 1 does not fit",
    );
    refused(convolve(&images, &of(&[2, 3, 3, 3]), 0, 0, Precision::F32), "stride 0");
    refused(max_pool(&images, [1, 5]), "windows of 1x5 do not fit into images of 4x4");
    refused(to_images(&of(&[2, 5]), [1, 2, 2]), "rows of 5 values are no images of [1, 2, 2]");
    refused(add_relu(&images, &of(&[4])), "`add_relu`: shapes");
    refused(bias_relu(&images, &of(&[4])), "`bias_relu`: 3 channels");
    refused(linear(&of(&[2, 3]), &of(&[5, 4]), &of(&[5]), Precision::F32), "`linear`: rows of 3");
    refused(linear(&of(&[2, 4]), &of(&[5, 4]), &of(&[4]), Precision::F32), "`linear`: rows of 4");
    refused(layer_norm(&images, &of(&[4]), &of(&[3]), 1e-5), "`layer_norm`: rows of 3");
    refused(relu(&images.to_dtype(candle_core::DType::F64).unwrap()), "`relu` takes f32 tensors");
    let none = batch_norm(&images, &of(&[4]), &of(&[4]), 1e-5, Activation::None).map(|(out, _)| out);
    refused(none, "`batch_norm`: 3 channels, but parameters");
}
