//! `tuition cache list|show|forget`: the recorded answers.
//!
//! Must not change the record, but for `forget`, which the store does. Invariant: of several answers under one key the one
//! that is served is shown.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tuition_ledger::{OpenError, QueryKey, Recorded, records};

use crate::args::Globals;
use crate::config::Config;
use crate::open;
use crate::print;
use crate::words::{Exit, Trouble};

/// How much of a question a list shows.
const SHOWN: usize = 60;

/// Recorded answers.
#[derive(Debug, Args)]
pub(crate) struct CacheArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Lists recorded answers, the newest last.
    List {
        /// Only those that this run paid for.
        #[arg(long)]
        run: Option<String>,
        /// Only those of this teacher.
        #[arg(long)]
        teacher: Option<String>,
        /// Only those of this model.
        #[arg(long)]
        model: Option<String>,
        /// At most so many, the newest.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Shows one recorded answer with its question.
    Show {
        /// Its key, 64 hex digits.
        key: QueryKey,
    },
    /// Erases the answers under one key, question and all. What they cost stays in the record; the same question is
    /// bought anew.
    Forget {
        /// Its key, 64 hex digits.
        key: QueryKey,
        /// Why; it is kept in the record.
        #[arg(long, value_name = "TEXT", default_value = "")]
        why: String,
    },
}

pub(crate) async fn run(args: CacheArgs, globals: &Globals) -> Result<Exit, Trouble> {
    let config = globals.config()?;
    match args.what {
        What::List { run, teacher, model, limit } => {
            let found = records(&config.store)?;
            let wanted = |recorded: &Recorded| {
                run.as_ref().is_none_or(|run| recorded.who.run.as_ref() == Some(run))
                    && teacher.as_ref().is_none_or(|teacher| recorded.who.teacher == *teacher)
                    && model.as_ref().is_none_or(|model| recorded.record.model == *model)
            };
            // The last one under a key is the one that is served.
            let mut rows = BTreeMap::new();
            for recorded in found {
                let recorded = recorded.map_err(OpenError::from)?;
                if wanted(&recorded) {
                    rows.insert(recorded.record.key, (recorded.number, row(&recorded)));
                }
            }
            let mut rows: Vec<(u64, Value)> = rows.into_values().collect();
            rows.sort_by_key(|(number, _)| *number);
            let all = rows.len();
            let rows: Vec<Value> =
                rows.split_off(all.saturating_sub(limit)).into_iter().map(|(_, row)| row).collect();
            match globals.json {
                true => print::json(&json!({"answers": rows, "total": all})),
                false => print::line(&list(&rows, all)),
            }
            Ok(Exit::Fine)
        }
        What::Show { key } => {
            let mut last = None;
            for recorded in records(&config.store)? {
                let recorded = recorded.map_err(OpenError::from)?;
                if recorded.record.key == key {
                    last = Some(recorded);
                }
            }
            let Some(recorded) = last else { return Ok(missing(&key, globals.json)) };
            match globals.json {
                true => print::json(&show(&recorded)),
                false => print::line(&pretty(&show(&recorded))),
            }
            Ok(Exit::Fine)
        }
        What::Forget { key, why } => forget(&config, key, why, globals.json).await,
    }
}

/// Says that there is no such answer.
fn missing(key: &QueryKey, as_json: bool) -> Exit {
    let text = format!("no answer is recorded under `{key}`");
    print::aside(&text);
    if as_json {
        print::json(&json!({"error": {"message": text}, "exit": Exit::Found.code()}));
    }
    Exit::Found
}

/// Has the store erase what is recorded under `key`, whoever owns it.
async fn forget(config: &Config, key: QueryKey, why: String, as_json: bool) -> Result<Exit, Trouble> {
    let opened = open::open(config).await?;
    let done = match opened.store.find(&[key]).await {
        Ok(found) if found.iter().all(Option::is_none) => Ok(false),
        Ok(_) => opened.store.forget(key, why.clone()).await.map(|()| true),
        Err(error) => Err(error),
    };
    open::close(opened).await?;
    if !done? {
        return Ok(missing(&key, as_json));
    }
    match as_json {
        true => print::json(&json!({"key": key, "forgotten": true, "why": why})),
        false => print::line(&format!(
            "what was recorded under {key} is erased; what it cost stays in the record, and the same question is bought anew"
        )),
    }
    Ok(Exit::Fine)
}

fn row(recorded: &Recorded) -> Value {
    let record = &recorded.record;
    json!({
        "key": record.key,
        "at": record.at.to_string(),
        "teacher": recorded.who.teacher,
        "run": recorded.who.run,
        "model": record.model,
        "operation": record.query.operation,
        "calls": record.share.calls,
        "tokens": record.share.tokens,
        "usd": record.cost().map(|usd| usd.to_string()),
        "question": beginning(&record.query.input),
    })
}

fn show(recorded: &Recorded) -> Value {
    let record = &recorded.record;
    let mut shown = row(recorded);
    shown["dialect"] = json!(record.query.dialect);
    shown["revision"] = json!(record.query.revision);
    shown["sample"] = json!(record.query.sample);
    shown["headers"] = json!(record.query.headers);
    shown["media"] = json!(record.media);
    shown["question"] = json_or_text(record.query.input.as_bytes());
    shown["answer"] = json_or_text(&record.answer.body);
    shown["signals"] = json!(record.answer.signals);
    shown
}

/// A body as JSON where it is some, else as text.
fn json_or_text(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_else(|_| String::from_utf8_lossy(body).into_owned().into())
}

fn beginning(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().count() > SHOWN {
        shown.push('…');
    }
    shown
}

fn list(rows: &[Value], all: usize) -> String {
    let heads = ["key", "at", "teacher", "run", "model", "usd", "question"];
    let cell = |value: &Value| match value {
        Value::Null => "-".to_owned(),
        value => value.as_str().map_or_else(|| value.to_string(), str::to_owned),
    };
    let cells: Vec<Vec<String>> =
        rows.iter().map(|row| heads.iter().map(|head| cell(&row[*head])).collect()).collect();
    format!("{}\n\n{} of {all} answers", print::table(&heads, &cells), rows.len())
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string())
}
