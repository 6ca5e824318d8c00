//! The one binary of end-to-end tests: the built command, driven from outside.
//! Each module says in its first lines what it needs; `cargo xtask test` installs that.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the server said")]

mod audit;
mod backup;
mod bad_input;
mod classroom;
mod demo;
mod documents;
mod expedition;
mod export;
mod house;
mod interrupt;
mod kill;
mod loop_closed;
mod matrix;
mod money;
mod race;
mod reconcile;
mod replicas;
mod sdk;
mod seal;
mod security;
mod store;
mod support;
mod sweep;
mod tables;
