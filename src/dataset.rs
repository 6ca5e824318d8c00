//! A data set where it lies: as `[data]` of a run file names it, or the flags of `label` and `plan`.
//!
//! Must not know who is asked about it. Invariant: the same place read as the same kind of source gives the same inputs in the
//! same order, whatever asks.

use std::path::{Path, PathBuf};

use clap::Args;
use tuition_trainer::data::files::Window;
use tuition_trainer::data::{Collected, DataError, csv, files, idx, images, jsonl, parquet};
use tuition_trainer::{DataConfig, Source, TestPart, nearest};

use crate::words::Trouble;

/// The kinds of sources that lie in files.
const SOURCES: [Source; 6] =
    [Source::Csv, Source::Idx, Source::Images, Source::Jsonl, Source::Parquet, Source::Files];

/// What is asked about.
#[derive(Debug, Args)]
pub(crate) struct DataArgs {
    /// The data set: a CSV file (.csv), JSON Lines (.jsonl), a Parquet file (.parquet), an IDX file of images (-ubyte, .idx), all
    /// but Parquet also gzipped (.gz); else a folder, file or pattern of files, as bytes.
    #[arg(long, value_name = "D")]
    pub(crate) data: PathBuf,
    /// What it is, where its name does not say so: csv, jsonl, parquet, idx, files, or images (a folder of PNG and JPEG files).
    #[arg(long, value_name = "KIND", value_parser = source)]
    pub(crate) source: Option<Source>,
    /// The field of a JSON Lines file or the column of a Parquet file that holds the numbers.
    #[arg(long, value_name = "FIELD")]
    pub(crate) input: Option<String>,
    /// Channels, height and width that all images are brought to, such as 1,28,28.
    #[arg(long, value_name = "C,H,W", value_parser = image)]
    pub(crate) image: Option<[usize; 3]>,
    /// The column or field of the truth, or the file of the labels of an IDX file; not shown to the teacher.
    #[arg(long, value_name = "COLUMN")]
    pub(crate) label: Option<String>,
}

impl DataArgs {
    /// Reads the data set.
    ///
    /// # Errors
    /// Unreadable, empty or malformed data; a flag that its kind does not take.
    pub(crate) fn collect(&self) -> Result<Collected, Trouble> {
        let data = DataConfig {
            source: self.source.unwrap_or_else(|| named(&self.data)),
            path: None,
            run: None,
            input: self.input.clone(),
            image: self.image,
            label: self.label.clone(),
            test: TestPart::default(),
            test_label: None,
        };
        data.check().map_err(|refused| {
            Trouble::usage(refused.to_string(), "the flags are the keys of `[data]` in a run file")
        })?;
        Ok(collect(&data, &self.data, self.label.as_deref())?)
    }
}

/// The kind that a file's name says.
fn named(place: &Path) -> Source {
    let name = place.to_string_lossy();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    let ends = |end: &str| name.ends_with(end);
    match () {
        () if ends(".csv") => Source::Csv,
        () if ends(".jsonl") => Source::Jsonl,
        () if ends(".parquet") => Source::Parquet,
        () if ends("-ubyte") || ends(".idx") => Source::Idx,
        () => Source::Files,
    }
}

fn source(text: &str) -> Result<Source, String> {
    let known = SOURCES.map(Source::name);
    let found = SOURCES.into_iter().find(|source| source.name() == text);
    found.ok_or_else(|| match nearest(text, known) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("known here: {}", known.join(", ")),
    })
}

fn image(text: &str) -> Result<[usize; 3], String> {
    let sizes: Option<Vec<usize>> = text.split(',').map(|size| size.trim().parse().ok()).collect();
    sizes.and_then(|sizes| sizes.try_into().ok()).ok_or_else(|| "three numbers, such as 1,28,28".to_owned())
}

/// Reads a part of a data set; `label` is the column, field or file of its truth.
///
/// # Errors
/// Unreadable, empty or malformed data.
pub(crate) fn collect(data: &DataConfig, place: &Path, label: Option<&str>) -> Result<Collected, DataError> {
    match data.source {
        Source::Csv => csv::read(place, label),
        Source::Idx => idx::read(place, label.map(Path::new)),
        Source::Images => images::read(place, data.image),
        Source::Jsonl => jsonl::read(place, data.input.as_deref(), label),
        Source::Parquet => parquet::read(place, data.input.as_deref(), label),
        Source::Files | Source::Record => files::read(place, &Window::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_a_file_is() {
        for (name, expected) in [
            ("a.csv", Source::Csv),
            ("a.csv.gz", Source::Csv),
            ("a.jsonl.gz", Source::Jsonl),
            ("a.parquet", Source::Parquet),
            ("t10k-images-idx3-ubyte.gz", Source::Idx),
            ("a.csv.bak", Source::Files),
            ("folder", Source::Files),
        ] {
            assert_eq!(named(Path::new(name)), expected, "{name}");
        }
        assert_eq!(source("images"), Ok(Source::Images));
        assert_eq!(source("image"), Err("did you mean `images`?".into()));
        assert!(source("record").unwrap_err().starts_with("known here: csv, "));
        assert_eq!(image("1, 28,28"), Ok([1, 28, 28]));
        assert!(image("28,28").is_err() && image("1,x,2").is_err());
    }
}
