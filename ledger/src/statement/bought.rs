//! What the record says was bought on one day of one model, in the terms of a provider's bill.
//!
//! Must not know any bill. Invariant: a call belongs to the day (UTC) of its hold, and every hold that is not free is in
//! exactly one row, either settled or open.

use std::collections::{BTreeMap, BTreeSet};

use super::{Line, Outcome, Statement};
use crate::answer::Usage;
use crate::entry::HoldId;
use crate::money::Usd;
use crate::time::{Day, Timestamp};

/// A call that was sent and has no settled price yet: it may be on the bill, or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenCall {
    /// The hold.
    pub hold: HoldId,
    /// Whether it is still under way; if not, it is unknown.
    pub under_way: bool,
    /// The most tokens that it can have used; none where nothing bounds them.
    pub tokens: Option<u64>,
    /// The most dollars that it can have cost; none where nothing bounds them.
    pub usd: Option<Usd>,
}

/// A call that was charged its whole hold, because nobody knows what it used: the bill may be lower.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WholeCall {
    /// The hold.
    pub hold: HoldId,
    /// The tokens charged; of no kind.
    pub tokens: u64,
    /// The dollars charged.
    pub usd: Usd,
}

/// The calls of one day and model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bought {
    /// Settled exchanges: one request on the wire each, however many inferences it took.
    pub requests: u64,
    /// Fresh input tokens, as the teacher stated them.
    pub input: u128,
    /// Input tokens read from the provider's prompt cache.
    pub cached_input: u128,
    /// Input tokens written to the provider's prompt cache.
    pub cache_write: u128,
    /// Output tokens, reasoning included.
    pub output: u128,
    /// Tokens of all kinds, and those that were charged without a kind.
    pub tokens: u128,
    /// Nano-dollars.
    pub nanos: u128,
    /// Settled exchanges that no price was known for: they count no dollars.
    pub unpriced: u64,
    /// Calls that were charged whole, in the order of their holds. They are settled, and counted above.
    pub whole: Vec<WholeCall>,
    /// Calls that may have been billed, in the order of their holds. They are not counted above.
    pub open: Vec<OpenCall>,
}

impl Bought {
    /// Adds the calls of another day or model.
    pub fn absorb(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.unpriced = self.unpriced.saturating_add(other.unpriced);
        self.input += other.input;
        self.cached_input += other.cached_input;
        self.cache_write += other.cache_write;
        self.output += other.output;
        self.tokens += other.tokens;
        self.nanos += other.nanos;
        self.whole.extend_from_slice(&other.whole);
        self.open.extend_from_slice(&other.open);
    }

    fn add(&mut self, hold: HoldId, line: &Line) {
        let fee = match &line.outcome {
            Outcome::Free => return,
            Outcome::UnderWay | Outcome::Unknown(_) => {
                let under_way = line.outcome == Outcome::UnderWay;
                return self.open.push(OpenCall {
                    hold,
                    under_way,
                    tokens: line.most_tokens(),
                    usd: line.most_usd(),
                });
            }
            Outcome::Settled(fee) => *fee,
        };
        self.requests += 1;
        self.unpriced += u64::from(!line.priced);
        self.tokens += u128::from(fee.tokens);
        self.nanos += u128::from(fee.usd.nanos());
        match line.used {
            Some(used) => self.count(used),
            None if line.metered => self.whole.push(WholeCall { hold, tokens: fee.tokens, usd: fee.usd }),
            None => {}
        }
    }

    fn count(&mut self, used: Usage) {
        self.input += u128::from(used.input);
        self.cached_input += u128::from(used.cached_input);
        self.cache_write += u128::from(used.cache_write);
        self.output += u128::from(used.output) + u128::from(used.reasoning);
    }
}

impl Line {
    /// A hold of no tokens for an API that bills them was made without a bound.
    fn most_tokens(&self) -> Option<u64> {
        (!self.metered || self.held.tokens > 0).then_some(self.held.tokens)
    }

    fn most_usd(&self) -> Option<Usd> {
        (self.priced && self.most_tokens().is_some()).then_some(self.held.usd)
    }
}

impl Statement {
    /// What was bought, by day and model: of one teacher or of all, from `since` on, before `until`.
    pub fn bought(
        &self,
        teacher: Option<&str>,
        since: Option<Timestamp>,
        until: Option<Timestamp>,
    ) -> BTreeMap<(Day, String), Bought> {
        let mut rows: BTreeMap<(Day, String), Bought> = BTreeMap::new();
        for (hold, line) in &self.lines {
            let (who, model) = &self.parties[line.party];
            let shown = teacher.is_none_or(|teacher| who.teacher == teacher)
                && since.is_none_or(|since| line.at >= since)
                && until.is_none_or(|until| line.at < until);
            if shown && line.outcome != Outcome::Free {
                rows.entry((line.at.day(), model.clone())).or_default().add(*hold, line);
            }
        }
        rows
    }

    /// The teachers that the record names.
    pub fn teachers(&self) -> BTreeSet<&str> {
        self.parties.iter().map(|(who, _)| who.teacher.as_str()).collect()
    }
}
