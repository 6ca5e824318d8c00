//! Vectors from JSON Lines, plain or gzipped: an object a line, a field of numbers the input, another one the label.
//!
//! It must not know what the numbers mean. Invariant: a file is read whole or refused with the line of the first thing that is
//! wrong. Format: <https://jsonlines.org>.

use std::io::{BufRead, BufReader};
use std::path::Path;

use serde_json::{Map, Value};

use super::table::{Table, no_column};
use super::{Collected, DataError, beginning, unzipped};

/// The field of the input where a run file names none.
pub const INPUT: &str = "input";

/// Reads a JSON Lines file. `input` is the field of the numbers, a list that may hold lists; `label` that of the label.
///
/// # Errors
/// The first line that is wrong.
pub fn read(path: &Path, input: Option<&str>, label: Option<&str>) -> Result<Collected, DataError> {
    let input = input.unwrap_or(INPUT);
    let mut table = Table::new(path, "line");
    let reader = BufReader::new(unzipped(path)?);
    for (line, text) in (1..).zip(reader.lines()) {
        let text = text.map_err(|error| DataError::read(path, error))?;
        if text.trim().is_empty() {
            continue;
        }
        let object: Map<String, Value> = serde_json::from_str(&text)
            .map_err(|error| table.wrong(line, format!("is no JSON object: {error}")))?;
        let field = |name: &str| {
            object.get(name).ok_or_else(|| no_column(path, name, object.keys().map(String::as_str)))
        };
        let mut vector = Vec::new();
        if let Err(found) = flatten(field(input)?, &mut vector) {
            let found = beginning(&found.to_string());
            return Err(table.wrong(line, format!("holds `{found}` in `{input}`, which is no finite number")));
        }
        let label = match label {
            None => None,
            Some(name) => Some(
                text_of(field(name)?)
                    .ok_or_else(|| table.wrong(line, format!("holds no label in `{name}`")))?,
            ),
        };
        table.push(line, vector, label)?;
    }
    table.finish(label)
}

/// The numbers of nested lists, one after the other; what is no number, where there is one.
fn flatten<'v>(value: &'v Value, numbers: &mut Vec<f32>) -> Result<(), &'v Value> {
    match value {
        Value::Array(values) => values.iter().try_for_each(|value| flatten(value, numbers)),
        Value::Number(number) => {
            #[expect(clippy::cast_possible_truncation, reason = "a vector holds f32")]
            let number = number.as_f64().map(|number| number as f32).filter(|number| number.is_finite());
            number.map(|number| numbers.push(number)).ok_or(value)
        }
        _ => Err(value),
    }
}

/// A label as text; none where there is none.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::example::Input;

    fn file(folder: &tempfile::TempDir, content: &str) -> std::path::PathBuf {
        let path = folder.path().join("data.jsonl");
        std::fs::write(&path, content).unwrap();
        path
    }

    #[test]
    fn objects_are_vectors_with_labels() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(
            &folder,
            "{\"x\": [[1, 2.5], [-3, 0]], \"of\": \"dog\"}\n\n{\"of\": \"cat\", \"x\": [0, 0, 0, 1e-3]}",
        );
        let read = super::read(&path, Some("x"), Some("of")).unwrap();
        assert_eq!(read.classes, ["cat", "dog"]);
        let rows: Vec<_> = read.inputs.iter().map(|raw| (raw.input.clone(), raw.truth)).collect();
        assert_eq!(
            rows,
            [
                (Input::Vector(vec![1.0, 2.5, -3.0, 0.0]), Some(1)),
                (Input::Vector(vec![0.0, 0.0, 0.0, 1e-3]), Some(0))
            ]
        );
        assert!(read.inputs[1].place.ends_with("data.jsonl:3"), "{}", read.inputs[1].place);
        assert!(super::read(&path, Some("x"), None).unwrap().inputs.iter().all(|raw| raw.truth.is_none()));
    }

    #[test]
    fn a_mistake_is_answered_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        for (content, expected) in [
            ("", "the data set `FILE` is empty: no row of numbers"),
            (
                "[1]\n",
                "`FILE` line 1 is no JSON object: invalid type: sequence, expected a map at line 1 column 0",
            ),
            (
                "{\"input\": [1], \"label\": 0}\n{\"inptu\": [1]}",
                "`FILE` has no column `input`, did you mean `inptu`?; it has `inptu`",
            ),
            (
                "{\"input\": [1, \"x\"], \"label\": 0}",
                "`FILE` line 1 holds `\"x\"` in `input`, which is no finite number",
            ),
            (
                "{\"input\": [1e99], \"label\": 0}",
                "`FILE` line 1 holds `1e+99` in `input`, which is no finite number",
            ),
            ("{\"input\": [], \"label\": 0}", "`FILE` line 1 holds no numbers"),
            (
                "{\"input\": [1, 2], \"label\": 0}\n{\"input\": [1], \"label\": 0}",
                "`FILE` line 2 holds 1 numbers, but the first has 2",
            ),
            ("{\"input\": [1], \"label\": null}", "`FILE` line 1 holds no label in `label`"),
            (
                "{\"input\": [1], \"label\": -1}",
                "`FILE` line 1, column `label`: the label `-1` is out of range: classes are whole numbers from 0 to 65535",
            ),
        ] {
            let path = file(&folder, content);
            let error = super::read(&path, None, Some("label")).expect_err(content).to_string();
            assert_eq!(error.replace(&path.display().to_string(), "FILE"), expected);
        }
    }
}
