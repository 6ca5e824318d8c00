//! Reading a whole journal although parts of it are damaged, missing or out of place: every fault is named, and reading
//! goes on behind it.
//!
//! Must not change anything, nor be used to open a store: that stops at the first fault. Invariants: an undamaged journal
//! reads exactly as [`Frames`] reads it; behind a fault, entries are given in the order of their numbers, each once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::frame::{HEADER_BYTES, Header, link};
use super::scan::{frame_bytes, judge, next_header, read_frame, whole};
use super::{FileHeader, Frame, Frames, JournalError, Source, Step};

/// What is wrong with a part of a journal. Numbers from `first` to `last` are meant inclusively.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Bytes stand where entries should, and are none.
    #[error("{} at offset {offset} of the journal {}: no header there matches its checksum", entries(*.first, *.last), are(*.first, *.last, "damaged"))]
    Unreadable {
        /// The first number.
        first: u64,
        /// The last number.
        last: u64,
        /// Where the bytes begin.
        offset: u64,
    },
    /// Entries are gone, and no bytes are left of them.
    #[error("{} {} from the journal, {} in all: the next that is there stands at offset {offset}", entries(*.first, *.last), are(*.first, *.last, "missing"), .last - .first + 1)]
    Missing {
        /// The first number.
        first: u64,
        /// The last number.
        last: u64,
        /// Where the entry begins that followed them.
        offset: u64,
    },
    /// An entry stands where another belongs.
    #[error(
        "entry {number} at offset {offset} of the journal is out of place: entry {belongs} belongs there"
    )]
    Misplaced {
        /// Its number.
        number: u64,
        /// Where it begins.
        offset: u64,
        /// The entry that belongs there.
        belongs: u64,
    },
    /// An entry whose number another one has already.
    #[error("entry {number} stands in the journal a second time, at offset {offset}")]
    Again {
        /// Its number.
        number: u64,
        /// Where it begins.
        offset: u64,
    },
    /// Entries whose checksums are right and whose chain is not the one before, continued.
    #[error("{} at offset {offset} of the journal {} not continue the chain", entries(*.first, *.last), if .first == .last { "does" } else { "do" })]
    Unchained {
        /// The first number.
        first: u64,
        /// The last number.
        last: u64,
        /// Where the first begins.
        offset: u64,
    },
    /// Bytes between two entries that follow each other.
    #[error("{bytes} bytes at offset {offset} of the journal, in front of entry {before}, are no entry")]
    Inserted {
        /// The entry behind them.
        before: u64,
        /// Where they begin.
        offset: u64,
        /// How many they are.
        bytes: u64,
    },
}

fn entries(first: u64, last: u64) -> String {
    if first == last { format!("entry {first}") } else { format!("entries {first} to {last}") }
}

fn are(first: u64, last: u64, what: &str) -> String {
    format!("{} {what}", if first == last { "is" } else { "are" })
}

impl Fault {
    /// The first entry that it is about.
    pub fn entry(&self) -> u64 {
        match self {
            Self::Unreadable { first, .. } | Self::Missing { first, .. } | Self::Unchained { first, .. } => {
                *first
            }
            Self::Misplaced { number, .. } | Self::Again { number, .. } => *number,
            Self::Inserted { before, .. } => *before,
        }
    }
}

/// A header that checks, and where it stands.
#[derive(Clone, Copy, Debug)]
struct Site {
    offset: u64,
    header: Header,
}

/// Bytes that belong to no site.
#[derive(Clone, Copy, Debug)]
struct Bare {
    offset: u64,
    end: u64,
    /// How many sites stand in front of it.
    sites: usize,
}

/// All entries of a journal that can be read, and every fault between them.
#[derive(Debug)]
pub(crate) struct Survey<S> {
    frames: Frames<S>,
    limit: u64,
    stood: Option<(u64, &'static str)>,
    faults: VecDeque<JournalError>,
    /// Behind the first fault: what is left to read, by number.
    behind: Option<VecDeque<Site>>,
    /// Where a fault was named already.
    named: Option<u64>,
    /// Entries in a row that do not continue the chain.
    unchained: Option<(u64, u64, u64)>,
    done: bool,
}

impl<S: Source> Survey<S> {
    /// Of the journal in `frames`, none of which was read; `limit` and `stood` as for [`Frames`] and [`judge`].
    pub(crate) fn new(frames: Frames<S>, limit: u64, stood: Option<(u64, &'static str)>) -> Self {
        Self {
            frames,
            limit,
            stood,
            faults: VecDeque::new(),
            behind: None,
            named: None,
            unchained: None,
            done: false,
        }
    }

    /// What is read.
    pub(crate) fn frames(&self) -> &Frames<S> {
        &self.frames
    }

    fn advance(&mut self) -> Result<Option<Frame>, JournalError> {
        if let Some(fault) = self.faults.pop_front() {
            return Err(fault);
        }
        if self.behind.is_some() {
            return self.read_behind();
        }
        match self.frames.step() {
            Ok(Step::Frame(frame)) => return Ok(Some(*frame)),
            Ok(Step::End) => {
                self.done = true;
                let length = self.frames.source().len()?.min(self.frames.position);
                return whole(self.frames.number, length, self.stood).map(|()| None);
            }
            Ok(Step::Bad(torn)) => {
                let (source, file) = (self.frames.source(), self.frames.header());
                // A torn write leaves no frame whose checksums are right: such a one was put there.
                let is_whole = torn.offset + HEADER_BYTES as u64 <= self.limit
                    && !matches!(read_frame(source, file, torn.offset), Err(JournalError::Corrupt { .. }));
                if !is_whole {
                    match judge(source, file, torn, self.stood) {
                        Ok(_) => {
                            self.done = true;
                            return Ok(None);
                        }
                        Err(error @ JournalError::Corrupt { offset, .. }) => {
                            self.named = Some(offset);
                            self.faults.push_back(error);
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
            Err(JournalError::NotUnderstood { .. }) => {}
            Err(error) => return Err(error),
        }
        let (sites, bare) = self.sites()?;
        self.compare(sites, &bare);
        self.advance()
    }

    /// Every header from the first fault on, in the order of the file, and the bytes between that are none.
    fn sites(&self) -> Result<(Vec<Site>, Vec<Bare>), JournalError> {
        let (source, file) = (self.frames.source(), self.frames.header());
        let (mut sites, mut bare) = (Vec::new(), Vec::new());
        let mut end = self.frames.position;
        let mut search = end;
        while search < self.limit {
            let found = match header_at(source, file, search)? {
                Some(header) => Some((search, header)),
                None => next_header(source, file, search + 1)?,
            };
            let Some((offset, header)) = found.filter(|(offset, _)| *offset < self.limit) else { break };
            let behind = offset + frame_bytes(&header);
            if behind > self.limit {
                search = offset + 1;
                continue;
            }
            if offset > end {
                bare.push(Bare { offset: end, end: offset, sites: sites.len() });
            }
            sites.push(Site { offset, header });
            (end, search) = (behind, behind);
        }
        if end < self.limit {
            bare.push(Bare { offset: end, end: self.limit, sites: sites.len() });
        }
        Ok((sites, bare))
    }

    /// Names what is wrong with the order of the sites, and prepares to read them by number.
    fn compare(&mut self, sites: Vec<Site>, bare: &[Bare]) {
        let start = self.frames.number + 1;
        let mut found = Vec::new();
        let mut by_number = BTreeMap::new();
        let mut order = Vec::new();
        for site in &sites {
            let number = site.header.number;
            if number < start || by_number.contains_key(&number) {
                found.push(Fault::Again { number, offset: site.offset });
            } else {
                by_number.insert(number, *site);
                order.push(*site);
            }
        }
        let mut missing = missing(start, &by_number);
        let last = by_number.last_key_value().map_or(start - 1, |(last, _)| *last);
        for bytes in bare {
            found.extend(self.bare(bytes, &sites, &mut missing, last));
        }
        for (first, last) in &missing {
            let offset = by_number.get(&(last + 1)).map_or(self.limit, |site| site.offset);
            found.push(Fault::Missing { first: *first, last: *last, offset });
        }
        found.extend(misplaced(&order));
        if missing.is_empty() {
            let length = self.frames.source().len().unwrap_or(self.limit);
            self.faults.extend(whole(last, length, self.stood).err());
        }
        found.sort_by_key(Fault::entry);
        self.faults.extend(found.into_iter().map(JournalError::Unfit));
        self.behind = Some(by_number.into_values().collect());
    }

    /// What bytes that are no entry stand for; takes the numbers that they explain out of `missing`.
    fn bare(
        &self,
        bytes: &Bare,
        sites: &[Site],
        missing: &mut BTreeMap<u64, u64>,
        last: u64,
    ) -> Option<Fault> {
        let (offset, named) = (bytes.offset, u64::from(self.named == Some(bytes.offset)));
        let before = bytes.sites.checked_sub(1).map_or(self.frames.number, |site| sites[site].header.number);
        let Some(behind) = sites.get(bytes.sites) else {
            // At the end: a torn tail unless somebody saw it durable.
            let synced = sites.iter().map(|site| site.header.synced).max();
            let durable = synced.into_iter().chain(self.stood.map(|(stood, _)| stood)).max();
            let (first, lost) = (last + 1, durable.is_some_and(|durable| durable > offset));
            return (lost && named == 0).then_some(Fault::Unreadable { first, last: first, offset });
        };
        let ends = behind.header.number.saturating_sub(1);
        let run = missing.get_key_value(&(before + 1)).or_else(|| missing.iter().find(|run| *run.1 == ends));
        match run.map(|(first, last)| (*first, *last)) {
            Some((first, last)) => {
                missing.remove(&first);
                let first = first + named;
                (first <= last).then_some(Fault::Unreadable { first, last, offset })
            }
            None if named > 0 => None,
            None => Some(Fault::Inserted { before: behind.header.number, offset, bytes: bytes.end - offset }),
        }
    }

    /// The next entry by number.
    fn read_behind(&mut self) -> Result<Option<Frame>, JournalError> {
        let Some(site) = self.behind.as_mut().and_then(VecDeque::pop_front) else {
            self.done = true;
            return self.chain_broke();
        };
        let Header { number, chain, .. } = site.header;
        let read = read_frame(self.frames.source(), self.frames.header(), site.offset);
        let previous = (self.frames.number + 1 == number).then_some(self.frames.chain);
        (self.frames.number, self.frames.chain) = (number, chain);
        let frame = match read {
            Ok(frame) => frame,
            // Named when it was met.
            Err(JournalError::Corrupt { offset, .. }) if self.named == Some(offset) => return self.advance(),
            Err(error) => return Err(error),
        };
        let continues = previous.is_none_or(|previous| link(&previous, number, &frame.payload) == chain);
        if continues {
            if let Err(broke) = self.chain_broke() {
                self.faults.push_back(broke);
            }
        } else {
            let first = self.unchained.map_or((number, site.offset), |(first, _, offset)| (first, offset));
            self.unchained = Some((first.0, number, first.1));
        }
        Ok(Some(frame))
    }

    /// Names the entries in a row that did not continue the chain, if there are such.
    fn chain_broke(&mut self) -> Result<Option<Frame>, JournalError> {
        match self.unchained.take() {
            None => Ok(None),
            Some((first, last, offset)) => Err(JournalError::Unfit(Fault::Unchained { first, last, offset })),
        }
    }
}

impl<S: Source> Iterator for Survey<S> {
    type Item = Result<Frame, JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.advance().transpose();
        // What cannot be read at all will not be read the next time.
        self.done |= matches!(next, Some(Err(JournalError::Io(_))));
        next
    }
}

fn header_at(source: &impl Source, file: &FileHeader, offset: u64) -> Result<Option<Header>, JournalError> {
    let mut bytes = [0; HEADER_BYTES];
    Ok(if source.read_full(&mut bytes, offset)? { Header::decode(&bytes, &file.writer) } else { None })
}

/// The numbers from `start` on that are not there although later ones are, as first and last of each run.
fn missing(start: u64, by_number: &BTreeMap<u64, Site>) -> BTreeMap<u64, u64> {
    let (mut missing, mut next) = (BTreeMap::new(), start);
    for number in by_number.keys() {
        if *number > next {
            missing.insert(next, number - 1);
        }
        next = number + 1;
    }
    missing
}

/// The entries that are out of place: both of two that changed places, and whatever else would have to be moved.
fn misplaced(order: &[Site]) -> Vec<Fault> {
    let numbers: Vec<u64> = order.iter().map(|site| site.header.number).collect();
    let mut sorted = numbers.clone();
    sorted.sort_unstable();
    let place: BTreeMap<u64, usize> =
        sorted.iter().enumerate().map(|(place, number)| (*number, place)).collect();
    let swapped = |at: usize| numbers[place[&numbers[at]]] == sorted[at];
    let kept = longest_rising(&numbers);
    (0..order.len())
        .filter(|at| numbers[*at] != sorted[*at] && (swapped(*at) || !kept.contains(&numbers[*at])))
        .map(|at| Fault::Misplaced { number: numbers[at], offset: order[at].offset, belongs: sorted[at] })
        .collect()
}

/// The longest rising row among the numbers: those that need not be moved.
fn longest_rising(numbers: &[u64]) -> BTreeSet<u64> {
    // The places of the smallest ends of rising rows of each length, and what stands before each number in its row.
    let (mut ends, mut before): (Vec<usize>, Vec<Option<usize>>) = (Vec::new(), Vec::new());
    for (at, number) in numbers.iter().enumerate() {
        let length = ends.partition_point(|end| numbers[*end] < *number);
        before.push(length.checked_sub(1).map(|shorter| ends[shorter]));
        match ends.get_mut(length) {
            Some(end) => *end = at,
            None => ends.push(at),
        }
    }
    let mut next = ends.last().copied();
    let mut row = BTreeSet::new();
    while let Some(at) = next {
        row.insert(numbers[at]);
        next = before[at];
    }
    row
}

#[cfg(test)]
mod tests;
