//! Fail points, armed by the environment: tests make the command die, fail or wait at a step of a paid call.
//!
//! Must not know the steps. Invariants: a build without fail points refuses to start when they are asked for, instead of
//! passing over them; where they are armed, that is said before anything else.

use std::path::Path;

use tuition_ledger::fault::{self, ArmError};

use crate::print;
use crate::words::Trouble;

/// What is armed, such as `hold-synced=return(kill)`.
const POINTS: &str = "TUITION_FAULTS";
/// The folder of the test that is asked.
const FOLDER: &str = "TUITION_FAULTS_AT";

/// Arms what the environment says.
///
/// # Errors
/// A release, or a list that is not understood.
pub(crate) fn arm() -> Result<(), Trouble> {
    let Ok(points) = std::env::var(POINTS) else { return Ok(()) };
    let folder = std::env::var_os(FOLDER);
    fault::arm(&points, folder.as_deref().map(Path::new)).map_err(|error| {
        let hint = match error {
            ArmError::NotBuiltIn => "only the tests' builds can be made to fail; unset the variable",
            _ => "such as `hold-synced=return(kill)`",
        };
        Trouble::usage(format!("`{POINTS}` is `{points}`: {error}"), hint)
    })?;
    print::aside(&format!("FAIL POINTS ARE ARMED, nothing here is to be relied on: {points}"));
    Ok(())
}

/// What the line that says where the proxy listens ends with.
pub(crate) fn mark() -> &'static str {
    if fault::is_armed() { " (FAIL POINTS ARE ARMED)" } else { "" }
}
