//! Fail points are in no release, and where they are armed nobody overlooks it.
//! Wants cargo, which runs these tests anyway.
//! Invariant: the feature that makes `fail_point!` more than nothing is named by the tests' dependencies alone.

use super::control::Control;
use crate::support::{Client, TestServer, tuition};
use serde_json::json;
use std::path::Path;
use std::process::Command;

/// Who turns the feature `failpoints` of the crate `fail` on, as cargo resolves it.
fn who_has_fail_points(edges: &str) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut tree = Command::new(cargo);
    tree.current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["tree", "--locked", "--offline", "--workspace", "--invert", "fail", "--edges"])
        .arg(edges);
    let output = tree.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_release_has_no_fail_points() {
    let (release, tests) = (who_has_fail_points("features,no-dev"), who_has_fail_points("features"));
    assert!(release.contains("fail feature \"default\"") && tests.contains("fail feature \"failpoints\""));
    assert!(!release.contains("failpoints"), "a build without tests has fail points:\n{release}");
}

#[tokio::test(flavor = "multi_thread")]
async fn armed_fail_points_are_said_at_the_start_and_by_readyz() {
    let teacher =
        "[[teacher]]\nname = \"t\"\napi = \"openai\"\nurl = \"http://127.0.0.1:9/v1\"\nrevision = \"1\"";
    let mut server = TestServer::start(teacher);
    let ready = Client::new(&server.url()).get("/readyz").await.unwrap();
    assert_eq!((ready.status, &ready.json()["why"]), (200, &json!(null)));
    server.kill();
    let control = Control::start();
    server.ask_at_every_step(control.folder());
    server.restart();
    let ready = Client::new(&server.url()).get("/readyz").await.unwrap();
    assert_eq!(ready.status, 503);
    assert!(ready.json()["why"].as_str().unwrap().contains("fail points are armed"), "{ready:?}");
    let said = std::fs::read_to_string(server.folder().join("serve.log")).unwrap();
    assert!(said.contains("FAIL POINTS ARE ARMED") && said.contains("hold-synced=return(ask)"), "{said}");
}

#[test]
fn a_fail_point_that_is_not_known_is_refused() {
    for (points, words) in [
        ("hold-sunk=return(kill)", "`hold-sunk=return(kill)` is not `STEP=ACTION`"),
        ("hold-synced", "STEP is one of hold-appended, hold-synced"),
        ("hold-synced=explode", "the action of `hold-synced` is not understood"),
    ] {
        let output = tuition(Path::new("."), &["doctor"]).env("TUITION_FAULTS", points).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(words), "{said}");
    }
}
