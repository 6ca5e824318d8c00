//! What is exported: the columns with their types, and the rows of the record.
//!
//! Must not know file formats. Invariant: a row has a cell for each column, in the order of the columns; money stays whole
//! nano-dollars, and of several answers under a key the one that is served is the one that is exported.

use std::collections::{BTreeMap, HashMap};

use tuition_ledger::{
    Amount, Exchange, Fact, HoldId, OpenError, QueryKey, Recorded, Signal, StoreUrl, Timestamp, Usd, Who,
    read_entries, records,
};

use crate::words::Trouble;

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Text in UTF-8.
    Text,
    /// JSON as text.
    Json,
    /// Bytes.
    Bytes,
    /// Milliseconds since 1970, UTC.
    Time,
    /// A count.
    Number,
    /// Dollars with nine places.
    Usd,
}

/// A column; any cell of an optional one may be empty.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) optional: bool,
}

/// What stands in a row under one column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    Empty,
    Text(String),
    Bytes(Vec<u8>),
    Number(u64),
    Usd(Usd),
}

/// Cells in the order of the columns.
pub(super) type Row = Vec<Cell>;

/// Which rows are wanted; none set wants all.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) run: Option<String>,
    pub(super) teacher: Option<String>,
    pub(super) model: Option<String>,
}

const fn always(name: &'static str, kind: Kind) -> Column {
    Column { name, kind, optional: false }
}

const fn perhaps(name: &'static str, kind: Kind) -> Column {
    Column { name, kind, optional: true }
}

/// One row for each answer that is served.
pub(super) const ANSWERS: &[Column] = &[
    always("key", Kind::Text),
    always("at", Kind::Time),
    always("teacher", Kind::Text),
    always("revision", Kind::Text),
    perhaps("run", Kind::Text),
    perhaps("client", Kind::Text),
    always("model", Kind::Text),
    always("dialect", Kind::Text),
    always("operation", Kind::Text),
    always("sample", Kind::Number),
    always("question", Kind::Json),
    perhaps("answer", Kind::Text),
    perhaps("answer_bytes", Kind::Bytes),
    always("media", Kind::Text),
    perhaps("text", Kind::Text),
    always("calls", Kind::Number),
    always("tokens", Kind::Number),
    perhaps("usd", Kind::Usd),
];

/// One row for each entry.
pub(super) const ENTRIES: &[Column] = &[
    always("entry", Kind::Number),
    always("at", Kind::Time),
    always("fact", Kind::Text),
    perhaps("hold", Kind::Number),
    perhaps("teacher", Kind::Text),
    perhaps("run", Kind::Text),
    perhaps("client", Kind::Text),
    perhaps("model", Kind::Text),
    perhaps("calls", Kind::Number),
    perhaps("tokens", Kind::Number),
    perhaps("usd", Kind::Usd),
    always("detail", Kind::Json),
];

impl Wanted {
    fn wants(&self, who: &Who, model: &str) -> bool {
        self.run.as_ref().is_none_or(|run| who.run.as_ref() == Some(run))
            && self.teacher.as_ref().is_none_or(|teacher| who.teacher == *teacher)
            && self.model.as_ref().is_none_or(|wanted| wanted == model)
    }
}

/// About what a row takes in memory.
pub(super) fn bytes(row: &Row) -> usize {
    let cell = |cell: &Cell| match cell {
        Cell::Text(text) => text.len(),
        Cell::Bytes(bytes) => bytes.len(),
        Cell::Empty | Cell::Number(_) | Cell::Usd(_) => 0,
    };
    row.iter().map(|found| size_of::<Cell>() + cell(found)).sum()
}

/// Gives a row for each answer that is served, in the order in which they were settled.
///
/// # Errors
/// The record cannot be read, or `take` fails.
pub(super) fn answers(
    store: &StoreUrl,
    wanted: &Wanted,
    take: &mut dyn FnMut(Row) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    let mut served: HashMap<QueryKey, u64> = HashMap::new();
    for read in read_entries(store)? {
        let read = read.map_err(OpenError::from)?;
        if let Fact::Settled { items, .. } = &read.entry.fact {
            served.extend(items.iter().map(|item| (item.key, read.number)));
        }
    }
    for recorded in records(store)? {
        let recorded = recorded.map_err(OpenError::from)?;
        if served.get(&recorded.record.key) == Some(&recorded.number)
            && wanted.wants(&recorded.who, &recorded.record.model)
        {
            take(answer(recorded))?;
        }
    }
    Ok(())
}

fn answer(recorded: Recorded) -> Row {
    let (who, usd) = (recorded.who, recorded.record.cost());
    let record = recorded.record;
    let text = record.answer.signals.iter().find_map(|signal| match signal {
        Signal::Text { choice: 0, text, .. } => Some(text.clone()),
        _ => None,
    });
    let (body, bytes) = match String::from_utf8(record.answer.body.to_vec()) {
        Ok(text) => (Cell::Text(text), Cell::Empty),
        Err(error) => (Cell::Empty, Cell::Bytes(error.into_bytes())),
    };
    vec![
        Cell::Text(record.key.to_string()),
        Cell::Number(record.at.0),
        Cell::Text(who.teacher),
        Cell::Text(record.query.revision),
        perhaps_text(who.run),
        perhaps_text(who.key),
        Cell::Text(record.model),
        Cell::Text(record.query.dialect),
        Cell::Text(record.query.operation),
        Cell::Number(record.query.sample.into()),
        Cell::Text(record.query.input),
        body,
        bytes,
        Cell::Text(record.media),
        perhaps_text(text),
        Cell::Number(record.share.calls),
        Cell::Number(record.share.tokens),
        usd.map_or(Cell::Empty, Cell::Usd),
    ]
}

/// Gives a row for each entry; where runs, teachers or models are chosen, those of their calls.
///
/// # Errors
/// The record cannot be read, or `take` fails.
pub(super) fn entries(
    store: &StoreUrl,
    wanted: &Wanted,
    take: &mut dyn FnMut(Row) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    let everything = wanted.run.is_none() && wanted.teacher.is_none() && wanted.model.is_none();
    let mut open: BTreeMap<HoldId, (Exchange, Amount)> = BTreeMap::new();
    for read in read_entries(store)? {
        let read = read.map_err(OpenError::from)?;
        let fact = &read.entry.fact;
        if let Fact::Reserved { hold, exchange, amount, .. } = fact {
            open.insert(*hold, (exchange.clone(), *amount));
        }
        let called = fact.hold().and_then(|hold| open.get(&hold));
        if everything || called.is_some_and(|(exchange, _)| wanted.wants(&exchange.who, &exchange.model)) {
            take(entry(read.number, read.entry.at, fact, called))?;
        }
        if let Fact::Settled { hold, .. } | Fact::Released { hold, .. } | Fact::Resolved { hold, .. } = fact {
            open.remove(hold);
        }
    }
    Ok(())
}

fn entry(number: u64, at: Timestamp, fact: &Fact, called: Option<&(Exchange, Amount)>) -> Row {
    let who = called.map(|(exchange, _)| &exchange.who);
    let amount = match fact {
        Fact::Settled { fee, .. } => Some(*fee),
        _ => called.map(|(_, held)| *held),
    };
    let number_of = |figure: fn(&Amount) -> u64| {
        amount.as_ref().map_or(Cell::Empty, |amount| Cell::Number(figure(amount)))
    };
    vec![
        Cell::Number(number),
        Cell::Number(at.0),
        Cell::Text(fact.name().to_owned()),
        fact.hold().map_or(Cell::Empty, |hold| Cell::Number(hold.0)),
        perhaps_text(who.map(|who| who.teacher.clone())),
        perhaps_text(who.and_then(|who| who.run.clone())),
        perhaps_text(who.and_then(|who| who.key.clone())),
        perhaps_text(called.map(|(exchange, _)| exchange.model.clone())),
        number_of(|amount| amount.calls),
        number_of(|amount| amount.tokens),
        amount.map_or(Cell::Empty, |amount| Cell::Usd(amount.usd)),
        Cell::Text(serde_json::to_string(fact).expect("a fact has text keys only and cannot fail")),
    ]
}

fn perhaps_text(text: Option<String>) -> Cell {
    text.map_or(Cell::Empty, Cell::Text)
}
