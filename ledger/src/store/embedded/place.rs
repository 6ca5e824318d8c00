//! Where in the journal an answer stands, and reading it from there.
//!
//! Must not know the index. Invariant: a record read here is the one that the `Settled` entry wrote.

use serde::{Deserialize, Serialize};

use crate::answer::Record;
use crate::entry::Fact;
use crate::journal::{FileHeader, JournalError, Source, read_frame, unpack_settlement};

/// Where an answer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Where its `Settled` entry begins.
    pub(crate) settled: u64,
    /// Where the `Reserved` entry of its hold begins.
    pub(crate) reserved: u64,
}

/// All records of the exchange at `place`, in the order of its items; erased ones are left out.
pub(crate) fn records_at(
    source: &(impl Source + ?Sized),
    file: &FileHeader,
    place: Place,
) -> Result<Vec<Record>, JournalError> {
    let reserved = read_frame(source, file, place.reserved)?;
    let settled = read_frame(source, file, place.settled)?;
    let corrupt = |number, offset, why: &str| JournalError::Corrupt { number, offset, why: why.to_owned() };
    let Fact::Reserved { hold, exchange, price, .. } = &reserved.entry.fact else {
        return Err(corrupt(reserved.number, reserved.offset, "it is not the hold that was expected"));
    };
    if settled.entry.fact.hold() != Some(*hold) {
        return Err(corrupt(settled.number, settled.offset, "it settles another hold"));
    }
    unpack_settlement(exchange, price.is_some(), &settled.entry, &settled.blobs)
        .map_err(|why| corrupt(settled.number, settled.offset, why))
}
