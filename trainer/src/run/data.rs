//! The `[data]` table of a run file: what is asked about, and where it lies.
//!
//! It must not open anything. Invariant: a key that its source does not read is refused.

use serde::{Deserialize, Serialize};

use crate::range::{Judged, OutOfRange};

/// The `[data]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The kind of source.
    pub source: Source,
    /// The file, folder or pattern; not for `record`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// For `record`: the run whose bought answers are the data set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// For `jsonl` the field of the numbers (`input` where none is named), for `parquet` a column of lists (every column of numbers).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// For `images`: channels, height and width that all are brought to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<[usize; 3]>,
    /// The truth: for `csv`, `jsonl` and `parquet` its column, for `idx` the file of the labels; of `images` it is the folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The test part.
    #[serde(default)]
    pub test: TestPart,
    /// For `idx` with a path as test part: the file of that part's labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_label: Option<String>,
}

/// The kinds of sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// Rows of numbers.
    Csv,
    /// Images of IDX files.
    Idx,
    /// PNG and JPEG files, a folder a class.
    Images,
    /// Objects in lines of JSON.
    Jsonl,
    /// Columns of a Parquet file.
    Parquet,
    /// Files as bytes.
    Files,
    /// What a client bought through the proxy.
    Record,
}

impl Source {
    /// Its name in a run file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Idx => "idx",
            Self::Images => "images",
            Self::Jsonl => "jsonl",
            Self::Parquet => "parquet",
            Self::Files => "files",
            Self::Record => "record",
        }
    }
}

impl DataConfig {
    /// Checks that its keys go with its source.
    ///
    /// # Errors
    /// The first key that the source does not read, or a value out of its range.
    pub fn check(&self) -> Result<(), OutOfRange> {
        let refused = |field, value: String, range| Err(Judged("data").refused(field, value, range));
        match (&self.input, self.source) {
            (None, _) | (_, Source::Jsonl | Source::Parquet) => {}
            (Some(input), _) => refused(
                "input",
                format!("`{input}`"),
                "absent, unless `data.source` is `jsonl` or `parquet`",
            )?,
        }
        match (&self.image, self.source) {
            (None, _) => {}
            (Some([1 | 3, 1..=4096, 1..=4096]), Source::Images) => {}
            (Some(image), Source::Images) => {
                refused(
                    "image",
                    format!("{image:?}"),
                    "1 or 3 channels, and a height and a width of 1 to 4096",
                )?;
            }
            (Some(image), _) => {
                refused("image", format!("{image:?}"), "absent, unless `data.source` is `images`")?;
            }
        }
        match (&self.label, self.source) {
            (Some(label), Source::Images) => {
                refused("label", format!("`{label}`"), "absent: of images the folder is the label")
            }
            _ => Ok(()),
        }
    }
}

/// The test part: a share of the data set by key, or a source of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TestPart {
    /// A share between 0 and 1.
    Share(f64),
    /// A path.
    Path(String),
}

impl Default for TestPart {
    fn default() -> Self {
        Self::Share(0.3)
    }
}
