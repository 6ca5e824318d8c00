//! `tuition doctor --repair`: keeps what stands before the damage in a journal, and says what is lost.
//!
//! Must not judge what is damaged: the ledger does. Invariant: nothing happens to a store that is not damaged, or that a
//! process owns.

use serde_json::json;
use tuition_ledger::{Amount, Repaired, StoreUrl, repair};

use crate::args::Globals;
use crate::print;
use crate::words::{Exit, Trouble};

/// How many calls under way are named.
const LISTED_MAX: usize = 12;

pub(crate) fn run(globals: &Globals) -> Result<Exit, Trouble> {
    let store = globals.config()?.store;
    let StoreUrl::Sled(folder) = &store else {
        return Err(Trouble::usage(
            format!("`{store}` is a database: it has no journal that could be repaired"),
            "put a backup of the database in its place",
        ));
    };
    let repaired = repair(folder)?;
    if globals.json {
        print::json(&json!({"store": store.to_string(), "repaired": repaired}));
    } else {
        print::line(&match &repaired {
            None => format!("nothing is damaged in `{store}`, and nothing was changed"),
            Some(repaired) => page(repaired),
        });
    }
    Ok(if repaired.is_some() { Exit::Found } else { Exit::Fine })
}

/// What was done, and what is lost.
fn page(Repaired { damage, aside }: &Repaired) -> String {
    let later = &damage.later;
    let mut lines = Vec::new();
    if damage.file_header {
        lines.push(
            "one byte of the journal's file header was damaged; its first entry proves what it was"
                .to_owned(),
        );
    }
    if damage.entry > 0 {
        lines.push(format!("entry {} at offset {} was damaged: {}", damage.entry, damage.offset, damage.why));
    }
    lines.push(format!("kept: {} entries, {} bytes", damage.kept_entries, damage.offset));
    if damage.rest_bytes > 0 {
        lines.push(format!("set aside: the {} bytes behind them", damage.rest_bytes));
    }
    if damage.gone_bytes > 0 {
        lines.push(format!(
            "gone: {} bytes that had been durable are not in the file any more",
            damage.gone_bytes
        ));
    }
    if damage.entry > 0 {
        lines.push(format!(
            "behind the damage {} later entries were recognised, {} up to the last of them were not",
            later.entries, later.unreadable
        ));
        lines.push(format!(
            "lost of them: {} answers, and {} that the record no longer counts{}",
            later.answers,
            amount(later.uncounted),
            if later.unreadable + damage.gone_bytes > 0 { "; what else was lost cannot be told" } else { "" }
        ));
        if later.uncounted != Amount::ZERO {
            lines.push(
                "budgets would allow that much again: lower their limits by it (`tuition budget set`), or hold the statement against the provider's bill"
                    .to_owned(),
            );
        }
    }
    if !later.budgets.is_empty() {
        lines.push(format!("limits set behind the damage are lost: budget {}", later.budgets.join(", ")));
    }
    if !damage.under_way.is_empty() {
        let shown = damage.under_way.iter().take(LISTED_MAX).map(|open| open.hold.0.to_string());
        let more = if damage.under_way.len() > LISTED_MAX { ", ..." } else { "" };
        lines.push(format!(
            "under way at the end of what is kept: {} calls ({}{more}); unknown and counted in full from the next start on",
            damage.under_way.len(),
            shown.collect::<Vec<_>>().join(", ")
        ));
    }
    lines.extend(aside.iter().map(|path| format!("set aside: `{}`", path.display())));
    lines.join("\n")
}

fn amount(amount: Amount) -> String {
    format!("{} calls, {} tokens, {} dollars", amount.calls, amount.tokens, amount.usd)
}

#[cfg(test)]
mod tests {
    use tuition_ledger::{Damage, Later};

    use super::*;

    #[test]
    fn what_is_kept_and_what_is_lost_is_said() {
        let later = Later {
            entries: 5,
            last: Some(12),
            unreadable: 1,
            answers: 1,
            uncounted: Amount { calls: 3, tokens: 210, usd: "0.51".parse().unwrap() },
            budgets: vec!["pilot".into()],
        };
        let damage = Damage {
            entry: 7,
            offset: 4711,
            why: "it is cut off".into(),
            kept_entries: 6,
            rest_bytes: 900,
            gone_bytes: 0,
            later,
            under_way: Vec::new(),
            file_header: false,
        };
        let repaired = Repaired { damage, aside: vec!["s/journal.damaged-4711".into()] };
        insta::assert_snapshot!(page(&repaired), @r"
        entry 7 at offset 4711 was damaged: it is cut off
        kept: 6 entries, 4711 bytes
        set aside: the 900 bytes behind them
        behind the damage 5 later entries were recognised, 1 up to the last of them were not
        lost of them: 1 answers, and 3 calls, 210 tokens, 0.510000000 dollars that the record no longer counts; what else was lost cannot be told
        budgets would allow that much again: lower their limits by it (`tuition budget set`), or hold the statement against the provider's bill
        limits set behind the damage are lost: budget pilot
        set aside: `s/journal.damaged-4711`
        ");
    }
}
