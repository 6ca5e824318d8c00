//! What the proxy knows of each API: the items that a request holds, their worst case, what an answer used, and how
//! answers are put together again.
//!
//! Pure functions on bytes: no socket, clock or store. Invariants: whatever may change an answer stays in an item's
//! canonical input; a bound is never below what the API can bill; nothing is added to what a client sent.

pub(crate) mod sse;
pub(crate) mod openai;
pub(crate) mod open_inference;

use std::borrow::Cow;

use bytes::Bytes;
use tuition_ledger::{
    InputBound, Json, JsonError, Order, OutputBound, Record, Reply, ServedItem, TensorError,
};

/// An API that clients and teachers speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Api {
    /// OpenAI: `/v1/chat/completions`, `/v1/embeddings`, `/v1/models`.
    OpenAi,
    /// Open Inference Protocol v2: `/v2/models/M/infer`.
    OpenInference,
}

/// Something that an API can be asked, and that costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    /// OpenAI chat completions: the whole request is one item, its choices are the calls.
    Chat,
    /// OpenAI embeddings: each text is an item.
    Embeddings,
    /// Open Inference v2 `infer`: each row is an item where the teacher takes batches, else the whole request.
    Infer,
}

/// What a request's address says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Target {
    /// Path below the teacher's URL.
    pub(crate) path: String,
    /// The model, where the path names it.
    pub(crate) model: Option<String>,
    /// The model's version, where the path names it.
    pub(crate) version: Option<String>,
    /// Whether the teacher takes batches along the first axis.
    pub(crate) rows: bool,
}

/// A request, taken apart.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    /// The model.
    pub(crate) model: String,
    /// The items in the order of the request.
    pub(crate) parts: Vec<Part>,
    /// Input tokens that may be billed beside the items.
    pub(crate) overhead_tokens: u64,
    /// The most output of one choice.
    pub(crate) output: OutputBound,
    /// Choices.
    pub(crate) choices: u64,
    /// A part without a bound, by name.
    pub(crate) unbounded: Option<String>,
    /// How the client wants its answer.
    pub(crate) wanted: Presentation,
}

/// One item of a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    /// Canonical JSON without presentation.
    pub(crate) input: String,
    /// Inferences.
    pub(crate) calls: u64,
    /// The most input tokens.
    pub(crate) bound: InputBound,
}

/// What a client wants to see and what does not change an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Presentation {
    /// A chat.
    Chat {
        /// As a stream.
        stream: bool,
        /// With a usage chunk at the end of the stream.
        include_usage: bool,
    },
    /// Embeddings.
    Embeddings {
        /// As base64, not as lists of numbers.
        base64: bool,
    },
    /// Tensors.
    Infer {
        /// The request's own id, echoed.
        id: Option<String>,
        /// The model, for a teacher whose replies do not name it.
        model: String,
        /// Its version.
        version: Option<String>,
        /// Whether the items are rows.
        rows: bool,
    },
}

/// An answer as it goes to a client.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rendered {
    /// Its media type.
    pub(crate) media: String,
    /// Its bytes.
    pub(crate) body: Bytes,
}

/// Why a request is not one that the API takes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadRequest {
    /// Not the JSON that is taken.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A member is missing or of the wrong type.
    #[error("`{name}` {problem}")]
    Field {
        /// The member.
        name: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Something that is no tensor.
    #[error("`inputs`: {0}")]
    Tensor(#[from] TensorError),
    /// Tensors outside the JSON.
    #[error("binary tensors are not taken: send `data` in JSON ({0})")]
    Binary(&'static str),
}

/// Why a complete body is not what the API promises.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unreadable(pub(crate) String);

impl BadRequest {
    /// The member at fault.
    pub(crate) fn field(&self) -> Option<&str> {
        match self {
            Self::Field { name, .. } => Some(name),
            Self::Json(JsonError::Duplicate(name)) => Some(name),
            Self::Tensor(_) => Some("inputs"),
            Self::Json(_) | Self::Binary(_) => None,
        }
    }

    pub(crate) fn missing(name: &'static str, expected: &str) -> Self {
        Self::Field { name, problem: format!("is missing or is not {expected}") }
    }

    pub(crate) fn wrong(name: &'static str, expected: &str) -> Self {
        Self::Field { name, problem: format!("is not {expected}") }
    }
}

impl From<String> for Unreadable {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl Api {
    /// The name that keys and records carry.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::OpenInference => "open-inference",
        }
    }

    /// The API that a path belongs to, for the shape of errors.
    pub(crate) fn of_path(path: &str) -> Self {
        if path.starts_with("/v2") { Self::OpenInference } else { Self::OpenAi }
    }

    /// Request headers that may change an answer: forwarded, and part of every key.
    pub(crate) fn keyed_headers(self) -> &'static [&'static str] {
        match self {
            Self::OpenAi => &["openai-beta"],
            Self::OpenInference => &[],
        }
    }

    /// Whether `body` is an error in the API's own shape.
    pub(crate) fn is_error(self, body: &[u8]) -> bool {
        let Ok(json) = Json::parse(body) else { return false };
        match (self, json.member("error")) {
            (Self::OpenAi, Some(error)) => error.members().is_some() || error.as_str().is_some(),
            (Self::OpenInference, Some(error)) => error.as_str().is_some(),
            (_, None) => false,
        }
    }
}

impl Operation {
    const ALL: [Self; 3] = [Self::Chat, Self::Embeddings, Self::Infer];

    /// Its API.
    pub(crate) fn api(self) -> Api {
        match self {
            Self::Chat | Self::Embeddings => Api::OpenAi,
            Self::Infer => Api::OpenInference,
        }
    }

    /// The name that keys and records carry.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat.completions",
            Self::Embeddings => "embeddings",
            Self::Infer => "infer",
        }
    }

    /// The operation of an order.
    pub(crate) fn of(order: &Order) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|operation| operation.api().name() == order.dialect && operation.name() == order.operation)
    }

    /// The model that a request names.
    pub(crate) fn model<'r>(self, target: &'r Target, json: &'r Json<'_>) -> Result<&'r str, BadRequest> {
        if json.members().is_none() {
            return Err(BadRequest::Field { name: "body", problem: "is not a JSON object".into() });
        }
        match &target.model {
            Some(model) => Ok(model),
            None => json
                .member("model")
                .and_then(Json::as_str)
                .filter(|model| !model.is_empty())
                .ok_or_else(|| BadRequest::missing("model", "a string")),
        }
    }

    /// Takes a request of `length` bytes apart.
    pub(crate) fn read(self, target: &Target, json: Json<'_>, length: usize) -> Result<Asked, BadRequest> {
        let model = self.model(target, &json)?.to_owned();
        match self {
            Self::Chat => openai::chat::read(model, json, length),
            Self::Embeddings => openai::embeddings::read(model, json),
            Self::Infer => open_inference::read(model, target, json),
        }
    }

    /// A body that asks for the items `led` only; everything else is as the client sent it.
    pub(crate) fn narrow(self, order: &Order, led: &[usize]) -> Result<Bytes, BadRequest> {
        match self {
            Self::Chat => Ok(order.forward.body.clone()),
            Self::Embeddings => openai::embeddings::narrow(&order.forward.body, led),
            Self::Infer => open_inference::narrow(&order.forward.body, led),
        }
    }

    /// Takes a teacher's complete reply to `asked` items apart; `rows` as in [`Target::rows`].
    pub(crate) fn reply(
        self,
        asked: usize,
        rows: bool,
        media: &str,
        body: Bytes,
    ) -> Result<Reply, Unreadable> {
        match self {
            Self::Chat => openai::chat::reply(media, body),
            Self::Embeddings => openai::embeddings::reply(asked, media, &body),
            Self::Infer => open_inference::reply(rows.then_some(asked), media, body),
        }
    }

    /// Puts answers together as the client wants them.
    pub(crate) fn render(self, wanted: &Presentation, items: &[ServedItem]) -> Result<Rendered, Unreadable> {
        let records: Vec<&Record> = items.iter().map(|item| item.record.as_ref()).collect();
        match wanted {
            Presentation::Chat { stream, include_usage } => {
                let record = records.first().ok_or_else(|| Unreadable("no answer".into()))?;
                openai::chat::render(*stream, *include_usage, record)
            }
            Presentation::Embeddings { base64 } => openai::embeddings::render(*base64, &records),
            Presentation::Infer { id, model, version, rows } => {
                open_inference::render(id.as_deref(), model, version.as_deref(), *rows, &records)
            }
        }
    }
}

impl Presentation {
    /// Whether the client wants a stream.
    pub(crate) fn is_stream(&self) -> bool {
        matches!(self, Self::Chat { stream: true, .. })
    }
}

/// The media type without its parameters, in lower case.
pub(crate) fn essence(media: &str) -> String {
    media.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// A JSON string.
pub(crate) fn string(text: &str) -> Json<'_> {
    Json::String(Cow::Borrowed(text))
}

/// A JSON number.
pub(crate) fn number(value: u64) -> Json<'static> {
    Json::Number(Cow::Owned(value.to_string()))
}

/// A member that is present and not null.
pub(crate) fn given<'j, 'a>(json: &'j Json<'a>, name: &str) -> Option<&'j Json<'a>> {
    json.member(name).filter(|value| !value.is_null())
}

/// An optional truth value; `null` counts as absent.
pub(crate) fn flag(json: &Json<'_>, name: &'static str) -> Result<bool, BadRequest> {
    match given(json, name) {
        None => Ok(false),
        Some(value) => value.as_bool().ok_or_else(|| BadRequest::wrong(name, "true or false")),
    }
}
