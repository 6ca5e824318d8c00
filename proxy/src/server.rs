//! The server: every path, and the drain.
//!
//! Must not know how a request is answered. Invariants: without client keys nobody outside this machine is served;
//! after the shutdown no call begins, and those under way are recorded before `run` returns.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tuition_ledger::{Mode, fault};

use crate::access;
use crate::connection;
use crate::dashboard;
use crate::dialect::{Api, Operation, Target};
use crate::front::{Front, Proxy};
use crate::handle;
use crate::problem::Problem;
use crate::route::{self, Route};

/// How long clients may take to read the rest of their answers once every call has ended.
const FAREWELL: Duration = Duration::from_secs(5);
/// What the dashboard may load: itself.
const PAGE_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'";

/// Why the server ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Everybody on the network could spend the money.
    #[error("`{0}` can be reached from other machines, and no client key is configured")]
    Open(SocketAddr),
    /// The listener failed.
    #[error("the listener failed")]
    Listener(#[from] io::Error),
}

/// Serves until `shutdown`; then takes no new calls, and returns when those under way are recorded.
///
/// # Errors
/// A listener that other machines reach while no client key is configured; a listener that fails.
pub async fn run(
    listener: TcpListener,
    proxy: Proxy,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let address = listener.local_addr()?;
    if proxy.keys.is_empty() && !access::is_loopback(address.ip()) {
        return Err(ServeError::Open(address));
    }
    let limits = proxy.limits;
    let front = Front::new(proxy);
    let (closing, closed) = tokio::sync::oneshot::channel::<()>();
    let begin = {
        let front = Arc::clone(&front);
        async move {
            shutdown.await;
            front.drain();
            let _ = closing.send(());
        }
    };
    // Ends with this function, however it ends.
    let mut watching = JoinSet::new();
    watching.spawn(Arc::clone(&front).watch_budgets());
    let serving = connection::serve(listener, router(Arc::clone(&front)), limits, begin);
    let farewell = async {
        if closed.await.is_err() {
            // The shutdown will never come.
            std::future::pending::<()>().await;
        }
        front.proxy.desk.drain().await;
        tokio::time::sleep(FAREWELL).await;
    };
    tokio::select! {
        () = serving => {}
        () = farewell => {}
    }
    front.proxy.desk.drain().await;
    Ok(())
}

fn router(front: Arc<Front>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/embeddings", post(embeddings))
        .route("/v1/models", get(models))
        .route("/v1/models/{*model}", get(model))
        .route("/v2", get(inference_server))
        .route("/v2/health/live", get(healthy))
        .route("/v2/health/ready", get(ready))
        .route("/v2/models/{model}", get(inference_model))
        .route("/v2/models/{model}/ready", get(inference_model))
        .route("/v2/models/{model}/infer", post(infer))
        .route("/v2/models/{model}/versions/{version}", get(inference_model))
        .route("/v2/models/{model}/versions/{version}/ready", get(inference_model))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer))
        .route("/healthz", get(healthy))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/api/statement", get(statement))
        .route("/", get(page))
        .fallback(elsewhere)
        .method_not_allowed_fallback(wrong_method)
        .with_state(front)
}

async fn chat(State(front): State<Arc<Front>>, request: Request) -> Response<Body> {
    let target = Target { path: "/chat/completions".into(), ..Target::default() };
    handle::answer(front, Operation::Chat, target, request).await
}

async fn embeddings(State(front): State<Arc<Front>>, request: Request) -> Response<Body> {
    let target = Target { path: "/embeddings".into(), ..Target::default() };
    handle::answer(front, Operation::Embeddings, target, request).await
}

async fn infer(
    State(front): State<Arc<Front>>,
    Path(names): Path<Vec<String>>,
    request: Request,
) -> Response<Body> {
    let mut names = names.into_iter();
    let (model, version) = (names.next(), names.next());
    let target = Target { path: request.uri().path().to_owned(), model, version, rows: false };
    handle::answer(front, Operation::Infer, target, request).await
}

/// Answers what costs nothing, or says in the API's shape why not.
async fn free<F>(front: &Front, headers: &HeaderMap, api: Api, answer: F) -> Response<Body>
where
    F: Future<Output = Result<Response<Body>, Problem>>,
{
    let allowed = front.authenticate(headers).map(drop);
    let answered = match allowed {
        Ok(()) => answer.await,
        Err(problem) => Err(problem),
    };
    answered.unwrap_or_else(|problem| problem.render(api))
}

fn reply(status: StatusCode, media: &str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    if let Ok(media) = HeaderValue::from_str(media) {
        response.headers_mut().insert(CONTENT_TYPE, media);
    }
    response
}

fn json_reply(body: &Value) -> Response<Body> {
    reply(StatusCode::OK, "application/json", body.to_string())
}

/// Passes on what a teacher says about its models; in replay mode no teacher is asked.
async fn fetch(front: &Front, route: &Route, path: &str) -> Result<Response<Body>, Problem> {
    let Some(http) = route.http.as_ref().filter(|_| front.proxy.mode != Mode::Replay) else {
        let message = "in replay mode no teacher is asked";
        return Err(Problem::new(StatusCode::CONFLICT, "not_recorded", message));
    };
    let fetched = http
        .fetch(path)
        .await
        .map_err(|failure| Problem::new(StatusCode::BAD_GATEWAY, "teacher_failed", failure.to_string()))?;
    // A redirect is not followed, nor is the client sent where the teacher wants to send the key.
    let status = StatusCode::from_u16(fetched.status).ok().filter(|status| !status.is_redirection());
    let status = status.unwrap_or(StatusCode::BAD_GATEWAY);
    Ok(reply(status, &fetched.media, fetched.body))
}

async fn models(State(front): State<Arc<Front>>, headers: HeaderMap) -> Response<Body> {
    free(&front, &headers, Api::OpenAi, list_models(&front)).await
}

/// The models of every teacher, each named once, by the first teacher that serves it.
async fn list_models(front: &Front) -> Result<Response<Body>, Problem> {
    let routes = || front.proxy.teachers.iter().filter(|route| route.api == Api::OpenAi);
    let mut names: Vec<String> = Vec::new();
    let mut data: Vec<Value> = Vec::new();
    for route in routes() {
        let listed = match &route.http {
            Some(http) if front.proxy.mode != Mode::Replay => {
                http.fetch("/models").await.ok().filter(|fetched| fetched.status == 200)
            }
            _ => None,
        };
        let listed = listed.and_then(|fetched| serde_json::from_slice::<Value>(&fetched.body).ok());
        let listed = match listed.as_ref().and_then(|list| list["data"].as_array()) {
            Some(listed) => listed.clone(),
            // What the configuration names is served, whatever the teacher says of itself.
            None => {
                let exact = route.models.iter().filter(|name| !name.contains('*'));
                exact.map(|name| json!({"id": name, "object": "model", "created": 0, "owned_by": route.teacher.name()})).collect()
            }
        };
        for entry in listed {
            let Some(name) = entry["id"].as_str() else { continue };
            if route.serves(name) && !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
                data.push(entry);
            }
        }
    }
    Ok(json_reply(&json!({"object": "list", "data": data})))
}

async fn model(
    State(front): State<Arc<Front>>,
    Path(model): Path<String>,
    headers: HeaderMap,
    request: Request,
) -> Response<Body> {
    let path = request.uri().path().trim_start_matches("/v1");
    let answer = async {
        let route =
            route::find(&front.proxy.teachers, Api::OpenAi, &model).map_err(Problem::unknown_model)?;
        fetch(&front, route, path).await
    };
    free(&front, &headers, Api::OpenAi, answer).await
}

async fn inference_server(State(front): State<Arc<Front>>, headers: HeaderMap) -> Response<Body> {
    let about = json!({"name": "tuition", "version": env!("CARGO_PKG_VERSION"), "extensions": []});
    free(&front, &headers, Api::OpenInference, async { Ok(json_reply(&about)) }).await
}

async fn inference_model(
    State(front): State<Arc<Front>>,
    Path(names): Path<Vec<String>>,
    headers: HeaderMap,
    request: Request,
) -> Response<Body> {
    let path = request.uri().path();
    let answer = async {
        let model = names.first().map(String::as_str).unwrap_or_default();
        let route =
            route::find(&front.proxy.teachers, Api::OpenInference, model).map_err(Problem::unknown_model)?;
        match &route.metadata {
            Some(_) if path.ends_with("/ready") => Ok(json_reply(&json!({"name": model, "ready": true}))),
            Some(metadata) => Ok(json_reply(metadata)),
            None => fetch(&front, route, path).await,
        }
    };
    free(&front, &headers, Api::OpenInference, answer).await
}

async fn healthy() -> Response<Body> {
    json_reply(&json!({"live": true}))
}

/// Ready: new calls are taken, and the store can be written.
async fn ready(State(front): State<Arc<Front>>) -> Response<Body> {
    let why = if front.is_draining() {
        Some("draining".to_owned())
    } else if fault::is_armed() {
        Some("fail points are armed: nothing here is to be relied on".to_owned())
    } else {
        match front.proxy.desk.store().present().await {
            Ok(present) => present.unwritable,
            Err(error) => Some(error.to_string()),
        }
    };
    let mut response = json_reply(&json!({"ready": why.is_none(), "why": why}));
    if why.is_some() {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

async fn metrics(State(front): State<Arc<Front>>, headers: HeaderMap) -> Response<Body> {
    let answer = async {
        let present = front.proxy.desk.store().present().await;
        let present = present.map_err(|error| Problem::from(tuition_ledger::DeskError::Store(error)))?;
        let text = front.metrics.render(&present, &front.gauges());
        Ok(reply(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text))
    };
    free(&front, &headers, Api::OpenAi, answer).await
}

async fn statement(State(front): State<Arc<Front>>, headers: HeaderMap) -> Response<Body> {
    let answer = async {
        let made = (front.proxy.statement)().await;
        let statement =
            made.map_err(|why| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "no_statement", why))?;
        let mut response = json_reply(&statement);
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    };
    free(&front, &headers, Api::OpenAi, answer).await
}

async fn page() -> Response<Body> {
    let mut response = reply(StatusCode::OK, "text/html; charset=utf-8", dashboard::PAGE);
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
    response
}

async fn elsewhere(request: Request) -> Response<Body> {
    let path = request.uri().path();
    let message = format!("nothing is served at `{path}`");
    Problem::new(StatusCode::NOT_FOUND, "not_found", message).render(Api::of_path(path))
}

async fn wrong_method(request: Request) -> Response<Body> {
    let path = request.uri().path();
    let message = format!("`{path}` does not take {}", request.method());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message).render(Api::of_path(path))
}
