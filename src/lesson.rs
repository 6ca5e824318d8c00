//! What a run learns from: its questions or its records, the answers bought for them, and the parts they fall into.
//!
//! Must not know how a student learns. Invariants: what is held out is bought for a run of its own; offline nothing is
//! opened and nobody is asked.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tuition_ledger::{OpenError, QueryKey, Record, Recorded, StoreUrl, Usd, records, records_of_run};
use tuition_trainer::acquire::{self, Pool};
use tuition_trainer::data::record::{self, Reading};
use tuition_trainer::data::split::{Draw, order};
use tuition_trainer::data::{Collected, DataError, Raw, csv, files, idx};
use tuition_trainer::form::{Form, Question};
use tuition_trainer::hidden::tensor_name;
use tuition_trainer::question::{Gives, Seen};
use tuition_trainer::{
    CHECKPOINT, DataConfig, Example, RunConfig, Source, Spend, Split, StudentConfig, TeacherConfig, TestPart,
};

use crate::config::Config;
use crate::interrupt::Interrupt;
use crate::print;
use crate::purchase::{self, Asked, SEED};
use crate::till::{Customer, Till};
use crate::words::Trouble;

/// What a run would learn from, before anything is bought.
pub(crate) enum Lesson {
    /// Questions of a data set, to be asked of a teacher.
    Asked(Box<Questions>),
    /// Questions of a data set that knows their answers: its labels.
    Labelled {
        /// In buying order, as if they were bought.
        pool: Pool,
        /// The names of the classes.
        classes: Vec<String>,
    },
    /// What a run has bought already.
    Recorded {
        /// The records.
        records: Vec<Arc<Record>>,
    },
}

/// The questions of a data set and who answers them.
pub(crate) struct Questions {
    /// What is learnt from, validation included.
    learn: Part,
    /// What is held out.
    test: Part,
    /// What each checkpoint is asked: the inputs that are learnt from.
    checkpoints: Vec<Part>,
    /// The inputs that are not asked about, in buying order; empty where nobody wants them.
    rest: Vec<Question>,
    classes: Vec<String>,
    known: HashMap<QueryKey, Arc<Record>>,
}

/// Questions that one run pays for.
struct Part {
    customer: Customer,
    questions: Vec<Question>,
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
        let Some(teacher) = &run.teacher else {
            let collected = collect(&run.data, path(&run.data)?, run.data.label.as_deref())?;
            let form = Form::of_labelled(collected.inputs.first().map(|raw| &raw.input));
            let classes = collected.classes.clone();
            let Pool { mut learn, test } = pool(run, &form, collected)?;
            learn.truncate(run.budget.answers());
            return Ok(Self::Labelled { pool: Pool { learn, test }, classes });
        };
        let known = known(&config.store, run, teacher)?;
        if run.data.source == Source::Record {
            return Ok(Self::Recorded { records: known.into_values().collect() });
        }
        let (asked, form) = asked(config, &teacher.name, offline, &known).await?;
        let collected = collect(&run.data, path(&run.data)?, run.data.label.as_deref())?;
        let classes = collected.classes.clone();
        let Pool { mut learn, test } = pool(run, &form, collected)?;
        let rest = learn.split_off(run.budget.answers().min(learn.len()));
        let rest = if run.method.wants_pool() { rest } else { vec![] };
        let inputs = learn.iter().map(|question| {
            let Question { place, input, truth, .. } = question.clone();
            Raw { place, input, truth }
        });
        let inputs = Collected { inputs: inputs.collect(), ..Collected::default() };
        let part = |run: String, form: &Form, asked: Option<Arc<Asked>>, questions: Vec<Question>| {
            let (calls, model) = (questions.len() as u64, form.model.clone());
            Part { customer: Customer { run, calls, model, asked }, questions }
        };
        let mut checkpoints = vec![];
        for name in &teacher.checkpoints {
            let (asked, form) = self::asked(config, name, offline, &known).await?;
            let questions = acquire::questions(&form, inputs.clone())?;
            if questions.len() != inputs.inputs.len() {
                return Err(Trouble::failed(format!(
                    "checkpoint `{name}` takes rows in which inputs that differ are the same: its answers cannot be told apart"
                )));
            }
            checkpoints.push(part(format!("{}/{CHECKPOINT}{name}", run.name), &form, asked, questions));
        }
        let mut learn = part(run.name.clone(), &form, asked.clone(), learn);
        learn.customer.calls = run.budget.calls.unwrap_or(learn.customer.calls);
        let test = part(format!("{}/test", run.name), &form, asked, test);
        Ok(Self::Asked(Box::new(Questions { learn, test, checkpoints, rest, classes, known })))
    }

    /// How many questions there are, and how many answers are known.
    pub(crate) fn counts(&self) -> Value {
        let all_known = |count: usize| json!({"questions": count, "known": count});
        match self {
            Self::Recorded { records } => json!({"learn": all_known(records.len()), "test": all_known(0)}),
            Self::Labelled { pool, .. } => {
                json!({"learn": all_known(pool.learn.len()), "test": all_known(pool.test.len())})
            }
            Self::Asked(questions) => {
                let count = |part: &Part| {
                    let known = |question: &&Question| questions.known.contains_key(&question.key);
                    let known = part.questions.iter().filter(known).count();
                    json!({"questions": part.questions.len(), "known": known})
                };
                let mut counts = json!({"learn": count(&questions.learn), "test": count(&questions.test)});
                if !questions.checkpoints.is_empty() {
                    counts["checkpoints"] = questions.checkpoints.iter().map(count).collect();
                }
                counts
            }
        }
    }
}

/// The questions of a data set in their two parts, in the order in which they are bought.
fn pool(run: &RunConfig, form: &Form, collected: Collected) -> Result<Pool, Trouble> {
    let questions = acquire::questions(form, collected)?;
    let pool = match &run.data.test {
        TestPart::Share(share) => Pool::of(questions, *share, SEED),
        TestPart::Path(place) => {
            // A CSV file has its own column of labels; images have a second file of them.
            let label = match run.data.source {
                Source::Idx => run.data.test_label.as_deref(),
                _ => run.data.label.as_deref(),
            };
            let test = acquire::questions(form, collect(&run.data, Path::new(place), label)?)?;
            Pool::with_test(questions, test, SEED)
        }
    };
    Ok(pool.reordered(run.acquire.seed))
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
        Lesson::Labelled { pool, classes } => from_labels(run, &pool, &classes).map(Some),
        Lesson::Asked(questions) => {
            let mut till = Till::new(config, &questions.known, interrupt, json);
            let answers = answers(&questions, &mut till).await;
            till.close().await?;
            match answers? {
                Some(answers) => from_questions(run, &questions, &answers).map(Some),
                None => Ok(None),
            }
        }
    }
}

/// One record for each question of each part.
struct Answers {
    learn: Vec<Arc<Record>>,
    test: Vec<Arc<Record>>,
    checkpoints: Vec<Vec<Arc<Record>>>,
}

impl Answers {
    fn all(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.learn.iter().chain(&self.test).chain(self.checkpoints.iter().flatten())
    }
}

/// Takes what is known from the record and buys the rest, each part for its own run.
async fn answers(questions: &Questions, till: &mut Till<'_>) -> Result<Option<Answers>, Trouble> {
    let Questions { learn, test, checkpoints, known, .. } = questions;
    let unknown = test.questions.iter().any(|question| !known.contains_key(&question.key));
    if let (true, Some(_)) = (unknown, &test.customer.asked) {
        let (count, run) = (test.questions.len(), &test.customer.run);
        print::aside(&format!("the student is judged by {count} held-out answers, bought for `{run}`"));
    }
    let Some(learn) = till.answers(&learn.customer, &learn.questions).await? else { return Ok(None) };
    let Some(test) = till.answers(&test.customer, &test.questions).await? else { return Ok(None) };
    let mut answers = Answers { learn, test, checkpoints: vec![] };
    for part in checkpoints {
        let Some(records) = till.answers(&part.customer, &part.questions).await? else { return Ok(None) };
        answers.checkpoints.push(records);
    }
    Ok(Some(answers))
}

fn from_questions(run: &RunConfig, questions: &Questions, answers: &Answers) -> Result<Learnt, Trouble> {
    let (asked, held_out) = (&questions.learn.questions, &questions.test.questions);
    let reading = reading(run, seen(run, Some(asked)), answers.all())?;
    let gives = reading.gives(answers.all())?;
    let mut learn = record::answered(asked, &answers.learn, &reading, gives)?;
    let test = record::answered(held_out, &answers.test, &reading, gives)?;
    let both: Vec<Example> = learn.iter().chain(&test).cloned().collect();
    let classes = record::classes(&both)?.max(questions.classes.len());
    record::check_truths(asked, classes)?;
    record::check_truths(held_out, classes)?;
    for records in &answers.checkpoints {
        record::add_checkpoint(&mut learn, records, &reading, gives)?;
    }
    let (train, validation) = record::set_aside(learn, run.budget.validation, SEED);
    let (classes, mut layers) = (record::names(classes, &questions.classes), tensors(&reading));
    let checkpoints = run.teacher.iter().flat_map(|teacher| &teacher.checkpoints);
    layers.extend(checkpoints.map(|name| format!("{CHECKPOINT}{name}")));
    let pool = questions.rest.iter().map(record::unasked).collect();
    let split = Split { train, validation, test, pool, classes, layers };
    Ok(Learnt { split, spend: spend(answers.all()) })
}

fn from_labels(run: &RunConfig, pool: &Pool, classes: &[String]) -> Result<Learnt, Trouble> {
    let learn = record::labelled(&pool.learn)?;
    let test: Vec<Example> = record::labelled(&pool.test)?;
    let both: Vec<Example> = learn.iter().chain(&test).cloned().collect();
    let classes = record::names(record::classes(&both)?.max(classes.len()), classes);
    let (train, validation) = record::set_aside(learn, run.budget.validation, SEED);
    let test = test.into_iter().map(|example| Example { target: None, ..example }).collect();
    let split = Split { train, validation, test, classes, ..Split::default() };
    Ok(Learnt { split, spend: Spend { calls: 0, usd: Some(Usd::ZERO.to_string()) } })
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
    let kept: std::collections::BTreeSet<usize> =
        order(run.acquire.seed, &keys).into_iter().take(run.budget.answers()).collect();
    let bought = bought
        .into_iter()
        .enumerate()
        .filter(|(index, _)| kept.contains(index))
        .map(|(_, example)| example)
        .collect();
    let (train, validation) = record::set_aside(bought, run.budget.validation, SEED);
    let split = Split { train, validation, test, classes, layers: tensors(&reading), ..Split::default() };
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
    let teacher = run.teacher.as_ref().ok_or_else(|| Trouble::failed("the run file names no teacher"))?;
    let gives = teacher.gives.as_deref().map(str::parse::<Gives>).transpose();
    let gives = gives.map_err(|error| {
        Trouble::usage(format!("`teacher.gives`: {error}"), "leave it out to see it from the answers")
    })?;
    let least_probability = teacher.least_probability;
    let output = teacher.output.clone();
    let reading = Reading { input: None, output, least_probability, gives, seen, layers: vec![] };
    match run.method.curriculum {
        None => Ok(reading),
        // Of the teacher itself: its checkpoints are asked for their outputs.
        Some(_) => Ok(reading.with_layers(records.filter(|record| record.query.teacher == teacher.name))?),
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
fn known(
    store: &StoreUrl,
    run: &RunConfig,
    teacher: &TeacherConfig,
) -> Result<HashMap<QueryKey, Arc<Record>>, Trouble> {
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
        if who.teacher == teacher.name || teacher.checkpoints.contains(&who.teacher) {
            known.insert(record.key, Arc::new(record));
        }
    }
    Ok(known)
}
