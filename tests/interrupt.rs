//! Ctrl-C while answers are bought for a data set. Wants nothing but the built command.
//! Invariant: calls under way are finished and kept, nothing new is asked, and the same command goes on from there.

use crate::support::{Upstream, tuition};
use serde_json::{Value, json};
use std::fs;
use std::process::{Command, Stdio};

/// Rows in one exchange of `label`, and exchanges at a time.
const UNDER_WAY: u64 = 2 * 16;
const ROWS: u64 = 80;

const LABEL: [&str; 9] =
    ["label", "--teacher", "rows", "--data", "rows.csv", "--run", "labelled", "--calls", "80"];

async fn output(mut command: Command) -> Value {
    let ran = tokio::task::spawn_blocking(move || command.arg("--json").stdin(Stdio::null()).output());
    let output = ran.await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn label_finishes_what_is_under_way_and_goes_on_from_there() {
    let upstream = Upstream::start().await;
    let folder = tempfile::tempdir().unwrap();
    let table = format!(
        "[[teacher]]\nname = \"rows\"\napi = \"open-inference\"\nurl = \"{}\"\nrevision = \"1\"\nbatch_axis = 0\n\
         ask = {{ model = \"gate\", input = \"x\", datatype = \"FP64\" }}\n",
        upstream.url()
    );
    fs::write(folder.path().join("tuition.toml"), table).unwrap();
    let rows = (0..ROWS).map(|row| format!("{row},{}\n", row * row)).collect::<String>();
    fs::write(folder.path().join("rows.csv"), format!("a,b\n{rows}")).unwrap();

    let mut command = tuition(folder.path(), &LABEL);
    let command = command.arg("--json").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    upstream.at_the_gate(2).await;
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let stderr = child.stderr.take().unwrap();
    let said = tokio::task::spawn_blocking(move || {
        let mut said = String::new();
        let mut lines = std::io::BufReader::new(stderr);
        std::io::BufRead::read_line(&mut lines, &mut said).unwrap();
        (said, lines)
    });
    // It says that it has heard before anything is answered: nothing of what follows is a matter of time.
    let (said, _lines) = said.await.unwrap();
    assert!(said.contains("stopping after the calls under way"), "{said}");
    upstream.open_the_gate(2);
    let stopped: Value = serde_json::from_reader(child.stdout.take().unwrap()).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!((&stopped["stopped"], &stopped["bought"]), (&json!("interrupted"), &json!(UNDER_WAY)));
    assert_eq!(upstream.bill().inferences, UNDER_WAY);

    upstream.open_the_gate(usize::MAX >> 8);
    let resumed = output(tuition(folder.path(), &LABEL)).await;
    assert_eq!((&resumed["known"], &resumed["bought"]), (&json!(UNDER_WAY), &json!(ROWS - UNDER_WAY)));
    assert_eq!(upstream.bill().inferences, ROWS);
    let audit = output(tuition(folder.path(), &["audit", "--verify"])).await;
    assert_eq!(audit["totals"]["calls"], json!({"settled": ROWS, "reserved": 0, "unknown": 0}));
    assert_eq!(audit["discrepancies"], json!([]));
}
