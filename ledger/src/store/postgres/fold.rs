//! The fold of the log: a book, the chain of every writer, and who holds what.
//!
//! Must not know the database. Invariants: an entry is taken only where order, numbers and chain hold; what did not land
//! can be undone, and nothing of it is left.

use std::collections::{BTreeMap, HashSet};

use crate::book::Book;
use crate::entry::{Entry, Fact, HoldId};
use crate::journal::{BodyFault, Draft, JournalError, Packed, read_payload};
use crate::query::QueryKey;
use crate::store::StoreError;
use crate::store::read::{ReadEntry, ReadError};

/// The most bytes of one entry with its blobs: PostgreSQL takes no statement of a gigabyte.
const ENTRY_BYTES_MAX: u64 = 384 << 20;

/// Names the record: 16 random bytes.
pub(crate) type RecordName = [u8; 16];

/// Where a writer's chain stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    /// The writer's entries.
    pub(crate) number: u64,
    /// The chain up to the last of them.
    pub(crate) chain: [u8; 32],
}

impl Chain {
    /// Before a writer's first entry.
    pub(crate) fn start(record: &RecordName, writer: i64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"tuition record 1");
        hasher.update(record);
        hasher.update(&writer.to_le_bytes());
        Self { number: 0, chain: *hasher.finalize().as_bytes() }
    }

    /// With one more entry, at place `seq` of the record.
    pub(crate) fn next(&self, seq: u64, payload: &[u8]) -> Self {
        let number = self.number + 1;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.chain);
        hasher.update(&seq.to_le_bytes());
        hasher.update(&number.to_le_bytes());
        hasher.update(payload);
        Self { number, chain: *hasher.finalize().as_bytes() }
    }
}

/// An entry as its row has it.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) seq: i64,
    pub(crate) writer: i64,
    pub(crate) number: i64,
    pub(crate) payload: String,
    pub(crate) chain: Vec<u8>,
}

/// The chains of a record's writers, as far as it was read.
#[derive(Clone, Debug)]
pub(crate) struct Chains {
    pub(crate) record: RecordName,
    /// The number of the last entry.
    pub(crate) seq: u64,
    pub(crate) writers: BTreeMap<i64, Chain>,
}

impl Chains {
    pub(crate) fn new(record: RecordName) -> Self {
        Self { record, seq: 0, writers: BTreeMap::new() }
    }

    /// Where `writer` stands.
    pub(crate) fn of(&self, writer: i64) -> Chain {
        self.writers.get(&writer).copied().unwrap_or_else(|| Chain::start(&self.record, writer))
    }

    /// Takes the next row, where it is that.
    pub(crate) fn take(&mut self, row: &Row) -> Result<(), ReadError> {
        let number = self.seq + 1;
        let damaged = |why: String| Err(ReadError::Damaged { number, why });
        if row.seq.cast_unsigned() != number {
            return damaged(format!("entry {} stands in its place", row.seq));
        }
        let next = self.of(row.writer).next(number, row.payload.as_bytes());
        if row.number.cast_unsigned() != next.number {
            let writer = row.writer;
            return damaged(format!("it is number {} of writer {writer}, not {}", row.number, next.number));
        }
        if row.chain != next.chain {
            return damaged(format!("it does not continue the chain of writer {}", row.writer));
        }
        self.seq = number;
        self.writers.insert(row.writer, next);
        Ok(())
    }
}

/// A hold that is under way or unknown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Open {
    /// Who made it.
    pub(crate) writer: i64,
    /// The number of its `Reserved` entry.
    pub(crate) reserved: u64,
    /// Whether its fee is in dollars.
    pub(crate) priced: bool,
}

/// Where an answer stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answered {
    pub(crate) key: QueryKey,
    pub(crate) settled: u64,
    pub(crate) reserved: u64,
    pub(crate) item: usize,
}

/// An entry that was applied and waits to be written.
#[derive(Debug)]
pub(crate) struct Drafted {
    pub(crate) seq: u64,
    pub(crate) chain: Chain,
    pub(crate) draft: Draft,
    pub(crate) answers: Vec<Answered>,
    /// A key whose answers go with it.
    pub(crate) forgotten: Option<QueryKey>,
}

/// A state to go back to.
pub(crate) struct Mark {
    book: Book,
    open: BTreeMap<HoldId, Open>,
    chains: Chains,
}

/// The present, and the number of the entry that it is the present of.
pub(crate) struct Fold {
    pub(crate) book: Book,
    pub(crate) open: BTreeMap<HoldId, Open>,
    pub(crate) chains: Chains,
    /// Keys first answered since the last mark.
    fresh: HashSet<QueryKey>,
    /// Keys forgotten since the last mark that were answered before it.
    gone: HashSet<QueryKey>,
}

impl Fold {
    pub(crate) fn new(record: RecordName) -> Self {
        Self {
            book: Book::default(),
            open: BTreeMap::new(),
            chains: Chains::new(record),
            fresh: HashSet::new(),
            gone: HashSet::new(),
        }
    }

    /// Takes a durable row; gives the keys whose answers it replaces or adds.
    pub(crate) fn take(&mut self, row: &Row) -> Result<Vec<QueryKey>, ReadError> {
        let number = self.chains.seq + 1;
        let damaged = |why: String| ReadError::Damaged { number, why };
        let (entry, _) = read_payload(row.payload.as_bytes()).map_err(|fault| match fault {
            BodyFault::Damaged(why) => damaged(why.to_owned()),
            BodyFault::NotUnderstood(error) => {
                damaged(format!("this version does not understand it: {error}"))
            }
        })?;
        self.chains.take(row)?;
        let answered = self.apply(&entry, number, row.writer);
        let answered =
            answered.map_err(|error| damaged(format!("it contradicts the entries before it: {error}")))?;
        let mut keys: Vec<_> = answered.into_iter().map(|answered| answered.key).collect();
        keys.extend(forgotten(&entry));
        Ok(keys)
    }

    fn apply(
        &mut self,
        entry: &Entry,
        seq: u64,
        writer: i64,
    ) -> Result<Vec<Answered>, crate::book::BookError> {
        let keys = match &entry.fact {
            Fact::Settled { items, .. } => items.iter().map(|item| item.key).collect(),
            _ => Vec::new(),
        };
        let fresh: Vec<_> = keys.iter().copied().filter(|key| !self.book.is_settled(key)).collect();
        self.book.apply(entry)?;
        // After this point it must succeed.
        self.fresh.extend(fresh);
        if let Some(key) = forgotten(entry)
            && !self.fresh.remove(&key)
        {
            self.gone.insert(key);
        }
        let mut answers = Vec::new();
        match &entry.fact {
            Fact::Reserved { hold, price, .. } => {
                self.open.insert(*hold, Open { writer, reserved: seq, priced: price.is_some() });
            }
            Fact::Settled { hold, .. } => {
                if let Some(open) = self.open.remove(hold) {
                    let answered =
                        |(item, key)| Answered { key, settled: seq, reserved: open.reserved, item };
                    answers = keys.into_iter().enumerate().map(answered).collect();
                }
            }
            Fact::Released { hold, .. } | Fact::Resolved { hold, .. } => {
                self.open.remove(hold);
            }
            _ => {}
        }
        Ok(answers)
    }

    /// Remembers the present, to go back to it.
    pub(crate) fn mark(&mut self) -> Mark {
        self.fresh.clear();
        self.gone.clear();
        Mark { book: self.book.mark(), open: self.open.clone(), chains: self.chains.clone() }
    }

    /// Undoes what was appended since `mark`.
    pub(crate) fn back_to(&mut self, mark: Mark) {
        let fresh: Vec<_> = self.fresh.drain().collect();
        let gone: Vec<_> = self.gone.drain().collect();
        self.book.back_to(mark.book, &fresh, &gone);
        (self.open, self.chains) = (mark.open, mark.chains);
    }

    /// Applies an entry of `writer` and writes it down; where it does not fit, nothing changes.
    pub(crate) fn append(
        &mut self,
        writer: i64,
        entry: &Entry,
        blobs: Vec<Packed>,
    ) -> Result<Drafted, StoreError> {
        let draft = Draft::new(entry, blobs).map_err(contradiction)?;
        self.append_draft(writer, entry, draft)
    }

    /// Applies an entry of another record, byte for byte as it stands there.
    pub(crate) fn copy(&mut self, writer: i64, read: &ReadEntry) -> Result<Drafted, StoreError> {
        self.append_draft(writer, &read.entry, Draft::again(&read.payload, &read.blobs))
    }

    fn append_draft(&mut self, writer: i64, entry: &Entry, draft: Draft) -> Result<Drafted, StoreError> {
        let bytes = draft.bytes();
        if bytes > ENTRY_BYTES_MAX {
            let max = ENTRY_BYTES_MAX;
            return Err(contradiction(JournalError::TooLarge { what: "an answer", bytes, max }));
        }
        let seq = self.chains.seq + 1;
        let chain = self.chains.of(writer).next(seq, draft.payload());
        let answers = self.apply(entry, seq, writer).map_err(contradiction)?;
        self.chains.seq = seq;
        self.chains.writers.insert(writer, chain);
        Ok(Drafted { seq, chain, draft, answers, forgotten: forgotten(entry) })
    }

    /// The holds under way that one of `writers` made.
    pub(crate) fn under_way(&self, writers: &[i64]) -> Vec<HoldId> {
        let under_way = self.book.under_way().into_iter();
        under_way
            .filter(|hold| self.open.get(hold).is_some_and(|open| writers.contains(&open.writer)))
            .collect()
    }
}

/// The key that an entry forgets.
fn forgotten(entry: &Entry) -> Option<QueryKey> {
    match &entry.fact {
        Fact::Forgotten { key, .. } => Some(*key),
        _ => None,
    }
}

pub(crate) fn contradiction(error: impl ToString) -> StoreError {
    StoreError::Contradiction(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Cause, Origin};
    use crate::store::samples::{calls, claim, key};
    use crate::time::Timestamp;

    const NAME: RecordName = *b"0123456789abcdef";

    fn row(writer: i64, drafted: &Drafted) -> Row {
        Row {
            seq: drafted.seq.cast_signed(),
            writer,
            number: drafted.chain.number.cast_signed(),
            payload: String::from_utf8(drafted.draft.payload().to_vec()).unwrap(),
            chain: drafted.chain.chain.to_vec(),
        }
    }

    /// A limit and a hold by writer 1, another hold by writer 2.
    fn rows() -> (Fold, Vec<Row>) {
        let (mut fold, mut rows) = (Fold::new(NAME), Vec::new());
        let limit = fold.book.limit(calls(9), Origin::Command, Timestamp(1)).unwrap();
        rows.push(row(1, &fold.append(1, &limit, vec![]).unwrap()));
        for (writer, name) in [(1, "a"), (2, "b")] {
            let reserved = fold.book.reserve(&claim(&[name]), Timestamp(2)).unwrap();
            rows.push(row(writer, &fold.append(writer, &reserved, vec![]).unwrap()));
        }
        (fold, rows)
    }

    #[test]
    fn what_was_appended_is_taken_by_another_and_means_the_same() {
        let (fold, rows) = rows();
        let mut other = Fold::new(NAME);
        for row in &rows {
            other.take(row).unwrap();
        }
        assert_eq!(other.book.present(Timestamp(2)), fold.book.present(Timestamp(2)));
        assert_eq!(other.chains.writers, fold.chains.writers);
        assert_eq!(other.under_way(&[2]), [HoldId(2)]);
        assert_eq!(other.under_way(&[1, 2]), [HoldId(1), HoldId(2)]);
    }

    #[test]
    fn what_did_not_land_leaves_nothing_behind() {
        let (mut fold, _) = rows();
        let before = (fold.book.present(Timestamp(9)), fold.chains.seq, fold.open.len());
        let mark = fold.mark();
        let settled = fold.book.settle(HoldId(1), None, String::new(), Timestamp(3)).unwrap();
        fold.append(1, &settled, vec![]).unwrap();
        let lost = fold.book.forfeit(HoldId(2), Cause::Crashed, Timestamp(3)).unwrap();
        fold.append(1, &lost, vec![]).unwrap();
        assert!(fold.book.is_settled(&key("a")));
        fold.back_to(mark);
        assert!(!fold.book.is_settled(&key("a")) && fold.book.is_in_flight(&key("a")));
        assert_eq!((fold.book.present(Timestamp(9)), fold.chains.seq, fold.open.len()), before);
    }

    #[test]
    fn an_entry_that_was_changed_moved_or_taken_out_is_named() {
        #[track_caller]
        fn check(change: impl FnOnce(&mut Vec<Row>), number: u64, expected: &str) {
            let (_, mut rows) = rows();
            change(&mut rows);
            let mut fold = Fold::new(NAME);
            let error = rows.iter().find_map(|row| fold.take(row).err()).unwrap();
            assert_eq!(error.to_string(), format!("entry {number} of the record is damaged: {expected}"));
            assert_eq!(error.entry(), Some(number));
        }
        let chain = |writer: u64| format!("it does not continue the chain of writer {writer}");
        check(|rows| rows[0].payload = rows[0].payload.replace('9', "8"), 1, &chain(1));
        check(|rows| rows[2].chain[0] ^= 1, 3, &chain(2));
        check(|rows| drop(rows.remove(1)), 2, "entry 3 stands in its place");
        let swap = |rows: &mut Vec<Row>| {
            rows.swap(1, 2);
            (rows[1].seq, rows[2].seq) = (2, 3);
        };
        check(swap, 2, &chain(2));
        check(|rows| rows[2].writer = 1, 3, "it is number 1 of writer 1, not 3");
        check(|rows| rows[1].number = 7, 2, "it is number 7 of writer 1, not 2");
    }
}
