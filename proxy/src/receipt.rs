//! What a reply's headers say about how it came about.
//!
//! Must not know how it was asked. Invariant: the calls are those bought for this request, never those of others.

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response};
use tuition_ledger::{Outcome, QueryKey, Served, Usd};

use crate::dialect::Rendered;

/// How a reply came about.
pub(crate) struct Receipt {
    pub(crate) outcome: &'static str,
    pub(crate) calls: u64,
    /// Of one item.
    pub(crate) key: Option<QueryKey>,
    pub(crate) cost: Option<Usd>,
}

/// The header's word for an outcome.
pub(crate) fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Bought => "bought",
        Outcome::Known => "known",
        Outcome::Followed => "followed",
    }
}

impl Receipt {
    pub(crate) fn of(served: &Served) -> Self {
        let mut words = served.items.iter().map(|item| word(item.outcome));
        let first = words.next().unwrap_or("known");
        let outcome = if words.all(|word| word == first) { first } else { "mixed" };
        let key = match served.items.as_slice() {
            [item] => Some(item.record.key),
            _ => None,
        };
        Self { outcome, calls: served.bought, key, cost: served.cost }
    }

    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        let mut set = |name: &'static str, value: HeaderValue| {
            headers.insert(HeaderName::from_static(name), value);
        };
        let text = |text: &str| HeaderValue::from_str(text).expect("digits and points are header text");
        set("x-tuition-outcome", HeaderValue::from_static(self.outcome));
        set("x-tuition-calls", HeaderValue::from(self.calls));
        if let Some(key) = self.key {
            set("x-tuition-key", text(&key.to_string()));
        }
        if let Some(cost) = self.cost {
            set("x-tuition-cost-usd", text(&cost.to_string()));
        }
    }

    pub(crate) fn response(&self, rendered: Rendered) -> Response<Body> {
        let mut response = Response::new(Body::from(rendered.body));
        let media = HeaderValue::from_str(&rendered.media);
        let media = media.unwrap_or_else(|_| HeaderValue::from_static("application/json"));
        response.headers_mut().insert(CONTENT_TYPE, media);
        self.write(response.headers_mut());
        response
    }
}
