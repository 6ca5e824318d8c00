//! `tuition audit`: where every call went, as a table or as the pinned JSON, and the proof that it adds up.
//!
//! Must not change the record. Invariant: figures come from the statement alone; nothing is added up here.

use clap::Args;
use serde::Deserialize as _;
use serde_json::Value;
use tuition_ledger::{By, Cause, Day, Timestamp, View};

use crate::args::Globals;
use crate::open::clock;
use crate::reconcile::{self, Days, ReconcileArgs};
use crate::seal::{self, SealArgs};
use crate::words::{Exit, Trouble};
use crate::{print, record};

/// The statement.
#[derive(Debug, Default, Args)]
pub(crate) struct AuditArgs {
    /// Adds up by these: teacher, run, key, model, day.
    #[arg(long, value_delimiter = ',', value_name = "BY")]
    by: Vec<By>,
    /// Only calls made at or after this day or moment (UTC), such as 2026-11-01 or 2026-11-01T12:00:00Z.
    #[arg(long, value_parser = moment, value_name = "T")]
    since: Option<Timestamp>,
    /// Only calls made before this day or moment.
    #[arg(long, value_parser = moment, value_name = "T")]
    until: Option<Timestamp>,
    /// Prints the rows of `--by` (or the budgets) as CSV.
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// Checks the chain of entries, both folds and every answer; lists every discrepancy.
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    sealing: SealArgs,
    #[command(flatten)]
    reconcile: ReconcileArgs,
}

pub(crate) fn run(args: &AuditArgs, globals: &Globals) -> Result<Exit, Trouble> {
    if args.sealing.are_given() {
        return seal::run(&args.sealing, globals);
    }
    if let Some(file) = &args.reconcile.file {
        let days = Days { since: args.since, until: args.until };
        return reconcile::run(file, &args.reconcile, days, args.csv, globals);
    }
    let store = globals.config()?.store;
    let (statement, heads) = match args.verify {
        true => record::proven(&store)?,
        false => record::read(&store)?,
    };
    let view = View { by: args.by.clone(), since: args.since, until: args.until, now: Some(clock()()) };
    let stated = record::stated(&statement, &heads, &view);
    if globals.json {
        print::json(&stated);
    } else if args.csv {
        let (heads, rows) = if args.by.is_empty() { budgets(&stated) } else { by(&stated, &args.by) };
        print::line(&print::csv(&heads, &rows));
    } else {
        print::line(&page(&stated, args));
    }
    Ok(if statement.discrepancies().is_empty() { Exit::Fine } else { Exit::Found })
}

/// Reads `2026-11-01`, `2026-11-01T12:30:00Z` or `2026-11-01T12:30:00.250Z`.
fn moment(text: &str) -> Result<Timestamp, String> {
    let wrong =
        || format!("`{text}` is neither a day (2026-11-01) nor a moment in UTC (2026-11-01T12:00:00Z)");
    let (day, time) = text.split_once(['T', ' ']).map_or((text, None), |(day, time)| (day, Some(time)));
    let start = day.parse::<Day>().map_err(|_| wrong())?.start();
    let Some(time) = time else { return Ok(start) };
    let time = time.strip_suffix('Z').ok_or_else(wrong)?;
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let parts: Vec<&str> = clock.split(':').collect();
    let number = |text: &str, below: u64, digits: std::ops::RangeInclusive<usize>| {
        let fine = digits.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u64>().ok().filter(|number| fine && *number < below).ok_or_else(wrong)
    };
    let [hours, minutes, seconds] = parts[..] else { return Err(wrong()) };
    let (hours, minutes, seconds) =
        (number(hours, 24, 2..=2)?, number(minutes, 60, 2..=2)?, number(seconds, 60, 2..=2)?);
    let places = u32::try_from(fraction.len()).map_err(|_| wrong())?;
    let ms = number(fraction, 1000, 1..=3)? * 10_u64.pow(3 - places);
    Ok(Timestamp(start.0 + ((hours * 60 + minutes) * 60 + seconds) * 1000 + ms))
}

type Rows = (Vec<&'static str>, Vec<Vec<String>>);

/// The whole statement for people.
fn page(stated: &Value, args: &AuditArgs) -> String {
    let mut parts = Vec::new();
    let totals = &stated["totals"];
    let rows = ["calls", "tokens", "usd"].map(|unit| {
        let mut row = vec![unit.to_owned()];
        row.extend(["settled", "reserved", "unknown"].map(|column| text(&totals[unit][column])));
        row
    });
    parts.push(print::table(&["", "settled", "held", "unknown"], &rows));
    let saved = &totals["saved"];
    parts.push(format!(
        "saved by the record: {} calls, {} dollars",
        text(&saved["calls"]),
        text(&saved["usd"])
    ));
    let (heads, rows) = budgets(stated);
    if !rows.is_empty() {
        parts.push(print::table(&heads, &rows));
    }
    if !args.by.is_empty() {
        let (heads, rows) = by(stated, &args.by);
        parts.push(print::table(&heads, &rows));
    }
    let (heads, rows) = unknown(stated);
    if !rows.is_empty() {
        parts.push(format!(
            "unknown calls, counted in full until `tuition resolve` closes them:\n{}",
            print::table(&heads, &rows)
        ));
    }
    for overrun in list(stated, "overruns") {
        parts.push(format!(
            "overrun: call {} cost {} dollars, held were {}: the teacher charges above its stated bound",
            text(&overrun["hold"]),
            nanos(&overrun["fee"]["usd"]),
            nanos(&overrun["held"]["usd"])
        ));
    }
    let discrepancies = list(stated, "discrepancies");
    for found in discrepancies {
        parts.push(format!("discrepancy in entry {}: {}", text(&found["entry"]), text(&found["what"])));
    }
    let entries = text(&stated["entries"]);
    if discrepancies.is_empty() {
        parts.push(match args.verify {
            true => format!("{entries} entries verified: the chain holds, and both folds agree"),
            false => format!("{entries} entries"),
        });
    }
    parts.join("\n\n")
}

/// A row for each unit that a budget limits.
pub(crate) fn budgets(stated: &Value) -> Rows {
    let heads = vec!["budget", "covers", "unit", "limit", "settled", "held", "unknown", "left"];
    let mut rows = Vec::new();
    for budget in list(stated, "budgets") {
        for unit in ["calls", "tokens", "usd"] {
            if budget["limit"][unit].is_null() {
                continue;
            }
            let mut row = vec![text(&budget["name"]), covers(budget), unit.to_owned()];
            row.extend(
                ["limit", "settled", "reserved", "unknown", "left"].map(|column| text(&budget[column][unit])),
            );
            rows.push(row);
        }
    }
    (heads, rows)
}

fn covers(budget: &Value) -> String {
    let part = |name: &str| Some(format!("{name} {}", budget["scope"][name].as_str()?));
    let parts: Vec<String> = ["teacher", "run", "key"].into_iter().filter_map(part).collect();
    let covered = if parts.is_empty() { "everything".to_owned() } else { parts.join(", ") };
    match budget["period"].as_str() {
        None | Some("") => covered,
        Some(period) => format!("{covered}, {period}"),
    }
}

fn by(stated: &Value, by: &[By]) -> Rows {
    const FIGURES: [(&str, &str, &str); 10] = [
        ("calls", "calls", "settled"),
        ("held", "calls", "reserved"),
        ("unknown", "calls", "unknown"),
        ("tokens", "tokens", "settled"),
        ("usd", "usd", "settled"),
        ("usd held", "usd", "reserved"),
        ("usd unknown", "usd", "unknown"),
        ("known", "served", "known"),
        ("followed", "served", "followed"),
        ("refused", "served", "refused"),
    ];
    let names = by.iter().map(|by| by.name());
    let heads = names.clone().chain(FIGURES.iter().map(|(head, ..)| *head)).collect();
    let row = |row: &Value| {
        let labels = names.clone().map(|name| row[name].as_str().unwrap_or("-").to_owned());
        labels.chain(FIGURES.iter().map(|(_, unit, column)| text(&row[*unit][*column]))).collect()
    };
    (heads, list(stated, "by").iter().map(row).collect())
}

fn unknown(stated: &Value) -> Rows {
    let heads = vec!["call", "at", "teacher", "run", "model", "calls", "usd", "why"];
    let row = |call: &Value| {
        let mut cells = ["id", "at", "teacher", "run", "model", "calls", "usd"]
            .map(|column| match &call[column] {
                Value::Null => "-".to_owned(),
                value => text(value),
            })
            .to_vec();
        cells.push(why(&call["cause"]));
        cells
    };
    (heads, list(stated, "unknown").iter().map(row).collect())
}

/// Why nobody knows whether the call was billed.
fn why(cause: &Value) -> String {
    let Ok(cause) = Cause::deserialize(cause) else { return text(cause) };
    match cause {
        Cause::NotConnected => "no connection came about".to_owned(),
        Cause::Status(status) => format!("the teacher answered {status}"),
        Cause::TimedOut => "no complete answer in time".to_owned(),
        Cause::BrokenOff => "the connection broke off".to_owned(),
        Cause::Malformed => "the answer was malformed".to_owned(),
        Cause::TooLarge => "the answer was too large".to_owned(),
        Cause::Crashed => "tuition ended while it was open".to_owned(),
        Cause::Abandoned => "given up before anything was sent".to_owned(),
    }
}

fn list<'a>(stated: &'a Value, name: &str) -> &'a [Value] {
    stated[name].as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Nano-dollars as dollars.
fn nanos(value: &Value) -> String {
    value.as_u64().map_or_else(|| text(value), |nanos| tuition_ledger::Usd::from_nanos(nanos).to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn moments_are_read_exactly() {
        let day = "2026-11-01".parse::<Day>().unwrap().start().0;
        for (text, expected) in [
            ("2026-11-01", Some(day)),
            ("2026-11-01T00:00:00Z", Some(day)),
            ("2026-11-01T01:02:03.5Z", Some(day + 3_723_500)),
            ("2026-11-01T01:02:03.050Z", Some(day + 3_723_050)),
            ("2026-11-01T24:00:00Z", None),
            ("2026-11-01T01:02:03", None),
            ("2026-11-01T01:02Z", None),
            ("2026-11-01T01:02:03.1234Z", None),
            ("2026-11-01T+1:02:03Z", None),
            ("yesterday", None),
        ] {
            assert_eq!(moment(text).ok().map(|at| at.0), expected, "{text}");
        }
    }

    #[test]
    fn a_statement_is_a_page() {
        let part = |calls: u64, usd: &str| json!({"calls": calls, "tokens": 10 * calls, "usd": usd});
        let unit = |settled: Value, unknown: Value| json!({"settled": settled, "reserved": settled, "unknown": unknown});
        let sums = json!({
            "calls": unit(json!(3), json!(1)), "tokens": unit(json!(30), json!(10)),
            "usd": unit(json!("0.000000300"), json!("0.000000100")),
        });
        let mut totals = sums.clone();
        totals["saved"] = json!({"calls": 7, "usd": "0.000000700"});
        let mut row = sums;
        row["run"] = json!(null);
        row["model"] = json!("m");
        row["served"] = json!({"known": 5, "followed": 2, "refused": 9});
        let stated = json!({
            "totals": totals,
            "budgets": [{
                "name": "pilot", "scope": {"teacher": null, "run": "r", "key": null}, "limit": {"calls": 10},
                "settled": part(3, "0"), "reserved": part(3, "0"), "unknown": part(1, "0"), "left": {"calls": 3},
            }],
            "by": [row],
            "unknown": [{"id": 4, "at": "2026-11-01T00:00:00.000Z", "teacher": "t", "run": null, "model": "m",
                "calls": 1, "tokens": 10, "usd": "0.000000100", "cause": {"Status": 500}, "keys": []}],
            "overruns": [{"hold": 2, "held": {"calls": 1, "tokens": 1, "usd": 5}, "fee": {"calls": 1, "tokens": 1, "usd": 7}}],
            "discrepancies": [{"entry": 9, "what": "the shares of hold 2 do not add up to its fee"}],
            "entries": 12,
        });
        let args = |verify| AuditArgs { by: vec![By::Run, By::Model], verify, ..AuditArgs::default() };
        insta::assert_snapshot!(page(&stated, &args(false)), @r"
                    settled         held      unknown
        calls             3            3            1
        tokens           30           30           10
        usd     0.000000300  0.000000300  0.000000100

        saved by the record: 7 calls, 0.000000700 dollars

        budget  covers  unit   limit  settled  held  unknown  left
        pilot   run r   calls     10        3     3        1     3

        run  model  calls  held  unknown  tokens          usd     usd held  usd unknown  known  followed  refused
          -  m          3     3        1      30  0.000000300  0.000000300  0.000000100      5         2        9

        unknown calls, counted in full until `tuition resolve` closes them:
        call  at                        teacher  run  model  calls          usd  why
           4  2026-11-01T00:00:00.000Z  t          -  m          1  0.000000100  the teacher answered 500

        overrun: call 2 cost 0.000000007 dollars, held were 0.000000005: the teacher charges above its stated bound

        discrepancy in entry 9: the shares of hold 2 do not add up to its fee
        ");
        let mut clean = stated.clone();
        for name in ["unknown", "overruns", "discrepancies", "by", "budgets"] {
            clean[name] = json!([]);
        }
        insta::assert_snapshot!(page(&clean, &AuditArgs { by: vec![], ..args(true) }), @r"
                    settled         held      unknown
        calls             3            3            1
        tokens           30           30           10
        usd     0.000000300  0.000000300  0.000000100

        saved by the record: 7 calls, 0.000000700 dollars

        12 entries verified: the chain holds, and both folds agree
        ");
        let (heads, rows) = by(&stated, &[By::Run]);
        insta::assert_snapshot!(print::csv(&heads, &rows), @r"
        run,calls,held,unknown,tokens,usd,usd held,usd unknown,known,followed,refused
        -,3,3,1,30,0.000000300,0.000000300,0.000000100,5,2,9
        ");
    }
}
