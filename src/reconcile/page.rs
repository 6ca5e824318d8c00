//! A comparison for people, as CSV and as JSON.
//!
//! Must not compare anything. Invariant: dollars have nine places; a bill's finer ones are rounded up and said to be.

use std::path::Path;

use serde_json::{Map, Value, json};
use tuition_ledger::{Bought, Day, OpenCall, Usd, WholeCall};

use super::compare::{Comparison, Figure, Finding, Row};
use super::form::Column;
use super::number::UNITS_A_NANO;
use crate::print;

/// How many calls a cell lists.
const CALLS_MAX: usize = 4;

/// What is shown.
pub(super) struct Shown<'a> {
    pub(super) file: &'a Path,
    /// The form of the export.
    pub(super) form: &'static str,
    /// Its first and its last day, before it was limited.
    pub(super) span: Option<(Day, Day)>,
    /// What does not add up in the record itself.
    pub(super) discrepancies: usize,
    pub(super) compared: &'a Comparison,
}

const HEADS: [&str; 7] = ["day", "model", "what", "bill", "statement", "delta", "why"];

impl Shown<'_> {
    /// The whole comparison for people.
    pub(super) fn page(&self) -> String {
        let mut rows = self.rows();
        rows.extend(cells("total", "", &self.compared.totals, false));
        let mut parts = vec![
            format!("`{}`, {}, against the statement", self.file.display(), self.form),
            print::table(&HEADS, &rows),
        ];
        parts.extend(self.notes().into_iter().map(|note| format!("note: {note}")));
        let wrong = self.compared.rows.values().filter(|row| !row.adds_up()).count();
        let all = self.compared.rows.len();
        parts.push(match wrong {
            0 => format!("every row adds up ({all} of a day and a model)"),
            _ => format!("{wrong} of {all} rows do not add up"),
        });
        parts.join("\n\n")
    }

    /// The rows as CSV, without the totals.
    pub(super) fn csv(&self) -> String {
        print::csv(&HEADS, &self.rows())
    }

    /// The one object of `--json`.
    pub(super) fn json(&self) -> Value {
        let row = |((day, model), row): (&(Day, String), &Row)| {
            let mut object = row_json(row);
            object.insert("day".into(), json!(day.to_string()));
            object.insert("model".into(), json!(model));
            object.insert("billed_as".into(), json!(row.names));
            Value::Object(object)
        };
        json!({
            "file": self.file.display().to_string(),
            "format": self.form,
            "days": self.span.map(|(first, last)| json!({"first": first.to_string(), "last": last.to_string()})),
            "rows": self.compared.rows.iter().map(row).collect::<Vec<_>>(),
            "totals": row_json(&self.compared.totals),
            "adds_up": self.compared.adds_up(),
            "discrepancies": self.discrepancies,
            "notes": self.notes(),
        })
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let rows = self.compared.rows.iter();
        rows.flat_map(|((day, model), row)| cells(&day.to_string(), model, row, true)).collect()
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        match self.span {
            None => notes.push("the export holds no figures".to_owned()),
            Some((first, last)) => {
                let outside = self.compared.rows.keys().any(|(day, _)| *day < first || *day > last);
                if outside {
                    notes.push(format!(
                        "the export holds {first} to {last}, the statement more: `--since {first} --until {}` limits both",
                        Day(last.0.saturating_add(1))
                    ));
                }
            }
        }
        let mut names: Vec<_> = self
            .compared
            .rows
            .iter()
            .flat_map(|((_, model), row)| row.names.iter().map(move |name| (name, model)))
            .collect();
        names.sort();
        names.dedup();
        let name_of = |(name, model): (&String, &String)| {
            format!("the bill's `{}` is the record's `{model}`", name.replace(char::is_control, "?"))
        };
        notes.extend(names.into_iter().map(name_of));
        if self.discrepancies > 0 {
            notes.push(format!(
                "the record itself has {} discrepancies: `tuition audit` lists them",
                self.discrepancies
            ));
        }
        notes
    }
}

/// A line for each figure of a row.
fn cells(day: &str, model: &str, row: &Row, explained: bool) -> Vec<Vec<String>> {
    // A name in somebody else's file must not command a terminal.
    let model = model.replace(char::is_control, "?");
    let line = |figure: &Figure| {
        let why = if explained { why(figure, row) } else { String::new() };
        let [bill, statement] = [figure.bill, figure.recorded].map(|value| text(figure.column, value));
        let sign = match bill_shown(figure).cmp(&figure.recorded) {
            std::cmp::Ordering::Greater => "+",
            std::cmp::Ordering::Less | std::cmp::Ordering::Equal => "",
        };
        let delta = format!("{sign}{}", delta(figure));
        let what = figure.column.name().to_owned();
        vec![day.to_owned(), model.clone(), what, bill, statement, delta, why]
    };
    row.figures.iter().map(line).collect()
}

fn row_json(row: &Row) -> Map<String, Value> {
    let value = |figure: &Figure, text: String| match figure.column {
        Column::Usd => json!(text),
        _ => text.parse::<i64>().map_or_else(|_| json!(text), |number| json!(number)),
    };
    let figure = |figure: &Figure| {
        let shown = json!({
            "bill": value(figure, text(figure.column, figure.bill)),
            "statement": value(figure, text(figure.column, figure.recorded)),
            "delta": value(figure, delta(figure)),
            "finding": figure.finding.name(),
            "why": why(figure, row),
        });
        (figure.column.name().to_owned(), shown)
    };
    let open = |under_way: bool| {
        let calls = row.bought.open.iter().filter(move |call| call.under_way == under_way);
        calls
            .map(|call| json!({"id": call.hold.0, "tokens": call.tokens, "usd": call.usd.map(|usd| usd.to_string())}))
            .collect::<Vec<_>>()
    };
    let whole = row.bought.whole.iter();
    let whole =
        whole.map(|call| json!({"id": call.hold.0, "tokens": call.tokens, "usd": call.usd.to_string()}));
    Map::from_iter([
        ("figures".to_owned(), Value::Object(row.figures.iter().map(figure).collect())),
        ("adds_up".to_owned(), json!(row.adds_up())),
        ("unknown".to_owned(), json!(open(false))),
        ("under_way".to_owned(), json!(open(true))),
        ("charged_whole".to_owned(), json!(whole.collect::<Vec<_>>())),
    ])
}

/// A bill's figure as it is shown: dollars rounded up to a nano-dollar.
fn bill_shown(figure: &Figure) -> u128 {
    match figure.column {
        Column::Usd => figure.bill.div_ceil(UNITS_A_NANO) * UNITS_A_NANO,
        _ => figure.bill,
    }
}

fn text(column: Column, value: u128) -> String {
    const NANOS: u128 = 1_000_000_000;
    match column {
        Column::Usd => {
            let nanos = value.div_ceil(UNITS_A_NANO);
            format!("{}.{:09}", nanos / NANOS, nanos % NANOS)
        }
        _ => value.to_string(),
    }
}

/// What the bill says more; with a minus what it says less.
fn delta(figure: &Figure) -> String {
    let (bill, recorded) = (bill_shown(figure), figure.recorded);
    let sign = if bill < recorded { "-" } else { "" };
    format!("{sign}{}", text(figure.column, bill.abs_diff(recorded)))
}

/// Why a figure differs, in words.
fn why(figure: &Figure, row: &Row) -> String {
    let Bought { open, whole, requests, unpriced, .. } = &row.bought;
    match figure.finding {
        Finding::Equal => String::new(),
        Finding::Rounding => "rounding".to_owned(),
        Finding::Open => format!("{} would explain it", listed(open, of_open)),
        Finding::Whole => {
            let also = if figure.bill > figure.recorded && !open.is_empty() {
                format!(", and {}", listed(open, of_open))
            } else {
                String::new()
            };
            format!(
                "within what was charged whole, without a stated usage: {}{also}",
                listed(whole, of_whole)
            )
        }
        Finding::Unpriced => format!("{unpriced} recorded calls have no price"),
        Finding::Unexplained if *requests == 0 && open.is_empty() => {
            "the record has no such calls".to_owned()
        }
        Finding::Unexplained => "no unknown call explains it".to_owned(),
        Finding::Overcounted if row.figures.iter().all(|figure| figure.bill == 0) => {
            "the bill has no such calls".to_owned()
        }
        Finding::Overcounted => "more was counted than was billed".to_owned(),
    }
}

fn listed<T>(calls: &[T], words: impl Fn(&T) -> String) -> String {
    let mut text = calls.iter().take(CALLS_MAX).map(words).collect::<Vec<_>>().join(", ");
    if calls.len() > CALLS_MAX {
        text += &format!(" and {} more calls", calls.len() - CALLS_MAX);
    }
    text
}

fn of_open(call: &OpenCall) -> String {
    let state = if call.under_way { "under way" } else { "unknown" };
    let bound = match (call.tokens, call.usd) {
        (None, None) => "without a bound".to_owned(),
        (Some(tokens), None) => format!("up to {tokens} tokens"),
        (None, Some(usd)) => format!("up to {usd} dollars"),
        (Some(tokens), Some(usd)) => format!("up to {}", amount(tokens, usd)),
    };
    format!("call {} ({state}, {bound})", call.hold.0)
}

fn of_whole(call: &WholeCall) -> String {
    format!("call {} ({})", call.hold.0, amount(call.tokens, call.usd))
}

fn amount(tokens: u64, usd: Usd) -> String {
    format!("{tokens} tokens, {usd} dollars")
}

#[cfg(test)]
mod tests;
