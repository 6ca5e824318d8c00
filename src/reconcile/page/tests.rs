//! A comparison as people see it.

use tuition_ledger::HoldId;

use super::super::bill;
use super::super::compare::{Terms, compare};
use super::*;

fn compared() -> Comparison {
    let text = "start_time,model,num_model_requests,input_tokens,output_tokens\n\
        1761955200,m-2025-01-01,3,30,6\n1762041600,m,1,40,4\n1762041600,other,1,1,1\n";
    let bill = bill::read("bill.csv".as_ref(), text.as_bytes(), None).unwrap();
    let day = |text: &str| text.parse::<Day>().unwrap();
    let open = |id, under_way, tokens: u64| OpenCall {
        hold: HoldId(id),
        under_way,
        tokens: Some(tokens),
        usd: Some(Usd::from_nanos(tokens)),
    };
    let first = Bought {
        requests: 2,
        input: 20,
        output: 4,
        open: vec![open(3, false, 12), open(4, true, 5)],
        ..Bought::default()
    };
    let whole = WholeCall { hold: HoldId(5), tokens: 50, usd: Usd::from_nanos(50) };
    let second = Bought { requests: 1, tokens: 50, nanos: 50, whole: vec![whole], ..Bought::default() };
    let late = Bought { requests: 1, input: 2, output: 2, ..Bought::default() };
    let rows = [("2025-11-01", first), ("2025-11-02", second), ("2025-11-03", late)];
    let bought = rows.map(|(text, row)| ((day(text), "m".to_owned()), row)).into_iter().collect();
    compare(&bill, bought, &Terms::default())
}

#[test]
fn a_comparison_is_a_page() {
    let compared = compared();
    let day = |text: &str| text.parse::<Day>().unwrap();
    let shown = Shown {
        file: "bill.csv".as_ref(),
        form: "OpenAI's usage export",
        span: Some((day("2025-11-01"), day("2025-11-02"))),
        discrepancies: 0,
        compared: &compared,
    };
    insta::assert_snapshot!(shown.page(), @r"
    `bill.csv`, OpenAI's usage export, against the statement

    day         model  what    bill  statement  delta  why
    2025-11-01  m      calls      3          2  +1     call 3 (unknown, up to 12 tokens, 0.000000012 dollars), call 4 (under way, up to 5 tokens, 0.000000005 dollars) would explain it
    2025-11-01  m      input     30         20  +10    call 3 (unknown, up to 12 tokens, 0.000000012 dollars), call 4 (under way, up to 5 tokens, 0.000000005 dollars) would explain it
    2025-11-01  m      output     6          4  +2     call 3 (unknown, up to 12 tokens, 0.000000012 dollars), call 4 (under way, up to 5 tokens, 0.000000005 dollars) would explain it
    2025-11-02  m      calls      1          1  0
    2025-11-02  m      input     40          0  +40    within what was charged whole, without a stated usage: call 5 (50 tokens, 0.000000050 dollars)
    2025-11-02  m      output     4          0  +4     within what was charged whole, without a stated usage: call 5 (50 tokens, 0.000000050 dollars)
    2025-11-02  other  calls      1          0  +1     the record has no such calls
    2025-11-02  other  input      1          0  +1     the record has no such calls
    2025-11-02  other  output     1          0  +1     the record has no such calls
    2025-11-03  m      calls      0          1  -1     the bill has no such calls
    2025-11-03  m      input      0          2  -2     the bill has no such calls
    2025-11-03  m      output     0          2  -2     the bill has no such calls
    total              calls      5          4  +1
    total              input     71         22  +49
    total              output    11          6  +5

    note: the export holds 2025-11-01 to 2025-11-02, the statement more: `--since 2025-11-01 --until 2025-11-03` limits both

    note: the bill's `m-2025-01-01` is the record's `m`

    4 of 4 rows do not add up
    ");
    insta::assert_snapshot!(shown.csv().lines().take(3).collect::<Vec<_>>().join("\n"), @r#"
    day,model,what,bill,statement,delta,why
    2025-11-01,m,calls,3,2,+1,"call 3 (unknown, up to 12 tokens, 0.000000012 dollars), call 4 (under way, up to 5 tokens, 0.000000005 dollars) would explain it"
    2025-11-01,m,input,30,20,+10,"call 3 (unknown, up to 12 tokens, 0.000000012 dollars), call 4 (under way, up to 5 tokens, 0.000000005 dollars) would explain it"
    "#);
    let row = &shown.json()["rows"][1];
    insta::assert_snapshot!(row, @r#"{"adds_up":false,"billed_as":[],"charged_whole":[{"id":5,"tokens":50,"usd":"0.000000050"}],"day":"2025-11-02","figures":{"calls":{"bill":1,"delta":0,"finding":"equal","statement":1,"why":""},"input":{"bill":40,"delta":40,"finding":"whole_holds","statement":0,"why":"within what was charged whole, without a stated usage: call 5 (50 tokens, 0.000000050 dollars)"},"output":{"bill":4,"delta":4,"finding":"whole_holds","statement":0,"why":"within what was charged whole, without a stated usage: call 5 (50 tokens, 0.000000050 dollars)"}},"model":"m","under_way":[],"unknown":[]}"#);
}

#[test]
fn a_models_name_does_not_command_the_terminal() {
    let row = compared().rows.into_values().next().unwrap();
    assert_eq!(cells("2025-11-01", "m\u{1b}[2J\n", &row, false)[0][1], "m?[2J?");
}

#[test]
fn dollars_have_nine_places() {
    let figure = |bill, recorded| Figure { column: Column::Usd, bill, recorded, finding: Finding::Equal };
    for (bill, recorded, expected) in [
        (3 * UNITS_A_NANO, UNITS_A_NANO, ("0.000000003", "0.000000002")),
        (1, UNITS_A_NANO, ("0.000000001", "0.000000000")),
        (0, 7_000_000_000 * UNITS_A_NANO, ("0.000000000", "-7.000000000")),
    ] {
        let figure = figure(bill, recorded);
        assert_eq!((&text(Column::Usd, bill)[..], &delta(&figure)[..]), expected);
    }
}
