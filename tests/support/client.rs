//! A plain HTTP client for the bytes that an SDK would not send.
//! Knows HTTP; must not retry, follow or interpret.
//! Invariant: one call here is one request on the wire.

use super::Statement;
use serde_json::Value;
use std::sync::Once;
use std::time::{Duration, Instant};

const READY_TIMEOUT: Duration = Duration::from_secs(120);
const READY_PAUSE: Duration = Duration::from_millis(50);

#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
    headers: Vec<(String, String)>,
}

/// A whole reply.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: String,
}

impl Client {
    pub(crate) fn new(url: &str) -> Client {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            rustls::crypto::ring::default_provider().install_default().expect("nobody installed another");
        });
        Client { http: reqwest::Client::new(), url: url.to_owned(), headers: Vec::new() }
    }

    /// The same client, with one more header in each request.
    pub(crate) fn with(&self, name: &str, value: &str) -> Client {
        let mut client = self.clone();
        client.headers.push((name.to_owned(), value.to_owned()));
        client
    }

    /// Posts JSON and reads the reply to its end.
    pub(crate) async fn post(&self, path: &str, body: impl Into<String>) -> Result<Reply, reqwest::Error> {
        read(self.send(path, body).await?).await
    }

    /// Posts JSON and gives the reply as soon as its head is there.
    pub(crate) async fn send(
        &self,
        path: &str,
        body: impl Into<String>,
    ) -> Result<reqwest::Response, reqwest::Error> {
        let mut request = self.http.post(format!("{}{path}", self.url));
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.header("content-type", "application/json").body(body.into()).send().await
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Reply, reqwest::Error> {
        read(self.http.get(format!("{}{path}", self.url)).send().await?).await
    }

    /// Gets a page with the headers of this client.
    pub(crate) async fn get_with(&self, path: &str) -> Result<Reply, reqwest::Error> {
        let request = self.http.get(format!("{}{path}", self.url));
        let request = self.headers.iter().fold(request, |request, (name, value)| request.header(name, value));
        read(request.send().await?).await
    }

    /// Asks until the answer is 200: another program's start, which nothing announces.
    pub(crate) async fn until_ready(&self, path: &str) {
        let start = Instant::now();
        while self.get(path).await.map_or(0, |reply| reply.status) != 200 {
            assert!(start.elapsed() < READY_TIMEOUT, "{}{path} did not get ready", self.url);
            tokio::time::sleep(READY_PAUSE).await;
        }
    }

    pub(crate) async fn statement(&self) -> Statement {
        Statement(self.get("/api/statement").await.unwrap().json())
    }
}

async fn read(response: reqwest::Response) -> Result<Reply, reqwest::Error> {
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Ok(Reply { status, headers, body: response.text().await? })
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}
