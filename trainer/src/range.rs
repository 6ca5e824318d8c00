//! The one refusal of a value in a run file that is out of its range.
//!
//! It must not know which tables there are. Invariant: the key stands in it with its table, and the value as it was written.

use std::fmt::Display;

/// A value that is out of its range.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("`{key}` is {value}; it must be {range}")]
pub struct OutOfRange {
    /// The key, with its table.
    pub key: String,
    /// What it holds.
    pub value: String,
    /// What it may hold.
    pub range: &'static str,
}

/// Judges the values of one table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Judged(pub(crate) &'static str);

impl Judged {
    /// Refuses a value that is not fine.
    pub(crate) fn check(
        self,
        field: &str,
        fine: bool,
        value: impl Display,
        range: &'static str,
    ) -> Result<(), OutOfRange> {
        if fine { Ok(()) } else { Err(self.refused(field, value, range)) }
    }

    /// The refusal itself, where it is known that there is one.
    pub(crate) fn refused(self, field: &str, value: impl Display, range: &'static str) -> OutOfRange {
        OutOfRange { key: format!("{}.{field}", self.0), value: value.to_string(), range }
    }
}
