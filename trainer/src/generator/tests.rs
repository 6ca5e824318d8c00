//! Generators decode what they encode, whitened, and say by name what they cannot do.

use super::*;
use crate::example::Input;
use crate::export;
use crate::installed;
use crate::machine::Machine;
use crate::student::StudentConfig;
use candle_core::Device;
use std::path::Path;

const COUNT: usize = 120;

/// Points of a plane in five dimensions, bent by `bend`.
fn plane(bend: f32) -> Tensor {
    let row = |at: usize| {
        let (x, y) = ((at as f32 * 1.7).sin() * 3.0, (at as f32 * 0.9).cos());
        [1.0 + x, 2.0 - y, x + y, 0.5 * x, bend * x * y]
    };
    let rows: Vec<f32> = (0..COUNT).flat_map(row).collect();
    Tensor::from_vec(rows, (COUNT, 5), &Device::Cpu).unwrap()
}

fn config(text: &str) -> GeneratorConfig {
    toml::from_str(text).unwrap()
}

fn fit(text: &str, rows: &Tensor) -> Generator {
    Generator::fit(&config(text), rows, 0, None).unwrap()
}

/// The mean squared error of what is encoded and decoded.
fn error(generator: &Generator, rows: &Tensor) -> f32 {
    let back = generator.decode(&generator.encode(rows).unwrap()).unwrap();
    (back - rows).unwrap().sqr().unwrap().mean_all().unwrap().to_scalar().unwrap()
}

fn assert_whitened(generator: &Generator, rows: &Tensor, latent: usize) {
    let latents = generator.encode(rows).unwrap();
    assert_eq!(latents.dims2().unwrap(), (rows.dim(0).unwrap(), latent));
    let mean: Vec<f32> = latents.mean(0).unwrap().to_vec1().unwrap();
    let square: Vec<f32> = latents.sqr().unwrap().mean(0).unwrap().to_vec1().unwrap();
    assert!(mean.iter().all(|mean| mean.abs() < 1e-3), "{mean:?}");
    assert!(square.iter().all(|square| (square - 1.0).abs() < 1e-2), "{square:?}");
}

#[test]
fn components_are_the_identity_on_their_span_and_whitened() {
    let rows = plane(0.0);
    // Two directions vary; the others are left out, however many are asked for.
    let generator = fit("kind = 'pca'\nlatent = 16", &rows);
    assert_whitened(&generator, &rows, 2);
    assert!(error(&generator, &rows) < 1e-9, "{}", error(&generator, &rows));
    // And the other way round: what is decoded is encoded to itself.
    let latents = Tensor::new(&[[0.5f32, -2.0], [3.0, 0.0]], &Device::Cpu).unwrap();
    let again = generator.encode(&generator.decode(&latents).unwrap()).unwrap();
    let off = (again - latents).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(off < 1e-4, "{off}");
    // Of a bent plane one component is not enough.
    assert!(error(&fit("kind = 'pca'\nlatent = 1", &plane(1.0)), &plane(1.0)) > 0.1);
    let same = Tensor::ones((4, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
    let refused = Generator::fit(&config("kind = 'pca'"), &same, 0, None).unwrap_err().to_string();
    assert_eq!(refused, "`explore.generator.latent` is 16; it must be fitted to inputs that differ");
}

#[test]
fn autoencoders_learn_to_decode_what_they_encode() {
    let rows = plane(1.0);
    for kind in ["kind = 'autoencoder'", "kind = 'vae'\nkl = 0.01"] {
        let of =
            |steps: usize| fit(&format!("{kind}\nlatent = 2\nwidth = 16\nlr = 1e-2\nsteps = {steps}"), &rows);
        let (before, after) = (of(1), of(600));
        let (first, last) = (error(&before, &rows), error(&after, &rows));
        assert!(last < first * 0.2, "{kind}: {first} {last}");
        assert_whitened(&after, &rows, 2);
        let bits = |generator: &Generator| generator.encode(&rows).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(bits(&after), bits(&of(600)), "{kind}: the same seed gives another generator");
    }
}

#[test]
fn a_stronger_divergence_keeps_less_of_the_input() {
    let rows = plane(1.0);
    let of = |kl: f64| {
        error(&fit(&format!("kind = 'vae'\nlatent = 2\nlr = 1e-2\nsteps = 400\nkl = {kl}"), &rows), &rows)
    };
    assert!(of(0.001) * 3.0 < of(20.0), "{} {}", of(0.001), of(20.0));
}

/// A linear map as an ONNX model.
fn linear(folder: &Path, input: usize, output: usize) -> String {
    let student = StudentConfig::Mlp { hidden: vec![] };
    let sample = Input::Vector(vec![0.0; input]);
    let built = student.build(&sample, output, 7, &Machine::cpu()).unwrap();
    let classes: Vec<String> = (0..output).map(|class| class.to_string()).collect();
    let folder = folder.join(format!("{input}-{output}"));
    export::save(&folder, &built, &student, &sample, &classes, "a map").unwrap();
    folder.join("model.onnx").display().to_string()
}

#[test]
fn models_made_elsewhere_encode_and_decode() {
    let place = tempfile::tempdir().unwrap();
    let (encoder, decoder) = (linear(place.path(), 5, 3), linear(place.path(), 3, 5));
    let (rows, runtime) = (plane(1.0), installed::runtime());
    let pair = |encoder: &str, decoder: &str| {
        let config = OnnxConfig { encoder: encoder.into(), decoder: decoder.into() };
        Generator::fit(&GeneratorConfig::Onnx(config), &rows, 0, Some(&runtime))
    };
    let generator = pair(&encoder, &decoder).unwrap();
    assert_whitened(&generator, &rows, 3);
    let decoded = generator.decode(&generator.encode(&rows).unwrap()).unwrap();
    assert_eq!(decoded.dims2().unwrap(), (COUNT, 5));
    let refused = |encoder: &str, decoder: &str, words: &str| {
        let error = pair(encoder, decoder).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    };
    refused(
        &encoder,
        &linear(place.path(), 3, 4),
        "gives rows of 4 values, and an input of the data set has 5",
    );
    refused(&decoder, &encoder, "`explore.generator.encoder`");
    refused("none.onnx", &decoder, "`explore.generator.encoder`");
    refused(&encoder, "none.onnx", "`explore.generator.decoder`");
    let config = GeneratorConfig::Onnx(OnnxConfig { encoder, decoder });
    assert!(matches!(Generator::fit(&config, &rows, 0, None), Err(GeneratorError::Runtime)));
}

#[test]
fn numbers_out_of_their_range_are_named() {
    for (text, words) in [
        ("kind = 'pca'\nlatent = 0", "`explore.generator.latent` is 0; it must be 1 or more"),
        ("kind = 'autoencoder'\nkl = 0.1", "`explore.generator.kl` is 0.1; it must be absent"),
        ("kind = 'vae'\nkl = -1.0", "`explore.generator.kl` is -1; it must be 0 or more"),
        ("kind = 'vae'\nlr = 0.0", "`explore.generator.lr` is 0; it must be above 0"),
        ("kind = 'vae'\nsteps = 0", "`explore.generator.steps` is 0"),
    ] {
        let refused = config(text).check().unwrap_err().to_string();
        assert!(refused.contains(words), "{text}: {refused}");
    }
}
