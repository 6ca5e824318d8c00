//! Connections of clients: how many, how long one may be silent, how large a request's head may be.
//!
//! Must not know any path. Invariants: a connection without a request under way is closed after `quiet`, however little of
//! a request has come; one whose client reads nothing is closed after `write_wait`; what is beyond a limit is told so.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::http::{Request, Response};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep};
use tuition_ledger::fault;

use crate::dialect::Api;
use crate::front::Limits;
use crate::problem::Problem;

/// How long nothing is accepted after the system had no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Streams of one HTTP/2 connection at a time.
const STREAMS_MAX: u32 = 1024;
/// The HTTP library's own bound on a head; it lies above [`Limits`], which answer in the API's shape.
const HEAD_BYTES_MAX: usize = 128 << 10;

/// Serves connections until `shutdown`; then accepts no more, and returns when the last has ended.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let closing = watch::Sender::new(false);
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            (stream, place) = accept(&listener, &places) => {
                let seated = Seated { stream, stalled: None, wait: limits.write_wait, _place: place };
                connections.spawn(converse(seated, router.clone(), limits, closing.subscribe()));
            }
        }
    }
    drop(listener);
    closing.send_replace(true);
    while connections.join_next().await.is_some() {}
}

/// The next connection, once there is a place for it; further ones wait in the system's queue.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    let place = Arc::clone(places).acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // A reply is one write; waiting to fill a packet only delays it.
                let _ = stream.set_nodelay(true);
                return (stream, place);
            }
            Err(error) if is_the_clients(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Serves one connection to its end.
async fn converse(io: Seated, router: Router, limits: Limits, mut closing: watch::Receiver<bool>) {
    let activity = Arc::new(Activity::new());
    let service = {
        let (activity, router) = (Arc::clone(&activity), TowerToHyperService::new(router));
        service_fn(move |request: Request<Incoming>| {
            let busy = Busy::begin(&activity);
            let refused = head_problem(&request, &limits)
                .map(|problem| problem.render(Api::of_path(request.uri().path())));
            let answered = refused.is_none().then(|| router.call(request.map(Body::new)));
            async move {
                let response: Response<Body> = match (refused, answered) {
                    (Some(refused), _) => refused,
                    (None, Some(answered)) => answered.await.unwrap_or_else(|never| match never {}),
                    (None, None) => unreachable!("what is not refused is answered"),
                };
                Ok::<_, Infallible>(response.map(|body| Sent { body, _busy: busy }))
            }
        })
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // `quiet` below closes what is silent, in every version of HTTP and before the version is known.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(HEAD_BYTES_MAX);
    let head = u32::try_from(HEAD_BYTES_MAX).expect("a small constant");
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(STREAMS_MAX).max_header_list_size(head);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
    let mut quiet = pin!(activity.quiet(limits.quiet));
    let mut told = false;
    loop {
        tokio::select! {
            served = connection.as_mut() => {
                if let Err(error) = served {
                    tracing::debug!(error, "a connection broke off");
                }
                return;
            }
            _ = closing.wait_for(|closing| *closing), if !told => {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
            () = quiet.as_mut() => return tracing::debug!("a silent connection is closed"),
        }
    }
}

/// What is too large in a request's head.
fn head_problem<B>(request: &Request<B>, limits: &Limits) -> Option<Problem> {
    let url = request.uri().path_and_query().map_or(0, |url| url.as_str().len());
    let bytes: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if url > limits.url_bytes {
        Some(Problem::url_too_long(limits.url_bytes))
    } else if request.headers().len() > limits.headers || bytes > limits.header_bytes {
        Some(Problem::headers_too_large(limits.headers, limits.header_bytes))
    } else {
        None
    }
}

/// What a connection is doing.
struct Activity {
    born: Instant,
    under_way: AtomicUsize,
    /// Milliseconds after its birth at which the last request ended.
    idle_since: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self { born: Instant::now(), under_way: AtomicUsize::new(0), idle_since: AtomicU64::new(0) }
    }

    /// Returns once no request has been under way for `wait`. Nobody is woken by a request: the clock looks.
    async fn quiet(&self, wait: Duration) {
        let mut left = wait;
        loop {
            sleep(left).await;
            if self.under_way.load(Ordering::Acquire) > 0 {
                left = wait;
                continue;
            }
            let idle_since = self.born + Duration::from_millis(self.idle_since.load(Ordering::Acquire));
            left = wait.saturating_sub(idle_since.elapsed());
            if left.is_zero() {
                return;
            }
        }
    }
}

/// A request under way, from its head to the last byte of its reply.
struct Busy(Arc<Activity>);

impl Busy {
    fn begin(activity: &Arc<Activity>) -> Self {
        activity.under_way.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(activity))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let now = u64::try_from(self.0.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.idle_since.store(now, Ordering::Release);
        self.0.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A reply's body, under way until it is sent.
struct Sent {
    body: Body,
    _busy: Busy,
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection and its place; a write that moves no byte for `wait` breaks it off.
struct Seated {
    stream: TcpStream,
    stalled: Option<Pin<Box<Sleep>>>,
    wait: Duration,
    _place: OwnedSemaphorePermit,
}

impl Seated {
    /// The outcome of a write, or the end of patience with a client that reads nothing.
    fn patient<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let wait = self.wait;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(wait)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads nothing")))
    }
}

impl AsyncRead for Seated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Seated {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        let written = ready!(self.patient(written, context))?;
        Poll::Ready(fault::sent(&[io::IoSlice::new(bytes)], written).map(|()| written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        let written = ready!(self.patient(written, context))?;
        Poll::Ready(fault::sent(parts, written).map(|()| written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
