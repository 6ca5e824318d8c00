//! OpenAI's API: what chats and embeddings have in common.
//!
//! Must not know HTTP. Invariant: the deny-list is the pinned one; a member that is not on it is part of the key.

pub(crate) mod chat;
pub(crate) mod stream;
pub(crate) mod embeddings;

use tuition_ledger::{Json, Usage};

/// Members that are no part of a key.
const DENIED: [&str; 9] = [
    "stream",
    "stream_options",
    "user",
    "metadata",
    "store",
    "safety_identifier",
    "prompt_cache_key",
    "service_tier",
    "encoding_format",
];

/// The request without what does not change an answer.
fn without_presentation(json: Json<'_>) -> Json<'_> {
    match json {
        Json::Object(mut members) => {
            members.retain(|(name, _)| !DENIED.contains(&name.as_ref()));
            Json::Object(members)
        }
        other => other,
    }
}

/// Tokens by kind: cached ones stand inside `prompt_tokens`, reasoning ones inside `completion_tokens`.
fn usage(body: &Json<'_>) -> Option<Usage> {
    let usage = body.member("usage")?;
    let count = |path: [&str; 2]| usage.member(path[0])?.member(path[1])?.as_u64();
    let prompt = usage.member("prompt_tokens")?.as_u64()?;
    let completion = match usage.member("completion_tokens") {
        None | Some(Json::Null) => 0,
        Some(count) => count.as_u64()?,
    };
    let cached_input = count(["prompt_tokens_details", "cached_tokens"]).unwrap_or(0).min(prompt);
    let reasoning = count(["completion_tokens_details", "reasoning_tokens"]).unwrap_or(0).min(completion);
    Some(Usage {
        input: prompt - cached_input,
        cached_input,
        cache_write: 0,
        output: completion - reasoning,
        reasoning,
    })
}

/// A price that differs from the book's by more than a discount: its name, where the request asks for one.
fn dearer_tier(json: &Json<'_>) -> Option<String> {
    let tier = json.member("service_tier")?.as_str()?;
    (!matches!(tier, "auto" | "default" | "flex")).then(|| format!("service_tier={tier}"))
}
