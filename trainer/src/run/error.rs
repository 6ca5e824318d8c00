//! Why a run file cannot be used, by name.

use crate::nearest::nearest;
use crate::range::OutOfRange;

/// Why a run file cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// It is no TOML.
    #[error("the run file is no TOML: {0}")]
    Syntax(String),
    /// A key or kind that does not exist.
    #[error("unknown {what} `{name}`{}; known here: {known}", hint.as_ref().map(|hint| format!(", did you mean `{hint}`?")).unwrap_or_default())]
    Unknown {
        /// `key` or `kind`.
        what: &'static str,
        /// What was written.
        name: String,
        /// The nearest known name, if one is near.
        hint: Option<String>,
        /// The known names.
        known: String,
    },
    /// A value that does not fit.
    #[error("the run file does not fit: {0}")]
    Value(String),
    /// A number out of its range.
    #[error(transparent)]
    Range(#[from] OutOfRange),
    /// A key that the source needs.
    #[error("source `{source_kind}` needs `data.{field}`")]
    Missing {
        /// The source.
        source_kind: &'static str,
        /// The key.
        field: &'static str,
    },
    /// An override that is none.
    #[error("`{assignment}` is no override: {reason}")]
    Override {
        /// What was given.
        assignment: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl ConfigError {
    /// Names the unknown key or kind of a deserialization error, and the nearest known one.
    #[must_use]
    pub fn of(error: &toml::de::Error) -> Self {
        let message = error.message();
        let (what, rest) =
            match (message.split_once("unknown field `"), message.split_once("unknown variant `")) {
                (Some((_, rest)), _) => ("key", rest),
                (_, Some((_, rest))) => ("kind", rest),
                _ => return Self::Value(error.to_string().trim_end().to_owned()),
            };
        let mut quoted = rest.split('`');
        let name = quoted.next().unwrap_or_default().to_owned();
        let known: Vec<String> = quoted.skip(1).step_by(2).map(str::to_owned).collect();
        let hint = nearest(&name, known.iter().map(String::as_str)).map(str::to_owned);
        Self::Unknown { what, name, hint, known: known.join(", ") }
    }
}
