//! `tuition demo`: the whole tour with a real teacher. Magika answers about files of this machine under a hard budget,
//! a byte student learns by comparison, and a baseline fitted to the same answers stands beside it.
//!
//! It must not know how any of it is done. Invariant: the held-out answers are bought under a budget of their own and
//! choose nothing; a finished demo is shown again without a call.

mod files;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tuition_ledger::{
    Budget, Limit, OpenError, OpenStore, Origin, Scope, StoreUrl, View, Window, records_of_run,
};
use tuition_trainer::acquire::{self, Pool, Stopped};
use tuition_trainer::data::record::{Reading, answered, set_aside};
use tuition_trainer::data::{Collected, Raw, files as sources};
use tuition_trainer::local::LocalTeacher;
use tuition_trainer::question::{Gives, Seen};
use tuition_trainer::{Input, Outcome, RunConfig, Spend, Split, baseline};

use crate::args::Globals;
use crate::config::Config;
use crate::interrupt::Interrupt;
use crate::purchase::{Asked, SEED};
use crate::setup::{self, Cache};
use crate::words::{Exit, Trouble};
use crate::{audit, open, print, purchase, record, teachers, train};

/// The run's settings; everything else is a default.
const RUN: &str = include_str!("demo/run.toml");
/// The run that learns, and its budget.
const LEARN: (&str, &str) = ("demo", "demo");
/// The run whose answers are held out, and its budget.
const TEST: (&str, &str) = ("demo/test", "demo-test");
/// Held-out answers.
const TEST_CALLS: usize = 1000;
/// Files looked at for each question: some are too short to ask about, some are copies of others.
const SPARE: f64 = 1.3;
/// Fewer questions than this teach nothing.
const FEWEST: usize = 100;
/// The revision of the teacher: its package's version.
const REVISION: &str = "1.0.3";
/// The output that is learnt from.
const OUTPUT: &str = "target_label";
/// What is written last into the run's folder.
const DONE: &str = "demo.json";

pub(crate) async fn run(globals: &Globals) -> Result<Exit, Trouble> {
    let config = globals.config()?;
    let run = RunConfig::parse(RUN, &[])
        .map_err(|source| Trouble::RunFile { file: PathBuf::from("the demo's own"), source })?;
    let folder = Path::new("runs").join(&run.name);
    if let Some(done) = finished(&config.store, &folder)? {
        show(globals, &config.store, &folder, &done)?;
        return Ok(Exit::Fine);
    }
    let cache = Cache::from_environment()?;
    let installing = {
        let cache = cache.clone();
        tokio::task::spawn_blocking(move || {
            setup::install(&cache, setup::driver_answers(), &mut print::aside)
        })
    };
    installing.await.map_err(|error| Trouble::failed(format!("the installation broke off: {error}")))??;
    let interrupt = Interrupt::listen(
        "stopping: what was asked is kept; the same command asks for the rest and trains anew",
    )?;
    let opened = open::open(&config).await?;
    let outcome = learn(globals, &config, &run, &cache, &folder, &opened, &interrupt).await;
    open::close(opened).await?;
    if !outcome? {
        print::aside("stopped: the same command asks for the rest and trains anew");
        return Ok(Exit::Fine);
    }
    let done = finished(&config.store, &folder)?.ok_or_else(|| Trouble::failed("the demo left no result"))?;
    show(globals, &config.store, &folder, &done)?;
    Ok(Exit::Fine)
}

/// Buys, trains, and writes the folder; false where it was interrupted.
async fn learn(
    globals: &Globals,
    config: &Config,
    run: &RunConfig,
    cache: &Cache,
    folder: &Path,
    opened: &OpenStore,
    interrupt: &Interrupt,
) -> Result<bool, Trouble> {
    open::apply(config, opened.store.as_ref()).await?;
    let calls = run.budget.answers();
    for ((run, budget), calls) in [(LEARN, calls), (TEST, TEST_CALLS)] {
        opened.store.limit(limit(run, budget, calls), Origin::Config).await?;
    }
    let runtime = teachers::runtime()?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let named =
        run.teacher.as_ref().ok_or_else(|| Trouble::failed("the demo's run file names no teacher"))?;
    let teacher = LocalTeacher::load(&named.name, &runtime, &cache.magika_model(), threads, None, None)?;
    let form = teacher.form(REVISION)?;
    let asked = Asked::here(teacher, form);
    let (window, classes) = sources::published(&cache.magika_config())?;

    print::aside("looking for files of many kinds on this machine");
    let collected = blocking(move || collect(&window, calls + TEST_CALLS)).await?;
    let pool = Pool::of(acquire::questions(&asked.form, collected)?, held_out(calls), SEED);
    if pool.learn.len() < FEWEST || pool.test.len() < FEWEST {
        return Err(Trouble::failed(format!(
            "the demo needs {FEWEST} files to learn from and {FEWEST} to be judged by; this machine has {} and {}",
            pool.learn.len(),
            pool.test.len()
        )));
    }
    let desk = open::desk(config, opened);
    let mut parts = Vec::new();
    for ((name, _), questions, calls) in [(LEARN, &pool.learn, calls), (TEST, &pool.test, TEST_CALLS)] {
        let questions = &questions[..calls.min(questions.len())];
        let purchase = purchase::buy(&asked.buyer(&desk, name), questions, interrupt, globals.json).await?;
        if purchase.stopped == Some(Stopped::Interrupted) {
            return Ok(false);
        }
        let reading = Reading {
            input: None,
            output: Some(OUTPUT.to_owned()),
            least_probability: named.least_probability,
            gives: Some(Gives::Probabilities),
            seen: Seen::Bytes,
            layers: vec![],
        };
        // A budget may have ended it before its last question.
        let answers = questions.iter().cloned().zip(purchase.records);
        let (asked, records): (Vec<_>, Vec<_>) =
            answers.filter_map(|(question, record)| record.map(|record| (question, record))).unzip();
        parts.push(answered(&asked, &records, &reading, Gives::Probabilities)?);
    }
    let [bought, test] = parts.try_into().map_err(|_| Trouble::failed("two parts were bought"))?;
    let (train, validation) = set_aside(bought, run.budget.validation, SEED);
    let split = Arc::new(Split { train, validation, test, classes, ..Split::default() });
    teach(globals, config, run, folder, &split, interrupt).await
}

fn limit(run: &str, name: &str, calls: usize) -> Budget {
    Budget {
        name: name.to_owned(),
        scope: Scope { run: Some(run.to_owned()), ..Scope::default() },
        limit: Limit { calls: u64::try_from(calls).ok(), ..Limit::default() },
        window: Window::Forever,
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of calls")]
fn held_out(calls: usize) -> f64 {
    TEST_CALLS as f64 / (calls + TEST_CALLS) as f64
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count of files"
)]
fn collect(window: &sources::Window, calls: usize) -> Collected {
    let chosen = files::choose(&files::places(), (calls as f64 * SPARE) as usize);
    let mut collected = Collected::default();
    for path in chosen {
        match window.of_file(&path) {
            Ok(Some(symbols)) => collected.inputs.push(Raw {
                place: path.display().to_string(),
                input: Input::Bytes(symbols),
                truth: None,
            }),
            Ok(None) | Err(_) => collected.skipped += 1,
        }
    }
    collected
}

/// Trains the student and, beside it, fits the baseline; false where it was interrupted.
async fn teach(
    globals: &Globals,
    config: &Config,
    run: &RunConfig,
    folder: &Path,
    split: &Arc<Split>,
    interrupt: &Interrupt,
) -> Result<bool, Trouble> {
    let beside = {
        let split = Arc::clone(split);
        tokio::task::spawn_blocking(move || baseline::fit(&split))
    };
    let spend = Spend { calls: spent(&config.store)?, ..Spend::default() };
    // Not resumed: a checkpoint may belong to another version's settings, or to other files.
    if let Outcome::Interrupted { .. } =
        train::train(run, split, spend, folder, false, interrupt, globals.json).await?
    {
        return Ok(false);
    }
    let fitted = beside.await.map_err(|error| Trouble::failed(format!("the baseline broke off: {error}")))?;
    let done = json!({
        "settings": settings(),
        "record": digest(&config.store)?,
        "baseline": fitted.map_err(|error| Trouble::failed(error.to_string()))?,
    });
    let (draft, path) = (folder.join("demo.json.new"), folder.join(DONE));
    fs::write(&draft, format!("{done:#}\n")).map_err(|source| Trouble::io("cannot write", &draft, source))?;
    fs::rename(&draft, &path).map_err(|source| Trouble::io("cannot write", &path, source))?;
    Ok(true)
}

/// The calls that both runs have paid for.
fn spent(store: &StoreUrl) -> Result<u64, Trouble> {
    let mut calls = 0;
    for (run, _) in [LEARN, TEST] {
        for recorded in records_of_run(store, run)? {
            calls += recorded.map_err(|error| Trouble::failed(error.to_string()))?.record.share.calls;
        }
    }
    Ok(calls)
}

/// A digest of the settings that decide the result.
fn settings() -> String {
    hex::encode(Sha256::digest(format!(
        "{RUN}\n{REVISION}\n{TEST_CALLS}\n{SEED}\n{}",
        env!("CARGO_PKG_VERSION")
    )))
}

/// A digest of every answer that both runs have bought.
fn digest(store: &StoreUrl) -> Result<String, Trouble> {
    let mut answers = Vec::new();
    for (run, _) in [LEARN, TEST] {
        for recorded in records_of_run(store, run)? {
            let record = recorded.map_err(|error| Trouble::failed(error.to_string()))?.record;
            answers.push((run, record.key, record.answer.body));
        }
    }
    answers.sort();
    let mut hasher = Sha256::new();
    for (run, key, body) in answers {
        hasher.update(format!("{run} {key} {}\n", body.len()));
        hasher.update(&body);
    }
    Ok(hex::encode(hasher.finalize()))
}

/// What a finished demo with the same settings and the same record left behind.
fn finished(store: &StoreUrl, folder: &Path) -> Result<Option<Value>, Trouble> {
    let Some(done) = read(&folder.join(DONE)) else { return Ok(None) };
    if done["settings"] != settings().as_str() || !folder.join("report.json").is_file() {
        return Ok(None);
    }
    // A record that cannot be read is an error of the demo itself, unless there is none yet.
    match digest(store) {
        Err(Trouble::Open(OpenError::Absent(_))) => Ok(None),
        found => Ok((done["record"] == found?.as_str()).then_some(done)),
    }
}

fn read(path: &PathBuf) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Prints quality and statement.
fn show(globals: &Globals, store: &StoreUrl, folder: &Path, done: &Value) -> Result<(), Trouble> {
    let path = folder.join("report.json");
    let report =
        read(&path).ok_or_else(|| Trouble::failed(format!("`{}` cannot be read", path.display())))?;
    let statement = record::statement(store)?.to_json(&View::default());
    if globals.json {
        let folder = folder.display().to_string();
        let baseline = &done["baseline"];
        print::json(&json!({
            "report": report, "baseline": baseline, "folder": folder, "statement": statement
        }));
        return Ok(());
    }
    let share =
        |value: &Value| value.as_f64().map_or("-".to_owned(), |share| format!("{:.1} %", 100.0 * share));
    let rows = [
        ("the student, by comparison", &report["test"]["agreement"]["mean"]),
        ("the same student, by the teacher's labels alone", &report["student_alone"]["agreement"]["mean"]),
        ("byte n-gram logistic regression, same answers", &done["baseline"]["agreement"]),
    ];
    let rows: Vec<Vec<String>> =
        rows.iter().map(|(name, value)| vec![(*name).to_owned(), share(value)]).collect();
    let calls = report["calls"].as_u64().unwrap_or_default();
    print::line(&format!("learnt from {calls} bought answers; on files that nothing was chosen by:\n"));
    print::line(&print::table(&["", "agrees with magika"], &rows));
    let (heads, rows) = audit::budgets(&statement);
    print::line(&format!("\n{}", print::table(&heads, &rows)));
    print::line(&format!("\nthe student and its report: {}", folder.display()));
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Trouble> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Trouble::failed(format!("it broke off: {error}")))
}
