//! `tuition setup`: installs what is missing, and says what is there.
//!
//! Must not know where things come from. Invariant: with nothing missing, nothing is fetched.

use serde_json::{Value, json};

use crate::args::Globals;
use crate::print;
use crate::setup::{Cache, driver_answers, install};
use crate::words::{Exit, Trouble};

pub(crate) async fn run(globals: &Globals) -> Result<Exit, Trouble> {
    let cache = Cache::from_environment()?;
    let installing =
        tokio::task::spawn_blocking(move || install(&cache, driver_answers(), &mut print::aside)).await;
    let installed =
        installing.map_err(|error| Trouble::failed(format!("the installation broke off: {error}")))??;
    if globals.json {
        let part = |part: &crate::setup::Installed| json!({"name": part.name, "path": part.path, "fetched": part.fetched});
        print::json(&json!({"installed": installed.iter().map(part).collect::<Vec<Value>>()}));
        return Ok(Exit::Fine);
    }
    for part in installed {
        let how = if part.fetched { "fetched to" } else { "is at" };
        print::line(&format!("{} {how} {}", part.name, part.path.display()));
    }
    Ok(Exit::Fine)
}
