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
use tuition_trainer::Processor;
use tuition_trainer::hidden::Hidden;
use tuition_trainer::nearest;
use tuition_trainer::port::Port;
use url::Url;

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
        /// The variable or the file that holds its secret.
        key: Option<Given>,
        /// The proxy through which it is reached.
        proxy: Option<Given>,
        /// Headers that are sent along.
        headers: Vec<(String, Given)>,
        /// What `label` and `train` ask of it.
        ask: Box<Ask>,
    },
    /// A model file that runs in this process.
    Onnx {
        /// The file.
        path: PathBuf,
        /// What is recorded of its hidden tensors.
        hidden: Option<Hidden>,
        /// What it runs on; none: CUDA where there is one, else the processor.
        device: Option<Processor>,
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
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Given {
    /// As it stands in the configuration.
    Text(String),
    /// The value of this variable.
    Env(String),
    /// What this file holds.
    File(PathBuf),
}

impl std::fmt::Debug for Given {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Text(..)"),
            Self::Env(name) => f.debug_tuple("Env").field(name).finish(),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
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
    /// A file that is named and does not do.
    #[error("teacher `{teacher}` needs the file `{}`, which {reason}", .file.display())]
    SecretFile {
        /// The teacher.
        teacher: String,
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
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
    /// The teacher's secret and headers, read from `environment` and by `file`, which says what is wrong with one.
    ///
    /// # Errors
    /// A variable that is not set or is empty, a file that does not do, by its name.
    pub(crate) fn secrets(
        &self,
        environment: impl Fn(&str) -> Option<String>,
        file: impl Fn(&Path) -> Result<String, String>,
    ) -> Result<Secrets, ConfigError> {
        let teacher = || self.name.clone();
        let read = |value: &Given| match value {
            Given::Text(text) => Ok(text.clone()),
            Given::Env(variable) => environment(variable)
                .filter(|value| !value.is_empty())
                .ok_or_else(|| ConfigError::Secret { teacher: teacher(), variable: variable.clone() }),
            Given::File(path) => file(path).map_err(|reason| ConfigError::SecretFile {
                teacher: teacher(),
                file: path.clone(),
                reason,
            }),
        };
        let TeacherKind::Http { key, headers, proxy, .. } = &self.kind else { return Ok(Secrets::default()) };
        let headers = headers.iter().map(|(name, value)| Ok((name.clone(), read(value)?)));
        Ok(Secrets {
            key: key.as_ref().map(read).transpose()?,
            proxy: proxy.as_ref().map(read).transpose()?,
            headers: headers.collect::<Result<_, ConfigError>>()?,
        })
    }
}

/// What a teacher is told to let us in; never printed.
#[derive(Default)]
pub(crate) struct Secrets {
    /// The API key.
    pub(crate) key: Option<String>,
    /// The proxy's address, perhaps with a password.
    pub(crate) proxy: Option<String>,
    /// Headers with their values.
    pub(crate) headers: Vec<(String, String)>,
}

/// A line as far as it cannot hold a secret: the name of a table, a key, a number.
fn without_texts(line: &str) -> String {
    let harmless = |text: &str| text.chars().all(|c| c.is_ascii_digit() || ".-+_ ".contains(c));
    match line.split_once('=') {
        Some((_, value)) if harmless(value) => line.to_owned(),
        Some((key, _)) => format!("{key}= ..."),
        None if line.starts_with('[') && !line.contains(['"', '\'']) => line.to_owned(),
        None => "...".to_owned(),
    }
}

/// What the parser says, without the text of a value that it repeats.
fn without_value(reason: &str) -> String {
    const TEXT: &str = "string \"";
    match (reason.find(TEXT), reason.rfind("\", expected")) {
        (Some(start), Some(end)) if start < end => {
            format!("{}a string{}", &reason[..start], &reason[end + 1..])
        }
        _ => reason.to_owned(),
    }
}

/// The parser's error, with the line it stands in and the nearest known key.
fn form(file: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let offset = error.span().map_or(0, |span| span.start).min(text.len());
    let line = text.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count() + 1;
    let file = file.to_owned();
    if error.message().starts_with("unknown field") {
        // What is known stands behind the last of these words: the key itself may hold anything.
        let (key, known) = error.message().rsplit_once("`, expected ").unwrap_or((error.message(), ""));
        let key = key.trim_start_matches("unknown field `").to_owned();
        let known: Vec<String> = known.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        let near = nearest(&key, known.iter().map(String::as_str)).map(str::to_owned);
        return ConfigError::UnknownKey { file, line, key, near, known };
    }
    let text = text.lines().nth(line - 1).unwrap_or_default().trim().to_owned();
    let text = without_texts(&text);
    let reason = without_value(&error.message().replace('\n', ", "));
    ConfigError::Form { file, line, reason, text }
}

#[cfg(test)]
mod tests;
