//! What every student promises: gradients everywhere and right, a seed that decides it, sizes refused by name.

use super::*;
use crate::machine::Machine;

/// One configuration of every kind, with an input that it takes.
fn every_student() -> Vec<(StudentConfig, Vec<Example>)> {
    let example = |input| Example { key: "k".into(), input, target: None, truth: None, hidden: vec![] };
    let vectors = (0..6).map(|at| example(Input::Vector((0..5).map(|i| ((at * i) as f32).sin()).collect())));
    let bytes = (0..6u16).map(|at| example(Input::Bytes((0..64).map(|i| (at * 31 + i * i) % 257).collect())));
    let sizes = ByteConvConfig {
        buckets: 32,
        shapes: 16,
        hidden: 8,
        channels: 4,
        stride: 2,
        ..ByteConvConfig::default()
    };
    let images: Vec<Example> = (0..6).map(|at| example(picture(at, [2, 9, 8]))).collect();
    let stages = [(3, 3, 1), (5, 4, 2)].map(|(channels, kernel, stride)| Stage { channels, kernel, stride });
    let cnn = CnnConfig { image: [2, 9, 8], stages: stages.to_vec(), width: 2, pool: 2 };
    let resnet = |model| StudentConfig::Resnet(ResnetConfig { image: [2, 9, 8], model });
    let (vectors, bytes): (Vec<Example>, Vec<Example>) = (vectors.collect(), bytes.collect());
    let transformer = |image: Option<[usize; 3]>| {
        let sizes = TransformerConfig {
            width: 6,
            heads: 2,
            feed_forward: 9,
            patch: 3,
            ..TransformerConfig::default()
        };
        StudentConfig::Transformer(TransformerConfig { image, ..sizes })
    };
    let tall: Vec<Example> = (0..6).map(|at| example(picture(at, [2, 9, 6]))).collect();
    vec![
        (transformer(None), vectors.clone()),
        (transformer(None), bytes.clone()),
        (transformer(Some([2, 9, 6])), tall),
        (StudentConfig::Mlp { hidden: vec![7, 6] }, vectors),
        (StudentConfig::ByteConv { sizes }, bytes),
        (StudentConfig::Cnn(cnn), images.clone()),
        (resnet(ResnetModel::Resnet8), images.clone()),
        (resnet(ResnetModel::Wrn16x2), images),
    ]
}

/// An image without a pattern, between 0 and 1.
fn picture(at: usize, image: [usize; 3]) -> Input {
    let value = |i: usize| (((at * 7 + 1) * (i + 1)) as f32 * 0.734_211).sin() * 0.5 + 0.5;
    Input::Vector((0..image.iter().product()).map(value).collect())
}

#[test]
fn every_variable_of_every_student_gets_a_gradient() {
    for (config, examples) in every_student() {
        config.check(&examples[0].input).unwrap();
        let student = config.build(&examples[0].input, 3, 1, &Machine::cpu()).unwrap();
        let examples: Vec<&Example> = examples.iter().collect();
        let logits = student.forward(&student.inputs(&examples).unwrap(), Mode::Training).unwrap();
        assert_eq!(logits.dims(), [6, 3]);
        let classes = Tensor::new(&[0u32, 1, 2, 0, 1, 2], &Device::Cpu).unwrap();
        let gradients = crate::loss::cross_entropy(&logits, &classes).unwrap().backward().unwrap();
        assert!(!student.parameters().all().is_empty());
        for (name, var) in student.parameters().all() {
            let gradient =
                gradients.get(var).unwrap_or_else(|| panic!("{} `{name}` has none", config.name()));
            let size = gradient.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(size > 0.0 && size.is_finite(), "{} `{name}` has {size}", config.name());
        }
    }
}

#[test]
fn a_hidden_layer_is_a_row_an_input_and_reaches_only_what_is_before_it() {
    for (config, examples) in every_student() {
        let student = config.build(&examples[0].input, 3, 1, &Machine::cpu()).unwrap();
        let examples: Vec<&Example> = examples.iter().collect();
        let inputs = student.inputs(&examples).unwrap();
        let mut reached = 0;
        assert!(student.depth() > 0, "{}", config.name());
        for layer in 0..student.depth() {
            let hidden = student.hidden(&inputs, layer, Mode::Training).unwrap();
            assert_eq!(hidden.dim(0).unwrap(), examples.len(), "{} {layer}", config.name());
            let gradients = hidden.sqr().unwrap().mean_all().unwrap().backward().unwrap();
            let all = student.parameters().all();
            let before = std::mem::replace(
                &mut reached,
                all.iter().filter(|(_, var)| gradients.get(var).is_some()).count(),
            );
            assert!(reached > before, "{}: layer {layer} reaches nothing new", config.name());
            assert!(gradients.get(&student.output().bias).is_none(), "{}", config.name());
        }
    }
}

#[test]
fn gradients_equal_finite_differences() {
    for (config, examples) in every_student() {
        let student = config.build(&examples[0].input, 3, 2, &Machine::cpu()).unwrap();
        let examples: Vec<&Example> = examples.iter().collect();
        let inputs = student.inputs(&examples).unwrap();
        // A smooth loss of all logits.
        let loss = || student.forward(&inputs, Mode::Training).unwrap().sqr().unwrap().mean_all().unwrap();
        let gradients = loss().backward().unwrap();
        for (name, var) in student.parameters().all() {
            let gradient = gradients.get(var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let at =
                (0..gradient.len()).max_by(|a, b| gradient[*a].abs().total_cmp(&gradient[*b].abs())).unwrap();
            let before = var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let shifted = |by: f32| {
                let mut values = before.clone();
                values[at] += by;
                var.set(&Tensor::from_vec(values, var.dims(), &Device::Cpu).unwrap()).unwrap();
                loss().to_scalar::<f32>().unwrap()
            };
            let step = 2e-3;
            let slope = (shifted(step) - shifted(-step)) / (2.0 * step);
            shifted(0.0);
            let error = (slope - gradient[at]).abs();
            assert!(
                error < 0.05 * slope.abs() + 1e-3,
                "{} `{name}`: {slope} but {}",
                config.name(),
                gradient[at]
            );
        }
    }
}

#[test]
fn a_seed_decides_every_weight() {
    for (config, examples) in every_student() {
        let weights = |seed| {
            let student = config.build(&examples[0].input, 3, seed, &Machine::cpu()).unwrap();
            let all = student.parameters().all().to_vec();
            all.iter()
                .map(|(_, var)| var.flatten_all().unwrap().to_vec1::<f32>().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(weights(4), weights(4));
        assert_ne!(weights(4), weights(5));
    }
}

#[test]
fn a_student_names_what_it_cannot_take() {
    let check = |config: StudentConfig, input: Input, expected: &str| {
        assert_eq!(config.check(&input).expect_err(expected).to_string(), expected);
    };
    let bytes = || Input::Bytes(vec![0; 32]);
    check(
        StudentConfig::Mlp { hidden: vec![4] },
        bytes(),
        "student `mlp` takes vectors, but the inputs are bytes",
    );
    check(
        StudentConfig::Mlp { hidden: vec![0] },
        Input::Vector(vec![1.0]),
        "`student.hidden` is 0; it must be 1 to 1048576",
    );
    let sizes = ByteConvConfig { kernel: 40, ..ByteConvConfig::default() };
    check(StudentConfig::ByteConv { sizes }, bytes(), "`student.sizes.kernel` is 40; it must be 1 to 7");
    let sizes = ByteConvConfig { ends: 40, ..ByteConvConfig::default() };
    check(StudentConfig::ByteConv { sizes }, bytes(), "`student.sizes.ends` is 40; it must be 0 to 32");
    check(
        StudentConfig::Cnn(CnnConfig::tiny([1, 28, 28])),
        bytes(),
        "student `cnn` takes vectors, but the inputs are bytes",
    );
    check(
        StudentConfig::Cnn(CnnConfig::tiny([1, 28, 28])),
        Input::Vector(vec![0.0; 783]),
        "student `cnn` takes images of 784 values (`student.image = [1, 28, 28]`), but the inputs are vectors of 783",
    );
    check(
        StudentConfig::Cnn(CnnConfig { pool: 8, ..CnnConfig::tiny([1, 28, 28]) }),
        Input::Vector(vec![0.0; 784]),
        "`student.pool` is 8; it must be 1 to 7",
    );
    check(
        StudentConfig::Resnet(ResnetConfig { image: [3, 2, 8], model: ResnetModel::Resnet20 }),
        Input::Vector(vec![0.0; 48]),
        "`student.image` is 2; it must be 4 to 1048576",
    );
}

// The counts of RepDistiller's models for 100 classes (github.com/HobbitLong/RepDistiller, arXiv 1910.10699), and for the
// tiny one: 25 * 16 + 9 * 16 * 32 + 9 * 32 * 64, 2 * (16 + 32 + 64), 576 * 10 + 10.
#[test]
fn students_have_the_published_numbers_of_parameters() {
    let count = |config: StudentConfig, image: [usize; 3], classes| {
        config.build(&picture(0, image), classes, 0, &Machine::cpu()).unwrap().parameters().count()
    };
    let grey = [1, 28, 28];
    assert_eq!(count(StudentConfig::Cnn(CnnConfig::tiny(grey)), grey, 10), 29_434);
    let wide = CnnConfig { width: 2, ..CnnConfig::tiny(grey) };
    assert_eq!(count(StudentConfig::Cnn(wide), grey, 10), 104_938);
    let image = [3, 32, 32];
    for (model, expected) in [
        (ResnetModel::Resnet8, 83_892),
        (ResnetModel::Resnet20, 278_324),
        (ResnetModel::Resnet32, 472_756),
        (ResnetModel::Resnet8x4, 1_233_540),
        (ResnetModel::Wrn16x2, 703_284),
    ] {
        assert_eq!(
            count(StudentConfig::Resnet(ResnetConfig { image, model }), image, 100),
            expected,
            "{model:?}"
        );
    }
}

#[test]
fn only_training_moves_running_statistics_and_inference_sees_each_input_alone() {
    for (config, examples) in every_student() {
        let student = config.build(&examples[0].input, 3, 1, &Machine::cpu()).unwrap();
        let kept = || -> Vec<Vec<f32>> {
            student
                .parameters()
                .kept()
                .map(|(_, var)| var.flatten_all().unwrap().to_vec1().unwrap())
                .collect()
        };
        let inputs = student.inputs(&examples.iter().collect::<Vec<_>>()).unwrap();
        let before = kept();
        student.forward(&inputs, Mode::Inference).unwrap();
        assert_eq!(before, kept(), "{}", config.name());
        student.forward(&inputs, Mode::Training).unwrap();
        let has_buffers = student.parameters().kept().count() > student.parameters().all().len();
        assert_eq!(before != kept(), has_buffers, "{}", config.name());
        let together = student.logits(&examples.iter().collect::<Vec<_>>()).unwrap();
        for (example, together) in examples.iter().zip(together) {
            let alone = student.logits(&[example]).unwrap();
            for (one, other) in alone[0].iter().zip(together) {
                assert!(
                    (one - other).abs() < 1e-4 * other.abs().max(1.0),
                    "{}: {one} {other}",
                    config.name()
                );
            }
        }
    }
}

#[test]
fn image_students_read_as_the_run_file_has_them() {
    let parse = |text: &str| toml::from_str::<StudentConfig>(text).unwrap();
    assert_eq!(parse("kind = 'cnn'\nimage = [1, 28, 28]"), StudentConfig::Cnn(CnnConfig::tiny([1, 28, 28])));
    let StudentConfig::Cnn(read) = parse(
        "kind = 'cnn'\nimage = [3, 8, 8]\nwidth = 2\npool = 1\nstages = [{ channels = 4, stride = 2 }]",
    ) else {
        panic!("another kind");
    };
    assert_eq!(read.stages, [Stage { channels: 4, kernel: 3, stride: 2 }]);
    assert_eq!(
        parse("kind = 'resnet'\nimage = [3, 32, 32]\nmodel = 'wrn-16-2'"),
        StudentConfig::Resnet(ResnetConfig { image: [3, 32, 32], model: ResnetModel::Wrn16x2 })
    );
}

// torch 2: conv 2->4 5x5/2, conv 4->6 3x3, each with BatchNorm2d and ReLU, max_pool2d(2), Linear(24, 3); fill(shape, salt) =
// sin((i * 37 + salt * 101 + 11) * 0.618034) / 2, salt = place among net.parameters(), plus 1 for BatchNorm2d.weight;
// x = fill((3, 2, 9, 8), 20); net(x); y = net(x); y.square().mean().backward(); net.eval(); net(x)
#[test]
fn two_steps_of_a_small_network_equal_pytorch() {
    let fill = |count: usize, salt: usize| -> Vec<f32> {
        (0..count)
            .map(|at| (f64::from((at * 37 + salt * 101 + 11) as u32) * 0.618_034).sin() * 0.5)
            .map(|value| value as f32)
            .collect()
    };
    let image = [2, 9, 8];
    let stages = [(4, 5, 2), (6, 3, 1)].map(|(channels, kernel, stride)| Stage { channels, kernel, stride });
    let config = StudentConfig::Cnn(CnnConfig { image, stages: stages.to_vec(), width: 1, pool: 2 });
    let student = config.build(&picture(0, image), 3, 0, &Machine::cpu()).unwrap();
    for (salt, (_, var)) in student.parameters().all().iter().enumerate() {
        let one = if [1, 4].contains(&salt) { 1.0 } else { 0.0 };
        let values: Vec<f32> = fill(var.elem_count(), salt).into_iter().map(|value| value + one).collect();
        var.set(&Tensor::from_vec(values, var.dims(), &Device::Cpu).unwrap()).unwrap();
    }
    let inputs = Inputs(vec![Tensor::from_vec(fill(432, 20), (3, 144), &Device::Cpu).unwrap()]);
    student.forward(&inputs, Mode::Training).unwrap();
    let trained = student.forward(&inputs, Mode::Training).unwrap();
    let gradients = trained.sqr().unwrap().mean_all().unwrap().backward().unwrap();
    let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let near = |found: &[f32], expected: &[f32], what: &str| {
        for (found, expected) in found.iter().zip(expected) {
            let error = (found - expected).abs();
            assert!(error < 5e-6 * expected.abs().max(1.0), "{what}: {found} instead of {expected}");
        }
    };
    let answered = student.forward(&inputs, Mode::Inference).unwrap();
    near(
        &flat(&trained),
        &[
            -0.740_753, 0.579_231, 0.010_594, -0.715_465, 0.783_614, -0.247_613, -0.556_667, 0.718_201,
            -0.331_864,
        ],
        "training",
    );
    near(
        &flat(&answered),
        &[
            -0.855_499, 0.532_43, 0.178_675, -0.874_15, 0.847_869, -0.162_153, -0.640_113, 0.994_042,
            -0.562_772,
        ],
        "inference",
    );
    let norms = [0.249_033, 0.259_955, 0.270_666, 2.866_083, 0.691_935, 0.711_064, 4.352_383, 0.655_691f32];
    let first = [0.005_793, 0.025_295, 0.101_417, 0.065_167, -0.390_639, -0.279_216, 0.0, -0.447_308f32];
    for (at, (name, var)) in student.parameters().all().iter().enumerate() {
        let gradient = flat(gradients.get(var).unwrap());
        let norm = gradient.iter().map(|value| value * value).sum::<f32>().sqrt();
        near(&[norm, gradient[0]], &[norms[at], first[at]], name);
    }
    let kept: Vec<Vec<f32>> = student.parameters().kept().map(|(_, var)| flat(var)).collect();
    near(&kept[8], &[0.002_382, 0.002_897, 0.003_321, 0.003_642], "running mean of the first stage");
    let variance = [0.934_354, 0.936_916, 0.938_677, 0.939_529, 0.939_419, 0.938_355];
    near(&kept[11], &variance, "running variance of the second stage");
}
