//! What a client makes of an answer that may have been cut off.
//! Knows the shapes of OpenAI's answers; must not know who gave them.
//! Invariant: an answer that is not complete has no content.

use futures::StreamExt as _;
use serde_json::{Value, json};

/// What an answer says, without what differs between calls; `None` if it is not complete.
pub(crate) fn content(body: &str) -> Option<Value> {
    if !body.starts_with("data:") {
        let answer: Value = serde_json::from_str(body).ok()?;
        return answer.get("choices").or(answer.get("data")).cloned();
    }
    let mut text = String::new();
    let mut finish = Value::Null;
    for event in body.lines().filter_map(|line| line.strip_prefix("data: ")) {
        let event: Value = serde_json::from_str(event).unwrap_or(Value::Null);
        let choice = &event["choices"][0];
        text.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        if !choice["finish_reason"].is_null() {
            finish = choice["finish_reason"].clone();
        }
    }
    (!finish.is_null()).then(|| json!([text, finish]))
}

/// Everything that arrives until the reply ends or the connection breaks.
pub(crate) async fn read(response: reqwest::Response) -> String {
    let mut bytes = Vec::new();
    let mut pieces = response.bytes_stream();
    while let Some(Ok(piece)) = pieces.next().await {
        bytes.extend_from_slice(&piece);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
