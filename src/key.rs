//! `tuition key new NAME`: a client's key.
//!
//! Must not write files. Invariant: the key itself is printed once and kept nowhere; the configuration holds its hash.

use clap::{Args, Subcommand};
use rand::TryRng;
use serde_json::json;
use tuition_proxy::ClientKey;

use crate::args::Globals;
use crate::print;
use crate::words::{Exit, Trouble};

/// What every key begins with, so that a leaked one is recognised.
const PREFIX: &str = "tuition-";

/// Client keys.
#[derive(Debug, Args)]
pub(crate) struct KeyArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Makes a key and prints it once, with the hash for the configuration.
    New {
        /// The client's name.
        name: String,
    },
}

pub(crate) fn run(args: KeyArgs, globals: &Globals) -> Result<Exit, Trouble> {
    let What::New { name } = args.what;
    let config = globals.config()?;
    if config.keys.iter().any(|key| key.name() == name) {
        return Err(Trouble::usage(
            format!("there is a [[key]] of the name `{name}` already"),
            "two keys of one client: give the second another name, such as NAME-2",
        ));
    }
    let mut bytes = [0; 32];
    rand::rngs::SysRng
        .try_fill_bytes(&mut bytes)
        .map_err(|error| Trouble::failed(format!("the system gives no random numbers: {error}")))?;
    let key = format!("{PREFIX}{}", hex::encode(bytes));
    let hash = ClientKey::hash(&key);
    if globals.json {
        print::json(&json!({"name": name, "key": key, "hash": hash}));
        return Ok(Exit::Fine);
    }
    print::line(&key);
    print::aside(&format!(
        "This is the only time the key is shown. Give it to the client, and add to the configuration:\n\n\
         [[key]]\nname = {name:?}\nhash = \"{hash}\""
    ));
    Ok(Exit::Fine)
}
