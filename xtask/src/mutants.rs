//! `cargo xtask mutants`: puts each deliberate bug of `tests/mutations/` into a copy of the tree, and demands that the tests
//! that it names go red.
//! Knows how to copy, build and judge; must not know what a mutation does.
//! Invariants: the tree itself is never changed; a mutation that does not compile, or whose test is not found, is no proof.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::patch::Patch;
use crate::{cargo, repository};

/// What is copied: everything that cargo needs to build the workspace.
const COPIED: [&str; 13] = [
    "Cargo.toml",
    "Cargo.lock",
    "clippy.toml",
    "README.md",
    "src",
    "ledger",
    "proxy",
    "trainer",
    "bench",
    "fuzz",
    "xtask",
    "tests",
    "examples",
];

/// The mutations, by name.
pub(crate) fn patches() -> Result<Vec<(String, Patch)>, String> {
    let folder = repository().join("tests/mutations");
    let listed = fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut paths: Vec<PathBuf> = listed.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let wrong = |why: String| format!("{}: {why}", path.display());
        let text = fs::read_to_string(&path).map_err(|error| wrong(error.to_string()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok((name, Patch::parse(&text).map_err(wrong)?))
    };
    paths.into_iter().map(read).collect()
}

/// Runs every mutation, or those that `only` names.
pub(crate) fn run(only: &[String]) -> Result<(), String> {
    let all = patches()?;
    if let Some(wrong) = only.iter().find(|name| !all.iter().any(|(known, _)| known == *name)) {
        let names: Vec<_> = all.iter().map(|(name, _)| name.as_str()).collect();
        return Err(format!("no mutation `{wrong}`; there are {}", names.join(", ")));
    }
    // At the same place each time, so that a second run need not build everything again.
    let tree = repository().join("target/mutants");
    fs::create_dir_all(&tree).map_err(|error| format!("{}: {error}", tree.display()))?;
    for name in COPIED {
        copy(&repository().join(name), &tree.join(name))?;
    }
    let mut survived = Vec::new();
    for (name, patch) in all.iter().filter(|(name, _)| only.is_empty() || only.contains(name)) {
        eprintln!("{name}: {}", patch.what);
        for test in &patch.red {
            judge(&tree, test, true)?;
        }
        let changed = patch.apply(|file| read(&tree.join(file)))?;
        for (file, text) in &changed {
            write(&tree.join(file), text)?;
        }
        for test in &patch.red {
            if let Err(why) = judge(&tree, test, false) {
                survived.push(format!("{name}: {why}"));
            }
        }
        for file in changed.keys() {
            copy(&repository().join(file), &tree.join(file))?;
        }
    }
    if survived.is_empty() { Ok(()) } else { Err(survived.join("\n")) }
}

/// Runs one test; it must end as `green` says, and it must have run.
fn judge(tree: &Path, arguments: &[String], green: bool) -> Result<(), String> {
    let (test, target) = arguments.split_last().ok_or("a mutation names no test")?;
    let command = || {
        let mut command = cargo();
        // All mutations share one, and it is not the tree's own: a binary with a bug in it must not lie where people look.
        command.current_dir(tree).env("CARGO_TARGET_DIR", repository().join("target/mutants-build"));
        command.args(["test", "--quiet", "--locked"]).args(target);
        command
    };
    crate::run(
        {
            let mut build = command();
            build.arg("--no-run");
            build
        },
        &format!("building the tests of `{}`", target.join(" ")),
    )?;
    let mut tested = command();
    tested
        .args(["--", "--exact", test])
        .env("RUST_BACKTRACE", "0")
        .stderr(Stdio::piped())
        .stdout(Stdio::piped());
    let output = output(tested)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let (passed, failed) = (said.contains("1 passed; 0 failed"), said.contains("0 passed; 1 failed"));
    let found = match (passed, failed) {
        (true, false) => "green",
        (false, true) => "red",
        _ => return Err(format!("`{test}` did not run: {said}{}", String::from_utf8_lossy(&output.stderr))),
    };
    eprintln!("  {found:5} {} the bug: {test}", if green { "without" } else { "with" });
    if (found == "green") == green {
        return Ok(());
    }
    Err(format!("`{test}` is {found} {} the bug", if green { "without" } else { "with" }))
}

fn output(mut command: Command) -> Result<std::process::Output, String> {
    command.output().map_err(|error| format!("could not start cargo: {error}"))
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

/// Copies a file, or a folder with everything in it; a file that is the same already keeps its time.
fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let wrong = |path: &Path| {
        let path = path.display().to_string();
        move |error: std::io::Error| format!("{path}: {error}")
    };
    if !from.is_dir() {
        let bytes = fs::read(from).map_err(wrong(from))?;
        return match fs::read(to) {
            Ok(found) if found == bytes => Ok(()),
            _ => fs::write(to, bytes).map_err(wrong(to)),
        };
    }
    fs::create_dir_all(to).map_err(wrong(to))?;
    let names = |folder: &Path| -> Result<Vec<_>, String> {
        let listed = fs::read_dir(folder).map_err(wrong(folder))?;
        listed.map(|entry| entry.map(|entry| entry.file_name()).map_err(wrong(folder))).collect()
    };
    for gone in names(to)?.into_iter().filter(|name| !from.join(name).exists()) {
        let gone = to.join(gone);
        let removed = if gone.is_dir() { fs::remove_dir_all(&gone) } else { fs::remove_file(&gone) };
        removed.map_err(wrong(&gone))?;
    }
    names(from)?.into_iter().try_for_each(|name| copy(&from.join(&name), &to.join(&name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_holds_every_member_of_the_workspace() {
        let manifest = read(&repository().join("Cargo.toml")).unwrap();
        let members = manifest.lines().find_map(|line| line.strip_prefix("members = [")).unwrap();
        let members: Vec<&str> = members.split('"').skip(1).step_by(2).filter(|name| *name != ".").collect();
        assert!(members.len() > 5, "{members:?}");
        for member in members {
            assert!(COPIED.contains(&member), "`{member}` is not copied");
        }
    }

    #[test]
    fn every_mutation_applies_and_contributing_shows_it() {
        let contributing = read(&repository().join("CONTRIBUTING.md")).unwrap();
        let patches = patches().unwrap();
        assert!(patches.len() >= 5, "{}", patches.len());
        for (name, patch) in patches {
            let changed = patch.apply(|file| read(&repository().join(file)));
            let changed = changed.unwrap_or_else(|why| panic!("{name}: {why}"));
            assert!(!changed.is_empty(), "{name} changes nothing");
            assert!(contributing.contains(&patch.diff), "CONTRIBUTING.md does not show `{name}` as it is");
            assert!(contributing.contains(&patch.what), "CONTRIBUTING.md does not say what `{name}` does");
            for test in patch.red {
                let test = test.last().unwrap();
                let function = test.rsplit("::").next().unwrap();
                assert!(contributing.contains(function), "CONTRIBUTING.md does not name `{function}`");
            }
        }
    }
}
