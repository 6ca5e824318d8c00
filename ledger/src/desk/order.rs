//! What a caller wants answered: items, their worst case, and what an HTTP teacher is to be sent.
//!
//! Must not know any dialect: a dialect makes these. Invariant: an order is never changed once it is made.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::budget::Who;
use crate::price::{Bound, InputBound, OutputBound};
use crate::query::{Query, QueryKey};

/// Whether recorded answers are used and whether new ones are bought. `Replay` and `Refresh` are both stricter than
/// `Record`: the one takes buying away, the other reuse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Serve what is known, buy the rest.
    #[default]
    Record,
    /// Serve what is known; a miss is an error, the teacher is never called.
    Replay,
    /// Buy again on purpose.
    Refresh,
}

/// One item of an order.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its key.
    pub key: QueryKey,
    /// Its canonical input, without presentation.
    pub input: String,
    /// Its sample index.
    pub sample: u32,
    /// Inferences that it takes.
    pub calls: u64,
    /// The most input tokens that it can be billed.
    pub bound: InputBound,
}

/// What an HTTP teacher forwards; empty for a local one.
#[derive(Clone, Debug, Default)]
pub struct Forward {
    /// Path below the teacher's URL, such as `/chat/completions`.
    pub path: String,
    /// Headers that go along.
    pub headers: Vec<(String, String)>,
    /// The client's body as it came; a teacher asked for some of the items only makes a smaller one.
    pub body: Bytes,
    /// Whether the answer is to be streamed.
    pub stream: bool,
}

/// A request, taken apart.
#[derive(Clone, Debug)]
pub struct Order {
    /// Who pays.
    pub who: Who,
    /// The API's name.
    pub dialect: String,
    /// The operation.
    pub operation: String,
    /// The teacher's revision.
    pub revision: String,
    /// The model asked.
    pub model: String,
    /// Headers that change answers, by name in lower case; part of every key.
    pub headers: BTreeMap<String, String>,
    /// The items, in the order of the request; a key may stand twice.
    pub items: Vec<Item>,
    /// Input tokens that an exchange may be billed beside its items.
    pub overhead_tokens: u64,
    /// The most output tokens of one choice.
    pub output: OutputBound,
    /// Choices, each of up to `output`.
    pub choices: u64,
    /// A part without a bound, by name.
    pub unbounded: Option<String>,
    /// Whether to reuse, to buy, or both.
    pub mode: Mode,
    /// What to send.
    pub forward: Forward,
}

impl Order {
    /// The query of item `index`.
    pub fn query(&self, index: usize) -> Query {
        let item = &self.items[index];
        Query {
            dialect: self.dialect.clone(),
            operation: self.operation.clone(),
            teacher: self.who.teacher.clone(),
            revision: self.revision.clone(),
            sample: item.sample,
            headers: self.headers.clone(),
            input: item.input.clone(),
        }
    }

    /// The worst case of an exchange for the items `led` only.
    pub fn bound(&self, led: &[usize]) -> Bound {
        let items = || led.iter().map(|index| &self.items[*index]);
        let mut tokens = self.overhead_tokens;
        let mut input = InputBound::Unmetered;
        for item in items() {
            match item.bound {
                InputBound::Unmetered => {}
                InputBound::Bytes(bytes) => {
                    tokens = tokens.saturating_add(bytes);
                    input = if input == InputBound::Opaque { input } else { InputBound::Bytes(tokens) };
                }
                InputBound::Opaque => input = InputBound::Opaque,
            }
        }
        Bound {
            calls: items().map(|item| item.calls).fold(0, u64::saturating_add),
            input,
            output: self.output,
            choices: self.choices,
            unbounded: self.unbounded.clone(),
        }
    }
}
