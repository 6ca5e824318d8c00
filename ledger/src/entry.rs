//! The immutable facts that the journal keeps: what was held, asked, answered and paid.
//!
//! Must not know how they are stored or what they add up to. Invariant: a fact is never changed; a correction is a new
//! fact. The serialised form (JSON) is part of the journal's format 1: members may be added, never renamed or reused.

use std::collections::BTreeMap;

use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};

use crate::answer::Usage;
use crate::budget::{Budget, Who};
use crate::money::Amount;
use crate::price::{Price, PriceDigest};
use crate::query::QueryKey;
use crate::time::Timestamp;

/// Numbers the holds of a store, from 1, in the order in which they were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HoldId(pub u64);

/// One fact and the moment at which it was recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When it was recorded; never before the entry in front of it.
    pub at: Timestamp,
    /// What happened.
    pub fact: Fact,
}

/// What an exchange asks and on whose behalf.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    /// Who pays.
    pub who: Who,
    /// The API's name.
    pub dialect: String,
    /// The operation.
    pub operation: String,
    /// The teacher's revision.
    pub revision: String,
    /// The model asked.
    pub model: String,
    /// Forwarded headers that change answers.
    pub headers: BTreeMap<String, String>,
    /// The items asked, no key twice.
    pub items: Vec<HeldItem>,
    /// Whether items that are already known are bought again on purpose.
    pub refresh: bool,
}

/// One item of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldItem {
    /// Its key.
    pub key: QueryKey,
    /// Its sample index.
    pub sample: u32,
    /// Inferences that it takes.
    pub calls: u64,
}

/// One item of a settled exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettledItem {
    /// Its key.
    pub key: QueryKey,
    /// Its exact share of the fee.
    pub share: Amount,
}

/// Who set a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// The configuration, applied at start.
    Config,
    /// A command, while the store was open.
    Command,
}

/// Why a hold ended without an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// No connection to the teacher came about.
    NotConnected,
    /// The teacher refused the request with this status.
    Status(u16),
    /// No complete answer within the time-out.
    TimedOut,
    /// The connection broke off.
    BrokenOff,
    /// The answer was complete, but not what the API promises.
    Malformed,
    /// The answer was larger than is taken.
    TooLarge,
    /// The process that held it ended.
    Crashed,
    /// The process that held it gave up before anything was sent.
    Abandoned,
}

/// How many items were served from the record, what that saved, and how many requests a budget refused.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Tally {
    /// Who was served.
    pub who: Who,
    /// The model whose answers were served.
    pub model: String,
    /// Items answered from the record.
    pub known: u64,
    /// Items answered by a call that somebody else was making.
    pub followed: u64,
    /// What these items had cost when they were bought.
    pub saved: Amount,
    /// Requests that a budget refused.
    #[serde(default)]
    pub refused: u64,
}

/// In text a count of no refusals is left out, as it was before refusals were counted.
impl Serialize for Tally {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let refused = self.refused > 0 || !serializer.is_human_readable();
        let mut fields = serializer.serialize_struct("Tally", if refused { 6 } else { 5 })?;
        fields.serialize_field("who", &self.who)?;
        fields.serialize_field("model", &self.model)?;
        fields.serialize_field("known", &self.known)?;
        fields.serialize_field("followed", &self.followed)?;
        fields.serialize_field("saved", &self.saved)?;
        if refused {
            fields.serialize_field("refused", &self.refused)?;
        }
        fields.end()
    }
}

impl Tally {
    /// Adds `other` where it is of the same party and model; false where it is not.
    pub(crate) fn absorb(&mut self, other: &Self) -> bool {
        let same = self.who == other.who && self.model == other.model;
        if same {
            self.known = self.known.saturating_add(other.known);
            self.followed = self.followed.saturating_add(other.followed);
            self.saved = self.saved.checked_add(other.saved).unwrap_or(self.saved);
            self.refused = self.refused.saturating_add(other.refused);
        }
        same
    }
}

/// A fact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fact {
    /// A process took ownership of the store.
    Opened {
        /// The version of the program.
        program: String,
    },
    /// A price that fees may be computed with from here on.
    Priced {
        /// Its digest.
        digest: PriceDigest,
        /// The price.
        price: Price,
    },
    /// A budget was set, changed or (with nothing limited) lifted.
    Limited {
        /// The budget as it is from here on.
        budget: Budget,
        /// Who set it.
        origin: Origin,
    },
    /// A hold was made; nothing has been sent yet.
    Reserved {
        /// Its number.
        hold: HoldId,
        /// What will be asked.
        exchange: Exchange,
        /// The upper bound that is held.
        amount: Amount,
        /// The price that the fee will be computed with.
        price: Option<PriceDigest>,
        /// Whether the API bills tokens, so that an answer without usage is charged the whole hold.
        metered: bool,
        /// The budgets that cover it, by name.
        budgets: Vec<String>,
    },
    /// The answer came. Blobs: the envelope, then input, body and signals of each item in order.
    Settled {
        /// The hold.
        hold: HoldId,
        /// What the teacher says it used.
        usage: Option<Usage>,
        /// The fee.
        fee: Amount,
        /// Whether the whole hold was charged for want of a stated usage.
        whole_hold: bool,
        /// The reply's media type.
        media: String,
        /// The items.
        items: Vec<SettledItem>,
    },
    /// The call was surely not billed: its hold is free again.
    Released {
        /// The hold.
        hold: HoldId,
        /// Why.
        cause: Cause,
    },
    /// The call may have been billed: its hold counts in full until it is resolved. Blob: what came of the answer.
    Forfeited {
        /// The hold.
        hold: HoldId,
        /// Why.
        cause: Cause,
    },
    /// A person, or the provider's bill, said whether an unknown call was billed.
    Resolved {
        /// The hold.
        hold: HoldId,
        /// Whether it was billed (in full).
        billed: bool,
        /// How that is known.
        why: String,
    },
    /// The answers recorded under a key until now were erased on purpose, question and all. What they cost stays, and
    /// the same question is a miss from here on.
    Forgotten {
        /// The key.
        key: QueryKey,
        /// Why.
        why: String,
    },
    /// Items served without a call since the last such entry.
    Served {
        /// By who and model.
        tallies: Vec<Tally>,
    },
    /// The owner closed the store in good order.
    Closed,
}

impl Fact {
    /// The hold that the fact is about.
    pub fn hold(&self) -> Option<HoldId> {
        match self {
            Self::Reserved { hold, .. }
            | Self::Settled { hold, .. }
            | Self::Released { hold, .. }
            | Self::Forfeited { hold, .. }
            | Self::Resolved { hold, .. } => Some(*hold),
            Self::Opened { .. }
            | Self::Priced { .. }
            | Self::Limited { .. }
            | Self::Forgotten { .. }
            | Self::Served { .. }
            | Self::Closed => None,
        }
    }

    /// The fact's name, as the journal writes it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Opened { .. } => "Opened",
            Self::Priced { .. } => "Priced",
            Self::Limited { .. } => "Limited",
            Self::Reserved { .. } => "Reserved",
            Self::Settled { .. } => "Settled",
            Self::Released { .. } => "Released",
            Self::Forfeited { .. } => "Forfeited",
            Self::Resolved { .. } => "Resolved",
            Self::Forgotten { .. } => "Forgotten",
            Self::Served { .. } => "Served",
            Self::Closed => "Closed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Facts and members that format 1 got after its golden journal was written.
    #[test]
    fn what_was_added_to_the_format_is_spelt_so() {
        #[track_caller]
        fn check(fact: &Fact, text: &str) {
            assert_eq!(serde_json::to_string(fact).unwrap(), text);
            assert_eq!(serde_json::from_str::<Fact>(text).unwrap(), *fact);
        }
        let key = QueryKey::from_bytes([1; 32]);
        check(
            &Fact::Forgotten { key, why: "asked to".into() },
            &format!(r#"{{"Forgotten":{{"key":"{key}","why":"asked to"}}}}"#),
        );
        let who = Who { teacher: "t".into(), run: None, key: None };
        let tally = |refused| Tally {
            who: who.clone(),
            model: "m".into(),
            known: 1,
            followed: 2,
            saved: Amount::ZERO,
            refused,
        };
        let text = |more: &str| {
            format!(
                r#"{{"Served":{{"tallies":[{{"who":{{"teacher":"t","run":null,"key":null}},"model":"m","known":1,"followed":2,"saved":{{"calls":0,"tokens":0,"usd":0}}{more}}}]}}}}"#
            )
        };
        check(&Fact::Served { tallies: vec![tally(0)] }, &text(""));
        check(&Fact::Served { tallies: vec![tally(3)] }, &text(r#","refused":3"#));
        for refused in [0, 3] {
            let bytes = postcard::to_stdvec(&tally(refused)).unwrap();
            assert_eq!(postcard::from_bytes::<Tally>(&bytes).unwrap(), tally(refused));
        }
    }
}
