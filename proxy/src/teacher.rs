//! The HTTP teacher: sends what an order says, and judges what came back.
//!
//! Must not know budgets or the record. Invariants: the secret is never printed, and goes to the configured address only:
//! no redirect is followed, no proxy is taken from the environment, no path leads out of the base URL; nothing is retried
//! here; a failure is unbilled only where that is sure, and everything else may have been billed.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url};
use tuition_ledger::fault::{self, Stage};
use tuition_ledger::{Billing, Cause, Failure, Live, Order, Reply, Teacher};

use crate::dialect::openai::stream::{MEDIA as STREAM, Progress};
use crate::dialect::{Api, Operation, essence, sse};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle connections are closed before the shortest usual time after which servers close theirs (5 s): a request that
/// races with such an end would count as unknown.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// How long the end of a connection may take after the last event of a stream.
const TAIL_TIMEOUT: Duration = Duration::from_secs(1);
/// A teacher that asks for a longer wait is not asked again by itself.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// A shorter value of a header is not looked for in what a teacher says: it is no secret, and would be found by chance.
const SECRET_LENGTH_MIN: usize = 8;
/// What stands for a secret that a teacher repeated in an error.
const REDACTED: &[u8] = b"[secret]";
/// The most bytes of an answer that are read.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A value that is never printed.
#[derive(Clone)]
pub struct Secret(String);

/// How an HTTP teacher is reached.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    /// Its name in the configuration.
    pub name: String,
    /// The API that it speaks.
    pub api: Api,
    /// Its base URL, such as `https://api.example.com/v1`, or `http://127.0.0.1:8000` for Open Inference.
    pub url: String,
    /// Sent as `Authorization: Bearer`.
    pub secret: Option<Secret>,
    /// The proxy through which it is reached, such as `http://proxy.example.com:3128`; none: it is reached directly,
    /// whatever the environment says.
    pub proxy: Option<Secret>,
    /// Further headers, sent with every request.
    pub headers: Vec<(String, Secret)>,
    /// How long a whole answer may take.
    pub timeout: Duration,
    /// How often a surely unbilled failure is tried again.
    pub retries: u32,
    /// Further statuses that this teacher surely does not bill.
    pub unbilled: Vec<u16>,
    /// Whether the first axis of its tensors is a batch (`batch_axis = 0`), so that each row is an item.
    pub rows: bool,
    /// The most bytes of an answer that are read, such as [`ANSWER_BYTES_MAX`].
    pub answer_bytes_max: usize,
}

/// Settings that make no teacher.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Not an address.
    #[error("teacher `{teacher}`: `{url}` is no http or https URL")]
    Url {
        /// The teacher.
        teacher: String,
        /// The text.
        url: String,
    },
    /// A header that cannot be sent.
    #[error("teacher `{teacher}`: header `{header}` cannot be sent")]
    Header {
        /// The teacher.
        teacher: String,
        /// The header's name.
        header: String,
    },
    /// A proxy that is none. Its address may hold a password, and is not repeated.
    #[error("teacher `{teacher}`: `proxy` is no http or https URL")]
    Proxy {
        /// The teacher.
        teacher: String,
    },
    /// The client could not be made.
    #[error("teacher `{teacher}`: no HTTP client")]
    Client {
        /// The teacher.
        teacher: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
}

/// A teacher behind HTTP.
#[derive(Debug)]
pub struct HttpTeacher {
    settings: HttpSettings,
    base: Url,
    headers: HeaderMap,
    client: Client,
}

/// What a request that costs nothing brought.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) status: u16,
    pub(crate) media: String,
    pub(crate) body: Bytes,
}

impl Secret {
    /// Keeps `text` from being printed.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The value, for sending.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl HttpTeacher {
    /// A teacher with these settings; nothing is sent yet.
    ///
    /// # Errors
    /// A URL or a header that cannot be used.
    pub fn new(settings: HttpSettings) -> Result<Self, SettingsError> {
        let teacher = settings.name.clone();
        let url = Url::parse(&settings.url).ok().filter(|url| {
            matches!(url.scheme(), "http" | "https") && url.host_str().is_some() && url.query().is_none()
        });
        let Some(url) = url else {
            return Err(SettingsError::Url { teacher, url: settings.url });
        };
        let base = base_of(&url, settings.api);
        let mut headers = HeaderMap::new();
        let bearer = settings.secret.as_ref().map(|secret| format!("Bearer {}", secret.0));
        let bearer = bearer.map(|value| ("authorization".to_owned(), Secret(value)));
        for (name, Secret(value)) in bearer.iter().chain(&settings.headers) {
            let wrong = || SettingsError::Header { teacher: teacher.clone(), header: name.clone() };
            let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
            let mut value = HeaderValue::from_str(value).map_err(|_| wrong())?;
            value.set_sensitive(true);
            headers.insert(header, value);
        }
        install_cryptography();
        let mut client = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .no_proxy()
            .user_agent(concat!("tuition/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .tcp_nodelay(true);
        if let Some(Secret(proxy)) = &settings.proxy {
            let usable = Url::parse(proxy).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
            let proxy = reqwest::Proxy::all(proxy).ok().filter(|_| usable);
            client = client.proxy(proxy.ok_or_else(|| SettingsError::Proxy { teacher: teacher.clone() })?);
        }
        let client = client.build().map_err(|source| SettingsError::Client { teacher, source })?;
        Ok(Self { settings, base, headers, client })
    }

    /// The API that it speaks.
    pub fn api(&self) -> Api {
        self.settings.api
    }

    /// Whether each row of a tensor is an item.
    pub fn rows(&self) -> bool {
        self.settings.rows
    }

    /// What an Open Inference server says of a model: `/v2/models/M`, which costs nothing.
    ///
    /// # Errors
    /// No answer, or one with another status than 200.
    pub async fn metadata(&self, model: &str) -> Result<Bytes, Failure> {
        let fetched = self.fetch(&format!("/v2/models/{model}")).await?;
        if fetched.status == 200 {
            return Ok(fetched.body);
        }
        let billing = Billing::Unbilled { retry: false, after: None };
        let message =
            format!("answered with status {} when asked for the metadata of `{model}`", fetched.status);
        Err(Failure {
            status: Some(fetched.status),
            media: fetched.media,
            body: fetched.body,
            ..self.failure(Cause::Status(fetched.status), billing, message)
        })
    }

    /// Gets what costs nothing: model lists, metadata, readiness.
    pub(crate) async fn fetch(&self, path: &str) -> Result<Fetched, Failure> {
        let unsent =
            |why| self.failure(Cause::Abandoned, Billing::Unbilled { retry: false, after: None }, why);
        let url = self.address(path).map_err(unsent)?;
        let request = self.client.get(url).headers(self.headers.clone());
        let response =
            request.timeout(self.settings.timeout).send().await.map_err(|error| self.not_sent(&error))?;
        let (status, media) = (response.status().as_u16(), media_of(&response));
        let (body, end) = self.read(response).await;
        end?;
        Ok(Fetched { status, media, body })
    }

    /// The address of a path below the base URL. Parsing resolves `..`, also where it is spelled `%2e%2e`: a path that
    /// leads elsewhere is refused, since the secret would go there.
    fn address(&self, path: &str) -> Result<Url, String> {
        let elsewhere = || format!("`{path}` is no path below the teacher's URL");
        let base = self.base.as_str().trim_end_matches('/');
        let url = Url::parse(&format!("{base}{path}")).map_err(|_| elsewhere())?;
        let parts =
            |url: &Url| url.path().trim_matches('/').split('/').filter(|part| !part.is_empty()).count();
        let wanted = parts(&self.base) + path.split('/').filter(|part| !part.is_empty()).count();
        let below = url.as_str().starts_with(base) && parts(&url) == wanted;
        let plain = url.origin() == self.base.origin() && url.query().is_none() && url.fragment().is_none();
        if below && plain { Ok(url) } else { Err(elsewhere()) }
    }

    /// What a teacher said, without the secrets that it was told.
    fn redacted(&self, body: Bytes) -> Bytes {
        let settings = &self.settings;
        let secrets = settings.secret.iter().chain(settings.headers.iter().map(|(_, secret)| secret));
        let secrets = secrets.map(|secret| secret.expose().as_bytes());
        secrets.filter(|secret| secret.len() >= SECRET_LENGTH_MIN).fold(body, replaced)
    }

    fn failure(&self, cause: Cause, billing: Billing, message: String) -> Failure {
        let teacher = self.settings.name.clone();
        Failure { teacher, cause, message, billing, status: None, media: String::new(), body: Bytes::new() }
    }

    /// Judges a request that brought no status.
    fn not_sent(&self, error: &reqwest::Error) -> Failure {
        let why = describe(error);
        if error.is_connect() {
            let billing = Billing::Unbilled { retry: true, after: None };
            self.failure(Cause::NotConnected, billing, format!("no connection came about: {why}"))
        } else if error.is_builder() {
            let billing = Billing::Unbilled { retry: false, after: None };
            self.failure(Cause::Abandoned, billing, format!("the request could not be made: {why}"))
        } else if error.is_timeout() {
            self.failure(Cause::TimedOut, Billing::Unknown, "no answer within the time-out".into())
        } else {
            self.failure(Cause::BrokenOff, Billing::Unknown, format!("the connection broke off: {why}"))
        }
    }

    /// Reads a whole body; what came of it is there also where it is not complete.
    async fn read(&self, response: Response) -> (Bytes, Result<(), Failure>) {
        let mut chunks = response.bytes_stream();
        let mut body = BytesMut::new();
        while let Some(chunk) = chunks.next().await {
            if let Err(failure) = self.pass(Stage::ChunkIn).await {
                return (body.freeze(), Err(failure));
            }
            match chunk {
                Err(error) => return (body.freeze(), Err(self.not_sent(&error))),
                Ok(chunk) if body.len() + chunk.len() > self.settings.answer_bytes_max => {
                    return (body.freeze(), Err(self.too_large()));
                }
                Ok(chunk) => body.extend_from_slice(&chunk),
            }
        }
        (body.freeze(), Ok(()))
    }

    /// Passes a step at which a test may break the connection off.
    async fn pass(&self, stage: Stage) -> Result<(), Failure> {
        fault::point_in_task(stage).await.map_err(|error| self.broken(&error))
    }

    fn broken(&self, error: &std::io::Error) -> Failure {
        self.failure(Cause::BrokenOff, Billing::Unknown, format!("the connection broke off: {error}"))
    }

    fn too_large(&self) -> Failure {
        let message = format!("the answer is larger than {} bytes", self.settings.answer_bytes_max);
        self.failure(Cause::TooLarge, Billing::Unknown, message)
    }

    /// Judges a status that is no success (money rule 5).
    async fn refused(&self, response: Response) -> Failure {
        let (status, media) = (response.status(), media_of(&response));
        let after = retry_after(response.headers());
        let (body, _) = self.read(response).await;
        let body = self.redacted(body);
        let busy = matches!(status.as_u16(), 503 | 529) && self.settings.api.is_error(&body);
        let refused = status.is_client_error() && status != StatusCode::REQUEST_TIMEOUT;
        let listed = self.settings.unbilled.contains(&status.as_u16());
        let billing = if refused || busy || listed {
            let may_help = busy || status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
            match after {
                Wait::Unsaid => Billing::Unbilled { retry: may_help, after: None },
                Wait::For(wait) => Billing::Unbilled { retry: may_help, after: Some(wait) },
                Wait::TooLong => Billing::Unbilled { retry: false, after: None },
            }
        } else {
            Billing::Unknown
        };
        let message = match status.is_redirection() {
            true => format!(
                "answered with status {}, a redirect, which is not followed: the key goes to the configured `url` only",
                status.as_u16()
            ),
            false => format!("answered with status {}", status.as_u16()),
        };
        Failure {
            status: Some(status.as_u16()),
            media,
            body,
            ..self.failure(Cause::Status(status.as_u16()), billing, message)
        }
    }

    /// Reads a stream: shows its events as they come, and holds back the one that completes it and what follows.
    async fn follow(&self, response: Response, choices: u64, live: &Live) -> (Bytes, Result<(), Failure>) {
        let mut chunks = response.bytes_stream();
        let mut progress = Progress::new(choices);
        let mut body = BytesMut::new();
        let mut seen = 0;
        let end = loop {
            let next = if progress.is_done() {
                // The answer is complete: the rest only says whether the connection can be used again.
                tokio::time::timeout(TAIL_TIMEOUT, chunks.next()).await.unwrap_or(None)
            } else {
                chunks.next().await
            };
            if next.is_some()
                && let Err(failure) = self.pass(Stage::ChunkIn).await
            {
                break Err(failure);
            }
            match next {
                None => break Ok(()),
                Some(Err(error)) => break Err(self.not_sent(&error)),
                Some(Ok(chunk)) if body.len() + chunk.len() > self.settings.answer_bytes_max => {
                    break Err(self.too_large());
                }
                Some(Ok(chunk)) => body.extend_from_slice(&chunk),
            }
            let mut shown = seen;
            while let Some(length) = sse::end_of_event(&body[seen..]) {
                let before = progress.is_complete();
                progress.see(&body[seen..seen + length]);
                if progress.failed().is_some() {
                    break;
                }
                if progress.is_complete() && !before {
                    push(live, &body[shown..seen]);
                    shown = seen;
                }
                seen += length;
            }
            if progress.is_complete() {
                live.hold_back(Bytes::copy_from_slice(&body[shown..seen]));
            } else {
                push(live, &body[shown..seen]);
            }
            if progress.failed().is_some() {
                break Ok(());
            }
        };
        if end.is_ok() && seen < body.len() && progress.failed().is_none() {
            // A last event without its blank line.
            progress.see(&body[seen..]);
            if progress.is_complete() {
                live.hold_back(Bytes::copy_from_slice(&body[seen..]));
            }
        }
        let body = body.freeze();
        if progress.is_complete() {
            return (body, Ok(()));
        }
        let failure = match (progress.failed(), end) {
            (Some(why), _) => {
                let message = format!("the stream broke off with an error: {why}");
                self.failure(Cause::Malformed, Billing::Unknown, message)
            }
            (None, Err(failure)) => failure,
            (None, Ok(())) => {
                let message = "the stream ended before its answer was complete".into();
                self.failure(Cause::BrokenOff, Billing::Unknown, message)
            }
        };
        (body, Err(failure))
    }
}

#[async_trait]
impl Teacher for HttpTeacher {
    fn name(&self) -> &str {
        &self.settings.name
    }

    fn timeout(&self) -> Duration {
        self.settings.timeout
    }

    fn retries(&self) -> u32 {
        self.settings.retries
    }

    async fn ask(&self, order: &Arc<Order>, led: &[usize], live: &Live) -> Result<Reply, Failure> {
        let unsent = |why: String| {
            self.failure(Cause::Abandoned, Billing::Unbilled { retry: false, after: None }, why)
        };
        let operation = Operation::of(order).ok_or_else(|| {
            unsent(format!("it is not asked `{}` of `{}` over HTTP", order.operation, order.dialect))
        })?;
        let body = if led.len() == order.items.len() {
            order.forward.body.clone()
        } else {
            operation.narrow(order, led).map_err(|error| unsent(error.to_string()))?
        };
        let mut headers = self.headers.clone();
        for (name, value) in &order.forward.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|error| unsent(error.to_string()))?;
            let value = HeaderValue::from_str(value).map_err(|error| unsent(error.to_string()))?;
            // What the configuration says goes before what a client says.
            if name != AUTHORIZATION && !headers.contains_key(&name) {
                headers.insert(name, value);
            }
        }
        let request = self.client.post(self.address(&order.forward.path).map_err(unsent)?);
        let request = request.headers(headers).body(body);
        let response = fault::point_while(Stage::BytesSent, request.send()).await;
        let response = response.map_err(|error| self.broken(&error))?;
        let response = response.map_err(|error| self.not_sent(&error))?;
        self.pass(Stage::HeadersIn).await?;
        if !response.status().is_success() {
            return Err(self.refused(response).await);
        }
        let (status, media) = (response.status().as_u16(), media_of(&response));
        let (body, end) = if operation == Operation::Chat && essence(&media) == STREAM {
            self.follow(response, order.choices, live).await
        } else {
            self.read(response).await
        };
        let evidence = |failure| {
            let body = self.redacted(body.clone());
            Failure { status: Some(status), media: media.clone(), body, ..failure }
        };
        end.map_err(evidence)?;
        self.pass(Stage::BodyComplete).await.map_err(evidence)?;
        operation
            .reply(led.len(), self.settings.rows, &media, body.clone())
            .map_err(|error| evidence(self.failure(Cause::Malformed, Billing::Unknown, error.to_string())))
    }
}

/// Makes HTTPS possible.
pub(crate) fn install_cryptography() {
    // Fails where another part of the program installed a provider: that one serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn push(live: &Live, bytes: &[u8]) {
    if !bytes.is_empty() {
        live.push(Bytes::copy_from_slice(bytes));
    }
}

/// What paths are put behind; Open Inference paths bring their own `/v2`.
fn base_of(url: &Url, api: Api) -> Url {
    let mut base = url.clone();
    let path = url.path().trim_end_matches('/');
    base.set_path(match api {
        Api::OpenInference => path.strip_suffix("/v2").unwrap_or(path),
        Api::OpenAi => path,
    });
    base
}

/// `body` with [`REDACTED`] in the place of each `secret`.
fn replaced(body: Bytes, secret: &[u8]) -> Bytes {
    let find = |from: usize| body[from..].windows(secret.len()).position(|part| part == secret);
    let Some(mut found) = find(0) else { return body };
    let (mut out, mut from) = (BytesMut::new(), 0);
    loop {
        out.extend_from_slice(&body[from..from + found]);
        out.extend_from_slice(REDACTED);
        from += found + secret.len();
        match find(from) {
            Some(next) => found = next,
            None => break,
        }
    }
    out.extend_from_slice(&body[from..]);
    out.freeze()
}

fn media_of(response: &Response) -> String {
    let media = response.headers().get(CONTENT_TYPE).and_then(|media| media.to_str().ok());
    media.unwrap_or_default().to_owned()
}

/// How long a teacher asks to be left alone.
enum Wait {
    Unsaid,
    For(Duration),
    TooLong,
}

/// Reads `retry-after-ms` and `retry-after`; a date counts as too long, since no clock is read here.
fn retry_after(headers: &HeaderMap) -> Wait {
    let value = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let milliseconds = value(&HeaderName::from_static("retry-after-ms"));
    let wait = match milliseconds.and_then(|text| text.trim().parse::<u64>().ok()) {
        Some(milliseconds) => Some(Duration::from_millis(milliseconds)),
        None => match value(&RETRY_AFTER) {
            None => return Wait::Unsaid,
            Some(text) => text.trim().parse::<u64>().ok().map(Duration::from_secs),
        },
    };
    wait.filter(|wait| *wait <= RETRY_AFTER_MAX).map_or(Wait::TooLong, Wait::For)
}

/// An error and its causes; without the URL, whose parts may be secret.
fn describe(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&error.to_string());
        cause = error.source();
    }
    if text.is_empty() { "no cause is known".into() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn teacher(api: Api, url: &str) -> HttpTeacher {
        HttpTeacher::new(HttpSettings {
            name: "t".into(),
            api,
            url: url.into(),
            secret: Some(Secret::new("sk-of-the-teacher")),
            proxy: Some(Secret::new("http://user:of-the-proxy@127.0.0.1:9")),
            headers: vec![
                ("x-more".into(), Secret::new("of-the-header")),
                ("x-short".into(), Secret::new("a")),
            ],
            timeout: Duration::from_secs(1),
            retries: 0,
            unbilled: vec![],
            rows: false,
            answer_bytes_max: 1 << 20,
        })
        .unwrap()
    }

    #[test]
    fn a_path_stays_below_the_base_url() {
        #[track_caller]
        fn check(api: Api, base: &str, path: &str, expected: Option<&str>) {
            let found = teacher(api, base).address(path).ok().map(String::from);
            assert_eq!(found.as_deref(), expected, "{base} {path}");
        }
        let base = "https://api.example.com/v1/";
        check(Api::OpenAi, base, "/chat/completions", Some("https://api.example.com/v1/chat/completions"));
        check(Api::OpenAi, base, "/models/a%2Fb", Some("https://api.example.com/v1/models/a%2Fb"));
        check(Api::OpenAi, base, "/models/org/m", Some("https://api.example.com/v1/models/org/m"));
        check(Api::OpenAi, "https://api.example.com", "/models", Some("https://api.example.com/models"));
        for path in [
            "/models/../files",
            "/models/%2e%2e/%2E%2e/admin",
            "/models/..",
            "/models/%2e/x",
            "/models/.%2e/files",
        ] {
            check(Api::OpenAi, base, path, None);
        }
        check(Api::OpenAi, base, "/models/a\\..\\..\\b", None);
        check(Api::OpenAi, base, "/models/m?limit=1", None);
        check(Api::OpenAi, "https://api.example.com", "@evil.example/models", None);
        let v2 = Some("http://localhost:8000/v2/models/m/infer");
        check(Api::OpenInference, "http://localhost:8000/v2/", "/v2/models/m/infer", v2);
        check(Api::OpenInference, "http://localhost:8000", "/v2/models/%2e%2e/infer", None);
    }

    #[test]
    fn no_secret_is_printed_or_repeated() {
        let teacher = teacher(Api::OpenAi, "http://localhost:1/v1");
        let printed = format!("{teacher:?}");
        for secret in ["sk-of-the-teacher", "of-the-proxy", "of-the-header"] {
            assert!(!printed.contains(secret), "{printed}");
        }
        #[track_caller]
        fn check(teacher: &HttpTeacher, said: &'static str, expected: &str) {
            assert_eq!(teacher.redacted(said.into()), expected);
        }
        check(&teacher, "wrong key sk-of-the-teacher!", "wrong key [secret]!");
        check(&teacher, "of-the-headersk-of-the-teachersk-of-the-teacher", "[secret][secret][secret]");
        check(&teacher, "a plain answer", "a plain answer");
        let lost = HttpSettings { proxy: Some(Secret::new("sk-no-proxy")), ..teacher.settings.clone() };
        let error = HttpTeacher::new(lost).unwrap_err().to_string();
        assert_eq!(error, "teacher `t`: `proxy` is no http or https URL");
    }
}
