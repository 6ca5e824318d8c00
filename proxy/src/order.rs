//! A request's headers and body become an order.
//!
//! Must not know stores or teachers' answers. Invariants: the client's own key is not in what is forwarded; a mode
//! header is stricter than the server's mode or refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::HeaderMap;
use bytes::Bytes;
use tuition_ledger::{Forward, Item, Json, Mode, Order, Query, Who};

use crate::access::ClientKey;
use crate::dialect::{Operation, Presentation, Target};
use crate::problem::Problem;
use crate::route::{self, Route};

const RUN: &str = "x-tuition-run";
const SAMPLE: &str = "x-tuition-sample";
const MODE: &str = "x-tuition-mode";
/// The longest name of a run.
const RUN_LENGTH_MAX: usize = 128;
/// Stands in for a header, so that each client key has answers of its own.
const OWNER: &str = "x-tuition-key";

/// What the headers of a request say beside its body.
#[derive(Debug)]
pub(crate) struct Wish {
    run: Option<String>,
    sample: u32,
    mode: Mode,
}

impl Wish {
    /// Reads the headers; what the client's key is pinned to holds.
    pub(crate) fn read(
        headers: &HeaderMap,
        server: Mode,
        client: Option<&ClientKey>,
    ) -> Result<Self, Problem> {
        let text = |name: &'static str, expected: &str| match headers.get(name) {
            None => Ok(None),
            Some(value) => match value.to_str() {
                Ok(text) => Ok(Some(text.trim())),
                Err(_) => Err(Problem::bad_header(name, expected)),
            },
        };
        let name = "a name of 1 to 128 visible characters";
        let run = text(RUN, name)?;
        if run.is_some_and(|run| run.is_empty() || run.len() > RUN_LENGTH_MAX) {
            return Err(Problem::bad_header(RUN, name));
        }
        let index = "a sample index (0, 1, ...)";
        let sample = match text(SAMPLE, index)? {
            None => 0,
            Some(text) => text.parse().map_err(|_| Problem::bad_header(SAMPLE, index))?,
        };
        let modes = "one of record, replay, refresh";
        let pinned = client.map_or(Mode::Record, ClientKey::mode);
        let server = stricter(server, pinned).ok_or_else(|| Problem::mode_not_allowed(server, pinned))?;
        let asked = match text(MODE, modes)? {
            None => server,
            Some("record") => Mode::Record,
            Some("replay") => Mode::Replay,
            Some("refresh") => Mode::Refresh,
            Some(_) => return Err(Problem::bad_header(MODE, modes)),
        };
        if stricter(server, asked) != Some(asked) {
            return Err(Problem::mode_not_allowed(server, asked));
        }
        let run = run.map(str::to_owned);
        let run = match client {
            Some(client) => client.run(run).map_err(|why| Problem::not_allowed(&why))?,
            None => run,
        };
        Ok(Self { run, sample, mode: asked })
    }
}

/// The mode in which both hold: `record` reuses and buys; `replay` takes buying away, `refresh` takes reuse away, and
/// together they leave nothing.
fn stricter(one: Mode, other: Mode) -> Option<Mode> {
    match (one, other) {
        (Mode::Record, mode) | (mode, Mode::Record) => Some(mode),
        (one, other) => (one == other).then_some(one),
    }
}

/// Who asks, and whose answers may be reused.
#[derive(Clone, Copy)]
pub(crate) struct Whose<'c> {
    /// The client; none where no keys are asked for.
    pub(crate) client: Option<&'c ClientKey>,
    /// Whether each client key has answers of its own.
    pub(crate) private: bool,
}

/// A request that can be put to the desk.
pub(crate) struct Made<'r> {
    pub(crate) route: &'r Route,
    pub(crate) order: Arc<Order>,
    pub(crate) wanted: Presentation,
}

/// Makes an order of a request.
pub(crate) fn make<'r>(
    routes: &'r [Route],
    operation: Operation,
    mut target: Target,
    headers: &HeaderMap,
    whose: Whose<'_>,
    wish: Wish,
    body: Bytes,
) -> Result<Made<'r>, Problem> {
    let api = operation.api();
    if headers.contains_key("inference-header-content-length") {
        return Err(crate::dialect::BadRequest::Binary("`Inference-Header-Content-Length` is set").into());
    }
    let json = Json::parse(&body).map_err(crate::dialect::BadRequest::from)?;
    let model = operation.model(&target, &json)?;
    let route = route::find(routes, api, model).map_err(Problem::unknown_model)?;
    if let Some(client) = whose.client {
        client.may_ask(route.teacher.name()).map_err(|why| Problem::not_allowed(&why))?;
    }
    target.rows = route.rows;
    let asked = operation.read(&target, json, body.len())?;

    let mut keyed = BTreeMap::new();
    let mut forwarded = vec![("content-type".to_owned(), "application/json".to_owned())];
    if let Some(accept) = headers.get("accept").and_then(|accept| accept.to_str().ok()) {
        forwarded.push(("accept".into(), accept.into()));
    }
    for name in api.keyed_headers() {
        let values: Vec<&str> =
            headers.get_all(*name).iter().filter_map(|value| value.to_str().ok()).collect();
        if !values.is_empty() {
            keyed.insert((*name).to_owned(), values.join(", "));
            forwarded.push(((*name).to_owned(), values.join(", ")));
        }
    }
    let client = whose.client.map(ClientKey::name);
    if let Some(owner) = client.filter(|_| whose.private) {
        keyed.insert(OWNER.to_owned(), owner.to_owned());
    }
    let who = Who { teacher: route.teacher.name().to_owned(), run: wish.run, key: client.map(str::to_owned) };
    let stream = asked.wanted.is_stream();
    let mut query = Query {
        dialect: api.name().to_owned(),
        operation: operation.name().to_owned(),
        teacher: who.teacher.clone(),
        revision: route.revision.clone(),
        sample: wish.sample,
        headers: keyed,
        input: String::new(),
    };
    let items = asked.parts.into_iter().map(|part| {
        query.input = part.input;
        let key = query.key();
        let input = std::mem::take(&mut query.input);
        Item { key, input, sample: wish.sample, calls: part.calls, bound: part.bound }
    });
    let items = items.collect();
    let order = Order {
        who,
        dialect: query.dialect,
        operation: query.operation,
        revision: query.revision,
        model: asked.model,
        headers: query.headers,
        items,
        overhead_tokens: asked.overhead_tokens,
        output: asked.output,
        choices: asked.choices,
        unbounded: asked.unbounded,
        mode: wish.mode,
        forward: Forward { path: target.path, headers: forwarded, body, stream },
    };
    Ok(Made { route, order: Arc::new(order), wanted: asked.wanted })
}
