//! Budgets: which calls they cover, how much they allow, and why a call is refused.
//!
//! Must not know how spending is stored. Invariant: a refusal carries every figure that it was decided by.

use std::fmt;
use std::str::FromStr;

use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};

use crate::money::{Amount, Usd};
use crate::price::{Quote, Unbounded};
use crate::time::{Day, Timestamp};

/// On whose behalf a call is made.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Who {
    /// The teacher's name.
    pub teacher: String,
    /// The run's name, where the caller gave one.
    pub run: Option<String>,
    /// The client key's name, where keys are asked for.
    pub key: Option<String>,
}

/// Which calls a budget covers: those that match every field that is set; none set covers the whole store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// Calls to this teacher.
    pub teacher: Option<String>,
    /// Calls of this run.
    pub run: Option<String>,
    /// Calls of this client key.
    pub key: Option<String>,
}

/// How much is allowed; a unit that is not set is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Inferences.
    pub calls: Option<u64>,
    /// Tokens.
    pub tokens: Option<u64>,
    /// Dollars.
    pub usd: Option<Usd>,
}

/// The stretch of time (UTC) that a limit is for. A call counts in the one in which its hold was made, whenever it settles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Window {
    /// All time.
    #[default]
    Forever,
    /// A day.
    Day,
    /// A month of the calendar.
    Month,
}

/// A named limit on the calls of a scope in a window.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Budget {
    /// Its name.
    pub name: String,
    /// What it covers.
    pub scope: Scope,
    /// How much it allows; nothing set means that it was lifted.
    pub limit: Limit,
    /// For how long it allows that much.
    #[serde(default)]
    pub window: Window,
}

/// What has been committed under a budget or by somebody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Paid.
    pub settled: Amount,
    /// Held for calls under way.
    pub reserved: Amount,
    /// Held for calls that may or may not have been billed.
    pub unknown: Amount,
}

/// A unit that a budget limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Unit {
    /// Inferences.
    Calls,
    /// Tokens.
    Tokens,
    /// Dollars (figures in nano-dollars).
    Usd,
}

/// Why a call is not made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// A budget has not enough left; figures are in its unit (nano-dollars for dollars).
    Exhausted {
        /// The budget.
        budget: String,
        /// The unit that does not suffice.
        unit: Unit,
        /// Its limit.
        limit: u64,
        /// Paid.
        settled: u64,
        /// Held for calls under way.
        reserved: u64,
        /// Held for calls that may have been billed.
        unknown: u64,
        /// What this call would have held.
        needed: u64,
        /// The window that the figures are of.
        window: Window,
    },
    /// A budget limits a unit in which the call has no upper bound.
    Unbounded {
        /// The budget.
        budget: String,
        /// The unit it limits.
        unit: Unit,
        /// What is missing.
        why: Unbounded,
    },
    /// No budget covers the call, and unbudgeted calls are not allowed.
    NoBudget {
        /// Who asked.
        who: Who,
    },
}

impl Scope {
    /// Whether the budget covers calls of `who`.
    pub fn covers(&self, who: &Who) -> bool {
        let matches =
            |wanted: &Option<String>, found: Option<&String>| wanted.is_none() || wanted.as_ref() == found;
        matches(&self.teacher, Some(&who.teacher))
            && matches(&self.run, who.run.as_ref())
            && matches(&self.key, who.key.as_ref())
    }
}

impl Window {
    /// Every window.
    pub const ALL: [Self; 3] = [Self::Forever, Self::Day, Self::Month];

    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forever => "forever",
            Self::Day => "day",
            Self::Month => "month",
        }
    }

    /// The first day of the window that `at` lies in; of all time, the first day that can be named.
    pub fn start(self, at: Timestamp) -> Day {
        match self {
            Self::Forever => Day::default(),
            Self::Day => at.day(),
            Self::Month => at.day().month(),
        }
    }
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|window| window.name() == text);
        found.ok_or_else(|| format!("`{text}` is none of `forever`, `day`, `month`"))
    }
}

impl Limit {
    /// Whether nothing is limited.
    pub fn is_lifted(&self) -> bool {
        *self == Self::default()
    }
}

impl Standing {
    /// Everything that counts against a limit, in one unit; saturates.
    pub fn committed(&self, unit: Unit) -> u64 {
        [self.settled, self.reserved, self.unknown]
            .iter()
            .map(|part| unit.of(part))
            .fold(0, u64::saturating_add)
    }
}

impl Unit {
    /// Every unit.
    pub const ALL: [Self; 3] = [Self::Calls, Self::Tokens, Self::Usd];

    /// The figure of `amount` in this unit.
    pub fn of(self, amount: &Amount) -> u64 {
        match self {
            Self::Calls => amount.calls,
            Self::Tokens => amount.tokens,
            Self::Usd => amount.usd.nanos(),
        }
    }

    /// The limit in this unit.
    pub fn limit(self, limit: &Limit) -> Option<u64> {
        match self {
            Self::Calls => limit.calls,
            Self::Tokens => limit.tokens,
            Self::Usd => limit.usd.map(Usd::nanos),
        }
    }

    /// A figure in this unit as people read it.
    pub fn show(self, figure: u64) -> String {
        match self {
            Self::Calls => format!("{figure} calls"),
            Self::Tokens => format!("{figure} tokens"),
            Self::Usd => format!("{} dollars", Usd::from_nanos(figure)),
        }
    }
}

impl Serialize for Budget {
    /// As derived; but in JSON a window of all time is left out, as it was before there were others, so that the journal's
    /// format 1 stays the same to the byte.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let left_out = serializer.is_human_readable() && self.window == Window::Forever;
        let mut fields = serializer.serialize_struct("Budget", if left_out { 3 } else { 4 })?;
        fields.serialize_field("name", &self.name)?;
        fields.serialize_field("scope", &self.scope)?;
        fields.serialize_field("limit", &self.limit)?;
        if !left_out {
            fields.serialize_field("window", &self.window)?;
        }
        fields.end()
    }
}

impl Budget {
    /// Whether a call with `quote` fits beside what is committed.
    ///
    /// # Errors
    /// The refusal, with its figures.
    pub fn admit(&self, standing: &Standing, quote: &Quote) -> Result<(), Refusal> {
        for unit in Unit::ALL {
            let Some(limit) = unit.limit(&self.limit) else { continue };
            let unbounded =
                |why: &Unbounded| Refusal::Unbounded { budget: self.name.clone(), unit, why: why.clone() };
            let needed = match unit {
                Unit::Calls => quote.calls,
                Unit::Tokens => *quote.tokens.as_ref().map_err(unbounded)?,
                Unit::Usd => quote.usd.as_ref().map_err(unbounded)?.nanos(),
            };
            let committed = standing.committed(unit);
            if committed.checked_add(needed).is_none_or(|sum| sum > limit) {
                return Err(Refusal::Exhausted {
                    budget: self.name.clone(),
                    unit,
                    limit,
                    settled: unit.of(&standing.settled),
                    reserved: unit.of(&standing.reserved),
                    unknown: unit.of(&standing.unknown),
                    needed,
                    window: self.window,
                });
            }
        }
        Ok(())
    }
}

impl Refusal {
    /// Whether the call would fit once the calls under way have settled for nothing: then waiting may help.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Exhausted { limit, settled, reserved, unknown, needed, .. } => {
                *reserved > 0
                    && settled
                        .checked_add(*unknown)
                        .and_then(|sum| sum.checked_add(*needed))
                        .is_some_and(|sum| sum <= *limit)
            }
            Self::Unbounded { .. } | Self::NoBudget { .. } => false,
        }
    }

    /// The budget that refused.
    pub fn budget(&self) -> Option<&str> {
        match self {
            Self::Exhausted { budget, .. } | Self::Unbounded { budget, .. } => Some(budget),
            Self::NoBudget { .. } => None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exhausted { budget, unit, limit, settled, reserved, unknown, needed, window } => write!(
                f,
                "budget `{budget}` is exhausted{}: limit {}, settled {}, held {}, unknown {}; this call would have held {}",
                match window {
                    Window::Forever => "",
                    Window::Day => " for today (UTC)",
                    Window::Month => " for this month (UTC)",
                },
                unit.show(*limit),
                unit.show(*settled),
                unit.show(*reserved),
                unit.show(*unknown),
                unit.show(*needed)
            ),
            Self::Unbounded { budget, unit, why } => {
                let unit = match unit {
                    Unit::Calls => "calls",
                    Unit::Tokens => "tokens",
                    Unit::Usd => "dollars",
                };
                write!(
                    f,
                    "budget `{budget}` limits {unit}, and this call has no upper bound in {unit}: {why}"
                )
            }
            Self::NoBudget { who } => {
                write!(f, "no budget covers a call to teacher `{}`", who.teacher)?;
                if let Some(run) = &who.run {
                    write!(f, " of run `{run}`")?;
                }
                if let Some(key) = &who.key {
                    write!(f, " by key `{key}`")?;
                }
                f.write_str(", and `unbudgeted` is false")
            }
        }
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    fn quote(calls: u64) -> Quote {
        Quote { calls, tokens: Ok(10), usd: Err(Unbounded::NoPrice("m".into())), price: None, metered: true }
    }

    fn standing(settled: u64, reserved: u64, unknown: u64) -> Standing {
        let calls = |calls| Amount { calls, ..Amount::ZERO };
        Standing { settled: calls(settled), reserved: calls(reserved), unknown: calls(unknown) }
    }

    #[track_caller]
    fn check(limit: Limit, standing: Standing, calls: u64, expected: Result<(), (&str, bool)>) {
        let budget = Budget { name: "b".into(), scope: Scope::default(), limit, window: Window::Forever };
        let found = budget.admit(&standing, &quote(calls)).map_err(|why| (why.to_string(), why.may_pass()));
        assert_eq!(found, expected.map_err(|(text, may_pass)| (text.to_owned(), may_pass)));
    }

    #[test]
    fn a_budget_admits_up_to_its_limit() {
        let calls = |calls| Limit { calls: Some(calls), ..Limit::default() };
        check(calls(10), standing(3, 3, 3), 1, Ok(()));
        let text = "budget `b` is exhausted: limit 10 calls, settled 3 calls, held 3 calls, unknown 3 calls; this call would have held 2 calls";
        check(calls(10), standing(3, 3, 3), 2, Err((text, true)));
        let text = "budget `b` is exhausted: limit 10 calls, settled 9 calls, held 1 calls, unknown 0 calls; this call would have held 2 calls";
        check(calls(10), standing(9, 1, 0), 2, Err((text, false)));
        check(Limit { tokens: Some(10), ..Limit::default() }, standing(9, 9, 9), 9, Ok(()));
        let text =
            "budget `b` limits dollars, and this call has no upper bound in dollars: model `m` has no price";
        check(
            Limit { usd: Some(Usd::from_nanos(1)), ..Limit::default() },
            Standing::default(),
            1,
            Err((text, false)),
        );
        check(Limit::default(), standing(u64::MAX, 1, 1), 9, Ok(()));
    }

    #[test]
    fn a_window_of_all_time_is_not_written_and_every_window_is_read() {
        for (window, text) in
            [(Window::Forever, None), (Window::Day, Some("day")), (Window::Month, Some("month"))]
        {
            let limit = Limit { calls: Some(1), ..Limit::default() };
            let budget = Budget { name: "b".into(), scope: Scope::default(), limit, window };
            let json = serde_json::to_value(&budget).unwrap();
            assert_eq!(json.get("window").and_then(|window| window.as_str()), text);
            assert_eq!(serde_json::from_value::<Budget>(json).unwrap(), budget);
            let bytes = postcard::to_stdvec(&budget).unwrap();
            assert_eq!(postcard::from_bytes::<Budget>(&bytes).unwrap(), budget);
        }
    }

    #[test]
    fn a_scope_covers_what_matches_every_field() {
        let who = Who { teacher: "t".into(), run: Some("r".into()), key: None };
        let scope = |teacher: Option<&str>, run: Option<&str>, key: Option<&str>| Scope {
            teacher: teacher.map(str::to_owned),
            run: run.map(str::to_owned),
            key: key.map(str::to_owned),
        };
        assert!(scope(None, None, None).covers(&who));
        assert!(scope(Some("t"), Some("r"), None).covers(&who));
        assert!(!scope(Some("t"), Some("x"), None).covers(&who));
        assert!(!scope(None, None, Some("k")).covers(&who));
    }
}
