//! Bodies that were erased, held against the entries that say so.
//!
//! Must not know where bodies are stored. Invariant: a body that is gone is told, unless an entry behind it forgets its
//! key: the entry comes first and the erasing after it, so an erasing that was cut off half way is explained as well.

use std::collections::BTreeMap;

use super::read::{ReadEntry, survey_entries};
use super::url::StoreUrl;
use crate::entry::{Fact, HoldId, SettledItem};
use crate::journal::Blob;
use crate::query::QueryKey;
use crate::statement::Discrepancy;

/// What was erased and what was forgotten, as entries go by.
#[derive(Debug, Default)]
pub struct Erasures {
    /// Holds that are under way or unknown: the number of their entry, and what they ask.
    asking: BTreeMap<HoldId, (u64, Vec<QueryKey>)>,
    /// The last entry that forgets each key.
    forgotten: BTreeMap<QueryKey, u64>,
    gone: Vec<Gone>,
    /// The number of the last entry.
    number: u64,
}

/// A body that is gone.
#[derive(Debug)]
struct Gone {
    /// The number of its entry.
    number: u64,
    what: What,
    /// The keys that must have been forgotten behind entry `since`.
    keys: Vec<QueryKey>,
    since: u64,
}

#[derive(Clone, Copy, Debug)]
enum What {
    /// Question, answer or signals under a key.
    Answer,
    /// What an exchange's answers share: gone once the last of them is.
    Envelope,
    /// What came of a failed call: gone with any of the keys that it asked; any key, where its hold is missing.
    Evidence,
}

impl Erasures {
    /// Takes the next entry in.
    pub fn take(&mut self, read: &ReadEntry) {
        self.number = read.number;
        match &read.entry.fact {
            Fact::Reserved { hold, exchange, .. } => {
                let keys = exchange.items.iter().map(|item| item.key).collect();
                self.asking.insert(*hold, (read.number, keys));
            }
            Fact::Settled { hold, items, .. } => {
                self.asking.remove(hold);
                self.settled(read.number, items, &read.blobs);
            }
            Fact::Forfeited { hold, .. } if read.blobs.iter().any(Blob::is_erased) => {
                let (since, keys) = self.asking.get(hold).cloned().unwrap_or((read.number, Vec::new()));
                self.gone.push(Gone { number: read.number, what: What::Evidence, keys, since });
            }
            Fact::Released { hold, .. } | Fact::Resolved { hold, .. } => {
                self.asking.remove(hold);
            }
            Fact::Forgotten { key, .. } => {
                self.forgotten.insert(*key, read.number);
            }
            _ => {}
        }
    }

    fn settled(&mut self, number: u64, items: &[SettledItem], blobs: &[Blob]) {
        let mut left = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let parts = blobs.get(1 + 3 * index..4 + 3 * index).unwrap_or_default();
            if parts.iter().any(Blob::is_erased) {
                self.gone.push(Gone { number, what: What::Answer, keys: vec![item.key], since: number });
            }
            if !parts.iter().all(Blob::is_erased) {
                left.push(item.key);
            }
        }
        if blobs.first().is_some_and(Blob::is_erased) && !left.is_empty() {
            self.gone.push(Gone { number, what: What::Envelope, keys: left, since: number });
        }
    }

    /// What was erased although no entry says so. Of a folder whose owner goes on writing, the entries that came meanwhile
    /// are looked at as well: an erasing may be seen before the entry that explains it. A database is read as it was at one
    /// moment.
    pub fn unexplained(mut self, url: &StoreUrl) -> Vec<Discrepancy> {
        let found = self.found();
        if found.is_empty() || url.folder().is_none() {
            return found;
        }
        let number = self.number;
        let meanwhile = survey_entries(url).into_iter().flatten().flatten();
        for read in meanwhile.filter(|read| read.number > number) {
            if let Fact::Forgotten { key, .. } = read.entry.fact {
                self.forgotten.insert(key, read.number);
            }
        }
        self.found()
    }

    fn found(&self) -> Vec<Discrepancy> {
        self.gone.iter().filter(|gone| !self.explains(gone)).map(Gone::told).collect()
    }

    fn explains(&self, gone: &Gone) -> bool {
        let forgotten = |key| self.forgotten.get(key).is_some_and(|number| *number > gone.since);
        match gone.what {
            What::Answer | What::Envelope => gone.keys.iter().all(forgotten),
            What::Evidence if gone.keys.is_empty() => {
                self.forgotten.values().any(|number| *number > gone.since)
            }
            What::Evidence => gone.keys.iter().any(forgotten),
        }
    }
}

impl Gone {
    fn told(&self) -> Discrepancy {
        let unsaid = "and no entry says that it was forgotten";
        let what = match (self.what, self.keys.first()) {
            (What::Answer, Some(key)) => format!("the answer under key {key} was erased, {unsaid}"),
            (What::Envelope, _) => {
                "the envelope of its answers was erased, and not all of them were forgotten".to_owned()
            }
            (What::Answer | What::Evidence, _) => format!("what came of the call was erased, {unsaid}"),
        };
        Discrepancy { entry: self.number, what }
    }
}
