//! What the cells of a sweep come to: means with intervals, paired differences, and the calls that each method needs.
//!
//! Pure: must not know files or pages. Invariants: a difference is taken between cells of the same budget and seed; what
//! lies outside the budgets that were tried is bounded, never extrapolated.

use std::collections::BTreeMap;

use serde::Serialize;
use tuition_ledger::Usd;
use tuition_trainer::{Measure, Measures};

use super::cells::{Cell, Score, dollars};
use super::choice::{Choice, choices};
use super::config::Sweep;

/// The measures of a sweep.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Results {
    /// The sweep.
    pub(crate) sweep: String,
    /// The method that the others are held against.
    pub(crate) baseline: Option<String>,
    /// Every cell that finished, in the sweep's order.
    pub(crate) cells: Vec<Score>,
    /// Cells that did not.
    pub(crate) unfinished: Vec<String>,
    /// One row for each method and budget of which a cell finished.
    pub(crate) table: Vec<Row>,
    /// By accuracy and by agreement, where there is a baseline.
    pub(crate) calls_needed: Vec<Race>,
    /// Each method that chooses its inputs beside the same one that does not, where the sweep has both.
    pub(crate) choices: Vec<Choice>,
    /// How many checkpoints a method asks beside the teacher, about every input; methods that ask none are left out.
    pub(crate) checkpoints: BTreeMap<String, usize>,
    /// The teacher's own accuracy on the part that is judged by, where the truth is known.
    pub(crate) teacher_accuracy: Option<f64>,
}

/// A method with one budget, over its seeds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Row {
    /// The method.
    pub(crate) method: String,
    /// The calls.
    pub(crate) budget: u64,
    /// The seeds that finished.
    pub(crate) seeds: Vec<u64>,
    /// What the answers of a cell cost, averaged over the seeds and rounded up.
    #[serde(serialize_with = "dollars")]
    pub(crate) usd: Option<Usd>,
    /// The scores.
    pub(crate) test: Measures,
    /// The scores minus those of the baseline with the same budget and seeds; absent for itself, and where no seed is common.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) against_baseline: Option<Measures>,
}

/// How many calls each method needs to reach what the baseline reaches with its largest budget.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Race {
    /// `accuracy` or `agreement`.
    pub(crate) by: &'static str,
    /// The baseline's largest budget.
    pub(crate) budget: u64,
    /// What it reaches with it: a mean over seeds.
    pub(crate) target: f64,
    /// What each method needs.
    pub(crate) methods: Vec<Needed>,
}

/// What one method needs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Needed {
    /// The method.
    pub(crate) method: String,
    /// How the calls are meant.
    pub(crate) bound: Bound,
    /// The calls.
    pub(crate) calls: f64,
    /// The baseline's calls over these: a lower bound where `calls` is an upper one, and the other way round.
    pub(crate) factor: f64,
}

/// How a number of calls is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Bound {
    /// Between two budgets that were tried.
    About,
    /// The smallest budget is enough.
    AtMost,
    /// The largest budget is not.
    MoreThan,
}

type Pick = fn(&Score) -> Option<f64>;

const ACCURACY: Pick = |score| score.accuracy;
const AGREEMENT: Pick = |score| score.agreement;
const ECE: Pick = |score| score.ece;
const LOSS: Pick = |score| score.loss;

/// Sums up the cells of `sweep` that finished.
pub(crate) fn results(sweep: &Sweep, cells: Vec<Score>) -> Results {
    let mut table = Vec::new();
    for method in &sweep.methods {
        for budget in &method.budgets {
            let own = of(&cells, &method.name, *budget);
            if own.is_empty() {
                continue;
            }
            let against = sweep.baseline.as_ref().filter(|baseline| **baseline != method.name);
            table.push(Row {
                method: method.name.clone(),
                budget: *budget,
                seeds: own.iter().map(|score| score.seed).collect(),
                usd: mean_usd(&own),
                test: measures(|pick| own.iter().filter_map(|score| pick(score)).collect()),
                against_baseline: against.and_then(|name| paired(&own, &of(&cells, name, *budget))),
            });
        }
    }
    let races = [("accuracy", ACCURACY), ("agreement", AGREEMENT)];
    let races = races.into_iter().filter_map(|(by, pick)| race(sweep, &cells, by, pick)).collect();
    let done = |name: &String| cells.iter().any(|score| score.cell == *name);
    let names = sweep.cells.iter().map(|cell| cell.run.name.clone());
    Results {
        sweep: sweep.name.clone(),
        baseline: sweep.baseline.clone(),
        unfinished: names.filter(|name| !done(name)).collect(),
        table,
        calls_needed: races,
        choices: choices(sweep, &cells),
        checkpoints: checkpoints(sweep),
        teacher_accuracy: cells.first().and_then(|score| score.teacher),
        cells,
    }
}

fn checkpoints(sweep: &Sweep) -> BTreeMap<String, usize> {
    let asked = |cell: &Cell| cell.run.teacher.as_ref().map_or(0, |teacher| teacher.checkpoints.len());
    let all = sweep.cells.iter().map(|cell| (cell.method.clone(), asked(cell)));
    all.filter(|(_, asked)| *asked > 0).collect()
}

/// The cells of a method with a budget.
pub(super) fn of<'a>(cells: &'a [Score], method: &str, budget: u64) -> Vec<&'a Score> {
    cells.iter().filter(|score| score.method == method && score.budget == budget).collect()
}

fn measures(values: impl Fn(Pick) -> Vec<f64>) -> Measures {
    let measure = |pick: Pick| Measure::of(values(pick));
    Measures {
        accuracy: measure(ACCURACY),
        agreement: measure(AGREEMENT),
        ece: measure(ECE),
        loss: measure(LOSS),
    }
}

/// The differences `one - two` over the seeds that both have.
pub(super) fn paired(one: &[&Score], two: &[&Score]) -> Option<Measures> {
    let pairs: Vec<(&Score, &Score)> = one
        .iter()
        .filter_map(|own| Some((*own, *two.iter().find(|other| other.seed == own.seed)?)))
        .collect();
    let difference = |pick: Pick, (one, two): &(&Score, &Score)| Some(pick(one)? - pick(two)?);
    (!pairs.is_empty())
        .then(|| measures(|pick| pairs.iter().filter_map(|pair| difference(pick, pair)).collect()))
}

fn mean_usd(scores: &[&Score]) -> Option<Usd> {
    let sum = scores.iter().try_fold(Usd::ZERO, |sum, score| sum.checked_add(score.usd?))?;
    Some(Usd::from_nanos(sum.nanos().div_ceil(scores.len() as u64)))
}

fn race(sweep: &Sweep, cells: &[Score], by: &'static str, pick: Pick) -> Option<Race> {
    let baseline = sweep.baseline.as_ref()?;
    let curve = |name: &str, budgets: &[u64]| -> Vec<(u64, f64)> {
        let mean = |budget: &u64| {
            let values = of(cells, name, *budget).into_iter().filter_map(pick).collect();
            Some((*budget, Measure::of(values).mean?))
        };
        budgets.iter().filter_map(mean).collect()
    };
    let budgets = |name: &str| sweep.methods.iter().find(|method| method.name == name);
    let (budget, target) = *curve(baseline, &budgets(baseline)?.budgets).last()?;
    let methods = sweep.methods.iter().filter_map(|method| {
        let (bound, calls) = needed(&curve(&method.name, &method.budgets), target)?;
        Some(Needed { method: method.name.clone(), bound, calls, factor: budget as f64 / calls })
    });
    Some(Race { by, budget, target, methods: methods.collect() })
}

/// Where a curve over calls first reaches `target`: between two budgets the measure is taken to be linear in the logarithm
/// of the calls. None for a curve without points.
fn needed(curve: &[(u64, f64)], target: f64) -> Option<(Bound, f64)> {
    let (last, _) = curve.last()?;
    let Some(at) = curve.iter().position(|(_, value)| *value >= target) else {
        return Some((Bound::MoreThan, *last as f64));
    };
    let (calls, value) = curve[at];
    let Some((before, below)) = at.checked_sub(1).map(|at| curve[at]) else {
        return Some((Bound::AtMost, calls as f64));
    };
    let share = (target - below) / (value - below);
    // At the point itself the logarithm and back would miss it by a rounding.
    let calls = if share >= 1.0 {
        calls as f64
    } else {
        (before as f64) * (calls as f64 / before as f64).powf(share)
    };
    Some((Bound::About, calls))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_interpolated_in_their_logarithm() {
        let check = |curve: &[(u64, f64)], target: f64, expected: Option<(Bound, f64)>| {
            let found = needed(curve, target);
            let near = match (found, expected) {
                (Some((a, x)), Some((b, y))) => a == b && (x - y).abs() < 1e-9,
                (a, b) => a == b,
            };
            assert!(near, "{curve:?} to {target}: {found:?}, not {expected:?}");
        };
        let curve = [(100, 0.5), (400, 0.7), (1600, 0.8)];
        // Half the way from 100 to 400 in the logarithm is 200; half the way from 400 to 1600 is 800.
        check(&curve, 0.6, Some((Bound::About, 200.0)));
        check(&curve, 0.75, Some((Bound::About, 800.0)));
        check(&curve, 0.7, Some((Bound::About, 400.0)));
        check(&curve, 0.5, Some((Bound::AtMost, 100.0)));
        check(&curve, 0.4, Some((Bound::AtMost, 100.0)));
        check(&curve, 0.81, Some((Bound::MoreThan, 1600.0)));
        // The first time counts: a curve may fall again.
        check(&[(100, 0.5), (400, 0.7), (1600, 0.6)], 0.6, Some((Bound::About, 200.0)));
        check(&[], 0.6, None);
    }

    #[test]
    fn what_checkpoints_are_asked_is_told() {
        let run = "name = \"r\"\n[teacher]\nname = \"t\"\n[data]\nsource = \"jsonl\"\npath = \"x\"\n[budget]\ncalls = 9\n\
                   [student]\nkind = \"mlp\"\nhidden = [4]\n[method]\nlosses = [{ kind = \"labels\" }]\n";
        let text = "name = \"s\"\nrun = \"run.toml\"\nbudgets = [100]\nseeds = [1, 2]\n[[method]]\nname = \"a\"\n[[method]]\nname = \"b\"\n\
                    over.teacher.checkpoints = [\"t1\", \"t2\"]\nover.method.progressive = { steps = 5 }\n";
        let sweep = Sweep::parse(text, run).unwrap();
        assert_eq!(results(&sweep, vec![]).checkpoints, BTreeMap::from([("b".to_owned(), 2)]));
    }

    fn sweep() -> Sweep {
        let run = "name = \"r\"\n[teacher]\nname = \"t\"\n[data]\nsource = \"record\"\nrun = \"x\"\n[budget]\ncalls = 9\n\
                   [student]\nkind = \"mlp\"\nhidden = [4]\n[method]\nlosses = [{ kind = \"labels\" }]\n";
        let text = "name = \"s\"\nrun = \"run.toml\"\nbudgets = [100, 400]\nseeds = [3, 1]\nbaseline = \"a\"\n\
                    [[method]]\nname = \"a\"\n[[method]]\nname = \"b\"\n";
        Sweep::parse(text, run).unwrap()
    }

    fn score(sweep: &Sweep, method: &str, budget: u64, seed: u64, accuracy: f64) -> Score {
        let cell =
            sweep.cells.iter().find(|c| (c.method.as_str(), c.budget, c.seed) == (method, budget, seed));
        Score {
            cell: cell.unwrap().run.name.clone(),
            method: method.to_owned(),
            budget,
            seed,
            calls: budget,
            usd: Some(Usd::from_nanos(budget + seed)),
            accuracy: Some(accuracy),
            agreement: None,
            ece: None,
            loss: Some(1.0 - accuracy),
            teacher: Some(0.95),
        }
    }

    #[test]
    fn differences_are_of_the_same_seeds_and_the_calls_follow() {
        let sweep = sweep();
        let cells = vec![
            score(&sweep, "a", 100, 1, 0.50),
            score(&sweep, "b", 100, 1, 0.75),
            score(&sweep, "a", 400, 1, 0.75),
            score(&sweep, "b", 400, 1, 0.875),
            score(&sweep, "a", 100, 3, 0.25),
            score(&sweep, "b", 100, 3, 0.25),
            score(&sweep, "a", 400, 3, 0.5),
        ];
        let results = results(&sweep, cells);
        assert_eq!(results.unfinished, ["s.b.400.s3"]);
        let row = |method: &str, budget| {
            results.table.iter().find(|row| row.method == method && row.budget == budget).unwrap()
        };
        // Two seeds: t(1) = 12.7062 times the standard error, 0.25 / 2.
        let accuracy = &row("b", 100).test.accuracy;
        assert_eq!((accuracy.mean, &accuracy.values[..]), (Some(0.5), &[0.75, 0.25][..]));
        assert!((accuracy.ci95.unwrap() - 12.7062 * 0.25).abs() < 1e-4, "{accuracy:?}");
        let difference = row("b", 100).against_baseline.as_ref().unwrap();
        assert_eq!(
            (&difference.accuracy.values[..], difference.accuracy.mean),
            (&[0.25, 0.0][..], Some(0.125))
        );
        assert_eq!(row("b", 400).against_baseline.as_ref().unwrap().accuracy.values, [0.125]);
        assert_eq!((&row("a", 100).against_baseline, row("a", 100).usd), (&None, Some(Usd::from_nanos(102))));
        // The target is 0.625, the mean of `a` at 400. `b` has 0.5 at 100 and 0.875 at 400: a third of the way.
        let [race] = &results.calls_needed[..] else { panic!("{:?}", results.calls_needed) };
        assert_eq!((race.by, race.budget, race.target), ("accuracy", 400, 0.625));
        let [a, b] = &race.methods[..] else { panic!("{race:?}") };
        assert_eq!((a.calls, a.factor, a.bound), (400.0, 1.0, Bound::About));
        assert!((b.calls - 100.0 * 4f64.powf(1.0 / 3.0)).abs() < 1e-9, "{b:?}");
        assert!((b.factor - 400.0 / b.calls).abs() < 1e-12, "{b:?}");
    }
}
