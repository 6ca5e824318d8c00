//! Fuzzing with libFuzzer on the stable toolchain: builds the targets of `fuzz/`, runs each for a while.
//! It knows how a target is built and started; it must not know what a target asserts.
//! Invariant: a finding ends it with an error that names the target and the file that shows it again.
//!
//! Only the rooms are compiled for coverage, through `RUSTC_WORKSPACE_WRAPPER`: their dependencies are those that the tests
//! were built with, so that a short run costs seconds, and no nightly toolchain is wanted. `cargo fuzz run TARGET` works
//! as well, where cargo-fuzz is installed.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The programs of `fuzz/targets/`.
const TARGETS: [&str; 9] =
    ["json", "journal", "sse", "chat_request", "chat_reply", "chat_stream", "embeddings", "infer", "config"];
/// Inputs that each target tries with the tests: the same ones every time, so that a change turns it red and luck does not.
const SHORT_RUNS: u64 = 50_000;
const SHORT_SEED: u32 = 1;
/// How long they may take on a slow machine.
const SHORT_S: u64 = 20;
/// The longest input: enough for a real body, little enough to try many.
const LENGTH_MAX: u32 = 8192;
/// Set where this program is called in the place of rustc.
const WRAPPER: &str = "TUITION_FUZZ_RUSTC";
/// The rooms whose branches steer the fuzzer.
const COVERED: [&str; 3] = ["tuition_ledger", "tuition_proxy", "tuition"];
/// What libFuzzer wants to be told by the program, and speed.
const FLAGS: [&str; 8] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Copt-level=2",
    "-Cdebug-assertions=on",
    "-Coverflow-checks=on",
];

/// Compiles a crate of the workspace in the place of rustc, if that is what was asked.
pub(crate) fn compile(arguments: &[String]) -> Option<ExitCode> {
    env::var_os(WRAPPER)?;
    let (rustc, rest) = arguments.split_first()?;
    let mut command = Command::new(rustc);
    command.args(rest);
    let name = rest.iter().position(|argument| argument == "--crate-name").and_then(|at| rest.get(at + 1));
    if name.is_some_and(|name| COVERED.contains(&name.as_str()) || TARGETS.contains(&name.as_str())) {
        command.args(FLAGS);
    }
    let code = command.status().ok().and_then(|status| status.code());
    Some(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1).into())
}

/// How much is tried.
#[derive(Clone, Copy)]
pub(crate) enum Effort {
    /// What belongs to the tests.
    Short,
    /// New inputs for so long; what they reach is kept for the next time.
    Seconds(u64),
}

/// Runs each of `only` (none: every target); what is new is kept outside the repository.
pub(crate) fn run(only: &[String], effort: Effort, cache: &Path) -> Result<(), String> {
    if let Some(unknown) = only.iter().find(|name| !TARGETS.contains(&name.as_str())) {
        return Err(format!("there is no target `{unknown}`; there are {}", TARGETS.join(", ")));
    }
    let chosen = |name: &&str| only.is_empty() || only.iter().any(|wanted| wanted == name);
    let programs = build()?;
    for target in TARGETS.into_iter().filter(chosen) {
        hunt(&programs.join(target), target, effort, cache)?;
    }
    Ok(())
}

/// Builds every target; returns where they lie.
fn build() -> Result<PathBuf, String> {
    let compiler = Command::new("c++").arg("--version").output();
    if !compiler.is_ok_and(|found| found.status.success()) {
        return Err("no C++ compiler (`c++`), which libFuzzer is built with; on Debian: apt-get install g++"
            .to_owned());
    }
    let here =
        env::current_exe().map_err(|error| format!("where this program lies is not known: {error}"))?;
    let mut build = crate::cargo();
    // The whole workspace is named, so that dependencies keep the features that the tests built them with.
    build.args(["build", "--quiet", "--locked", "--workspace", "--features", "tuition-fuzz/libfuzzer"]);
    build.args(TARGETS.iter().flat_map(|target| ["--bin", target]));
    build.env("RUSTC_WORKSPACE_WRAPPER", &here).env(WRAPPER, "1");
    crate::run(build, "building the fuzz targets")?;
    here.parent().map(Path::to_owned).ok_or_else(|| "this program lies nowhere".to_owned())
}

/// Runs one target from its seeds.
fn hunt(program: &Path, target: &str, effort: Effort, cache: &Path) -> Result<(), String> {
    let seeds = crate::repository().join("fuzz/corpus").join(target);
    let (grown, findings) =
        (cache.join("fuzz").join(target), crate::repository().join("fuzz/findings").join(target));
    for folder in [&grown, &findings] {
        fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    let mut hunt = Command::new(program);
    let seconds = match effort {
        Effort::Seconds(seconds) => {
            hunt.arg(&grown).arg(&seeds);
            seconds
        }
        Effort::Short => {
            // A first folder is written to: an empty one, for this run.
            let fresh = cache.join("fuzz/short").join(target);
            let _ = fs::remove_dir_all(&fresh);
            fs::create_dir_all(&fresh).map_err(|error| format!("{}: {error}", fresh.display()))?;
            hunt.arg(fresh).arg(&seeds).arg(format!("-seed={SHORT_SEED}")).arg(format!("-runs={SHORT_RUNS}"));
            SHORT_S
        }
    };
    hunt.arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={LENGTH_MAX}"));
    hunt.args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=0"]);
    hunt.arg(format!("-artifact_prefix={}/", findings.display()));
    let words = fs::canonicalize(crate::repository().join("fuzz/words").join(target));
    if let Ok(words) = words {
        hunt.arg(format!("-dict={}", words.display()));
    }
    let done = hunt.output().map_err(|error| format!("could not start the target `{target}`: {error}"))?;
    let said = String::from_utf8_lossy(&done.stderr);
    if !done.status.success() {
        return Err(format!(
            "{said}\nfuzzing `{target}` found something; the input lies in `{}`: mend the cause, and keep it as a seed in `fuzz/corpus/{target}`",
            findings.display()
        ));
    }
    let figure = |name: &str| {
        let line = said.lines().find(|line| line.contains(name))?;
        line.rsplit(' ').next()?.parse::<u64>().ok()
    };
    let tried = figure("number_of_executed_units").unwrap_or(0);
    if tried == 0 {
        return Err(format!("{said}\nfuzzing `{target}` tried nothing"));
    }
    eprintln!("fuzz {target}: {tried} inputs, nothing found");
    // Empty where nothing was found; one that is not stays for whoever looks.
    let _ = fs::remove_dir(&findings);
    Ok(())
}
