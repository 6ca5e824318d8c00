//! `tuition budget list|add|set`: the limits in force, and changing them beside whatever runs.
//!
//! Must not decide what may be spent: the store does. Invariant: a changed limit is an entry in the record, and names
//! that are not known are refused with the nearest known one.

use clap::{Args, Subcommand};
use serde_json::json;
use tuition_ledger::{Budget, Limit, Origin, Present, Scope, Usd, Window};
use tuition_trainer::nearest;

use crate::args::Globals;
use crate::config::Config;
use crate::words::{Exit, Trouble};
use crate::{audit, open, print, record};

/// Limits.
#[derive(Debug, Args)]
pub(crate) struct BudgetArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Shows every budget in force and what is committed under it.
    List,
    /// Adds a budget.
    Add {
        /// Its name.
        name: String,
        #[command(flatten)]
        limits: Limits,
        /// Only calls to this teacher.
        #[arg(long)]
        teacher: Option<String>,
        /// Only calls of this run.
        #[arg(long)]
        run: Option<String>,
        /// Only calls of this client key.
        #[arg(long)]
        key: Option<String>,
        /// For how long it allows that much: forever, day or month (UTC).
        #[arg(long, default_value = "forever")]
        window: Window,
    },
    /// Changes the limits of a budget, or lifts it.
    Set {
        /// Its name.
        name: String,
        #[command(flatten)]
        limits: Limits,
        /// Ends the budget: it limits nothing, and covers no call, from now on.
        #[arg(long, conflicts_with_all = ["calls", "tokens", "usd"])]
        lift: bool,
    },
}

#[derive(Debug, Default, Args)]
struct Limits {
    /// Inferences.
    #[arg(long)]
    calls: Option<u64>,
    /// Tokens of every kind.
    #[arg(long)]
    tokens: Option<u64>,
    /// Dollars, such as 20.00.
    #[arg(long)]
    usd: Option<Usd>,
}

pub(crate) async fn run(args: BudgetArgs, globals: &Globals) -> Result<Exit, Trouble> {
    let config = globals.config()?;
    let name = match args.what {
        What::List => None,
        What::Add { name, limits, teacher, run, key, window } => {
            if let Some(teacher) = &teacher {
                config.teacher(teacher)?;
            }
            let budget = added(name, &limits, Scope { teacher, run, key }, window)?;
            Some(
                set(&config, |present| {
                    match present.budgets.iter().any(|(known, _)| known.name == budget.name) {
                        true => Err(Trouble::usage(
                            format!("there is a budget `{}` already", budget.name),
                            format!("`tuition budget set {}` changes it", budget.name),
                        )),
                        false => Ok(budget),
                    }
                })
                .await?,
            )
        }
        What::Set { name, limits, lift } => {
            Some(set(&config, |present| changed(present, &name, &limits, lift)).await?)
        }
    };
    show(&config, name.as_deref(), globals.json)?;
    Ok(Exit::Fine)
}

/// Makes a limit of the store as it stands, and gives its name.
async fn set(
    config: &Config,
    decide: impl FnOnce(&Present) -> Result<Budget, Trouble>,
) -> Result<String, Trouble> {
    let opened = open::open(config).await?;
    let result =
        match opened.store.present().await.map_err(Trouble::from).and_then(|present| decide(&present)) {
            Ok(budget) => {
                let name = budget.name.clone();
                opened.store.limit(budget, Origin::Command).await.map(|()| name).map_err(Trouble::from)
            }
            Err(trouble) => Err(trouble),
        };
    open::close(opened).await?;
    result
}

fn added(name: String, limits: &Limits, scope: Scope, window: Window) -> Result<Budget, Trouble> {
    let limit = Limit { calls: limits.calls, tokens: limits.tokens, usd: limits.usd };
    if limit.is_lifted() {
        return Err(nothing_limited(&name));
    }
    Ok(Budget { name, scope, limit, window })
}

/// The budget of this name with the units changed that are given.
fn changed(present: &Present, name: &str, limits: &Limits, lift: bool) -> Result<Budget, Trouble> {
    let names = || present.budgets.iter().map(|(budget, _)| budget.name.as_str());
    let Some((budget, _)) = present.budgets.iter().find(|(budget, _)| budget.name == name) else {
        return Err(Trouble::usage(
            format!("there is no budget `{name}`"),
            match nearest(name, names()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("`tuition budget add {name}` adds one"),
            },
        ));
    };
    let mut budget = budget.clone();
    if lift {
        budget.limit = Limit::default();
        return Ok(budget);
    }
    if limits.calls.is_none() && limits.tokens.is_none() && limits.usd.is_none() {
        return Err(nothing_limited(name));
    }
    budget.limit = Limit {
        calls: limits.calls.or(budget.limit.calls),
        tokens: limits.tokens.or(budget.limit.tokens),
        usd: limits.usd.or(budget.limit.usd),
    };
    Ok(budget)
}

fn nothing_limited(name: &str) -> Trouble {
    Trouble::usage(
        format!("budget `{name}` would limit nothing"),
        "give `--calls`, `--tokens` or `--usd`; `tuition budget set NAME --lift` ends a budget",
    )
}

/// Shows the budgets of the record, or the one that is named.
fn show(config: &Config, name: Option<&str>, json: bool) -> Result<(), Trouble> {
    let mut budgets = record::budgets(config)?;
    budgets.retain(|budget| name.is_none_or(|name| budget["name"] == name));
    let shown = json!({"budgets": budgets});
    let (heads, rows) = audit::budgets(&shown);
    match (json, name) {
        (true, _) => print::json(&shown),
        (false, Some(name)) if rows.is_empty() => print::line(&format!("budget `{name}` is lifted")),
        (false, None) if rows.is_empty() => print::line("no budget is in force"),
        (false, _) => print::line(&print::table(&heads, &rows)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tuition_ledger::{Amount, Standing};

    use super::*;
    use crate::words::Words;

    fn present() -> Present {
        let limit = Limit { calls: Some(10), ..Limit::default() };
        let scope = Scope { run: Some("r".into()), ..Scope::default() };
        let settled = Amount { calls: 4, tokens: 9, usd: Usd::from_nanos(5) };
        let standing = Standing { settled, ..Standing::default() };
        let budget = Budget { name: "pilot".into(), scope, limit, window: Window::Forever };
        Present { budgets: vec![(budget, standing)], ..Present::default() }
    }

    #[test]
    fn a_change_keeps_the_units_that_it_does_not_name() {
        let limits = Limits { usd: "1".parse().ok(), ..Limits::default() };
        let budget = changed(&present(), "pilot", &limits, false).unwrap();
        assert_eq!((budget.limit.calls, budget.limit.tokens), (Some(10), None));
        assert_eq!(budget.limit.usd.unwrap().to_string(), "1.000000000");
        assert_eq!(budget.scope.run.as_deref(), Some("r"));
        assert!(changed(&present(), "pilot", &Limits::default(), true).unwrap().limit.is_lifted());
    }

    #[test]
    fn what_does_not_do_is_said() {
        let say = |result: Result<Budget, Trouble>| Words::of(&result.unwrap_err()).text();
        let calls = Limits { calls: Some(1), ..Limits::default() };
        insta::assert_snapshot!(say(changed(&present(), "pilto", &calls, false)), @r"
        error: there is no budget `pilto`
          hint: did you mean `pilot`?
        ");
        insta::assert_snapshot!(say(changed(&present(), "x", &calls, false)), @r"
        error: there is no budget `x`
          hint: `tuition budget add x` adds one
        ");
        insta::assert_snapshot!(say(changed(&present(), "pilot", &Limits::default(), false)), @r"
        error: budget `pilot` would limit nothing
          hint: give `--calls`, `--tokens` or `--usd`; `tuition budget set NAME --lift` ends a budget
        ");
        insta::assert_snapshot!(say(added("b".into(), &Limits::default(), Scope::default(), Window::Forever)), @r"
        error: budget `b` would limit nothing
          hint: give `--calls`, `--tokens` or `--usd`; `tuition budget set NAME --lift` ends a budget
        ");
    }
}
