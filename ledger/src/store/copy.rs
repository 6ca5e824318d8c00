//! Copying a record from one store to another, entry by entry, and holding both against each other.
//!
//! Must not decide anything: times, numbers, holds and bodies stay what they were. Invariants: nobody writes the source
//! meanwhile; the target becomes a store only after every entry in it was read back and found equal.

use std::io;
use std::path::PathBuf;

use super::StoreError;
use super::embedded::{self, OpenError, Transcript};
use super::postgres;
use super::read::{Entries, ReadEntry, ReadError, read_entries};
use super::url::StoreUrl;
use crate::entry::Fact;

/// Progress is told after so many entries.
const TOLD_EVERY: u64 = 1000;

/// Why a record was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The source cannot be read, or the target not be made.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Two stores that both buy would each allow the whole budget.
    #[error("a process writes the store `{0}`: two stores that both buy would each allow the whole budget")]
    Written(StoreUrl),
    /// The target holds something.
    #[error("the store `{0}` is not empty, and nothing is copied over a record")]
    NotEmpty(StoreUrl),
    /// The source is damaged.
    #[error("the source cannot be read on")]
    Source(#[source] ReadError),
    /// The target cannot be written.
    #[error("the copy cannot be written")]
    Target(#[source] StoreError),
    /// A file of the target.
    #[error("the copy cannot be written to `{}`", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What was written reads otherwise.
    #[error("entry {number} of the copy is not what it was: {what}")]
    Differs {
        /// Its number.
        number: u64,
        /// What is not the same.
        what: String,
    },
}

/// What was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Entries, each read back and found equal.
    pub entries: u64,
    /// Those of them that hold answers.
    pub settled: u64,
}

/// Copies the record at `from` to `to`, which must hold nothing; `tell` hears how many entries are written. Blocks its
/// thread.
///
/// # Errors
/// A process writes `from`, it is damaged, `to` holds something, or what was written does not read back as it was. Then
/// `to` is no store.
pub fn copy_store(from: &StoreUrl, to: &StoreUrl, tell: &mut dyn FnMut(u64)) -> Result<Copied, CopyError> {
    let entries = read_entries(from)?;
    if entries.is_owned() {
        return Err(CopyError::Written(from.clone()));
    }
    // Whoever would open an embedded store meanwhile finds its lock taken; a database is looked at again at the end.
    let _lock = from.folder().map(embedded::own).transpose()?;
    match to {
        StoreUrl::Sled(folder) => {
            let mut transcript = Transcript::begin(folder)?;
            let copied = write(entries, tell, |entry| transcript.append(entry))?;
            transcript.sync()?;
            let mut source = again(from)?;
            let mut copy = read_entries(&StoreUrl::Sled(transcript.folder().to_owned()))?;
            while compare(source.next(), copy.next())? {}
            transcript.finish()?;
            Ok(copied)
        }
        StoreUrl::Postgres(url) => {
            let mut target = postgres::Target::begin(url)?;
            let copied = write(entries, tell, |entry| target.append(entry))?;
            let mut source = again(from)?;
            target.verify(|copy| compare(source.next(), copy.map(Ok)).map(drop))?;
            compare(source.next(), None)?;
            target.finish()?;
            Ok(copied)
        }
    }
}

/// The source once more, by which the copy is judged.
fn again(from: &StoreUrl) -> Result<Entries, CopyError> {
    let entries = read_entries(from)?;
    // The lock of a folder is held by this process: only a database may have a writer of its own.
    match from {
        StoreUrl::Postgres(_) if entries.is_owned() => Err(CopyError::Written(from.clone())),
        _ => Ok(entries),
    }
}

fn write(
    entries: Entries,
    tell: &mut dyn FnMut(u64),
    mut append: impl FnMut(&ReadEntry) -> Result<(), CopyError>,
) -> Result<Copied, CopyError> {
    let mut copied = Copied { entries: 0, settled: 0 };
    for read in entries {
        let read = read.map_err(CopyError::Source)?;
        append(&read)?;
        copied.entries = read.number;
        copied.settled += u64::from(matches!(read.entry.fact, Fact::Settled { .. }));
        if copied.entries.is_multiple_of(TOLD_EVERY) {
            tell(copied.entries);
        }
    }
    tell(copied.entries);
    Ok(copied)
}

type Read = Option<Result<ReadEntry, ReadError>>;

/// Holds an entry against its copy; false at the end of both.
fn compare(source: Read, copy: Read) -> Result<bool, CopyError> {
    let source = source.transpose().map_err(CopyError::Source)?;
    let copy = match copy.transpose() {
        Ok(copy) => copy,
        Err(error) => {
            let number = error.entry().unwrap_or_default();
            return Err(CopyError::Differs { number, what: error.to_string() });
        }
    };
    let differs = |number, what: &str| Err(CopyError::Differs { number, what: what.to_owned() });
    let (source, copy) = match (source, copy) {
        (None, None) => return Ok(false),
        (Some(source), None) => return differs(source.number, "it is missing"),
        (None, Some(copy)) => return differs(copy.number, "the source does not have it"),
        (Some(source), Some(copy)) => (source, copy),
    };
    let number = source.number;
    if copy.number != number {
        return differs(number, "it has another number");
    }
    if copy.payload != source.payload {
        return differs(number, "it says something else");
    }
    let open =
        |read: &ReadEntry| read.blobs.iter().map(crate::journal::Blob::open).collect::<Result<Vec<_>, _>>();
    match (open(&source), open(&copy)) {
        (Ok(source), Ok(copy)) if source == copy => Ok(true),
        (Ok(_), Ok(_)) => differs(number, "it holds another answer"),
        (Err(why), _) => Err(CopyError::Source(ReadError::Damaged { number, why: why.to_owned() })),
        (_, Err(why)) => differs(number, why),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::entry::Cause;
    use crate::store::samples::{claim, key};
    use crate::store::suite::cluster::Cluster;
    use crate::store::suite::{Place, buy};

    /// The source, with a hold of every kind in it; a crash left one of them under way.
    async fn source(place: &Place) -> Vec<Arc<crate::Record>> {
        let opened = place.prepared(20).await;
        let mut bought = buy(&opened.store, &["a", "b"]).await;
        bought.extend(buy(&opened.store, &["c"]).await);
        let released = opened.store.reserve(claim(&["d"])).await.unwrap();
        opened.store.release(released, Cause::NotConnected).await.unwrap();
        let unknown = opened.store.reserve(claim(&["e"])).await.unwrap();
        opened.store.forfeit(unknown, Cause::BrokenOff, Bytes::from_static(b"half")).await.unwrap();
        std::mem::forget(opened.store.reserve(claim(&["f"])).await.unwrap());
        drop(opened);
        bought
    }

    async fn copied(from: &StoreUrl, to: &StoreUrl) -> Result<Copied, String> {
        let (from, to) = (from.clone(), to.clone());
        let copy = move || copy_store(&from, &to, &mut |_| ());
        tokio::task::spawn_blocking(copy).await.unwrap().map_err(|error| error.to_string())
    }

    fn quiet(place: &Place) {
        // A replica that crashed is missed after a while: as if that had passed.
        if let StoreUrl::Postgres(url) = &place.url {
            let silent = "UPDATE tuition.writer SET heartbeat = heartbeat - interval '1 hour'";
            Cluster::shared().sql(url.secret(), silent);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_record_moves_between_stores_of_any_kind_and_stays_what_it_was() {
        for (from, to) in [
            (Place::sled(), Place::postgres()),
            (Place::postgres(), Place::sled()),
            (Place::sled(), Place::sled()),
            (Place::postgres(), Place::postgres()),
        ] {
            let bought = source(&from).await;
            quiet(&from);
            let found = copied(&from.url, &to.url).await.unwrap();
            assert_eq!((found.entries, found.settled), (12, 2), "{} to {}", from.url, to.url);
            let refused = copied(&from.url, &to.url).await.unwrap_err();
            assert!(refused.contains("is not empty"), "{refused}");
            let opened = to.open().await;
            let keys = ["a", "b", "c"].map(key);
            let known: Vec<_> =
                opened.store.find(&keys).await.unwrap().into_iter().map(Option::unwrap).collect();
            assert_eq!(known, bought);
            let total =
                crate::store::suite::until(&opened.store, |present| present.total.unknown.calls == 2).await;
            assert_eq!((total.total.settled.calls, total.total.reserved.calls), (3, 0));
            let refused = copied(&to.url, &from.url).await.unwrap_err();
            assert!(refused.contains("a process writes the store"), "{refused}");
            buy(&opened.store, &["e", "g"]).await;
            opened.close().unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_damaged_record_is_not_copied_and_nothing_is_left_of_the_attempt() {
        let (from, to, folder) = (Place::postgres(), Place::postgres(), Place::sled());
        source(&from).await;
        quiet(&from);
        let StoreUrl::Postgres(url) = &from.url else { panic!() };
        Cluster::shared().sql(
            url.secret(),
            "UPDATE tuition.entry SET payload = replace(payload, 'gpt', 'gpu') WHERE seq = 10",
        );
        for target in [&to, &folder] {
            let refused = copied(&from.url, &target.url).await.unwrap_err();
            assert_eq!(refused, "the source cannot be read on");
        }
        let url = to.url.clone();
        let left = tokio::task::spawn_blocking(move || read_entries(&url).map(Iterator::count));
        assert!(matches!(left.await.unwrap(), Ok(0)));
        assert!(matches!(read_entries(&folder.url), Err(OpenError::Absent(_))));
        // What an interrupted copy leaves is no store, and stands in nobody's way.
        let whole = Place::sled();
        source(&whole).await;
        let half = folder.url.folder().unwrap().with_extension("copying");
        assert!(half.join("journal").exists());
        copied(&whole.url, &folder.url).await.unwrap();
        assert!(!half.exists());
    }
}
