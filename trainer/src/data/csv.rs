//! Vectors from a CSV file, plain or gzipped: a row an input, a column a feature, at most one column the label.
//!
//! A first row with a cell that is no number is a header. It must not know what the numbers mean. Invariant: a file is
//! read whole or refused with the line and column of the first thing that is wrong.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use ::csv::{ByteRecord, ReaderBuilder, Trim};

use super::{Collected, DataError, MAX_INPUTS, Raw, beginning, unzipped};
use crate::example::Input;
use crate::nearest::nearest;
use crate::question::MAX_CLASSES;

/// The most bytes that are read, after decompression.
pub const MAX_BYTES: u64 = 8 << 30;
/// The most columns of a row.
pub const MAX_COLUMNS: usize = 1 << 20;

/// Reads a CSV file. `label` is the label column's name, or its index from 0 where the file has no such name.
///
/// Labels that are whole numbers are classes by themselves; any other labels are sorted, and a class is its place.
///
/// # Errors
/// The first line and column that is wrong.
pub fn read(path: &Path, label: Option<&str>) -> Result<Collected, DataError> {
    let rows = Rows::read(path)?;
    let label = label.map(|label| rows.column(label)).transpose()?;
    let mut inputs = Vec::with_capacity(rows.cells.len());
    let mut labels = Vec::new();
    for (line, record) in &rows.cells {
        let mut vector = Vec::with_capacity(record.len());
        for (column, cell) in record.iter().enumerate() {
            if Some(column) == label {
                labels.push((*line, String::from_utf8_lossy(cell).into_owned()));
                continue;
            }
            vector.push(number(cell).ok_or_else(|| DataError::NotANumber {
                path: path.to_owned(),
                line: *line,
                column: rows.name(column),
                value: beginning(&String::from_utf8_lossy(cell)),
            })?);
        }
        if vector.is_empty() {
            return Err(DataError::Empty { path: path.to_owned(), reason: "no column but the label" });
        }
        let place = format!("{}:{line}", path.display());
        inputs.push(Raw { place, input: Input::Vector(vector), truth: None });
    }
    let Some(label) = label else { return Ok(Collected { inputs, classes: vec![], skipped: 0 }) };
    let (truths, classes) = classes(path, &rows.name(label), &labels)?;
    for (raw, truth) in inputs.iter_mut().zip(truths) {
        raw.truth = Some(truth);
    }
    Ok(Collected { inputs, classes, skipped: 0 })
}

fn number(cell: &[u8]) -> Option<f32> {
    std::str::from_utf8(cell).ok()?.parse().ok().filter(|number: &f32| number.is_finite())
}

/// The rows of a file, with their lines, and its header where it has one.
struct Rows<'a> {
    path: &'a Path,
    header: Option<Vec<String>>,
    cells: Vec<(u64, ByteRecord)>,
}

impl<'a> Rows<'a> {
    fn read(path: &'a Path) -> Result<Self, DataError> {
        // One byte more than the limit, so that a file of exactly the limit is told from a longer one.
        let mut limited = BufReader::new(unzipped(path)?).take(MAX_BYTES + 1);
        let mut rows = Self { path, header: None, cells: vec![] };
        let mut text = Vec::new();
        for line in 1.. {
            text.clear();
            if limited.read_until(b'\n', &mut text).map_err(|error| DataError::read(path, error))? == 0 {
                break;
            }
            if !text.trim_ascii().is_empty() {
                rows.push(line, row(path, &text)?)?;
            }
        }
        if limited.limit() == 0 {
            let limit = usize::try_from(MAX_BYTES).unwrap_or(usize::MAX);
            return Err(DataError::TooLarge { path: path.to_owned(), limit, unit: "bytes" });
        }
        if rows.cells.is_empty() {
            return Err(DataError::Empty { path: path.to_owned(), reason: "no row of numbers" });
        }
        Ok(rows)
    }

    fn push(&mut self, line: u64, record: ByteRecord) -> Result<(), DataError> {
        let path = || self.path.to_owned();
        if record.len() > MAX_COLUMNS {
            return Err(DataError::TooLarge { path: path(), limit: MAX_COLUMNS, unit: "columns" });
        }
        let first_row = self.header.is_none() && self.cells.is_empty();
        // With a label in words and no header, a first row has one word too; a header has nothing but words.
        if first_row && record.iter().all(|cell| number(cell).is_none()) {
            let names = record.iter().map(|cell| String::from_utf8_lossy(cell).into_owned()).collect();
            self.header = Some(names);
            return Ok(());
        }
        let expected = self.header.as_ref().map(Vec::len).or(self.cells.first().map(|(_, row)| row.len()));
        if let Some(expected) = expected
            && expected != record.len()
        {
            return Err(DataError::Ragged { path: path(), line, found: record.len(), expected });
        }
        if self.cells.len() == MAX_INPUTS {
            return Err(DataError::TooLarge { path: path(), limit: MAX_INPUTS, unit: "rows" });
        }
        self.cells.push((line, record));
        Ok(())
    }

    fn width(&self) -> usize {
        self.cells.first().map_or(0, |(_, row)| row.len())
    }

    fn name(&self, column: usize) -> String {
        self.header.as_ref().map_or_else(|| column.to_string(), |names| names[column].clone())
    }

    fn column(&self, label: &str) -> Result<usize, DataError> {
        let names: &[String] = self.header.as_deref().unwrap_or(&[]);
        if let Some(column) = names.iter().position(|name| name == label) {
            return Ok(column);
        }
        if let Some(column) = label.parse().ok().filter(|column| *column < self.width()) {
            return Ok(column);
        }
        let columns = if names.is_empty() {
            format!("no header, only the columns 0 to {}", self.width() - 1)
        } else {
            beginning_of_names(names)
        };
        let hint = nearest(label, names.iter().map(String::as_str))
            .map(|near| format!(", did you mean `{near}`?"))
            .unwrap_or_default();
        Err(DataError::NoColumn { path: self.path.to_owned(), label: label.to_owned(), hint, columns })
    }
}

pub(super) fn beginning_of_names(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut words: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    if names.len() > SHOWN {
        words.push(format!("and {} more", names.len() - SHOWN));
    }
    words.join(", ")
}

/// The cells of one line: a cell may be quoted, but not run over several lines.
fn row(path: &Path, text: &[u8]) -> Result<ByteRecord, DataError> {
    let mut reader = ReaderBuilder::new()
        .has_headers(false)
        .trim(Trim::All)
        .buffer_capacity(text.len().min(1 << 16))
        .from_reader(text);
    let mut record = ByteRecord::new();
    reader
        .read_byte_record(&mut record)
        .map_err(|error| DataError::Format { path: path.to_owned(), reason: error.to_string() })?;
    Ok(record)
}

/// The class of each label, and the classes' names.
pub(super) fn classes(
    path: &Path,
    column: &str,
    labels: &[(u64, String)],
) -> Result<(Vec<u32>, Vec<String>), DataError> {
    let out_of_range = |line: u64, value: &str, reason: String| DataError::Label {
        path: path.to_owned(),
        line,
        column: column.to_owned(),
        value: beginning(value),
        reason,
    };
    let limit = || format!("classes are whole numbers from 0 to {}", MAX_CLASSES - 1);
    if labels.iter().any(|(_, label)| label.parse::<f64>().is_err()) {
        if let Some((line, label)) = labels.iter().find(|(_, label)| label.is_empty()) {
            return Err(out_of_range(*line, label, "it is empty".to_owned()));
        }
        let names: BTreeSet<&str> = labels.iter().map(|(_, label)| label.as_str()).collect();
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        if names.len() > MAX_CLASSES {
            let (line, label) = &labels[0];
            return Err(out_of_range(*line, label, format!("more than {MAX_CLASSES} different labels")));
        }
        let truths = labels
            .iter()
            .map(|(_, label)| names.binary_search(label).expect("each label is among their names"))
            .map(|class| u32::try_from(class).expect("there are at most `MAX_CLASSES`"))
            .collect();
        return Ok((truths, names));
    }
    let mut truths = Vec::with_capacity(labels.len());
    for (line, label) in labels {
        let class = label.strip_suffix(".0").unwrap_or(label).parse::<u32>().ok();
        let class = class.filter(|class| (*class as usize) < MAX_CLASSES);
        truths.push(class.ok_or_else(|| out_of_range(*line, label, limit()))?);
    }
    let most = truths.iter().max().map_or(0, |class| class + 1);
    Ok((truths, (0..most).map(|class| class.to_string()).collect()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn file(folder: &tempfile::TempDir, content: &str) -> std::path::PathBuf {
        let path = folder.path().join("data.csv");
        std::fs::write(&path, content).unwrap();
        path
    }

    fn vectors(collected: &Collected) -> Vec<(Vec<f32>, Option<u32>)> {
        let vector = |raw: &Raw| match &raw.input {
            Input::Vector(values) => (values.clone(), raw.truth),
            Input::Bytes(_) => panic!("a CSV file gives vectors"),
        };
        collected.inputs.iter().map(vector).collect()
    }

    #[test]
    fn the_label_is_found_by_name_or_by_index() {
        let folder = tempfile::tempdir().unwrap();
        let expected = vec![(vec![1.0, 2.5], Some(3)), (vec![-4.0, 0.0], Some(0))];
        for (content, label) in [
            ("a,label,b\n1,3,2.5\n-4,0,0\n", "label"),
            ("a, label ,b\r\n1, 3 ,2.5\r\n-4,0.0,0e3", "1"),
            ("1,3,2.5\n-4,0,0\n", "1"),
        ] {
            let collected = read(&file(&folder, content), Some(label)).unwrap();
            assert_eq!(vectors(&collected), expected, "{content}");
            assert_eq!(collected.classes, ["0", "1", "2", "3"]);
        }
        let words = read(&file(&folder, "1,dog\n2,cat\n3,dog\n"), Some("1")).unwrap();
        assert_eq!(words.classes, ["cat", "dog"]);
        assert_eq!(words.inputs.iter().map(|raw| raw.truth).collect::<Vec<_>>(), [Some(1), Some(0), Some(1)]);
        assert_eq!(vectors(&read(&file(&folder, "1,2\n"), None).unwrap()), [(vec![1.0, 2.0], None)]);
    }

    #[test]
    fn the_digits_are_read_whole() {
        let digits = read(&crate::installed::digits(), Some("label")).unwrap();
        assert_eq!(digits.inputs.len(), 1797);
        assert!(digits.inputs.iter().all(|raw| raw.input.width() == 64));
        assert_eq!(digits.classes.len(), 10);
        assert_eq!(
            digits.inputs[..3].iter().map(|raw| raw.truth).collect::<Vec<_>>(),
            [Some(0), Some(1), Some(2)]
        );
    }

    #[test]
    fn a_gzipped_file_of_several_members_is_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = Vec::new();
        for part in ["a,b\n", "1,2\n"] {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(part.as_bytes()).unwrap();
            bytes.extend(encoder.finish().unwrap());
        }
        let path = folder.path().join("data.csv.gz");
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(vectors(&read(&path, None).unwrap()), [(vec![1.0, 2.0], None)]);
    }

    #[test]
    fn a_mistake_is_answered_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        for (content, label, expected) in [
            ("", None, "the data set `FILE` is empty: no row of numbers"),
            ("a,b\n", None, "the data set `FILE` is empty: no row of numbers"),
            ("1\n2\n", Some("0"), "the data set `FILE` is empty: no column but the label"),
            ("a,b\n1,2\n3\n", None, "`FILE` line 3 has 1 columns, but the first row has 2"),
            ("a,b\r\n1,2\r\n\r\n3,x", None, "`FILE` line 4, column `b`: `x` is not a finite number"),
            ("1,2\n3,nan\n", None, "`FILE` line 2, column `1`: `nan` is not a finite number"),
            ("1,2\n,4\n", None, "`FILE` line 2, column `0`: `` is not a finite number"),
            (
                "a,label\n1,2\n",
                Some("lable"),
                "`FILE` has no column `lable`, did you mean `label`?; it has `a`, `label`",
            ),
            ("1,2\n", Some("2"), "`FILE` has no column `2`; it has no header, only the columns 0 to 1"),
            (
                "1,2\n1,-1\n",
                Some("1"),
                "`FILE` line 2, column `1`: the label `-1` is out of range: classes are whole numbers from 0 to 65535",
            ),
            (
                "a,label\n1,1.5\n",
                Some("label"),
                "`FILE` line 2, column `label`: the label `1.5` is out of range: classes are whole numbers from 0 to 65535",
            ),
        ] {
            let path = file(&folder, content);
            let error = read(&path, label).expect_err(content).to_string();
            assert_eq!(error.replace(&path.display().to_string(), "FILE"), expected);
        }
        let missing = read(&folder.path().join("missing.csv"), None).expect_err("there is no such file");
        assert!(matches!(missing, DataError::Read { .. }), "{missing}");
    }
}
