//! `tuition backup DIR`: a copy of the store's journal, made beside a running `serve`.
//!
//! Must not change the store. Invariant: DIR holds the whole copy, read back, or nothing.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use tuition_ledger::{SealedHead, StoreUrl, backup};

use crate::args::Globals;
use crate::print;
use crate::progress::Progress;
use crate::words::{Exit, Trouble};

/// A backup.
#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// The folder that is made; nothing may be in it.
    #[arg(value_name = "DIR")]
    to: PathBuf,
}

pub(crate) fn run(args: &BackupArgs, globals: &Globals) -> Result<Exit, Trouble> {
    let store = globals.config()?.store;
    let StoreUrl::Sled(folder) = &store else {
        return Err(Trouble::usage(
            format!("`{store}` is a database: it has no journal that could be copied"),
            format!(
                "`tuition copy {store} sled:{}` while nobody buys, or `pg_dump` at any time",
                args.to.display()
            ),
        ));
    };
    let bar = Progress::new(0, "bytes", globals.json);
    bar.stage("copying");
    let made = backup(folder, &args.to, &mut |copied, bytes| bar.stand(copied, bytes, String::new()));
    bar.finish();
    let made = made?;
    let entries = made.head.entries;
    if globals.json {
        let (store, head) = (store.to_string(), SealedHead::from(&made.head));
        print::json(&json!({
            "store": store, "to": args.to, "entries": entries, "bytes": made.bytes, "head": head,
            "owned": made.owned,
        }));
    } else {
        print::line(&format!(
            "{entries} entries, {} bytes: copied to `{}` and read back, with the chain that they had",
            made.bytes,
            args.to.display()
        ));
        print::line("buy from one of the two only: two stores that both buy are two budgets");
    }
    Ok(Exit::Fine)
}
