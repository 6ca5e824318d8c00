//! Words for people: what happened, what to do about it, and the exit code. The only file that turns errors into them.
//!
//! Must not do anything about an error. Invariant: every message names the thing that it is about.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};
use tuition_ledger::{
    CopyError, DeskError, JournalError, OpenError, QueryKey, Quote, Refusal, StoreError, Unbounded, Unit,
};
use tuition_proxy::{ServeError, SettingsError};
use tuition_trainer::acquire::AcquireError;
use tuition_trainer::data::DataError;
use tuition_trainer::data::record::RecordError;
use tuition_trainer::form::FormError;
use tuition_trainer::question::QuestionError;
use tuition_trainer::teacher::ModelError;
use tuition_trainer::{ExploreError, TrainError};

use crate::config::ConfigError;
use crate::reconcile::BillError;
use crate::setup::SetupError;
use crate::sweep::SweepError;

/// How many known names a message lists.
const LISTED_MAX: usize = 12;
/// How many keys a message lists.
const KEYS_MAX: usize = 3;

/// The pinned exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Fine.
    Fine,
    /// Found something: a discrepancy, a miss.
    Found,
    /// Failed.
    Failed,
    /// The budget stopped it.
    Budget,
}

impl Exit {
    /// The code.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Fine => 0,
            Self::Found => 1,
            Self::Failed => 2,
            Self::Budget => 3,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

/// Everything that ends a command early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The desk: a refusal, a miss, a teacher.
    #[error(transparent)]
    Desk(Box<DeskError>),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Opening or reading a store.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Copying a record.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// Settings that make no HTTP teacher.
    #[error(transparent)]
    Teacher(#[from] SettingsError),
    /// Installing.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A local model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A model that is not one of rows.
    #[error(transparent)]
    Form(#[from] FormError),
    /// A data set.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Buying for a data set.
    #[error(transparent)]
    Acquire(#[from] AcquireError),
    /// The record as a data set.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A provider's bill.
    #[error(transparent)]
    Bill(#[from] BillError),
    /// A run file.
    #[error("the run file `{}`", .file.display())]
    RunFile {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        #[source]
        source: tuition_trainer::ConfigError,
    },
    /// A sweep file.
    #[error("the sweep file `{}`", .file.display())]
    SweepFile {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        #[source]
        source: SweepError,
    },
    /// Training.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// Making inputs.
    #[error(transparent)]
    Explore(#[from] ExploreError),
    /// The server.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// A file, a socket, a signal.
    #[error("{doing}")]
    Io {
        /// What could not be done, with the path.
        doing: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Arguments that do not fit together or name nothing.
    #[error("{what}")]
    Usage {
        /// What is wrong.
        what: String,
        /// What would be right.
        hint: String,
    },
    /// Another room's failure that needs no advice.
    #[error("{0}")]
    Failed(String),
}

impl From<DeskError> for Trouble {
    fn from(error: DeskError) -> Self {
        Self::Desk(Box::new(error))
    }
}

impl Trouble {
    /// `doing` with `path` did not work.
    pub(crate) fn io(doing: &str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        let path: PathBuf = path.into();
        let doing =
            if path == Path::new("") { doing.to_owned() } else { format!("{doing} `{}`", path.display()) };
        Self::Io { doing, source }
    }

    /// Arguments that do not do.
    pub(crate) fn usage(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { what: what.into(), hint: hint.into() }
    }

    /// A failure in words.
    pub(crate) fn failed(what: impl Into<String>) -> Self {
        Self::Failed(what.into())
    }
}

/// What is said about an error.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Words {
    /// What happened.
    pub(crate) what: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
    /// The exit code.
    pub(crate) exit: Exit,
}

impl Words {
    /// The words for `trouble`.
    pub(crate) fn of(trouble: &Trouble) -> Self {
        let (what, hint, exit) = match trouble {
            Trouble::Config(error) => (chain(error), config(error), Exit::Failed),
            Trouble::Desk(error) => desk(error),
            Trouble::Store(error) => (error.to_string(), store(error), Exit::Failed),
            Trouble::Open(error) => (chain(error), opening(error), Exit::Failed),
            Trouble::Copy(error) => (chain(error), copying(error), Exit::Failed),
            Trouble::Teacher(error) => (chain(error), None, Exit::Failed),
            Trouble::Setup(error) => (chain(error), setup(error), Exit::Failed),
            Trouble::Model(error) => (chain(error), model(error), Exit::Failed),
            Trouble::Acquire(AcquireError::Desk(error)) => desk(error),
            Trouble::Acquire(error) => (chain(error), None, Exit::Failed),
            Trouble::Form(error) => (chain(error), None, Exit::Failed),
            Trouble::Data(error) => (chain(error), None, Exit::Failed),
            Trouble::Record(error) => (chain(error), recorded(error), Exit::Failed),
            Trouble::Bill(error) => (chain(error), billed(error), Exit::Failed),
            Trouble::Train(error) => (chain(error), training(error), Exit::Failed),
            Trouble::Explore(ExploreError::Train(error)) => (chain(error), training(error), Exit::Failed),
            Trouble::Explore(error) => (chain(error), None, Exit::Failed),
            Trouble::Serve(error) => (chain(error), None, Exit::Failed),
            Trouble::Usage { what, hint } => (what.clone(), Some(hint.clone()), Exit::Failed),
            Trouble::RunFile { .. } | Trouble::SweepFile { .. } | Trouble::Io { .. } | Trouble::Failed(_) => {
                (chain(trouble), None, Exit::Failed)
            }
        };
        Self { what, hint: hint.filter(|hint| !hint.is_empty()), exit }
    }

    /// As lines for a terminal.
    pub(crate) fn text(&self) -> String {
        match &self.hint {
            Some(hint) => format!("error: {}\n  hint: {hint}", self.what),
            None => format!("error: {}", self.what),
        }
    }

    /// As the one object of `--json`.
    pub(crate) fn json(&self) -> Value {
        json!({"error": {"message": self.what, "hint": self.hint}, "exit": self.exit.code()})
    }
}

/// An error and its causes, outermost first.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text += &format!(": {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn config(error: &ConfigError) -> Option<String> {
    match error {
        ConfigError::UnknownKey { near: Some(near), .. } | ConfigError::NoSuch { near: Some(near), .. } => {
            Some(format!("did you mean `{near}`?"))
        }
        ConfigError::UnknownKey { known, .. } if !known.is_empty() => {
            Some(format!("known here: {}", listed(known, LISTED_MAX)))
        }
        ConfigError::Secret { variable, .. } => {
            Some(format!("set it before the command: `export {variable}=...`"))
        }
        ConfigError::SecretFile { .. } => {
            Some("it holds the secret in one line, readable by nobody else".to_owned())
        }
        ConfigError::NoSuch { what, .. } => Some(format!("add a [[{what}]] to the configuration")),
        ConfigError::Read { .. }
        | ConfigError::UnknownKey { .. }
        | ConfigError::Form { .. }
        | ConfigError::Value { .. } => None,
    }
}

fn desk(error: &DeskError) -> (String, Option<String>, Exit) {
    match error {
        DeskError::Refused(refusal) => (refusal.to_string(), refused(refusal), Exit::Budget),
        DeskError::NotRecorded { keys, quote } => missed(keys, quote),
        DeskError::CircuitOpen { .. } => (
            error.to_string(),
            Some("`tuition audit` lists the unknown calls; `tuition resolve` closes them".to_owned()),
            Exit::Failed,
        ),
        DeskError::Store(inner) => (inner.to_string(), store(inner), Exit::Failed),
        DeskError::Teacher(_) | DeskError::Busy { .. } | DeskError::Draining => {
            (error.to_string(), None, Exit::Failed)
        }
    }
}

fn refused(refusal: &Refusal) -> Option<String> {
    Some(match refusal {
        Refusal::Exhausted { budget, unit, unknown, .. } => {
            let unit = match unit {
                Unit::Calls => "calls",
                Unit::Tokens => "tokens",
                Unit::Usd => "usd",
            };
            let raise = format!("`tuition budget set {budget} --{unit} MORE` raises the limit");
            if *unknown > 0 {
                format!("{raise}; `tuition resolve` gives back unknown calls that were not billed")
            } else {
                raise
            }
        }
        Refusal::Unbounded { why: Unbounded::NoPrice(model), .. } => {
            format!("add a [[price]] with model = \"{model}\" to the configuration")
        }
        Refusal::Unbounded { why: Unbounded::NoInputMaximum(_), .. } => {
            "add `max_input_tokens` to the model's [[price]]".to_owned()
        }
        Refusal::Unbounded { why: Unbounded::NoOutputMaximum(_), .. } => {
            "add `max_output_tokens` to the model's [[price]], or limit the output in the request".to_owned()
        }
        Refusal::Unbounded { .. } => "only a budget in calls can cover it".to_owned(),
        Refusal::NoBudget { .. } => "add a [[budget]], or `unbudgeted = true` under [serve]".to_owned(),
    })
}

fn missed(keys: &[QueryKey], quote: &Quote) -> (String, Option<String>, Exit) {
    let names: Vec<String> = keys.iter().map(ToString::to_string).collect();
    let what = match &names[..] {
        [one] => format!("no answer is recorded under `{one}`"),
        _ => format!("{} answers are not recorded: {}", names.len(), listed(&names, KEYS_MAX)),
    };
    let usd = quote.usd.as_ref().map_or(String::new(), |usd| format!(", {usd} dollars"));
    (what, Some(format!("buying would hold {} calls{usd}", quote.calls)), Exit::Found)
}

fn setup(error: &SetupError) -> Option<String> {
    match error {
        SetupError::NoRuntime => {
            Some("`ORT_DYLIB_PATH` names the library, where one is installed elsewhere".to_owned())
        }
        _ => None,
    }
}

fn recorded(error: &RecordError) -> Option<String> {
    match error {
        RecordError::Empty { .. } => Some(
            "buy some through `tuition serve` with the header `x-tuition-run`, or with `tuition label --run`"
                .to_owned(),
        ),
        RecordError::Hidden { .. } => Some(
            "write `hidden = { every = 1 }` and another `revision` under its [[teacher]]: answers under a new revision are bought anew"
                .to_owned(),
        ),
        RecordError::Unreadable(QuestionError::Output { .. }) => {
            Some("name the output that is learnt from as `output` under [teacher] of the run file".to_owned())
        }
        _ => None,
    }
}

fn billed(error: &BillError) -> Option<String> {
    let map = "`--columns day=COLUMN,model=COLUMN,usd=COLUMN` says what the columns of any CSV mean";
    match error {
        BillError::NotRecognised { .. } => {
            Some(format!("known are the usage and costs exports of OpenAI and of Anthropic; {map}"))
        }
        BillError::NoColumn { near: Some(near), .. } => Some(format!("did you mean `{near}`?")),
        BillError::NoColumn { .. } => Some(map.to_owned()),
        _ => None,
    }
}

fn training(error: &TrainError) -> Option<String> {
    match error {
        TrainError::OtherRun { .. } => {
            Some("leave out `--resume` to start this run anew, or give it another `name`".to_owned())
        }
        _ => None,
    }
}

fn model(error: &ModelError) -> Option<String> {
    match error {
        ModelError::Runtime { .. } => Some("`tuition setup` installs one that fits".to_owned()),
        ModelError::NotOnnx { .. } => Some("`path` of the teacher must name an .onnx file".to_owned()),
        _ => None,
    }
}

fn opening(error: &OpenError) -> Option<String> {
    match error {
        OpenError::Owned(_) => Some("stop the other process, or work through it".to_owned()),
        OpenError::Database { .. } => {
            Some("does the server run, and may this user make tables in that database?".to_owned())
        }
        OpenError::Journal(JournalError::Corrupt { .. } | JournalError::HeaderDamaged) => Some(
            "put a backup in its place, or `tuition doctor --repair`: it keeps the entries before, and sets the rest aside"
                .to_owned(),
        ),
        OpenError::Unreachable { .. } => Some("stop that process, or wait until it has started".to_owned()),
        _ => None,
    }
}

fn copying(error: &CopyError) -> Option<String> {
    match error {
        CopyError::Open(error) => opening(error),
        CopyError::Written(_) => Some("stop whatever buys through it, then copy".to_owned()),
        CopyError::NotEmpty(_) => Some("name a folder or a database that nothing was recorded in".to_owned()),
        CopyError::Source(_) => {
            Some("`tuition audit --verify` lists what is wrong with the source".to_owned())
        }
        CopyError::Target(_) | CopyError::Io { .. } | CopyError::Differs { .. } => {
            Some("nothing was left behind: the copy can be tried again".to_owned())
        }
    }
}

fn store(error: &StoreError) -> Option<String> {
    match error {
        StoreError::Unwritable(_) => {
            Some("make room, then start again; what is known is still served".to_owned())
        }
        StoreError::Gone(_) => Some("start the command again; nothing that was promised is lost".to_owned()),
        StoreError::Unreadable(_) | StoreError::Contradiction(_) => None,
    }
}

fn listed(names: &[String], most: usize) -> String {
    let mut text = names.iter().take(most).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if names.len() > most {
        text += &format!(" and {} more", names.len() - most);
    }
    text
}

/// The words of a configuration error in one line, for the rows of its tests.
#[cfg(test)]
pub(crate) fn one_line(error: &ConfigError) -> String {
    match config(error) {
        Some(hint) => format!("{}; {hint}", chain(error)),
        None => chain(error),
    }
}

#[cfg(test)]
mod tests;
