//! Clients and servers nobody here wrote, as Python programs of `tests/clients/`.
//! Knows where `cargo xtask test` installed their packages; must not install anything.
//! Invariant: a program reads one JSON value from stdin and prints one; a program that fails fails the test with its words.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};

/// One of the installed sets of packages: `openai`, `infer` or `parquet`.
pub(crate) struct Python(&'static str);

/// A running program; it ends with this value.
pub(crate) struct Started(Child);

impl Python {
    pub(crate) fn with(packages: &'static str) -> Python {
        Python(packages)
    }

    /// Runs `tests/clients/SCRIPT` to its end and gives what it printed.
    pub(crate) async fn run(&self, script: &str, arguments: &[&str], input: &Value) -> Value {
        let mut child = self.command(script, arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.to_string().as_bytes()).await.unwrap();
        drop(stdin);
        let output = child.wait_with_output().await.unwrap();
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{script} {arguments:?}: {}\n{stderr}", output.status);
        serde_json::from_str(&stdout)
            .unwrap_or_else(|error| panic!("{script}: {error} in {stdout}\n{stderr}"))
    }

    /// Starts a program that serves; its words go to `log`.
    pub(crate) fn start(&self, script: &str, arguments: &[&str], log: &Path) -> Started {
        let log = std::fs::File::create(log).unwrap();
        let mut command = self.command(script, arguments);
        Started(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap())
    }

    fn command(&self, script: &str, arguments: &[&str]) -> Command {
        let packages = cache_folder().join("python").join(self.0);
        assert!(
            packages.join("installed.txt").exists(),
            "the Python packages `{}` are not installed: run `cargo xtask test` (or `cargo xtask install`) once",
            self.0
        );
        let mut command = Command::new("python3");
        command.env("PYTHONPATH", packages).stdin(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script)).args(arguments);
        command
    }
}

impl Started {
    /// kill -9, and the end of the process.
    pub(crate) async fn kill(mut self) {
        self.0.kill().await.unwrap();
    }
}

/// The same rule as in the command and in xtask.
fn cache_folder() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("TUITION_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|folder| folder.join("tuition")))
        .or_else(|| set("HOME").map(|folder| folder.join(".cache/tuition")))
        .expect("`TUITION_CACHE` or `HOME` is set")
}
