//! `cargo xtask simulate --seed S --histories N`: as many simulated histories as one likes, of the pure book and of the desk
//! over its store.
//! Knows two tests and the variables that they read; must not know what a history is.
//! Invariant: it exits 0 only if both simulations ran every history that was asked for.

use std::process::Stdio;

use crate::cargo;

const HISTORIES: u64 = 10_000;
/// Where each simulation is, and its name.
const SIMULATIONS: [(&[&str], &str); 2] = [
    (&["--test", "histories"], "ten_thousand_histories_keep_the_money_rules"),
    (
        &["--lib"],
        "store::embedded::tests::simulation::thousands_of_histories_of_the_desk_keep_the_money_rules",
    ),
];

/// The value of `--NAME`, a whole number.
fn number(arguments: &[String], name: &str) -> Result<Option<u64>, String> {
    let Some(at) = arguments.iter().position(|argument| argument == name) else { return Ok(None) };
    let value = arguments.get(at + 1).ok_or_else(|| format!("`{name}` wants a whole number"))?;
    value.parse().map(Some).map_err(|_| format!("`{name}` wants a whole number, not `{value}`"))
}

pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let given = [number(arguments, "--seed")?, number(arguments, "--histories")?];
    if arguments.len() != 2 * given.iter().flatten().count() {
        return Err(format!("`simulate` takes --seed S and --histories N, not `{}`", arguments.join(" ")));
    }
    let [seed, histories] = given;
    let (seed, histories) = (seed.unwrap_or(0), histories.unwrap_or(HISTORIES));
    if histories == 0 {
        return Err("`--histories 0` would show nothing".into());
    }
    for (target, test) in SIMULATIONS {
        let mut command = cargo();
        command.args(["test", "--quiet", "--locked", "-p", "tuition-ledger"]).args(target);
        command.args(["--", "--exact", test, "--nocapture"]);
        command.env("TUITION_SEED", seed.to_string()).env("TUITION_HISTORIES", histories.to_string());
        let output = command.stderr(Stdio::inherit()).output();
        let output = output.map_err(|error| format!("could not start cargo: {error}"))?;
        let said = String::from_utf8_lossy(&output.stdout);
        eprint!("{said}");
        if !output.status.success() || !said.contains("1 passed; 0 failed") {
            return Err(format!("{test} ({})", output.status));
        }
    }
    eprintln!("seeds {seed} to {} keep the money rules, in both simulations", seed + histories - 1);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_is_refused() {
        for (line, expected) in [
            ("--seed", "`--seed` wants a whole number"),
            ("--histories many", "`--histories` wants a whole number, not `many`"),
            ("--histories 0", "would show nothing"),
            ("--seed 1 --speed 2", "`simulate` takes --seed S and --histories N"),
        ] {
            let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let refused = run(&arguments).unwrap_err();
            assert!(refused.contains(expected), "{line}: {refused}");
        }
    }
}
