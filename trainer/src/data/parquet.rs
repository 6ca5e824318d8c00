//! Vectors from a Parquet file: a column of lists of numbers, or every column of numbers; another one the label.
//!
//! It must not know what the numbers mean. Invariant: a file is read whole or refused with the row of the first thing that is
//! wrong. Format: <https://parquet.apache.org/docs/file-format/>.

use std::fs::File;
use std::path::Path;

use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::{Field, Row};

use super::table::{Table, no_column};
use super::{Collected, DataError};

/// Reads a Parquet file. `input` names a column of lists; without one every column but the label is one number of the input.
///
/// # Errors
/// No such column, or the first row that is wrong.
pub fn read(path: &Path, input: Option<&str>, label: Option<&str>) -> Result<Collected, DataError> {
    let broken = |error: ParquetError| DataError::Row {
        path: path.to_owned(),
        place: String::new(),
        reason: format!("is not Parquet: {error}"),
    };
    let file = File::open(path).map_err(|error| DataError::read(path, error))?;
    let reader = SerializedFileReader::new(file).map_err(broken)?;
    let schema = reader.metadata().file_metadata().schema().get_fields();
    let names: Vec<String> = schema.iter().map(|field| field.name().to_owned()).collect();
    for wanted in input.into_iter().chain(label) {
        if !names.iter().any(|name| name == wanted) {
            return Err(no_column(path, wanted, names.iter().map(String::as_str)));
        }
    }
    let mut table = Table::new(path, "row");
    for (at, row) in (1..).zip(reader.get_row_iter(None).map_err(broken)?) {
        let row: Row = row.map_err(broken)?;
        let (mut vector, mut named) = (Vec::new(), None);
        for (name, field) in row.get_column_iter() {
            if Some(name.as_str()) == label {
                named = Some(match field {
                    Field::Str(text) => text.clone(),
                    Field::Null => return Err(table.wrong(at, format!("holds no label in `{name}`"))),
                    other => other.to_string(),
                });
            } else if input.is_none_or(|input| input == name) {
                numbers(field, input.is_some(), &mut vector).map_err(|found| {
                    table.wrong(at, format!("holds {found} in `{name}`, which is no finite number"))
                })?;
            }
        }
        table.push(at, vector, named)?;
    }
    table.finish(label)
}

/// The numbers of a field, those of lists one after the other; what is none, as words.
fn numbers(field: &Field, lists: bool, to: &mut Vec<f32>) -> Result<(), String> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "a vector holds f32")]
    let number = match field {
        Field::Bool(value) => f32::from(u8::from(*value)),
        Field::Byte(value) => f32::from(*value),
        Field::Short(value) => f32::from(*value),
        Field::Int(value) => *value as f32,
        Field::Long(value) => *value as f32,
        Field::UByte(value) => f32::from(*value),
        Field::UShort(value) => f32::from(*value),
        Field::UInt(value) => *value as f32,
        Field::ULong(value) => *value as f32,
        Field::Float(value) => *value,
        Field::Double(value) => *value as f32,
        Field::ListInternal(list) if lists => {
            return list.elements().iter().try_for_each(|element| numbers(element, true, to));
        }
        other => return Err(format!("`{}`", super::beginning(&other.to_string()))),
    };
    if !number.is_finite() {
        return Err(format!("`{number}`"));
    }
    to.push(number);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ::parquet::basic::Compression;
    use ::parquet::data_type::{ByteArray, ByteArrayType, DoubleType, FloatType, Int64Type};
    use ::parquet::file::properties::WriterProperties;
    use ::parquet::file::writer::SerializedFileWriter;
    use ::parquet::schema::parser::parse_message_type;

    use super::*;
    use crate::example::Input;

    const COLUMNS: &str =
        "message rows { required double a; required int64 b; required binary kind (UTF8); }";
    const LISTS: &str = "message rows { required group x (LIST) { repeated group list { required float element; } } required int64 y; }";

    /// Three rows: of numbers and a word, or of lists and a class.
    fn file(folder: &tempfile::TempDir, schema_text: &str, compression: Compression) -> std::path::PathBuf {
        let path = folder.path().join("data.parquet");
        let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
        let schema = Arc::new(parse_message_type(schema_text).unwrap());
        let mut writer = SerializedFileWriter::new(File::create(&path).unwrap(), schema, properties).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let lists = schema_text == LISTS;
        let words = ["dog", "cat", "dog"].map(ByteArray::from);
        for at in 0.. {
            let Some(mut column) = group.next_column().unwrap() else { break };
            match (at, lists) {
                (0, true) => {
                    let (values, levels) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], ([1; 6], [0, 1, 0, 1, 0, 1]));
                    let column = column.typed::<FloatType>();
                    column.write_batch(&values, Some(&levels.0), Some(&levels.1)).unwrap()
                }
                (0, false) => column.typed::<DoubleType>().write_batch(&[0.5, 1.5, 2.5], None, None).unwrap(),
                (1, _) => column.typed::<Int64Type>().write_batch(&[7, 8, 9], None, None).unwrap(),
                _ => column.typed::<ByteArrayType>().write_batch(&words, None, None).unwrap(),
            };
            column.close().unwrap();
        }
        group.close().unwrap();
        writer.close().unwrap();
        path
    }

    fn vectors(found: &Collected) -> Vec<(Vec<f32>, Option<u32>)> {
        let vector = |raw: &super::super::Raw| match &raw.input {
            Input::Vector(values) => (values.clone(), raw.truth),
            Input::Bytes(_) => panic!("a Parquet file gives vectors"),
        };
        found.inputs.iter().map(vector).collect()
    }

    #[test]
    fn columns_and_lists_are_vectors() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(&folder, COLUMNS, Compression::SNAPPY);
        let found = read(&path, None, Some("kind")).unwrap();
        assert_eq!(found.classes, ["cat", "dog"]);
        let expected = [(vec![0.5, 7.0], Some(1)), (vec![1.5, 8.0], Some(0)), (vec![2.5, 9.0], Some(1))];
        assert_eq!(vectors(&found), expected);
        let path = file(&folder, LISTS, Compression::ZSTD(Default::default()));
        let found = read(&path, Some("x"), Some("y")).unwrap();
        let expected = [(vec![1.0, 2.0], Some(7)), (vec![3.0, 4.0], Some(8)), (vec![5.0, 6.0], Some(9))];
        assert_eq!(vectors(&found), expected);
    }

    #[test]
    fn a_mistake_is_answered_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(&folder, COLUMNS, Compression::UNCOMPRESSED);
        let say = |input, label| {
            let error = read(&path, input, label).unwrap_err().to_string();
            error.replace(&path.display().to_string(), "FILE")
        };
        assert_eq!(say(Some("c"), None), "`FILE` has no column `c`; it has `a`, `b`, `kind`");
        assert_eq!(say(None, None), "`FILE` row 1 holds `\"dog\"` in `kind`, which is no finite number");
        std::fs::write(&path, "PAR0").unwrap();
        assert!(say(None, None).starts_with("`FILE` is not Parquet: "), "{}", say(None, None));
    }
}
