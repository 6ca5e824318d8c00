//! Whether it was worth it to choose inputs: each method that does, beside the same method on inputs drawn at random.
//!
//! Pure: must not know files or pages. Invariants: the two differ in nothing but how their inputs are found, and are paired by
//! seed; what an interval does not show is not said.

use serde::Serialize;
use tuition_trainer::{Measure, Measures, RunConfig};

use super::cells::{Cell, Score};
use super::config::Sweep;
use super::table::{of, paired};

/// A method that chooses its inputs or makes them, minus the one that draws them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Choice {
    /// The method that chooses.
    pub(crate) method: String,
    /// The method that is the same but for this.
    pub(crate) random: String,
    /// The calls of both.
    pub(crate) budget: u64,
    /// The scores of the one minus those of the other, over the seeds that both have.
    pub(crate) difference: Measures,
    /// By what it is better: the whole 95 % interval lies above zero.
    pub(crate) better_by: Vec<&'static str>,
    /// By what it is worse: the whole interval lies below.
    pub(crate) worse_by: Vec<&'static str>,
}

/// Every method and budget of which the sweep has the same method on inputs drawn at random.
pub(crate) fn choices(sweep: &Sweep, scores: &[Score]) -> Vec<Choice> {
    let mut choices: Vec<Choice> = Vec::new();
    for method in &sweep.methods {
        for budget in &method.budgets {
            let mine = |cell: &&Cell| cell.method == method.name && cell.budget == *budget;
            let random = sweep.cells.iter().filter(mine).find_map(|cell| counterpart(sweep, cell));
            let Some(random) = random else { continue };
            let (own, theirs) = (of(scores, &method.name, *budget), of(scores, random, *budget));
            let Some(difference) = paired(&own, &theirs) else { continue };
            choices.push(Choice {
                method: method.name.clone(),
                random: random.to_owned(),
                budget: *budget,
                better_by: shown(&difference, |mean| mean > 0.0),
                worse_by: shown(&difference, |mean| mean < 0.0),
                difference,
            });
        }
    }
    choices
}

/// The method that differs from a cell's in drawing its inputs, where this cell does not.
fn counterpart<'a>(sweep: &'a Sweep, cell: &Cell) -> Option<&'a str> {
    let drawn = |run: &RunConfig| run.acquire.is_plain() && run.explore.is_none();
    if drawn(&cell.run) {
        return None;
    }
    let beside = sweep.cells.iter().filter(|other| (other.budget, other.seed) == (cell.budget, cell.seed));
    let mut drawn = beside.filter(|other| drawn(&other.run));
    let same = |other: &&Cell| {
        let RunConfig { name, acquire, explore, .. } = other.run.clone();
        RunConfig { name, acquire, explore, ..cell.run.clone() } == other.run
    };
    drawn.find(same).map(|other| other.method.as_str())
}

/// The measures whose difference has a sign, whatever the seeds.
fn shown(difference: &Measures, sign: impl Fn(f64) -> bool) -> Vec<&'static str> {
    let shown = |measure: &Measure| {
        measure.mean.zip(measure.ci95).is_some_and(|(mean, half)| sign(mean) && mean.abs() > half)
    };
    let measures = [("accuracy", &difference.accuracy), ("agreement", &difference.agreement)];
    measures.into_iter().filter(|(_, measure)| shown(measure)).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "name = \"r\"\n[teacher]\nname = \"t\"\n[data]\nsource = \"jsonl\"\npath = \"x\"\n[budget]\ncalls = 9\n\
                       [student]\nkind = \"mlp\"\nhidden = [4]\n[method]\nlosses = [{ kind = \"labels\" }]\n";
    const SWEEP: &str = "name = \"s\"\nrun = \"run.toml\"\nbudgets = [100]\nseeds = [1, 2]\n\
                         [[method]]\nname = \"plain\"\n\
                         [[method]]\nname = \"margin\"\nover.acquire.policy = \"margin\"\nbudgets = [100, 400]\n\
                         [[method]]\nname = \"k-means\"\nover.acquire.first = \"k-means\"\n\
                         [[method]]\nname = \"kd\"\nover.method.losses = [{ kind = \"kd\" }]\n\
                         [[method]]\nname = \"kd-margin\"\nover.method.losses = [{ kind = \"kd\" }]\n\
                         over.acquire.policy = \"margin\"\n\
                         [[method]]\nname = \"longer-margin\"\nover.train.steps = 9\nover.acquire.policy = \"margin\"\n";

    fn score(cell: &Cell, accuracy: f64, agreement: f64) -> Score {
        Score {
            cell: cell.run.name.clone(),
            method: cell.method.clone(),
            budget: cell.budget,
            seed: cell.seed,
            calls: cell.budget,
            usd: None,
            accuracy: Some(accuracy),
            agreement: Some(agreement),
            ece: None,
            loss: None,
            teacher: None,
        }
    }

    #[test]
    fn a_policy_is_held_against_the_same_method_at_random() {
        let sweep = Sweep::parse(SWEEP, RUN).unwrap();
        let scores: Vec<Score> = sweep
            .cells
            .iter()
            .map(|cell| {
                let by_seed = if cell.seed == 1 { 0.0 } else { 0.125 };
                let (accuracy, agreement) = match cell.method.as_str() {
                    "margin" => (0.5, 0.25 + by_seed),
                    "k-means" => (0.125, 0.25 - by_seed),
                    _ => (0.25, 0.25),
                };
                score(cell, accuracy, agreement)
            })
            .collect();
        let found = choices(&sweep, &scores);
        let said: Vec<_> = found
            .iter()
            .map(|choice| {
                let Choice { method, random, budget, better_by, worse_by, difference } = choice;
                let mean = difference.accuracy.mean.unwrap();
                (method.as_str(), random.as_str(), *budget, mean, &better_by[..], &worse_by[..])
            })
            .collect();
        // Two seeds whose differences differ show nothing; with 400 calls nothing was drawn, and nothing is `longer` at random.
        assert_eq!(
            said,
            [
                ("margin", "plain", 100, 0.25, &["accuracy"][..], &[][..]),
                ("k-means", "plain", 100, -0.125, &[][..], &["accuracy"][..]),
                ("kd-margin", "kd", 100, 0.0, &[][..], &[][..]),
            ]
        );
        // One seed has no interval.
        let one: Vec<Score> = scores.into_iter().filter(|score| score.seed == 1).collect();
        assert!(choices(&sweep, &one).iter().all(|choice| choice.better_by.is_empty()));
    }
}
