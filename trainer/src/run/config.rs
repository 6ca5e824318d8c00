//! A run file, RUN.toml: its tables, and what does not go together in it.
//!
//! It must not know how a run is trained. Invariants: an unknown name is answered with the nearest known one; a number out of
//! its range is refused with its key.

use serde::{Deserialize, Serialize};

use super::data::{DataConfig, Source, TestPart};
use super::error::ConfigError;
use crate::explore::ExploreConfig;
use crate::method::MethodConfig;
use crate::question::LEAST_PROBABILITY;
use crate::range::{Judged, OutOfRange};
use crate::selection::{AcquireConfig, Policy, Scorer};
use crate::student::StudentConfig;
use crate::train::TrainConfig;

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
        Judged("teacher").check("least_probability", fine, self.least_probability, "above 0, at most 0.1")?;
        let (asked, learnt) = (self.checkpoints.len(), run.method.progressive.is_some());
        let named = || format!("{:?}", self.checkpoints);
        let needed = if learnt {
            "those that `method.progressive` learns from"
        } else {
            "empty without `method.progressive`: their answers cost"
        };
        Judged("teacher").check("checkpoints", (asked > 0) == learnt, named(), needed)?;
        let fine = asked == 0 || run.data.source != Source::Record;
        let needed = "empty with source `record`: they are asked about a data set";
        Judged("teacher").check("checkpoints", fine, named(), needed)?;
        match run.budget.calls {
            Some(calls) => Ok(Judged("budget").check("calls", calls > 0, calls, "1 or more")?),
            None => {
                Err(ConfigError::Value("`budget.calls` is missing: how many answers may be bought?".into()))
            }
        }
    }
}

fn least_probability() -> f32 {
    LEAST_PROBABILITY
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
        Judged("acquire").check("rounds", acquire.rounds > 0, acquire.rounds, "1 or more")?;
        let fine = acquire.policy == Policy::Random || acquire.rounds > 1;
        Judged("acquire").check(
            "rounds",
            fine,
            acquire.rounds,
            "2 or more, for a policy chooses later rounds",
        )?;
        // Checkpoints are asked about what is bought at once.
        let asked = self.teacher.as_ref().is_some_and(|teacher| !teacher.checkpoints.is_empty());
        let needed = "random with `teacher.checkpoints`, which are asked about the first round alone";
        let fine = acquire.policy == Policy::Random || !asked;
        Judged("acquire").check("policy", fine, acquire.policy.name(), needed)?;
        let fine = acquire.scorer == Scorer::Student || self.method.proxy.is_some();
        Judged("acquire").check("scorer", fine, "proxy", "student without `method.proxy`")?;
        Judged("acquire").check("share", (0.0..=1.0).contains(&acquire.share), acquire.share, "0 to 1")?;
        Judged("acquire").check("candidates", acquire.candidates > 0, acquire.candidates, "1 or more")?;
        Judged("acquire").check("members", acquire.members > 1, acquire.members, "2 or more")?;
        Judged("acquire").check("steps", acquire.steps != Some(0), 0, "1 or more")?;
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

    pub(super) fn labels_from(&self) -> &'static str {
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
        if !fine {
            let (key, value) = ("name".to_owned(), format!("{:?}", self.name));
            let range = "letters, digits, `-`, `_` and `.`, for it names a folder";
            return Err(OutOfRange { key, value, range }.into());
        }
        match &self.teacher {
            Some(teacher) => teacher.check(self)?,
            None => self.check_labelled()?,
        }
        let share = self.budget.validation;
        Judged("budget").check("validation", (0.0..1.0).contains(&share), share, "0 to below 1")?;
        if let TestPart::Share(share) = self.data.test {
            Judged("data").check("test", share > 0.0 && share < 1.0, share, "between 0 and 1, or a path")?;
        }
        self.check_acquire()?;
        self.check_explore()?;
        let of_idx = self.data.source == Source::Idx && matches!(self.data.test, TestPart::Path(_));
        if let (Some(label), false) = (&self.data.test_label, of_idx) {
            let needed = "absent, unless `data.test` is a path and `data.source` is `idx`";
            Judged("data").check("test_label", false, format!("`{label}`"), needed)?;
        }
        self.data.check()?;
        match (self.data.source, &self.data.path, &self.data.run) {
            (Source::Record, _, None) => Err(ConfigError::Missing { source_kind: "record", field: "run" }),
            (Source::Record, ..) | (_, Some(_), _) => Ok(()),
            (source, None, _) => Err(ConfigError::Missing { source_kind: source.name(), field: "path" }),
        }
    }
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
