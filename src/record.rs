//! The record, read beside whoever owns the store: a statement of it, and what its budgets stand at.
//!
//! Must not lock or change anything. Invariant: what is read is durable; damage is an error (or, where it was asked for,
//! a discrepancy), never an early end.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::ScopedJoinHandle;

use serde_json::{Value, json};
use tuition_ledger::{
    Amount, Asked, Book, Discrepancy, Erasures, Gap, Head, OpenError, Present, ReadError, Settled, Standing,
    Statement, StoreUrl, Survey, Timestamp, Unit, Usd, View, read_entries, survey_entries,
};

use crate::config::Config;
use crate::open;
use crate::words::Trouble;

/// What was opened; none where there is no store yet.
fn present<E>(opened: Result<E, OpenError>) -> Result<Option<E>, OpenError> {
    match opened {
        Ok(opened) => Ok(Some(opened)),
        Err(OpenError::Absent(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The statement of the whole record.
///
/// # Errors
/// The record cannot be read.
pub(crate) fn statement(store: &StoreUrl) -> Result<Statement, OpenError> {
    read(store).map(|(statement, _)| statement)
}

/// The statement of the whole record, and where the chain of each writer ends.
///
/// # Errors
/// The record cannot be read.
pub(crate) fn read(store: &StoreUrl) -> Result<(Statement, Vec<Head>), OpenError> {
    let mut statement = Statement::default();
    let Some(mut entries) = present(read_entries(store))? else { return Ok((statement, Vec::new())) };
    for read in &mut entries {
        statement.add(&read?.entry);
    }
    Ok((statement, entries.heads()))
}

/// The statement as JSON, with the heads of the chains.
pub(crate) fn stated(statement: &Statement, heads: &[Head], view: &View) -> Value {
    let mut stated = statement.to_json(view);
    let head = |head: &Head| json!({"writer": head.writer, "entries": head.entries, "chain": hex::encode(head.chain)});
    stated["heads"] = heads.iter().map(head).collect();
    stated
}

/// A statement whose every claim was checked: chain and checksums, the book beside the statement, every answer under
/// its key. What does not hold is among its discrepancies, every damage one; reading goes on behind it.
///
/// # Errors
/// The record cannot be opened at all.
pub(crate) fn verified(store: &StoreUrl) -> Result<Statement, OpenError> {
    proven(store).map(|(statement, _)| statement)
}

/// As [`verified`], with the heads of the chains after the last entry that was read; none where there is no store.
///
/// # Errors
/// The record cannot be opened at all.
pub(crate) fn proven(store: &StoreUrl) -> Result<(Statement, Vec<Head>), OpenError> {
    match present(survey_entries(store))? {
        None => Ok((Statement::default(), Vec::new())),
        // Answers are unpacked and hashed in a thread of their own: that is half of the work.
        Some(mut entries) => Ok(std::thread::scope(|threads| {
            let (answers, settled) = sync_channel(WAITING_MAX);
            let checked = threads.spawn(|| settled.into_iter().flatten().flat_map(check).collect());
            let statement = fold(store, &mut entries, answers, checked);
            (statement, entries.heads())
        })),
    }
}

/// Exchanges whose answers are handed to be checked at a time, and how many such hands may wait.
const HANDED: usize = 256;
const WAITING_MAX: usize = 4;

/// Both folds in one pass; what is settled goes to `answers`, and what comes of that from `checked`.
fn fold(
    store: &StoreUrl,
    entries: &mut Survey,
    answers: SyncSender<Vec<Settled>>,
    checked: ScopedJoinHandle<'_, Vec<Discrepancy>>,
) -> Statement {
    let (mut statement, mut book, mut asked) = (Statement::default(), Book::default(), Asked::default());
    let (mut number, mut hand, mut erasures) = (0, Vec::new(), Erasures::default());
    for read in entries {
        let read = match read {
            Ok(read) => read,
            Err(error) => {
                statement.report(damage(number + 1, &error));
                continue;
            }
        };
        number = read.number;
        statement.expect(number);
        statement.add(&read.entry);
        if let Err(error) = book.apply(&read.entry) {
            statement
                .report_unfit(Discrepancy { entry: number, what: format!("the book refuses it: {error}") });
        }
        erasures.take(&read);
        // What is settled is opened in the other thread; the rest is little.
        if !asked.settles(&read) {
            read.faults().iter().for_each(|fault| statement.report(damage(number, fault)));
        }
        match asked.take(read) {
            Ok(settled) => hand.extend(settled),
            Err(error) => statement.report_unfit(damage(number, &error)),
        }
        if hand.len() >= HANDED {
            // It ends only after this: if it panicked, joining says so.
            let _ = answers.send(std::mem::take(&mut hand));
        }
    }
    let _ = answers.send(hand);
    drop(answers);
    match statement.gap() {
        // Two folds of what is left need not agree: each meets what is missing in its own way.
        Some(gap) => statement.report(incomplete(gap)),
        None => {
            let stated = statement.to_json(&View::default());
            for what in differences(&book.present(Timestamp::default()), &stated) {
                statement.report(Discrepancy { entry: number, what });
            }
        }
    }
    erasures.unexplained(store).into_iter().for_each(|found| statement.report(found));
    match checked.join() {
        Ok(found) => found.into_iter().for_each(|found| statement.report(found)),
        Err(panic) => std::panic::resume_unwind(panic),
    }
    statement.sort();
    statement
}

/// What does not hold of the answers to an exchange.
fn check(settled: Settled) -> Vec<Discrepancy> {
    match settled.unpack() {
        Ok(recorded) => recorded
            .into_iter()
            .filter(|recorded| recorded.record.query.key() != recorded.record.key)
            .map(|recorded| {
                let what = format!("the answer under key {} is to another question", recorded.record.key);
                Discrepancy { entry: recorded.number, what }
            })
            .collect(),
        Err(error) => match settled.faults() {
            faults if faults.is_empty() => vec![damage(0, &error)],
            faults => faults.iter().map(|fault| damage(0, fault)).collect(),
        },
    }
}

fn incomplete(gap: Gap) -> Discrepancy {
    let Gap { behind, unlisted } = gap;
    let mut what = format!("figures behind entry {behind} are not complete");
    if unlisted > 0 {
        what = format!("{what}: what follows from that ({unlisted} findings) is not listed");
    }
    Discrepancy { entry: behind + 1, what }
}

fn damage(entry: u64, error: &ReadError) -> Discrepancy {
    Discrepancy { entry: error.entry().unwrap_or(entry), what: error.to_string() }
}

/// Where book and statement, which share no code, do not agree.
fn differences(present: &Present, statement: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |what: &str, unit: Unit, figure: u64, stated: &Value| {
        let (figure, stated) = match unit {
            Unit::Usd => (Usd::from_nanos(figure).to_string(), text(stated)),
            Unit::Calls | Unit::Tokens => (figure.to_string(), text(stated)),
        };
        if figure != stated {
            found.push(format!("{what}: the book has {figure} {}, the statement {stated}", name(unit)));
        }
    };
    let columns = |standing: &Standing| {
        [("settled", standing.settled), ("reserved", standing.reserved), ("unknown", standing.unknown)]
    };
    for unit in Unit::ALL {
        for (column, amount) in columns(&present.total) {
            let stated = &statement["totals"][name(unit)][column];
            compare(&format!("all {column}"), unit, figure(unit, &amount), stated);
        }
        for (budget, standing) in &present.budgets {
            let stated = statement["budgets"].as_array().into_iter().flatten();
            let stated = stated.into_iter().find(|stated| stated["name"] == budget.name.as_str());
            for (column, amount) in columns(standing) {
                let stated = stated.map_or(&Value::Null, |stated| &stated[column][name(unit)]);
                compare(&format!("budget `{}`, {column}", budget.name), unit, figure(unit, &amount), stated);
            }
        }
    }
    if present.budgets.len() != statement["budgets"].as_array().map_or(0, Vec::len) {
        found.push("the book and the statement know other budgets".to_owned());
    }
    found
}

fn figure(unit: Unit, amount: &Amount) -> u64 {
    unit.of(amount)
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The unit's name in a statement.
fn name(unit: Unit) -> &'static str {
    match unit {
        Unit::Calls => "calls",
        Unit::Tokens => "tokens",
        Unit::Usd => "usd",
    }
}

/// The budgets of a statement of the configured store.
///
/// # Errors
/// The record cannot be read.
pub(crate) fn budgets(config: &Config) -> Result<Vec<Value>, Trouble> {
    let now = View { now: Some(open::clock()()), ..View::default() };
    let statement = statement(&config.store)?.to_json(&now);
    Ok(statement["budgets"].as_array().cloned().unwrap_or_default())
}
