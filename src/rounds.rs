//! Which inputs a run buys, round by round, and why each was bought.
//!
//! Must not know how inputs are scored (`selection` of the trainer) or what answers cost. Invariants: what validates is drawn at
//! random, whatever the policy; a run without a policy buys in the order of the draw.

use std::collections::BTreeSet;
use std::sync::Arc;

use tuition_ledger::{QueryKey, Record};
use tuition_trainer::data::record;
use tuition_trainer::form::Question;
use tuition_trainer::{Control, Input, Pick, RunConfig, Selector, first, rounds};

use crate::interrupt::Interrupt;
use crate::lesson::{Questions, so_far};
use crate::print;
use crate::purchase::SEED;
use crate::till::Till;
use crate::words::Trouble;

/// Why an input was bought.
#[derive(Debug, Clone)]
pub(crate) struct Acquired {
    /// Its key.
    pub(crate) key: QueryKey,
    /// The round, from 1 on; 0 for what validates.
    pub(crate) round: usize,
    /// The name of how it was drawn or chosen.
    pub(crate) by: &'static str,
    /// What it was chosen by.
    pub(crate) score: Option<f64>,
    /// With what probability it was drawn, out of those that were open in its round; none where it was picked.
    pub(crate) chance: Option<f64>,
}

/// What is bought first, and what is left to choose from.
pub(crate) struct Chosen {
    /// The first round, after what validates.
    pub(crate) learn: Vec<Question>,
    /// What validates.
    pub(crate) aside: BTreeSet<QueryKey>,
    /// Why each of the first round was bought.
    pub(crate) acquired: Vec<Acquired>,
    /// How many answers each later round buys.
    pub(crate) later: Vec<usize>,
    /// What is left, where anybody wants it.
    pub(crate) rest: Vec<Question>,
}

/// Chooses the first round out of `pool`, which lies in the order of a random draw. What validates is the part of the first
/// `budget.calls` inputs (less those that are made) that a run without a policy would set aside.
pub(crate) fn choose(run: &RunConfig, mut pool: Vec<Question>) -> Result<Chosen, Trouble> {
    let drawn = pool.len();
    let mut rest = pool.split_off(run.real_answers().min(drawn));
    let because = |question: &Question, round: usize, by: &'static str, pick: &Pick| Acquired {
        key: question.key,
        round,
        by,
        score: pick.score,
        chance: pick.chance,
    };
    let keys = pool.iter().map(|question| question.key.to_string());
    let aside = record::aside(keys, run.budget.validation, SEED);
    let (validation, train): (Vec<Question>, Vec<Question>) =
        pool.iter().cloned().partition(|question| aside.contains(&question.key.to_string()));
    let aside: BTreeSet<QueryKey> = validation.iter().map(|question| question.key).collect();
    // Each of those that were open had the same chance.
    #[expect(clippy::cast_precision_loss, reason = "counts of inputs")]
    let random = |count: usize, open: usize| {
        let chance = Some(count as f64 / open.max(1) as f64);
        Pick { index: 0, score: None, chance }
    };
    let by_chance = random(validation.len(), drawn);
    let mut acquired: Vec<Acquired> =
        validation.iter().map(|question| because(question, 0, "random", &by_chance)).collect();
    if run.acquire.is_plain() {
        let by_chance = random(train.len(), drawn - validation.len());
        acquired.extend(train.iter().map(|question| because(question, 1, "random", &by_chance)));
        let rest = if run.method.wants_pool() || run.explore.is_some() { rest } else { vec![] };
        return Ok(Chosen { learn: pool, aside, acquired, later: vec![], rest });
    }
    let wanted = train.len();
    let mut open = train;
    open.append(&mut rest);
    let mut later = rounds(&run.acquire, wanted);
    let now = if later.is_empty() { 0 } else { later.remove(0) };
    let inputs: Vec<&Input> = open.iter().map(|question| &question.input).collect();
    let picks = first(&run.acquire, &inputs, now)?;
    let by = run.acquire.first.name();
    let mut learn = validation;
    acquired.extend(picks.iter().map(|pick| because(&open[pick.index], 1, by, pick)));
    let (picked, rest) = take(open, &picks);
    learn.extend(picked);
    Ok(Chosen { learn, aside, acquired, later, rest })
}

/// The picked questions, in the order of the picks, and the others in their own.
fn take(open: Vec<Question>, picks: &[Pick]) -> (Vec<Question>, Vec<Question>) {
    let mut open: Vec<Option<Question>> = open.into_iter().map(Some).collect();
    let picked = picks.iter().filter_map(|pick| open[pick.index].take()).collect();
    (picked, open.into_iter().flatten().collect())
}

/// Buys the rounds after the first, each chosen by what the ones before taught.
pub(crate) async fn later_rounds(
    run: &RunConfig,
    questions: &mut Questions,
    mut records: Vec<Arc<Record>>,
    till: &mut Till<'_>,
    interrupt: &Interrupt,
) -> Result<Option<Vec<Arc<Record>>>, Trouble> {
    let mut selector = Selector::new(&run.acquire, &run.student, &run.method, &run.train);
    for (at, count) in std::mem::take(&mut questions.later).into_iter().enumerate() {
        let round = at + 2;
        let mut bought = so_far(run, questions, &records)?;
        bought.pool = questions.rest.iter().map(record::unasked).collect();
        let flag = interrupt.flag();
        print::aside(&format!("choosing {count} of {} inputs for round {round}", bought.pool.len()));
        let picks = tokio::task::block_in_place(|| {
            let control = Control { interrupt: flag, progress: &|_| {}, resume: false };
            selector.next(&bought, count, round, &control)
        })?;
        let Some(picks) = picks else { return Ok(None) };
        let by = run.acquire.policy.name();
        let because = |pick: &Pick| {
            let (key, score, chance) = (questions.rest[pick.index].key, pick.score, pick.chance);
            Acquired { key, round, by, score, chance }
        };
        questions.acquired.extend(picks.iter().map(because).collect::<Vec<_>>());
        let (picked, rest) = take(std::mem::take(&mut questions.rest), &picks);
        questions.rest = rest;
        let Some(answers) = till.answers(&questions.learn.customer, &picked).await? else { return Ok(None) };
        questions.learn.questions.extend(picked);
        records.extend(answers);
    }
    Ok(Some(records))
}
