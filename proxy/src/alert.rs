//! When a budget comes near its end: what is said of it, when, and how a webhook is told.
//!
//! Must not decide what may be spent. Invariants: an alert is raised once, and again only after the budget has had room
//! again; the webhook's address, which is often a secret, is never printed; nobody waits for a webhook.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tuition_ledger::{Present, Refusal, Unit, Window};

use crate::problem::unit_name;
use crate::teacher::{Secret, install_cryptography};

/// Percent of a limit at which an alert is raised.
const LEVELS: [u64; 2] = [80, 100];
/// How many points below its level a budget has to fall before the same alert is raised again: holds come and go.
const RELAPSE: u64 = 10;
/// How long a webhook may take, and the pauses before it is tried again.
const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(10);
const WEBHOOK_PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];

/// A budget that reached a level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Alert {
    pub(crate) budget: String,
    pub(crate) unit: Unit,
    pub(crate) level: u64,
    limit: u64,
    committed: u64,
    window: Window,
}

/// The alerts that have been raised.
#[derive(Debug, Default)]
pub(crate) struct Alerts {
    // Held for a look, never across an await.
    raised: Mutex<BTreeSet<(String, Unit, u64)>>,
}

impl Alerts {
    /// The alerts that the figures of now newly give rise to.
    pub(crate) fn see(&self, present: &Present) -> Vec<Alert> {
        let mut raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner);
        let mut alerts = Vec::new();
        let in_force = |name: &String| present.budgets.iter().any(|(budget, _)| budget.name == *name);
        raised.retain(|(name, ..)| in_force(name));
        for (budget, standing) in &present.budgets {
            for unit in Unit::ALL {
                let Some(limit) = unit.limit(&budget.limit).filter(|limit| *limit > 0) else { continue };
                let committed = standing.committed(unit);
                let reached =
                    |percent: u64| u128::from(committed) * 100 >= u128::from(limit) * u128::from(percent);
                for level in LEVELS {
                    let key = (budget.name.clone(), unit, level);
                    if !reached(level - RELAPSE) {
                        raised.remove(&key);
                    } else if reached(level) && raised.insert(key) {
                        let (budget, window) = (budget.name.clone(), budget.window);
                        alerts.push(Alert { budget, unit, level, limit, committed, window });
                    }
                }
            }
        }
        alerts
    }

    /// The alert of a call that no longer fits: a budget can be at its end with a little left.
    pub(crate) fn refused(&self, refusal: &Refusal) -> Option<Alert> {
        let Refusal::Exhausted { budget, unit, limit, settled, reserved, unknown, window, .. } = refusal
        else {
            return None;
        };
        let committed = settled.saturating_add(*reserved).saturating_add(*unknown);
        // One call that is larger than all that the budget has left says nothing of the others.
        if u128::from(committed) * 100 < u128::from(*limit) * u128::from(LEVELS[1] - RELAPSE) {
            return None;
        }
        let key = (budget.clone(), *unit, LEVELS[1]);
        let mut raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner);
        raised.insert(key).then(|| Alert {
            budget: budget.clone(),
            unit: *unit,
            level: LEVELS[1],
            limit: *limit,
            committed,
            window: *window,
        })
    }
}

impl Alert {
    /// What it says, for people.
    pub(crate) fn words(&self) -> String {
        let what =
            if self.level == LEVELS[1] { "at its end".to_owned() } else { format!("at {} %", self.level) };
        let (committed, limit) = (self.unit.show(self.committed), self.unit.show(self.limit));
        let window = match self.window {
            Window::Forever => "",
            Window::Day => " of today (UTC)",
            Window::Month => " of this month (UTC)",
        };
        format!("budget `{}` is {what}: {committed} of {limit}{window} are committed", self.budget)
    }

    /// What the webhook is sent; chat services show `text`.
    pub(crate) fn message(&self) -> Value {
        json!({
            "text": format!("tuition: {}", self.words()),
            "budget": self.budget,
            "unit": unit_name(self.unit),
            "level": self.level,
            "limit": self.unit.show(self.limit),
            "committed": self.unit.show(self.committed),
            "window": self.window.name(),
        })
    }
}

/// Sends an alert to a webhook, in a few attempts.
pub(crate) async fn send(url: Secret, message: Value) {
    install_cryptography();
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .timeout(WEBHOOK_TIMEOUT);
    let Ok(client) = client.build() else {
        return tracing::warn!("an alert was not sent: no HTTP client");
    };
    for pause in WEBHOOK_PAUSES.map(Some).into_iter().chain([None]) {
        let sent =
            client.post(url.expose()).header("content-type", "application/json").body(message.to_string());
        let why = match sent.send().await {
            Ok(reply) if reply.status().is_success() => return,
            Ok(reply) => format!("status {}", reply.status().as_u16()),
            // Without its URL, which may be a secret.
            Err(error) => error.without_url().to_string(),
        };
        match pause {
            Some(pause) => tokio::time::sleep(pause).await,
            None => tracing::warn!("an alert was not sent: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use tuition_ledger::{Amount, Budget, Limit, Scope, Standing};

    use super::*;

    #[test]
    fn an_alert_is_raised_once_until_the_budget_has_room_again() {
        let alerts = Alerts::default();
        let limit = Limit { calls: Some(10), ..Limit::default() };
        let budget = Budget { name: "b".into(), scope: Scope::default(), limit, window: Window::Day };
        let see = |calls| {
            let settled = Amount { calls, ..Amount::ZERO };
            let standing = Standing { settled, ..Standing::default() };
            let present = Present { budgets: vec![(budget.clone(), standing)], ..Present::default() };
            alerts.see(&present).into_iter().map(|alert| alert.words()).collect::<Vec<_>>()
        };
        assert_eq!(see(7), [""; 0]);
        assert_eq!(see(8), ["budget `b` is at 80 %: 8 calls of 10 calls of today (UTC) are committed"]);
        assert_eq!(see(7), [""; 0]);
        assert_eq!(see(8), [""; 0]);
        assert_eq!(see(10), ["budget `b` is at its end: 10 calls of 10 calls of today (UTC) are committed"]);
        // Another day.
        assert_eq!(see(0), [""; 0]);
        assert_eq!(see(10).len(), 2);
        let refusal = |settled| Refusal::Exhausted {
            budget: "b".into(),
            unit: Unit::Calls,
            limit: 10,
            settled,
            reserved: 0,
            unknown: 0,
            needed: 9,
            window: Window::Day,
        };
        assert_eq!(alerts.refused(&refusal(9)), None, "it has been said");
        assert_eq!(see(0), [""; 0]);
        assert_eq!(alerts.refused(&refusal(5)), None, "a large call does not end a budget");
        assert_eq!(alerts.refused(&refusal(9)).map(|alert| alert.level), Some(100));
        assert_eq!(see(10).len(), 1);
    }
}
