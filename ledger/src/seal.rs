//! A seal: what a record held at one moment, signed with a key that is kept elsewhere, so that a later copy can be held
//! against it.
//!
//! Pure: must not know files, stores or clocks. Invariant: nothing of a seal is believed before its code was checked, and
//! a part of a record that differs from its seal in any entry differs in a head or a total that is named.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::json::{Json, JsonError};
use crate::statement::{Discrepancy, Statement, View};
use crate::time::Timestamp;

/// The form of seal that this version makes, and the newest that it checks.
pub const SEAL_VERSION: u32 = 1;

/// Keeps the key of seals apart from every other use of the same bytes (BLAKE3's `derive_key`).
const CONTEXT: &str = "tuition 2026-11-25 seal of a record";
/// The member that holds the code.
const MAC: &str = "mac";

/// The key that seals are made and checked with: whoever has it can make seals. Its `Debug` shows nothing of it.
#[derive(Clone)]
pub struct SealKey([u8; 32]);

/// A text that is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("holds no key for seals: that is 64 hexadecimal digits")]
pub struct SealKeyError;

/// Where the chain of one writer stood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedHead {
    /// The writer's name.
    pub writer: String,
    /// Entries of this writer.
    pub entries: u64,
    /// The chain up to the last of them, in hex.
    pub chain: String,
}

/// What a record held. Written by [`Seal::sign`], read by [`Seal::open`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Seal {
    /// The form.
    pub version: u32,
    /// When it was made (RFC 3339).
    pub at: String,
    /// Entries of the record, of all writers.
    pub entries: u64,
    /// The head of every writer, in the order of their names.
    pub heads: Vec<SealedHead>,
    /// The statement's totals.
    pub totals: Value,
}

/// Why a seal is not believed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Not JSON.
    #[error("is no seal")]
    Json(#[from] JsonError),
    /// JSON of another kind.
    #[error("is no seal: it has no `{0}`")]
    Missing(&'static str),
    /// A later version made it.
    #[error("is a seal of form {found}; this version knows forms up to {SEAL_VERSION}")]
    Newer {
        /// Its form.
        found: u64,
    },
    /// Another key made it, or something in it was changed.
    #[error("was made with another key, or was changed since")]
    Mac,
    /// The code is right, and still it does not say what a seal says.
    #[error("is signed, but says something else than a seal does")]
    Form(#[source] serde_json::Error),
}

impl SealKey {
    /// A key of these random bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// As it is written down.
    pub fn secret(&self) -> String {
        hex::encode(self.0)
    }

    fn code(&self, canonical: &str) -> blake3::Hash {
        blake3::keyed_hash(&blake3::derive_key(CONTEXT, &self.0), canonical.as_bytes())
    }
}

impl FromStr for SealKey {
    type Err = SealKeyError;

    fn from_str(text: &str) -> Result<Self, SealKeyError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| SealKeyError)?;
        Ok(Self(bytes))
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey")
    }
}

impl Seal {
    /// What a record holds of which `statement` is the statement and `heads` the heads.
    pub fn new(at: Timestamp, mut heads: Vec<SealedHead>, statement: &Statement) -> Self {
        heads.sort_by(|left, right| left.writer.cmp(&right.writer));
        let (entries, totals) = (heads.iter().map(|head| head.entries).sum(), totals(statement));
        Self { version: SEAL_VERSION, at: at.to_string(), entries, heads, totals }
    }

    /// The seal as it is kept: one JSON object whose `mac` covers the canonical form (RFC 8785) of all else.
    pub fn sign(&self, key: &SealKey) -> Value {
        let mut sealed = serde_json::to_value(self).expect("it has text keys only and cannot fail");
        let text = sealed.to_string();
        let json = Json::parse(text.as_bytes()).expect("JSON that was just written is read");
        sealed[MAC] = key.code(&json.canonical()).to_hex().as_str().into();
        sealed
    }

    /// Reads a seal; believes it only if its code is right.
    ///
    /// # Errors
    /// The text is no seal or one of a later version, it was made with another key, or it was changed.
    pub fn open(text: &[u8], key: &SealKey) -> Result<Self, SealError> {
        let json = Json::parse(text)?;
        let version = json.member("version").and_then(Json::as_u64).ok_or(SealError::Missing("version"))?;
        if version > u64::from(SEAL_VERSION) {
            return Err(SealError::Newer { found: version });
        }
        let Json::Object(mut members) = json else { return Err(SealError::Missing("version")) };
        let at = members.iter().position(|(name, _)| name == MAC).ok_or(SealError::Missing(MAC))?;
        let (_, mac) = members.remove(at);
        let mac = mac.as_str().and_then(|mac| blake3::Hash::from_hex(mac).ok()).ok_or(SealError::Mac)?;
        let canonical = Json::Object(members).canonical();
        // Hashes are compared in constant time.
        if key.code(&canonical) != mac {
            return Err(SealError::Mac);
        }
        serde_json::from_str(&canonical).map_err(SealError::Form)
    }

    /// Where the first entries of a record, as many as are sealed, are not what was sealed. `heads` and `statement` are
    /// those after these entries, or after the last entry where there are fewer.
    pub fn differences(&self, heads: &[SealedHead], statement: &Statement) -> Vec<Discrepancy> {
        let found: u64 = heads.iter().map(|head| head.entries).sum();
        if found < self.entries {
            let what = format!("it is missing: the record ends before it, and {} were sealed", self.entries);
            return vec![Discrepancy { entry: found + 1, what }];
        }
        let mut differences = Vec::new();
        let mut named: BTreeMap<&str, (Option<&SealedHead>, Option<&SealedHead>)> = BTreeMap::new();
        self.heads.iter().for_each(|head| named.entry(&head.writer).or_default().0 = Some(head));
        heads.iter().for_each(|head| named.entry(&head.writer).or_default().1 = Some(head));
        for (writer, pair) in named {
            differences.extend(match pair {
                (Some(sealed), Some(found)) if sealed.entries != found.entries => Some(format!(
                    "writer {writer} has {} of the sealed entries, {} were sealed",
                    found.entries, sealed.entries
                )),
                (Some(sealed), Some(found)) if sealed.chain != found.chain => Some(format!(
                    "the first {} entries of writer {writer} were rewritten: their chain is {}, sealed was {}",
                    sealed.entries, found.chain, sealed.chain
                )),
                (Some(sealed), None) => {
                    Some(format!("the {} entries of writer {writer} that were sealed are gone", sealed.entries))
                }
                (None, Some(_)) => Some(format!("writer {writer} is among the sealed entries, and was not")),
                _ => None,
            });
        }
        compare("totals", &self.totals, &totals(statement), &mut differences);
        differences.into_iter().map(|what| Discrepancy { entry: self.entries, what }).collect()
    }
}

fn totals(statement: &Statement) -> Value {
    statement.to_json(&View::default())["totals"].take()
}

/// Names every figure that was sealed and is another now; what a later version says beside is none of them.
fn compare(name: &str, sealed: &Value, found: &Value, differences: &mut Vec<String>) {
    match sealed {
        Value::Object(members) => {
            for (member, sealed) in members {
                compare(&format!("{name}.{member}"), sealed, &found[member], differences);
            }
        }
        sealed if sealed != found => differences.push(format!("{name}: {found} now, sealed was {sealed}")),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> SealKey {
        SealKey::new([byte; 32])
    }

    fn head(writer: &str, entries: u64, chain: u8) -> SealedHead {
        SealedHead { writer: writer.into(), entries, chain: hex::encode([chain; 32]) }
    }

    fn seal() -> Seal {
        let heads = vec![head("b", 3, 1), head("a", 4, 2)];
        Seal::new(Timestamp(1_795_374_245_007), heads, &Statement::default())
    }

    #[test]
    fn a_seal_is_believed_as_it_was_made_however_it_is_laid_out() {
        let signed = seal().sign(&key(7));
        assert_eq!(seal().entries, 7);
        assert_eq!(signed["totals"]["usd"]["settled"], "0.000000000");
        for text in [signed.to_string(), serde_json::to_string_pretty(&signed).unwrap()] {
            assert_eq!(Seal::open(text.as_bytes(), &key(7)).unwrap(), seal());
        }
    }

    #[test]
    fn a_seal_of_form_1_is_believed_by_every_later_version() {
        const MADE: &str = r#"{"at":"2026-11-22T19:04:05.007Z","entries":7,"heads":[
            {"chain":"0202020202020202020202020202020202020202020202020202020202020202","entries":4,"writer":"a"},
            {"chain":"0101010101010101010101010101010101010101010101010101010101010101","entries":3,"writer":"b"}],
            "mac":"7a005be726e5fc643532f2157dca51796132274f35675a3a3eb1c95c5d28b4fc",
            "totals":{"calls":{"reserved":0,"settled":0,"unknown":0},"saved":{"calls":0,"usd":"0.000000000"},
            "tokens":{"reserved":0,"settled":0,"unknown":0},
            "usd":{"reserved":"0.000000000","settled":"0.000000000","unknown":"0.000000000"}},"version":1}"#;
        let made = Seal::open(MADE.as_bytes(), &key(7)).unwrap();
        assert_eq!(made.differences(&seal().heads, &Statement::default()), []);
    }

    #[test]
    fn a_seal_that_was_changed_or_made_with_another_key_is_refused() {
        let signed = seal().sign(&key(7));
        let check = |change: &dyn Fn(&mut Value), expected: &str| {
            let mut changed = signed.clone();
            change(&mut changed);
            let error = Seal::open(changed.to_string().as_bytes(), &key(7)).unwrap_err();
            assert_eq!(error.to_string(), expected, "{changed}");
        };
        let mac = "was made with another key, or was changed since";
        check(&|seal| seal["at"] = "2026-11-23T19:04:05.007Z".into(), mac);
        check(&|seal| seal["entries"] = 6.into(), mac);
        check(&|seal| seal["heads"][0]["entries"] = 3.into(), mac);
        check(&|seal| seal["heads"][0]["chain"] = "00".into(), mac);
        check(&|seal| seal["heads"] = Value::Array(Vec::new()), mac);
        check(&|seal| seal["totals"]["usd"]["settled"] = "0.000000001".into(), mac);
        check(&|seal| seal["more"] = 1.into(), mac);
        check(&|seal| seal["version"] = 0.into(), mac);
        check(&|seal| seal["mac"] = hex::encode([0; 32]).into(), mac);
        check(&|seal| seal["mac"] = "mac".into(), mac);
        check(&|seal| drop(seal.as_object_mut().unwrap().remove("mac")), "is no seal: it has no `mac`");
        check(&|seal| *seal = Value::Array(Vec::new()), "is no seal: it has no `version`");
        let newer = "is a seal of form 2; this version knows forms up to 1";
        check(&|seal| seal["version"] = 2.into(), newer);
        assert!(matches!(Seal::open(signed.to_string().as_bytes(), &key(8)), Err(SealError::Mac)));
        assert!(matches!(Seal::open(b"not JSON", &key(7)), Err(SealError::Json(_))));
    }

    #[test]
    fn every_difference_is_named() {
        let check = |heads: &[SealedHead], expected: &[(u64, &str)]| {
            let found = seal().differences(heads, &Statement::default());
            let found: Vec<_> = found.iter().map(|found| (found.entry, found.what.as_str())).collect();
            assert_eq!(found, expected);
        };
        let (two, nine) = (hex::encode([2; 32]), hex::encode([9; 32]));
        check(&[head("a", 4, 2), head("b", 3, 1)], &[]);
        check(
            &[head("a", 4, 9), head("b", 3, 1)],
            &[(
                7,
                &format!(
                    "the first 4 entries of writer a were rewritten: their chain is {nine}, sealed was {two}"
                ),
            )],
        );
        check(&[head("a", 4, 2)], &[(5, "it is missing: the record ends before it, and 7 were sealed")]);
        check(
            &[head("a", 5, 2), head("c", 2, 1)],
            &[
                (7, "writer a has 5 of the sealed entries, 4 were sealed"),
                (7, "the 3 entries of writer b that were sealed are gone"),
                (7, "writer c is among the sealed entries, and was not"),
            ],
        );
        let mut sealed = seal();
        sealed.totals["usd"]["settled"] = "0.000000005".into();
        let found = sealed.differences(&sealed.heads, &Statement::default());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].what, "totals.usd.settled: \"0.000000000\" now, sealed was \"0.000000005\"");
    }

    #[test]
    fn a_key_is_read_strictly_and_never_printed() {
        assert_eq!(key(7).secret().parse::<SealKey>().unwrap().0, [7; 32]);
        assert_eq!(format!("{:?}", key(7)), "SealKey");
        for text in ["", "07", &"0".repeat(63), &"g".repeat(64), &"0".repeat(66)] {
            assert_eq!(text.parse::<SealKey>().unwrap_err(), SealKeyError, "{text}");
        }
    }
}
