//! What the durable journal says, folded twice without the book: by the statement, and by a model of ten lines.
//!
//! Must not know the desk. Invariant: the model knows what each hold counts for, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use super::super::disk::HEADER;
use crate::book::Present;
use crate::budget::{Who, Window};
use crate::entry::{Entry, Fact, HoldId};
use crate::journal::{Frames, Source, Step};
use crate::money::Amount;
use crate::query::QueryKey;
use crate::statement::{Statement, View};
use crate::time::Timestamp;

/// A hold: who pays, how much, whether `r`eserved, `s`ettled, `u`nknown or `f`ree, and since when.
#[derive(Clone)]
pub(super) struct Line {
    pub(super) who: Who,
    pub(super) amount: Amount,
    pub(super) part: char,
    pub(super) made: Timestamp,
    pub(super) keys: Vec<QueryKey>,
}

/// The ten lines.
#[derive(Clone, Default)]
pub(super) struct Model(pub(super) BTreeMap<HoldId, Line>);

impl Model {
    fn apply(&mut self, entry: &Entry) {
        let Some(hold) = entry.fact.hold() else { return };
        if let Fact::Reserved { exchange, amount, .. } = &entry.fact {
            let keys = exchange.items.iter().map(|item| item.key).collect();
            let who = exchange.who.clone();
            self.0.insert(hold, Line { who, amount: *amount, part: 'r', made: entry.at, keys });
        }
        let line = self.0.get_mut(&hold).unwrap();
        match &entry.fact {
            Fact::Settled { fee, .. } => (line.amount, line.part) = (*fee, 's'),
            Fact::Forfeited { .. } => line.part = 'u',
            Fact::Resolved { billed, .. } => line.part = if *billed { 's' } else { 'f' },
            Fact::Released { .. } => line.part = 'f',
            _ => {}
        }
    }

    fn sums(&self, counts: impl Fn(&Line) -> bool) -> [Amount; 3] {
        ['s', 'r', 'u'].map(|part| {
            let lines = self.0.values().filter(|line| line.part == part && counts(line));
            lines.fold(Amount::ZERO, |sum, line| sum.checked_add(line.amount).unwrap())
        })
    }
}

/// Both folds, up to a place in the journal.
#[derive(Clone)]
pub(super) struct Folded {
    pub(super) position: u64,
    pub(super) number: u64,
    pub(super) chain: [u8; 32],
    pub(super) model: Model,
    pub(super) statement: Statement,
    pub(super) answered: BTreeSet<QueryKey>,
    pub(super) released: BTreeSet<HoldId>,
    pub(super) facts: BTreeMap<&'static str, u64>,
    late: u64,
    last_at: Timestamp,
}

/// Bytes that stand at an offset of a journal.
pub(super) struct Tail {
    pub(super) offset: u64,
    pub(super) bytes: Vec<u8>,
}

impl Source for Tail {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
        self.bytes[..].read_at(buffer, offset - self.offset)
    }

    fn len(&self) -> std::io::Result<u64> {
        Ok(self.offset + self.bytes.len() as u64)
    }
}

impl Folded {
    pub(super) fn start() -> Self {
        Self {
            position: HEADER.encode().len() as u64,
            number: 0,
            chain: HEADER.chain(),
            model: Model::default(),
            statement: Statement::default(),
            answered: BTreeSet::new(),
            released: BTreeSet::new(),
            facts: BTreeMap::new(),
            late: 0,
            last_at: Timestamp::default(),
        }
    }

    /// Takes in what `source` has behind the place reached so far.
    pub(super) fn read(&mut self, source: &(impl Source + ?Sized)) {
        let limit = source.len().unwrap();
        let mut frames = Frames::resume(source, HEADER, self.position, self.number, self.chain, limit);
        loop {
            match frames.step().unwrap() {
                Step::Frame(frame) => {
                    self.add(&frame.entry);
                    (self.position, self.number, self.chain) = (frame.end, frame.number, frame.chain);
                }
                Step::End => return,
                Step::Bad(torn) => panic!("the journal ends in something else: {torn:?}"),
            }
        }
    }

    fn add(&mut self, entry: &Entry) {
        match &entry.fact {
            Fact::Reserved { exchange, .. } => {
                for item in &exchange.items {
                    let held =
                        self.model.0.values().any(|line| line.part == 'r' && line.keys.contains(&item.key));
                    assert!(!held, "rule 8: a key under way is held again");
                    let bought = self.answered.contains(&item.key) && !exchange.refresh;
                    assert!(!bought, "rule 8: a known key is bought again");
                }
            }
            Fact::Settled { hold, items, .. } => {
                self.answered.extend(items.iter().map(|item| item.key));
                self.late += u64::from(self.model.0[hold].part == 'u');
            }
            Fact::Released { hold, .. } => _ = self.released.insert(*hold),
            _ => {}
        }
        self.last_at = entry.at;
        self.model.apply(entry);
        self.statement.add(entry);
        *self.facts.entry(entry.fact.name()).or_default() += 1;
    }

    /// Answers that settled a hold which was unknown.
    pub(super) fn settled_late(&self) -> u64 {
        self.late
    }

    /// The hold under way for exactly these keys.
    pub(super) fn under_way(&self, keys: &[QueryKey]) -> Option<HoldId> {
        let found = self.model.0.iter().find(|(_, line)| line.part == 'r' && line.keys == keys);
        found.map(|(hold, _)| *hold)
    }

    /// Book, statement and model agree.
    pub(super) fn check(&self, present: &Present, now: Timestamp) {
        let now = now.max(self.last_at);
        let total = [present.total.settled, present.total.reserved, present.total.unknown];
        assert_eq!(total, self.model.sums(|_| true), "book and model");
        let calls = total.map(|amount| u128::from(amount.calls));
        assert_eq!(self.statement.calls(), calls, "book and statement");
        assert_eq!(self.statement.discrepancies(), &[], "the statement finds something wrong");
        for (budget, standing) in &present.budgets {
            let same_window = |made: Timestamp| match budget.window {
                Window::Forever => true,
                Window::Day => made.day() == now.day(),
                Window::Month => made.day().to_string()[..7] == now.day().to_string()[..7],
            };
            let sums = self.model.sums(|line| budget.scope.covers(&line.who) && same_window(line.made));
            let standing = [standing.settled, standing.reserved, standing.unknown];
            assert_eq!(standing, sums, "budget `{}`", budget.name);
        }
        let unknown = present.open.iter().filter(|open| open.unknown.is_some()).count();
        let expected = self.model.0.values().filter(|line| line.part == 'u').count();
        assert_eq!(unknown, expected, "unknown calls that nobody lists");
    }

    /// Every figure that book and statement both show.
    pub(super) fn check_figures(&self, present: &Present, now: Timestamp) {
        let json = self.statement.to_json(&View { now: Some(now), ..View::default() });
        assert_eq!(json["totals"]["usd"]["settled"], present.total.settled.usd.to_string());
        assert_eq!(json["totals"]["usd"]["unknown"], present.total.unknown.usd.to_string());
        for ((budget, standing), row) in present.budgets.iter().zip(json["budgets"].as_array().unwrap()) {
            assert_eq!(row["name"], budget.name.as_str());
            assert_eq!(row["settled"]["usd"], standing.settled.usd.to_string());
            assert_eq!(row["reserved"]["tokens"], standing.reserved.tokens);
            assert_eq!(row["unknown"]["calls"], standing.unknown.calls);
        }
    }
}
