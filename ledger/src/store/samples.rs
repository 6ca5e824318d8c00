//! Questions and answers for the tests of stores.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::{Clock, Settlement};
use crate::answer::{Answer, Floats, Position, Signal, TokenLogProbability, Usage};
use crate::book::Claim;
use crate::budget::{Budget, Limit, Scope, Who, Window};
use crate::entry::{Exchange, HeldItem};
use crate::price::{Price, Quote};
use crate::query::{Query, QueryKey};
use crate::tensor::{Elements, Tensor};
use crate::time::Timestamp;

/// A clock that goes on by a millisecond each time it is read.
pub(crate) fn clock() -> Clock {
    let now = AtomicU64::new(1_795_374_245_000);
    Arc::new(move || Timestamp(now.fetch_add(1, Ordering::Relaxed)))
}

/// The input of item `name`.
pub(crate) fn input(name: &str) -> String {
    format!("{{\"messages\":[{{\"content\":\"{name}\",\"role\":\"user\"}}],\"model\":\"m\"}}")
}

/// The key of item `name`.
pub(crate) fn key(name: &str) -> QueryKey {
    let query = Query {
        dialect: "openai".into(),
        operation: "chat.completions".into(),
        teacher: "gpt".into(),
        revision: "1".into(),
        sample: 0,
        headers: BTreeMap::new(),
        input: input(name),
    };
    query.key()
}

/// A claim for `names`, one call each.
pub(crate) fn claim(names: &[&str]) -> Claim {
    let items = names.iter().map(|name| HeldItem { key: key(name), sample: 0, calls: 1 }).collect();
    let exchange = Exchange {
        who: Who { teacher: "gpt".into(), run: Some("r".into()), key: None },
        dialect: "openai".into(),
        operation: "chat.completions".into(),
        revision: "1".into(),
        model: "m".into(),
        headers: BTreeMap::new(),
        items,
        refresh: false,
    };
    let quote = Quote {
        calls: names.len() as u64,
        tokens: Ok(100),
        usd: Ok("0.5".parse().unwrap()),
        price: Some(price().digest()),
        metered: true,
    };
    Claim { exchange, quote, unbudgeted: false }
}

/// The answer to `names`; one signal of each kind, with numbers that text would not keep.
pub(crate) fn settlement(names: &[&str]) -> Settlement {
    let answer = |name: &str| {
        let token =
            |token: &str, log_probability| TokenLogProbability { token: token.into(), log_probability };
        Answer {
            body: Bytes::from(format!("{{\"answer\":\"{name} {}\"}}", "lorem ipsum ".repeat(20))),
            signals: vec![
                Signal::Text { choice: 0, text: name.into(), finish: Some("stop".into()) },
                Signal::LogProbabilities {
                    choice: 0,
                    positions: vec![Position {
                        taken: token("a", -0.1),
                        top: vec![token("a", -0.1), token("b", f64::NEG_INFINITY)],
                    }],
                },
                Signal::Embedding(Floats(vec![0.1, -0.0, 1e-45])),
                Signal::Tensor(Tensor {
                    name: "logits".into(),
                    shape: vec![1, 2],
                    elements: Elements::F64(vec![0.1 + 0.2, f64::INFINITY]),
                }),
            ],
        }
    };
    Settlement {
        usage: Some(Usage { input: 7, output: 3, ..Usage::default() }),
        media: "application/json".into(),
        envelope: Bytes::from_static(b"{\"model\":\"m\"}"),
        items: names.iter().map(|name| (input(name), answer(name))).collect(),
    }
}

/// A limit of calls on the whole store.
pub(crate) fn calls(calls: u64) -> Budget {
    Budget {
        name: "all".into(),
        scope: Scope::default(),
        limit: Limit { calls: Some(calls), ..Limit::default() },
        window: Window::Forever,
    }
}

/// The price that claims name.
pub(crate) fn price() -> Price {
    Price {
        model: "m".into(),
        from: "2026-01-01".parse().unwrap(),
        input: "0.40".parse().unwrap(),
        cached_input: None,
        cache_write: None,
        output: "1.60".parse().unwrap(),
        reasoning: None,
        request: "0.001".parse().unwrap(),
        max_input_tokens: None,
        max_output_tokens: Some(100),
    }
}
