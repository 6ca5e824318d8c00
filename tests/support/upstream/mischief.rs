//! What a question may ask the teacher to do wrong, by words in square brackets.
//! Knows the words; must not know the API that carries them.
//! Invariant: a question without such a word is answered well.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use std::time::Duration;

#[derive(Debug, Default)]
pub(crate) struct Mischief {
    /// `[stall]`: begins, charges, and never answers.
    pub(crate) stall: bool,
    /// `[cut]`: half of the body, then the connection is reset.
    pub(crate) cut: bool,
    /// `[500]`: charges, then fails.
    pub(crate) fail: bool,
    /// `[gate]`: answers only when the test opens the gate.
    pub(crate) gate: bool,
    /// `[slow N]`: the answer takes N milliseconds, spread over its bytes.
    pub(crate) slow: Duration,
    /// `[503 once]`, `[429 once]` (with Retry-After of one second), `[503]`, `[400]`: refused, not charged.
    refuse: Option<(StatusCode, bool)>,
}

pub(crate) enum Verdict {
    Answer,
    Refuse(StatusCode, HeaderMap),
}

impl Mischief {
    pub(crate) fn asked_for(question: &str) -> Mischief {
        let has = |word: &str| question.contains(word);
        let slow = question.split_once("[slow ").and_then(|(_, rest)| rest.split_once(']'));
        let slow = slow.and_then(|(number, _)| number.parse().ok()).unwrap_or(0);
        let refusals = [
            ("[503 once]", StatusCode::SERVICE_UNAVAILABLE, true),
            ("[429 once]", StatusCode::TOO_MANY_REQUESTS, true),
            ("[503]", StatusCode::SERVICE_UNAVAILABLE, false),
            ("[400]", StatusCode::BAD_REQUEST, false),
        ];
        Mischief {
            stall: has("[stall]"),
            cut: has("[cut]"),
            fail: has("[500]"),
            gate: has("[gate]"),
            slow: Duration::from_millis(slow),
            refuse: refusals.into_iter().find(|(word, ..)| has(word)).map(|(_, status, once)| (status, once)),
        }
    }

    /// `first`: whether this very question arrives for the first time.
    pub(crate) fn verdict(&self, first: bool) -> Verdict {
        let mut headers = HeaderMap::new();
        match self.refuse {
            Some((_, true)) if !first => Verdict::Answer,
            Some((status, _)) => {
                if status == StatusCode::TOO_MANY_REQUESTS {
                    headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
                }
                Verdict::Refuse(status, headers)
            }
            None => Verdict::Answer,
        }
    }
}
