//! `tuition resolve ID --billed|--free --why TEXT`: a person says what became of an unknown call.
//!
//! Must not guess. Invariant: a call is closed once, with a reason, and only while it is unknown.

use clap::{ArgGroup, Args};
use serde_json::json;
use tuition_ledger::{HoldId, Present};

use crate::args::Globals;
use crate::open;
use crate::print;
use crate::words::{Exit, Trouble};

/// Closes an unknown call.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("verdict").required(true))]
pub(crate) struct ResolveArgs {
    /// The call's number, as `tuition audit` lists it.
    id: u64,
    /// It was billed: what it holds counts as spent.
    #[arg(long, group = "verdict")]
    billed: bool,
    /// It was not billed: what it holds is free again.
    #[arg(long, group = "verdict")]
    free: bool,
    /// How that is known; it is kept in the record.
    #[arg(long, value_name = "TEXT")]
    why: String,
}

pub(crate) async fn run(args: ResolveArgs, globals: &Globals) -> Result<Exit, Trouble> {
    if args.why.trim().is_empty() {
        return Err(Trouble::usage(
            "`--why` is empty",
            "say how you know, such as \"not on the bill of May\"",
        ));
    }
    let opened = open::open(&globals.config()?).await?;
    let result = match unknown(&opened.store.present().await?, args.id) {
        Ok(hold) => opened.store.resolve(hold, args.billed, args.why.clone()).await.map_err(Trouble::from),
        Err(trouble) => Err(trouble),
    };
    open::close(opened).await?;
    result?;
    let verdict =
        if args.billed { "billed: what it held counts as spent" } else { "free: what it held is free again" };
    match globals.json {
        true => print::json(&json!({"id": args.id, "billed": args.billed, "why": args.why})),
        false => print::line(&format!("call {} is {verdict}", args.id)),
    }
    Ok(Exit::Fine)
}

/// The hold, where it is unknown.
fn unknown(present: &Present, id: u64) -> Result<HoldId, Trouble> {
    let list = "`tuition audit` lists the unknown calls";
    match present.open.iter().find(|open| open.hold.0 == id) {
        None => Err(Trouble::usage(format!("there is no unknown call {id}"), list)),
        Some(open) if open.unknown.is_none() => Err(Trouble::usage(
            format!("call {id} is still under way"),
            "wait for its answer or its time-out",
        )),
        Some(open) => Ok(open.hold),
    }
}
