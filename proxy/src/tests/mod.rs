//! The proxy from outside: a real listener, a real store in a folder of its own, a scripted teacher that keeps its bill.
//!
//! [`TestServer`] is the only scaffold. Invariant: no test waits for a time to pass.

mod upstream;
mod chats;
mod doors;
mod limits;
mod batches;
mod failures;
mod refusals;
mod service;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tuition_ledger::store::open::OpenStore;
use tuition_ledger::{
    Budget, Clock, Desk, Limit, Mode, Origin, Present, Price, PriceBook, Scope, Settings, Store, StoreUrl,
    Timestamp, Window,
};

use crate::{
    Api, ClientKey, HttpSettings, HttpTeacher, Limits, Pins, Proxy, Route, Secret, ServeError, Share, run,
};
use upstream::Upstream;

/// What a test wants otherwise than usual.
struct Setup {
    calls: Option<u64>,
    usd: Option<&'static str>,
    mode: Mode,
    keys: Vec<&'static str>,
    pins: Pins,
    alert_url: Option<String>,
    share: Share,
    models: Vec<&'static str>,
    limits: Limits,
    timeout: Duration,
    url: Option<String>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            calls: Some(100),
            usd: None,
            mode: Mode::Record,
            keys: vec![],
            pins: Pins::default(),
            alert_url: None,
            share: Share::All,
            models: vec!["*"],
            limits: Limits { body_bytes: 1 << 20, ..Limits::default() },
            timeout: Duration::from_secs(20),
            url: None,
        }
    }
}

/// A proxy on loopback in front of a scripted teacher.
struct TestServer {
    url: String,
    client: Client,
    upstream: Upstream,
    store: Arc<dyn Store>,
    proxy: Proxy,
    stop: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<Result<(), ServeError>>>,
    _opened: OpenStore,
    folder: tempfile::TempDir,
}

fn clock() -> Clock {
    Arc::new(|| Timestamp(1_800_000_000_000))
}

fn price() -> Price {
    Price {
        model: "m".into(),
        from: "2026-01-01".parse().unwrap(),
        input: "1".parse().unwrap(),
        cached_input: None,
        cache_write: None,
        output: "2".parse().unwrap(),
        reasoning: None,
        request: "0.001".parse().unwrap(),
        max_input_tokens: None,
        max_output_tokens: Some(100),
    }
}

fn route(setup: &Setup, upstream: &Upstream, api: Api, name: &str) -> Route {
    let base = if api == Api::OpenAi { format!("{}/v1", upstream.url) } else { upstream.url.clone() };
    let teacher = HttpTeacher::new(HttpSettings {
        name: name.into(),
        api,
        url: setup.url.clone().unwrap_or(base),
        secret: Some(Secret::new("teachers-secret")),
        proxy: None,
        headers: vec![("x-extra".into(), Secret::new("1"))],
        timeout: setup.timeout,
        retries: 2,
        unbilled: vec![507],
        rows: true,
        answer_bytes_max: 1 << 20,
    });
    let models = setup.models.iter().map(|model| (*model).to_owned()).collect();
    Route::http(Arc::new(teacher.unwrap()), models, "1".into())
}

impl TestServer {
    async fn start(setup: Setup) -> Self {
        let upstream = Upstream::start().await;
        let folder = tempfile::tempdir().unwrap();
        let url = StoreUrl::Sled(folder.path().join("store"));
        let opened = tuition_ledger::open_store(&url, clock(), "test").await.unwrap();
        let store = Arc::clone(&opened.store);
        let usd = setup.usd.map(|usd| usd.parse().unwrap());
        let limit = Limit { calls: setup.calls, tokens: None, usd };
        let budget = Budget { name: "pilot".into(), scope: Scope::default(), limit, window: Window::Forever };
        store.limit(budget, Origin::Config).await.unwrap();
        let prices = PriceBook::new(usd.map(|_| price())).unwrap();
        for price in prices.iter() {
            store.price(price.clone()).await.unwrap();
        }
        let settings = Settings {
            unbudgeted: false,
            hold_wait: Duration::from_secs(20),
            breaker_failures: 1000,
            breaker_pause: Duration::from_secs(1),
        };
        let desk = Desk::new(Arc::clone(&store), prices, settings, clock());
        let statement = || -> BoxFuture<'static, Result<Value, String>> {
            Box::pin(async { Ok(json!({"totals": {"calls": {"settled": 7}}})) })
        };
        let keys =
            setup.keys.iter().map(|key| ClientKey::new(*key, &ClientKey::hash(&format!("key-of-{key}"))));
        let proxy = Proxy {
            desk,
            teachers: vec![
                route(&setup, &upstream, Api::OpenAi, "gpt"),
                route(&setup, &upstream, Api::OpenInference, "digits"),
            ],
            keys: keys.map(|key| key.unwrap().pinned(setup.pins.clone())).collect(),
            mode: setup.mode,
            share: setup.share,
            limits: setup.limits,
            statement: Arc::new(statement),
            alert_url: setup.alert_url.clone().map(Secret::new),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(run(listener, proxy.clone(), async {
            let _ = stopped.await;
        }));
        Self {
            url,
            client: Client::builder().no_proxy().build().unwrap(),
            upstream,
            store,
            proxy,
            stop: Some(stop),
            running: Some(running),
            _opened: opened,
            folder,
        }
    }

    async fn send(&self, path: &str, headers: &[(&str, &str)], body: impl Into<reqwest::Body>) -> Response {
        let mut request = self.client.post(format!("{}{path}", self.url)).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    async fn post(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Reply {
        Reply::of(self.send(path, headers, body.to_string()).await).await
    }

    /// Asks a chat about `text`, with these members beside it.
    async fn chat(&self, text: &str, more: Value) -> Reply {
        self.post("/v1/chat/completions", &[], &chat(text, more)).await
    }

    async fn get(&self, path: &str) -> Reply {
        Reply::of(self.client.get(format!("{}{path}", self.url)).send().await.unwrap()).await
    }

    async fn present(&self) -> Present {
        self.store.present().await.unwrap()
    }

    /// Settled, reserved and unknown calls.
    async fn calls(&self) -> [u64; 3] {
        let total = self.present().await.total;
        [total.settled.calls, total.reserved.calls, total.unknown.calls]
    }
}

/// A chat about `text`, with these members beside it.
fn chat(text: &str, more: Value) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": text}]});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// A whole reply.
#[derive(Clone, Debug, PartialEq)]
struct Reply {
    status: u16,
    outcome: String,
    calls: String,
    key: String,
    cost: String,
    should_retry: String,
    media: String,
    body: String,
}

impl Reply {
    async fn of(response: Response) -> Self {
        let header = |name| {
            let value = response.headers().get(name);
            value.map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
        };
        Self {
            status: response.status().as_u16(),
            outcome: header("x-tuition-outcome"),
            calls: header("x-tuition-calls"),
            key: header("x-tuition-key"),
            cost: header("x-tuition-cost-usd"),
            should_retry: header("x-should-retry"),
            media: header("content-type"),
            body: response.text().await.unwrap(),
        }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The whole chat, be it a stream or not.
    fn whole(&self) -> Value {
        if self.media != "text/event-stream" {
            return self.json();
        }
        let folded = crate::dialect::openai::stream::fold(self.body.as_bytes()).unwrap();
        serde_json::from_str(&folded.to_string()).unwrap()
    }
}
