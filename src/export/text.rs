//! Rows as text: a JSON object a line, or CSV with a head.
//!
//! Must not know what the columns mean. Invariant: dollars are texts with nine places, never numbers that a reader may
//! round; bytes are base64.

use std::io::Write;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use tuition_ledger::Timestamp;

use super::rows::{Cell, Column, Kind, Row};
use super::{Sink, failed};
use crate::words::Trouble;

/// A JSON object a line; an empty cell is null.
pub(super) struct JsonLines<W> {
    columns: &'static [Column],
    out: W,
    name: PathBuf,
}

/// CSV; an empty cell is empty.
pub(super) struct Csv<W: Write> {
    columns: &'static [Column],
    out: csv::Writer<W>,
    name: PathBuf,
}

impl<W: Write> JsonLines<W> {
    pub(super) fn new(columns: &'static [Column], out: W, name: &Path) -> Self {
        Self { columns, out, name: name.to_owned() }
    }
}

impl<W: Write> Sink for JsonLines<W> {
    fn write(&mut self, rows: &[Row]) -> Result<(), Trouble> {
        for row in rows {
            let cells = self.columns.iter().zip(row);
            let object: Map<String, Value> =
                cells.map(|(column, cell)| (column.name.to_owned(), value(column, cell))).collect();
            writeln!(self.out, "{}", Value::Object(object))
                .map_err(|error| failed("cannot write", &self.name, error))?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), Trouble> {
        self.out.flush().map_err(|error| failed("cannot write", &self.name, error))
    }
}

impl<W: Write> Csv<W> {
    /// Writes the head.
    pub(super) fn new(columns: &'static [Column], out: W, name: &Path) -> Result<Self, Trouble> {
        let mut out = csv::Writer::from_writer(out);
        let head = out.write_record(columns.iter().map(|column| column.name));
        head.map_err(|error| failed("cannot write", name, error.into()))?;
        Ok(Self { columns, out, name: name.to_owned() })
    }
}

impl<W: Write> Sink for Csv<W> {
    fn write(&mut self, rows: &[Row]) -> Result<(), Trouble> {
        for row in rows {
            let cells = self.columns.iter().zip(row).map(|(column, cell)| match value(column, cell) {
                Value::Null => String::new(),
                Value::String(text) => text,
                other => other.to_string(),
            });
            let written = self.out.write_record(cells);
            written.map_err(|error| failed("cannot write", &self.name, error.into()))?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), Trouble> {
        self.out.flush().map_err(|error| failed("cannot write", &self.name, error))
    }
}

fn value(column: &Column, cell: &Cell) -> Value {
    match cell {
        Cell::Empty => Value::Null,
        Cell::Text(text) => text.clone().into(),
        Cell::Bytes(bytes) => STANDARD.encode(bytes).into(),
        Cell::Number(ms) if column.kind == Kind::Time => Timestamp(*ms).to_string().into(),
        Cell::Number(number) => (*number).into(),
        Cell::Usd(usd) => usd.to_string().into(),
    }
}
