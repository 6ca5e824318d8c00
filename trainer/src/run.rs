//! A run from its file to its folder: what RUN.toml says, and the one call that trains all it asks for.
//!
//! It must not know where examples come from or what answers cost: a split and the spend are handed in. Invariants: an
//! unknown name in a run file is answered with the nearest known one; the resolved settings in the folder are enough to
//! repeat the run.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::evaluate::{Measures, Scores, score};
use crate::example::{Example, Input, Split, Target};
use crate::explore::ExploreConfig;
use crate::export;
use crate::loss::{Labels, LabelsLoss, LossConfig};
use crate::method::MethodConfig;
use crate::nearest::nearest;
use crate::question::LEAST_PROBABILITY;
use crate::report::{self, Report, Row, Spend, make};
use crate::selection::{AcquireConfig, Policy};
use crate::student::{Built, Student, StudentConfig};
use crate::train::{
    Control, Ended, Kept, MetricRow, Task, TrainConfig, TrainError, digests, fits, replace, train,
};

/// A run file, RUN.toml.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// The run's name, and its folder's.
    pub name: String,
    /// Who is asked; none: the labels of the data set are the answers, and nobody is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<TeacherConfig>,
    /// What is asked about.
    pub data: DataConfig,
    /// How much may be bought.
    #[serde(default)]
    pub budget: BudgetConfig,
    /// Which inputs are bought.
    #[serde(default, skip_serializing_if = "AcquireConfig::is_default")]
    pub acquire: AcquireConfig,
    /// What is asked about beside them: inputs that are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explore: Option<ExploreConfig>,
    /// What learns.
    pub student: StudentConfig,
    /// From which losses.
    pub method: MethodConfig,
    /// How long and how fast.
    #[serde(default)]
    pub train: TrainConfig,
}

/// The `[teacher]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherConfig {
    /// The name of a teacher of tuition.toml.
    pub name: String,
    /// The output that is learnt from, where answers have several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// What it gives: `probabilities`, `log-probabilities`, `logits` or `label`; seen from the answers where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gives: Option<String>,
    /// The least probability that a logarithm is taken of: lower ones, a teacher's own zeros among them, are raised to it.
    #[serde(default = "least_probability")]
    pub least_probability: f32,
    /// Earlier checkpoints of it, by the names of their teachers in tuition.toml, the earliest first: each is asked about every
    /// input that is learnt from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checkpoints: Vec<String>,
}

impl TeacherConfig {
    fn check(&self, run: &RunConfig) -> Result<(), ConfigError> {
        let fine = self.least_probability > 0.0 && self.least_probability <= 0.1;
        let value = self.least_probability.to_string();
        range("teacher.least_probability", fine, value, "above 0, at most 0.1")?;
        let (asked, learnt) = (self.checkpoints.len(), run.method.progressive.is_some());
        let named = || format!("{:?}", self.checkpoints);
        let needed = if learnt {
            "those that `method.progressive` learns from"
        } else {
            "empty without `method.progressive`: their answers cost"
        };
        range("teacher.checkpoints", (asked > 0) == learnt, named(), needed)?;
        let fine = asked == 0 || run.data.source != Source::Record;
        let needed = "empty with source `record`: they are asked about a data set";
        range("teacher.checkpoints", fine, named(), needed)?;
        match run.budget.calls {
            Some(calls) => range("budget.calls", calls > 0, calls.to_string(), "1 or more"),
            None => {
                Err(ConfigError::Value("`budget.calls` is missing: how many answers may be bought?".into()))
            }
        }
    }
}

fn least_probability() -> f32 {
    LEAST_PROBABILITY
}

/// The `[data]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The kind of source.
    pub source: Source,
    /// The file, folder or pattern; not for `record`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// For `record`: the run whose bought answers are the data set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// For `jsonl` the field of the numbers (`input` where none is named), for `parquet` a column of lists (every column of numbers).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// For `images`: channels, height and width that all are brought to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<[usize; 3]>,
    /// The truth: for `csv`, `jsonl` and `parquet` its column, for `idx` the file of the labels; of `images` it is the folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The test part.
    #[serde(default)]
    pub test: TestPart,
    /// For `idx` with a path as test part: the file of that part's labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_label: Option<String>,
}

/// The kinds of sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// Rows of numbers.
    Csv,
    /// Images of IDX files.
    Idx,
    /// PNG and JPEG files, a folder a class.
    Images,
    /// Objects in lines of JSON.
    Jsonl,
    /// Columns of a Parquet file.
    Parquet,
    /// Files as bytes.
    Files,
    /// What a client bought through the proxy.
    Record,
}

impl Source {
    /// Its name in a run file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Idx => "idx",
            Self::Images => "images",
            Self::Jsonl => "jsonl",
            Self::Parquet => "parquet",
            Self::Files => "files",
            Self::Record => "record",
        }
    }
}

impl DataConfig {
    fn check(&self) -> Result<(), ConfigError> {
        let refused = |field, value: String, range| self::range(field, false, value, range);
        match (&self.input, self.source) {
            (None, _) | (_, Source::Jsonl | Source::Parquet) => {}
            (Some(input), _) => refused(
                "data.input",
                format!("`{input}`"),
                "absent, unless `data.source` is `jsonl` or `parquet`",
            )?,
        }
        match (&self.image, self.source) {
            (None, _) => {}
            (Some([1 | 3, 1..=4096, 1..=4096]), Source::Images) => {}
            (Some(image), Source::Images) => {
                refused(
                    "data.image",
                    format!("{image:?}"),
                    "1 or 3 channels, and a height and a width of 1 to 4096",
                )?;
            }
            (Some(image), _) => {
                refused("data.image", format!("{image:?}"), "absent, unless `data.source` is `images`")?;
            }
        }
        match (&self.label, self.source) {
            (Some(label), Source::Images) => {
                refused("data.label", format!("`{label}`"), "absent: of images the folder is the label")
            }
            _ => Ok(()),
        }
    }
}

/// The test part: a share of the data set by key, or a source of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TestPart {
    /// A share between 0 and 1.
    Share(f64),
    /// A path.
    Path(String),
}

impl Default for TestPart {
    fn default() -> Self {
        Self::Share(0.3)
    }
}

/// The `[budget]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BudgetConfig {
    /// Training and validation answers together; only a run without a teacher may leave it out, which is all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls: Option<u64>,
    /// The share of them that validates.
    #[serde(default = "fifth")]
    pub validation: f64,
}

impl BudgetConfig {
    /// The most answers to learn and validate by.
    #[must_use]
    pub fn answers(&self) -> usize {
        self.calls.and_then(|calls| usize::try_from(calls).ok()).unwrap_or(usize::MAX)
    }
}

impl Default for BudgetConfig {
    fn default() -> Self {
        Self { calls: None, validation: fifth() }
    }
}

fn fifth() -> f64 {
    0.2
}

/// Why a run file cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// It is no TOML.
    #[error("the run file is no TOML: {0}")]
    Syntax(String),
    /// A key or kind that does not exist.
    #[error("unknown {what} `{name}`{}; known here: {known}", hint.as_ref().map(|hint| format!(", did you mean `{hint}`?")).unwrap_or_default())]
    Unknown {
        /// `key` or `kind`.
        what: &'static str,
        /// What was written.
        name: String,
        /// The nearest known name, if one is near.
        hint: Option<String>,
        /// The known names.
        known: String,
    },
    /// A value that does not fit.
    #[error("the run file does not fit: {0}")]
    Value(String),
    /// A number out of its range.
    #[error("`{field}` is {value}; it must be {range}")]
    Range {
        /// The key.
        field: &'static str,
        /// What it holds.
        value: String,
        /// What it may hold.
        range: &'static str,
    },
    /// A key that the source needs.
    #[error("source `{source_kind}` needs `data.{field}`")]
    Missing {
        /// The source.
        source_kind: &'static str,
        /// The key.
        field: &'static str,
    },
    /// An override that is none.
    #[error("`{assignment}` is no override: {reason}")]
    Override {
        /// What was given.
        assignment: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl ConfigError {
    /// Names the unknown key or kind of a deserialization error, and the nearest known one.
    #[must_use]
    pub fn of(error: &toml::de::Error) -> Self {
        let message = error.message();
        let (what, rest) =
            match (message.split_once("unknown field `"), message.split_once("unknown variant `")) {
                (Some((_, rest)), _) => ("key", rest),
                (_, Some((_, rest))) => ("kind", rest),
                _ => return Self::Value(error.to_string().trim_end().to_owned()),
            };
        let mut quoted = rest.split('`');
        let name = quoted.next().unwrap_or_default().to_owned();
        let known: Vec<String> = quoted.skip(1).step_by(2).map(str::to_owned).collect();
        let hint = nearest(&name, &known).map(str::to_owned);
        Self::Unknown { what, name, hint, known: known.join(", ") }
    }
}

impl RunConfig {
    /// Reads a run file, with overrides such as `train.lr=0.01` or `method.losses.0.weight=2`.
    ///
    /// # Errors
    /// The first thing that is wrong, by name.
    pub fn parse(text: &str, overrides: &[String]) -> Result<Self, ConfigError> {
        let mut table: toml::Table =
            text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax(error.to_string()))?;
        for assignment in overrides {
            set(&mut table, assignment)?;
        }
        let config: Self = table.try_into().map_err(|error: toml::de::Error| ConfigError::of(&error))?;
        config.check()?;
        Ok(config)
    }

    fn check_acquire(&self) -> Result<(), ConfigError> {
        let acquire = &self.acquire;
        range("acquire.rounds", acquire.rounds > 0, acquire.rounds.to_string(), "1 or more")?;
        let fine = acquire.policy == Policy::Random || acquire.rounds > 1;
        range(
            "acquire.rounds",
            fine,
            acquire.rounds.to_string(),
            "2 or more, for a policy chooses later rounds",
        )?;
        // Checkpoints are asked about what is bought at once.
        let asked = self.teacher.as_ref().is_some_and(|teacher| !teacher.checkpoints.is_empty());
        let needed = "random with `teacher.checkpoints`, which are asked about the first round alone";
        let fine = acquire.policy == Policy::Random || !asked;
        range("acquire.policy", fine, acquire.policy.name().to_owned(), needed)?;
        range("acquire.share", (0.0..=1.0).contains(&acquire.share), acquire.share.to_string(), "0 to 1")?;
        range("acquire.candidates", acquire.candidates > 0, acquire.candidates.to_string(), "1 or more")?;
        range("acquire.members", acquire.members > 1, acquire.members.to_string(), "2 or more")?;
        range("acquire.steps", acquire.steps != Some(0), "0".into(), "1 or more")?;
        if !acquire.is_plain() && (self.teacher.is_none() || self.data.source == Source::Record) {
            return Err(ConfigError::Value(
                "`acquire` chooses what is bought, and this run buys nothing: it has no [teacher], or its source is `record`".into(),
            ));
        }
        Ok(())
    }

    fn check_explore(&self) -> Result<(), ConfigError> {
        let Some(explore) = &self.explore else { return Ok(()) };
        let refused = |why: &str| Err(ConfigError::Value(format!("`explore` {why}")));
        match (&self.teacher, self.data.source) {
            (None, _) | (_, Source::Record) => {
                return refused(
                    "asks a teacher about inputs that are made, and this run buys nothing: it has no [teacher], or its source is `record`",
                );
            }
            (_, Source::Files) => {
                return refused("makes vectors, and the inputs of source `files` are bytes");
            }
            (Some(teacher), _) if !teacher.checkpoints.is_empty() => {
                return refused(
                    "makes inputs for one teacher, and `teacher.checkpoints` would have to be asked about them too",
                );
            }
            _ => {}
        }
        if let Some(loss) = self.method.losses.iter().find(|loss| loss.asks_truth()) {
            return refused(&format!(
                "makes inputs without a true class, and loss `{}` asks for it (`of = \"truth\"`)",
                loss.name()
            ));
        }
        explore.check(self.budget.calls.unwrap_or(0)).map_err(|error| ConfigError::Value(error.to_string()))
    }

    /// How many answers for inputs of the data set are bought, at most.
    #[must_use]
    pub fn real_answers(&self) -> usize {
        let all = self.budget.answers();
        self.explore.as_ref().map_or(all, |explore| explore.real(all))
    }

    /// Whose answers are learnt from.
    #[must_use]
    pub fn answers_from(&self) -> &str {
        self.teacher.as_ref().map_or("the labels of the data set", |teacher| &teacher.name)
    }

    fn labels_from(&self) -> &'static str {
        if self.teacher.is_some() { "the teacher's labels only" } else { "the labels of the data set only" }
    }

    /// What a run without a teacher may say.
    fn check_labelled(&self) -> Result<(), ConfigError> {
        let learns = self.method.losses.iter().find(|loss| !loss.asks_truth());
        let without = |field: &str| {
            Err(ConfigError::Value(format!(
                "{field} learns from a teacher, and the run file has no [teacher]; without one only `labels` with `of = \"truth\"` is learnt from"
            )))
        };
        match learns {
            Some(loss) => without(&format!("loss `{}`", loss.name())),
            None if self.method.curriculum.is_some() => without("`method.curriculum`"),
            None if self.method.progressive.is_some() => without("`method.progressive`"),
            None if self.data.source == Source::Record => without("source `record`"),
            None => Ok(()),
        }
    }

    /// The resolved run file.
    ///
    /// # Errors
    /// Never for a configuration that was parsed.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        toml::to_string_pretty(self).map_err(|error| ConfigError::Value(error.to_string()))
    }

    fn check(&self) -> Result<(), ConfigError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let fine = !self.name.is_empty() && !self.name.starts_with('.') && self.name.chars().all(plain);
        range(
            "name",
            fine,
            format!("{:?}", self.name),
            "letters, digits, `-`, `_` and `.`, for it names a folder",
        )?;
        match &self.teacher {
            Some(teacher) => teacher.check(self)?,
            None => self.check_labelled()?,
        }
        let share = self.budget.validation;
        range("budget.validation", (0.0..1.0).contains(&share), share.to_string(), "0 to below 1")?;
        if let TestPart::Share(share) = self.data.test {
            range("data.test", share > 0.0 && share < 1.0, share.to_string(), "between 0 and 1, or a path")?;
        }
        self.check_acquire()?;
        self.check_explore()?;
        let of_idx = self.data.source == Source::Idx && matches!(self.data.test, TestPart::Path(_));
        if let (Some(label), false) = (&self.data.test_label, of_idx) {
            let needed = "absent, unless `data.test` is a path and `data.source` is `idx`";
            range("data.test_label", false, format!("`{label}`"), needed)?;
        }
        self.data.check()?;
        match (self.data.source, &self.data.path, &self.data.run) {
            (Source::Record, _, None) => Err(ConfigError::Missing { source_kind: "record", field: "run" }),
            (Source::Record, ..) | (_, Some(_), _) => Ok(()),
            (source, None, _) => Err(ConfigError::Missing { source_kind: source.name(), field: "path" }),
        }
    }
}

/// Refuses a value out of its range.
fn range(field: &'static str, fine: bool, value: String, range: &'static str) -> Result<(), ConfigError> {
    if fine { Ok(()) } else { Err(ConfigError::Range { field, value, range }) }
}

/// Sets one value in a table by its dotted path; a value that is no TOML is taken as text.
fn set(table: &mut toml::Table, assignment: &str) -> Result<(), ConfigError> {
    let wrong = |reason: String| ConfigError::Override { assignment: assignment.to_owned(), reason };
    let (path, value) = assignment.split_once('=').ok_or_else(|| wrong("it has no `=`".into()))?;
    let (path, value) = (path.trim(), value.trim());
    let parsed =
        format!("value = {value}").parse::<toml::Table>().ok().and_then(|mut one| one.remove("value"));
    let value = parsed.unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let mut keys: Vec<&str> = path.split('.').collect();
    let last = keys.pop().filter(|last| !last.is_empty()).ok_or_else(|| wrong("it names no key".into()))?;
    let Some((first, rest)) = keys.split_first() else {
        table.insert(last.to_owned(), value);
        return Ok(());
    };
    let mut at = table.entry(*first).or_insert_with(|| toml::Value::Table(toml::Table::new()));
    for key in rest {
        at = match at {
            toml::Value::Table(table) => {
                table.entry(*key).or_insert_with(|| toml::Value::Table(toml::Table::new()))
            }
            toml::Value::Array(array) => {
                item(array, key).ok_or_else(|| wrong(format!("`{key}` is no place in a list")))?
            }
            _ => return Err(wrong(format!("what stands before `{key}` holds no keys"))),
        };
    }
    match at {
        toml::Value::Table(table) => drop(table.insert(last.to_owned(), value)),
        toml::Value::Array(array) => {
            *item(array, last).ok_or_else(|| wrong(format!("`{last}` is no place in a list")))? = value;
        }
        _ => return Err(wrong(format!("what stands before `{last}` holds no keys"))),
    }
    Ok(())
}

fn item<'a>(array: &'a mut [toml::Value], key: &str) -> Option<&'a mut toml::Value> {
    array.get_mut(key.parse::<usize>().ok()?)
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Every seed is trained and the folder is written.
    Finished(Box<Report>),
    /// The interrupt was set: the state is saved, and the same run with `resume` goes on from it.
    Interrupted {
        /// The seed that was in training.
        seed: u64,
        /// Its steps.
        step: usize,
    },
}

/// The loss of the row `student_alone`: the classes alone that the teacher's answers name.
const ALONE: LossConfig = LossConfig::Labels(LabelsLoss { weight: 1.0, of: Labels::Teacher });

/// Checks whatever can be checked before anything is bought: that the run's student and method suit such inputs, and `pool` more
/// of them that nobody asks about.
///
/// # Errors
/// What cannot be trained, by name.
pub fn check_fit(config: &RunConfig, sample: &Input, pool: usize) -> Result<(), TrainError> {
    fits(&config.student, &config.method, &config.train, sample, pool)
}

/// Trains every seed of a run, scores it on the test part, and writes its folder.
///
/// Beside the method, the same student is trained on the teacher's classes alone, with the same seeds and settings: the
/// row `student_alone` says what the method adds.
///
/// # Errors
/// Whatever cannot be trained or written, by name; checked before the first step where it can be.
pub fn train_run(
    config: &RunConfig,
    split: &Split,
    spend: Spend,
    folder: &Path,
    control: &Control<'_>,
) -> Result<Outcome, TrainError> {
    let alone = MethodConfig::of(vec![ALONE]);
    split.check_test()?;
    let task = Task::new(split, &config.student, &config.method, &config.train)?;
    let checkpoints = folder.join("checkpoints");
    make(&checkpoints)?;
    let resolved = config.to_toml().map_err(|error| TrainError::Export(error.to_string()))?;
    replace(&folder.join("config.toml"), resolved.as_bytes())?;

    let seeds = match train_seeds(&task, split, Some((&checkpoints, "student")), control)? {
        Seeds::Trained(seeds) => seeds,
        Seeds::Interrupted { seed, step } => return Ok(Outcome::Interrupted { seed, step }),
    };
    // Without a teacher the labels are all there is.
    let same = config.method == alone || config.teacher.is_none();
    let alone_scores = if same {
        seeds.scores.clone()
    } else if config.train.alone {
        let task = Task::new(split, &config.student, &alone, &config.train)?;
        match train_seeds(&task, split, Some((&checkpoints, "alone")), control)? {
            Seeds::Trained(alone) => alone.scores,
            Seeds::Interrupted { seed, step } => return Ok(Outcome::Interrupted { seed, step }),
        }
    } else {
        vec![]
    };
    let report = Report {
        method: config.method.name(),
        calls: split.train.len() + split.validation.len(),
        seeds: config.train.seeds.clone(),
        test: Measures::of(&seeds.scores),
        teacher: Row { name: config.answers_from().into(), test: teacher_row(split) },
        student_alone: Row { name: config.labels_from().into(), test: Measures::of(&alone_scores) },
        spend,
    };
    let card = report::card(&config.name, &report, config.student.name(), &split.classes);
    let sample = &split.train[0].input;
    export::save(&folder.join("model"), &seeds.first, &config.student, sample, &split.classes, &card)?;
    report::write(folder, &config.name, &report, &seeds.rows, &manifest(config, split, &seeds.first))?;
    Ok(Outcome::Finished(Box::new(report)))
}

/// Trains every seed and scores it on the test part, keeping nothing: for experiments that compare methods.
///
/// # Errors
/// Whatever cannot be trained, by name. An interrupt is not looked for.
pub fn score_seeds(
    split: &Split,
    student: &StudentConfig,
    method: &MethodConfig,
    config: &TrainConfig,
) -> Result<(Measures, Vec<MetricRow>), TrainError> {
    split.check_test()?;
    let task = Task::new(split, student, method, config)?;
    let control = Control { interrupt: Arc::default(), progress: &|_| {}, resume: false };
    match train_seeds(&task, split, None, &control)? {
        Seeds::Trained(seeds) => Ok((Measures::of(&seeds.scores), seeds.rows)),
        Seeds::Interrupted { seed, step } => Err(TrainError::Diverged { seed, step, loss: f32::NAN }),
    }
}

struct Trained {
    first: Built,
    scores: Vec<Scores>,
    rows: Vec<MetricRow>,
}

enum Seeds {
    Trained(Box<Trained>),
    Interrupted { seed: u64, step: usize },
}

fn train_seeds(
    task: &Task,
    split: &Split,
    kept: Kept<'_>,
    control: &Control<'_>,
) -> Result<Seeds, TrainError> {
    let test: Vec<&Example> = split.test.iter().collect();
    let (mut first, mut scores, mut rows) = (None, Vec::new(), Vec::new());
    for seed in &task.config.seeds {
        let trained = match train(task, *seed, kept, control)? {
            Ended::Finished(trained) => trained,
            Ended::Interrupted { step } => return Ok(Seeds::Interrupted { seed: *seed, step }),
        };
        scores.push(score(&trained.student.logits(&test, &task.device)?, &test));
        rows.extend(trained.rows);
        first.get_or_insert(trained.student);
    }
    let first =
        first.ok_or(TrainError::Range { field: "seeds", value: "[]".into(), range: "at least one" })?;
    Ok(Seeds::Trained(Box::new(Trained { first, scores, rows })))
}

/// The teacher on the test part, by its recorded answers; empty where it was not asked about all of it.
fn teacher_row(split: &Split) -> Measures {
    let classes = split.classes.len();
    let logits: Option<Vec<Vec<f32>>> = split
        .test
        .iter()
        .map(|example| match example.target.as_ref()? {
            Target::Logits(scores) | Target::LogProbabilities(scores) => Some(scores.clone()),
            Target::Label(class) => {
                let mut certain = vec![f32::MIN / 2.0; classes];
                certain[*class as usize] = 0.0;
                Some(certain)
            }
        })
        .collect();
    let test: Vec<&Example> = split.test.iter().collect();
    let labels_only = test.iter().any(|example| matches!(example.target, Some(Target::Label(_))));
    let mut measured: Vec<Scores> = logits.iter().map(|logits| score(logits, &test)).collect();
    for scores in &mut measured {
        if labels_only {
            // A bare class says nothing about how sure the teacher was.
            (scores.ece, scores.loss) = (None, None);
        }
        if test.iter().any(|example| example.truth.is_none()) {
            // Against its own labels the teacher would look perfect.
            (scores.ece, scores.loss) = (None, None);
        }
    }
    Measures::of(&measured)
}

fn manifest(config: &RunConfig, split: &Split, student: &Built) -> serde_json::Value {
    let (data, record) = digests(split);
    serde_json::json!({
        "name": config.name,
        "tuition": env!("CARGO_PKG_VERSION"),
        "device": "cpu",
        "seeds": config.train.seeds,
        "digests": { "data": data, "record": record },
        "examples": {
            "train": split.train.len(),
            "validation": split.validation.len(),
            "test": split.test.len(),
        },
        "classes": split.classes.len(),
        "teacher": { "name": config.answers_from(), "gives": split.gives().map(|signal| signal.name()) },
        "student": { "kind": config.student.name(), "parameters": student.parameters().count() },
        "onnx": { "input": export::INPUT, "output": export::OUTPUT },
    })
}

#[cfg(test)]
mod tests;
