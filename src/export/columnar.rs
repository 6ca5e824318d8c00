//! Rows as Parquet: <https://parquet.apache.org/docs/file-format/>.
//!
//! Must not know what the columns mean. Invariant: a type says what a column holds: text, JSON, a moment in UTC, dollars as
//! `DECIMAL(38, 9)`, so that a reader computes with whole nano-dollars.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{Compression, LogicalType, Repetition, TimeUnit, Type as Physical, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, FixedLenByteArray, FixedLenByteArrayType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::types::Type;

use super::rows::{Cell, Column, Kind, Row};
use super::{Sink, failed};
use crate::words::Trouble;

const DECIMAL_BYTES: i32 = 16;
const DECIMAL_PRECISION: i32 = 38;
const DECIMAL_SCALE: i32 = 9;

/// A Parquet file; a group of rows is a row group.
pub(super) struct Parquet<W: Write + Send> {
    columns: &'static [Column],
    out: SerializedFileWriter<W>,
    name: PathBuf,
}

impl<W: Write + Send> Parquet<W> {
    pub(super) fn new(columns: &'static [Column], out: W, name: &Path) -> Result<Self, Trouble> {
        let open = || {
            let fields = columns.iter().map(field).collect::<Result<_, _>>()?;
            let schema = Type::group_type_builder("tuition").with_fields(fields).build()?;
            let properties =
                WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
            SerializedFileWriter::new(out, Arc::new(schema), Arc::new(properties))
        };
        let out = open().map_err(|error| unwritable(name, error))?;
        Ok(Self { columns, out, name: name.to_owned() })
    }

    fn group(&mut self, rows: &[Row]) -> Result<(), ParquetError> {
        let mut group = self.out.next_row_group()?;
        let mut at = 0;
        while let Some(mut writer) = group.next_column()? {
            let column = &self.columns[at];
            write_column(&mut writer, column, rows.iter().map(|row| &row[at]))?;
            writer.close()?;
            at += 1;
        }
        group.close().map(drop)
    }
}

impl<W: Write + Send> Sink for Parquet<W> {
    fn write(&mut self, rows: &[Row]) -> Result<(), Trouble> {
        if rows.is_empty() {
            return Ok(());
        }
        self.group(rows).map_err(|error| unwritable(&self.name, error))
    }

    fn finish(self: Box<Self>) -> Result<(), Trouble> {
        let Self { out, name, .. } = *self;
        let flushed = out.into_inner().and_then(|mut out| out.flush().map_err(ParquetError::from));
        flushed.map_err(|error| unwritable(&name, error))
    }
}

fn field(column: &Column) -> Result<Arc<Type>, ParquetError> {
    let builder = |physical| {
        let repetition = if column.optional { Repetition::OPTIONAL } else { Repetition::REQUIRED };
        Type::primitive_type_builder(column.name, physical).with_repetition(repetition)
    };
    let built = match column.kind {
        Kind::Text => builder(Physical::BYTE_ARRAY).with_logical_type(Some(LogicalType::String)),
        Kind::Json => builder(Physical::BYTE_ARRAY).with_logical_type(Some(LogicalType::Json)),
        Kind::Bytes => builder(Physical::BYTE_ARRAY),
        Kind::Time => {
            builder(Physical::INT64).with_logical_type(Some(LogicalType::timestamp(true, TimeUnit::MILLIS)))
        }
        Kind::Number => builder(Physical::INT64).with_logical_type(Some(LogicalType::integer(64, false))),
        Kind::Usd => builder(Physical::FIXED_LEN_BYTE_ARRAY)
            .with_length(DECIMAL_BYTES)
            .with_logical_type(Some(LogicalType::decimal(DECIMAL_SCALE, DECIMAL_PRECISION)))
            .with_precision(DECIMAL_PRECISION)
            .with_scale(DECIMAL_SCALE),
    };
    built.build().map(Arc::new)
}

fn write_column<'r>(
    writer: &mut SerializedColumnWriter<'_>,
    column: &Column,
    cells: impl Iterator<Item = &'r Cell> + Clone,
) -> Result<(), ParquetError> {
    let defined: Vec<i16> = cells.clone().map(|cell| i16::from(*cell != Cell::Empty)).collect();
    let levels = column.optional.then_some(&defined[..]);
    match column.kind {
        Kind::Text | Kind::Json | Kind::Bytes => {
            let values: Vec<ByteArray> = cells
                .filter_map(|cell| match cell {
                    Cell::Text(text) => Some(text.as_str().into()),
                    Cell::Bytes(bytes) => Some(bytes.clone().into()),
                    Cell::Empty | Cell::Number(_) | Cell::Usd(_) => None,
                })
                .collect();
            writer.typed::<ByteArrayType>().write_batch(&values, levels, None)?;
        }
        Kind::Time | Kind::Number => {
            let values: Vec<i64> = cells
                .filter_map(|cell| match cell {
                    Cell::Number(number) => Some(number.cast_signed()),
                    _ => None,
                })
                .collect();
            writer.typed::<Int64Type>().write_batch(&values, levels, None)?;
        }
        Kind::Usd => {
            let values: Vec<FixedLenByteArray> = cells
                .filter_map(|cell| match cell {
                    Cell::Usd(usd) => {
                        Some(ByteArray::from(i128::from(usd.nanos()).to_be_bytes().to_vec()).into())
                    }
                    _ => None,
                })
                .collect();
            writer.typed::<FixedLenByteArrayType>().write_batch(&values, levels, None)?;
        }
    }
    Ok(())
}

fn unwritable(name: &Path, error: ParquetError) -> Trouble {
    failed("cannot write", name, std::io::Error::other(error))
}
