//! What Prometheus scrapes: requests by outcome, teachers' failures, and the figures of every budget.
//!
//! Must not know requests. Invariant: counters only grow; the figures of money are the store's own, never counted here.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;

use tuition_ledger::{Amount, Present, Unit};

use crate::problem::unit_name;

/// Counts since the start.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    // Held for one addition, never across an await: every request counts itself once at its end.
    requests: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    failures: Mutex<BTreeMap<(String, &'static str), u64>>,
    alerts: Mutex<BTreeMap<(String, &'static str, u64), u64>>,
}

/// What is measured elsewhere, at this moment.
pub(crate) struct Gauges {
    pub(crate) requests: usize,
    pub(crate) calls: usize,
    pub(crate) waiting: usize,
    pub(crate) draining: bool,
}

impl Metrics {
    /// Counts a request and how it ended.
    pub(crate) fn request(&self, operation: &'static str, outcome: &'static str) {
        add(&self.requests, (operation, outcome));
    }

    /// Counts a teacher's failure.
    pub(crate) fn failure(&self, teacher: &str, kind: &'static str) {
        add(&self.failures, (teacher.to_owned(), kind));
    }

    /// Counts an alert.
    pub(crate) fn alert(&self, budget: &str, unit: &'static str, level: u64) {
        add(&self.alerts, (budget.to_owned(), unit, level));
    }

    /// The text that Prometheus reads (exposition format 0.0.4).
    pub(crate) fn render(&self, present: &Present, gauges: &Gauges) -> String {
        let mut page = Page(String::new());
        page.head("tuition_requests_total", "counter", "Requests by operation and outcome.");
        for ((operation, outcome), count) in lock(&self.requests).iter() {
            page.line("tuition_requests_total", &[("operation", operation), ("outcome", outcome)], count);
        }
        page.head("tuition_teacher_failures_total", "counter", "Calls that a teacher did not answer.");
        for ((teacher, kind), count) in lock(&self.failures).iter() {
            page.line("tuition_teacher_failures_total", &[("teacher", teacher), ("kind", kind)], count);
        }
        page.head(
            "tuition_budget_alerts_total",
            "counter",
            "Budgets that reached a level (percent of a limit).",
        );
        for ((budget, unit, level), count) in lock(&self.alerts).iter() {
            let labels = [("budget", budget.as_str()), ("unit", unit), ("level", &level.to_string())];
            page.line("tuition_budget_alerts_total", &labels, count);
        }
        page.one("tuition_requests_in_flight", "gauge", "Requests under way.", gauges.requests);
        page.one("tuition_calls_in_flight", "gauge", "Calls to teachers under way.", gauges.calls);
        page.one("tuition_calls_waiting", "gauge", "Calls that wait for holds to settle.", gauges.waiting);
        page.one("tuition_draining", "gauge", "Whether no new calls are taken.", u8::from(gauges.draining));
        let writable = u8::from(present.unwritable.is_none());
        page.one("tuition_store_writable", "gauge", "Whether anything can be bought.", writable);
        page.one("tuition_answers", "gauge", "Answers in the record.", present.answers);
        page.one("tuition_known_total", "counter", "Items served from the record.", present.known);
        page.one("tuition_followed_total", "counter", "Items served by another's call.", present.followed);
        page.head("tuition_saved", "gauge", "What items served without a call had cost.");
        for unit in Unit::ALL {
            page.line("tuition_saved", &[("unit", unit_name(unit))], figure(unit, &present.saved));
        }
        page.head("tuition_spent", "gauge", "Everything committed, by state and unit.");
        for (state, amount) in states(&present.total) {
            for unit in Unit::ALL {
                let labels = [("state", state), ("unit", unit_name(unit))];
                page.line("tuition_spent", &labels, figure(unit, amount));
            }
        }
        page.head("tuition_budget", "gauge", "Each budget: limit and what is committed, by unit.");
        for (budget, standing) in &present.budgets {
            for unit in Unit::ALL {
                let Some(limit) = unit.limit(&budget.limit) else { continue };
                let labels =
                    |state| [("budget", budget.name.as_str()), ("state", state), ("unit", unit_name(unit))];
                page.line("tuition_budget", &labels("limit"), show(unit, limit));
                for (state, amount) in states(standing) {
                    page.line("tuition_budget", &labels(state), figure(unit, amount));
                }
            }
        }
        page.0
    }
}

fn states(standing: &tuition_ledger::Standing) -> [(&'static str, &Amount); 3] {
    [("settled", &standing.settled), ("reserved", &standing.reserved), ("unknown", &standing.unknown)]
}

fn figure(unit: Unit, amount: &Amount) -> String {
    show(unit, unit.of(amount))
}

fn show(unit: Unit, figure: u64) -> String {
    match unit {
        Unit::Usd => tuition_ledger::Usd::from_nanos(figure).to_string(),
        Unit::Calls | Unit::Tokens => figure.to_string(),
    }
}

fn lock<T>(counters: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    counters.lock().expect("no code panics while it counts")
}

fn add<K: Ord>(counters: &Mutex<BTreeMap<K, u64>>, key: K) {
    *lock(counters).entry(key).or_default() += 1;
}

struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<String> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
        let _ = writeln!(self.0, "{name}{{{}}} {value}", labels.join(","));
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, kind, help);
        let _ = writeln!(self.0, "{name} {value}");
    }
}
