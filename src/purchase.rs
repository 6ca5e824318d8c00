//! What `label`, `plan` and `train` share: a data set as questions, who answers them, and buying with a bar.
//!
//! Must not know what becomes of the answers. Invariant: the same data set and teacher give the same questions in the
//! same order, whatever asks.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tuition_ledger::{Budget, Desk, Limit, Mode, Origin, Scope, Store, Teacher, Usd};
use tuition_trainer::acquire::{self, Buyer, Purchase, Stopped};
use tuition_trainer::data::files::Window;
use tuition_trainer::data::{Collected, DataError, csv, files};
use tuition_trainer::form::{Form, Question};
use tuition_trainer::local::LocalTeacher;

use crate::config::{self, Config, TeacherKind};
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::teachers;
use crate::words::Trouble;

/// The seed of the parts and of the buying order: one for all, so that runs share what was bought.
pub(crate) const SEED: u64 = 0;
/// Questions in one exchange.
const BATCH: usize = 16;
/// Exchanges at a time.
const CONCURRENCY: usize = 2;

/// A teacher that can be asked about a data set.
pub(crate) struct Asked {
    /// The teacher.
    pub(crate) teacher: Arc<LocalTeacher>,
    /// The form of its rows.
    pub(crate) form: Form,
}

impl Asked {
    /// Makes the teacher of this name.
    ///
    /// # Errors
    /// There is none, it cannot be loaded, or it is asked over HTTP.
    pub(crate) fn of(config: &Config, name: &str) -> Result<Self, Trouble> {
        let teacher = config.teacher(name)?;
        local_only(teacher)?;
        let local = teachers::local(teacher)?;
        let form = local.form(&teacher.revision)?;
        Ok(Self { teacher: Arc::new(local), form })
    }

    /// Buys for `run` through `desk`.
    pub(crate) fn buyer(&self, desk: &Arc<Desk>, run: &str) -> Buyer {
        Buyer {
            desk: Arc::clone(desk),
            teacher: Arc::clone(&self.teacher) as Arc<dyn Teacher>,
            form: self.form.clone(),
            run: run.to_owned(),
            mode: Mode::Record,
            batch: BATCH,
            concurrency: CONCURRENCY,
        }
    }

    /// The questions of a source's inputs.
    ///
    /// # Errors
    /// An input that does not fit the teacher.
    pub(crate) fn questions(&self, collected: Collected) -> Result<Vec<Question>, Trouble> {
        Ok(acquire::questions(&self.form, collected)?)
    }
}

fn local_only(teacher: &config::Teacher) -> Result<(), Trouble> {
    match teacher.kind {
        TeacherKind::Onnx { .. } => Ok(()),
        TeacherKind::Http { .. } => Err(Trouble::usage(
            format!(
                "teacher `{}` is asked over HTTP, and a data set is asked of a model that runs here",
                teacher.name
            ),
            "let a client ask it through `tuition serve` with the header `x-tuition-run: NAME`, then train with source = \"record\" and run = \"NAME\"",
        )),
    }
}

/// Reads a CSV file (`.csv`, `.csv.gz`) as vectors, anything else as files of bytes.
///
/// # Errors
/// Unreadable, empty or malformed data.
pub(crate) fn collect(place: &Path, label: Option<&str>) -> Result<Collected, DataError> {
    let name = place.to_string_lossy();
    if name.ends_with(".csv") || name.ends_with(".csv.gz") {
        csv::read(place, label)
    } else {
        files::read(place, &Window::default())
    }
}

/// Makes the budget that a run states for itself, unless the configuration has one of that name. A run that still
/// states the same leaves it as a later command set it.
///
/// # Errors
/// The store cannot be written.
pub(crate) async fn allow(config: &Config, store: &dyn Store, run: &str, calls: u64) -> Result<(), Trouble> {
    if config.budgets.iter().any(|budget| budget.name == run) {
        return Ok(());
    }
    let scope = Scope { run: Some(run.to_owned()), ..Scope::default() };
    let limit = Limit { calls: Some(calls), ..Limit::default() };
    Ok(store.limit(Budget { name: run.to_owned(), scope, limit }, Origin::Config).await?)
}

/// Buys with a bar.
///
/// # Errors
/// The teacher or the store fails; what was bought is kept.
pub(crate) async fn buy(
    buyer: &Buyer,
    questions: &[Question],
    interrupt: &Interrupt,
    json: bool,
) -> Result<Purchase, Trouble> {
    let bar = Progress::new(questions.len() as u64, "answers", json);
    bar.stage(&format!("buying for `{}`", buyer.run));
    let mut tell = |progress: &acquire::Progress| {
        let remark = spent(progress.calls, progress.cost, questions.len());
        bar.stand((progress.bought + progress.known) as u64, progress.total as u64, remark);
    };
    let purchase = buyer.buy(questions, &interrupt.watch(), &mut tell).await;
    bar.finish();
    Ok(purchase?)
}

/// Spend and cap in words.
fn spent(calls: u64, cost: Option<Usd>, cap: usize) -> String {
    let cost = cost.map(|cost| format!(", {cost} dollars")).unwrap_or_default();
    format!("{calls}/{cap} calls spent{cost}")
}

/// What a purchase came to, as JSON.
pub(crate) fn summary(run: &str, teacher: &str, purchase: &Purchase) -> Value {
    let progress = &purchase.progress;
    let stopped = match &purchase.stopped {
        None => None,
        Some(Stopped::Interrupted) => Some("interrupted"),
        Some(Stopped::Budget(_)) => Some("budget"),
    };
    json!({
        "run": run,
        "teacher": teacher,
        "total": progress.total,
        "known": progress.known,
        "bought": progress.bought,
        "calls": progress.calls,
        "usd": progress.cost.map(|cost| cost.to_string()),
        "stopped": stopped,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spend_stands_beside_its_cap() {
        assert_eq!(spent(3, None, 10), "3/10 calls spent");
        assert_eq!(spent(3, Some(Usd::from_nanos(5)), 10), "3/10 calls spent, 0.000000005 dollars");
    }
}
