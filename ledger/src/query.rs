//! A question to a teacher, and the key under which its answer is kept.
//!
//! Must not know any dialect. Invariant: equal keys mean interchangeable answers, so whatever may change an answer is
//! part of the key, and each part is framed by its length.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The domain of the key derivation; a change of what enters a key changes it.
const CONTEXT: &str = "tuition query key 1";

/// BLAKE3 over everything that may change the answer to a query; prints as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueryKey([u8; 32]);

/// A text that is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no key of 64 hex digits")]
pub struct QueryKeyError(String);

/// One item that can be asked by itself: a whole chat request, one text to embed, one row of tensors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    /// The API's name, such as `openai`.
    pub dialect: String,
    /// What is asked of it, such as `chat.completions`.
    pub operation: String,
    /// The teacher's name in the configuration.
    pub teacher: String,
    /// The teacher's revision in the configuration.
    pub revision: String,
    /// Which of several samples of the same question this is.
    pub sample: u32,
    /// Forwarded headers that change answers, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The item in canonical JSON, without what is mere presentation.
    pub input: String,
}

impl Query {
    /// The key of this query.
    pub fn key(&self) -> QueryKey {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        for text in [&self.dialect, &self.operation, &self.teacher, &self.revision] {
            part(text.as_bytes());
        }
        part(&self.sample.to_le_bytes());
        part(&(self.headers.len() as u64).to_le_bytes());
        for (name, value) in &self.headers {
            part(name.as_bytes());
            part(value.as_bytes());
        }
        part(self.input.as_bytes());
        QueryKey(*hasher.finalize().as_bytes())
    }
}

impl QueryKey {
    /// The key with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key's bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for QueryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for QueryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QueryKey({self})")
    }
}

impl FromStr for QueryKey {
    type Err = QueryKeyError;

    fn from_str(text: &str) -> Result<Self, QueryKeyError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| QueryKeyError(text.to_owned()))?;
        Ok(Self(bytes))
    }
}

impl Serialize for QueryKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for QueryKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            text.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query() -> Query {
        Query {
            dialect: "openai".into(),
            operation: "chat.completions".into(),
            teacher: "gpt".into(),
            revision: "1".into(),
            sample: 0,
            headers: BTreeMap::from([("openai-beta".into(), "x".into())]),
            input: "{}".into(),
        }
    }

    #[test]
    fn every_field_enters_the_key() {
        let changes: [fn(&mut Query); 8] = [
            |query| query.dialect.push('x'),
            |query| query.operation.push('x'),
            |query| query.teacher.push('x'),
            |query| query.revision.push('x'),
            |query| query.sample = 1,
            |query| query.headers = BTreeMap::new(),
            |query| query.headers = BTreeMap::from([("openai-beta".into(), "y".into())]),
            |query| query.input.push(' '),
        ];
        let mut keys = std::collections::BTreeSet::from([query().key()]);
        for change in changes {
            let mut changed = query();
            change(&mut changed);
            assert!(keys.insert(changed.key()), "a change left the key as it was: {changed:?}");
        }
    }

    #[test]
    fn text_cannot_move_between_fields() {
        let (mut left, mut right) = (query(), query());
        (left.teacher, left.revision) = ("ab".into(), "c".into());
        (right.teacher, right.revision) = ("a".into(), "bc".into());
        assert_ne!(left.key(), right.key());
    }

    #[test]
    fn the_key_is_pinned() {
        // A record lives for ever: this key may only change together with `CONTEXT`.
        assert_eq!(
            query().key().to_string(),
            "ae8665b6900e227445265668efbaf69fee83520db70eb400de9cd0a121efabf4"
        );
        assert_eq!(query().key().to_string().parse(), Ok(query().key()));
        assert!("xyz".parse::<QueryKey>().is_err());
    }
}
