//! What `label`, `plan` and `train` share: who answers questions, in which form, and buying with a bar.
//!
//! Must not know what becomes of the answers. Invariant: nothing is bought but through the desk.

use std::sync::Arc;

use serde_json::{Value, json};
use tuition_ledger::{Budget, Desk, DeskError, Limit, Mode, Origin, Record, Scope, Store, Teacher, Usd};
use tuition_proxy::Api;
use tuition_trainer::acquire::{self, Buyer, Purchase, Stopped};
use tuition_trainer::form::{Form, Question};
use tuition_trainer::local::LocalTeacher;
use tuition_trainer::port::Port;

use crate::config::{self, Ask, Config, TeacherKind};
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
    pub(crate) teacher: Arc<dyn Teacher>,
    /// The form of its rows.
    pub(crate) form: Form,
    /// The most questions of one exchange.
    pub(crate) batch: usize,
}

impl Asked {
    /// Makes the teacher of this name. One over HTTP is asked for its metadata where the configuration does not say what
    /// its rows are; that costs nothing.
    ///
    /// # Errors
    /// There is none, it cannot be loaded or reached, or it takes no rows.
    pub(crate) async fn of(config: &Config, name: &str) -> Result<Self, Trouble> {
        let teacher = config.teacher(name)?;
        match &teacher.kind {
            TeacherKind::Onnx { .. } => {
                let local = teachers::local(teacher)?;
                let form = local.form(&teacher.revision)?;
                Ok(Self::here(local, form))
            }
            TeacherKind::Http { ask, .. } => {
                let model = model(teacher)?;
                let http = teachers::http(teacher)?;
                let form = match &ask.input {
                    Some(input) => stated(teacher, model, ask, std::slice::from_ref(input))?,
                    None => {
                        let metadata = http.metadata(model).await.map_err(DeskError::Teacher)?;
                        let inputs = Port::inputs_of_metadata(&metadata).map_err(|error| {
                            Trouble::failed(format!(
                                "what teacher `{name}` says of model `{model}` is no metadata: {error}"
                            ))
                        })?;
                        stated(teacher, model, ask, &inputs)?
                    }
                };
                let batch = if teacher.rows { BATCH } else { 1 };
                Ok(Self { teacher: Arc::new(http), form, batch })
            }
        }
    }

    /// A model that runs here.
    pub(crate) fn here(teacher: LocalTeacher, form: Form) -> Self {
        Self { teacher: Arc::new(teacher), form, batch: BATCH }
    }

    /// Buys for `run` through `desk`.
    pub(crate) fn buyer(&self, desk: &Arc<Desk>, run: &str) -> Buyer {
        Buyer {
            desk: Arc::clone(desk),
            teacher: Arc::clone(&self.teacher),
            form: self.form.clone(),
            run: run.to_owned(),
            mode: Mode::Record,
            batch: self.batch,
            concurrency: CONCURRENCY,
        }
    }
}

/// The form of a teacher's rows where nobody is to be asked: from its model, its configuration, else from the latest of its
/// `recorded` questions.
///
/// # Errors
/// There is no such teacher, or nothing says what its rows are.
pub(crate) fn form_offline<'r>(
    config: &Config,
    name: &str,
    recorded: impl Iterator<Item = &'r Record>,
) -> Result<Form, Trouble> {
    let teacher = config.teacher(name)?;
    let TeacherKind::Http { ask, .. } = &teacher.kind else {
        return Ok(teachers::local(teacher)?.form(&teacher.revision)?);
    };
    let model = model(teacher)?;
    if let Some(input) = &ask.input {
        return stated(teacher, model, ask, std::slice::from_ref(input));
    }
    let of_model = |record: &&Record| record.model == model && record.query.revision == teacher.revision;
    let latest = recorded.filter(of_model).max_by_key(|record| (record.at, record.key));
    latest.and_then(|record| Form::of_recorded(&record.query)).ok_or_else(|| {
        Trouble::usage(
            format!(
                "offline nobody is asked, and nothing is recorded that says what rows teacher `{name}` takes"
            ),
            "write `ask = { input = \"...\", datatype = \"...\" }` under its [[teacher]]",
        )
    })
}

/// The form that follows from what is stated about a model's inputs.
fn stated(teacher: &config::Teacher, model: &str, ask: &Ask, inputs: &[Port]) -> Result<Form, Trouble> {
    let form = Form::of_ports(&teacher.name, &teacher.revision, model, inputs)?;
    Ok(Form { outputs: ask.outputs.clone(), ..form })
}

/// The model that a data set is asked of.
fn model(teacher: &config::Teacher) -> Result<&str, Trouble> {
    let (name, hint) = (&teacher.name, "write `ask = { model = \"...\" }` under its [[teacher]]");
    let TeacherKind::Http { api: Api::OpenInference, ask, .. } = &teacher.kind else {
        return Err(Trouble::usage(
            format!("teacher `{name}` takes no rows of a data set: it does not speak Open Inference"),
            "let a client ask it through `tuition serve` with the header `x-tuition-run: NAME`, then train with source = \"record\" and run = \"NAME\"",
        ));
    };
    let model = match (&ask.model, &teacher.models[..]) {
        (Some(model), _) => model,
        (None, [only]) if !only.contains('*') => only,
        (None, _) => {
            return Err(Trouble::usage(
                format!("teacher `{name}` may serve several models, and one is asked"),
                hint,
            ));
        }
    };
    let fits = |letter: char| letter.is_ascii_alphanumeric() || "-._~".contains(letter);
    if model.is_empty() || !model.chars().all(fits) {
        return Err(Trouble::usage(
            format!("teacher `{name}`: `{model}` is no name that fits into a URL"),
            hint,
        ));
    }
    Ok(model)
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
    Ok(store
        .limit(
            Budget { name: run.to_owned(), scope, limit, window: tuition_ledger::Window::Forever },
            Origin::Config,
        )
        .await?)
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
