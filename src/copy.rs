//! `tuition copy FROM TO`: moves a record between stores, a folder and a database in either direction.
//!
//! Must not change anything in the record. Invariant: TO becomes a store only after every entry in it was read back and
//! found equal; FROM is left as it was.

use std::convert::Infallible;
use std::path::Path;

use clap::Args;
use serde_json::json;
use tuition_ledger::{StoreUrl, StoreUrlError, copy_store};

use crate::args::Globals;
use crate::print;
use crate::progress::Progress;
use crate::words::{Exit, Trouble};

/// A copy of a record.
#[derive(Debug, Args)]
pub(crate) struct CopyArgs {
    /// The store that is copied, such as `sled:./tuition.store`; nobody may write it meanwhile.
    #[arg(value_name = "FROM", value_parser = named)]
    from: Named,
    /// Where it goes, such as `postgres://user@host/database`; nothing may be there.
    #[arg(value_name = "TO", value_parser = named)]
    to: Named,
}

/// A store, or why it is none. The parser of the command line would print the text it was given, a password included.
#[derive(Clone, Debug)]
struct Named(Result<StoreUrl, StoreUrlError>);

fn named(text: &str) -> Result<Named, Infallible> {
    Ok(Named(StoreUrl::parse(text, Path::new("."))))
}

impl Named {
    fn store(self, which: &str) -> Result<StoreUrl, Trouble> {
        let example = "such as `sled:./tuition.store` or `postgres://user@host/database`";
        self.0.map_err(|error| Trouble::usage(format!("{which}: {error}"), example))
    }
}

pub(crate) async fn run(args: CopyArgs, globals: &Globals) -> Result<Exit, Trouble> {
    let (from, to) = (args.from.store("FROM")?, args.to.store("TO")?);
    let (source, target, quiet) = (from.clone(), to.clone(), globals.json);
    let copy = move || {
        let bar = Progress::new(0, "entries", quiet);
        bar.stage("copying");
        let copied = copy_store(&source, &target, &mut |entries| bar.stand(entries, entries, String::new()));
        bar.finish();
        copied
    };
    let copied = tokio::task::spawn_blocking(copy).await;
    let copied = copied.map_err(|error| Trouble::failed(format!("the copy broke off: {error}")))??;
    if globals.json {
        let (from, to) = (from.to_string(), to.to_string());
        print::json(&json!({"from": from, "to": to, "entries": copied.entries, "settled": copied.settled}));
    } else {
        print::line(&format!(
            "{} entries, {} of them with answers: copied and read back, each as it was",
            copied.entries, copied.settled
        ));
        print::line(&format!("the record is at `{to}` now; buy from one of the two stores only"));
    }
    Ok(Exit::Fine)
}
