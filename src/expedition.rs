//! Buying answers about inputs that are made: after the real ones, round by round, within the same budget.
//!
//! Must not know how inputs are made. Invariants: what cannot be explored is refused before anything is bought; each made
//! input is a question like any other, so that it is recorded, counted and known the next time; none of them validates.

use std::sync::Arc;

use tuition_ledger::Record;
use tuition_trainer::acquire;
use tuition_trainer::data::{Collected, Raw};
use tuition_trainer::port::ElementType;
use tuition_trainer::{Control, ExploreConfig, Explorer, Fit, Input, RunConfig, Selector};

use crate::interrupt::Interrupt;
use crate::lesson::{Questions, so_far};
use crate::rounds::Acquired;
use crate::till::Till;
use crate::words::Trouble;
use crate::{print, teachers};

/// How many made inputs a run asks about.
pub(crate) fn count(run: &RunConfig, questions: &Questions) -> usize {
    // What later rounds of `acquire` buy is real as well.
    let real = run.real_answers().min(questions.learn.questions.len() + questions.rest.len());
    run.explore.as_ref().map_or(0, |explore| explore.made(run.budget.answers(), real))
}

/// Refuses what cannot be explored.
///
/// # Errors
/// The teacher takes whole numbers, or the generator's models do not fit.
pub(crate) fn check(run: &RunConfig, questions: &Questions) -> Result<(), Trouble> {
    let Some(explore) = &run.explore else { return Ok(()) };
    let (input, kind) = (&questions.form.input, questions.form.element_type);
    if !matches!(kind, ElementType::F32 | ElementType::F64) {
        return Err(Trouble::usage(
            format!("`explore` makes inputs of any numbers, and the teacher's input `{input}` takes {kind}"),
            "leave out [explore]",
        ));
    }
    if explore.wants_runtime() {
        explorer(run, explore, questions)?;
    }
    Ok(())
}

fn explorer<'a>(
    run: &'a RunConfig,
    explore: &'a ExploreConfig,
    questions: &Questions,
) -> Result<Explorer<'a>, Trouble> {
    let selector = Selector::new(&run.acquire, &run.student, &run.method, &run.train);
    let bought = || questions.learn.questions.iter().map(|question| &question.input);
    let rest = || questions.rest.iter().map(|question| &question.input);
    let test = questions.test.questions.iter().map(|question| &question.input);
    let fit: Vec<&Input> = match explore.fit {
        Fit::Pool => bought().chain(rest()).collect(),
        Fit::Bought => bought().collect(),
    };
    let known: Vec<&Input> = bought().chain(rest()).chain(test).collect();
    let runtime = if explore.wants_runtime() { Some(teachers::runtime()?) } else { None };
    Ok(Explorer::new(explore, run.acquire.seed, selector, &fit, &known, runtime.as_ref())?)
}

/// Makes inputs and buys answers about them; `records` are the answers about real ones. None where it was interrupted.
///
/// # Errors
/// A budget, the teacher, the store; offline what is not recorded; inputs that cannot be made.
pub(crate) async fn explore(
    run: &RunConfig,
    questions: &mut Questions,
    mut records: Vec<Arc<Record>>,
    till: &mut Till<'_>,
    interrupt: &Interrupt,
) -> Result<Option<Vec<Arc<Record>>>, Trouble> {
    let Some(explore) = &run.explore else { return Ok(Some(records)) };
    let bought = questions.learn.questions.len();
    let real = bought - questions.aside.len();
    let before = questions.acquired.iter().map(|acquired| acquired.round).max().unwrap_or(0);
    let by = explore.kind.name();
    let mut explorer = tokio::task::block_in_place(|| explorer(run, explore, questions))?;
    for (at, count) in explore.rounds(explore.made(run.budget.answers(), bought)).into_iter().enumerate() {
        let round = before + 1 + at;
        let answered = so_far(run, questions, &records)?;
        let flag = interrupt.flag();
        print::aside(&format!("making {count} inputs for round {round} ({by})"));
        let made = tokio::task::block_in_place(|| {
            let control = Control { interrupt: flag, progress: &|_| {}, resume: false };
            explorer.next(&answered, real, count, &control)
        })?;
        let Some(made) = made else { return Ok(None) };
        let scores: Vec<Option<f64>> = made.iter().map(|made| made.score).collect();
        let raw = made.into_iter().enumerate().map(|(number, made)| Raw {
            place: format!("input {} of round {round} ({by})", number + 1),
            input: made.input,
            truth: None,
        });
        let asked =
            acquire::questions(&questions.form, Collected { inputs: raw.collect(), ..Collected::default() })?;
        if asked.len() != count {
            return Err(Trouble::failed(format!(
                "round {round} made {count} inputs that differ, and the teacher takes some of them for the same"
            )));
        }
        let Some(answers) = till.answers(&questions.learn.customer, &asked).await? else { return Ok(None) };
        let because = asked.iter().zip(scores);
        let because =
            because.map(|(question, score)| Acquired { key: question.key, round, by, score, chance: None });
        questions.acquired.extend(because);
        questions.learn.questions.extend(asked);
        records.extend(answers);
    }
    Ok(Some(records))
}
