//! The documents say what is so: tests that ARCHITECTURE.md names exist, examples parse, the README's transcript is real.
//! Knows the repository's files; must not repeat what they say.

use crate::support::tuition;
use std::fs;
use std::path::{Path, PathBuf};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(name: &str) -> String {
    fs::read_to_string(repository().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// What stands between backticks in the last column of the table of invariants.
fn named_tests(architecture: &str) -> Vec<String> {
    let rows = architecture.lines().filter(|line| line.starts_with("| ") && line.ends_with(" |"));
    let columns = rows.filter_map(|row| row.trim_end_matches(" |").rsplit_once(" | ").map(|(_, last)| last));
    let quoted = columns.flat_map(|column| column.split('`').skip(1).step_by(2));
    let is_name = |word: &&str| {
        word.contains('_') && word.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit())
    };
    quoted.filter(is_name).filter(|word| *word != "compile_fail").map(str::to_owned).collect()
}

#[test]
fn every_test_that_the_architecture_names_exists() {
    let mut files = Vec::new();
    for folder in ["ledger", "proxy", "trainer", "src", "tests", "xtask"] {
        sources(&repository().join(folder), &mut files);
    }
    let all: String = files.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let named = named_tests(&text("ARCHITECTURE.md"));
    assert!(named.len() >= 20, "{named:?}");
    for name in named {
        assert!(all.contains(&format!("fn {name}(")), "ARCHITECTURE.md names `{name}`, which is no test");
    }
}

#[test]
fn every_folder_that_the_documents_name_exists() {
    for document in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"] {
        for word in text(document).split(|c: char| c.is_whitespace() || "`*(),:;".contains(c)) {
            let is_folder = word.ends_with('/') && word.chars().all(|c| c.is_ascii_lowercase() || c == '/');
            let is_page =
                word.starts_with("docs/") || word.starts_with("examples/") || word.starts_with("tests/");
            if is_folder && !word.starts_with("runs/") || is_page {
                let found = [
                    Path::new(""),
                    Path::new("ledger/src"),
                    Path::new("proxy/src"),
                    Path::new("trainer/src"),
                ]
                .iter()
                .any(|room| repository().join(room).join(word).exists());
                assert!(found, "{document} names `{word}`, which is not there");
            }
        }
    }
}

/// The demonstration asks a real teacher for minutes, so it is not run here: what it says is held to its own words.
#[test]
fn the_readme_shows_what_the_demo_says() {
    let readme = text("README.md");
    let transcript = readme.split("```text\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let said = text("src/demo.rs") + &text("src/audit.rs");
    let mut compared = 0;
    for line in transcript.lines().filter(|line| !line.is_empty()) {
        // Columns stand at least two spaces apart; numbers differ from machine to machine.
        for part in line.split("  ").map(str::trim).filter(|part| !part.is_empty()) {
            for words in part.split(|c: char| c.is_ascii_digit() || c == '.').map(str::trim) {
                if words.chars().filter(char::is_ascii_alphabetic).count() > 12 && !words.contains("runs/") {
                    assert!(
                        said.contains(words),
                        "the README's transcript says `{words}`, the demo does not"
                    );
                    compared += 1;
                }
            }
        }
    }
    assert!(compared >= 5, "only {compared} phrases were compared");
}

#[test]
fn every_example_is_understood() {
    let mut files: Vec<PathBuf> =
        fs::read_dir(repository().join("examples")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    let configuration = repository().join("examples/tuition.toml");
    let store = tempfile::tempdir().unwrap();
    let url = format!("sled:{}", store.path().join("tuition.store").display());
    let run = |arguments: &[&str]| {
        let common = ["--config", configuration.to_str().unwrap(), "--store", &url];
        let arguments: Vec<&str> = common.iter().chain(arguments).copied().collect();
        let output = tuition(&repository().join("examples"), &arguments).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(run(&["budget", "list"]), (Some(0), String::new()), "examples/tuition.toml");
    let runs: Vec<&PathBuf> = files.iter().filter(|path| **path != configuration).collect();
    assert!(!runs.is_empty());
    for file in runs {
        let is_sweep = file.file_stem().is_some_and(|name| name == "sweep");
        let command = if is_sweep { "sweep" } else { "train" };
        let (code, said) = run(&[command, file.to_str().unwrap(), "--dry-run"]);
        assert_eq!(code, Some(0), "{}: {said}", file.display());
    }
}
