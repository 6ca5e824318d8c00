//! Judging the rows of a log of which some were changed, moved, taken out or added: every fault is named, and judging goes
//! on behind it.
//!
//! Must not know the database, nor be used to open a store: that stops at the first fault. Invariants: of an untouched log
//! nothing is said; a row is taken for what was written only where it continues its writer's chain as it is recorded.

use std::collections::BTreeMap;

use super::fold::{Chain, RecordName, Row};

/// What is wrong with a log in a database. Numbers from `first` to `last` are meant inclusively.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogFault {
    /// The row is gone that says what the record is called and where it ends.
    #[error(
        "the record's row of `head` is missing: where the record ends is not known, and the first entry of no writer can be checked"
    )]
    Headless,
    /// Entries are gone.
    #[error("{}", missing(*.first, *.last))]
    Missing {
        /// The first number.
        first: u64,
        /// The last number.
        last: u64,
    },
    /// An entry, or what is recorded of its chain, was changed.
    #[error("entry {number} of the record does not continue the chain of writer {writer}")]
    Unchained {
        /// Its number.
        number: u64,
        /// Its writer.
        writer: i64,
    },
    /// The entry that this one continues is gone.
    #[error(
        "entry {number} of the record cannot be checked: number {before} of writer {writer}, which it continues, is missing"
    )]
    Unproven {
        /// Its number.
        number: u64,
        /// Its writer.
        writer: i64,
        /// The number that the missing one has among the writer's.
        before: i64,
    },
    /// An entry changed its place, or its number among its writer's.
    #[error("entry {number} of the record is number {found} of writer {writer}, not {belongs}")]
    Misplaced {
        /// Its number.
        number: u64,
        /// Its writer.
        writer: i64,
        /// Its number among the writer's.
        found: i64,
        /// The one that belongs there.
        belongs: u64,
    },
    /// The chain holds, and the text is no entry.
    #[error("entry {number} of the record, of writer {writer}, is not understood by this version: {why}")]
    NotUnderstood {
        /// Its number.
        number: u64,
        /// Its writer.
        writer: i64,
        /// What is not understood.
        why: String,
    },
    /// An entry has a blob that it does not name.
    #[error("entry {number} of the record, of writer {writer}, has a blob {part} that it does not name")]
    Unnamed {
        /// Its number.
        number: u64,
        /// Its writer.
        writer: i64,
        /// The blob's place.
        part: i32,
    },
    /// An entry stands behind the last one that the record knows of.
    #[error(
        "entry {number} of the record, of writer {writer}, stands behind its end: it says that it has {end} entries"
    )]
    Beyond {
        /// Its number.
        number: u64,
        /// Its writer.
        writer: i64,
        /// How many entries the record says that it has.
        end: i64,
    },
    /// A row whose number is none, or is another's already.
    #[error("a row of writer {writer} has the number {seq}, which no entry can have there")]
    NoPlace {
        /// The number.
        seq: i64,
        /// The writer.
        writer: i64,
    },
    /// What a writer says of its own entries is not so.
    #[error("writer {writer} has {found} entries, and says that it has {says}")]
    Miscounted {
        /// The number of its last entry in the record.
        number: u64,
        /// The writer.
        writer: i64,
        /// Its entries.
        found: u64,
        /// What it says.
        says: i64,
    },
    /// A writer's chain ends otherwise than it says.
    #[error("the chain of writer {writer} does not end with entry {number} as the writer says")]
    Misended {
        /// The number of its last entry in the record.
        number: u64,
        /// The writer.
        writer: i64,
    },
    /// Entries of a writer that the record does not know.
    #[error("entry {number} of the record is of writer {writer}, and there is no such writer")]
    Unwritten {
        /// The number of its last entry in the record.
        number: u64,
        /// The writer.
        writer: i64,
    },
}

fn missing(first: u64, last: u64) -> String {
    match last - first {
        0 => format!("entry {first} is missing from the record"),
        more => format!("entries {first} to {last} are missing from the record, {} in all", more + 1),
    }
}

impl LogFault {
    /// Whether it says that a text may not be the one that was written.
    pub(crate) fn is_of_the_text(&self) -> bool {
        matches!(self, Self::Unchained { .. } | Self::Unproven { .. } | Self::Misplaced { .. })
    }

    /// The first entry that it is about; 0 where it is about none.
    pub fn entry(&self) -> u64 {
        match self {
            Self::Headless => 1,
            Self::Missing { first, .. } => *first,
            Self::NoPlace { seq, .. } => u64::try_from(*seq).unwrap_or(0),
            Self::Unchained { number, .. }
            | Self::Unproven { number, .. }
            | Self::Misplaced { number, .. }
            | Self::NotUnderstood { number, .. }
            | Self::Unnamed { number, .. }
            | Self::Beyond { number, .. }
            | Self::Miscounted { number, .. }
            | Self::Misended { number, .. }
            | Self::Unwritten { number, .. } => *number,
        }
    }
}

/// A writer as its entries show it.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// The highest number among its entries that are what was written, or of which that cannot be told.
    known: u64,
    /// Entries behind that one which are wrong, and not out of an earlier place.
    behind: u64,
    /// Its rows, and those that are missing from between them.
    rows: u64,
    /// The chain as its last row has it.
    chain: [u8; 32],
    /// The number of that row in the record.
    number: u64,
    /// Entries of the record that were missing when that row was met.
    missing: u64,
}

/// What a writer says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Says {
    pub(crate) writer: i64,
    pub(crate) entries: i64,
    pub(crate) chain: Vec<u8>,
    /// The chain that the record has as that of its last entry, by the number.
    pub(crate) last: Option<Vec<u8>>,
}

/// The rows of a log, as far as they were judged.
#[derive(Debug)]
pub(crate) struct Survey {
    /// None where the record does not say.
    record: Option<RecordName>,
    /// How many entries the record says that it has; `i64::MAX` where it does not.
    end: i64,
    /// The number of the last row.
    number: u64,
    missing: u64,
    writers: BTreeMap<i64, Seen>,
}

impl Survey {
    /// Of a record with what its row of `head` says: its name and how many entries it has.
    pub(crate) fn new(head: Option<(RecordName, i64)>) -> Self {
        let (record, end) = (head.map(|(record, _)| record), head.map_or(i64::MAX, |(_, end)| end));
        Self { record, end, number: 0, missing: 0, writers: BTreeMap::new() }
    }

    /// Judges the next row in the order of `seq`; `before` is the chain that the record has for the number before it among
    /// its writer's. Gives its place, if it has one, and adds to `faults` what is wrong.
    pub(crate) fn take(
        &mut self,
        row: &Row,
        before: Option<&[u8]>,
        faults: &mut Vec<LogFault>,
    ) -> Option<u64> {
        let writer = row.writer;
        let place = u64::try_from(row.seq).ok().filter(|number| *number > self.number);
        let Some(number) = place else {
            faults.push(LogFault::NoPlace { seq: row.seq, writer });
            return None;
        };
        self.skip(number - 1, faults);
        self.number = number;
        if row.seq > self.end {
            faults.push(LogFault::Beyond { number, writer, end: self.end });
        }
        let seen = self.writers.get(&writer).copied();
        let mut seen = seen.unwrap_or_else(|| {
            let start = self.start(writer).unwrap_or_default();
            Seen { known: 0, behind: 0, rows: 0, chain: start, number: 0, missing: 0 }
        });
        faults.extend(self.continues(row, number, before, &mut seen));
        (seen.number, seen.missing) = (number, self.missing);
        // Of another length it continues nothing, and nothing continues it.
        seen.chain = row.chain.as_slice().try_into().unwrap_or_default();
        self.writers.insert(writer, seen);
        Some(number)
    }

    /// The chain of a writer before its first entry, where that can be told.
    fn start(&self, writer: i64) -> Option<[u8; 32]> {
        self.record.map(|record| Chain::start(&record, writer).chain)
    }

    /// Names the entries up to `last` that are not there, as far as the record says that it has them.
    fn skip(&mut self, last: u64, faults: &mut Vec<LogFault>) {
        let (first, last) = (self.number + 1, last.min(u64::try_from(self.end).unwrap_or(0)));
        if first <= last {
            self.missing += last - first + 1;
            faults.push(LogFault::Missing { first, last });
        }
    }

    /// Whether a row is what was written; says what it is, where not.
    fn continues(&self, row: &Row, number: u64, before: Option<&[u8]>, seen: &mut Seen) -> Option<LogFault> {
        let (writer, found) = (row.writer, row.number);
        let belongs = seen.known + seen.behind + 1;
        seen.rows += 1;
        let Some(counted) = u64::try_from(found).ok().filter(|found| *found > 0) else {
            seen.behind += 1;
            return Some(LogFault::Misplaced { number, writer, found, belongs });
        };
        let before: Option<[u8; 32]> = match counted {
            1 => self.start(writer),
            _ => before.and_then(|chain| chain.try_into().ok()),
        };
        // Where the entry before has another number now, its place tells which it was.
        let before_it = before.or_else(|| (counted == belongs).then_some(seen.chain));
        let link = |chain| Chain { number: counted - 1, chain }.next(number, row.payload.as_bytes()).chain;
        let unknown = counted == 1 && self.record.is_none();
        let continues = unknown || before_it.is_some_and(|chain| link(chain)[..] == row.chain[..]);
        if counted > seen.known && continues {
            (seen.known, seen.behind) = (counted, 0);
            return None;
        }
        // Those that are missing from the record may be this writer's.
        let lost = counted > belongs && counted - belongs <= self.missing - seen.missing;
        if lost {
            seen.rows += counted - belongs;
            (seen.known, seen.behind) = (counted, 0);
        } else {
            seen.behind += u64::from(counted > seen.known);
        }
        Some(match before {
            None if lost => LogFault::Unproven { number, writer, before: found - 1 },
            _ if lost || counted == belongs => LogFault::Unchained { number, writer },
            _ => LogFault::Misplaced { number, writer, found, belongs },
        })
    }

    /// Holds the end of what was judged against what the record and its writers say.
    pub(crate) fn end(mut self, says: &[Says]) -> Vec<LogFault> {
        let mut faults = Vec::new();
        if self.record.is_some() {
            self.skip(u64::MAX, &mut faults);
        }
        for Says { writer, entries, chain, last } in says {
            let seen = self.writers.remove(writer);
            let (number, found) = seen.map_or((0, 0), |seen| (seen.number, seen.rows));
            let end = seen.map_or_else(|| self.start(*writer), |seen| Some(seen.chain));
            let (writer, says) = (*writer, *entries);
            if u64::try_from(says) != Ok(found) {
                faults.push(LogFault::Miscounted { number, writer, found, says });
            } else if end.is_some_and(|end| end[..] != chain[..]) && last.as_ref() != Some(chain) {
                faults.push(LogFault::Misended { number, writer });
            }
        }
        let unknown = self.writers.iter();
        faults.extend(
            unknown.map(|(writer, seen)| LogFault::Unwritten { number: seen.number, writer: *writer }),
        );
        faults
    }
}

#[cfg(test)]
mod tests;
