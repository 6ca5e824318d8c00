//! Rows for each export that is known, and for what is wrong with one.

use super::super::form::mapped;
use super::*;
use crate::words::{Trouble, Words};

/// Reads `text`, with a map of columns where one is given.
fn parsed(text: &str, map: &str) -> Result<Bill, BillError> {
    let words: Vec<String> = map.split(',').map(str::to_owned).collect();
    let form = (!map.is_empty()).then(|| mapped(&words).unwrap());
    read("bill.csv".as_ref(), text.as_bytes(), form.as_ref())
}

/// The rows of a bill in one line each.
fn lines(bill: &Bill) -> String {
    let row = |((day, model), billed): (&(Day, String), &Billed)| {
        let figures = billed.figures.iter().map(|(column, figure)| format!(" {}={figure}", column.name()));
        format!("{day} {model}{}", figures.collect::<String>())
    };
    let rows: Vec<String> = bill.rows.iter().map(row).collect();
    format!("{}\n{}", bill.form, rows.join("\n"))
}

#[track_caller]
fn refused(text: &str, map: &str) -> String {
    Words::of(&Trouble::from(parsed(text, map).unwrap_err())).text()
}

#[test]
fn the_usage_export_of_openai_is_summed_by_day_and_model() {
    let text = "start_time,end_time,start_time_iso,end_time_iso,project_id,num_model_requests,user_id,api_key_id,model,batch,service_tier,input_tokens,output_tokens,input_cached_tokens,input_uncached_tokens\n\
        1759622400,1759708800,2025-10-05T00:00:00+00:00,2025-10-06T00:00:00+00:00,proj_a,10.0,user-a,key_a,gpt-x-2024-08-06,FALSE,default,59200.0,10646.0,5760.0,53440.0\n\
        1759622400,1759708800,2025-10-05T00:00:00+00:00,2025-10-06T00:00:00+00:00,proj_b,1.0,user-a,key_b,gpt-x-2024-08-06,FALSE,default,800.0,54.0,240.0,560.0\n\
        1759708800,1759795200,2025-10-06T00:00:00+00:00,2025-10-07T00:00:00+00:00,,,,,,,,,,,\n\
        1759795200,1759881600,2025-10-07T00:00:00+00:00,2025-10-08T00:00:00+00:00,proj_a,2,user-a,key_a,gpt-y,FALSE,default,7,8,0,7\n";
    insta::assert_snapshot!(lines(&parsed(text, "").unwrap()), @r"
    OpenAI's usage export
    2025-10-05 gpt-x-2024-08-06 calls=11 input=60000 cached_input=6000 output=10700
    2025-10-07 gpt-y calls=2 input=7 cached_input=0 output=8
    ");
    // An export of embeddings has no output.
    let text = "start_time,model,num_model_requests,input_tokens\r\n1759622400,embed,3,12\r\n";
    insta::assert_snapshot!(lines(&parsed(text, "").unwrap()), @r"
    OpenAI's usage export
    2025-10-05 embed calls=3 input=12
    ");
}

#[test]
fn the_costs_export_of_openai_is_summed_over_its_line_items() {
    let head = "\u{feff}start_time,end_time,start_time_iso,end_time_iso,amount_value,amount_currency,line_item,project_id\n";
    let text = format!(
        "{head}1759622400,,2025-10-05T00:00:00+00:00,,0.8000000000000000,usd,\"gpt-x-2024-08-06, Input\",p\n\
         1759622400,,2025-10-05T00:00:00+00:00,,9.5e-05,USD,\"gpt-x-2024-08-06, Output\",p\n\
         1759708800,,2025-10-06T00:00:00+00:00,,,,,\n"
    );
    insta::assert_snapshot!(lines(&parsed(&text, "").unwrap()), @r"
    OpenAI's costs export
    2025-10-05 gpt-x-2024-08-06 usd=800095000000000000
    ");
    let text = format!("{head}1759622400,,2025-10-05T00:00:00+00:00,,0.5,usd,,\n");
    insta::assert_snapshot!(lines(&parsed(&text, "").unwrap()), @r"
    OpenAI's costs export
    2025-10-05 (all models) usd=500000000000000000
    ");
    let text = format!(
        "{head}1759622400,,2025-10-05T00:00:00+00:00,,0.5,usd,\"gpt-x, Input\",\n1759622400,,2025-10-05T00:00:00+00:00,,0.5,usd,,\n"
    );
    insta::assert_snapshot!(refused(&text, ""), @"error: `bill.csv`, line 3, column `line_item`: it is empty, though other rows name a model");
    let text = format!("{head}1759622400,,2025-10-05T00:00:00+00:00,,0.5,eur,\"gpt-x, Input\",\n");
    insta::assert_snapshot!(refused(&text, ""), @"error: `bill.csv`, line 2, column `amount_currency`: the currency is `eur`; only usd can be compared");
}

#[test]
fn the_exports_of_anthropic_are_summed() {
    let text = "usage_date_utc,model_version,api_key,workspace,usage_type,context_window,usage_input_tokens_no_cache,usage_input_tokens_cache_write_5m,usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,usage_output_tokens,web_search_count,inference_geo,speed\n\
        2026-03-22,claude-x-20250514,\"a, key\",Default,standard,≤ 200k,1000,20,3,400,50,0,global,\n\
        2026-03-22,claude-x-20250514,b,Default,batch,≤ 200k,1,1,1,1,1,0,global,\n";
    insta::assert_snapshot!(lines(&parsed(text, "").unwrap()), @r"
    Anthropic's usage export
    2026-03-22 claude-x-20250514 fresh_input=1001 cached_input=401 cache_write=25 output=51
    ");
    let text = "usage_date_utc,model,workspace,api_key,usage_type,context_window,token_type,cost_usd,list_price_usd,cost_type\n\
        2026-03-22,Claude X,Default,a,message,≤ 200k,input_no_cache,0.19,0.19,token\n\
        2026-03-22,Claude X,Default,a,message,≤ 200k,output,0.03,0.03,token\n";
    insta::assert_snapshot!(lines(&parsed(text, "").unwrap()), @r"
    Anthropic's cost export
    2026-03-22 Claude X usd=220000000000000000
    ");
}

#[test]
fn any_csv_is_read_with_a_map_of_its_columns() {
    let text = "Tag,Modell,Anfragen,Kosten\n2026-11-01,m,2,0.30\n2026-11-01,m,1,0.01\n";
    insta::assert_snapshot!(lines(&parsed(text, "day=Tag,model=Modell,calls=Anfragen,usd=Kosten").unwrap()), @r"
    the map of `--columns`
    2026-11-01 m calls=3 usd=310000000000000000
    ");
    insta::assert_snapshot!(refused(text, "day=Tag,model=Model,usd=Kosten"), @r"
    error: `bill.csv`, line 1: there is no column `Model`, which the map of `--columns` has; there are `Tag`, `Modell`, `Anfragen`, `Kosten`
      hint: did you mean `Modell`?
    ");
    insta::assert_snapshot!(refused(text, "day=Tag,model=Modell,tokens=Zeichen"), @r"
    error: `bill.csv`, line 1: there is no column `Zeichen`, which the map of `--columns` has; there are `Tag`, `Modell`, `Anfragen`, `Kosten`
      hint: `--columns day=COLUMN,model=COLUMN,usd=COLUMN` says what the columns of any CSV mean
    ");
}

#[test]
fn what_is_no_bill_is_refused_by_its_place() {
    insta::assert_snapshot!(refused("date,model,tokens\n2026-11-01,m,3\n", ""), @r"
    error: `bill.csv` is no export that is known: its header row has `date`, `model`, `tokens`
      hint: known are the usage and costs exports of OpenAI and of Anthropic; `--columns day=COLUMN,model=COLUMN,usd=COLUMN` says what the columns of any CSV mean
    ");
    insta::assert_snapshot!(refused("", ""), @r"
    error: `bill.csv` is no export that is known: its header row has no columns
      hint: known are the usage and costs exports of OpenAI and of Anthropic; `--columns day=COLUMN,model=COLUMN,usd=COLUMN` says what the columns of any CSV mean
    ");
    let map = "day=d,model=m,calls=c,usd=u";
    let row = |row: &str| refused(&format!("d,m,c,u\n2026-11-01,x,1,0.5\n{row}\n"), map);
    insta::assert_snapshot!(row("2026-11-01,x,1.5,0"), @"error: `bill.csv`, line 3, column `c`: `1.5` is no whole number");
    insta::assert_snapshot!(row("2026-11-01,x,-1,0"), @"error: `bill.csv`, line 3, column `c`: `-1` is negative");
    insta::assert_snapshot!(row("2026-11-01,x,1,-0.01"), @"error: `bill.csv`, line 3, column `u`: `-0.01` is negative");
    insta::assert_snapshot!(row("2026-11-01,x,1,free"), @"error: `bill.csv`, line 3, column `u`: `free` is no decimal amount of dollars");
    insta::assert_snapshot!(row("1. November,x,1,0"), @"error: `bill.csv`, line 3, column `d`: `1. November` is no day (2026-11-01), no moment in UTC and no Unix time");
    insta::assert_snapshot!(row("2026-11-01,x,1"), @"error: the export `bill.csv` is no sound CSV: CSV error: record 2 (line: 3, byte: 27): found record with 3 fields, but the previous record has 4 fields");
    insta::assert_snapshot!(refused("d,m,c,c,u\n", map), @"error: `bill.csv`, line 1: there are two columns `c`");
}
