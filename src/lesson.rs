//! What a run learns from: its questions or its records, the answers bought for them, and the parts they fall into.
//!
//! Must not know how a student learns. Invariants: what is held out is bought for a run of its own; offline nothing is
//! opened and nobody is asked.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tuition_ledger::{OpenError, QueryKey, Record, Recorded, StoreUrl, Usd, records, records_of_run};
use tuition_trainer::acquire::{self, Pool};
use tuition_trainer::data::record::{self, Reading};
use tuition_trainer::data::split::{Draw, order};
use tuition_trainer::data::{Collected, Raw};
use tuition_trainer::form::{Form, Question};
use tuition_trainer::hidden::tensor_name;
use tuition_trainer::question::{Gives, Seen};
use tuition_trainer::{
    CHECKPOINT, DataConfig, Example, RunConfig, Source, Spend, Split, StudentConfig, TeacherConfig, TestPart,
    check_fit,
};

use crate::config::Config;
use crate::dataset::collect;
use crate::expedition;
use crate::interrupt::Interrupt;
use crate::print;
use crate::purchase::{self, Asked, SEED};
use crate::rounds::{Acquired, Chosen, choose, later_rounds};
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
    pub(crate) learn: Part,
    /// What is held out.
    pub(crate) test: Part,
    /// What each checkpoint is asked: the inputs that are learnt from.
    checkpoints: Vec<Part>,
    /// How many answers each round after the first buys.
    pub(crate) later: Vec<usize>,
    /// The answers that validate: drawn at random, whatever the policy.
    pub(crate) aside: BTreeSet<QueryKey>,
    /// How the first round came to be chosen.
    pub(crate) acquired: Vec<Acquired>,
    /// The inputs that are not asked about yet, in the order of the draw; empty where nobody wants them.
    pub(crate) rest: Vec<Question>,
    /// How an input becomes a question.
    pub(crate) form: Form,
    classes: Vec<String>,
    known: HashMap<QueryKey, Arc<Record>>,
}

/// Questions that one run pays for.
pub(crate) struct Part {
    pub(crate) customer: Customer,
    pub(crate) questions: Vec<Question>,
}

/// What a student is trained on, and what it cost.
pub(crate) struct Learnt {
    /// The parts.
    pub(crate) split: Split,
    /// What its answers cost when they were bought.
    pub(crate) spend: Spend,
    /// Why each answer was bought; empty where nothing was bought.
    pub(crate) acquired: Vec<Acquired>,
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
            suits(run, &learn, 0)?;
            return Ok(Self::Labelled { pool: Pool { learn, test }, classes });
        };
        let known = known(&config.store, run, teacher)?;
        if run.data.source == Source::Record {
            return Ok(Self::Recorded { records: known.into_values().collect() });
        }
        let (asked, form) = asked(config, &teacher.name, offline, &known).await?;
        let collected = collect(&run.data, path(&run.data)?, run.data.label.as_deref())?;
        let classes = collected.classes.clone();
        let Pool { learn, test } = pool(run, &form, collected)?;
        let Chosen { learn, aside, acquired, later, rest } = choose(run, learn)?;
        suits(run, &learn, rest.len() - later.iter().sum::<usize>().min(rest.len()))?;
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
        let questions =
            Questions { learn, test, checkpoints, later, aside, acquired, rest, form, classes, known };
        expedition::check(run, &questions)?;
        Ok(Self::Asked(Box::new(questions)))
    }

    /// How many questions there are, and how many answers are known.
    pub(crate) fn counts(&self, run: &RunConfig) -> Value {
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
                // What later rounds will choose is not known before the first is answered.
                if !questions.later.is_empty() {
                    counts["later"] = questions.later.iter().sum::<usize>().into();
                }
                let made = expedition::count(run, questions);
                if made > 0 {
                    counts["made"] = made.into();
                }
                if !questions.checkpoints.is_empty() {
                    counts["checkpoints"] = questions.checkpoints.iter().map(count).collect();
                }
                counts
            }
        }
    }
}

/// Refuses what could not be learnt from these inputs before they are bought.
fn suits(run: &RunConfig, learn: &[Question], pool: usize) -> Result<(), Trouble> {
    match learn.first() {
        Some(question) => Ok(check_fit(run, &question.input, pool)?),
        None => Ok(()),
    }
}

/// The questions of a data set in their two parts, in the order in which they are bought.
fn pool(run: &RunConfig, form: &Form, collected: Collected) -> Result<Pool, Trouble> {
    let classes = collected.classes.clone();
    let questions = acquire::questions(form, collected)?;
    let pool = match &run.data.test {
        TestPart::Share(share) => Pool::of(questions, *share, SEED),
        TestPart::Path(place) => {
            // A CSV file has its own column of labels; images have a second file of them.
            let label = match run.data.source {
                Source::Idx => run.data.test_label.as_deref(),
                _ => run.data.label.as_deref(),
            };
            let place = Path::new(place);
            let held_out = collect(&run.data, place, label)?.among(&classes, place)?;
            let test = acquire::questions(form, held_out)?;
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
        Lesson::Asked(mut questions) => {
            let known = std::mem::take(&mut questions.known);
            let mut till = Till::new(config, &known, interrupt, json);
            let answers = answers(run, &mut questions, &mut till, interrupt).await;
            till.close().await?;
            match answers? {
                Some(answers) => from_questions(run, *questions, &answers).map(Some),
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
async fn answers(
    run: &RunConfig,
    questions: &mut Questions,
    till: &mut Till<'_>,
    interrupt: &Interrupt,
) -> Result<Option<Answers>, Trouble> {
    let Some(learn) = till.answers(&questions.learn.customer, &questions.learn.questions).await? else {
        return Ok(None);
    };
    let Some(learn) = later_rounds(run, questions, learn, till, interrupt).await? else { return Ok(None) };
    let Some(learn) = expedition::explore(run, questions, learn, till, interrupt).await? else {
        return Ok(None);
    };
    let Questions { test, checkpoints, .. } = questions;
    if let (false, Some(_)) = (till.knows(&test.questions), &test.customer.asked) {
        let (count, run) = (test.questions.len(), &test.customer.run);
        print::aside(&format!("the student is judged by {count} held-out answers, bought for `{run}`"));
    }
    let Some(test) = till.answers(&test.customer, &test.questions).await? else { return Ok(None) };
    let mut answers = Answers { learn, test, checkpoints: vec![] };
    for part in checkpoints {
        let Some(records) = till.answers(&part.customer, &part.questions).await? else { return Ok(None) };
        answers.checkpoints.push(records);
    }
    Ok(Some(answers))
}

/// What has been bought so far, to choose the next round by.
pub(crate) fn so_far(
    run: &RunConfig,
    questions: &Questions,
    records: &[Arc<Record>],
) -> Result<Split, Trouble> {
    let asked = &questions.learn.questions;
    let reading = reading(run, seen(run, Some(asked)), records.iter())?;
    let bought = record::answered(asked, records, &reading, reading.gives(records)?)?;
    let classes = record::names(record::classes(&bought)?.max(questions.classes.len()), &questions.classes);
    let (validation, train) = apart(bought, &questions.aside);
    Ok(Split { train, validation, classes, layers: tensors(&reading), ..Split::default() })
}

/// The examples that validate, and those that are learnt from.
fn apart(bought: Vec<Example>, aside: &BTreeSet<QueryKey>) -> (Vec<Example>, Vec<Example>) {
    bought.into_iter().partition(|example| example.key.parse().is_ok_and(|key| aside.contains(&key)))
}

fn from_questions(run: &RunConfig, questions: Questions, answers: &Answers) -> Result<Learnt, Trouble> {
    let (asked, held_out) = (&questions.learn.questions, &questions.test.questions);
    let reading = reading(run, seen(run, Some(asked)), answers.all())?;
    let gives = reading.gives(answers.all())?;
    let mut learn = record::answered(asked, &answers.learn, &reading, gives)?;
    let test = record::answered(held_out, &answers.test, &reading, gives)?;
    let classes = record::classes(learn.iter().chain(&test))?.max(questions.classes.len());
    record::check_truths(asked, classes)?;
    record::check_truths(held_out, classes)?;
    for records in &answers.checkpoints {
        record::add_checkpoint(&mut learn, records, &reading, gives)?;
    }
    let (validation, train) = apart(learn, &questions.aside);
    let (classes, mut layers) = (record::names(classes, &questions.classes), tensors(&reading));
    let checkpoints = run.teacher.iter().flat_map(|teacher| &teacher.checkpoints);
    layers.extend(checkpoints.map(|name| format!("{CHECKPOINT}{name}")));
    let rest = if run.method.wants_pool() { &questions.rest[..] } else { &[] };
    let pool = rest.iter().map(record::unasked).collect();
    let split = Split { train, validation, test, pool, classes, layers };
    let learnt = answers.learn.iter().chain(answers.checkpoints.iter().flatten());
    Ok(Learnt { split, spend: spend(answers.all(), learnt), acquired: questions.acquired })
}

fn from_labels(run: &RunConfig, pool: &Pool, classes: &[String]) -> Result<Learnt, Trouble> {
    let learn = record::labelled(&pool.learn)?;
    let test = record::labelled(&pool.test)?;
    let count = record::classes(learn.iter().chain(&test))?.max(classes.len());
    let classes = record::names(count, classes);
    let (train, validation) = record::set_aside(learn, run.budget.validation, SEED);
    let test = test.into_iter().map(|example| Example { target: None, ..example }).collect();
    let split = Split { train, validation, test, classes, ..Split::default() };
    let nothing = Some(Usd::ZERO.to_string());
    let spend = Spend { calls: 0, usd: nothing.clone(), learning_usd: nothing };
    Ok(Learnt { split, spend, acquired: vec![] })
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
    let kept: BTreeSet<usize> =
        order(run.acquire.seed, &keys).into_iter().take(run.budget.answers()).collect();
    let bought: Vec<Example> = bought
        .into_iter()
        .enumerate()
        .filter(|(index, _)| kept.contains(index))
        .map(|(_, example)| example)
        .collect();
    let learnt: BTreeSet<String> = bought.iter().map(|example| example.key.clone()).collect();
    let (train, validation) = record::set_aside(bought, run.budget.validation, SEED);
    let split = Split { train, validation, test, classes, layers: tensors(&reading), ..Split::default() };
    let learnt = records.iter().filter(|record| learnt.contains(&record.key.to_string()));
    Ok(Learnt { split, spend: spend(records.iter(), learnt), acquired: vec![] })
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

/// How the answers are read; where the method learns from them, with their hidden tensors.
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
    if !run.method.wants_hidden() {
        return Ok(reading);
    }
    // Of the teacher itself: its checkpoints are asked for their outputs.
    Ok(reading.with_layers(records.filter(|record| record.query.teacher == teacher.name))?)
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
