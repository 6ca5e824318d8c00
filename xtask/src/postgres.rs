//! Sees to it that PostgreSQL's programs are there: the tests start servers of their own with them.
//! It knows the system's package manager; it must not start or configure a server, nor touch one of the system.
//! Invariant: with the programs there already, nothing is installed and no privilege is needed.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const PACKAGE: &str = "postgresql";
/// Debian's way to say that no cluster of the system is wanted.
const NO_CLUSTER: &str = "/etc/postgresql-common/createcluster.d/tuition.conf";

/// Installs PostgreSQL through `apt-get`, unless its programs are there.
pub(crate) fn install() -> Result<(), String> {
    if is_there() {
        return Ok(());
    }
    let missing = |why: &str| {
        format!(
            "`initdb` and `postgres` are neither in /usr/lib/postgresql/*/bin nor in PATH, and {why}: install PostgreSQL (Debian: `apt-get install {PACKAGE}`)"
        )
    };
    if !is_root() {
        return Err(missing("only root may install them"));
    }
    if !on_path("apt-get") {
        return Err(missing("this system has no apt-get"));
    }
    let apt = |arguments: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive").args(arguments);
        crate::run(apt, &format!("`apt-get {}`", arguments.join(" ")))
    };
    // The tests bring their own; where this cannot be said, an idle one of the system does no harm.
    if let Some(folder) = Path::new(NO_CLUSTER).parent() {
        let _ =
            fs::create_dir_all(folder).and_then(|()| fs::write(NO_CLUSTER, "create_main_cluster = false\n"));
    }
    apt(&["update", "--quiet"])?;
    apt(&["install", "--quiet", "--yes", "--no-install-recommends", PACKAGE])?;
    if is_there() { Ok(()) } else { Err(missing("`apt-get install` did not bring them")) }
}

/// The same rule as in `tests/support/cluster.rs`.
fn is_there() -> bool {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    folders.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    folders.iter().any(|folder| folder.join("initdb").is_file() && folder.join("postgres").is_file())
}

fn on_path(program: &str) -> bool {
    env::split_paths(&env::var_os("PATH").unwrap_or_default()).any(|folder| folder.join(program).is_file())
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0)
}
