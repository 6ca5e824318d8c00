//! What a model states about its inputs and outputs, whoever runs it.
//!
//! It must not know runtimes or HTTP. Invariant: a type has one name in Open Inference, read and written here alone.

use std::fmt;

use serde::Deserialize;
use tuition_ledger::Elements;

/// The element types that a tensor here can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElementType {
    /// 32-bit floats.
    F32,
    /// 64-bit floats.
    F64,
    /// 32-bit integers.
    I32,
    /// 64-bit integers.
    I64,
    /// Bytes.
    U8,
    /// Truth values.
    Bool,
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::U8 => "u8",
            Self::Bool => "bool",
        })
    }
}

impl ElementType {
    const ALL: [Self; 6] = [Self::F32, Self::F64, Self::I32, Self::I64, Self::U8, Self::Bool];

    /// Its name in the Open Inference Protocol v2, such as `FP32`.
    #[must_use]
    pub fn datatype(self) -> &'static str {
        match self {
            Self::F32 => "FP32",
            Self::F64 => "FP64",
            Self::I32 => "INT32",
            Self::I64 => "INT64",
            Self::U8 => "UINT8",
            Self::Bool => "BOOL",
        }
    }

    /// The type of this name in the Open Inference Protocol v2.
    #[must_use]
    pub fn of_datatype(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.datatype() == name)
    }

    /// The type of these elements; text is none, and is named.
    pub(crate) fn of(elements: &Elements) -> Result<Self, String> {
        match elements {
            Elements::F32(_) => Ok(Self::F32),
            Elements::F64(_) => Ok(Self::F64),
            Elements::I32(_) => Ok(Self::I32),
            Elements::I64(_) => Ok(Self::I64),
            Elements::U8(_) => Ok(Self::U8),
            Elements::Bool(_) => Ok(Self::Bool),
            Elements::Text(_) => Err("text".to_owned()),
        }
    }
}

/// What a model states about one of its inputs or outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its element type, or what else it is, in the runtime's words.
    pub element_type: Result<ElementType, String>,
    /// Its extents; `None` where any extent fits.
    pub shape: Vec<Option<usize>>,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    inputs: Vec<Stated>,
}

#[derive(Deserialize)]
struct Stated {
    name: String,
    datatype: String,
    shape: Vec<i64>,
}

impl Port {
    /// The inputs that a model's metadata state in the Open Inference Protocol v2; none where it states none.
    ///
    /// # Errors
    /// What is no metadata of a model.
    pub fn inputs_of_metadata(metadata: &[u8]) -> Result<Vec<Self>, serde_json::Error> {
        let metadata: Metadata = serde_json::from_slice(metadata)?;
        let port = |stated: Stated| Self {
            element_type: ElementType::of_datatype(&stated.datatype).ok_or(stated.datatype),
            name: stated.name,
            // A negative extent stands for any.
            shape: stated.shape.into_iter().map(|extent| usize::try_from(extent).ok()).collect(),
        };
        Ok(metadata.inputs.into_iter().map(port).collect())
    }

    /// Its extents as words.
    pub(crate) fn shape_words(&self) -> String {
        let extents: Vec<String> = self
            .shape
            .iter()
            .map(|extent| extent.map_or_else(|| "any".to_owned(), |extent| extent.to_string()))
            .collect();
        format!("[{}]", extents.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_state_inputs() {
        let read = |text: &str| Port::inputs_of_metadata(text.as_bytes());
        let stated = r#"{"name":"m","inputs":[{"name":"x","datatype":"FP32","shape":[-1,64]},
            {"name":"t","datatype":"BYTES","shape":[1]}],"outputs":[]}"#;
        let x = Port { name: "x".into(), element_type: Ok(ElementType::F32), shape: vec![None, Some(64)] };
        let t = Port { name: "t".into(), element_type: Err("BYTES".into()), shape: vec![Some(1)] };
        assert_eq!(read(stated).unwrap(), [x, t]);
        assert_eq!(read(r#"{"name":"m"}"#).unwrap(), []);
        read(r#"{"inputs":[{"name":"x"}]}"#).expect_err("an input without a type");
    }
}
