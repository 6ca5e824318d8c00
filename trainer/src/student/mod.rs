//! Students: small models with a fixed input and one logit a class.
//!
//! This room must not know losses, optimizers or where examples came from. Invariants: the same seed makes the same
//! student; every variable of every student gets a gradient (candle drops some silently: a test here looks); only a
//! forward pass in `Mode::Training` changes anything, and that only buffers.

mod byte_conv;
mod cnn;
mod head;
mod image;
mod layers;
mod mlp;
mod parameters;
mod resnet;
mod transformer;

use candle_core::{Device, Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::example::{Example, Input};
use crate::machine::Machine;

pub use byte_conv::ByteConvConfig;
pub(crate) use byte_conv::{ByteConv, FACTOR, FLOOR, MODULUS, SCALE, SHAPE_ORDERS, folded};
pub(crate) use cnn::Cnn;
pub use cnn::{CnnConfig, Stage};
pub(crate) use head::Head;
pub(crate) use image::{ImageStudent, Network};
pub(crate) use layers::{BatchNorm, Convolution, EPSILON, Layers, MOMENTUM};
pub(crate) use mlp::Mlp;
pub(crate) use parameters::{Linear, Parameters};
pub(crate) use resnet::Resnet;
pub use resnet::{ResnetConfig, ResnetModel};
pub use transformer::TransformerConfig;
pub(crate) use transformer::{Layer as TransformerLayer, LayerNorm, Tokens, Transformer};

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
    /// Convolutions over images.
    Cnn(CnnConfig),
    /// A residual network over images.
    Resnet(ResnetConfig),
    /// Attention over the tokens of any input.
    Transformer(TransformerConfig),
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
    /// Vectors that are no images of the stated shape.
    #[error(
        "student `{student}` takes images of {} values (`student.image = {image:?}`), but the inputs are vectors of {found}",
        image.iter().product::<usize>()
    )]
    Image {
        /// The student's kind.
        student: &'static str,
        /// Channels, height and width.
        image: [usize; 3],
        /// The width of the data set's vectors.
        found: usize,
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

/// Refuses a size out of its range, by its field.
fn size(
    field: &'static str,
    value: usize,
    least: usize,
    most: usize,
) -> std::result::Result<(), StudentError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(StudentError::Size { field, value, range: format!("{least} to {most}") })
}

impl StudentConfig {
    /// The name of its kind in a run file.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Mlp { .. } => "mlp",
            Self::ByteConv { .. } => "byte-conv",
            Self::Cnn(_) => "cnn",
            Self::Resnet(_) => "resnet",
            Self::Transformer(_) => "transformer",
        }
    }

    /// Channels, height and width of the images that it takes, if it takes images.
    pub(crate) fn image(&self) -> Option<[usize; 3]> {
        match self {
            Self::Mlp { .. } | Self::ByteConv { .. } => None,
            Self::Cnn(CnnConfig { image, .. }) | Self::Resnet(ResnetConfig { image, .. }) => Some(*image),
            Self::Transformer(config) => config.image,
        }
    }

    /// Checks the sizes against an input of the data set.
    ///
    /// # Errors
    /// The first thing that does not fit.
    pub fn check(&self, input: &Input) -> std::result::Result<(), StudentError> {
        if let Some(image) = self.image() {
            self.check_image(image, input)?;
        }
        match (self, input) {
            (Self::Cnn(config), _) => config.check(),
            (Self::Resnet(config), _) => config.check(),
            (Self::Transformer(config), input) => config.check(input),
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

    fn check_image(&self, image: [usize; 3], input: &Input) -> std::result::Result<(), StudentError> {
        let student = self.name();
        let Input::Vector(values) = input else {
            return Err(StudentError::Input { student, takes: "vectors", found: input.kind() });
        };
        image.iter().try_for_each(|extent| size("image", *extent, 1, WIDTH_LIMIT))?;
        let pixels = image.iter().try_fold(1usize, |product, extent| product.checked_mul(*extent));
        if pixels != Some(values.len()) {
            return Err(StudentError::Image { student, image, found: values.len() });
        }
        Ok(())
    }

    /// Makes the student with weights from `seed`.
    ///
    /// # Errors
    /// When the device has no room for it.
    pub(crate) fn build(&self, input: &Input, classes: usize, seed: u64, machine: &Machine) -> Result<Built> {
        Ok(match self {
            Self::Mlp { hidden } => Built::Mlp(Mlp::new(input.width(), hidden, classes, seed, machine)?),
            Self::ByteConv { sizes } => Built::ByteConv(ByteConv::new(sizes, classes, seed, machine)?),
            Self::Cnn(config) => {
                Built::Cnn(ImageStudent::new(Cnn::new(config, classes, seed, machine)?, config.image))
            }
            Self::Resnet(config) => {
                Built::Resnet(ImageStudent::new(Resnet::new(config, classes, seed, machine)?, config.image))
            }
            Self::Transformer(config) => {
                Built::Transformer(Transformer::new(config, input, classes, seed, machine)?)
            }
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

    /// How many examples they are.
    pub(crate) fn count(&self) -> Result<usize> {
        self.0[0].dim(0)
    }

    /// `count` examples from `start` on.
    pub(crate) fn narrow(&self, start: usize, count: usize) -> Result<Self> {
        self.0.iter().map(|view| view.narrow(0, start, count)).collect::<Result<_>>().map(Self)
    }

    /// These, and below them `others`.
    pub(crate) fn and(&self, others: &Self) -> Result<Self> {
        self.0
            .iter()
            .zip(&others.0)
            .map(|(one, two)| Tensor::cat(&[one, two], 0))
            .collect::<Result<_>>()
            .map(Self)
    }

    /// `lambda` of these plus `1 - lambda` of `other`, value by value.
    pub(crate) fn mix(&self, other: &Self, lambda: f64) -> Result<Self> {
        let pairs = self.0.iter().zip(&other.0);
        pairs.map(|(one, two)| (one * lambda)? + (two * (1.0 - lambda))?).collect::<Result<_>>().map(Self)
    }

    /// These where `kept` is 1 and `others` where it is 0, one number a value of an input.
    pub(crate) fn patch(&self, others: &Self, kept: &[f32]) -> Result<Self> {
        let pairs = self.0.iter().zip(&others.0);
        let patched = pairs.map(|(one, two)| {
            let kept = Tensor::from_slice(kept, (1, kept.len()), one.device())?;
            one.broadcast_mul(&kept)? + two.broadcast_mul(&(1.0 - kept)?)?
        });
        patched.collect::<Result<_>>().map(Self)
    }
}

/// The vectors of examples as one tensor `[n, width]`.
fn vectors(examples: &[&Example], width: usize, device: &Device) -> Result<Inputs> {
    let mut values = Vec::with_capacity(examples.len() * width);
    for example in examples {
        match &example.input {
            Input::Vector(vector) => values.extend_from_slice(vector),
            Input::Bytes(_) => candle_core::bail!("`{}` is bytes and no vector", example.key),
        }
    }
    Ok(Inputs(vec![Tensor::from_vec(values, (examples.len(), width), device)?]))
}

/// What a forward pass is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A step: batches are normalised by themselves, and running statistics follow them.
    Training,
    /// An answer: an input's logits depend on that input alone, and nothing changes.
    Inference,
}

/// What the loop asks of a student.
pub(crate) trait Student {
    /// Turns examples into tensors on its device.
    fn inputs(&self, examples: &[&Example]) -> Result<Inputs>;
    /// Inputs to logits `[n, C]`.
    fn forward(&self, inputs: &Inputs, mode: Mode) -> Result<Tensor> {
        self.output().forward(&self.features(inputs, mode)?)
    }
    /// Inputs to what its last linear layer sees: `[n, m]`.
    fn features(&self, inputs: &Inputs, mode: Mode) -> Result<Tensor>;
    /// How many hidden layers it has.
    fn depth(&self) -> usize;
    /// Inputs to hidden layer `layer` below [`Student::depth`]: `[n, m]`.
    fn hidden(&self, inputs: &Inputs, layer: usize, mode: Mode) -> Result<Tensor>;
    /// The variables and buffers.
    fn parameters(&self) -> &Parameters;
    /// The last linear layer; its bias is added to the logits, one value a class.
    fn output(&self) -> &Linear;
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
    /// A convolutional student of images.
    Cnn(ImageStudent<Cnn>),
    /// A residual student of images.
    Resnet(ImageStudent<Resnet>),
    /// A transformer.
    Transformer(Transformer),
}

impl Built {
    fn inner(&self) -> &dyn Student {
        match self {
            Self::Mlp(student) => student,
            Self::ByteConv(student) => student,
            Self::Cnn(student) => student,
            Self::Resnet(student) => student,
            Self::Transformer(student) => student,
        }
    }

    /// The logits of examples, in chunks, as plain numbers.
    pub(crate) fn logits(&self, examples: &[&Example]) -> Result<Vec<Vec<f32>>> {
        const CHUNK: usize = 256;
        let mut rows = Vec::with_capacity(examples.len());
        for chunk in examples.chunks(CHUNK) {
            let logits = self.forward(&self.inputs(chunk)?, Mode::Inference)?;
            rows.extend(logits.to_vec2::<f32>()?);
        }
        Ok(rows)
    }
}

impl Student for Built {
    fn inputs(&self, examples: &[&Example]) -> Result<Inputs> {
        self.inner().inputs(examples)
    }

    fn features(&self, inputs: &Inputs, mode: Mode) -> Result<Tensor> {
        self.inner().features(inputs, mode)
    }

    fn depth(&self) -> usize {
        self.inner().depth()
    }

    fn hidden(&self, inputs: &Inputs, layer: usize, mode: Mode) -> Result<Tensor> {
        self.inner().hidden(inputs, layer, mode)
    }

    fn parameters(&self) -> &Parameters {
        self.inner().parameters()
    }

    fn output(&self) -> &Linear {
        self.inner().output()
    }

    fn mixable(&self) -> bool {
        self.inner().mixable()
    }
}

#[cfg(test)]
mod tests;
