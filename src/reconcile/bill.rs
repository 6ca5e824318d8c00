//! A provider's bill as it was exported: a CSV file, read into what it says of each day and model.
//!
//! Must not know what was recorded. Invariant: figures are integers (tokens, requests, 10⁻¹⁸ dollars), added up exactly;
//! a cell that is no figure is an error with its line and column, never a zero.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use csv::StringRecord;
use tuition_ledger::Day;
use tuition_trainer::nearest;

use super::form::{Column, Form, KNOWN};
use super::number;

/// The model of a bill that names none: all of them together.
pub(super) const ALL_MODELS: &str = "(all models)";

/// Why a bill cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BillError {
    /// The file.
    #[error("the export `{}` cannot be read", .file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No CSV, or rows of unequal length.
    #[error("the export `{}` is no sound CSV", .file.display())]
    Csv {
        /// The file.
        file: PathBuf,
        /// Where and why.
        #[source]
        source: csv::Error,
    },
    /// A header row that belongs to no known export.
    #[error("`{}` is no export that is known: its header row has {}", .file.display(), columns(.found))]
    NotRecognised {
        /// The file.
        file: PathBuf,
        /// Its columns.
        found: Vec<String>,
    },
    /// A column that the form needs is not there.
    #[error("`{}`, line 1: there is no column `{column}`, which {form} has; there are {}", .file.display(), columns(.found))]
    NoColumn {
        /// The file.
        file: PathBuf,
        /// The form.
        form: &'static str,
        /// The missing column.
        column: String,
        /// The nearest that is there.
        near: Option<String>,
        /// Its columns.
        found: Vec<String>,
    },
    /// One column twice.
    #[error("`{}`, line 1: there are two columns `{column}`", .file.display())]
    TwoColumns {
        /// The file.
        file: PathBuf,
        /// The column.
        column: String,
    },
    /// A cell that is not what its column holds.
    #[error("`{}`, line {line}, column `{column}`: {what}", .file.display())]
    Cell {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The column.
        column: String,
        /// What is wrong.
        what: String,
    },
}

/// How many columns a message lists.
const COLUMNS_MAX: usize = 30;

fn columns(found: &[String]) -> String {
    if found.iter().all(String::is_empty) {
        return "no columns".to_owned();
    }
    let mut text: Vec<String> =
        found.iter().take(COLUMNS_MAX).map(|column| format!("`{}`", column.escape_debug())).collect();
    if found.len() > COLUMNS_MAX {
        text.push(format!("{} more", found.len() - COLUMNS_MAX));
    }
    text.join(", ")
}

/// What a bill says of one day and model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Billed {
    /// The sum of each column; dollars in units of 10⁻¹⁸.
    pub(super) figures: BTreeMap<Column, u128>,
    /// Cells of dollars that the sum was made of.
    pub(super) usd_cells: u64,
    /// Whether one of them was finer than a nano-dollar.
    pub(super) finer: bool,
    /// Under which names of the model, where they are not the record's.
    pub(super) names: BTreeSet<String>,
}

impl Billed {
    /// Adds another row of the same day and model.
    pub(super) fn absorb(&mut self, other: &Self) {
        for (column, figure) in &other.figures {
            let sum = self.figures.entry(*column).or_default();
            *sum = sum.saturating_add(*figure);
        }
        self.usd_cells += other.usd_cells;
        self.finer |= other.finer;
        self.names.extend(other.names.iter().cloned());
    }
}

/// A bill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bill {
    /// The form that it has.
    pub(super) form: &'static str,
    /// The columns that can be compared.
    pub(super) columns: BTreeSet<Column>,
    /// By day and model.
    pub(super) rows: BTreeMap<(Day, String), Billed>,
}

/// Where in a row each thing stands.
struct Places {
    day: usize,
    model: Option<usize>,
    currency: Option<usize>,
    figures: Vec<(Column, usize)>,
}

/// Reads a bill; without a form, the header row says which it is.
///
/// # Errors
/// See [`BillError`]; each names the file, and the line and column where there is one.
pub(super) fn read(file: &Path, text: impl Read, form: Option<&Form>) -> Result<Bill, BillError> {
    let broken = |source| BillError::Csv { file: file.to_owned(), source };
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text);
    let heads = reader.headers().map_err(broken)?.clone();
    let found: Vec<String> = heads.iter().map(str::to_owned).collect();
    let form = match form {
        Some(form) => form,
        None => KNOWN
            .iter()
            .find(|form| form.fits(&found))
            .ok_or_else(|| BillError::NotRecognised { file: file.to_owned(), found: found.clone() })?,
    };
    let places = places(file, form, &found)?;
    let mut rows: BTreeMap<(Day, String), Billed> = BTreeMap::new();
    let (mut named, mut nameless) = (false, None);
    for record in reader.into_records() {
        let record = record.map_err(broken)?;
        let cells = Cells { file, found: &found, record: &record };
        let Some((day, model, billed)) = row(&cells, form, &places)? else { continue };
        match model {
            Some(_) => named = true,
            None => nameless = nameless.or(Some(cells.line())),
        }
        rows.entry((day, model.unwrap_or_else(|| ALL_MODELS.to_owned()))).or_default().absorb(&billed);
    }
    if let (true, Some(line), Some(at)) = (named, nameless, places.model) {
        let what = "it is empty, though other rows name a model".to_owned();
        return Err(BillError::Cell { file: file.to_owned(), line, column: found[at].clone(), what });
    }
    let columns = places.figures.iter().map(|(column, _)| *column).collect();
    Ok(Bill { form: form.name, columns, rows })
}

/// Finds the columns of `form` in the header row.
fn places(file: &Path, form: &Form, found: &[String]) -> Result<Places, BillError> {
    let missing = |names: &[String]| {
        let column = names.join("` or `");
        let near = nearest(&names[0], found.iter().map(String::as_str)).map(str::to_owned);
        BillError::NoColumn { file: file.to_owned(), form: form.name, column, near, found: found.to_vec() }
    };
    let place = |name: &str| -> Result<Option<usize>, BillError> {
        let mut at = found.iter().enumerate().filter(|(_, head)| head.as_str() == name).map(|(at, _)| at);
        match (at.next(), at.next()) {
            (_, Some(_)) => Err(BillError::TwoColumns { file: file.to_owned(), column: name.to_owned() }),
            (first, None) => Ok(first),
        }
    };
    let mut day = None;
    for name in &form.day {
        day = day.or(place(name)?);
    }
    let mut figures = Vec::new();
    for (column, name) in &form.figures {
        match place(name)? {
            Some(at) => figures.push((*column, at)),
            None if form.needs.contains(name) => return Err(missing(std::slice::from_ref(name))),
            None => {}
        }
    }
    let needed = |name: &String| place(name)?.ok_or_else(|| missing(std::slice::from_ref(name)));
    Ok(Places {
        day: day.ok_or_else(|| missing(&form.day))?,
        model: form.model.as_ref().map(needed).transpose()?,
        currency: form.currency.as_ref().map(needed).transpose()?,
        figures,
    })
}

/// One row, and where it stands.
struct Cells<'a> {
    file: &'a Path,
    found: &'a [String],
    record: &'a StringRecord,
}

impl Cells<'_> {
    fn line(&self) -> u64 {
        self.record.position().map_or(0, csv::Position::line)
    }

    fn text(&self, at: usize) -> &str {
        self.record.get(at).unwrap_or_default()
    }

    fn wrong(&self, at: usize, what: String) -> BillError {
        BillError::Cell {
            file: self.file.to_owned(),
            line: self.line(),
            column: self.found[at].clone(),
            what,
        }
    }
}

/// What one row says; nothing where it has no figure at all, as the exports write a day without use.
fn row(
    cells: &Cells<'_>,
    form: &Form,
    places: &Places,
) -> Result<Option<(Day, Option<String>, Billed)>, BillError> {
    let mut billed = Billed::default();
    let mut filled = false;
    for (column, at) in &places.figures {
        let text = cells.text(*at);
        let figure = match (text, column) {
            ("", _) => 0,
            (text, Column::Usd) => number::dollars(text).map_err(|what| cells.wrong(*at, what))?,
            (text, _) => number::count(text).map_err(|what| cells.wrong(*at, what))?,
        };
        filled |= !text.is_empty();
        if *column == Column::Usd {
            billed.usd_cells += u64::from(!text.is_empty());
            billed.finer |= figure % number::UNITS_A_NANO != 0;
        }
        let sum = billed.figures.entry(*column).or_default();
        *sum = sum.saturating_add(figure);
    }
    let model = places.model.map_or("", |at| cells.text(at));
    if !filled && model.is_empty() {
        return Ok(None);
    }
    if let Some(at) = places.currency
        && !cells.text(at).eq_ignore_ascii_case("usd")
    {
        let what = format!("the currency is `{}`; only usd can be compared", cells.text(at).escape_debug());
        return Err(cells.wrong(at, what));
    }
    let day = number::day(cells.text(places.day)).map_err(|what| cells.wrong(places.day, what))?;
    let model =
        if form.lists_items { model.rsplit_once(", ").map_or(model, |(model, _)| model) } else { model };
    Ok(Some((day, (!model.is_empty()).then(|| model.to_owned()), billed)))
}

#[cfg(test)]
mod tests;
