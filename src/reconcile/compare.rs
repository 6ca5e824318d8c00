//! A bill beside the statement: what differs by day and model, and which calls would explain it.
//!
//! Must not read or print anything. Invariant: a row adds up only if every figure is equal, but for the rounding that
//! docs/audit.md states; what explains a difference never makes it add up.

use std::collections::{BTreeMap, BTreeSet};

use tuition_ledger::{Bought, Day, Usd};

use super::bill::{ALL_MODELS, Bill, Billed};
use super::form::Column;
use super::number::{PLACES, UNITS_A_NANO};

/// What a figure comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Finding {
    /// Both are the same.
    Equal,
    /// They differ by what rounding does.
    Rounding,
    /// More was billed than recorded, and calls that are unknown or under way would explain it.
    Open,
    /// The difference lies within calls that were charged their whole hold.
    Whole,
    /// More dollars were billed, and calls are recorded without a price.
    Unpriced,
    /// More was billed than recorded, and nothing explains it.
    Unexplained,
    /// More was recorded than billed.
    Overcounted,
}

impl Finding {
    /// Its name in JSON.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Rounding => "rounding",
            Self::Open => "unknown_calls",
            Self::Whole => "whole_holds",
            Self::Unpriced => "no_price",
            Self::Unexplained => "unexplained",
            Self::Overcounted => "not_billed",
        }
    }

    fn adds_up(self) -> bool {
        matches!(self, Self::Equal | Self::Rounding)
    }
}

/// One figure on both sides; dollars in units of 10⁻¹⁸.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Figure {
    pub(super) column: Column,
    pub(super) bill: u128,
    pub(super) recorded: u128,
    pub(super) finding: Finding,
}

/// One day and model, or all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// The bill's other names of the model.
    pub(super) names: BTreeSet<String>,
    pub(super) figures: Vec<Figure>,
    /// The record's side, with the calls that explain.
    pub(super) bought: Bought,
}

impl Row {
    /// Whether every figure does.
    pub(super) fn adds_up(&self) -> bool {
        self.figures.iter().all(|figure| figure.finding.adds_up())
    }
}

/// Everything that was held side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Comparison {
    pub(super) rows: BTreeMap<(Day, String), Row>,
    pub(super) totals: Row,
}

impl Comparison {
    /// Whether every row does; rows whose errors cancel out do not.
    pub(super) fn adds_up(&self) -> bool {
        self.rows.values().all(Row::adds_up)
    }
}

/// How the two sides are made comparable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Terms {
    /// Models that count as another, on either side.
    pub(super) renamed: BTreeMap<String, String>,
    /// To how many places the bill's dollars were rounded; none: they are exact.
    pub(super) places: Option<u8>,
}

impl Terms {
    fn rename<'a>(&'a self, model: &'a str) -> &'a str {
        self.renamed.get(model).map_or(model, String::as_str)
    }
}

type Rows<T> = BTreeMap<(Day, String), T>;

/// Holds `bill` against what was bought.
pub(super) fn compare(bill: &Bill, bought: Rows<Bought>, terms: &Terms) -> Comparison {
    let nameless = bill.rows.keys().any(|(_, model)| model == ALL_MODELS);
    let mut recorded: Rows<Bought> = BTreeMap::new();
    for ((day, model), row) in bought {
        let model = if nameless { ALL_MODELS } else { terms.rename(&model) };
        recorded.entry((day, model.to_owned())).or_default().absorb(&row);
    }
    let models: BTreeSet<&str> = recorded.keys().map(|(_, model)| model.as_str()).collect();
    let mut billed: Rows<Billed> = BTreeMap::new();
    for ((day, name), row) in &bill.rows {
        let model = recorded_name(terms.rename(name), &models);
        let sum = billed.entry((*day, model.to_owned())).or_default();
        sum.absorb(row);
        if model != name {
            sum.names.insert(name.clone());
        }
    }
    let keys: BTreeSet<_> = recorded.keys().chain(billed.keys()).cloned().collect();
    let (mut all_billed, mut all_recorded) = (Billed::default(), Bought::default());
    let mut rows = BTreeMap::new();
    for key in keys {
        let (there, here) =
            (billed.remove(&key).unwrap_or_default(), recorded.remove(&key).unwrap_or_default());
        all_billed.absorb(&there);
        all_recorded.absorb(&here);
        rows.insert(key, row(&bill.columns, there, here, terms));
    }
    all_billed.names.clear();
    Comparison { rows, totals: row(&bill.columns, all_billed, all_recorded, terms) }
}

/// What the record calls the model of a bill: a bill says `gpt-4o-2024-08-06` or `claude-haiku-4-5-20251001` where the
/// model that was asked has no date.
fn recorded_name<'a>(name: &'a str, models: &BTreeSet<&str>) -> &'a str {
    if models.contains(name) {
        return name;
    }
    let undated = [11, 9].into_iter().find_map(|length| {
        let (model, date) = name.split_at_checked(name.len().checked_sub(length)?)?;
        let digits: String = date.strip_prefix('-')?.split('-').collect();
        let dashes = date.bytes().filter(|byte| *byte == b'-').count();
        let is_date = digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_digit());
        (is_date && [1, 3].contains(&dashes)).then_some(model)
    });
    undated.filter(|model| models.contains(model)).unwrap_or(name)
}

fn row(columns: &BTreeSet<Column>, billed: Billed, bought: Bought, terms: &Terms) -> Row {
    let figure = |column: &Column| {
        let bill = billed.figures.get(column).copied().unwrap_or_default();
        let recorded = recorded(&bought, *column);
        let rounds = *column == Column::Usd && is_rounding(bill, recorded, &billed, &bought, terms);
        let finding = if rounds && bill != recorded {
            Finding::Rounding
        } else {
            finding(*column, bill, recorded, &bought)
        };
        Figure { column: *column, bill, recorded, finding }
    };
    let figures = columns.iter().map(figure).collect();
    Row { names: billed.names, figures, bought }
}

/// The record's figure, as the column of a bill counts it.
fn recorded(bought: &Bought, column: Column) -> u128 {
    match column {
        Column::Calls => u128::from(bought.requests),
        Column::Input => bought.input + bought.cached_input + bought.cache_write,
        Column::Fresh => bought.input,
        Column::Cached => bought.cached_input,
        Column::Written => bought.cache_write,
        Column::Output => bought.output,
        Column::Tokens => bought.tokens,
        Column::Usd => bought.nanos * UNITS_A_NANO,
    }
}

/// Whether the dollars differ by rounding alone: the bill's, to the places that it is said to have, or the record's,
/// which rounds each fee up to a nano-dollar where the bill has finer amounts.
fn is_rounding(bill: u128, recorded: u128, billed: &Billed, bought: &Bought, terms: &Terms) -> bool {
    let finer = billed.finer
        && recorded.checked_sub(bill).is_some_and(|over| over < u128::from(bought.requests) * UNITS_A_NANO);
    let coarser = terms.places.is_some_and(|places| {
        let cell = 10_u128.pow(PLACES.saturating_sub(u32::from(places)));
        bill.abs_diff(recorded) < u128::from(billed.usd_cells) * cell
    });
    finer || coarser
}

fn finding(column: Column, bill: u128, recorded: u128, bought: &Bought) -> Finding {
    let bounds = Bounds::of(bought, column);
    if bill == recorded {
        Finding::Equal
    } else if let Some(under) = bill.checked_sub(recorded) {
        let within = |more: u128| bounds.open.is_none_or(|open| under <= open + more);
        if !bought.open.is_empty() && within(0) {
            Finding::Open
        } else if bounds.uncounted > 0 && within(bounds.uncounted) {
            Finding::Whole
        } else if column == Column::Usd && bought.unpriced > 0 {
            Finding::Unpriced
        } else {
            Finding::Unexplained
        }
    } else if recorded - bill <= bounds.overcounted {
        Finding::Whole
    } else {
        Finding::Overcounted
    }
}

/// How far the record may be from the truth in one column.
struct Bounds {
    /// What open calls may have added to the bill; none where nothing bounds them.
    open: Option<u128>,
    /// What calls that were charged whole may have used of this kind of token, of which the record counts none.
    uncounted: u128,
    /// What calls that were charged whole may have been charged too much.
    overcounted: u128,
}

impl Bounds {
    fn of(bought: &Bought, column: Column) -> Self {
        let usd = |usd: Usd| u128::from(usd.nanos()) * UNITS_A_NANO;
        let tokens: u128 = bought.whole.iter().map(|call| u128::from(call.tokens)).sum();
        let (uncounted, overcounted) = match column {
            Column::Calls => (0, 0),
            Column::Tokens => (0, tokens),
            Column::Usd => (0, bought.whole.iter().map(|call| usd(call.usd)).sum()),
            Column::Input | Column::Fresh | Column::Cached | Column::Written | Column::Output => (tokens, 0),
        };
        let open = bought.open.iter().map(|call| match column {
            Column::Calls => Some(1),
            Column::Usd => call.usd.map(usd),
            _ => call.tokens.map(u128::from),
        });
        Self { open: open.sum(), uncounted, overcounted }
    }
}

#[cfg(test)]
mod tests;
