//! Students: small models with a fixed input and one logit a class.
//!
//! This room must not know losses, optimizers or where examples came from. Invariants: the same seed makes the same
//! student; every variable of every student gets a gradient (candle drops some silently: a test here looks).

mod byte_conv;
mod mlp;
mod parameters;

use candle_core::{Device, Result, Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::example::{Example, Input};

pub use byte_conv::ByteConvConfig;
pub(crate) use byte_conv::{ByteConv, FACTOR, FLOOR, MODULUS, SCALE, SHAPE_ORDERS, folded};
pub(crate) use mlp::Mlp;
pub(crate) use parameters::{Linear, Parameters};

/// The `[student]` table of a run file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum StudentConfig {
    /// A multi-layer perceptron over vectors.
    Mlp {
        /// The widths of the hidden layers.
        hidden: Vec<usize>,
    },
    /// Convolutions over bytes.
    ByteConv {
        /// The sizes; every one has a default.
        #[serde(default)]
        sizes: ByteConvConfig,
    },
}

/// Why a student cannot be made for a data set.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StudentError {
    /// The student cannot read such inputs.
    #[error("student `{student}` takes {takes}, but the inputs are {found}")]
    Input {
        /// The student's kind.
        student: &'static str,
        /// What it takes.
        takes: &'static str,
        /// What the data set holds.
        found: &'static str,
    },
    /// A size that no layer can have.
    #[error("`student.{field}` is {value}; it must be {range}")]
    Size {
        /// The field.
        field: &'static str,
        /// What it holds.
        value: usize,
        /// What it may hold.
        range: String,
    },
}

/// The widest layer that is accepted; beyond it a run file is more likely wrong than meant.
const WIDTH_LIMIT: usize = 1 << 20;

impl StudentConfig {
    /// The name of its kind in a run file.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Mlp { .. } => "mlp",
            Self::ByteConv { .. } => "byte-conv",
        }
    }

    /// Checks the sizes against an input of the data set.
    ///
    /// # Errors
    /// The first thing that does not fit.
    pub fn check(&self, input: &Input) -> std::result::Result<(), StudentError> {
        let size = |field, value: usize, least: usize, most: usize| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            Err(StudentError::Size { field, value, range: format!("{least} to {most}") })
        };
        match (self, input) {
            (Self::Mlp { hidden }, Input::Vector(_)) => {
                hidden.iter().try_for_each(|width| size("hidden", *width, 1, WIDTH_LIMIT))
            }
            (Self::Mlp { .. }, Input::Bytes(_)) => {
                Err(StudentError::Input { student: "mlp", takes: "vectors", found: "bytes" })
            }
            (Self::ByteConv { .. }, Input::Vector(_)) => {
                Err(StudentError::Input { student: "byte-conv", takes: "bytes", found: "vectors" })
            }
            (Self::ByteConv { sizes }, Input::Bytes(symbols)) => {
                let length = symbols.len();
                size("sizes.embedding", sizes.embedding, 1, WIDTH_LIMIT)?;
                size("sizes.hidden", sizes.hidden, 1, WIDTH_LIMIT)?;
                size("sizes.channels", sizes.channels, 0, WIDTH_LIMIT)?;
                size("sizes.buckets", sizes.buckets, 0, WIDTH_LIMIT)?;
                size("sizes.shapes", sizes.shapes, 0, WIDTH_LIMIT)?;
                size("sizes.stride", sizes.stride, 1, length)?;
                size("sizes.orders", sizes.orders, 1, 16)?;
                size("sizes.ends", sizes.ends, 0, length)?;
                if sizes.channels > 0 {
                    // The second convolution still needs one whole window.
                    let most =
                        (1..=length).rev().find(|kernel| (length - kernel) / sizes.stride + 1 >= *kernel);
                    size("sizes.kernel", sizes.kernel, 1, most.unwrap_or(1))?;
                }
                let views = sizes.channels + sizes.buckets + sizes.shapes + sizes.ends;
                if views == 0 {
                    return size("sizes.channels + buckets + shapes + ends", views, 1, WIDTH_LIMIT);
                }
                Ok(())
            }
        }
    }

    /// Makes the student with weights from `seed`.
    ///
    /// # Errors
    /// When the device has no room for it.
    pub(crate) fn build(&self, input: &Input, classes: usize, seed: u64, device: &Device) -> Result<Built> {
        Ok(match self {
            Self::Mlp { hidden } => Built::Mlp(Mlp::new(input.width(), hidden, classes, seed, device)?),
            Self::ByteConv { sizes } => Built::ByteConv(ByteConv::new(sizes, classes, seed, device)?),
        })
    }
}

/// The tensors of some examples as one student sees them; all have the same first dimension.
#[derive(Debug, Clone)]
pub(crate) struct Inputs(pub(crate) Vec<Tensor>);

impl Inputs {
    /// The examples at `rows`, in that order.
    pub(crate) fn select(&self, rows: &Tensor) -> Result<Self> {
        self.0.iter().map(|view| view.index_select(rows, 0)).collect::<Result<_>>().map(Self)
    }

    /// `lambda` of these plus `1 - lambda` of `other`, value by value.
    pub(crate) fn mix(&self, other: &Self, lambda: f64) -> Result<Self> {
        let pairs = self.0.iter().zip(&other.0);
        pairs.map(|(one, two)| (one * lambda)? + (two * (1.0 - lambda))?).collect::<Result<_>>().map(Self)
    }
}

/// What the loop asks of a student.
pub(crate) trait Student {
    /// Turns examples into tensors.
    fn inputs(&self, examples: &[&Example], device: &Device) -> Result<Inputs>;
    /// Inputs to logits `[n, C]`.
    fn forward(&self, inputs: &Inputs) -> Result<Tensor>;
    /// How many hidden layers it has.
    fn depth(&self) -> usize;
    /// Inputs to hidden layer `layer` below [`Student::depth`], after its activation: `[n, m]`.
    fn hidden(&self, inputs: &Inputs, layer: usize) -> Result<Tensor>;
    /// The variables.
    fn parameters(&self) -> &Parameters;
    /// The bias that is added to the logits, one value a class.
    fn output_bias(&self) -> &Var;
    /// Whether inputs can be mixed value by value.
    fn mixable(&self) -> bool;
}

/// A student of one of the known kinds; the export asks which.
#[derive(Debug)]
pub(crate) enum Built {
    /// A perceptron.
    Mlp(Mlp),
    /// A byte student.
    ByteConv(ByteConv),
}

impl Built {
    fn inner(&self) -> &dyn Student {
        match self {
            Self::Mlp(student) => student,
            Self::ByteConv(student) => student,
        }
    }

    /// The logits of examples, in chunks, as plain numbers.
    pub(crate) fn logits(&self, examples: &[&Example], device: &Device) -> Result<Vec<Vec<f32>>> {
        const CHUNK: usize = 256;
        let mut rows = Vec::with_capacity(examples.len());
        for chunk in examples.chunks(CHUNK) {
            rows.extend(self.forward(&self.inputs(chunk, device)?)?.to_vec2::<f32>()?);
        }
        Ok(rows)
    }
}

impl Student for Built {
    fn inputs(&self, examples: &[&Example], device: &Device) -> Result<Inputs> {
        self.inner().inputs(examples, device)
    }

    fn forward(&self, inputs: &Inputs) -> Result<Tensor> {
        self.inner().forward(inputs)
    }

    fn depth(&self) -> usize {
        self.inner().depth()
    }

    fn hidden(&self, inputs: &Inputs, layer: usize) -> Result<Tensor> {
        self.inner().hidden(inputs, layer)
    }

    fn parameters(&self) -> &Parameters {
        self.inner().parameters()
    }

    fn output_bias(&self) -> &Var {
        self.inner().output_bias()
    }

    fn mixable(&self) -> bool {
        self.inner().mixable()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One configuration of every kind, with an input that it takes.
    fn every_student() -> Vec<(StudentConfig, Vec<Example>)> {
        let example = |input| Example { key: "k".into(), input, target: None, truth: None, hidden: vec![] };
        let vectors =
            (0..6).map(|at| example(Input::Vector((0..5).map(|i| ((at * i) as f32).sin()).collect())));
        let bytes =
            (0..6u16).map(|at| example(Input::Bytes((0..64).map(|i| (at * 31 + i * i) % 257).collect())));
        let sizes = ByteConvConfig {
            buckets: 32,
            shapes: 16,
            hidden: 8,
            channels: 4,
            stride: 2,
            ..ByteConvConfig::default()
        };
        vec![
            (StudentConfig::Mlp { hidden: vec![7, 6] }, vectors.collect()),
            (StudentConfig::ByteConv { sizes }, bytes.collect()),
        ]
    }

    #[test]
    fn every_variable_of_every_student_gets_a_gradient() {
        for (config, examples) in every_student() {
            config.check(&examples[0].input).unwrap();
            let student = config.build(&examples[0].input, 3, 1, &Device::Cpu).unwrap();
            let examples: Vec<&Example> = examples.iter().collect();
            let logits = student.forward(&student.inputs(&examples, &Device::Cpu).unwrap()).unwrap();
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
    fn gradients_equal_finite_differences() {
        for (config, examples) in every_student() {
            let student = config.build(&examples[0].input, 3, 2, &Device::Cpu).unwrap();
            let examples: Vec<&Example> = examples.iter().collect();
            let inputs = student.inputs(&examples, &Device::Cpu).unwrap();
            // A smooth loss of all logits.
            let loss = || student.forward(&inputs).unwrap().sqr().unwrap().mean_all().unwrap();
            let gradients = loss().backward().unwrap();
            for (name, var) in student.parameters().all() {
                let gradient = gradients.get(var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let at = (0..gradient.len())
                    .max_by(|a, b| gradient[*a].abs().total_cmp(&gradient[*b].abs()))
                    .unwrap();
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
                let student = config.build(&examples[0].input, 3, seed, &Device::Cpu).unwrap();
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
    }
}
