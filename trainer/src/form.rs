//! The form of the rows that a teacher is asked: how an input of a data set becomes a question.
//!
//! It must not know who is asked or what it costs. Invariant: the row of an input is the same whoever makes it, so an
//! answer that a client bought under a row is known to a run that asks the same, and the other way round.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;
use tuition_ledger::{Elements, Forward, Json, Query, QueryKey, Row, Tensor};

use crate::example::Input;
use crate::port::{ElementType, Port};

/// The dialect of every row, local or over HTTP.
pub const DIALECT: &str = "open-inference";
/// The operation of every row.
pub const OPERATION: &str = "infer";

/// Why an input cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// A kind of input that the teacher's input cannot hold.
    #[error("the teacher's input `{name}` takes {expected}, but the data are {found}")]
    Kind {
        /// The teacher's input.
        name: String,
        /// Its element type.
        expected: ElementType,
        /// The kind of the data.
        found: &'static str,
    },
    /// A value that the element type cannot hold.
    #[error("the teacher's input `{name}` takes {expected}, but {value} is none")]
    Value {
        /// The teacher's input.
        name: String,
        /// Its element type.
        expected: ElementType,
        /// The value.
        value: f32,
    },
    /// A shape that the input does not fill.
    #[error("the teacher's input `{name}` has shape {shape:?}, but an input has {width} values")]
    Width {
        /// The teacher's input.
        name: String,
        /// The shape of one row, without its first extent.
        shape: Vec<usize>,
        /// The values of the input.
        width: usize,
    },
}

/// Why no form follows from what a model states.
#[derive(Debug, thiserror::Error)]
pub enum FormError {
    /// The model states no input, or several.
    #[error("the model `{model}` states {count} inputs{names}, but a data set fills one")]
    Inputs {
        /// The model's name or file.
        model: String,
        /// How many inputs it states.
        count: usize,
        /// Their names, as words.
        names: String,
    },
    /// The input is of a type that no data set has.
    #[error("the model's input `{name}` is {found}, which no data set fills")]
    Type {
        /// The input.
        name: String,
        /// Its type, in the words of whoever states it.
        found: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedOutput {
    name: String,
}

/// The form of the rows that one teacher is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    /// The teacher's name in the configuration.
    pub teacher: String,
    /// Its revision in the configuration.
    pub revision: String,
    /// The model asked.
    pub model: String,
    /// The model's input.
    pub input: String,
    /// The element type of that input.
    pub element_type: ElementType,
    /// The shape of one row without its first extent; none for a plain vector of whatever width.
    pub shape: Option<Vec<usize>>,
    /// The outputs that are asked for by name; none where the model gives what it has.
    pub outputs: Vec<String>,
}

impl Form {
    /// The form that follows from what a model states about its inputs: one input, and every output that it gives.
    ///
    /// # Errors
    /// When it does not state exactly one input, or one of an unfit type.
    pub fn of_ports(teacher: &str, revision: &str, model: &str, inputs: &[Port]) -> Result<Self, FormError> {
        let [port] = inputs else {
            let names: Vec<String> = inputs.iter().map(|port| format!("`{}`", port.name)).collect();
            let names = if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
            return Err(FormError::Inputs { model: model.to_owned(), count: inputs.len(), names });
        };
        let unfit = |found: String| FormError::Type { name: port.name.clone(), found };
        let element_type = match &port.element_type {
            Ok(kind @ (ElementType::F32 | ElementType::F64 | ElementType::I32 | ElementType::I64)) => *kind,
            Ok(other) => return Err(unfit(other.to_string())),
            Err(other) => return Err(unfit(other.clone())),
        };
        // The extents of one row where the model states them all and they are not plainly a vector's.
        let rest: Option<Vec<usize>> = port.shape.iter().skip(1).copied().collect();
        Ok(Self {
            teacher: teacher.to_owned(),
            revision: revision.to_owned(),
            model: model.to_owned(),
            input: port.name.clone(),
            element_type,
            shape: rest.filter(|rest| rest.len() != 1),
            outputs: vec![],
        })
    }

    /// The form of the rows of a data set that nobody is asked about: of the kind of its inputs, and under no name, so that
    /// their keys are nobody's.
    #[must_use]
    pub fn of_labelled(first: Option<&Input>) -> Self {
        let bytes = matches!(first, Some(Input::Bytes(_)));
        Self {
            teacher: String::new(),
            revision: String::new(),
            model: String::new(),
            input: "input".to_owned(),
            element_type: if bytes { ElementType::I32 } else { ElementType::F32 },
            shape: None,
            outputs: vec![],
        }
    }

    /// The form of a recorded row of one input, as far as it is one that this program makes.
    #[must_use]
    pub fn of_recorded(query: &Query) -> Option<Self> {
        let row = Row::parse(&query.input).ok().filter(|_| query.dialect == DIALECT)?;
        let ([tensor], None) = (&row.inputs[..], &row.version) else { return None };
        let port = Port {
            name: tensor.name.clone(),
            element_type: ElementType::of(&tensor.elements),
            shape: tensor.shape.iter().copied().map(Some).collect(),
        };
        let form = Self::of_ports(&query.teacher, &query.revision, &row.model, &[port]).ok()?;
        let outputs = match &row.others[..] {
            [] => vec![],
            [(name, text)] if name == "outputs" => {
                let outputs: Vec<NamedOutput> = serde_json::from_str(text).ok()?;
                outputs.into_iter().map(|output| output.name).collect()
            }
            _ => return None,
        };
        Some(Self { outputs, ..form })
    }

    /// The row of an input.
    ///
    /// # Errors
    /// When the teacher's input cannot hold it.
    pub fn row(&self, input: &Input) -> Result<Row, RowError> {
        let elements = match input {
            Input::Vector(values) => self.vector(values)?,
            Input::Bytes(symbols) => self.symbols(symbols)?,
        };
        let shape = self.shape.clone().unwrap_or_else(|| vec![elements.len()]);
        if shape.iter().product::<usize>() != elements.len() {
            let (name, width) = (self.input.clone(), elements.len());
            return Err(RowError::Width { name, shape, width });
        }
        let shape = std::iter::once(1).chain(shape).collect();
        let outputs: Vec<String> = self
            .outputs
            .iter()
            .map(|name| format!("{{\"name\":{}}}", serde_json::Value::from(name.as_str())))
            .collect();
        let others = if outputs.is_empty() {
            vec![]
        } else {
            vec![("outputs".to_owned(), format!("[{}]", outputs.join(",")))]
        };
        let inputs = vec![Tensor { name: self.input.clone(), shape, elements }];
        Ok(Row { model: self.model.clone(), version: None, inputs, others })
    }

    /// The query of a row's canonical text.
    #[must_use]
    pub fn query(&self, canonical: String) -> Query {
        Query {
            dialect: DIALECT.to_owned(),
            operation: OPERATION.to_owned(),
            teacher: self.teacher.clone(),
            revision: self.revision.clone(),
            sample: 0,
            headers: BTreeMap::new(),
            input: canonical,
        }
    }

    /// What a teacher over HTTP is sent for some questions: one request with all their rows.
    #[must_use]
    pub fn forward(&self, questions: &[Question]) -> Forward {
        let rows: Vec<Row> = questions.iter().filter_map(|question| Row::parse(&question.row).ok()).collect();
        let tensors: Vec<&Tensor> = rows.iter().flat_map(|row| &row.inputs).collect();
        let Some(whole) = Tensor::stack(&tensors) else { return Forward::default() };
        let mut members = vec![("inputs".into(), Json::Array(vec![whole.to_json()]))];
        let outputs = self
            .outputs
            .iter()
            .map(|name| Json::Object(vec![("name".into(), Json::String(name.as_str().into()))]));
        if !self.outputs.is_empty() {
            members.push(("outputs".into(), Json::Array(outputs.collect())));
        }
        Forward {
            path: format!("/v2/models/{}/infer", self.model),
            headers: vec![("content-type".to_owned(), "application/json".to_owned())],
            body: Bytes::from(Json::Object(members).to_string()),
            stream: false,
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "whole numbers below 2^24 are exact in every type")]
    fn vector(&self, values: &[f32]) -> Result<Elements, RowError> {
        /// Above it, single precision does not hold every whole number.
        const EXACT: f32 = 16_777_216.0;
        let whole = || {
            let fits = |value: &&f32| value.fract() != 0.0 || value.abs() > EXACT;
            values.iter().find(fits).map_or(Ok(()), |value| {
                let (name, expected) = (self.input.clone(), self.element_type);
                Err(RowError::Value { name, expected, value: *value })
            })
        };
        Ok(match self.element_type {
            ElementType::F32 => Elements::F32(values.to_vec()),
            ElementType::F64 => Elements::F64(values.iter().copied().map(f64::from).collect()),
            ElementType::I32 => {
                whole().map(|()| Elements::I32(values.iter().map(|value| *value as i32).collect()))?
            }
            ElementType::I64 => {
                whole().map(|()| Elements::I64(values.iter().map(|value| *value as i64).collect()))?
            }
            expected => return Err(self.kind(expected, "vectors of numbers")),
        })
    }

    fn symbols(&self, symbols: &[u16]) -> Result<Elements, RowError> {
        Ok(match self.element_type {
            ElementType::I32 => Elements::I32(symbols.iter().copied().map(i32::from).collect()),
            ElementType::I64 => Elements::I64(symbols.iter().copied().map(i64::from).collect()),
            ElementType::F32 => Elements::F32(symbols.iter().copied().map(f32::from).collect()),
            expected => return Err(self.kind(expected, "bytes with padding")),
        })
    }

    fn kind(&self, expected: ElementType, found: &'static str) -> RowError {
        RowError::Kind { name: self.input.clone(), expected, found }
    }
}

/// An input with its question.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The key of its query.
    pub key: QueryKey,
    /// Its row in canonical JSON.
    pub row: String,
    /// What the student sees.
    pub input: Input,
    /// The true class, where the source knows it.
    pub truth: Option<u32>,
    /// Where it came from, for people.
    pub place: String,
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn port(element_type: ElementType, shape: &[Option<usize>]) -> Port {
        Port { name: "x".into(), element_type: Ok(element_type), shape: shape.to_vec() }
    }

    #[test]
    fn a_form_follows_from_one_input_that_a_data_set_can_fill() {
        let of = |ports: &[Port]| {
            Form::of_ports("t", "1", "m", ports).map(|form| form.shape).map_err(|error| error.to_string())
        };
        let f32 = |shape: &[Option<usize>]| port(ElementType::F32, shape);
        assert_eq!(of(&[f32(&[None, Some(64)])]), Ok(None));
        assert_eq!(of(&[f32(&[None, None])]), Ok(None));
        assert_eq!(of(&[f32(&[None, Some(8), Some(8)])]), Ok(Some(vec![8, 8])));
        assert_eq!(of(&[f32(&[None, None, Some(8)])]), Ok(None));
        assert_eq!(of(&[]), Err("the model `m` states 0 inputs, but a data set fills one".into()));
        let two = [f32(&[None]), f32(&[None])];
        assert_eq!(
            of(&two),
            Err("the model `m` states 2 inputs (`x`, `x`), but a data set fills one".into())
        );
        let unfit = port(ElementType::Bool, &[None, None]);
        assert_eq!(of(&[unfit]), Err("the model's input `x` is bool, which no data set fills".into()));
    }

    #[test]
    fn a_recorded_row_gives_its_form_back() {
        let named = Form { outputs: vec!["y".into()], ..form(ElementType::F64) };
        let square = Form { shape: Some(vec![1, 2]), ..form(ElementType::I64) };
        for form in [form(ElementType::F32), named, square] {
            let query = form.query(form.row(&Input::Vector(vec![1.0, 2.0])).unwrap().canonical());
            assert_eq!(Form::of_recorded(&query), Some(form));
        }
        let query = form(ElementType::F32).query(r#"{"inputs":[],"model":"m"}"#.to_owned());
        assert_eq!(Form::of_recorded(&query), None);
    }

    #[test]
    fn an_input_that_does_not_fit_is_named() {
        let check = |form: Form, input: Input, expected: &str| {
            assert_eq!(form.row(&input).expect_err(expected).to_string(), expected);
        };
        check(
            form(ElementType::I64),
            Input::Vector(vec![1.0, 0.5]),
            "the teacher's input `x` takes i64, but 0.5 is none",
        );
        check(
            form(ElementType::U8),
            Input::Bytes(vec![256]),
            "the teacher's input `x` takes u8, but the data are bytes with padding",
        );
        check(
            Form { shape: Some(vec![8, 8]), ..form(ElementType::F32) },
            Input::Vector(vec![0.0; 63]),
            "the teacher's input `x` has shape [8, 8], but an input has 63 values",
        );
    }
}
