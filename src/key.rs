//! `tuition key new NAME`: a client's key; `tuition key seal FILE` is `seal.rs`.
//!
//! Must not write files. Invariant: the key itself is printed once and kept nowhere; the configuration holds its hash.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use rand::TryRng;
use serde_json::json;
use tuition_proxy::ClientKey;

use crate::args::Globals;
use crate::words::{Exit, Trouble};
use crate::{print, seal};

/// What every key begins with, so that a leaked one is recognised.
const PREFIX: &str = "tuition-";

/// Client keys, and the key of seals.
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
    /// Makes a key for `tuition audit --seal`, in a file that only its owner may read.
    Seal {
        /// The file; nothing may be there.
        file: PathBuf,
    },
}

pub(crate) fn run(args: KeyArgs, globals: &Globals) -> Result<Exit, Trouble> {
    let name = match args.what {
        What::New { name } => name,
        What::Seal { file } => return seal::make_key(&file, globals),
    };
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
