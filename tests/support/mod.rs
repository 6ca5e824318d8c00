//! What the end-to-end tests stand on: the built command, a scripted teacher, and clients nobody here wrote.
//! Knows the pinned outside (files, HTTP, JSON); must not call into the rooms.
//! Invariant: whatever is started here ends with the test.

mod answer;
mod client;
mod cluster;
mod forger;
mod model;
mod python;
mod server;
mod statement;
mod upstream;

pub(crate) use answer::{content, read};
pub(crate) use client::{Client, Reply};
pub(crate) use cluster::Cluster;
pub(crate) use forger::{Frame, Journal};
pub(crate) use model::linear_model;
pub(crate) use python::Python;
pub(crate) use server::{STAGES, TestServer, tuition};
pub(crate) use statement::Statement;
pub(crate) use upstream::{Bill, Upstream, vector};

/// The price of the scripted teacher's model, as a table of tuition.toml.
pub(crate) fn price() -> String {
    let (input, cached, output) = (upstream::INPUT, upstream::CACHED, upstream::OUTPUT);
    format!(
        "[[price]]\nmodel = \"scripted\"\nfrom = \"2026-01-01\"\ninput = \"{input}\"\ncached_input = \"{cached}\"\n\
         output = \"{output}\"\nrequest = \"0\"\nmax_input_tokens = 4096\nmax_output_tokens = 256\n"
    )
}

/// The scripted teacher as a table of tuition.toml. The secret is named by a variable that the servers here are given.
pub(crate) fn teacher(upstream: &Upstream, more: &str) -> String {
    let url = upstream.url();
    format!(
        "[[teacher]]\nname = \"scripted\"\napi = \"openai\"\nurl = \"{url}/v1\"\nkey_env = \"{}\"\nrevision = \"1\"\n{more}\n",
        server::SECRET.0
    )
}
