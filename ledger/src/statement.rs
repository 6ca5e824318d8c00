//! Where every call went: a second fold of the entries, independent of the book, that adds up from single holds and
//! lists every discrepancy.
//!
//! Shares no code with [`crate::book`] on purpose: what one of them gets wrong, the other finds. Must not know files.
//! Invariant: every figure shown is a sum over single holds, computed when it is asked for; what is carried along serves
//! only the check of limits at the moment of each hold.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::answer::Usage;
use crate::budget::{Budget, Limit, Who, Window};
use crate::entry::{Cause, Entry, Exchange, Fact, HoldId, SettledItem, Tally};
use crate::money::{Amount, Usd};
use crate::price::{Price, PriceDigest};
use crate::query::QueryKey;
use crate::time::{Day, Timestamp};

mod bought;
pub use bought::{Bought, OpenCall, WholeCall};

/// What a hold came to.
#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    UnderWay,
    Settled(Amount),
    Free,
    Unknown(Cause),
}

/// One hold, from its making to its end.
#[derive(Clone, Debug)]
struct Line {
    at: Timestamp,
    party: usize,
    keys: u64,
    held: Amount,
    outcome: Outcome,
    metered: bool,
    priced: bool,
    /// What the teacher said it used, where it said so.
    used: Option<Usage>,
}

/// What is remembered of a hold until it ends.
#[derive(Clone, Debug)]
struct Asked {
    exchange: Exchange,
    price: Option<PriceDigest>,
    metered: bool,
}

/// Something that does not add up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Discrepancy {
    /// The number of the entry, from 1.
    pub entry: u64,
    /// What is wrong with it.
    pub what: String,
}

/// A settled call that cost more than its hold: the teacher charged above the stated bound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Overrun {
    /// The hold.
    pub hold: HoldId,
    /// What was held.
    pub held: Amount,
    /// What it cost.
    pub fee: Amount,
}

/// A dimension to add up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The teacher.
    Teacher,
    /// The run.
    Run,
    /// The client key.
    Key,
    /// The model.
    Model,
    /// The day (UTC) on which the hold was made.
    Day,
}

/// What to show.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Rows of `by`.
    pub by: Vec<By>,
    /// Only holds made at or after this moment.
    pub since: Option<Timestamp>,
    /// Only holds made before this moment.
    pub until: Option<Timestamp>,
    /// The moment whose day and month the budgets of such windows are shown for; none: that of the last entry.
    pub now: Option<Timestamp>,
}

/// The second fold.
#[derive(Clone, Debug, Default)]
pub struct Statement {
    parties: Vec<(Who, String)>,
    party_of: BTreeMap<(Who, String), usize>,
    lines: BTreeMap<HoldId, Line>,
    /// What each party has committed in each window so far (named by [`label`]): for the check of limits only.
    committed: HashMap<String, BTreeMap<usize, [i128; 3]>>,
    asked: HashMap<HoldId, Asked>,
    held_keys: HashMap<QueryKey, HoldId>,
    answered: BTreeSet<QueryKey>,
    budgets: BTreeMap<String, Budget>,
    prices: BTreeMap<PriceDigest, Price>,
    /// What cost nothing, by party and the day on which it was counted.
    tallies: BTreeMap<(Who, String, Day), Served>,
    forgotten: u64,
    discrepancies: Vec<Discrepancy>,
    overruns: Vec<Overrun>,
    entries: u64,
    /// The number of the last entry: that of `entries`, unless some are missing.
    number: u64,
    gap: Option<Gap>,
    last_at: Timestamp,
}

/// Entries that are missing, and what did not fit behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The number of the last entry in front of the first that is missing.
    pub behind: u64,
    /// Findings that may follow from that; they are not listed.
    pub unlisted: u64,
}

/// One row of a statement by some dimensions.
#[derive(Default)]
struct Row {
    sum: Sum,
    kinds: Kinds,
    served: Served,
    exchanges: u64,
    items: u64,
}

/// What was answered without a call, and what was refused.
#[derive(Clone, Copy, Debug, Default)]
struct Served {
    known: u64,
    followed: u64,
    refused: u64,
    saved: Amount,
}

impl Served {
    fn add(&mut self, other: &Self) {
        self.known = self.known.saturating_add(other.known);
        self.followed = self.followed.saturating_add(other.followed);
        self.refused = self.refused.saturating_add(other.refused);
        self.saved = self.saved.checked_add(other.saved).unwrap_or(self.saved);
    }

    fn json(&self) -> Value {
        json!({
            "known": self.known,
            "followed": self.followed,
            "refused": self.refused,
            "saved": {"calls": self.saved.calls, "usd": self.saved.usd.to_string()},
        })
    }
}

/// Tokens of settled calls by kind; of those without a stated usage nobody knows the kind.
#[derive(Clone, Copy, Debug, Default)]
struct Kinds {
    kinds: [u128; 5],
    unstated: u128,
}

impl Kinds {
    fn add(&mut self, line: &Line) {
        match (&line.outcome, line.used) {
            (Outcome::Settled(_), Some(used)) => {
                let found = [used.input, used.cached_input, used.cache_write, used.output, used.reasoning];
                self.kinds.iter_mut().zip(found).for_each(|(sum, figure)| *sum += u128::from(figure));
            }
            (Outcome::Settled(fee), None) => self.unstated += u128::from(fee.tokens),
            _ => {}
        }
    }

    fn json(&self) -> Value {
        let [input, cached_input, cache_write, output, reasoning] =
            self.kinds.map(|figure| figure_json(1, figure));
        json!({
            "input": input,
            "cached_input": cached_input,
            "cache_write": cache_write,
            "output": output,
            "reasoning": reasoning,
            "unstated": figure_json(1, self.unstated),
        })
    }
}

/// Sums of the three parts, wide enough for any record.
#[derive(Clone, Copy, Default)]
struct Sum {
    settled: [u128; 3],
    reserved: [u128; 3],
    unknown: [u128; 3],
}

impl Sum {
    fn add(&mut self, line: &Line) {
        let (part, amount) = match &line.outcome {
            Outcome::UnderWay => (&mut self.reserved, line.held),
            Outcome::Settled(fee) => (&mut self.settled, *fee),
            Outcome::Unknown(_) => (&mut self.unknown, line.held),
            Outcome::Free => return,
        };
        for (sum, figure) in part.iter_mut().zip(figures(amount)) {
            *sum += u128::from(figure);
        }
    }

    fn committed(&self, unit: usize) -> u128 {
        self.settled[unit] + self.reserved[unit] + self.unknown[unit]
    }
}

impl Line {
    /// What the hold counts against a limit.
    fn counts(&self) -> [i128; 3] {
        match &self.outcome {
            Outcome::UnderWay | Outcome::Unknown(_) => figures(self.held).map(i128::from),
            Outcome::Settled(fee) => figures(*fee).map(i128::from),
            Outcome::Free => [0; 3],
        }
    }
}

fn figures(amount: Amount) -> [u64; 3] {
    [amount.calls, amount.tokens, amount.usd.nanos()]
}

fn limits(limit: &Limit) -> [Option<u64>; 3] {
    [limit.calls, limit.tokens, limit.usd.map(Usd::nanos)]
}

const UNITS: [&str; 3] = ["calls", "tokens", "usd"];

impl Statement {
    /// Says the number of the entry that is added next. Where that leaves some out, the figures are not complete, and what
    /// does not fit the entries before it is counted from here on, not listed.
    pub fn expect(&mut self, number: u64) {
        if number != self.number + 1 {
            self.gap.get_or_insert(Gap { behind: self.number, unlisted: 0 });
        }
        self.number = number.saturating_sub(1);
    }

    /// Adds the next entry.
    pub fn add(&mut self, entry: &Entry) {
        self.entries += 1;
        self.number += 1;
        if entry.at < self.last_at {
            self.find_here(format!(
                "its time, {}, is before the entry in front of it, {}",
                entry.at, self.last_at
            ));
        }
        self.last_at = self.last_at.max(entry.at);
        match &entry.fact {
            Fact::Opened { .. } | Fact::Closed => {}
            Fact::Priced { digest, price } => {
                if price.digest() != *digest {
                    self.find_here(format!(
                        "price `{}` of model `{}` does not match its digest",
                        digest.0, price.model
                    ));
                }
                self.prices.insert(digest.clone(), price.clone());
            }
            Fact::Limited { budget, .. } => {
                self.budgets.insert(budget.name.clone(), budget.clone());
            }
            Fact::Reserved { hold, exchange, amount, price, metered, .. } => {
                let asked = Asked { exchange: exchange.clone(), price: price.clone(), metered: *metered };
                self.reserved(entry.at, *hold, asked, *amount);
            }
            Fact::Settled { hold, usage, fee, whole_hold, items, .. } => {
                self.settled(*hold, usage.as_ref(), *fee, *whole_hold, items);
            }
            Fact::Released { hold, .. } => self.end(*hold, "released", false, |_| Outcome::Free),
            Fact::Forfeited { hold, cause } => {
                let cause = cause.clone();
                self.end(*hold, "forfeited", false, |_| Outcome::Unknown(cause));
            }
            Fact::Resolved { hold, billed, .. } => {
                let billed = *billed;
                self.end(*hold, "resolved", true, |line| {
                    if billed { Outcome::Settled(line.held) } else { Outcome::Free }
                });
            }
            Fact::Forgotten { key, .. } => self.forgotten(*key),
            Fact::Served { tallies } => {
                tallies.iter().for_each(|tally| self.served(tally, entry.at.day()));
            }
        }
    }

    /// What does not add up, in the order of the entries.
    pub fn discrepancies(&self) -> &[Discrepancy] {
        &self.discrepancies
    }

    /// Adds what the caller found (a broken chain, say).
    pub fn report(&mut self, discrepancy: Discrepancy) {
        self.discrepancies.push(discrepancy);
    }

    /// Adds what the caller found and what may follow from entries that are missing: where some are, it is counted only.
    pub fn report_unfit(&mut self, discrepancy: Discrepancy) {
        match &mut self.gap {
            Some(gap) => gap.unlisted += 1,
            None => self.discrepancies.push(discrepancy),
        }
    }

    /// Puts what was found into the order of the entries.
    pub fn sort(&mut self) {
        self.discrepancies.sort_by_key(|found| found.entry);
    }

    /// What is missing of the entries, if something is.
    pub fn gap(&self) -> Option<Gap> {
        self.gap
    }

    /// Calls that cost more than was held for them.
    pub fn overruns(&self) -> &[Overrun] {
        &self.overruns
    }

    /// Calls settled, reserved and unknown: the totals of everything.
    pub fn calls(&self) -> [u128; 3] {
        let sum = self.sum(|_| true);
        [sum.settled[0], sum.reserved[0], sum.unknown[0]]
    }

    /// The statement as the interface pins it.
    pub fn to_json(&self, view: &View) -> Value {
        let shown = |line: &Line| {
            view.since.is_none_or(|since| line.at >= since) && view.until.is_none_or(|until| line.at < until)
        };
        let now = view.now.map_or(self.last_at, |now| now.max(self.last_at));
        let (calls, saved) = self.saved();
        let mut totals = units(&self.sum(shown));
        totals.insert("saved".into(), json!({"calls": calls, "usd": dollars(saved)}));
        let (mut kinds, mut served) = (Kinds::default(), Served::default());
        self.lines.values().filter(|line| shown(line)).for_each(|line| kinds.add(line));
        self.tallies_of(view).for_each(|(_, found)| served.add(found));
        let by: Vec<Value> = if view.by.is_empty() { Vec::new() } else { self.rows(view, shown) };
        json!({
            "totals": totals,
            "budgets": self.budgets.values().filter(|budget| !budget.limit.is_lifted()).map(|budget| self.budget_json(budget, now)).collect::<Vec<_>>(),
            "by": by,
            "unknown": self.unknown(now, shown),
            "served": served.json(),
            "tokens_by_kind": kinds.json(),
            "overruns": self.overruns,
            "discrepancies": self.discrepancies,
            "entries": self.entries,
            "forgotten": self.forgotten,
        })
    }

    /// Something that does not fit the entries before.
    fn find(&mut self, what: String) {
        self.report_unfit(Discrepancy { entry: self.number, what });
    }

    /// Something that is wrong with the entry whatever stands before it.
    fn find_here(&mut self, what: String) {
        self.report(Discrepancy { entry: self.number, what });
    }

    fn reserved(&mut self, at: Timestamp, id: HoldId, asked: Asked, held: Amount) {
        let expected = self.lines.last_key_value().map_or(1, |(last, _)| last.0 + 1);
        if id.0 != expected {
            self.find(format!("hold {} follows hold {}", id.0, expected - 1));
        }
        let exchange = &asked.exchange;
        let mut found = Vec::new();
        for item in &exchange.items {
            if let Some(other) = self.held_keys.insert(item.key, id) {
                found.push(format!("key {} is held by hold {} already", item.key, other.0));
            }
            if !exchange.refresh && self.answered.contains(&item.key) {
                found.push(format!("key {} is bought although it is known", item.key));
            }
        }
        let calls: u64 = exchange.items.iter().map(|item| item.calls).fold(0, u64::saturating_add);
        if calls != held.calls {
            found.push(format!("hold {} is of {} calls for items of {calls}", id.0, held.calls));
        }
        let party = (exchange.who.clone(), exchange.model.clone());
        let next = self.parties.len();
        let index = *self.party_of.entry(party.clone()).or_insert(next);
        if index == next {
            self.parties.push(party);
        }
        let keys = exchange.items.len() as u64;
        let (metered, priced) = (asked.metered, asked.price.is_some());
        let outcome = Outcome::UnderWay;
        let line = Line { at, party: index, keys, held, outcome, metered, priced, used: None };
        self.commit(index, at, [0; 3], line.counts());
        self.lines.insert(id, line);
        for what in self.over_limit(id, &asked.exchange.who) {
            found.push(what);
        }
        self.asked.insert(id, asked);
        found.into_iter().for_each(|what| self.find(what));
    }

    fn commit(&mut self, party: usize, made: Timestamp, before: [i128; 3], after: [i128; 3]) {
        for window in [Window::Forever, Window::Day, Window::Month] {
            let parties = self.committed.entry(label(window, made)).or_default();
            for (unit, sum) in parties.entry(party).or_default().iter_mut().enumerate() {
                *sum += after[unit] - before[unit];
            }
        }
    }

    /// Which limits the newest hold breaks.
    fn over_limit(&self, id: HoldId, who: &Who) -> Vec<String> {
        let mut found = Vec::new();
        let Line { held, at, .. } = self.lines[&id];
        let held = figures(held);
        for budget in self.budgets.values().filter(|budget| covers(budget, who)) {
            let parties = self.committed.get(&label(budget.window, at)).into_iter().flatten();
            let committed: Vec<_> = parties
                .filter(|(party, _)| covers(budget, &self.parties[**party].0))
                .map(|(_, sum)| sum)
                .collect();
            for (unit, limit) in limits(&budget.limit).into_iter().enumerate() {
                let sum: i128 = committed.iter().map(|figures| figures[unit]).sum();
                let Some(limit) = limit.filter(|limit| held[unit] > 0 && sum > i128::from(*limit)) else {
                    continue;
                };
                let (name, unit) = (&budget.name, UNITS[unit]);
                found.push(format!(
                    "hold {} brings budget `{name}` to {sum} {unit}, over its limit of {limit}",
                    id.0
                ));
            }
        }
        found
    }

    fn settled(
        &mut self,
        id: HoldId,
        usage: Option<&Usage>,
        fee: Amount,
        whole_hold: bool,
        items: &[SettledItem],
    ) {
        let mut found = Vec::new();
        let mut shares_differ = false;
        if let Some(asked) = self.asked.get(&id) {
            let held = self.lines[&id].held;
            let keys = items.iter().map(|item| item.key);
            if !keys.eq(asked.exchange.items.iter().map(|item| item.key)) {
                found.push(format!("the answer to hold {} is not to the items that were held", id.0));
            }
            let expected = self.expected_fee(asked, usage, held);
            if expected != (fee, whole_hold) {
                found.push(format!(
                    "the fee of hold {} is {} calls, {} tokens, {} dollars; by its usage and price it is {} calls, {} tokens, {} dollars",
                    id.0, fee.calls, fee.tokens, fee.usd, expected.0.calls, expected.0.tokens, expected.0.usd
                ));
            }
            let mut shares = [0u128; 3];
            for item in items {
                for (sum, figure) in shares.iter_mut().zip(figures(item.share)) {
                    *sum += u128::from(figure);
                }
            }
            if shares != figures(fee).map(u128::from) {
                shares_differ = true;
            }
            if figures(fee).iter().zip(figures(held)).any(|(fee, held)| *fee > held) && asked.bounded() {
                self.overruns.push(Overrun { hold: id, held, fee });
            }
        }
        found.into_iter().for_each(|what| self.find(what));
        if shares_differ {
            self.find_here(format!("the shares of hold {} do not add up to its fee", id.0));
        }
        if let Some(line) = self.lines.get_mut(&id)
            && matches!(line.outcome, Outcome::UnderWay | Outcome::Unknown(_))
        {
            line.used = usage.copied();
        }
        self.end_any(id, "settled", |_| Outcome::Settled(fee));
        self.answered.extend(items.iter().map(|item| item.key));
    }

    /// The fee by usage and price, worked out anew.
    fn expected_fee(&self, asked: &Asked, usage: Option<&Usage>, held: Amount) -> (Amount, bool) {
        let Some(usage) = usage else { return (held, asked.metered) };
        let price = asked.price.as_ref().and_then(|digest| self.prices.get(digest));
        let nanos = price.map_or(0, |price| {
            let or = |rate: Option<Usd>, other: Usd| u128::from(rate.unwrap_or(other).nanos());
            let millionths = u128::from(usage.input) * u128::from(price.input.nanos())
                + u128::from(usage.cached_input) * or(price.cached_input, price.input)
                + u128::from(usage.cache_write) * or(price.cache_write, price.input)
                + u128::from(usage.output) * u128::from(price.output.nanos())
                + u128::from(usage.reasoning) * or(price.reasoning, price.output);
            millionths.div_ceil(1_000_000) + u128::from(held.calls) * u128::from(price.request.nanos())
        });
        match u64::try_from(nanos) {
            Ok(nanos) => {
                (Amount { calls: held.calls, tokens: usage.total(), usd: Usd::from_nanos(nanos) }, false)
            }
            Err(_) => (held, asked.metered),
        }
    }

    fn end(&mut self, id: HoldId, how: &str, was_unknown: bool, outcome: impl FnOnce(&Line) -> Outcome) {
        let state = self.lines.get(&id).map(|line| &line.outcome);
        let fits = match state {
            Some(Outcome::UnderWay) => !was_unknown,
            Some(Outcome::Unknown(_)) => was_unknown,
            _ => false,
        };
        if fits {
            self.end_any(id, how, outcome);
        } else {
            self.find(format!("hold {} is {how} although it is {}", id.0, state_name(state)));
        }
    }

    fn end_any(&mut self, id: HoldId, how: &str, outcome: impl FnOnce(&Line) -> Outcome) {
        let state = self.lines.get(&id).map(|line| &line.outcome);
        if !matches!(state, Some(Outcome::UnderWay | Outcome::Unknown(_))) {
            let what = format!("hold {} is {how} although it is {}", id.0, state_name(state));
            return self.find(what);
        }
        let line = self.lines.get_mut(&id).expect("it was found");
        let before = line.counts();
        line.outcome = outcome(line);
        let (party, made, after) = (line.party, line.at, line.counts());
        let unknown = matches!(line.outcome, Outcome::Unknown(_));
        self.commit(party, made, before, after);
        if let Some(asked) = self.asked.get(&id) {
            for item in &asked.exchange.items {
                if self.held_keys.get(&item.key) == Some(&id) {
                    self.held_keys.remove(&item.key);
                }
            }
        }
        if !unknown {
            self.asked.remove(&id);
        }
    }

    fn forgotten(&mut self, key: QueryKey) {
        self.forgotten += 1;
        if !self.answered.remove(&key) {
            self.find(format!("key {key} is forgotten although it is not known"));
        }
    }

    fn served(&mut self, tally: &Tally, day: Day) {
        let Tally { who, model, known, followed, saved, refused } = tally.clone();
        self.tallies.entry((who, model, day)).or_default().add(&Served { known, followed, refused, saved });
    }

    fn sum(&self, wanted: impl Fn(&Line) -> bool) -> Sum {
        let mut sum = Sum::default();
        self.lines.values().filter(|line| wanted(line)).for_each(|line| sum.add(line));
        sum
    }

    fn saved(&self) -> (u128, u128) {
        self.tallies.values().fold((0, 0), |(calls, usd), Served { saved, .. }| {
            (calls + u128::from(saved.calls), usd + u128::from(saved.usd.nanos()))
        })
    }

    /// What cost nothing, of the days that the view shows.
    fn tallies_of(&self, view: &View) -> impl Iterator<Item = (&(Who, String, Day), &Served)> {
        let (since, until) = (view.since, view.until);
        self.tallies.iter().filter(move |((_, _, day), _)| {
            since.is_none_or(|since| *day >= since.day()) && until.is_none_or(|until| day.start() < until)
        })
    }

    fn budget_json(&self, budget: &Budget, now: Timestamp) -> Value {
        let current = label(budget.window, now);
        let counts = |line: &Line| {
            covers(budget, &self.parties[line.party].0) && label(budget.window, line.at) == current
        };
        let sum = self.sum(counts);
        let mut limit = Map::new();
        let mut left = Map::new();
        for (unit, figure) in limits(&budget.limit).into_iter().enumerate() {
            let Some(figure) = figure else { continue };
            limit.insert(UNITS[unit].into(), figure_json(unit, u128::from(figure)));
            left.insert(
                UNITS[unit].into(),
                figure_json(unit, u128::from(figure).saturating_sub(sum.committed(unit))),
            );
        }
        let part = |figures: [u128; 3]| {
            (0..3)
                .map(|unit| (UNITS[unit].to_owned(), figure_json(unit, figures[unit])))
                .collect::<Map<_, _>>()
        };
        json!({
            "name": budget.name,
            "scope": budget.scope,
            "window": budget.window.name(),
            "period": current,
            "limit": limit,
            "settled": part(sum.settled),
            "reserved": part(sum.reserved),
            "unknown": part(sum.unknown),
            "left": left,
        })
    }

    fn rows(&self, view: &View, shown: impl Fn(&Line) -> bool) -> Vec<Value> {
        let mut rows: BTreeMap<Vec<Option<String>>, Row> = BTreeMap::new();
        let label = |by: &By, who: &Who, model: &String, day: Day| match by {
            By::Teacher => Some(who.teacher.clone()),
            By::Run => who.run.clone(),
            By::Key => who.key.clone(),
            By::Model => Some(model.clone()),
            By::Day => Some(day.to_string()),
        };
        for line in self.lines.values().filter(|line| shown(line)) {
            let (who, model) = &self.parties[line.party];
            let labels = view.by.iter().map(|by| label(by, who, model, line.at.day()));
            let row = rows.entry(labels.collect()).or_default();
            row.sum.add(line);
            row.kinds.add(line);
            row.exchanges += 1;
            row.items += line.keys;
        }
        for ((who, model, day), served) in self.tallies_of(view) {
            let labels = view.by.iter().map(|by| label(by, who, model, *day));
            rows.entry(labels.collect()).or_default().served.add(served);
        }
        let row_json =
            |(labels, Row { sum, kinds, served, exchanges, items }): (Vec<Option<String>>, Row)| {
                let mut row: Map<String, Value> = view
                    .by
                    .iter()
                    .zip(labels)
                    .map(|(by, label)| (by.name().to_owned(), json!(label)))
                    .collect();
                row.extend(units(&sum));
                row.insert("exchanges".into(), json!(exchanges));
                row.insert("items".into(), json!(items));
                row.insert("served".into(), served.json());
                row.insert("tokens_by_kind".into(), kinds.json());
                Value::Object(row)
            };
        rows.into_iter().map(row_json).collect()
    }

    fn unknown(&self, now: Timestamp, shown: impl Fn(&Line) -> bool) -> Vec<Value> {
        let unknown = self.lines.iter().filter(|(_, line)| shown(line));
        unknown
            .filter_map(|(id, line)| {
                let Outcome::Unknown(cause) = &line.outcome else { return None };
                let (who, model) = &self.parties[line.party];
                let keys = self.asked.get(id).map(|asked| &asked.exchange.items);
                Some(json!({
                    "id": id.0,
                    "at": line.at.to_string(),
                    "age_s": now.0.saturating_sub(line.at.0) / 1000,
                    "teacher": who.teacher,
                    "run": who.run,
                    "key": who.key,
                    "model": model,
                    "calls": line.held.calls,
                    "tokens": line.held.tokens,
                    "usd": line.held.usd.to_string(),
                    "cause": cause,
                    "keys": keys.map(|items| items.iter().map(|item| item.key).collect::<Vec<_>>()),
                }))
            })
            .collect()
    }
}

impl Asked {
    /// Whether the hold bounds the fee in every unit that is priced.
    fn bounded(&self) -> bool {
        self.price.is_some()
    }
}

impl By {
    /// Its name in the statement and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Teacher => "teacher",
            Self::Run => "run",
            Self::Key => "key",
            Self::Model => "model",
            Self::Day => "day",
        }
    }
}

impl std::str::FromStr for By {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Teacher, Self::Run, Self::Key, Self::Model, Self::Day];
        let found = all.into_iter().find(|by| by.name() == text);
        found.ok_or_else(|| format!("`{text}` is not one of teacher, run, key, model, day"))
    }
}

/// Names the window that `at` lies in: a day, a month, or nothing for all time.
fn label(window: Window, at: Timestamp) -> String {
    match window {
        Window::Forever => String::new(),
        Window::Day => at.day().to_string(),
        Window::Month => at.day().to_string()[.."YYYY-MM".len()].to_owned(),
    }
}

fn covers(budget: &Budget, who: &Who) -> bool {
    let Budget { scope, limit, .. } = budget;
    let same = |wanted: &Option<String>, found: Option<&str>| {
        wanted.as_deref().is_none_or(|wanted| found == Some(wanted))
    };
    !limit.is_lifted()
        && same(&scope.teacher, Some(&who.teacher))
        && same(&scope.run, who.run.as_deref())
        && same(&scope.key, who.key.as_deref())
}

fn state_name(state: Option<&Outcome>) -> &'static str {
    match state {
        None => "not known",
        Some(Outcome::UnderWay) => "under way",
        Some(Outcome::Settled(_)) => "settled",
        Some(Outcome::Free) => "free",
        Some(Outcome::Unknown(_)) => "unknown",
    }
}

fn dollars(nanos: u128) -> String {
    format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000)
}

fn figure_json(unit: usize, figure: u128) -> Value {
    if UNITS[unit] == "usd" {
        json!(dollars(figure))
    } else {
        json!(u64::try_from(figure).unwrap_or(u64::MAX))
    }
}

fn units(sum: &Sum) -> Map<String, Value> {
    let unit = |unit: usize| {
        json!({
            "settled": figure_json(unit, sum.settled[unit]),
            "reserved": figure_json(unit, sum.reserved[unit]),
            "unknown": figure_json(unit, sum.unknown[unit]),
        })
    };
    (0..3).map(|index| (UNITS[index].to_owned(), unit(index))).collect()
}
