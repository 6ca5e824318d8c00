//! The crash matrix: every step of a paid call, times every fault, times every kind of call, against a teacher that keeps
//! its own bill. Wants nothing but the built command, whose test build asks here at every step what is to happen.
//! Invariant: a cell of the matrix is run, or it is listed with the reason why it has no meaning.

mod armed;
mod cell;
mod control;
mod lane;
mod rules;

use crate::support::STAGES;
use cell::{Cell, Fault, Kind};
use lane::Lane;
use std::collections::BTreeMap;

/// What the cells of a lane came to.
#[derive(Default)]
struct Tally {
    cells: usize,
    /// By step: processes killed, and calls in flight at those kills.
    kills: BTreeMap<&'static str, (usize, usize)>,
    /// Answers that clients got in full.
    answers: usize,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.cells += other.cells;
        self.answers += other.answers;
        for (stage, (kills, in_flight)) in other.kills {
            let sum = self.kills.entry(stage).or_default();
            *sum = (sum.0 + kills, sum.1 + in_flight);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 12)]
async fn a_fault_at_every_step_of_every_call_keeps_the_money_rules() {
    let lanes = Kind::ALL.map(|kind| tokio::spawn(Lane::run(kind)));
    let mut tally = Tally::default();
    let mut broken = 0;
    for lane in lanes {
        match lane.await {
            Ok(lane) => tally.add(lane),
            Err(_) => broken += 1,
        }
    }
    assert_eq!(broken, 0, "lanes of the matrix in which a rule was broken; their panics stand above");
    let mut meaningless: BTreeMap<&str, usize> = BTreeMap::new();
    let (meant, not_meant): (Vec<Cell>, Vec<Cell>) =
        Kind::ALL.into_iter().flat_map(Cell::of).partition(|cell| cell.meaningless().is_none());
    not_meant.iter().filter_map(Cell::meaningless).for_each(|why| *meaningless.entry(why).or_default() += 1);
    println!(
        "{} cells run (of {} steps x {} faults x {} kinds of call), {} answers got in full",
        tally.cells,
        STAGES.len(),
        Fault::ALL.len(),
        Kind::ALL.len(),
        tally.answers
    );
    for stage in STAGES {
        let (kills, in_flight) = tally.kills.get(stage).copied().unwrap_or_default();
        println!("  {stage:16} {kills:4} kills with {in_flight:4} calls in flight");
        assert!(in_flight >= kills && kills > 0, "{stage}: a kill without a call in flight");
    }
    meaningless.iter().for_each(|(why, cells)| println!("  {cells} cells not run: {why}"));
    assert_eq!(tally.cells, meant.len());
    assert_eq!(meant.len() + not_meant.len(), STAGES.len() * Fault::ALL.len() * Kind::ALL.len());
}
