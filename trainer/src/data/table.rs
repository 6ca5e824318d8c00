//! Rows of numbers with labels, whatever file they come from: equal widths, classes, places.
//!
//! It must not know formats. Invariant: all rows have as many numbers as the first.

use std::path::{Path, PathBuf};

use super::csv::{beginning_of_names, classes};
use super::{Collected, DataError, MAX_INPUTS, Raw};
use crate::example::Input;
use crate::nearest::nearest;

/// Rows so far.
pub(super) struct Table {
    path: PathBuf,
    /// What a row is called: `line` or `row`.
    unit: &'static str,
    inputs: Vec<Raw>,
    labels: Vec<(u64, String)>,
}

impl Table {
    pub(super) fn new(path: &Path, unit: &'static str) -> Self {
        Self { path: path.to_owned(), unit, inputs: vec![], labels: vec![] }
    }

    /// What is wrong with the row at `at`, from 1 on.
    pub(super) fn wrong(&self, at: u64, reason: String) -> DataError {
        DataError::Row { path: self.path.clone(), place: format!(" {} {at}", self.unit), reason }
    }

    /// Adds a row; all have a label or none has.
    pub(super) fn push(&mut self, at: u64, vector: Vec<f32>, label: Option<String>) -> Result<(), DataError> {
        if self.inputs.len() == MAX_INPUTS {
            return Err(DataError::TooLarge { path: self.path.clone(), limit: MAX_INPUTS, unit: "rows" });
        }
        if vector.is_empty() {
            return Err(self.wrong(at, "holds no numbers".to_owned()));
        }
        if let Some(first) = self.inputs.first()
            && first.input.width() != vector.len()
        {
            let (found, expected) = (vector.len(), first.input.width());
            return Err(self.wrong(at, format!("holds {found} numbers, but the first has {expected}")));
        }
        let place = format!("{}:{at}", self.path.display());
        self.inputs.push(Raw { place, input: Input::Vector(vector), truth: None });
        self.labels.extend(label.map(|label| (at, label)));
        Ok(())
    }

    /// All rows, with the classes that their labels name.
    pub(super) fn finish(mut self, label: Option<&str>) -> Result<Collected, DataError> {
        if self.inputs.is_empty() {
            return Err(DataError::Empty { path: self.path, reason: "no row of numbers" });
        }
        let Some(label) = label else {
            return Ok(Collected { inputs: self.inputs, ..Collected::default() });
        };
        let (truths, classes) = classes(&self.path, label, &self.labels)?;
        self.inputs.iter_mut().zip(truths).for_each(|(raw, truth)| raw.truth = Some(truth));
        Ok(Collected { inputs: self.inputs, classes, skipped: 0 })
    }
}

/// The refusal of a column or field that is not there.
pub(super) fn no_column<'a>(path: &Path, wanted: &str, names: impl Iterator<Item = &'a str>) -> DataError {
    let names: Vec<String> = names.map(str::to_owned).collect();
    let hint = nearest(wanted, names.iter().map(String::as_str))
        .map(|near| format!(", did you mean `{near}`?"))
        .unwrap_or_default();
    let columns = beginning_of_names(&names);
    DataError::NoColumn { path: path.to_owned(), label: wanted.to_owned(), hint, columns }
}
