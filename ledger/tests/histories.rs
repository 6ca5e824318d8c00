//! Ten thousand simulated histories of a budget: clients, followers, batches, streams cut short, time-outs, late answers,
//! lowered limits, days and months that end, crashes that lose what was not synced, restarts.
//!
//! After every step the book, the statement and a model of ten lines agree, and the money rules hold against a teacher
//! that keeps its own bill. `TUITION_HISTORIES` sets how many run, `TUITION_SEED` which is the first.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tuition_ledger::{
    Amount, Book, Bound, Budget, Cause, Claim, Entry, Exchange, Fact, HeldItem, HoldId, InputBound, Limit,
    NotReserved, Origin, OutputBound, Price, QueryKey, Quote, Refusal, Scope, Statement, Timestamp, Usage,
    Usd, View, Who, Window,
};

const STEPS: usize = 60;

/// The ten lines: what each hold counts for, and nothing else.
#[derive(Default)]
struct Model(BTreeMap<u64, (Who, Amount, char, Timestamp)>);

impl Model {
    fn apply(&mut self, entry: &Entry) {
        match &entry.fact {
            Fact::Reserved { hold, exchange, amount, .. } => {
                self.0.insert(hold.0, (exchange.who.clone(), *amount, 'r', entry.at));
            }
            Fact::Settled { hold, fee, .. } => (self.at(*hold).1, self.at(*hold).2) = (*fee, 's'),
            Fact::Forfeited { hold, .. } => self.at(*hold).2 = 'u',
            Fact::Resolved { hold, billed: true, .. } => self.at(*hold).2 = 's',
            Fact::Released { hold, .. } | Fact::Resolved { hold, .. } => _ = self.0.remove(&hold.0),
            _ => {}
        }
    }

    fn at(&mut self, hold: HoldId) -> &mut (Who, Amount, char, Timestamp) {
        self.0.get_mut(&hold.0).unwrap()
    }

    fn sum(&self, part: char, covers: impl Fn(&Who, Timestamp) -> bool) -> Amount {
        let parts = self.0.values().filter(|(who, _, found, made)| *found == part && covers(who, *made));
        parts.fold(Amount::ZERO, |sum, (_, amount, ..)| sum.checked_add(*amount).unwrap())
    }
}

/// A call on its way: what the teacher will have billed for it, and the keys asked.
struct Call {
    hold: HoldId,
    billed: Option<Usage>,
    late: bool,
}

struct World {
    random: ChaCha8Rng,
    /// All entries; those below `synced` survive a crash.
    journal: Vec<Entry>,
    synced: usize,
    book: Book,
    model: Model,
    statement: Statement,
    calls: Vec<Call>,
    /// The teacher's own bill.
    bill: Amount,
    /// Keys whose answer some client has seen in full.
    shown: BTreeSet<QueryKey>,
    /// Keys held at the moment, by this world's own reckoning.
    flying: BTreeMap<QueryKey, HoldId>,
    now: u64,
}

fn price() -> Price {
    let usd = |text: &str| text.parse().unwrap();
    Price {
        model: "m".into(),
        from: "2026-01-01".parse().unwrap(),
        input: usd("0.40"),
        cached_input: Some(usd("0.1")),
        cache_write: None,
        output: usd("1.60"),
        reasoning: None,
        request: usd("0.0001"),
        max_input_tokens: None,
        max_output_tokens: None,
    }
}

fn who(number: u32) -> Who {
    let run = [None, Some("a".to_owned()), Some("b".to_owned())][number as usize % 3].clone();
    Who { teacher: "t".into(), run, key: number.is_multiple_of(2).then(|| "k".to_owned()) }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            random: ChaCha8Rng::seed_from_u64(seed),
            journal: Vec::new(),
            synced: 0,
            book: Book::default(),
            model: Model::default(),
            statement: Statement::default(),
            calls: Vec::new(),
            bill: Amount::ZERO,
            shown: BTreeSet::new(),
            flying: BTreeMap::new(),
            now: "2026-11-28".parse::<tuition_ledger::Day>().unwrap().start().0,
        };
        let entry = world.book.price(price(), world.at()).unwrap();
        world.append(entry);
        let windows = [Window::Forever, Window::Forever, Window::Day, Window::Month];
        let budgets =
            [("all", None), ("run", Some("a".to_owned())), ("day", None), ("month", Some("b".to_owned()))];
        for ((name, run), window) in budgets.into_iter().zip(windows) {
            let limit = Limit {
                calls: Some(world.random.random_range(3..25)),
                tokens: None,
                usd: world
                    .random
                    .random_bool(0.5)
                    .then(|| Usd::from_nanos(world.random.random_range(1_000_000..9_000_000))),
            };
            let budget =
                Budget { name: name.into(), scope: Scope { run, ..Scope::default() }, limit, window };
            let entry = world.book.limit(budget, Origin::Config, world.at()).unwrap();
            world.append(entry);
        }
        world.sync();
        world
    }

    fn at(&self) -> Timestamp {
        Timestamp(self.now)
    }

    fn append(&mut self, entry: Entry) {
        self.book.apply(&entry).unwrap();
        self.model.apply(&entry);
        self.statement.add(&entry);
        self.journal.push(entry);
    }

    fn sync(&mut self) {
        self.synced = self.journal.len();
    }

    /// A client asks for one to four keys. The teacher is only asked once the hold is synced.
    fn ask(&mut self) {
        let count = self.random.random_range(1..=4);
        let keys: BTreeSet<_> =
            (0..count).map(|_| QueryKey::from_bytes([self.random.random_range(0..30); 32])).collect();
        let refresh = self.random.random_bool(0.05);
        let calls = self.random.random_range(1..=2);
        let items: Vec<_> = keys.iter().map(|key| HeldItem { key: *key, sample: 0, calls }).collect();
        let bound = Bound {
            calls: calls * items.len() as u64,
            input: InputBound::Bytes(100),
            output: OutputBound::Client(50),
            choices: calls,
            unbounded: None,
        };
        let who = who(self.random.random_range(0..6));
        let claim = Claim {
            exchange: Exchange {
                who: who.clone(),
                dialect: "d".into(),
                operation: "o".into(),
                revision: String::new(),
                model: "m".into(),
                headers: BTreeMap::new(),
                items,
                refresh,
            },
            quote: Quote::new("m", Some(&price()), &bound),
            unbudgeted: false,
        };
        match self.book.reserve(&claim, self.at()) {
            Ok(entry) => {
                let Fact::Reserved { hold, amount, .. } = &entry.fact else { unreachable!() };
                let hold = *hold;
                for key in &keys {
                    assert!(
                        self.flying.insert(*key, hold).is_none(),
                        "rule 8: a key in flight is held again"
                    );
                    assert!(refresh || !self.book.is_settled(key), "rule 8: a known key is bought");
                }
                for (budget, standing) in self.book.present(self.at()).budgets {
                    if !budget.scope.covers(&who) {
                        continue;
                    }
                    let sum = [standing.settled, standing.reserved, standing.unknown, *amount];
                    let sum = sum.iter().try_fold(Amount::ZERO, |sum, part| sum.checked_add(*part)).unwrap();
                    assert!(budget.limit.calls.is_none_or(|limit| sum.calls <= limit), "rule 1");
                    assert!(budget.limit.usd.is_none_or(|limit| sum.usd <= limit), "rule 1");
                }
                self.append(entry);
                if self.random.random_bool(0.1) {
                    return self.crash();
                }
                self.sync();
                let usage = Usage {
                    input: self.random.random_range(0..60),
                    cached_input: self.random.random_range(0..40),
                    output: self.random.random_range(0..=50),
                    ..Usage::default()
                };
                let refused = self.random.random_bool(0.15);
                let billed = (!refused).then_some(usage);
                if let Some(usage) = billed {
                    let usd = price().fee(bound.calls, &usage).unwrap();
                    let amount = Amount { calls: bound.calls, tokens: usage.total(), usd };
                    self.bill = self.bill.checked_add(amount).unwrap();
                }
                self.calls.push(Call { hold, billed, late: false });
            }
            Err(NotReserved::InFlight(found)) => {
                assert!(found.iter().all(|key| self.flying.contains_key(key)));
            }
            Err(NotReserved::Known(found)) => assert!(found.iter().all(|key| self.book.is_settled(key))),
            Err(NotReserved::Refused(refusal)) => {
                assert!(matches!(refusal, Refusal::Exhausted { .. } | Refusal::NoBudget { .. }), "{refusal}");
            }
        }
    }

    /// Something comes of a call: its answer, no answer, half of one, or nothing for so long that it is given up.
    fn answer(&mut self) {
        if self.calls.is_empty() {
            return;
        }
        let index = self.random.random_range(0..self.calls.len());
        let call = self.calls.swap_remove(index);
        let keys: Vec<_> =
            self.book.exchange(call.hold).map_or(vec![], |asked| asked.items.iter().map(|i| i.key).collect());
        let gives_up = !call.late && self.random.random_bool(0.2);
        let entry = if gives_up {
            let cause = if self.random.random_bool(0.5) { Cause::TimedOut } else { Cause::BrokenOff };
            if self.random.random_bool(0.5) && call.billed.is_some() {
                self.calls.push(Call { late: true, ..call });
            }
            self.book.forfeit(call.hold, cause, self.at())
        } else if call.billed.is_some() {
            // A person may have resolved the hold before a late answer came: then it is too late.
            let says = self.random.random_bool(0.8).then_some(call.billed).flatten();
            match self.book.settle(call.hold, says, "x".into(), self.at()) {
                Err(_) if call.late => return,
                settled => settled,
            }
        } else {
            self.book.release(call.hold, Cause::Status(503), self.at())
        };
        let entry = entry.unwrap();
        let settles = matches!(entry.fact, Fact::Settled { .. });
        self.append(entry);
        self.flying.retain(|_, hold| *hold != call.hold);
        if self.random.random_bool(0.1) {
            return self.crash();
        }
        if self.random.random_bool(0.7) {
            self.sync();
            if settles {
                self.shown.extend(keys);
            }
        }
    }

    /// A person, or the provider's bill, resolves an unknown hold: honestly.
    fn resolve(&mut self) {
        let open = self.book.present(self.at()).open;
        let Some(open) = open.into_iter().find(|open| open.unknown.is_some()) else { return };
        let entry = self.book.resolve(open.hold, true, "bill".into(), self.at()).unwrap();
        self.append(entry);
        self.sync();
    }

    fn change_limit(&mut self) {
        let calls = self.random.random_range(1..40);
        let limit = Limit { calls: Some(calls), ..Limit::default() };
        let budget = Budget { name: "all".into(), scope: Scope::default(), limit, window: Window::Forever };
        if let Some(entry) = self.book.limit(budget, Origin::Command, self.at()) {
            self.append(entry);
            self.sync();
        }
    }

    /// The process ends at once: what was not synced is lost in part, and a new one opens the rest.
    fn crash(&mut self) {
        let kept = self.random.random_range(self.synced..=self.journal.len());
        let journal: Vec<_> = self.journal.drain(..).take(kept).collect();
        (self.book, self.model, self.statement) = (Book::default(), Model::default(), Statement::default());
        journal.into_iter().for_each(|entry| self.append(entry));
        self.calls.clear();
        self.flying.clear();
        for hold in self.book.under_way() {
            let entry = self.book.forfeit(hold, Cause::Crashed, self.at()).unwrap();
            self.append(entry);
        }
        self.sync();
    }

    fn check(&self) {
        let now = self.journal.last().map_or(self.at(), |entry| entry.at.max(self.at()));
        let present = self.book.present(now);
        let model = |covers: &dyn Fn(&Who, Timestamp) -> bool| {
            ['s', 'r', 'u'].map(|part| self.model.sum(part, covers))
        };
        let total = present.total;
        assert_eq!([total.settled, total.reserved, total.unknown], model(&|_, _| true), "book and model");
        for (budget, standing) in &present.budgets {
            let same_window = |made: Timestamp| match budget.window {
                Window::Forever => true,
                Window::Day => made.day() == now.day(),
                Window::Month => made.day().to_string()[..7] == now.day().to_string()[..7],
            };
            let expected = model(&|who, made| budget.scope.covers(who) && same_window(made));
            assert_eq!(
                [standing.settled, standing.reserved, standing.unknown],
                expected,
                "budget {}",
                budget.name
            );
        }
        assert_eq!(self.statement.discrepancies(), &[], "the statement finds nothing wrong");
        let [settled, reserved, unknown] = self.statement.calls();
        let calls = [total.settled, total.reserved, total.unknown].map(|part| u128::from(part.calls));
        assert_eq!([settled, reserved, unknown], calls, "book and statement");
        let sum =
            total.settled.checked_add(total.reserved).and_then(|sum| sum.checked_add(total.unknown)).unwrap();
        assert!(
            self.bill.calls <= sum.calls && self.bill.usd <= sum.usd,
            "the teacher's bill is above what is counted"
        );
        assert!(
            self.shown.iter().all(|key| self.book.is_settled(key)),
            "rule 4: an answer was shown and lost"
        );
    }

    /// Book and statement agree in every figure that both show.
    fn check_statement(&self) {
        let json = self.statement.to_json(&View { now: Some(self.at()), ..View::default() });
        let present = self.book.present(self.at());
        assert_eq!(json["totals"]["usd"]["settled"], present.total.settled.usd.to_string());
        for ((budget, standing), row) in present.budgets.iter().zip(json["budgets"].as_array().unwrap()) {
            assert_eq!(row["name"], budget.name.as_str());
            assert_eq!(row["settled"]["calls"], standing.settled.calls);
            assert_eq!(row["unknown"]["usd"], standing.unknown.usd.to_string());
            assert_eq!(row["reserved"]["tokens"], standing.reserved.tokens);
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a whole number"))
}

#[test]
fn ten_thousand_histories_keep_the_money_rules() {
    let (seed, histories) = (number("TUITION_SEED", 0), number("TUITION_HISTORIES", 10_000));
    let mut ends = BTreeMap::<&str, u64>::new();
    for seed in seed..seed + histories {
        let run = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..STEPS {
                world.now = world.now.saturating_add_signed(world.random.random_range(-5..500));
                if world.random.random_bool(0.1) {
                    world.now += world.random.random_range(1..40) * 3_600_000;
                }
                match world.random.random_range(0..20) {
                    0..=9 => world.ask(),
                    10..=16 => world.answer(),
                    17 => world.resolve(),
                    18 => world.change_limit(),
                    _ => world.crash(),
                }
                world.check();
            }
            world.check_statement();
            world.journal.iter().map(|entry| entry.fact.name()).collect::<Vec<_>>()
        });
        let facts = run.unwrap_or_else(|_| {
            panic!("history {seed} broke a rule: TUITION_SEED={seed} TUITION_HISTORIES=1")
        });
        facts.into_iter().for_each(|name| *ends.entry(name).or_default() += 1);
    }
    println!("{histories} histories: {ends:?}");
    for fact in ["Reserved", "Settled", "Released", "Forfeited", "Resolved", "Limited"] {
        assert!(ends.get(fact).is_some_and(|count| *count >= histories / 10), "too few {fact}: {ends:?}");
    }
}
