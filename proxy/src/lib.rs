//! HTTP in front, HTTP teachers behind: the proxy that spends within a budget and keeps every answer.
//!
//! Knows no ONNX and no student. Modules stand in the order in which data flows; each uses only those above it.

pub mod dialect;
pub mod teacher;
pub mod route;
pub mod access;
pub(crate) mod problem;
pub(crate) mod order;
pub(crate) mod alert;
pub(crate) mod metrics;
pub(crate) mod front;
pub(crate) mod receipt;
pub(crate) mod relay;
pub(crate) mod handle;
pub(crate) mod dashboard;
pub(crate) mod connection;
pub mod server;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;

pub use access::{ClientKey, KeyError, Pins};
pub use dialect::Api;
pub use front::{Limits, Proxy, Share, StatementSource};
pub use route::Route;
pub use server::{ServeError, run};
pub use teacher::{HttpSettings, HttpTeacher, Secret, SettingsError};

#[cfg(test)]
mod tests;
