//! `tuition plan`: what `label` with the same arguments would find known, and what the rest may cost at most.
//!
//! Must not ask anybody. Invariant: the bound is the sum of the holds that would be made, so nothing can cost more.

use serde_json::{Value, json};
use tuition_ledger::{Limit, Present, Quote, Unbounded, Unit, Usd, Who};

use crate::args::Globals;
use crate::label::LabelArgs;
use crate::purchase::Asked;
use crate::words::{Exit, Trouble};
use crate::{open, print};

/// The sum of the holds that would be made; a unit without a bound says why.
struct Bound {
    calls: u64,
    tokens: Result<u64, Unbounded>,
    usd: Result<u64, Unbounded>,
}

pub(crate) async fn run(args: LabelArgs, globals: &Globals) -> Result<Exit, Trouble> {
    let config = globals.config()?;
    let asked = Asked::of(&config, &args.teacher).await?;
    let questions = args.questions(&asked)?;
    let opened = open::open(&config).await?;
    let planned = async {
        open::apply(&config, &*opened.store).await?;
        let desk = open::desk(&config, &opened);
        let plan = asked.buyer(&desk, &args.run).plan(&questions).await?;
        Ok::<_, Trouble>((plan, opened.store.present().await?))
    };
    let planned = planned.await;
    open::close(opened).await?;
    let (plan, present) = planned?;
    let bound = Bound::of(&plan.quotes);
    let who = Who { teacher: args.teacher.clone(), run: Some(args.run.clone()), key: None };
    let budgets = budgets(&present, &who, &bound, args.calls);
    if globals.json {
        print::json(&json!({
            "run": args.run, "teacher": args.teacher, "known": plan.known, "unknown": plan.unknown,
            "bound": bound.json(), "budgets": budgets,
        }));
        return Ok(Exit::Fine);
    }
    print::line(&format!("{} answers are known, {} would be bought", plan.known, plan.unknown));
    print::line(&format!("at most {}", bound.words()));
    let heads = ["budget", "unit", "would hold", "left", "fits"];
    let cell = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let row = |row: &Value| {
        let fits = if row["fits"] == true { "yes" } else { "no" };
        let mut cells: Vec<String> =
            ["name", "unit", "needed", "left"].iter().map(|name| cell(&row[*name])).collect();
        cells.push(fits.to_owned());
        cells
    };
    match budgets.is_empty() {
        true if config.serve.unbudgeted => print::line("no budget covers them, and `unbudgeted` is true"),
        true => print::line("no budget covers them: every call would be refused"),
        false => print::line(&print::table(&heads, &budgets.iter().map(row).collect::<Vec<_>>())),
    }
    Ok(Exit::Fine)
}

impl Bound {
    fn of(quotes: &[Quote]) -> Self {
        let mut bound = Self { calls: 0, tokens: Ok(0), usd: Ok(0) };
        for quote in quotes {
            bound.calls = bound.calls.saturating_add(quote.calls);
            bound.tokens = sum(bound.tokens, &quote.tokens);
            bound.usd = sum(bound.usd, &quote.usd.clone().map(Usd::nanos));
        }
        bound
    }

    fn unit(&self, unit: Unit) -> Result<u64, &Unbounded> {
        match unit {
            Unit::Calls => Ok(self.calls),
            Unit::Tokens => self.tokens.as_ref().copied(),
            Unit::Usd => self.usd.as_ref().copied(),
        }
    }

    fn json(&self) -> Value {
        let usd = self.usd.as_ref().ok().map(|nanos| Usd::from_nanos(*nanos).to_string());
        json!({"calls": self.calls, "tokens": self.tokens.as_ref().ok(), "usd": usd})
    }

    fn words(&self) -> String {
        let part = |unit: Unit| self.unit(unit).map(|figure| unit.show(figure));
        let parts = Unit::ALL.map(part);
        parts
            .into_iter()
            .map(|part| part.unwrap_or_else(|why| format!("({why})")))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

fn sum(left: Result<u64, Unbounded>, right: &Result<u64, Unbounded>) -> Result<u64, Unbounded> {
    Ok(left?.saturating_add(right.clone()?))
}

/// How the bound stands to each unit of each budget that covers the run; `--calls` would make one of its own.
fn budgets(present: &Present, who: &Who, bound: &Bound, calls: Option<u64>) -> Vec<Value> {
    let own = who.run.clone().unwrap_or_default();
    let mut rows = Vec::new();
    let mut named = false;
    for (budget, standing) in present.budgets.iter().filter(|(budget, _)| budget.scope.covers(who)) {
        named |= budget.name == own;
        let limit = match calls {
            Some(calls) if budget.name == own => Limit { calls: Some(calls), ..budget.limit },
            _ => budget.limit,
        };
        for unit in Unit::ALL {
            let Some(limit) = unit.limit(&limit) else { continue };
            rows.push(row(&budget.name, unit, bound, limit.saturating_sub(standing.committed(unit))));
        }
    }
    if let (Some(calls), false) = (calls, named) {
        rows.push(row(&own, Unit::Calls, bound, calls));
    }
    rows
}

fn row(name: &str, unit: Unit, bound: &Bound, left: u64) -> Value {
    let needed = bound.unit(unit);
    let fits = needed.is_ok_and(|needed| needed <= left);
    let show = |figure: u64| match unit {
        Unit::Usd => json!(Usd::from_nanos(figure).to_string()),
        Unit::Calls | Unit::Tokens => json!(figure),
    };
    let needed = needed.map_or_else(|why| json!(why.to_string()), show);
    let unit_name = match unit {
        Unit::Calls => "calls",
        Unit::Tokens => "tokens",
        Unit::Usd => "usd",
    };
    json!({"name": name, "unit": unit_name, "needed": needed, "left": show(left), "fits": fits})
}

#[cfg(test)]
mod tests {
    use tuition_ledger::{Amount, Budget, Scope, Standing, Window};

    use super::*;

    fn quote(calls: u64, usd: Result<Usd, Unbounded>) -> Quote {
        Quote { calls, tokens: Ok(0), usd, price: None, metered: false }
    }

    #[test]
    fn a_bound_is_the_sum_of_the_holds() {
        let bound = Bound::of(&[quote(16, Ok(Usd::from_nanos(32))), quote(3, Ok(Usd::from_nanos(6)))]);
        assert_eq!(bound.words(), "19 calls, 0 tokens, 0.000000038 dollars");
        let bound = Bound::of(&[quote(16, Err(Unbounded::NoPrice("m".into()))), quote(3, Ok(Usd::ZERO))]);
        assert_eq!(bound.words(), "19 calls, 0 tokens, (model `m` has no price)");
    }

    #[test]
    fn each_budget_that_covers_the_run_is_asked() {
        let budget = |name: &str, run: Option<&str>, calls: u64, usd: Option<&str>| {
            let scope = Scope { run: run.map(str::to_owned), ..Scope::default() };
            let usd = usd.map(|usd| usd.parse().unwrap());
            Budget {
                name: name.into(),
                scope,
                limit: Limit { calls: Some(calls), usd, ..Limit::default() },
                window: Window::Forever,
            }
        };
        let standing = Standing { settled: Amount { calls: 4, ..Amount::ZERO }, ..Standing::default() };
        let present = Present {
            budgets: vec![
                (budget("all", None, 20, Some("1")), standing),
                (budget("other", Some("x"), 1, None), Standing::default()),
                (budget("r", Some("r"), 10, None), standing),
            ],
            ..Present::default()
        };
        let who = Who { teacher: "t".into(), run: Some("r".into()), key: None };
        let bound = Bound::of(&[quote(16, Err(Unbounded::NoPrice("m".into())))]);
        let shown = |calls| {
            let rows = budgets(&present, &who, &bound, calls);
            rows.iter()
                .map(|row| format!("{} {} {} {}", row["name"], row["unit"], row["left"], row["fits"]))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            shown(None),
            [r#""all" "calls" 16 true"#, r#""all" "usd" "1.000000000" false"#, r#""r" "calls" 6 false"#]
        );
        assert_eq!(shown(Some(20))[2], r#""r" "calls" 16 true"#);
    }
}
