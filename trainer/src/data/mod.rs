//! Sources of inputs: a CSV file, IDX files of images, a folder of files, what a run has bought; and the parts of a data set.
//!
//! A source reads inputs and, where it knows it, the truth. It must not know teachers, budgets or losses. Invariant:
//! the same files give the same inputs in the same order, and a mistake in them is answered with its place.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::example::Input;

pub mod csv;
pub mod files;
pub mod idx;
pub mod images;
pub mod jsonl;
pub mod parquet;
pub mod record;
pub mod split;
mod table;

/// The most inputs that one source gives.
pub const MAX_INPUTS: usize = 10_000_000;

/// One input as its source gave it.
#[derive(Debug, Clone, PartialEq)]
pub struct Raw {
    /// Where it came from, for people: a path, or a path and a line.
    pub place: String,
    /// What the teacher is asked and the student sees.
    pub input: Input,
    /// The true class, where the source knows it.
    pub truth: Option<u32>,
}

/// All inputs of a source.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Collected {
    /// The inputs, in the source's own order.
    pub inputs: Vec<Raw>,
    /// The names of the true classes; empty where the source knows no truth.
    pub classes: Vec<String>,
    /// How many files or rows were left out because they hold too little to ask about.
    pub skipped: usize,
}

impl Collected {
    /// These as the held-out part of a data set with `classes`: a class is the one of the same name.
    ///
    /// # Errors
    /// A class that the data set does not have.
    pub fn among(self, classes: &[String], path: &Path) -> Result<Self, DataError> {
        let place = |class: &String| {
            let place = classes.iter().position(|known| known == class);
            place
                .and_then(|place| u32::try_from(place).ok())
                .ok_or_else(|| DataError::Class { path: path.to_owned(), class: class.clone() })
        };
        // Bare numbers are themselves, also where the part that is learnt from has not all of them.
        let bare = |names: &[String]| names.iter().enumerate().all(|(at, name)| *name == at.to_string());
        if bare(classes) && bare(&self.classes) {
            return Ok(self);
        }
        let places = self.classes.iter().map(place).collect::<Result<Vec<u32>, _>>()?;
        let moved = |raw: Raw| Raw { truth: raw.truth.map(|truth| places[truth as usize]), ..raw };
        let inputs = self.inputs.into_iter().map(moved).collect();
        Ok(Self { inputs, classes: classes.to_vec(), skipped: self.skipped })
    }
}

/// Why a source cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file or folder cannot be read.
    #[error("the data `{path}` cannot be read")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is nothing in it.
    #[error("the data set `{path}` is empty: {reason}")]
    Empty {
        /// The file, folder or pattern.
        path: PathBuf,
        /// What was looked for.
        reason: &'static str,
    },
    /// A limit is passed.
    #[error("the data set `{path}` has more than {limit} {unit}")]
    TooLarge {
        /// The file, folder or pattern.
        path: PathBuf,
        /// The limit.
        limit: usize,
        /// What is counted.
        unit: &'static str,
    },
    /// A row with another number of columns.
    #[error("`{path}` line {line} has {found} columns, but the first row has {expected}")]
    Ragged {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// How many columns it has.
        found: usize,
        /// How many the first row has.
        expected: usize,
    },
    /// A cell that is no finite number.
    #[error("`{path}` line {line}, column `{column}`: `{value}` is not a finite number")]
    NotANumber {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The column's name, or its index from 0.
        column: String,
        /// What stands there, cut to its beginning.
        value: String,
    },
    /// The label column is not there.
    #[error("`{path}` has no column `{label}`{hint}; it has {columns}")]
    NoColumn {
        /// The file.
        path: PathBuf,
        /// The column asked for.
        label: String,
        /// The nearest known name, as words.
        hint: String,
        /// The columns, as words.
        columns: String,
    },
    /// A label that names no class.
    #[error("`{path}` line {line}, column `{column}`: the label `{value}` is out of range: {reason}")]
    Label {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The column's name, or its index from 0.
        column: String,
        /// What stands there, cut to its beginning.
        value: String,
        /// What would fit.
        reason: String,
    },
    /// The file's own format is broken.
    #[error("`{path}` is not CSV: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// A row or an image that is not what it should be.
    #[error("`{path}`{place} {reason}")]
    Row {
        /// The file.
        path: PathBuf,
        /// Where in it, as words, with a space before them; empty for all of it.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A label of the held-out part that the others do not have.
    #[error("the data set `{path}` has a class `{class}`, which the part that is learnt from does not have")]
    Class {
        /// The held-out part.
        path: PathBuf,
        /// The class.
        class: String,
    },
    /// A file of images or labels that is not what it should be.
    #[error("`{path}` {reason}")]
    Idx {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A pattern that can never match.
    #[error("the pattern `{pattern}` {reason}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The description of a model's preprocessing does not hold what is needed.
    #[error("the preprocessing `{path}` {reason}")]
    Window {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl DataError {
    pub(crate) fn read(path: &Path, source: std::io::Error) -> Self {
        Self::Read { path: path.to_owned(), source }
    }
}

/// The bytes of a file, unpacked if it is gzipped.
pub(crate) fn unzipped(path: &Path) -> Result<Box<dyn Read>, DataError> {
    let failed = |error| DataError::read(path, error);
    let mut buffered = BufReader::new(File::open(path).map_err(failed)?);
    let zipped = buffered.fill_buf().map_err(failed)?.starts_with(&[0x1f, 0x8b]);
    Ok(if zipped { Box::new(MultiGzDecoder::new(buffered)) } else { Box::new(buffered) })
}

/// The beginning of a value, short enough for an error's line.
pub(crate) fn beginning(value: &str) -> String {
    const MOST: usize = 40;
    let mut shown: String = value.chars().take(MOST).collect();
    if value.chars().count() > MOST {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_of_the_held_out_part_is_the_one_of_the_same_name() {
        let names = |names: &[&str]| -> Vec<String> { names.iter().map(|name| (*name).to_owned()).collect() };
        let truths = |known: &[&str], held_out: &[&str]| {
            let raw = |truth: usize| Raw {
                place: "p".into(),
                input: Input::Vector(vec![0.0]),
                truth: u32::try_from(truth).ok(),
            };
            let inputs = (0..held_out.len()).map(raw).collect();
            let part = Collected { inputs, classes: names(held_out), skipped: 0 };
            let part = part.among(&names(known), Path::new("test")).map_err(|error| error.to_string())?;
            Ok(part.inputs.iter().filter_map(|raw| raw.truth).collect::<Vec<_>>())
        };
        assert_eq!(truths(&["bee", "cat", "dog"], &["cat", "dog"]), Ok(vec![1, 2]));
        // Folders may be called by numbers that are not their places.
        assert_eq!(truths(&["1", "2"], &["2"]), Ok(vec![1]));
        let missing = |class: &str| {
            Err(format!(
                "the data set `test` has a class `{class}`, which the part that is learnt from does not have"
            ))
        };
        assert_eq!(truths(&["1", "2"], &["0", "1"]), missing("0"));
        assert_eq!(truths(&["0", "1"], &["cat"]), missing("cat"));
        assert_eq!(truths(&["0", "1"], &["0", "1", "2"]), Ok(vec![0, 1, 2]), "bare numbers are themselves");
        assert_eq!(truths(&[], &["0", "1"]), Ok(vec![0, 1]));
    }
}
