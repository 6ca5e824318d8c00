//! How a recorded row and its answer are read back: what a student sees of the one and learns from the other.
//!
//! It must not know who was asked or what it cost. Invariant: a row that a client sent and a row that a run made are read
//! the same way; what cannot be read is named by its key.

use std::fmt;
use std::str::FromStr;

use tuition_ledger::{Answer, Elements, Query, QueryKey, Row, Signal as Recorded, Tensor, TensorError};

use crate::example::{Input, PADDING, Target};
use crate::hidden::PREFIX;
use crate::nearest::nearest;

/// The least probability that an answer's logarithm is taken of, where a run does not say another.
pub const LEAST_PROBABILITY: f32 = 1e-6;
/// How far the probabilities of one answer may sum from one.
const SUM_TOLERANCE: f32 = 1e-2;
/// The most classes that labels may name.
pub const MAX_CLASSES: usize = 65_536;

/// Why a recorded question or answer cannot be learnt from.
#[derive(Debug, thiserror::Error)]
pub enum QuestionError {
    /// A recorded question that is no row.
    #[error("the question recorded under {key} is no row of tensors")]
    Row {
        /// Its key.
        key: QueryKey,
        /// Why.
        #[source]
        source: TensorError,
    },
    /// A recorded question without the input that is learnt from.
    #[error("the question recorded under {key} has no input that can be learnt from{hint}; it has {known}")]
    Input {
        /// Its key.
        key: QueryKey,
        /// What is wrong with the input asked for, as words.
        hint: String,
        /// Its inputs, as words.
        known: String,
    },
    /// A recorded answer without the output that is learnt from.
    #[error("the answer recorded under {key} has no output that can be learnt from{hint}; it has {known}")]
    Output {
        /// Its key.
        key: QueryKey,
        /// What is wrong with the output asked for, as words.
        hint: String,
        /// Its outputs, as words.
        known: String,
    },
    /// An output that is not what it was said to be.
    #[error("the output recorded under {key} does not give {gives}: {reason}")]
    Gives {
        /// Its key.
        key: QueryKey,
        /// What it was said to give.
        gives: Gives,
        /// Why it does not.
        reason: String,
    },
    /// A word that names no signal.
    #[error("`{0}` is none of `probabilities`, `log-probabilities`, `logits`, `label`")]
    UnknownGives(String),
}

/// What the values of a teacher's output are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gives {
    /// A probability for each class.
    Probabilities,
    /// The natural logarithm of a probability for each class.
    LogProbabilities,
    /// A score before the softmax for each class.
    Logits,
    /// The index of a class.
    Label,
}

impl Gives {
    /// The word for it in a run file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Probabilities => "probabilities",
            Self::LogProbabilities => "log-probabilities",
            Self::Logits => "logits",
            Self::Label => "label",
        }
    }

    /// What outputs that nobody described give: one whole number is a label, values that sum to one everywhere are
    /// probabilities, anything else is logits.
    #[must_use]
    pub fn guess<'a>(outputs: impl IntoIterator<Item = &'a Tensor>) -> Self {
        let mut guess = Self::Probabilities;
        for output in outputs {
            if output.elements.len() == 1 && matches!(output.elements, Elements::I32(_) | Elements::I64(_)) {
                return Self::Label;
            }
            let values = output.elements.to_f32().unwrap_or_default();
            if !are_probabilities(&values) {
                guess = Self::Logits;
            }
        }
        guess
    }
}

impl fmt::Display for Gives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Gives {
    type Err = QuestionError;

    fn from_str(word: &str) -> Result<Self, QuestionError> {
        [Self::Probabilities, Self::LogProbabilities, Self::Logits, Self::Label]
            .into_iter()
            .find(|gives| gives.name() == word)
            .ok_or_else(|| QuestionError::UnknownGives(word.to_owned()))
    }
}

fn are_probabilities(values: &[f32]) -> bool {
    let sum: f32 = values.iter().sum();
    values.iter().all(|value| (0.0..=1.0 + SUM_TOLERANCE).contains(value))
        && (sum - 1.0).abs() <= SUM_TOLERANCE
}

/// What a student is to see in a recorded row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Numbers.
    Vector,
    /// Byte symbols with padding.
    Bytes,
}

/// Reads the input that a recorded query asked about: the one named, else its only one.
///
/// # Errors
/// When the query is no row, or its input is none that a student can see.
pub fn recorded_input(
    key: QueryKey,
    query: &Query,
    name: Option<&str>,
    seen: Seen,
) -> Result<Input, QuestionError> {
    let row = Row::parse(&query.input).map_err(|source| QuestionError::Row { key, source })?;
    let tensor = chosen(&row.inputs, name).map_err(|hint| QuestionError::Input {
        key,
        hint,
        known: words(&row.inputs),
    })?;
    let unfit = |hint: &str| QuestionError::Input { key, hint: hint.to_owned(), known: words(&row.inputs) };
    let values = tensor.elements.to_f32().ok_or_else(|| unfit(", since text is no number"))?;
    match seen {
        Seen::Vector => Ok(Input::Vector(values)),
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be 0 to 256")]
        Seen::Bytes => {
            let is_symbol = |value: &f32| value.fract() == 0.0 && (0.0..=f32::from(PADDING)).contains(value);
            if !values.iter().all(is_symbol) {
                return Err(unfit(", since bytes and padding are whole numbers from 0 to 256"));
            }
            Ok(Input::Bytes(values.into_iter().map(|value| value as u16).collect()))
        }
    }
}

/// The output tensor that a recorded answer is learnt from: the one named, else its only one.
///
/// # Errors
/// When there is none, or several and no name.
pub fn recorded_output<'a>(
    key: QueryKey,
    answer: &'a Answer,
    name: Option<&str>,
) -> Result<&'a Tensor, QuestionError> {
    let outputs: Vec<&Tensor> = answer
        .signals
        .iter()
        .filter_map(|signal| match signal {
            Recorded::Tensor(tensor) => Some(tensor),
            _ => None,
        })
        .collect();
    let shown: Vec<&Tensor> =
        outputs.iter().copied().filter(|tensor| !tensor.name.starts_with(PREFIX)).collect();
    let found = match name {
        Some(name) => outputs.iter().find(|tensor| tensor.name == name).copied(),
        None if shown.len() == 1 => shown.first().copied(),
        None => None,
    };
    found.ok_or_else(|| {
        let names: Vec<String> = outputs.iter().map(|tensor| tensor.name.clone()).collect();
        QuestionError::Output { key, hint: why_none(&names, name), known: listed(&names) }
    })
}

/// The projected hidden tensors of a recorded answer, by seed and name (what stands behind [`PREFIX`]), in the graph's order.
#[must_use]
pub fn recorded_hidden(answer: &Answer) -> Vec<(&str, Vec<f32>)> {
    let tensors = answer.signals.iter().filter_map(|signal| match signal {
        Recorded::Tensor(tensor) => Some(tensor),
        _ => None,
    });
    tensors
        .filter_map(|tensor| Some((tensor.name.strip_prefix(PREFIX)?, tensor.elements.to_f32()?)))
        .collect()
}

/// Reads what an output gives. Probabilities below `least` are raised to it before their logarithm is taken, and all are scaled to
/// sum to one.
///
/// # Errors
/// When its values are not what they are said to be.
pub fn target(key: QueryKey, output: &Tensor, gives: Gives, least: f32) -> Result<Target, QuestionError> {
    let wrong = |reason: String| QuestionError::Gives { key, gives, reason };
    let values = output.elements.to_f32().ok_or_else(|| wrong("it is text".to_owned()))?;
    if let Some(value) = values.iter().find(|value| !value.is_finite()) {
        return Err(wrong(format!("it holds {value}")));
    }
    match gives {
        Gives::Logits => Ok(Target::Logits(values)),
        Gives::LogProbabilities => Ok(Target::LogProbabilities(values)),
        Gives::Probabilities => {
            if !are_probabilities(&values) {
                let sum: f32 = values.iter().sum();
                return Err(wrong(format!("its {} values sum to {sum}", values.len())));
            }
            let raised: Vec<f32> = values.iter().map(|value| value.max(least)).collect();
            let sum: f32 = raised.iter().sum();
            Ok(Target::LogProbabilities(raised.iter().map(|value| (value / sum).ln()).collect()))
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be a class")]
        Gives::Label => match values[..] {
            [label] if label.fract() == 0.0 && (0.0..MAX_CLASSES as f32).contains(&label) => {
                Ok(Target::Label(label as u32))
            }
            [label] => Err(wrong(format!("{label} is no class"))),
            _ => Err(wrong(format!("it has {} values", values.len()))),
        },
    }
}

fn chosen<'a>(tensors: &'a [Tensor], name: Option<&str>) -> Result<&'a Tensor, String> {
    let found = match (name, tensors) {
        (Some(name), _) => tensors.iter().find(|tensor| tensor.name == name),
        (None, [only]) => Some(only),
        (None, _) => None,
    };
    let names: Vec<String> = tensors.iter().map(|tensor| tensor.name.clone()).collect();
    found.ok_or_else(|| why_none(&names, name))
}

fn why_none(names: &[String], name: Option<&str>) -> String {
    let Some(name) = name else {
        return if names.is_empty() { "" } else { " unless one is named" }.to_owned();
    };
    let near =
        nearest(name, names.iter().map(String::as_str)).map(|near| format!(" (did you mean `{near}`?)"));
    format!(": there is no `{name}`{}", near.unwrap_or_default())
}

fn words(tensors: &[Tensor]) -> String {
    listed(&tensors.iter().map(|tensor| tensor.name.clone()).collect::<Vec<_>>())
}

fn listed(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    if quoted.is_empty() { "none".to_owned() } else { quoted.join(", ") }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::form::Form;
    use crate::port::ElementType;

    fn form(element_type: ElementType) -> Form {
        Form {
            teacher: "t".into(),
            revision: "1".into(),
            model: "m".into(),
            input: "x".into(),
            element_type,
            shape: None,
            outputs: vec![],
        }
    }

    fn key() -> QueryKey {
        QueryKey::from_bytes([0; 32])
    }

    #[test]
    fn an_input_has_the_row_that_a_client_would_send() {
        for (element_type, outputs, input, expected) in [
            (
                ElementType::F32,
                vec![],
                Input::Vector(vec![0.1, 2.0]),
                r#"{"inputs":[{"data":[0.10000000149011612,2],"datatype":"FP32","name":"x","shape":[1,2]}],"model":"m"}"#,
            ),
            (
                ElementType::I64,
                vec!["y".to_owned()],
                Input::Vector(vec![3.0]),
                r#"{"inputs":[{"data":[3],"datatype":"INT64","name":"x","shape":[1,1]}],"model":"m","outputs":[{"name":"y"}]}"#,
            ),
            (
                ElementType::I32,
                vec![],
                Input::Bytes(vec![65, 256]),
                r#"{"inputs":[{"data":[65,256],"datatype":"INT32","name":"x","shape":[1,2]}],"model":"m"}"#,
            ),
        ] {
            let form = Form { outputs, ..form(element_type) };
            let canonical = form.row(&input).unwrap().canonical();
            assert_eq!(canonical, expected);
            let seen = if matches!(input, Input::Bytes(_)) { Seen::Bytes } else { Seen::Vector };
            let query = form.query(canonical);
            assert_eq!(recorded_input(query.key(), &query, None, seen).unwrap(), input);
        }
    }

    #[test]
    fn an_output_is_read_as_what_it_gives() {
        let tensor =
            |elements: Elements| Tensor { name: "y".into(), shape: vec![1, elements.len()], elements };
        let probabilities = tensor(Elements::F32(vec![0.75, 0.25, 0.0]));
        let logits = tensor(Elements::F64(vec![3.0, -1.0]));
        let label = tensor(Elements::I64(vec![7]));
        assert_eq!(Gives::guess([&probabilities]), Gives::Probabilities);
        assert_eq!(Gives::guess([&probabilities, &logits]), Gives::Logits);
        assert_eq!(Gives::guess([&label]), Gives::Label);
        let Target::LogProbabilities(logs) =
            target(key(), &probabilities, Gives::Probabilities, LEAST_PROBABILITY).unwrap()
        else {
            panic!("probabilities give log-probabilities");
        };
        let sum: f32 = logs.iter().map(|log| log.exp()).sum();
        assert!(
            (sum - 1.0).abs() < 1e-6 && (logs[0] - 0.75_f32.ln()).abs() < 1e-5 && logs[2] < -13.0,
            "{logs:?}"
        );
        assert_eq!(
            target(key(), &logits, Gives::Logits, LEAST_PROBABILITY).unwrap(),
            Target::Logits(vec![3.0, -1.0])
        );
        assert_eq!(target(key(), &label, Gives::Label, LEAST_PROBABILITY).unwrap(), Target::Label(7));
        let error = target(key(), &logits, Gives::Probabilities, LEAST_PROBABILITY)
            .expect_err("3 is no probability")
            .to_string();
        assert!(error.ends_with("does not give probabilities: its 2 values sum to 2"), "{error}");
        let error = target(key(), &logits, Gives::Label, LEAST_PROBABILITY)
            .expect_err("two values are no label")
            .to_string();
        assert!(error.ends_with("does not give label: it has 2 values"), "{error}");
    }

    #[test]
    fn the_output_is_the_only_one_or_the_named_one() {
        let output = |name: &str| {
            Recorded::Tensor(Tensor {
                name: name.into(),
                shape: vec![1, 1],
                elements: Elements::F32(vec![0.0]),
            })
        };
        let answer = |names: &[&str]| Answer {
            body: Bytes::new(),
            signals: names.iter().map(|name| output(name)).collect(),
        };
        let name = |answer: &Answer, wanted: Option<&str>| {
            recorded_output(key(), answer, wanted)
                .map(|tensor| tensor.name.clone())
                .map_err(|error| error.to_string())
        };
        assert_eq!(name(&answer(&["a"]), None).unwrap(), "a");
        assert_eq!(name(&answer(&["a", "b"]), Some("b")).unwrap(), "b");
        let error = name(&answer(&["a", "b"]), None).unwrap_err();
        assert!(error.ends_with("learnt from unless one is named; it has `a`, `b`"), "{error}");
        let error = name(&answer(&["logits"]), Some("logit")).unwrap_err();
        assert!(
            error.ends_with(": there is no `logit` (did you mean `logits`?); it has `logits`"),
            "{error}"
        );
    }
}
