//! The five edges between the rooms, and the dependencies that only some rooms may have.
//! Knows manifests only; must not know the sources, but for the one line that forbids the network to the trainer.
//! Invariant: a sixth edge needs a change here, and a reason in its commit.

use super::{repository, sources};
use std::fs;

/// Every package of the workspace, its folder, and the rooms that it may depend on.
const ROOMS: [(&str, &str, &[&str]); 7] = [
    ("tuition-ledger", "ledger", &[]),
    ("tuition-proxy", "proxy", &["tuition-ledger"]),
    ("tuition-trainer", "trainer", &["tuition-ledger"]),
    ("tuition", ".", &["tuition-ledger", "tuition-proxy", "tuition-trainer"]),
    // `bench/src/fill.rs` makes large stores through the ledger's own writing path.
    ("tuition-bench", "bench", &["tuition-ledger"]),
    ("xtask", "xtask", &[]),
    // Throws bytes at each room that reads any; nothing depends on it.
    ("tuition-fuzz", "fuzz", &["tuition-ledger", "tuition-proxy", "tuition"]),
];

/// Dependencies that only these packages may name. The command and the benchmarks may speak HTTP too.
const KEPT_IN: [(&[&str], &[&str]); 3] = [
    (&["ort", "candle-core", "candle-nn", "safetensors", "prost"], &["tuition-trainer"]),
    (
        &["axum", "reqwest", "hyper", "hyper-util", "tower", "rustls"],
        &["tuition-proxy", "tuition", "tuition-bench"],
    ),
    (&["sled", "sqlx"], &["tuition-ledger"]),
];

/// What a manifest breaks, one line each.
fn broken(package: &str, manifest: &toml::Table) -> Vec<String> {
    let Some((_, _, edges)) = ROOMS.iter().find(|(name, ..)| *name == package) else {
        return vec![format!("`{package}` is no room of the house")];
    };
    let mut broken = Vec::new();
    for table in ["dependencies", "dev-dependencies", "build-dependencies"] {
        for (key, value) in manifest.get(table).and_then(toml::Value::as_table).into_iter().flatten() {
            let name = value.get("package").and_then(toml::Value::as_str).unwrap_or(key);
            if ROOMS.iter().any(|(room, ..)| *room == name) && !edges.contains(&name) {
                broken.push(format!("`{package}` -> `{name}` is not one of the five edges ([{table}])"));
            }
            if let Some((_, rooms)) = KEPT_IN.iter().find(|(names, _)| names.contains(&name))
                && !rooms.contains(&package)
            {
                broken.push(format!(
                    "`{package}` may not depend on `{name}`: only {} may ([{table}])",
                    rooms.join(", ")
                ));
            }
        }
    }
    broken
}

/// The lines of a source that open a socket, in a room that has none.
fn sockets(source: &str) -> Vec<usize> {
    let names_one = |line: &str| line.contains("tokio::net") || line.contains("std::net");
    source.lines().enumerate().filter(|(_, line)| names_one(line)).map(|(number, _)| number + 1).collect()
}

#[test]
fn five_edges_and_no_dependency_out_of_its_room() {
    let mut found = Vec::new();
    for (package, folder, _) in ROOMS {
        let path = repository().join(folder).join("Cargo.toml");
        let manifest: toml::Table = fs::read_to_string(&path).unwrap().parse().unwrap();
        assert_eq!(manifest["package"]["name"].as_str(), Some(package), "{}", path.display());
        found.extend(broken(package, &manifest));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_member_of_the_workspace_is_a_room() {
    let root: toml::Table = fs::read_to_string(repository().join("Cargo.toml")).unwrap().parse().unwrap();
    let members: Vec<&str> =
        root["workspace"]["members"].as_array().unwrap().iter().filter_map(toml::Value::as_str).collect();
    for member in members {
        assert!(
            ROOMS.iter().any(|(_, folder, _)| *folder == member),
            "`{member}` is missing in the table of rooms"
        );
    }
}

#[test]
fn the_trainer_opens_no_socket() {
    for path in sources(&repository().join("trainer/src")) {
        let lines = sockets(&fs::read_to_string(&path).unwrap());
        assert!(lines.is_empty(), "{}:{lines:?} names the network", path.display());
    }
}

#[test]
fn a_broken_manifest_is_named() {
    let check = |package: &str, manifest: &str, expected: &[&str]| {
        assert_eq!(broken(package, &manifest.parse().unwrap()), expected);
    };
    check("tuition-proxy", "[dependencies]\ntuition-ledger = {}\naxum = '0.8'", &[]);
    check(
        "tuition-proxy",
        "[dependencies]\ntuition-trainer.workspace = true",
        &["`tuition-proxy` -> `tuition-trainer` is not one of the five edges ([dependencies])"],
    );
    check(
        "tuition-ledger",
        "[dev-dependencies]\nx = { package = 'tuition', path = '..' }",
        &["`tuition-ledger` -> `tuition` is not one of the five edges ([dev-dependencies])"],
    );
    check(
        "tuition-ledger",
        "[dependencies]\nreqwest = '0.13'\n[build-dependencies]\nort = '2'",
        &[
            "`tuition-ledger` may not depend on `reqwest`: only tuition-proxy, tuition, tuition-bench may ([dependencies])",
            "`tuition-ledger` may not depend on `ort`: only tuition-trainer may ([build-dependencies])",
        ],
    );
    check(
        "tuition",
        "[dependencies]\nort = '2'",
        &["`tuition` may not depend on `ort`: only tuition-trainer may ([dependencies])"],
    );
    check("cellar", "", &["`cellar` is no room of the house"]);
    assert_eq!(sockets("use std::fs;\nuse tokio::net::TcpListener;"), [2]);
}
