//! Fills a store with recorded answers of a kilobyte, through the ledger's own writing path: a hold, synced; an answer,
//! synced. The only file that calls into a room: a million purchases over HTTP would take a quarter of an hour.
//! Must not write a file of a store itself. Invariant: the answers are to the very requests that `request` makes, and
//! their texts are no easier to compress than base64 is.

use crate::{BUDGET_CALLS, Failure};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};
use tuition_ledger::{
    Amount, Answer, Budget, Claim, Embedded, Exchange, HeldItem, Limit, Origin, Query, Quote, Scope,
    Settlement, Signal, Store as _, Timestamp, Usage, Who, Window,
};

/// Calls under way at the same time: they share a sync.
const UNDER_WAY: u64 = 4096;
/// Bytes of an answer's body.
pub(crate) const BODY_BYTES: usize = 1024;
/// Bytes of the text in it.
const TEXT_BYTES: usize = BODY_BYTES - 300;

/// The body of the request that answer `number` is to.
pub(crate) fn request_body(number: u64) -> String {
    format!(
        r#"{{"max_tokens":100,"messages":[{{"content":"Answer briefly.","role":"system"}},{{"content":"question number {number}","role":"user"}}],"model":"scripted","temperature":0}}"#
    )
}

/// Records the answers `0..records` in the store in `folder`, and closes it.
pub(crate) async fn fill(folder: &Path, records: u64) -> Result<(), Failure> {
    let clock = Arc::new(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    });
    let opened = Embedded::open(folder, clock, concat!("tuition ", env!("CARGO_PKG_VERSION")))?;
    let budget = Budget {
        name: "bench".into(),
        scope: Scope::default(),
        limit: Limit { calls: Some(BUDGET_CALLS), ..Limit::default() },
        window: Window::Forever,
    };
    opened.store.limit(budget, Origin::Config).await?;
    let next = Arc::new(AtomicU64::new(0));
    let mut buyers = tokio::task::JoinSet::new();
    for _ in 0..UNDER_WAY.min(records) {
        let (store, next) = (Arc::clone(&opened.store), Arc::clone(&next));
        buyers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= records {
                    return Ok::<_, Failure>(());
                }
                buy(&store, number).await?;
            }
        });
    }
    while let Some(done) = buyers.join_next().await {
        done??;
    }
    tokio::task::spawn_blocking(move || opened.owner.close()).await??;
    Ok(())
}

async fn buy(store: &Embedded, number: u64) -> Result<(), Failure> {
    let input = request_body(number);
    let query = Query {
        dialect: "openai".into(),
        operation: "chat.completions".into(),
        teacher: "scripted".into(),
        revision: "1".into(),
        sample: 0,
        headers: BTreeMap::new(),
        input,
    };
    let exchange = Exchange {
        who: Who { teacher: "scripted".into(), run: None, key: None },
        dialect: query.dialect.clone(),
        operation: query.operation.clone(),
        revision: query.revision.clone(),
        model: "scripted".into(),
        headers: BTreeMap::new(),
        items: vec![HeldItem { key: query.key(), sample: 0, calls: 1 }],
        refresh: false,
    };
    let held = query.input.len() as u64 + 100;
    let Amount { usd, .. } = Amount::ZERO;
    let quote = Quote { calls: 1, tokens: Ok(held), usd: Ok(usd), price: None, metered: true };
    let reservation = store.reserve(Claim { exchange, quote, unbudgeted: false }).await?;
    store.settle(reservation, settlement(query.input, number)).await?;
    Ok(())
}

fn settlement(input: String, number: u64) -> Settlement {
    let text = text(number);
    let mut body = format!(
        r#"{{"id":"chatcmpl-{number}","object":"chat.completion","created":1790000000,"model":"scripted","choices":[{{"index":0,"finish_reason":"stop","logprobs":null,"message":{{"role":"assistant","content":"{text}"}}}}],"usage":{{"prompt_tokens":24,"completion_tokens":100,"total_tokens":124}}}}"#
    );
    let missing = BODY_BYTES.saturating_sub(body.len());
    let _ = write!(body, "{:missing$}", "");
    let signals = vec![Signal::Text { choice: 0, text, finish: Some("stop".into()) }];
    Settlement {
        usage: Some(Usage { input: 24, output: 100, ..Usage::default() }),
        media: "application/json".into(),
        envelope: Default::default(),
        items: vec![(input, Answer { body: body.into(), signals })],
    }
}

/// Letters that no compressor shortens by more than a quarter (SplitMix64, six bits a letter).
fn text(number: u64) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut text = String::with_capacity(TEXT_BYTES);
    while text.len() < TEXT_BYTES {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        for _ in 0..10.min(TEXT_BYTES - text.len()) {
            text.push(char::from(LETTERS[(mixed & 63) as usize]));
            mixed >>= 6;
        }
    }
    text
}
