//! What a teacher answered: its raw bytes, the typed signals that a student learns from, and what it says it used.
//!
//! Must not know any dialect: a dialect fills these in. Invariant: numbers are kept as bits.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::money::{Amount, Usd};
use crate::query::{Query, QueryKey};
use crate::tensor::Tensor;
use crate::time::Timestamp;

/// Single-precision numbers, kept bit by bit (base64 of little-endian bytes where a text is written).
#[derive(Clone, Debug, PartialEq)]
pub struct Floats(pub Vec<f32>);

impl Serialize for Floats {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            let bytes: Vec<u8> = self.0.iter().flat_map(|value| value.to_le_bytes()).collect();
            serializer.serialize_str(&STANDARD.encode(bytes))
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Floats {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return Vec::deserialize(deserializer).map(Self);
        }
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(serde::de::Error::custom)?;
        let (values, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(serde::de::Error::custom("a list of f32 whose length is no multiple of four bytes"));
        }
        Ok(Self(values.iter().map(|value| f32::from_le_bytes(*value)).collect()))
    }
}

/// One token that a teacher gave a log-probability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogProbability {
    /// The token's text.
    pub token: String,
    /// Natural logarithm of its probability.
    pub log_probability: f64,
}

/// The log-probabilities at one position: the token that was taken, and the teacher's likeliest ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// The token that was taken.
    pub taken: TokenLogProbability,
    /// The top k, likeliest first.
    pub top: Vec<TokenLogProbability>,
}

/// Something a student can learn from in an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Signal {
    /// The text of choice `choice` and why it ended.
    Text {
        /// Which choice, from 0.
        choice: u32,
        /// The text.
        text: String,
        /// The teacher's finish reason, such as `stop` or `length`.
        finish: Option<String>,
    },
    /// Top-k log-probabilities of choice `choice`, position by position.
    LogProbabilities {
        /// Which choice, from 0.
        choice: u32,
        /// Position by position.
        positions: Vec<Position>,
    },
    /// An embedding vector.
    Embedding(Floats),
    /// A named output tensor of one row (logits, probabilities, a label, a hidden layer: the run file says which).
    Tensor(Tensor),
}

/// Tokens by kind, disjoint: no token is counted in two of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Fresh input tokens.
    pub input: u64,
    /// Input tokens read from the provider's prompt cache.
    pub cached_input: u64,
    /// Input tokens written to the provider's prompt cache.
    pub cache_write: u64,
    /// Output tokens that are not reasoning.
    pub output: u64,
    /// Reasoning tokens.
    pub reasoning: u64,
}

impl Usage {
    /// All tokens of all kinds.
    pub fn total(&self) -> u64 {
        [self.input, self.cached_input, self.cache_write, self.output, self.reasoning]
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}

/// The answer to one item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The teacher's own bytes for this item (of a whole reply where the reply is one item).
    pub body: Bytes,
    /// What a student can learn from it.
    pub signals: Vec<Signal>,
}

/// An answer as the record keeps it, with the question and what it cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The key of the question.
    pub key: QueryKey,
    /// The question.
    pub query: Query,
    /// The model that was asked.
    pub model: String,
    /// The answer.
    pub answer: Answer,
    /// The teacher's reply around the items (model, usage), empty where the reply is the one item's body.
    pub envelope: Bytes,
    /// The reply's media type, such as `application/json` or `text/event-stream`.
    pub media: String,
    /// This item's exact share of the exchange's fee.
    pub share: Amount,
    /// Whether the fee was priced in dollars.
    pub priced: bool,
    /// When it was settled.
    pub at: Timestamp,
}

impl Record {
    /// The share of the fee in dollars, where the model has a price.
    pub fn cost(&self) -> Option<Usd> {
        self.priced.then_some(self.share.usd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_survive_text_bit_by_bit() {
        let floats = Floats(vec![0.1, -0.0, f32::MIN_POSITIVE / 2.0, f32::NAN, f32::INFINITY]);
        let text = serde_json::to_string(&floats).unwrap();
        let back: Floats = serde_json::from_str(&text).unwrap();
        let bits = |floats: &Floats| floats.0.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&back), bits(&floats));
        assert!(serde_json::from_str::<Floats>("\"AAA=\"").is_err());
    }
}
