//! Named tensors and rows of them, as the Open Inference Protocol v2 writes them in JSON.
//!
//! The one place that says what a row's canonical form is, so that a row bought over HTTP and the same row bought from
//! a local model have one key. Must not know HTTP or ONNX. Invariant: numbers are normalised to what their datatype can
//! hold and to nothing less.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::json::{Json, JsonError};

/// Elements of a tensor, flat in row-major order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Elements {
    /// `FP32`
    F32(Vec<f32>),
    /// `FP64`
    F64(Vec<f64>),
    /// `INT32`
    I32(Vec<i32>),
    /// `INT64`
    I64(Vec<i64>),
    /// `UINT8`
    U8(Vec<u8>),
    /// `BOOL`
    Bool(Vec<bool>),
    /// `BYTES`, as text.
    Text(Vec<String>),
}

/// A named tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its extent along each axis.
    pub shape: Vec<usize>,
    /// Its elements.
    pub elements: Elements,
}

/// One row of a request: every input tensor with a first axis of one, and what else may change the answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The model's name.
    pub model: String,
    /// The model's version, where the request names one.
    pub version: Option<String>,
    /// The inputs, shape `[1, ...]` each.
    pub inputs: Vec<Tensor>,
    /// Other members of the request in canonical JSON, by name (`outputs`, `parameters`).
    pub others: Vec<(String, String)>,
}

/// Why JSON is no tensor or no row.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// A member is missing or of the wrong type.
    #[error("`{0}` is missing or of the wrong type")]
    Member(&'static str),
    /// A datatype that is not taken.
    #[error("datatype `{0}` is not one of FP32, FP64, INT32, INT64, UINT8, BOOL, BYTES")]
    Datatype(String),
    /// An element that does not fit the datatype.
    #[error("tensor `{name}`: element {index} is no {datatype}")]
    Element {
        /// The tensor.
        name: String,
        /// Which element, from 0.
        index: usize,
        /// The datatype it should have.
        datatype: &'static str,
    },
    /// Shape and data disagree.
    #[error("tensor `{name}`: shape {shape:?} does not hold {elements} elements")]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// How many elements it has.
        elements: usize,
    },
    /// The tensors of a batch differ in their number of rows, or have none.
    #[error("tensor `{name}` has {rows} rows where the request has {expected}")]
    Rows {
        /// The tensor.
        name: String,
        /// Its rows.
        rows: usize,
        /// The rows of the first tensor.
        expected: usize,
    },
    /// Two inputs of one name: nobody could say which of them is meant.
    #[error("two inputs have the name `{0}`")]
    Twice(String),
    /// Not the JSON that is taken.
    #[error(transparent)]
    Json(#[from] JsonError),
}

impl Elements {
    /// The protocol's name of the datatype.
    pub fn datatype(&self) -> &'static str {
        match self {
            Self::F32(_) => "FP32",
            Self::F64(_) => "FP64",
            Self::I32(_) => "INT32",
            Self::I64(_) => "INT64",
            Self::U8(_) => "UINT8",
            Self::Bool(_) => "BOOL",
            Self::Text(_) => "BYTES",
        }
    }

    /// How many elements there are.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F64(values) => values.len(),
            Self::I32(values) => values.len(),
            Self::I64(values) => values.len(),
            Self::U8(values) => values.len(),
            Self::Bool(values) => values.len(),
            Self::Text(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as single-precision numbers (rounded where the datatype is wider), none for text.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        Some(match self {
            Self::F32(values) => values.clone(),
            Self::F64(values) => values.iter().map(|value| *value as f32).collect(),
            Self::I32(values) => values.iter().map(|value| *value as f32).collect(),
            Self::I64(values) => values.iter().map(|value| *value as f32).collect(),
            Self::U8(values) => values.iter().map(|value| f32::from(*value)).collect(),
            Self::Bool(values) => values.iter().map(|value| f32::from(u8::from(*value))).collect(),
            Self::Text(_) => return None,
        })
    }

    fn slice(&self, range: std::ops::Range<usize>) -> Self {
        match self {
            Self::F32(values) => Self::F32(values[range].to_vec()),
            Self::F64(values) => Self::F64(values[range].to_vec()),
            Self::I32(values) => Self::I32(values[range].to_vec()),
            Self::I64(values) => Self::I64(values[range].to_vec()),
            Self::U8(values) => Self::U8(values[range].to_vec()),
            Self::Bool(values) => Self::Bool(values[range].to_vec()),
            Self::Text(values) => Self::Text(values[range].to_vec()),
        }
    }

    fn to_json(&self) -> Json<'static> {
        fn numbers<T: ToString>(values: &[T]) -> Vec<Json<'static>> {
            values.iter().map(|value| Json::Number(Cow::Owned(value.to_string()))).collect()
        }
        // JSON has no spelling for what is not finite: `null` stands for it, as in the servers' own answers.
        fn floats(values: impl Iterator<Item = f64>) -> Vec<Json<'static>> {
            let number =
                |value: f64| Json::Number(Cow::Owned(ryu_js::Buffer::new().format_finite(value).to_owned()));
            values.map(|value| if value.is_finite() { number(value) } else { Json::Null }).collect()
        }
        Json::Array(match self {
            Self::F32(values) => floats(values.iter().map(|value| f64::from(*value))),
            Self::F64(values) => floats(values.iter().copied()),
            Self::I32(values) => numbers(values),
            Self::I64(values) => numbers(values),
            Self::U8(values) => numbers(values),
            Self::Bool(values) => values.iter().map(|value| Json::Bool(*value)).collect(),
            Self::Text(values) => {
                values.iter().map(|value| Json::String(Cow::Owned(value.clone()))).collect()
            }
        })
    }
}

impl Tensor {
    /// Reads `{"name", "shape", "datatype", "data"}`; `data` may be flat or nested.
    ///
    /// # Errors
    /// A member that is missing, an unknown datatype, an element or a shape that does not fit.
    pub fn from_json(json: &Json<'_>) -> Result<Self, TensorError> {
        let name = json.member("name").and_then(Json::as_str).ok_or(TensorError::Member("name"))?.to_owned();
        let datatype =
            json.member("datatype").and_then(Json::as_str).ok_or(TensorError::Member("datatype"))?;
        let extent = |extent: &Json<'_>| extent.as_u64().and_then(|extent| usize::try_from(extent).ok());
        let shape: Vec<usize> = json
            .member("shape")
            .and_then(Json::items)
            .and_then(|shape| shape.iter().map(extent).collect())
            .ok_or(TensorError::Member("shape"))?;
        let mut flat = Vec::new();
        flatten(json.member("data").ok_or(TensorError::Member("data"))?, &mut flat);
        let elements = read_elements(&name, datatype, &flat)?;
        let expected = shape.iter().try_fold(1usize, |product, extent| product.checked_mul(*extent));
        if expected != Some(elements.len()) {
            return Err(TensorError::Shape { name, shape, elements: elements.len() });
        }
        Ok(Self { name, shape, elements })
    }

    /// Writes `{"name", "shape", "datatype", "data"}` with flat data.
    pub fn to_json(&self) -> Json<'static> {
        let text = |text: &str| Json::String(Cow::Owned(text.to_owned()));
        let extent = |extent: &usize| Json::Number(Cow::Owned(extent.to_string()));
        Json::Object(vec![
            (Cow::Borrowed("name"), text(&self.name)),
            (Cow::Borrowed("shape"), Json::Array(self.shape.iter().map(extent).collect())),
            (Cow::Borrowed("datatype"), text(self.elements.datatype())),
            (Cow::Borrowed("data"), self.elements.to_json()),
        ])
    }

    /// The rows along the first axis, shape `[1, ...]` each; none for a scalar.
    pub fn rows(&self) -> Vec<Self> {
        let Some((count, rest)) = self.shape.split_first() else { return Vec::new() };
        let width: usize = rest.iter().product();
        let shape: Vec<usize> = std::iter::once(1).chain(rest.iter().copied()).collect();
        (0..*count)
            .map(|row| Self {
                name: self.name.clone(),
                shape: shape.clone(),
                elements: self.elements.slice(row * width..(row + 1) * width),
            })
            .collect()
    }

    /// Puts rows of one name, type and width together along the first axis, in order; none where they do not fit.
    pub fn stack(rows: &[&Self]) -> Option<Self> {
        let (first, rest) = rows.split_first()?;
        let mut whole = (*first).clone();
        for row in rest {
            if row.name != whole.name || row.shape.get(1..) != whole.shape.get(1..) {
                return None;
            }
            match (&mut whole.elements, &row.elements) {
                (Elements::F32(all), Elements::F32(more)) => all.extend_from_slice(more),
                (Elements::F64(all), Elements::F64(more)) => all.extend_from_slice(more),
                (Elements::I32(all), Elements::I32(more)) => all.extend_from_slice(more),
                (Elements::I64(all), Elements::I64(more)) => all.extend_from_slice(more),
                (Elements::U8(all), Elements::U8(more)) => all.extend_from_slice(more),
                (Elements::Bool(all), Elements::Bool(more)) => all.extend_from_slice(more),
                (Elements::Text(all), Elements::Text(more)) => all.extend_from_slice(more),
                _ => return None,
            }
            *whole.shape.first_mut()? += row.shape.first()?;
        }
        Some(whole)
    }
}

impl Row {
    /// The row's canonical JSON: the `input` of its query.
    pub fn canonical(&self) -> String {
        let mut members = vec![
            (Cow::Borrowed("model"), Json::String(Cow::Borrowed(self.model.as_str()))),
            (Cow::Borrowed("inputs"), Json::Array(self.inputs.iter().map(Tensor::to_json).collect())),
        ];
        if let Some(version) = &self.version {
            members.push((Cow::Borrowed("version"), Json::String(Cow::Borrowed(version))));
        }
        for (name, text) in &self.others {
            let value = Json::parse(text.as_bytes()).expect("other members are kept as valid JSON");
            members.push((Cow::Borrowed(name.as_str()), value));
        }
        Json::Object(members).canonical()
    }

    /// Reads what [`Row::canonical`] wrote.
    ///
    /// # Errors
    /// Text that is no row.
    pub fn parse(text: &str) -> Result<Self, TensorError> {
        let json = Json::parse(text.as_bytes())?;
        let model =
            json.member("model").and_then(Json::as_str).ok_or(TensorError::Member("model"))?.to_owned();
        let version = json.member("version").and_then(Json::as_str).map(str::to_owned);
        let inputs = json.member("inputs").and_then(Json::items).ok_or(TensorError::Member("inputs"))?;
        let inputs = inputs.iter().map(Tensor::from_json).collect::<Result<_, _>>()?;
        let known = ["model", "version", "inputs"];
        let others =
            json.members().unwrap_or_default().iter().filter(|(name, _)| !known.contains(&name.as_ref()));
        let others = others.map(|(name, value)| (name.to_string(), value.canonical())).collect();
        Ok(Self { model, version, inputs, others })
    }
}

fn flatten<'j, 'a>(json: &'j Json<'a>, flat: &mut Vec<&'j Json<'a>>) {
    match json {
        Json::Array(items) => items.iter().for_each(|item| flatten(item, flat)),
        scalar => flat.push(scalar),
    }
}

fn read_elements(name: &str, datatype: &str, flat: &[&Json<'_>]) -> Result<Elements, TensorError> {
    fn read<T>(
        name: &str,
        datatype: &'static str,
        flat: &[&Json<'_>],
        element: impl Fn(&Json<'_>) -> Option<T>,
    ) -> Result<Vec<T>, TensorError> {
        let error = |index| TensorError::Element { name: name.to_owned(), index, datatype };
        flat.iter().enumerate().map(|(index, json)| element(json).ok_or_else(|| error(index))).collect()
    }
    fn integer<T: TryFrom<i64>>(json: &Json<'_>) -> Option<T> {
        let Json::Number(text) = json else { return None };
        let whole = text.parse::<i64>().ok().or_else(|| {
            let float: f64 = text.parse().ok()?;
            (float.fract() == 0.0 && float.abs() <= 9_007_199_254_740_992.0).then_some(float as i64)
        })?;
        T::try_from(whole).ok()
    }
    fn float(json: &Json<'_>) -> Option<f64> {
        if json.is_null() { Some(f64::NAN) } else { json.as_f64() }
    }
    Ok(match datatype {
        "FP32" => Elements::F32(read(name, "FP32", flat, |json| float(json).map(|value| value as f32))?),
        "FP64" => Elements::F64(read(name, "FP64", flat, float)?),
        "INT32" => Elements::I32(read(name, "INT32", flat, integer)?),
        "INT64" => Elements::I64(read(name, "INT64", flat, integer)?),
        "UINT8" => Elements::U8(read(name, "UINT8", flat, integer)?),
        "BOOL" => Elements::Bool(read(name, "BOOL", flat, |json| json.as_bool())?),
        "BYTES" => Elements::Text(read(name, "BYTES", flat, |json| json.as_str().map(str::to_owned))?),
        other => return Err(TensorError::Datatype(other.to_owned())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(text: &str) -> Result<Tensor, String> {
        Tensor::from_json(&Json::parse(text.as_bytes()).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn single_precision_has_one_spelling() {
        let short = tensor(r#"{"name":"x","shape":[1,2],"datatype":"FP32","data":[0.1,-0.0]}"#).unwrap();
        let long = tensor(r#"{"name":"x","datatype":"FP32","shape":[1,2],"data":[[0.10000000149011612,0]]}"#)
            .unwrap();
        let row = |tensor| Row { model: "m".into(), version: None, inputs: vec![tensor], others: vec![] };
        assert_eq!(row(short.clone()).canonical(), row(long).canonical());
        let canonical = row(short).canonical();
        assert_eq!(Row::parse(&canonical).unwrap().canonical(), canonical);
    }

    #[test]
    fn rows_stack_back() {
        let whole =
            tensor(r#"{"name":"x","shape":[3,2],"datatype":"INT64","data":[[1,2],[3,4],[5,6]]}"#).unwrap();
        let rows = whole.rows();
        assert_eq!(rows[1], tensor(r#"{"name":"x","shape":[1,2],"datatype":"INT64","data":[3,4]}"#).unwrap());
        assert_eq!(Tensor::stack(&rows.iter().collect::<Vec<_>>()), Some(whole));
    }

    #[test]
    fn what_is_no_tensor_is_named() {
        #[track_caller]
        fn check(text: &str, expected: &str) {
            assert_eq!(tensor(text).unwrap_err(), expected);
        }
        check(r#"{"shape":[1],"datatype":"FP32","data":[1]}"#, "`name` is missing or of the wrong type");
        check(
            r#"{"name":"x","shape":[2],"datatype":"FP32","data":[1]}"#,
            "tensor `x`: shape [2] does not hold 1 elements",
        );
        check(
            r#"{"name":"x","shape":[1],"datatype":"INT32","data":[1.5]}"#,
            "tensor `x`: element 0 is no INT32",
        );
        check(
            r#"{"name":"x","shape":[1],"datatype":"UINT8","data":[256]}"#,
            "tensor `x`: element 0 is no UINT8",
        );
        check(
            r#"{"name":"x","shape":[1],"datatype":"FP8","data":[1]}"#,
            "datatype `FP8` is not one of FP32, FP64, INT32, INT64, UINT8, BOOL, BYTES",
        );
    }
}
