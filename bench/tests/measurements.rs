//! The measurements run: a small one of each that needs nothing of the system, whatever its figures are.

use std::path::PathBuf;
use std::process::Command;

/// The command, which lies beside this package's program; `cargo test --workspace` builds both.
fn command() -> PathBuf {
    let command = PathBuf::from(env!("CARGO_BIN_EXE_tuition-bench")).with_file_name("tuition");
    assert!(command.exists(), "`{}` is not built: cargo build -p tuition", command.display());
    command
}

#[test]
fn the_growth_of_a_store_is_measured() {
    let measured = Command::new(env!("CARGO_BIN_EXE_tuition-bench"))
        .args(["million", "--records", "20,40", "--command"])
        .arg(command())
        .output()
        .unwrap();
    let (said, failed) =
        (String::from_utf8_lossy(&measured.stdout), String::from_utf8_lossy(&measured.stderr));
    assert!(measured.status.success(), "{failed}");
    for figure in
        ["opening, index current", "rebuild of the index", "`audit --verify`", "2 times the records"]
    {
        assert!(said.contains(figure), "{figure}\n{said}");
    }
}
