//! What a run learns from: its questions or its records, the answers bought for them, and the parts they fall into.
//!
//! Must not know how a student learns. Invariants: what is held out is bought for a run of its own; offline nothing is
//! opened and nobody is asked.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tuition_ledger::{
    DeskError, OpenError, OpenStore, QueryKey, Quote, Record, Recorded, StoreUrl, Unbounded, Usd, records,
    records_of_run,
};
use tuition_trainer::acquire::{self, Pool, Stopped};
use tuition_trainer::data::record::{self, Reading};
use tuition_trainer::data::split::{Draw, order};
use tuition_trainer::data::{DataError, csv, files, idx};
use tuition_trainer::form::Question;
use tuition_trainer::question::{Gives, Seen};
use tuition_trainer::{DataConfig, Example, RunConfig, Source, Spend, Split, StudentConfig, TestPart};

use crate::config::Config;
use crate::interrupt::Interrupt;
use crate::purchase::{self, Asked, SEED};
use crate::words::Trouble;
use crate::{open, print};

/// What a run would learn from, before anything is bought.
pub(crate) enum Lesson {
    /// Questions of a data set, to be asked of a teacher.
    Asked(Box<Questions>),
    /// What a run has bought already.
    Recorded {
        /// The records.
        records: Vec<Arc<Record>>,
    },
}

/// The questions of a data set and who answers them.
pub(crate) struct Questions {
    /// None offline.
    asked: Option<Asked>,
    model: String,
    learn: Vec<Question>,
    test: Vec<Question>,
    classes: Vec<String>,
    known: HashMap<QueryKey, Arc<Record>>,
}

/// What a student is trained on, and what it cost.
pub(crate) struct Learnt {
    /// The parts.
    pub(crate) split: Split,
    /// What its answers cost when they were bought.
    pub(crate) spend: Spend,
}

impl Lesson {
    /// Reads the data set or the record; asks nobody.
    ///
    /// # Errors
    /// The data set, the teacher or the record cannot be read.
    pub(crate) async fn of(config: &Config, run: &RunConfig, offline: bool) -> Result<Self, Trouble> {
        let known = known(&config.store, run)?;
        if run.data.source == Source::Record {
            return Ok(Self::Recorded { records: known.into_values().collect() });
        }
        let (asked, form) = if offline {
            (None, purchase::form_offline(config, &run.teacher.name, known.values().map(Arc::as_ref))?)
        } else {
            let asked = Asked::of(config, &run.teacher.name).await?;
            let form = asked.form.clone();
            (Some(asked), form)
        };
        let collected = collect(&run.data, path(&run.data)?, run.data.label.as_deref())?;
        let classes = collected.classes.clone();
        let questions = acquire::questions(&form, collected)?;
        let pool = match &run.data.test {
            TestPart::Share(share) => Pool::of(questions, *share, SEED),
            TestPart::Path(place) => {
                // A CSV file has its own column of labels; images have a second file of them.
                let label = match run.data.source {
                    Source::Idx => run.data.test_label.as_deref(),
                    _ => run.data.label.as_deref(),
                };
                let test = acquire::questions(&form, collect(&run.data, Path::new(place), label)?)?;
                Pool::with_test(questions, test, SEED)
            }
        };
        let mut learn = pool.learn;
        learn.truncate(usize::try_from(run.budget.calls).unwrap_or(usize::MAX));
        let (model, test) = (form.model, pool.test);
        Ok(Self::Asked(Box::new(Questions { asked, model, learn, test, classes, known })))
    }

    /// How many questions there are, and how many answers are known.
    pub(crate) fn counts(&self) -> Value {
        match self {
            Self::Recorded { records } => json!({
                "learn": {"questions": records.len(), "known": records.len()},
                "test": {"questions": 0, "known": 0},
            }),
            Self::Asked(questions) => {
                let count = |part: &[Question]| {
                    let known =
                        part.iter().filter(|question| questions.known.contains_key(&question.key)).count();
                    json!({"questions": part.len(), "known": known})
                };
                json!({"learn": count(&questions.learn), "test": count(&questions.test)})
            }
        }
    }
}

/// Buys what is missing (offline: refuses to) and makes the parts; none where it was interrupted.
///
/// # Errors
/// A budget, the teacher, the store; an answer that is not recorded or cannot be learnt from.
pub(crate) async fn learn(
    config: &Config,
    run: &RunConfig,
    lesson: Lesson,
    interrupt: &Interrupt,
    json: bool,
) -> Result<Option<Learnt>, Trouble> {
    match lesson {
        Lesson::Recorded { records } => from_record(run, &records).map(Some),
        Lesson::Asked(questions) => {
            let bought = match &questions.asked {
                None => replay(&questions)?,
                Some(asked) => match buy(config, run, asked, &questions, interrupt, json).await? {
                    Some(bought) => bought,
                    None => return Ok(None),
                },
            };
            from_questions(run, &questions, &bought).map(Some)
        }
    }
}

/// One record for each question of the two parts.
type Parts = [Vec<Option<Arc<Record>>>; 2];

/// Takes every answer from the record.
fn replay(questions: &Questions) -> Result<Parts, Trouble> {
    let find =
        |part: &[Question]| part.iter().map(|question| questions.known.get(&question.key).cloned()).collect();
    let parts: Parts = [find(&questions.learn), find(&questions.test)];
    let all = questions.learn.iter().chain(&questions.test).zip(parts.iter().flatten());
    let keys: Vec<QueryKey> =
        all.filter(|(_, record)| record.is_none()).map(|(question, _)| question.key).collect();
    if keys.is_empty() {
        return Ok(parts);
    }
    let model = questions.model.clone();
    let quote = Quote {
        calls: keys.len() as u64,
        tokens: Ok(0),
        usd: Err(Unbounded::NoPrice(model)),
        price: None,
        metered: false,
    };
    Err(DeskError::NotRecorded { keys, quote: Box::new(quote) }.into())
}

/// Buys both parts, each for its own run.
async fn buy(
    config: &Config,
    run: &RunConfig,
    asked: &Asked,
    questions: &Questions,
    interrupt: &Interrupt,
    json: bool,
) -> Result<Option<Parts>, Trouble> {
    let known = |part: &[Question]| part.iter().all(|question| questions.known.contains_key(&question.key));
    if known(&questions.learn) && known(&questions.test) {
        // Nothing to buy: whoever owns the store is not disturbed.
        return replay(questions).map(Some);
    }
    let opened = open::open(config).await?;
    let parts = buy_parts(config, run, (asked, questions), interrupt, json, &opened).await;
    open::close(opened).await?;
    parts
}

async fn buy_parts(
    config: &Config,
    run: &RunConfig,
    (asked, questions): (&Asked, &Questions),
    interrupt: &Interrupt,
    json: bool,
    opened: &OpenStore,
) -> Result<Option<Parts>, Trouble> {
    open::apply(config, &*opened.store).await?;
    let desk = open::desk(config, opened);
    let mut parts = Parts::default();
    let named = [(run.name.clone(), &questions.learn, run.budget.calls), test(run, questions)];
    for (part, (name, wanted, calls)) in parts.iter_mut().zip(named) {
        purchase::allow(config, &*opened.store, &name, calls).await?;
        let purchase = purchase::buy(&asked.buyer(&desk, &name), wanted, interrupt, json).await;
        if purchase.is_err() {
            desk.drain().await;
        }
        let purchase = purchase?;
        match purchase.stopped {
            None => *part = purchase.records,
            Some(Stopped::Interrupted) => return Ok(None),
            Some(Stopped::Budget(refusal)) => return Err(DeskError::Refused(refusal).into()),
        }
    }
    Ok(Some(parts))
}

/// The run that pays for what is held out: each of its questions once.
fn test<'a>(run: &RunConfig, questions: &'a Questions) -> (String, &'a Vec<Question>, u64) {
    let name = format!("{}/test", run.name);
    if !questions.test.is_empty() {
        print::aside(&format!(
            "the student is judged by {} held-out answers, bought for `{name}`",
            questions.test.len()
        ));
    }
    (name, &questions.test, questions.test.len() as u64)
}

fn from_questions(run: &RunConfig, questions: &Questions, parts: &Parts) -> Result<Learnt, Trouble> {
    let all = || parts.iter().flatten().flatten();
    let reading = reading(run, seen(run, Some(&questions.learn)), all())?;
    let gives = reading.gives(all())?;
    let learn = record::answered(&questions.learn, &parts[0], &reading, gives)?;
    let test = record::answered(&questions.test, &parts[1], &reading, gives)?;
    let both: Vec<Example> = learn.iter().chain(&test).cloned().collect();
    let classes = record::classes(&both)?.max(questions.classes.len());
    record::check_truths(&questions.learn, classes)?;
    record::check_truths(&questions.test, classes)?;
    let (train, validation) = record::set_aside(learn, run.budget.validation, SEED);
    let (classes, layers) = (record::names(classes, &questions.classes), reading.layers);
    let split = Split { train, validation, test, classes, layers };
    Ok(Learnt { split, spend: spend(all()) })
}

fn from_record(run: &RunConfig, records: &[Arc<Record>]) -> Result<Learnt, Trouble> {
    let TestPart::Share(share) = run.data.test else {
        return Err(Trouble::usage(
            "`data.test` is a path, and source `record` holds out a share of what was bought",
            "such as `test = 0.3`",
        ));
    };
    let name = run.data.run.as_deref().unwrap_or_default();
    let reading = reading(run, seen(run, None), records.iter())?;
    let (examples, _) = record::examples(name, records, &reading)?;
    let classes = record::names(record::classes(&examples)?, &[]);
    let (test, bought): (Vec<Example>, Vec<Example>) =
        examples.into_iter().partition(|example| Draw::Test.holds(SEED, &example.key, share));
    let keys: Vec<&str> = bought.iter().map(|example| example.key.as_str()).collect();
    let kept: std::collections::BTreeSet<usize> = order(SEED, &keys)
        .into_iter()
        .take(usize::try_from(run.budget.calls).unwrap_or(usize::MAX))
        .collect();
    let bought = bought
        .into_iter()
        .enumerate()
        .filter(|(index, _)| kept.contains(index))
        .map(|(_, example)| example)
        .collect();
    let (train, validation) = record::set_aside(bought, run.budget.validation, SEED);
    let split = Split { train, validation, test, classes, layers: reading.layers };
    Ok(Learnt { split, spend: spend(records.iter()) })
}

/// What the answers cost when they were bought.
fn spend<'a>(records: impl Iterator<Item = &'a Arc<Record>>) -> Spend {
    let (mut calls, mut usd) = (0u64, Some(Usd::ZERO));
    for record in records {
        calls = calls.saturating_add(record.share.calls);
        usd = usd.zip(record.cost()).and_then(|(sum, cost)| sum.checked_add(cost));
    }
    Spend { calls, usd: usd.map(|usd| usd.to_string()) }
}

/// How the answers are read; where the method has a curriculum, with their hidden tensors.
fn reading<'a>(
    run: &RunConfig,
    seen: Seen,
    records: impl Iterator<Item = &'a Arc<Record>>,
) -> Result<Reading, Trouble> {
    let gives = run.teacher.gives.as_deref().map(str::parse::<Gives>).transpose();
    let gives = gives.map_err(|error| {
        Trouble::usage(format!("`teacher.gives`: {error}"), "leave it out to see it from the answers")
    })?;
    let least_probability = run.teacher.least_probability;
    let output = run.teacher.output.clone();
    let reading = Reading { input: None, output, least_probability, gives, seen, layers: vec![] };
    match run.method.curriculum {
        None => Ok(reading),
        Some(_) => Ok(reading.with_layers(records)?),
    }
}

/// What the student is to see: what the data are, else what it is made for.
fn seen(run: &RunConfig, questions: Option<&[Question]>) -> Seen {
    let bytes = match questions.and_then(<[Question]>::first) {
        Some(question) => question.input.kind() == "bytes",
        None => matches!(run.student, StudentConfig::ByteConv { .. }),
    };
    if bytes { Seen::Bytes } else { Seen::Vector }
}

fn path(data: &DataConfig) -> Result<&Path, Trouble> {
    let path = data.path.as_ref().map(Path::new);
    path.ok_or_else(|| Trouble::usage("`data.path` is missing", "which file or folder?"))
}

fn collect(
    data: &DataConfig,
    place: &Path,
    label: Option<&str>,
) -> Result<tuition_trainer::data::Collected, DataError> {
    match data.source {
        Source::Csv => csv::read(place, label),
        Source::Idx => idx::read(place, label.map(Path::new)),
        Source::Files | Source::Record => files::read(place, &files::Window::default()),
    }
}

/// The answers that a run may learn from without asking, the latest under each key.
fn known(store: &StoreUrl, run: &RunConfig) -> Result<HashMap<QueryKey, Arc<Record>>, Trouble> {
    let of_run = run.data.run.as_deref().filter(|_| run.data.source == Source::Record);
    let found = match of_run {
        Some(name) => records_of_run(store, name),
        None => records(store),
    };
    let found = match found {
        Ok(found) => found,
        // No store yet: nothing is known.
        Err(OpenError::Absent(_)) => return Ok(HashMap::new()),
        Err(error) => return Err(error.into()),
    };
    let mut known = HashMap::new();
    for recorded in found {
        let Recorded { who, record, .. } = recorded.map_err(OpenError::from)?;
        if who.teacher == run.teacher.name {
            known.insert(record.key, Arc::new(record));
        }
    }
    Ok(known)
}
