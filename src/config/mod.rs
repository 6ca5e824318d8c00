//! tuition.toml: where the record lies, which teachers there are, what may be spent, what it costs.
//!
//! Must not open stores or sockets, and reads no secret before a teacher is built. Invariant: a value that came
//! through here has been judged; whatever is wrong is answered with the key and its place.

mod check;
mod shape;

pub(crate) use check::webhook;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tuition_ledger::{Budget, PriceBook, StoreUrl};
use tuition_proxy::{Api, ClientKey, Share};
use tuition_trainer::port::Port;
use url::Url;

use crate::nearest::nearest;

/// The file that is read where none is named.
pub(crate) const FILE: &str = "tuition.toml";

/// A configuration whose values have been judged.
#[derive(Debug)]
pub(crate) struct Config {
    /// The file it was read from; none where the defaults stand for it.
    pub(crate) file: Option<PathBuf>,
    /// Where the record lies.
    pub(crate) store: StoreUrl,
    /// `[serve]`
    pub(crate) serve: Serve,
    /// `[[teacher]]`, in the file's order: the first match wins.
    pub(crate) teachers: Vec<Teacher>,
    /// `[[budget]]`
    pub(crate) budgets: Vec<Budget>,
    /// `[[price]]`
    pub(crate) prices: PriceBook,
    /// `[[key]]`
    pub(crate) keys: Vec<ClientKey>,
}

/// `[serve]`
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Serve {
    /// Where to listen.
    pub(crate) listen: SocketAddr,
    /// Whose answers a client is served.
    pub(crate) share: Share,
    /// Whether calls that no budget covers are allowed.
    pub(crate) unbudgeted: bool,
    /// How long a call waits for holds to settle.
    pub(crate) hold_wait: Duration,
    /// The webhook that is told when a budget comes near its end.
    pub(crate) alert_url: Option<Given>,
}

/// One teacher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Teacher {
    /// Its name.
    pub(crate) name: String,
    /// How it is asked.
    pub(crate) kind: TeacherKind,
    /// The models it serves; `*` stands for any text.
    pub(crate) models: Vec<String>,
    /// Part of every key.
    pub(crate) revision: String,
    /// How long a whole answer may take.
    pub(crate) timeout: Duration,
    /// How often a surely unbilled failure is tried again.
    pub(crate) retries: u32,
    /// Whether each row of a tensor is an item.
    pub(crate) rows: bool,
    /// Further statuses that it surely does not bill.
    pub(crate) unbilled: Vec<u16>,
}

/// How a teacher is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TeacherKind {
    /// Over HTTP.
    Http {
        /// Which API it speaks.
        api: Api,
        /// Its base URL.
        url: Url,
        /// The variable that holds its secret.
        key_env: Option<String>,
        /// Headers that are sent along.
        headers: Vec<(String, Given)>,
        /// What `label` and `train` ask of it.
        ask: Box<Ask>,
    },
    /// A model file that runs in this process.
    Onnx {
        /// The file.
        path: PathBuf,
    },
}

/// What a data set is asked of a teacher over HTTP, as far as its metadata are not to say it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ask {
    /// The model; none where the teacher serves one.
    pub(crate) model: Option<String>,
    /// The model's input; none where its metadata state it.
    pub(crate) input: Option<Port>,
    /// The outputs that are asked for by name; none where it gives what is learnt from by itself.
    pub(crate) outputs: Vec<String>,
}

/// A value that may be a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Given {
    /// As it stands in the file.
    Text(String),
    /// The value of this variable.
    Env(String),
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration `{}` cannot be read", .file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A key that nobody knows.
    #[error("{} line {line}: unknown key `{key}`", .file.display())]
    UnknownKey {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key.
        key: String,
        /// The nearest known key.
        near: Option<String>,
        /// All that are known there.
        known: Vec<String>,
    },
    /// Not TOML, or a value of the wrong type.
    #[error("{} line {line}: {reason}, in `{text}`", .file.display())]
    Form {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser says.
        reason: String,
        /// The line's text.
        text: String,
    },
    /// A value that does not do.
    #[error("{}: `{key}`: {reason}", .file.display())]
    Value {
        /// The file, or where else the value comes from.
        file: PathBuf,
        /// The key's path, such as `teacher.gpt.url`.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A variable that is named but not set.
    #[error("teacher `{teacher}` needs the environment variable `{variable}`, which is not set")]
    Secret {
        /// The teacher.
        teacher: String,
        /// The variable.
        variable: String,
    },
    /// A name that the configuration does not have.
    #[error("there is no {what} `{name}` in the configuration")]
    NoSuch {
        /// `teacher`, ...
        what: &'static str,
        /// The name asked for.
        name: String,
        /// The nearest known name.
        near: Option<String>,
    },
}

impl Config {
    /// Reads `file`, or [`FILE`] where none is named and one is there; `store` overrides its store.
    ///
    /// # Errors
    /// The first thing that is wrong, by its key.
    pub(crate) fn load(file: Option<&Path>, store: Option<&str>) -> Result<Self, ConfigError> {
        let named = file.unwrap_or(Path::new(FILE));
        let text = match std::fs::read_to_string(named) {
            Ok(text) => Some(text),
            Err(error) if file.is_none() && error.kind() == std::io::ErrorKind::NotFound => None,
            Err(source) => return Err(ConfigError::Read { file: named.to_owned(), source }),
        };
        let mut config = Self::read(named, text.as_deref().unwrap_or_default())?;
        config.file = text.map(|_| named.to_owned());
        if let Some(url) = store {
            config.store = StoreUrl::parse(url, Path::new(".")).map_err(|error| ConfigError::Value {
                file: "the command line".into(),
                key: "--store".into(),
                reason: error.to_string(),
            })?;
        }
        Ok(config)
    }

    /// Reads the text of `file`; paths in it are relative to the file's folder.
    pub(crate) fn read(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let document = toml::from_str(text).map_err(|error| form(file, text, &error))?;
        check::config(file, document)
    }

    /// The teacher of this name.
    ///
    /// # Errors
    /// There is none; the error knows the nearest.
    pub(crate) fn teacher(&self, name: &str) -> Result<&Teacher, ConfigError> {
        self.teachers.iter().find(|teacher| teacher.name == name).ok_or_else(|| ConfigError::NoSuch {
            what: "teacher",
            name: name.to_owned(),
            near: nearest(name, self.teachers.iter().map(|teacher| teacher.name.as_str())).map(str::to_owned),
        })
    }
}

impl Teacher {
    /// The teacher's secret and headers, read from `environment`.
    ///
    /// # Errors
    /// A variable that is not set, or is empty, by its name.
    pub(crate) fn secrets(
        &self,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Secrets, ConfigError> {
        let read = |variable: &str| {
            environment(variable).filter(|value| !value.is_empty()).ok_or_else(|| ConfigError::Secret {
                teacher: self.name.clone(),
                variable: variable.to_owned(),
            })
        };
        let TeacherKind::Http { key_env, headers, .. } = &self.kind else { return Ok(Secrets::default()) };
        let key = key_env.as_deref().map(read).transpose()?;
        let mut values = Vec::with_capacity(headers.len());
        for (name, value) in headers {
            let value = match value {
                Given::Text(text) => text.clone(),
                Given::Env(variable) => read(variable)?,
            };
            values.push((name.clone(), value));
        }
        Ok(Secrets { key, headers: values })
    }
}

/// What a teacher is told to let us in; never printed.
#[derive(Default)]
pub(crate) struct Secrets {
    /// The API key.
    pub(crate) key: Option<String>,
    /// Headers with their values.
    pub(crate) headers: Vec<(String, String)>,
}

/// The parser's error, with the line it stands in and the nearest known key.
fn form(file: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let offset = error.span().map_or(0, |span| span.start).min(text.len());
    let line = text.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count() + 1;
    let file = file.to_owned();
    if error.message().starts_with("unknown field") {
        let mut names = error.message().split('`').skip(1).step_by(2).map(str::to_owned);
        let key = names.next().unwrap_or_default();
        let known: Vec<String> = names.collect();
        let near = nearest(&key, known.iter().map(String::as_str)).map(str::to_owned);
        return ConfigError::UnknownKey { file, line, key, near, known };
    }
    let text = text.lines().nth(line - 1).unwrap_or_default().trim().to_owned();
    ConfigError::Form { file, line, reason: error.message().replace('\n', ", "), text }
}

#[cfg(test)]
mod tests;
