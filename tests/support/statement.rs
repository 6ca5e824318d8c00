//! A statement as a reader of its JSON sees it.
//! Knows the pinned members; must not add anything up that the statement says itself.
//! Invariant: a member that is missing or of another type fails the test, by name.

use super::{Bill, Client, TestServer};
use serde_json::Value;
use std::time::Duration;

const LOOKS: usize = 100;
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// Calls, tokens and nano-dollars.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amounts {
    pub(crate) calls: u64,
    pub(crate) tokens: u64,
    pub(crate) nanos: u64,
}

/// The statement of `audit --json` or `/api/statement`.
pub(crate) struct Statement(pub(crate) Value);

impl Statement {
    /// What `server` says, and `audit --verify` beside it, once both count the same hits: those are written a second late.
    pub(crate) async fn with_audit(client: &Client, server: &TestServer) -> (Self, Value) {
        for _ in 0..LOOKS {
            let statement = client.statement().await;
            let audit = server.json(&["audit", "--verify"], 0);
            if audit["totals"]["saved"] == statement.0["totals"]["saved"] {
                return (statement, audit);
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
        panic!("the statement and the audit never count the same hits: {}", client.statement().await.0)
    }

    /// One of `settled`, `reserved`, `unknown`, over the whole store.
    pub(crate) fn total(&self, column: &str) -> Amounts {
        let amount = |unit: &str| &self.0["totals"][unit][column];
        Amounts {
            calls: number(amount("calls"), "totals.calls", column),
            tokens: number(amount("tokens"), "totals.tokens", column),
            nanos: nanos(amount("usd"), column),
        }
    }

    /// Settled, reserved and unknown together.
    pub(crate) fn committed(&self) -> Amounts {
        let [settled, reserved, unknown] =
            ["settled", "reserved", "unknown"].map(|column| self.total(column));
        Amounts {
            calls: settled.calls + reserved.calls + unknown.calls,
            tokens: settled.tokens + reserved.tokens + unknown.tokens,
            nanos: settled.nanos + reserved.nanos + unknown.nanos,
        }
    }

    /// A budget by name.
    pub(crate) fn budget(&self, name: &str) -> &Value {
        let budgets = self.0["budgets"].as_array().expect("`budgets` is a list");
        budgets.iter().find(|budget| budget["name"] == name).unwrap_or_else(|| panic!("no budget `{name}`"))
    }

    /// The first money rule, for every budget and every unit that it limits.
    pub(crate) fn assert_within_limits(&self) {
        for budget in self.0["budgets"].as_array().expect("`budgets` is a list") {
            for unit in ["calls", "tokens", "usd"] {
                let limit = &budget["limit"][unit];
                if limit.is_null() {
                    continue;
                }
                let read = |value: &Value, column: &str| match unit {
                    "usd" => nanos(value, column),
                    _ => number(value, unit, column),
                };
                let committed: u64 = ["settled", "reserved", "unknown"]
                    .iter()
                    .map(|column| read(&budget[*column][unit], column))
                    .sum();
                assert!(committed <= read(limit, "limit"), "more {unit} than the limit: {budget}");
            }
        }
    }

    /// The teacher's bill lies between what is settled and what is committed. `before` was read before the statement
    /// was asked for, `after` when it had arrived.
    pub(crate) fn assert_covers(&self, before: Bill, after: Bill) {
        let (settled, committed) = (self.total("settled"), self.committed());
        let low = settled.calls <= after.inferences
            && settled.tokens <= after.tokens
            && settled.nanos <= after.nanos;
        let high = before.inferences <= committed.calls
            && before.tokens <= committed.tokens
            && before.nanos <= committed.nanos;
        assert!(low, "settled {settled:?} is more than the teacher's bill {after:?}");
        assert!(high, "the teacher's bill {before:?} is more than what is committed {committed:?}");
    }
}

fn number(value: &Value, what: &str, column: &str) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("`{what}.{column}` is no whole number: {value}"))
}

/// Nano-dollars of `"1.234567890"`.
fn nanos(value: &Value, column: &str) -> u64 {
    let text = value.as_str().unwrap_or_else(|| panic!("`usd.{column}` is no text: {value}"));
    let (dollars, fraction) = text.split_once('.').unwrap_or((text, ""));
    format!("{dollars}{fraction:0<9}").parse().unwrap_or_else(|_| panic!("`usd.{column}`: `{text}`"))
}
