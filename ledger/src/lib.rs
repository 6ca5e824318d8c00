//! What was asked of expensive teachers, what it cost, what was answered, and who may still ask.
//!
//! No HTTP, no tensors of a trainer. Modules stand in the order in which data flows; each uses only those above it.

mod exact;
pub mod money;
pub mod time;
pub mod json;
pub mod tensor;
pub mod query;
pub mod answer;
pub mod price;
pub mod budget;
pub mod entry;
pub mod fault;
pub mod book;
pub mod journal;
pub mod statement;
pub mod seal;
pub mod store;
pub mod desk;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;

pub use answer::{Answer, Floats, Record, Signal, Usage};
pub use book::{Book, BookError, Claim, NotReserved, OpenHold, Present};
pub use budget::{Budget, Limit, Refusal, Scope, Standing, Unit, Who, Window};
pub use desk::live::{Ending, Live, LiveReader, Step};
pub use desk::order::{Forward, Item, Mode, Order};
pub use desk::teacher::{Billing, Failure, Reply, Teacher};
pub use desk::{Bounds, Desk, DeskError, Outcome, Served, ServedItem, Settings, Streamed};
pub use entry::{Cause, Entry, Exchange, Fact, HeldItem, HoldId, Origin, SettledItem, Tally};
pub use journal::{Blob, Fault, JournalError};
pub use json::{Json, JsonError};
pub use money::{Amount, Usd};
pub use price::{Bound, Fee, InputBound, OutputBound, Price, PriceBook, PriceDigest, Quote, Unbounded};
pub use query::{Query, QueryKey};
pub use seal::{Seal, SealError, SealKey, SealKeyError, SealedHead};
pub use statement::{Bought, By, Discrepancy, Gap, OpenCall, Overrun, Statement, View, WholeCall};
pub use store::copy::{Copied, CopyError, copy_store};
pub use store::embedded::{
    Backup, Damage, Embedded, Filling, Later, OpenError, Opened, Owner, Recovery, Repaired, backup, examine,
    repair,
};
pub use store::erasures::Erasures;
pub use store::open::{OpenStore, open_store};
pub use store::postgres::{LogFault, OpenedPostgres, Postgres, Replica};
pub use store::read::{
    Asked, Entries, Head, ReadEntry, ReadError, Recorded, Records, Settled, Survey, read_entries, records,
    records_of_run, survey_entries,
};
pub use store::socket::Remote;
pub use store::url::{DatabaseUrl, StoreUrl, StoreUrlError};
pub use store::{Clock, Doubt, Reservation, ReserveError, Settlement, Store, StoreError};
pub use tensor::{Elements, Row, Tensor, TensorError};
pub use time::{Day, Timestamp};
