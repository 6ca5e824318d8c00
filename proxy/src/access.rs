//! Who may ask, and what: client keys, compared by their hash in constant time, and what each is pinned to.
//!
//! Must not know HTTP beyond the headers that carry a key. Invariant: no key is kept, printed or forwarded; which of
//! several keys matched does not show in the time that it took.

use std::net::IpAddr;

use axum::http::HeaderMap;
use subtle::{ConditionallySelectable, ConstantTimeEq};
use tuition_ledger::Mode;

/// A client that may ask.
#[derive(Clone)]
pub struct ClientKey {
    name: String,
    hash: [u8; 32],
    pins: Pins,
}

/// What a client key may do; nothing set: everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pins {
    /// The runs that it may ask for; where there is one, a request need not name it.
    pub runs: Option<Vec<String>>,
    /// The teachers that it may ask, known answers of theirs included.
    pub teachers: Option<Vec<String>>,
    /// Its mode, where the server's is `Record`; a header can only be stricter.
    pub mode: Mode,
}

/// Something that a client key is not pinned to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAllowed {
    #[error("client key `{key}` may ask for {allowed}, and the request names no run (`x-tuition-run`)")]
    NoRun { key: String, allowed: String },
    #[error("client key `{key}` may ask for {allowed}, not for run `{run}`")]
    Run { key: String, run: String, allowed: String },
    #[error("client key `{key}` may ask {allowed}, not teacher `{teacher}`")]
    Teacher { key: String, teacher: String, allowed: String },
}

/// A text that is no hash of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("key `{name}`: `hash` is not 64 hex digits")]
pub struct KeyError {
    /// The key's name.
    pub name: String,
}

impl std::fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientKey")
            .field("name", &self.name)
            .field("pins", &self.pins)
            .finish_non_exhaustive()
    }
}

impl ClientKey {
    /// A client whose key hashes to `hash` (64 hex digits).
    ///
    /// # Errors
    /// A text that is no hash.
    pub fn new(name: impl Into<String>, hash: &str) -> Result<Self, KeyError> {
        let name = name.into();
        match blake3::Hash::from_hex(hash) {
            Ok(hash) => Ok(Self { name, hash: *hash.as_bytes(), pins: Pins::default() }),
            Err(_) => Err(KeyError { name }),
        }
    }

    /// The hash of a key, in hex. Keys are 256 random bits, so a fast hash guards them as well as a slow one.
    pub fn hash(key: &str) -> String {
        blake3::hash(key.as_bytes()).to_hex().to_string()
    }
}

/// The key that a request carries: `Authorization: Bearer KEY`, or `x-api-key: KEY`.
fn presented(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get("authorization").and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    bearer.or_else(|| headers.get("x-api-key").and_then(|value| value.to_str().ok()))
}

/// The client that a request comes from; none where it carries no known key. Every configured key is compared, also
/// those behind one that matches.
pub(crate) fn client<'k>(keys: &'k [ClientKey], headers: &HeaderMap) -> Option<&'k ClientKey> {
    let hash = blake3::hash(presented(headers)?.as_bytes());
    let mut found = u64::MAX;
    for (index, key) in keys.iter().enumerate() {
        let same = key.hash.as_slice().ct_eq(hash.as_bytes().as_slice());
        found.conditional_assign(&(index as u64), same);
    }
    usize::try_from(found).ok().and_then(|found| keys.get(found))
}

impl ClientKey {
    /// Whether two clients have the same key, so that nobody could tell whose request it is.
    pub fn has_key_of(&self, other: &Self) -> bool {
        self.hash == other.hash
    }

    /// The client's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same client, pinned.
    #[must_use]
    pub fn pinned(self, pins: Pins) -> Self {
        Self { pins, ..self }
    }

    /// The run that pays for a request that names `wanted`.
    pub(crate) fn run(&self, wanted: Option<String>) -> Result<Option<String>, NotAllowed> {
        let Some(runs) = &self.pins.runs else { return Ok(wanted) };
        let (key, allowed) = (self.name.clone(), listed("run", runs));
        match (wanted, &runs[..]) {
            (None, [only]) => Ok(Some(only.clone())),
            (None, _) => Err(NotAllowed::NoRun { key, allowed }),
            (Some(run), _) if runs.contains(&run) => Ok(Some(run)),
            (Some(run), _) => Err(NotAllowed::Run { key, run, allowed }),
        }
    }

    /// Whether the client may ask `teacher`.
    pub(crate) fn may_ask(&self, teacher: &str) -> Result<(), NotAllowed> {
        match &self.pins.teachers {
            Some(teachers) if !teachers.iter().any(|known| known == teacher) => Err(NotAllowed::Teacher {
                key: self.name.clone(),
                teacher: teacher.to_owned(),
                allowed: listed("teacher", teachers),
            }),
            _ => Ok(()),
        }
    }

    /// The key's own mode.
    pub(crate) fn mode(&self) -> Mode {
        self.pins.mode
    }
}

fn listed(what: &str, names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    format!("{what}{} {}", if names.len() == 1 { "" } else { "s" }, names.join(", "))
}

/// Whether a web page of another origin sent the request: without keys, a page could spend the money of whoever reads it.
pub(crate) fn is_cross_site(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(origin) = text("origin") else { return false };
    let origin = origin.split_once("://").map_or(origin, |(_, host)| host);
    text("host") != Some(origin)
}

/// Whether only this machine reaches an address; an IPv4 address may be written as an IPv6 one.
pub(crate) fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Whether a request was sent to this machine under its own name. A page whose domain was pointed here (DNS rebinding)
/// names that domain, and would otherwise pass for one of this origin.
pub(crate) fn is_local_name(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get("host") else { return true };
    let Ok(host) = host.to_str() else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    let lower = name.to_ascii_lowercase();
    lower == "localhost" || lower.ends_with(".localhost") || name.parse().is_ok_and(is_loopback)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_by_its_hash() {
        let keys = ["alice", "bob"].map(|name| ClientKey::new(name, &ClientKey::hash(name)).unwrap());
        #[track_caller]
        fn check(keys: &[ClientKey], header: (&'static str, &str), expected: Option<&str>) {
            let mut headers = HeaderMap::new();
            headers.insert(header.0, header.1.parse().unwrap());
            assert_eq!(client(keys, &headers).map(ClientKey::name), expected);
        }
        check(&keys, ("authorization", "Bearer alice"), Some("alice"));
        check(&keys, ("authorization", "bearer bob"), Some("bob"));
        check(&keys, ("x-api-key", "bob"), Some("bob"));
        check(&keys, ("authorization", "Bearer eve"), None);
        check(&keys, ("authorization", "alice"), None);
        check(&keys, ("host", "alice"), None);
        assert_eq!(ClientKey::new("eve", "abc").unwrap_err(), KeyError { name: "eve".into() });
    }

    #[test]
    fn every_key_is_compared() {
        // Two clients of one key, which a configuration does not allow: had the comparison stopped at the first that
        // matched, the last would not be found.
        let keys = ["first", "other", "last"].map(|name| {
            ClientKey::new(name, &ClientKey::hash(if name == "other" { "x" } else { "k" })).unwrap()
        });
        let mut headers = HeaderMap::new();
        headers.insert("x-api-key", "k".parse().unwrap());
        assert_eq!(client(&keys, &headers).map(ClientKey::name), Some("last"));
        assert!(keys[0].has_key_of(&keys[2]) && !keys[0].has_key_of(&keys[1]));
        let printed = format!("{keys:?}");
        assert!(printed.contains("last") && !printed.contains(&ClientKey::hash("k")[..8]), "{printed}");
    }

    #[test]
    fn only_names_of_this_machine_are_local() {
        for (host, expected) in [
            ("127.0.0.1:8080", true),
            ("127.9.9.9", true),
            ("localhost:1", true),
            ("LOCALHOST", true),
            ("tuition.localhost:80", true),
            ("[::1]:8080", true),
            ("[::ffff:127.0.0.1]:8080", true),
            ("evil.example:8080", false),
            ("127.0.0.1.evil.example", false),
            ("localhost.evil.example:8080", false),
            ("192.168.0.7:8080", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("host", host.parse().unwrap());
            assert_eq!(is_local_name(&headers), expected, "{host}");
        }
        assert!(is_local_name(&HeaderMap::new()));
    }

    #[test]
    fn a_page_of_another_origin_is_told_apart() {
        let headers = |origin: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("host", "127.0.0.1:8080".parse().unwrap());
            headers.insert("origin", origin.parse().unwrap());
            headers
        };
        assert!(!is_cross_site(&headers("http://127.0.0.1:8080")));
        assert!(is_cross_site(&headers("https://evil.example")));
        assert!(is_cross_site(&headers("null")));
        assert!(!is_cross_site(&HeaderMap::new()));
    }
}
