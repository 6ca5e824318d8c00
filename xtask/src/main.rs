//! Chores of the repository: `cargo xtask test` installs what the tests need, runs every test, and fuzzes for a moment.
//! It knows how to install and what to start; it must not know what a test checks.
//! Invariant: it exits 0 only if everything was installed and every test passed.
#![expect(clippy::print_stderr, reason = "a program that speaks to the person who started it")]

mod dependencies;
mod fuzz;
mod mutants;
mod patch;
mod postgres;
mod python;
mod simulate;

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use fuzz::Effort;

const USAGE: &str =
    "usage: cargo xtask test [ARGUMENTS OF cargo test]   installs what the tests need, runs every test and a short fuzzing
       cargo xtask install                      installs it and stops
       cargo xtask fuzz [SECONDS|short] [TARGET ...]  fuzzes each target that long (60 s, or a short fixed run)
       cargo xtask dependencies                 holds every dependency against deny.toml
       cargo xtask simulate [--seed S] [--histories N]   simulated histories, as many as one likes
       cargo xtask mutants [NAME...]            puts deliberate bugs into a copy, and demands red tests";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let Some(compiled) = fuzz::compile(&arguments) {
        return compiled;
    }
    let outcome = match arguments.split_first() {
        Some((chore, rest)) if chore == "test" => install().and_then(|()| test(rest)),
        Some((chore, rest)) if chore == "fuzz" => hunt(rest),
        Some((chore, [])) if chore == "dependencies" => {
            cache_folder().and_then(|cache| dependencies::check(&cache))
        }
        Some((chore, [])) if chore == "install" => install(),
        Some((chore, rest)) if chore == "simulate" => simulate::run(rest),
        Some((chore, rest)) if chore == "mutants" => mutants::run(rest),
        _ => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::from(2)
        }
    }
}

/// Installs PostgreSQL, the Python clients and servers of the tests, ONNX Runtime and the demo's teacher. A second run finds them.
fn install() -> Result<(), String> {
    let cache = cache_folder()?;
    postgres::install()?;
    for list in python::LISTS {
        python::install(&repository().join("tests/clients"), list, &cache.join("python"))?;
    }
    // The whole workspace at once: built by itself, the command would get its dependencies with other features.
    let mut build = cargo();
    build.args(["test", "--no-run", "--quiet", "--locked", "--workspace"]);
    run(build, "building the tests")?;
    let here =
        env::current_exe().map_err(|error| format!("where this program lies is not known: {error}"))?;
    let mut setup = Command::new(here.with_file_name("tuition"));
    setup.arg("setup").current_dir(repository());
    run(setup, "`tuition setup`, which fetches ONNX Runtime and the magika model through pip")
}

fn test(arguments: &[String]) -> Result<(), String> {
    let mut test = cargo();
    test.args(["test", "--locked", "--workspace"]).args(arguments);
    run(test, "the tests")?;
    // Whoever asks for some tests waits for those alone.
    if arguments.is_empty() { fuzz::run(&[], Effort::Short, &cache_folder()?) } else { Ok(()) }
}

fn hunt(arguments: &[String]) -> Result<(), String> {
    if arguments.first().is_some_and(|word| word == "short") {
        return fuzz::run(&arguments[1..], Effort::Short, &cache_folder()?);
    }
    const MINUTE_S: u64 = 60;
    match arguments.split_first().and_then(|(first, rest)| Some((first.parse().ok()?, rest))) {
        Some((seconds, only)) => fuzz::run(only, Effort::Seconds(seconds), &cache_folder()?),
        None => fuzz::run(arguments, Effort::Seconds(MINUTE_S), &cache_folder()?),
    }
}

fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(repository());
    command
}

fn run(mut command: Command, what: &str) -> Result<(), String> {
    let status = command.status().map_err(|error| format!("could not start {what}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{what} failed ({status})")) }
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository")
}

/// `$TUITION_CACHE`, else `tuition` in the user's cache folder: the same rule as in the command and in `tests/support`.
fn cache_folder() -> Result<PathBuf, String> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("TUITION_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|folder| folder.join("tuition")))
        .or_else(|| set("HOME").map(|folder| folder.join(".cache/tuition")))
        .ok_or_else(|| "neither `TUITION_CACHE` nor `HOME` is set: no folder to install into".to_owned())
}
