//! What a client is told instead of an answer, in its own API's shape.
//!
//! Must not know how a request is handled. Invariants: what a retry cannot help or would pay for twice says so
//! (`x-should-retry: false`); money spent is 402, never 429; the teacher's own refusal reaches the client as it came.

use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, Response, StatusCode};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use tuition_ledger::{
    Billing, Cause, DeskError, Failure, Mode, Quote, Refusal, StoreError, Unbounded, Unit, Usd,
};

use crate::access::NotAllowed;
use crate::dialect::openai::stream::MEDIA as STREAM;
use crate::dialect::{Api, BadRequest, Unreadable, essence};

/// Tells SDKs whether to try again.
pub(crate) const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// How much of a teacher's body that is no JSON is quoted.
const QUOTED_BYTES_MAX: usize = 4096;

/// Why a request has no answer.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    code: &'static str,
    message: String,
    param: Option<String>,
    details: Map<String, Value>,
    never_retry: bool,
    retry_after_s: Option<u64>,
    /// The teacher's own words, passed on in place of ours.
    passed_on: Option<Box<(String, Bytes)>>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            param: None,
            details: Map::new(),
            never_retry: false,
            retry_after_s: None,
            passed_on: None,
        }
    }

    pub(crate) fn bad_header(name: &'static str, expected: &str) -> Self {
        let message = format!("header `{name}` is not {expected}");
        Self { param: Some(name.into()), ..Self::new(StatusCode::BAD_REQUEST, "bad_request", message) }
    }

    pub(crate) fn too_large(limit: usize) -> Self {
        let message = format!("the request's body is larger than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
    }

    pub(crate) fn url_too_long(limit: usize) -> Self {
        let message = format!("the request's URL is longer than {limit} bytes");
        Self::new(StatusCode::URI_TOO_LONG, "url_too_long", message)
    }

    pub(crate) fn headers_too_large(count: usize, bytes: usize) -> Self {
        let message =
            format!("the request has more than {count} headers, or more than {bytes} bytes of them");
        Self::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", message)
    }

    pub(crate) fn too_slow(wait: Duration) -> Self {
        let message = format!("nothing of the request's body came for {} s", wait.as_secs_f64());
        Self::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message)
    }

    pub(crate) fn unknown_model(message: String) -> Self {
        let param = Some("model".into());
        Self { param, ..Self::new(StatusCode::NOT_FOUND, "model_not_found", message) }
    }

    pub(crate) fn unauthorized() -> Self {
        let message = "no known client key: send one as `Authorization: Bearer KEY` or `x-api-key: KEY`";
        Self::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    pub(crate) fn not_allowed(why: &NotAllowed) -> Self {
        Self { never_retry: true, ..Self::new(StatusCode::FORBIDDEN, "key_not_allowed", why.to_string()) }
    }

    pub(crate) fn mode_not_allowed(server: Mode, asked: Mode) -> Self {
        let name = |mode| match mode {
            Mode::Record => "record",
            Mode::Replay => "replay",
            Mode::Refresh => "refresh",
        };
        let message = format!(
            "`x-tuition-mode: {}` is not stricter than the server's mode, `{}`: record reuses and buys, replay buys nothing, refresh reuses nothing, and a header may only take one of the two away",
            name(asked),
            name(server)
        );
        Self::new(StatusCode::FORBIDDEN, "mode_not_allowed", message)
    }

    pub(crate) fn busy() -> Self {
        let message = "too many requests are under way";
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message);
        Self { retry_after_s: Some(1), ..problem }
    }

    pub(crate) fn draining() -> Self {
        let message = "closing: no new calls are taken";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "draining", message)
    }

    pub(crate) fn code(&self) -> &'static str {
        self.code
    }

    fn with(mut self, name: &str, value: Value) -> Self {
        self.details.insert(name.to_owned(), value);
        self
    }

    /// The error in the API's own shape.
    pub(crate) fn body(&self, api: Api) -> Value {
        let kind = match self.status.as_u16() {
            401 | 403 => "authentication_error",
            402 => "insufficient_quota",
            400..=499 => "invalid_request_error",
            _ => "api_error",
        };
        let mut error = self.details.clone();
        error.insert("code".into(), self.code.into());
        match api {
            Api::OpenAi => {
                error.insert("message".into(), self.message.clone().into());
                error.insert("type".into(), kind.into());
                error.insert("param".into(), self.param.clone().into());
                json!({ "error": error })
            }
            Api::OpenInference => {
                error.insert("error".into(), self.message.clone().into());
                Value::Object(error)
            }
        }
    }

    /// The reply.
    pub(crate) fn render(self, api: Api) -> Response<Body> {
        let (media, body) = match &self.passed_on {
            Some(own) => (own.0.clone(), own.1.clone()),
            None => ("application/json".to_owned(), self.body(api).to_string().into()),
        };
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        if let Ok(media) = HeaderValue::from_str(&media)
            && !media.is_empty()
        {
            headers.insert(CONTENT_TYPE, media);
        }
        if self.never_retry {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<BadRequest> for Problem {
    fn from(error: BadRequest) -> Self {
        let param = error.field().map(str::to_owned);
        Self { param, ..Self::new(StatusCode::BAD_REQUEST, "bad_request", error.to_string()) }
    }
}

impl From<Unreadable> for Problem {
    fn from(error: Unreadable) -> Self {
        let problem = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "unreadable_record", error.to_string());
        Self { never_retry: true, ..problem }
    }
}

impl From<DeskError> for Problem {
    fn from(error: DeskError) -> Self {
        let message = error.to_string();
        match error {
            DeskError::Refused(refusal) => refused(&refusal, message),
            DeskError::NotRecorded { keys, quote } => {
                let keys: Vec<Value> = keys.iter().map(|key| key.to_string().into()).collect();
                let message = format!("{message}; asking would hold {}", words(&quote));
                let problem = Self::new(StatusCode::CONFLICT, "not_recorded", message);
                let problem = Self { never_retry: true, ..problem };
                let problem = match keys.as_slice() {
                    [key] => problem.with("key", key.clone()),
                    _ => problem,
                };
                problem.with("keys", keys.into()).with("quote", figures(&quote))
            }
            DeskError::Teacher(failure) => failed(failure, message),
            DeskError::CircuitOpen { wait_s, .. } => {
                let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "circuit_open", message);
                Self { retry_after_s: Some(wait_s), ..problem }
            }
            DeskError::Store(error) => {
                let (status, code) = match error {
                    StoreError::Unwritable(_) => (StatusCode::SERVICE_UNAVAILABLE, "store_unwritable"),
                    StoreError::Unreadable(_) => (StatusCode::SERVICE_UNAVAILABLE, "store_unreadable"),
                    StoreError::Gone(_) => (StatusCode::SERVICE_UNAVAILABLE, "store_gone"),
                    StoreError::Contradiction(_) => {
                        (StatusCode::INTERNAL_SERVER_ERROR, "store_contradiction")
                    }
                };
                // It may have failed after the teacher was asked.
                Self { never_retry: true, ..Self::new(status, code, message) }
            }
            DeskError::Busy { .. } => {
                let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message);
                Self { retry_after_s: Some(1), ..problem }
            }
            DeskError::Draining => Self::draining(),
        }
    }
}

fn refused(refusal: &Refusal, message: String) -> Problem {
    let code = match refusal {
        Refusal::Exhausted { .. } => "budget_exhausted",
        Refusal::Unbounded { .. } => "unbounded_cost",
        Refusal::NoBudget { .. } => "no_budget",
    };
    let problem = Problem::new(StatusCode::PAYMENT_REQUIRED, code, message);
    let problem = Problem { never_retry: true, ..problem };
    match refusal {
        Refusal::Exhausted { budget, unit, limit, settled, reserved, unknown, needed, window } => {
            let figure = |figure: &u64| match unit {
                Unit::Usd => Usd::from_nanos(*figure).to_string().into(),
                Unit::Calls | Unit::Tokens => Value::from(*figure),
            };
            problem
                .with("budget", budget.as_str().into())
                .with("unit", unit_name(*unit).into())
                .with("limit", figure(limit))
                .with("settled", figure(settled))
                .with("reserved", figure(reserved))
                .with("unknown", figure(unknown))
                .with("needed", figure(needed))
                .with("window", window.name().into())
        }
        Refusal::Unbounded { budget, unit, .. } => {
            problem.with("budget", budget.as_str().into()).with("unit", unit_name(*unit).into())
        }
        Refusal::NoBudget { .. } => problem,
    }
}

/// A unit's name in the statement's JSON.
pub(crate) fn unit_name(unit: Unit) -> &'static str {
    match unit {
        Unit::Calls => "calls",
        Unit::Tokens => "tokens",
        Unit::Usd => "usd",
    }
}

fn failed(failure: Failure, message: String) -> Problem {
    let unknown = failure.billing == Billing::Unknown;
    let timed_out = failure.cause == Cause::TimedOut;
    let own_refusal = !unknown && failure.status.is_some_and(|status| (400..500).contains(&status));
    let (status, code) = match failure.status {
        Some(status) if own_refusal => {
            (StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY), "teacher_refused")
        }
        _ if timed_out => (StatusCode::GATEWAY_TIMEOUT, "teacher_timed_out"),
        _ => (StatusCode::BAD_GATEWAY, "teacher_failed"),
    };
    let mut problem = Problem::new(status, code, message);
    problem.never_retry = unknown;
    if let Billing::Unbilled { after: Some(after), .. } = failure.billing {
        problem.retry_after_s = Some(after.as_secs().max(1));
    }
    problem = problem.with("teacher", failure.teacher.into());
    if let Some(status) = failure.status {
        problem = problem.with("teacher_status", status.into());
    }
    let is_json = serde_json::from_slice::<&serde_json::value::RawValue>(&failure.body).is_ok();
    let complete = matches!(failure.cause, Cause::Status(_));
    if complete && (own_refusal || is_json) && !failure.body.is_empty() {
        problem.passed_on = Some(Box::new((failure.media, failure.body)));
    } else if !failure.body.is_empty() && essence(&failure.media) != STREAM {
        let quoted = &failure.body[..failure.body.len().min(QUOTED_BYTES_MAX)];
        problem = problem.with("teacher_body", String::from_utf8_lossy(quoted).into());
    }
    problem
}

fn words(quote: &Quote) -> String {
    let calls = format!("{} calls", quote.calls);
    match &quote.usd {
        Ok(usd) => format!("{calls}, {usd} dollars"),
        Err(Unbounded::NoPrice(_)) => calls,
        Err(why) => format!("{calls} ({why})"),
    }
}

fn figures(quote: &Quote) -> Value {
    json!({
        "calls": quote.calls,
        "tokens": quote.tokens.as_ref().ok(),
        "usd": quote.usd.as_ref().ok().map(ToString::to_string),
    })
}
