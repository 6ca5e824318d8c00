//! Rows of a bill, what was bought, and what comes of both.

use tuition_ledger::{HoldId, OpenCall, WholeCall};

use super::*;

fn day() -> Day {
    "2026-11-01".parse().unwrap()
}

fn bill(rows: &[(&str, &[(Column, u128)])]) -> Bill {
    let billed = |figures: &[(Column, u128)]| Billed {
        figures: figures.iter().copied().collect(),
        usd_cells: u64::from(figures.iter().any(|(column, _)| *column == Column::Usd)),
        finer: figures.iter().any(|(column, figure)| *column == Column::Usd && figure % UNITS_A_NANO != 0),
        ..Billed::default()
    };
    let columns = rows.iter().flat_map(|(_, figures)| figures.iter().map(|(column, _)| *column)).collect();
    let rows = rows.iter().map(|(model, figures)| ((day(), (*model).to_owned()), billed(figures))).collect();
    Bill { form: "a test", columns, rows }
}

fn bought(rows: &[(&str, &Bought)]) -> Rows<Bought> {
    rows.iter().map(|(model, bought)| ((day(), (*model).to_owned()), (*bought).clone())).collect()
}

/// A call of 100 tokens and 10 nano-dollars, three quarters of the tokens input.
fn one() -> Bought {
    Bought { requests: 1, input: 75, output: 25, tokens: 100, nanos: 10, ..Bought::default() }
}

fn unknown(id: u64, tokens: Option<u64>, nanos: Option<u64>) -> OpenCall {
    OpenCall { hold: HoldId(id), under_way: false, tokens, usd: nanos.map(Usd::from_nanos) }
}

#[track_caller]
fn check(column: Column, bill_figure: u128, record: &Bought, expected: Finding) {
    let compared =
        compare(&bill(&[("m", &[(column, bill_figure)])]), bought(&[("m", record)]), &Terms::default());
    assert_eq!(compared.totals.figures[0].finding, expected, "{column:?} {bill_figure} {record:?}");
    assert_eq!(compared.adds_up(), expected.adds_up());
}

#[test]
fn a_difference_is_explained_by_what_bounds_it() {
    use Column::{Calls, Input, Output, Tokens, Usd as Dollars};
    use Finding::{Equal, Open, Overcounted, Unexplained, Unpriced, Whole};
    let open = |calls: &[OpenCall]| Bought { open: calls.to_vec(), ..one() };
    let two = open(&[unknown(7, Some(40), Some(4)), unknown(9, Some(10), Some(1))]);
    for (column, figure, record, expected) in [
        (Calls, 1, one(), Equal),
        (Calls, 2, one(), Unexplained),
        (Calls, 0, one(), Overcounted),
        (Calls, 1, two.clone(), Equal),
        (Calls, 3, two.clone(), Open),
        (Calls, 4, two.clone(), Unexplained),
        (Tokens, 150, two.clone(), Open),
        (Tokens, 151, two.clone(), Unexplained),
        (Input, 125, two.clone(), Open),
        (Input, 126, two.clone(), Unexplained),
        (Dollars, 15 * UNITS_A_NANO, two.clone(), Open),
        (Dollars, 15 * UNITS_A_NANO + 1, two, Unexplained),
        (Dollars, 10_000 * UNITS_A_NANO, open(&[unknown(7, None, None)]), Open),
        (Dollars, 11 * UNITS_A_NANO, Bought { unpriced: 1, ..one() }, Unpriced),
    ] {
        check(column, figure, &record, expected);
    }
    let call = WholeCall { hold: HoldId(7), tokens: 50, usd: Usd::from_nanos(5) };
    let whole = Bought { requests: 2, tokens: 150, nanos: 15, whole: vec![call], ..one() };
    for (column, figure, expected) in [
        (Calls, 2, Equal),
        (Tokens, 100, Whole),
        (Tokens, 99, Overcounted),
        (Tokens, 151, Unexplained),
        (Dollars, 10 * UNITS_A_NANO, Whole),
        (Dollars, 9 * UNITS_A_NANO, Overcounted),
        (Output, 75, Whole),
        (Output, 76, Unexplained),
        (Output, 24, Overcounted),
    ] {
        check(column, figure, &whole, expected);
    }
}

#[test]
fn only_stated_rounding_adds_up() {
    let record = |requests| Bought { requests, ..one() };
    let usd = |units: u128| (Column::Usd, units);
    for (units, requests, places, expected) in [
        (10 * UNITS_A_NANO, 1, None, Finding::Equal),
        // A fee is rounded up to a nano-dollar, where the bill has parts of one.
        (9 * UNITS_A_NANO + 1, 1, None, Finding::Rounding),
        (8 * UNITS_A_NANO + 1, 1, None, Finding::Overcounted),
        (8 * UNITS_A_NANO + 1, 2, None, Finding::Rounding),
        (10 * UNITS_A_NANO + 1, 2, None, Finding::Unexplained),
        (9 * UNITS_A_NANO, 2, None, Finding::Overcounted),
        (0, 1, Some(8), Finding::Overcounted),
        (UNITS_A_NANO, 1, Some(8), Finding::Rounding),
        (19 * UNITS_A_NANO, 1, Some(8), Finding::Rounding),
        (20 * UNITS_A_NANO, 1, Some(8), Finding::Unexplained),
    ] {
        let terms = Terms { places, ..Terms::default() };
        let compared = compare(&bill(&[("m", &[usd(units)])]), bought(&[("m", &record(requests))]), &terms);
        assert_eq!(compared.totals.figures[0].finding, expected, "{units} {requests} {places:?}");
    }
}

/// The rows of a comparison of calls: model, bill, record, the bill's other names.
fn rows(there: &[(&str, u128)], here: &[(&str, u64)], renamed: &[(&str, &str)]) -> String {
    let figures: Vec<_> = there.iter().map(|(model, calls)| (*model, [(Column::Calls, *calls)])).collect();
    let figures: Vec<(&str, &[(Column, u128)])> =
        figures.iter().map(|(model, figures)| (*model, &figures[..])).collect();
    let record: Vec<_> = here
        .iter()
        .map(|(model, requests)| (*model, Bought { requests: *requests, ..Bought::default() }))
        .collect();
    let record: Vec<_> = record.iter().map(|(model, bought)| (*model, bought)).collect();
    let renamed = renamed.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect();
    let compared = compare(&bill(&figures), bought(&record), &Terms { renamed, places: None });
    let row = |((_, model), row): (&(Day, String), &Row)| {
        let names: Vec<&str> = row.names.iter().map(String::as_str).collect();
        format!("{model} {} {} [{}]", row.figures[0].bill, row.figures[0].recorded, names.join(" "))
    };
    compared.rows.iter().map(row).collect::<Vec<_>>().join("; ")
}

#[test]
fn models_meet_under_the_records_name() {
    for (there, here, renamed, expected) in [
        (&[("a", 1)][..], &[("a", 1)][..], &[][..], "a 1 1 []"),
        (&[("a", 1)], &[("b", 1)], &[], "a 1 0 []; b 0 1 []"),
        (&[("gpt-x-2024-08-06", 2)], &[("gpt-x", 1)], &[], "gpt-x 2 1 [gpt-x-2024-08-06]"),
        (&[("c-20250514", 2), ("c", 1)], &[("c", 3)], &[], "c 3 3 [c-20250514]"),
        (&[("c-20250514", 2)], &[("c", 1), ("c-20250514", 2)], &[], "c 0 1 []; c-20250514 2 2 []"),
        (&[("c-2025051", 2)], &[("c", 2)], &[], "c 0 2 []; c-2025051 2 0 []"),
        (&[("é-20250514", 2)], &[("é", 2)], &[], "é 2 2 [é-20250514]"),
        (&[("Claude X", 2)], &[("c", 2)], &[("Claude X", "c")], "c 2 2 [Claude X]"),
        (&[("x", 3)], &[("c", 1), ("d", 2)], &[("c", "x"), ("d", "x")], "x 3 3 []"),
        (&[(ALL_MODELS, 3)], &[("c", 1), ("d", 2)], &[], "(all models) 3 3 []"),
    ] {
        assert_eq!(rows(there, here, renamed), expected);
    }
}

#[test]
fn errors_that_cancel_out_do_not_add_up() {
    let there = bill(&[("a", &[(Column::Calls, 2)]), ("b", &[(Column::Calls, 0)])]);
    let compared = compare(&there, bought(&[("a", &one()), ("b", &one())]), &Terms::default());
    assert_eq!(compared.totals.figures[0].finding, Finding::Equal);
    assert!(!compared.adds_up());
}
