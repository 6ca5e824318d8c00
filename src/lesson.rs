//! What a run learns from: its questions or its records, the answers bought for them, and the parts they fall into.
//!
//! Must not know how a student learns. Invariants: what is held out is bought for a run of its own; offline nothing is
//! opened and nobody is asked.

use std::collections::{BTreeSet, HashMap};
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
use tuition_trainer::data::{Collected, DataError, Raw, csv, files, idx};
use tuition_trainer::form::{Form, Question};
use tuition_trainer::hidden::tensor_name;
use tuition_trainer::question::{Gives, Seen};
use tuition_trainer::{
    CHECKPOINT, DataConfig, Example, RunConfig, Source, Spend, Split, StudentConfig, TestPart,
};

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
    /// What is learnt from, what is held out, then what each checkpoint is asked: the inputs that are learnt from.
    parts: Vec<Part>,
    model: String,
    classes: Vec<String>,
    known: HashMap<QueryKey, Arc<Record>>,
}

/// Questions that one run pays for.
struct Part {
    /// The run.
    run: String,
    /// What the run may spend.
    calls: u64,
    /// Who is asked; none offline.
    asked: Option<Arc<Asked>>,
    questions: Vec<Question>,
}

/// The place of what is held out among the parts.
const HELD_OUT: usize = 1;

impl Questions {
    fn learn(&self) -> &Part {
        &self.parts[0]
    }

    fn test(&self) -> &Part {
        &self.parts[HELD_OUT]
    }

    fn checkpoints(&self) -> &[Part] {
        &self.parts[2..]
    }

    fn all(&self) -> impl Iterator<Item = &Question> {
        self.parts.iter().flat_map(|part| &part.questions)
    }
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
        let (asked, form) = asked(config, &run.teacher.name, offline, &known).await?;
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
        let Pool { mut learn, test } = pool.reordered(run.acquire.seed);
        learn.truncate(usize::try_from(run.budget.calls).unwrap_or(usize::MAX));
        let part = |run: String, asked: &Option<Arc<Asked>>, questions: Vec<Question>| Part {
            run,
            calls: questions.len() as u64,
            asked: asked.clone(),
            questions,
        };
        let inputs = learn.iter().map(|question| {
            let Question { place, input, truth, .. } = question.clone();
            Raw { place, input, truth }
        });
        let inputs = Collected { inputs: inputs.collect(), ..Collected::default() };
        let mut parts = vec![
            Part { calls: run.budget.calls, ..part(run.name.clone(), &asked, learn) },
            part(format!("{}/test", run.name), &asked, test),
        ];
        for name in &run.teacher.checkpoints {
            let (asked, form) = self::asked(config, name, offline, &known).await?;
            let questions = acquire::questions(&form, inputs.clone())?;
            if questions.len() != inputs.inputs.len() {
                return Err(Trouble::failed(format!(
                    "checkpoint `{name}` takes rows in which inputs that differ are the same: its answers cannot be told apart"
                )));
            }
            parts.push(part(format!("{}/{CHECKPOINT}{name}", run.name), &asked, questions));
        }
        Ok(Self::Asked(Box::new(Questions { parts, model: form.model, classes, known })))
    }

    /// How many questions there are, and how many answers are known.
    pub(crate) fn counts(&self) -> Value {
        match self {
            Self::Recorded { records } => json!({
                "learn": {"questions": records.len(), "known": records.len()},
                "test": {"questions": 0, "known": 0},
            }),
            Self::Asked(questions) => {
                let count = |part: &Part| {
                    let known = |question: &&Question| questions.known.contains_key(&question.key);
                    let known = part.questions.iter().filter(known).count();
                    json!({"questions": part.questions.len(), "known": known})
                };
                let mut counts = json!({"learn": count(questions.learn()), "test": count(questions.test())});
                if !questions.checkpoints().is_empty() {
                    counts["checkpoints"] = questions.checkpoints().iter().map(count).collect();
                }
                counts
            }
        }
    }
}

/// Who answers for the teacher of this name, and the form of its rows; nobody offline.
async fn asked(
    config: &Config,
    name: &str,
    offline: bool,
    known: &HashMap<QueryKey, Arc<Record>>,
) -> Result<(Option<Arc<Asked>>, Form), Trouble> {
    if offline {
        let recorded = known.values().map(Arc::as_ref).filter(|record| record.query.teacher == name);
        return Ok((None, purchase::form_offline(config, name, recorded)?));
    }
    let asked = Asked::of(config, name).await?;
    let form = asked.form.clone();
    Ok((Some(Arc::new(asked)), form))
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
            let offline = questions.learn().asked.is_none();
            let bought = if offline {
                replay(&questions)?
            } else {
                match buy(config, &questions, interrupt, json).await? {
                    Some(bought) => bought,
                    None => return Ok(None),
                }
            };
            from_questions(run, &questions, &bought).map(Some)
        }
    }
}

/// One record for each question of each part.
type Parts = Vec<Vec<Option<Arc<Record>>>>;

/// Takes every answer from the record.
fn replay(questions: &Questions) -> Result<Parts, Trouble> {
    let find = |part: &Part| {
        part.questions.iter().map(|question| questions.known.get(&question.key).cloned()).collect()
    };
    let parts: Parts = questions.parts.iter().map(find).collect();
    let all = questions.all().zip(parts.iter().flatten());
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

/// Buys every part, each for its own run.
async fn buy(
    config: &Config,
    questions: &Questions,
    interrupt: &Interrupt,
    json: bool,
) -> Result<Option<Parts>, Trouble> {
    if questions.all().all(|question| questions.known.contains_key(&question.key)) {
        // Nothing to buy: whoever owns the store is not disturbed.
        return replay(questions).map(Some);
    }
    let opened = open::open(config).await?;
    let parts = buy_parts(config, questions, interrupt, json, &opened).await;
    open::close(opened).await?;
    parts
}

async fn buy_parts(
    config: &Config,
    questions: &Questions,
    interrupt: &Interrupt,
    json: bool,
    opened: &OpenStore,
) -> Result<Option<Parts>, Trouble> {
    open::apply(config, &*opened.store).await?;
    let desk = open::desk(config, opened);
    let test = questions.test();
    if !test.questions.is_empty() {
        let (count, run) = (test.questions.len(), &test.run);
        print::aside(&format!("the student is judged by {count} held-out answers, bought for `{run}`"));
    }
    let mut parts = Parts::new();
    for Part { run, calls, asked, questions } in &questions.parts {
        let Some(asked) = asked else { return Err(Trouble::failed("nobody is asked offline")) };
        purchase::allow(config, &*opened.store, run, *calls).await?;
        let purchase = purchase::buy(&asked.buyer(&desk, run), questions, interrupt, json).await;
        if purchase.is_err() {
            desk.drain().await;
        }
        let purchase = purchase?;
        match purchase.stopped {
            None => parts.push(purchase.records),
            Some(Stopped::Interrupted) => return Ok(None),
            Some(Stopped::Budget(refusal)) => return Err(DeskError::Refused(refusal).into()),
        }
    }
    Ok(Some(parts))
}

fn from_questions(run: &RunConfig, questions: &Questions, parts: &Parts) -> Result<Learnt, Trouble> {
    let all = || parts.iter().flatten().flatten();
    let reading = reading(run, seen(run, Some(&questions.learn().questions)), all())?;
    let gives = reading.gives(all())?;
    let mut learn = record::answered(&questions.learn().questions, &parts[0], &reading, gives)?;
    let test = record::answered(&questions.test().questions, &parts[1], &reading, gives)?;
    let both: Vec<Example> = learn.iter().chain(&test).cloned().collect();
    let classes = record::classes(&both)?.max(questions.classes.len());
    record::check_truths(&questions.learn().questions, classes)?;
    record::check_truths(&questions.test().questions, classes)?;
    for answers in &parts[2..] {
        record::add_checkpoint(&mut learn, answers, &reading, gives)?;
    }
    let (train, validation) = record::set_aside(learn, run.budget.validation, SEED);
    let (classes, mut layers) = (record::names(classes, &questions.classes), tensors(&reading));
    layers.extend(run.teacher.checkpoints.iter().map(|name| format!("{CHECKPOINT}{name}")));
    let split = Split { train, validation, test, classes, layers };
    let learnt =
        parts.iter().enumerate().filter(|(at, _)| *at != HELD_OUT).flat_map(|(_, part)| part).flatten();
    Ok(Learnt { split, spend: spend(all(), learnt) })
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
    let kept: BTreeSet<usize> = order(run.acquire.seed, &keys)
        .into_iter()
        .take(usize::try_from(run.budget.calls).unwrap_or(usize::MAX))
        .collect();
    let bought: Vec<Example> = bought
        .into_iter()
        .enumerate()
        .filter(|(index, _)| kept.contains(index))
        .map(|(_, example)| example)
        .collect();
    let learnt: BTreeSet<String> = bought.iter().map(|example| example.key.clone()).collect();
    let (train, validation) = record::set_aside(bought, run.budget.validation, SEED);
    let split = Split { train, validation, test, classes, layers: tensors(&reading) };
    let learnt = records.iter().filter(|record| learnt.contains(&record.key.to_string()));
    Ok(Learnt { split, spend: spend(records.iter(), learnt) })
}

/// What the answers cost when they were bought, and those among them that are learnt from.
fn spend<'a>(
    all: impl Iterator<Item = &'a Arc<Record>>,
    learnt: impl Iterator<Item = &'a Arc<Record>>,
) -> Spend {
    let (calls, usd) = cost(all);
    Spend { calls, usd, learning_usd: cost(learnt).1 }
}

/// Calls and dollars; no dollars where an answer has no price.
fn cost<'a>(records: impl Iterator<Item = &'a Arc<Record>>) -> (u64, Option<String>) {
    let (mut calls, mut usd) = (0u64, Some(Usd::ZERO));
    for record in records {
        calls = calls.saturating_add(record.share.calls);
        usd = usd.zip(record.cost()).and_then(|(sum, cost)| sum.checked_add(cost));
    }
    (calls, usd.map(|usd| usd.to_string()))
}

/// The names that a run file gives the hidden tensors that are read: without the seed, which all answers share.
fn tensors(reading: &Reading) -> Vec<String> {
    reading.layers.iter().map(|recorded| tensor_name(recorded).to_owned()).collect()
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
        // Of the teacher itself: its checkpoints are asked for their outputs.
        Some(_) => {
            Ok(reading.with_layers(records.filter(|record| record.query.teacher == run.teacher.name))?)
        }
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

fn collect(data: &DataConfig, place: &Path, label: Option<&str>) -> Result<Collected, DataError> {
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
        if who.teacher == run.teacher.name || run.teacher.checkpoints.contains(&who.teacher) {
            known.insert(record.key, Arc::new(record));
        }
    }
    Ok(known)
}
