//! A small transformer encoder over the tokens of an input: runs of a vector's values, patches of an image, or bytes.
//!
//! Tokens are mapped to `width` and get a learnt position; each layer adds attention and then two linear layers with ReLU, both
//! behind a layer normalisation (pre-norm, arXiv 2002.04745); the mean over tokens, normalised, is what the last linear layer
//! sees. Sources: arXiv 1706.03762; patches of images, arXiv 2010.11929.
//!
//! It must not know how it is trained. Invariant: normalisation and softmax are the operators of `ops`, which have gradients
//! (candle's own have none).

use candle_core::{Result, Tensor, Var};
use serde::{Deserialize, Serialize};

use super::layers::EPSILON;
use super::parameters::{Linear, Parameters};
use super::{Inputs, Mode, Student, StudentError, WIDTH_LIMIT, size, vectors};
use crate::example::{Example, Input, PADDING};
use crate::machine::Machine;
use crate::ops;

/// The most layers.
const LAYERS_LIMIT: usize = 64;
/// The most tokens of an input; attention takes their square.
const TOKENS_LIMIT: usize = 4096;

/// The sizes of a transformer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransformerConfig {
    /// The width of a token.
    pub width: usize,
    /// The layers.
    pub layers: usize,
    /// The heads of attention; they divide the width.
    pub heads: usize,
    /// The width between the two linear layers of each layer.
    pub feed_forward: usize,
    /// Of a vector that is no image: how many values in a row are a token.
    pub token: usize,
    /// Channels, height and width, where vectors are images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<[usize; 3]>,
    /// Of an image: the height and width of the squares that are tokens.
    pub patch: usize,
}

impl Default for TransformerConfig {
    fn default() -> Self {
        Self { width: 64, layers: 2, heads: 4, feed_forward: 256, token: 1, image: None, patch: 4 }
    }
}

impl TransformerConfig {
    pub(super) fn check(&self, input: &Input) -> std::result::Result<(), StudentError> {
        size("width", self.width, 1, WIDTH_LIMIT)?;
        size("layers", self.layers, 1, LAYERS_LIMIT)?;
        size("feed_forward", self.feed_forward, 1, WIDTH_LIMIT)?;
        divides("heads", self.heads, self.width, "width")?;
        match (input, self.image) {
            (Input::Bytes(_), _) => {}
            (Input::Vector(_), Some([_, height, width])) => {
                divides("patch", self.patch, height, "height of an image")?;
                divides("patch", self.patch, width, "width of an image")?;
            }
            (Input::Vector(values), None) => {
                divides("token", self.token, values.len(), "width of the inputs")?;
            }
        }
        size("number of tokens", self.tokens(input), 1, TOKENS_LIMIT)
    }

    fn tokens(&self, input: &Input) -> usize {
        match (input, self.image) {
            (Input::Bytes(symbols), _) => symbols.len(),
            (Input::Vector(_), Some([_, height, width])) => (height / self.patch) * (width / self.patch),
            (Input::Vector(values), None) => values.len() / self.token,
        }
    }
}

/// Refuses a size that is no divisor of `whole`, which is the `what`.
fn divides(
    field: &'static str,
    value: usize,
    whole: usize,
    what: &str,
) -> std::result::Result<(), StudentError> {
    if value > 0 && whole.is_multiple_of(value) {
        return Ok(());
    }
    Err(StudentError::Size { field, value, range: format!("a divisor of {whole}, the {what}") })
}

/// How an input becomes tokens.
#[derive(Debug)]
pub(crate) enum Tokens {
    /// Symbols, by a table of their embeddings.
    Symbols(Var),
    /// Runs of values.
    Runs(Linear),
    /// Squares of an image of these channels, height and width.
    Patches([usize; 3], Linear),
}

/// Layer normalisation.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    pub(crate) gamma: Var,
    pub(crate) beta: Var,
}

impl LayerNorm {
    fn new(parameters: &mut Parameters, name: &str, width: usize) -> Result<Self> {
        Ok(Self {
            gamma: parameters.constant(&format!("{name}.weight"), width, 1.0)?,
            beta: parameters.constant(&format!("{name}.bias"), width, 0.0)?,
        })
    }

    fn forward(&self, values: &Tensor) -> Result<Tensor> {
        ops::layer_norm(values, self.gamma.as_tensor(), self.beta.as_tensor(), EPSILON)
    }
}

/// One layer.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) before_attention: LayerNorm,
    /// Queries, keys and values, `[3 width, width]`.
    pub(crate) mixed: Linear,
    pub(crate) joined: Linear,
    pub(crate) before_feed_forward: LayerNorm,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

/// The transformer.
#[derive(Debug)]
pub(crate) struct Transformer {
    config: TransformerConfig,
    parameters: Parameters,
    count: usize,
    tokens: Tokens,
    /// `[T, width]`.
    positions: Var,
    layers: Vec<Layer>,
    last: LayerNorm,
    output: Linear,
}

impl Transformer {
    /// Makes a transformer for inputs like `sample` from a seed.
    pub(crate) fn new(
        config: &TransformerConfig,
        sample: &Input,
        classes: usize,
        seed: u64,
        machine: &Machine,
    ) -> Result<Self> {
        let mut parameters = Parameters::new(seed, machine);
        let TransformerConfig { width, feed_forward, token, patch, .. } = *config;
        let tokens = match (sample, config.image) {
            (Input::Bytes(_), _) => Tokens::Symbols(parameters.uniform(
                "tokens.weight",
                &[usize::from(PADDING) + 1, width],
                1.0,
            )?),
            (Input::Vector(_), Some(image)) => {
                Tokens::Patches(image, parameters.linear("tokens", image[0] * patch * patch, width)?)
            }
            (Input::Vector(_), None) => Tokens::Runs(parameters.linear("tokens", token, width)?),
        };
        let count = config.tokens(sample);
        let positions = parameters.uniform("positions", &[count, width], 0.1)?;
        let layer = |at: usize, parameters: &mut Parameters| {
            let name = |part: &str| format!("layers.{at}.{part}");
            Ok(Layer {
                before_attention: LayerNorm::new(parameters, &name("before_attention"), width)?,
                mixed: parameters.linear(&name("mixed"), width, 3 * width)?,
                joined: parameters.linear(&name("joined"), width, width)?,
                before_feed_forward: LayerNorm::new(parameters, &name("before_feed_forward"), width)?,
                up: parameters.linear(&name("up"), width, feed_forward)?,
                down: parameters.linear(&name("down"), feed_forward, width)?,
            })
        };
        let layers = (0..config.layers).map(|at| layer(at, &mut parameters)).collect::<Result<_>>()?;
        let last = LayerNorm::new(&mut parameters, "last", width)?;
        let output = parameters.linear("output", width, classes)?;
        Ok(Self { config: config.clone(), parameters, count, tokens, positions, layers, last, output })
    }

    /// The sizes.
    pub(crate) fn config(&self) -> &TransformerConfig {
        &self.config
    }

    /// How many tokens an input has.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// How an input becomes tokens.
    pub(crate) fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// What is added to the tokens by their place.
    pub(crate) fn positions(&self) -> &Var {
        &self.positions
    }

    /// The layers.
    pub(crate) fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// The normalisation behind the last layer.
    pub(crate) fn last(&self) -> &LayerNorm {
        &self.last
    }

    /// The tokens of inputs, `[n, T, width]`.
    fn embed(&self, input: &Tensor) -> Result<Tensor> {
        let (n, shape) = (input.dim(0)?, (input.dim(0)?, self.count, self.config.width));
        let rows = match &self.tokens {
            Tokens::Symbols(table) => table.index_select(&input.flatten_all()?, 0)?,
            Tokens::Runs(linear) => linear.forward(&input.reshape((n * self.count, self.config.token))?)?,
            Tokens::Patches([channels, height, width], linear) => {
                let patch = self.config.patch;
                let (lines, columns) = (height / patch, width / patch);
                let squares = input.reshape(&[n, *channels, lines, patch, columns, patch][..])?;
                let squares = squares.permute([0, 2, 4, 1, 3, 5])?.contiguous()?;
                linear.forward(&squares.reshape((n * self.count, channels * patch * patch))?)?
            }
        };
        rows.reshape(shape)?.broadcast_add(&self.positions)
    }

    /// A linear layer over each token.
    fn each(&self, linear: &Linear, values: &Tensor) -> Result<Tensor> {
        let n = values.dim(0)?;
        linear.forward(&values.reshape((n * self.count, ()))?)?.reshape((n, self.count, ()))
    }

    /// softmax(Q K^T / sqrt(d)) V for each head, joined: `[n, T, width]`.
    fn attention(&self, layer: &Layer, values: &Tensor) -> Result<Tensor> {
        let (n, heads) = (values.dim(0)?, self.config.heads);
        let depth = self.config.width / heads;
        let mixed = self.each(&layer.mixed, values)?.reshape((n, self.count, 3, heads, depth))?;
        // [3, n, heads, T, depth]
        let mixed = mixed.permute([2, 0, 3, 1, 4])?.contiguous()?;
        let part = |at: usize| mixed.get(at)?.reshape((n * heads, self.count, depth));
        let (queries, keys, values) = (part(0)?, part(1)?, part(2)?);
        let precision = layer.mixed.precision;
        let scores = ops::product(&queries, &keys.transpose(1, 2)?.contiguous()?, precision)?;
        let seen = ops::softmax(&(scores / (depth as f64).sqrt())?)?;
        let seen = ops::product(&seen, &values, precision)?;
        let joined = seen.reshape((n, heads, self.count, depth))?.transpose(1, 2)?.contiguous()?;
        self.each(&layer.joined, &joined.reshape((n, self.count, self.config.width))?)
    }

    fn layer(&self, layer: &Layer, values: &Tensor) -> Result<Tensor> {
        let values = (values + self.attention(layer, &layer.before_attention.forward(values)?)?)?;
        let wide = self.each(&layer.up, &layer.before_feed_forward.forward(&values)?)?.relu()?;
        &values + self.each(&layer.down, &wide)?
    }
}

impl Student for Transformer {
    fn inputs(&self, examples: &[&Example]) -> Result<Inputs> {
        let device = self.parameters.device();
        match &self.tokens {
            Tokens::Symbols(_) => {
                let mut symbols: Vec<u32> = Vec::with_capacity(examples.len() * self.count);
                for example in examples {
                    let Input::Bytes(bytes) = &example.input else {
                        candle_core::bail!("`{}` is a {} and no bytes", example.key, example.input.kind());
                    };
                    symbols.extend(bytes.iter().map(|symbol| u32::from(*symbol)));
                }
                Ok(Inputs(vec![Tensor::from_vec(symbols, (examples.len(), self.count), device)?]))
            }
            Tokens::Runs(_) => vectors(examples, self.count * self.config.token, device),
            Tokens::Patches(image, _) => vectors(examples, image.iter().product(), device),
        }
    }

    fn features(&self, inputs: &Inputs, mode: Mode) -> Result<Tensor> {
        self.hidden(inputs, self.layers.len() - 1, mode)
    }

    fn depth(&self) -> usize {
        self.layers.len()
    }

    /// The mean over tokens behind a layer; behind the last one it is normalised.
    fn hidden(&self, inputs: &Inputs, layer: usize, _mode: Mode) -> Result<Tensor> {
        let mut values = self.embed(&inputs.0[0])?;
        for layer in &self.layers[..=layer] {
            values = self.layer(layer, &values)?;
        }
        let mean = values.mean(1)?;
        if layer + 1 == self.layers.len() { self.last.forward(&mean) } else { Ok(mean) }
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn output(&self) -> &Linear {
        &self.output
    }

    fn mixable(&self) -> bool {
        !matches!(self.tokens, Tokens::Symbols(_))
    }
}
