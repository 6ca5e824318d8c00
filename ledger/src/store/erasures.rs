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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Cause, Entry};
    use crate::journal::{Draft, Packed, read_apart};
    use crate::money::Amount;
    use crate::store::samples::{claim, key};
    use crate::time::Timestamp;

    /// An entry with a blob for each of `kept`; one that is not kept was erased.
    fn read(number: u64, fact: Fact, kept: &[bool]) -> ReadEntry {
        let entry = Entry { at: Timestamp(number), fact };
        let blob = |_| Packed::new(b"part").unwrap();
        let draft = Draft::new(&entry, kept.iter().map(blob).collect()).unwrap();
        let stored = draft.stored().map(|bytes| bytes.map(bytes::Bytes::copy_from_slice));
        let stored = stored.zip(kept).map(|(bytes, kept)| bytes.filter(|_| *kept));
        let (entry, blobs) = read_apart(draft.payload(), stored).unwrap();
        let payload = draft.payload().to_vec().into();
        ReadEntry { number, offset: 0, writer: None, entry, blobs, payload }
    }

    fn reserved(hold: u64, names: &[&str]) -> Fact {
        let (hold, exchange) = (HoldId(hold), claim(names).exchange);
        Fact::Reserved { hold, exchange, amount: Amount::ZERO, price: None, metered: false, budgets: vec![] }
    }

    fn settled(hold: u64, names: &[&str]) -> Fact {
        let items = names.iter().map(|name| SettledItem { key: key(name), share: Amount::ZERO }).collect();
        let (hold, fee) = (HoldId(hold), Amount::ZERO);
        Fact::Settled { hold, usage: None, fee, whole_hold: false, media: String::new(), items }
    }

    fn forfeited(hold: u64) -> Fact {
        Fact::Forfeited { hold: HoldId(hold), cause: Cause::BrokenOff }
    }

    fn forgotten(name: &str) -> Fact {
        Fact::Forgotten { key: key(name), why: String::new() }
    }

    /// Of each finding the entry, and what was erased.
    #[track_caller]
    fn check(facts: Vec<(Fact, &[bool])>, expected: &[(u64, &str)]) {
        let mut erasures = Erasures::default();
        for (number, (fact, kept)) in (1..).zip(facts) {
            erasures.take(&read(number, fact, kept));
        }
        let found = erasures.found();
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, (entry, what)) in found.iter().zip(expected) {
            assert!(found.entry == *entry && found.what.starts_with(what), "`{what}` {entry}: {found:?}");
        }
    }

    const ALL: &[bool] = &[true; 7];
    const NONE: &[bool] = &[false; 7];
    /// The first of two answers is gone.
    const FIRST: &[bool] = &[true, false, false, false, true, true, true];

    #[test]
    fn only_an_entry_behind_it_explains_an_erased_answer() {
        let both = || [(reserved(1, &["a", "b"]), &[][..]), (settled(1, &["a", "b"]), FIRST)];
        let answer = |name| format!("the answer under key {}", key(name));
        check(vec![(reserved(1, &["a", "b"]), &[]), (settled(1, &["a", "b"]), ALL)], &[]);
        check(both().into(), &[(2, &answer("a"))]);
        check([both().to_vec(), vec![(forgotten("b"), &[])]].concat(), &[(2, &answer("a"))]);
        check([both().to_vec(), vec![(forgotten("a"), &[])]].concat(), &[]);
        // Bought again after it was forgotten: what is erased of that needs an entry of its own.
        let again =
            vec![(forgotten("a"), &[][..]), (reserved(2, &["a"]), &[]), (settled(2, &["a"]), &NONE[..4])];
        check([both().to_vec(), again.clone()].concat(), &[(5, &answer("a"))]);
        check([both().to_vec(), again, vec![(forgotten("a"), &[])]].concat(), &[]);
    }

    #[test]
    fn an_envelope_goes_with_the_last_answer_and_half_of_an_erasing_is_explained() {
        let pair = |kept| vec![(reserved(1, &["a", "b"]), &[][..]), (settled(1, &["a", "b"]), kept)];
        let with = |kept, names: &[&str]| {
            let entries = names.iter().map(|name| (forgotten(name), &[][..]));
            pair(kept).into_iter().chain(entries).collect::<Vec<_>>()
        };
        let envelope = "the envelope";
        let no_envelope: &[bool] = &[false, true, true, true, true, true, true];
        check(with(no_envelope, &[]), &[(2, envelope)]);
        check(with(no_envelope, &["a"]), &[(2, envelope)]);
        check(with(no_envelope, &["a", "b"]), &[]);
        check(with(&[false, false, false, false, true, true, true], &["a"]), &[(2, envelope)]);
        check(with(NONE, &["a", "b"]), &[]);
        check(with(NONE, &["b"]), &[(2, "the answer under key")]);
        for half in
            [&[true, false, true, true, true, true, true], &[true, true, true, false, true, true, true]]
        {
            check(with(half, &["a"]), &[]);
        }
    }

    #[test]
    fn what_came_of_a_failed_call_goes_with_any_key_that_it_asked() {
        let failed = |more: Vec<(Fact, &'static [bool])>| {
            let call = vec![(reserved(1, &["a", "b"]), &[][..]), (forfeited(1), &NONE[..1])];
            call.into_iter().chain(more).collect::<Vec<_>>()
        };
        check(vec![(reserved(1, &["a"]), &[]), (forfeited(1), &ALL[..1])], &[]);
        check(failed(vec![]), &[(2, "what came of the call")]);
        check(failed(vec![(forgotten("c"), &[])]), &[(2, "what came of the call")]);
        check(failed(vec![(forgotten("b"), &[])]), &[]);
        // Its hold is missing, so nobody knows what it asked.
        check(failed(vec![]).split_off(1), &[(1, "what came of the call")]);
        check(failed(vec![(forgotten("b"), &[])]).split_off(1), &[]);
    }
}
