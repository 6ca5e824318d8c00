//! Where a store is: a folder of this machine, or a database of a PostgreSQL server.
//!
//! Must not open anything or read the environment. Invariant: a password in a URL is never printed.

use std::fmt;
use std::path::{Path, PathBuf};

use url::Url;

/// Where a store is; prints as its URL, without a password.
#[derive(Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// `sled:FOLDER`: the embedded store in a folder.
    Sled(PathBuf),
    /// `postgres://USER@HOST/DATABASE`: the shared store in a database.
    Postgres(DatabaseUrl),
}

/// The URL of a PostgreSQL database.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl(Url);

/// A text that names no store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreUrlError {
    /// `sled:` and nothing behind it.
    #[error("`sled:` names no folder")]
    NoFolder,
    /// No URL of a database. The text is left out: it may hold a password.
    #[error("the URL of the database cannot be read: {0}; use `postgres://USER@HOST/DATABASE`")]
    Database(String),
    /// Another scheme, or none.
    #[error("`{0}:` is no kind of store; use `sled:FOLDER` or `postgres://USER@HOST/DATABASE`")]
    Scheme(String),
    /// No scheme at all.
    #[error("`{0}` is no store; use `sled:FOLDER` or `postgres://USER@HOST/DATABASE`")]
    NoScheme(String),
}

impl StoreUrl {
    /// Reads a URL; a folder in it is relative to `folder`.
    ///
    /// # Errors
    /// The text names no store.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, StoreUrlError> {
        let Some((scheme, rest)) = text.split_once(':') else {
            return Err(StoreUrlError::NoScheme(text.to_owned()));
        };
        match scheme {
            "sled" if rest.is_empty() => Err(StoreUrlError::NoFolder),
            "sled" => Ok(Self::Sled(folder.join(rest))),
            "postgres" | "postgresql" => DatabaseUrl::parse(text).map(Self::Postgres),
            _ => Err(StoreUrlError::Scheme(scheme.to_owned())),
        }
    }

    /// The folder of an embedded store.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Sled(folder) => Some(folder),
            Self::Postgres(_) => None,
        }
    }
}

impl DatabaseUrl {
    fn parse(text: &str) -> Result<Self, StoreUrlError> {
        let wrong = |why: &str| StoreUrlError::Database(why.to_owned());
        let url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
        let named = |name: &str| url.query_pairs().any(|(key, value)| key == name && !value.is_empty());
        if url.path().trim_start_matches('/').is_empty() && !named("dbname") {
            return Err(wrong("it names no database"));
        }
        if url.host_str().is_none_or(str::is_empty) && !named("host") {
            return Err(wrong("it names no host"));
        }
        Ok(Self(url))
    }

    /// The URL as it was given, a password included: for the connection and nothing else.
    pub(crate) fn secret(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.clone();
        // Both only fail on URLs without a host, which hold no user either.
        let _ = shown.set_password(None);
        let kept: Vec<_> = shown.query_pairs().into_owned().filter(|(key, _)| key != "password").collect();
        shown.set_query(None);
        if !kept.is_empty() {
            shown.query_pairs_mut().extend_pairs(kept);
        }
        f.write_str(shown.as_str())
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sled(folder) => write!(f, "sled:{}", folder.display()),
            Self::Postgres(url) => url.fmt(f),
        }
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let found = match StoreUrl::parse(text, Path::new("there")) {
            Ok(url) => format!("{url} {url:?}"),
            Err(error) => error.to_string(),
        };
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn a_store_is_named_by_a_url_and_its_password_is_not_printed() {
        check("sled:./s", "sled:there/./s sled:there/./s");
        check("sled:/s", "sled:/s sled:/s");
        check("sled:", "`sled:` names no folder");
        for secret in ["postgres://u:hunter2@h:5/d", "postgres://u@h:5/d?password=hunter2"] {
            check(secret, "postgres://u@h:5/d postgres://u@h:5/d");
        }
        let socket = "postgresql:///d?host=%2Frun";
        check(socket, &format!("{socket} {socket}"));
        let help = "use `postgres://USER@HOST/DATABASE`";
        let wrong = |why: &str| format!("the URL of the database cannot be read: {why}; {help}");
        check("postgres://u:hunter2@h", &wrong("it names no database"));
        check("postgres:///d", &wrong("it names no host"));
        check("postgres://u:hunter2@h:port/d", &wrong("invalid port number"));
        check(
            "mysql://u:hunter2@h/d",
            &format!("`mysql:` is no kind of store; use `sled:FOLDER` or {}", &help[4..]),
        );
        check("here", &format!("`here` is no store; use `sled:FOLDER` or {}", &help[4..]));
    }
}
