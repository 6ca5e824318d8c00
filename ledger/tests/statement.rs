//! The statement finds what was tampered with or never added up, and shows what the interface pins.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;

use tuition_ledger::{
    Amount, Book, Bought, Bound, Budget, By, Cause, Claim, Entry, Exchange, Fact, HeldItem, HoldId,
    InputBound, Limit, OpenCall, Origin, OutputBound, Price, QueryKey, Quote, Scope, Statement, Tally,
    Timestamp, Usage, Usd, View, Who, WholeCall, Window,
};

fn usd(text: &str) -> Usd {
    text.parse().unwrap()
}

fn price() -> Price {
    Price {
        model: "m".into(),
        from: "2026-01-01".parse().unwrap(),
        input: usd("0.40"),
        cached_input: None,
        cache_write: None,
        output: usd("1.60"),
        reasoning: None,
        request: Usd::ZERO,
        max_input_tokens: None,
        max_output_tokens: None,
    }
}

fn who() -> Who {
    Who { teacher: "t".into(), run: Some("r".into()), key: None }
}

fn claim(keys: &[u8]) -> Claim {
    let held = |number: &u8| HeldItem { key: QueryKey::from_bytes([*number; 32]), sample: 0, calls: 1 };
    let calls = keys.len() as u64;
    let (input, output) = (InputBound::Bytes(100), OutputBound::Client(10));
    Claim {
        exchange: Exchange {
            who: who(),
            dialect: "d".into(),
            operation: "o".into(),
            revision: String::new(),
            model: "m".into(),
            headers: BTreeMap::new(),
            items: keys.iter().map(held).collect(),
            refresh: false,
        },
        quote: Quote::new("m", Some(&price()), &Bound { calls, input, output, choices: 1, unbounded: None }),
        unbudgeted: false,
    }
}

/// A small honest history: a settled batch, an unknown call, a free one, one resolved, one under way, some hits.
fn history() -> Vec<Entry> {
    let mut book = Book::default();
    let mut entries = Vec::new();
    let mut add = |book: &mut Book, entry: Entry| {
        book.apply(&entry).unwrap();
        entries.push(entry);
    };
    let at = |minutes: u64| {
        Timestamp("2026-11-01".parse::<tuition_ledger::Day>().unwrap().start().0 + minutes * 60_000)
    };
    let entry = book.price(price(), at(0)).unwrap();
    add(&mut book, entry);
    let limit = Limit { calls: Some(10), tokens: None, usd: Some(usd("0.01")) };
    let budget = Budget { name: "b".into(), scope: Scope::default(), limit, window: Window::Forever };
    let entry = book.limit(budget, Origin::Config, at(0)).unwrap();
    add(&mut book, entry);
    for (number, keys) in [(1, &[1, 2][..]), (2, &[3]), (3, &[4]), (4, &[5]), (5, &[6])] {
        let entry = book.reserve(&claim(keys), at(number * 1440)).unwrap();
        add(&mut book, entry);
    }
    let usage = Usage { input: 7, output: 3, ..Usage::default() };
    let entry = book.settle(HoldId(1), Some(usage), "x".into(), at(9000)).unwrap();
    add(&mut book, entry);
    let entry = book.forfeit(HoldId(2), Cause::TimedOut, at(9000)).unwrap();
    add(&mut book, entry);
    let entry = book.release(HoldId(3), Cause::Status(429), at(9000)).unwrap();
    add(&mut book, entry);
    let entry = book.forfeit(HoldId(4), Cause::BrokenOff, at(9000)).unwrap();
    add(&mut book, entry);
    let entry = book.resolve(HoldId(4), true, "on the bill".into(), at(9001)).unwrap();
    add(&mut book, entry);
    let saved = Amount { calls: 2, tokens: 10, usd: usd("0.0000076") };
    let tally = Tally { who: who(), model: "m".into(), known: 1, followed: 1, saved, refused: 0 };
    let entry = book.served(vec![tally], at(9002));
    add(&mut book, entry);
    entries
}

fn statement(entries: &[Entry]) -> Statement {
    let mut statement = Statement::default();
    entries.iter().for_each(|entry| statement.add(entry));
    statement
}

#[test]
fn an_honest_history_adds_up() {
    let statement = statement(&history());
    let json = statement.to_json(&View { by: vec![By::Day, By::Run], ..View::default() });
    assert_eq!(json["discrepancies"], serde_json::json!([]));
    // 7 x 0.40 + 3 x 1.60 dollars a million, and a whole hold of 100 x 0.40 + 10 x 1.60.
    assert_eq!(
        json["totals"],
        serde_json::json!({
            "calls": {"settled": 3, "reserved": 1, "unknown": 1},
            "tokens": {"settled": 120, "reserved": 110, "unknown": 110},
            "usd": {"settled": "0.000063600", "reserved": "0.000056000", "unknown": "0.000056000"},
            "saved": {"calls": 2, "usd": "0.000007600"},
        })
    );
    assert_eq!(json["budgets"][0]["left"], serde_json::json!({"calls": 5, "usd": "0.009824400"}));
    let rows = json["by"].as_array().unwrap();
    let days = |rows: &[&serde_json::Value]| -> Vec<String> {
        rows.iter().map(|row| row["day"].as_str().unwrap().to_owned()).collect()
    };
    let (held, served): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row["exchanges"] != 0);
    assert_eq!(days(&held), ["2026-11-02", "2026-11-03", "2026-11-04", "2026-11-05", "2026-11-06"]);
    // What cost nothing stands in a row of the day on which it was counted.
    assert_eq!((served.len(), &served[0]["served"]["known"]), (1, &serde_json::json!(1)), "{served:?}");
    assert_eq!(json["served"]["followed"], 1);
    assert_eq!(json["unknown"][0]["id"], 2);
    assert_eq!(json["unknown"].as_array().unwrap().len(), 1);
}

#[test]
fn a_span_of_time_shows_its_holds_only() {
    let statement = statement(&history());
    let day = |text: &str| Some(text.parse::<tuition_ledger::Day>().unwrap().start());
    let view = View { since: day("2026-11-02"), until: day("2026-11-04"), ..View::default() };
    let calls = &statement.to_json(&view)["totals"]["calls"];
    assert_eq!(*calls, serde_json::json!({"settled": 2, "reserved": 0, "unknown": 1}));
}

#[test]
fn what_does_not_add_up_is_found_and_named() {
    #[track_caller]
    fn check(change: impl FnOnce(&mut Vec<Entry>), expected: &[(u64, &str)]) {
        let mut entries = history();
        change(&mut entries);
        let found = statement(&entries).discrepancies().to_vec();
        let found: Vec<_> = found.iter().map(|found| (found.entry, found.what.as_str())).collect();
        assert_eq!(found, expected);
    }
    // Entries: 1 price, 2 limit, 3-7 holds 1-5, 8 settled 1, 9 forfeited 2, 10 released 3, 11 forfeited 4, 12 resolved 4.
    check(|_| {}, &[]);
    check(
        |entries| {
            let Fact::Settled { fee, .. } = &mut entries[7].fact else { unreachable!() };
            fee.usd = usd("0.000007599");
        },
        &[
            (
                8,
                "the fee of hold 1 is 2 calls, 10 tokens, 0.000007599 dollars; by its usage and price it is 2 calls, 10 tokens, 0.000007600 dollars",
            ),
            (8, "the shares of hold 1 do not add up to its fee"),
        ],
    );
    check(
        |entries| {
            let Fact::Settled { items, .. } = &mut entries[7].fact else { unreachable!() };
            items[0].share.calls = 2;
        },
        &[(8, "the shares of hold 1 do not add up to its fee")],
    );
    check(
        |entries| _ = entries.remove(3),
        &[(4, "hold 3 follows hold 1"), (8, "hold 2 is forfeited although it is not known")],
    );
    check(
        |entries| entries.swap(3, 4),
        &[
            (4, "hold 3 follows hold 1"),
            (
                5,
                "its time, 2026-11-03T00:00:00.000Z, is before the entry in front of it, 2026-11-04T00:00:00.000Z",
            ),
            (5, "hold 2 follows hold 3"),
        ],
    );
    check(
        |entries| {
            let Fact::Limited { budget, .. } = &mut entries[1].fact else { unreachable!() };
            budget.limit.calls = Some(5);
        },
        &[(7, "hold 5 brings budget `b` to 6 calls, over its limit of 5")],
    );
    check(
        |entries| {
            let Fact::Reserved { exchange, .. } = &mut entries[4].fact else { unreachable!() };
            exchange.items[0].key = QueryKey::from_bytes([3; 32]);
        },
        &[(
            5,
            "key 0303030303030303030303030303030303030303030303030303030303030303 is held by hold 2 already",
        )],
    );
    check(
        |entries| {
            let copy = entries[9].clone();
            entries.push(copy);
        },
        &[
            (
                14,
                "its time, 2026-11-07T06:00:00.000Z, is before the entry in front of it, 2026-11-07T06:02:00.000Z",
            ),
            (14, "hold 3 is released although it is free"),
        ],
    );
    check(
        |entries| {
            let Fact::Priced { price, .. } = &mut entries[0].fact else { unreachable!() };
            price.model = "n".into();
        },
        &[(1, &format!("price `{}` of model `n` does not match its digest", price().digest().0))],
    );
}

#[test]
fn a_teacher_that_charges_above_the_bound_is_an_overrun() {
    let mut book = Book::default();
    let mut statement = Statement::default();
    let mut claim = claim(&[1]);
    claim.unbudgeted = true;
    for entry in [book.price(price(), Timestamp(1)).unwrap(), book.reserve(&claim, Timestamp(1)).unwrap()] {
        book.apply(&entry).unwrap();
        statement.add(&entry);
    }
    let usage = Usage { input: 101, output: 10, ..Usage::default() };
    let entry = book.settle(HoldId(1), Some(usage), String::new(), Timestamp(2)).unwrap();
    statement.add(&entry);
    assert_eq!(statement.discrepancies(), &[]);
    assert_eq!(statement.overruns().len(), 1);
    assert_eq!(statement.overruns()[0].fee.tokens, 111);
}

#[test]
fn what_was_bought_is_told_by_day_and_model_as_a_bill_would() {
    let mut entries = history();
    let rows = |entries: &[Entry], since: Option<&str>, until: Option<&str>, teacher: Option<&str>| {
        let start = |day: &str| day.parse::<tuition_ledger::Day>().unwrap().start();
        let rows = statement(entries).bought(teacher, since.map(start), until.map(start));
        rows.into_iter().map(|((day, model), bought)| (format!("{day} {model}"), bought)).collect::<Vec<_>>()
    };
    // Two items, one request; 7 tokens at 400 and 3 at 1600 nano-dollars.
    let settled = Bought { requests: 1, input: 7, output: 3, tokens: 10, nanos: 7600, ..Bought::default() };
    let (tokens, nanos) = (110, 100 * 400 + 10 * 1600);
    let open = |hold, under_way| Bought {
        open: vec![OpenCall {
            hold: HoldId(hold),
            under_way,
            tokens: Some(tokens),
            usd: Some(Usd::from_nanos(nanos)),
        }],
        ..Bought::default()
    };
    let whole = Bought {
        requests: 1,
        tokens: tokens.into(),
        nanos: nanos.into(),
        whole: vec![WholeCall { hold: HoldId(4), tokens, usd: Usd::from_nanos(nanos) }],
        ..Bought::default()
    };
    // The free call of November 4th is in no row.
    let expected = vec![
        ("2026-11-02 m".to_owned(), settled.clone()),
        ("2026-11-03 m".to_owned(), open(2, false)),
        ("2026-11-05 m".to_owned(), whole),
        ("2026-11-06 m".to_owned(), open(5, true)),
    ];
    assert_eq!(rows(&entries, None, None, None), expected);
    assert_eq!(rows(&entries, Some("2026-11-03"), Some("2026-11-05"), Some("t")), expected[1..2]);
    assert_eq!(rows(&entries, None, None, Some("u")), []);
    assert_eq!(statement(&entries).teachers(), std::collections::BTreeSet::from(["t"]));

    // A late answer to the unknown call counts on the day of its hold.
    let late = Entry {
        at: Timestamp(entries.last().unwrap().at.0),
        fact: match entries[7].fact.clone() {
            Fact::Settled { usage, fee, whole_hold, media, items, .. } => Fact::Settled {
                hold: HoldId(2),
                usage,
                fee: Amount { calls: 1, ..fee },
                whole_hold,
                media,
                items: items[..1].to_vec(),
            },
            other => panic!("{other:?}"),
        },
    };
    entries.push(late);
    assert_eq!(rows(&entries, None, None, None)[1], ("2026-11-03 m".to_owned(), settled));

    // Without a price nothing bounds the dollars.
    let mut unpriced = history();
    let Fact::Reserved { price, amount, .. } = &mut unpriced[3].fact else { unreachable!() };
    (*price, amount.tokens, amount.usd) = (None, 0, Usd::ZERO);
    let doubt = &rows(&unpriced, None, None, None)[1].1.open[0];
    assert_eq!((doubt.tokens, doubt.usd), (None, None));
}
