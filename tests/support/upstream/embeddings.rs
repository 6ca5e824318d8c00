//! OpenAI embeddings: one vector a text, in the order of the request, as floats or base64.
//! Knows the shapes of the API; must not know about connections or mischief.
//! Invariant: a vector depends on the text alone.

use super::{Charge, Served, hash};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

const DIMENSIONS: u64 = 6;

/// The texts of a request; a list of token ids is one text.
pub(crate) fn texts(request: &Value) -> Vec<String> {
    match &request["input"] {
        Value::String(text) => vec![text.clone()],
        Value::Array(items) if items.iter().all(Value::is_number) => vec![request["input"].to_string()],
        Value::Array(items) => {
            items.iter().map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned)).collect()
        }
        _ => Vec::new(),
    }
}

/// The vector of one text.
pub(crate) fn vector(text: &str) -> Vec<f32> {
    let number = |at: u64| (hash(&format!("{at}:{text}")) % 20_011) as f32 / 10_007.0 - 1.0;
    (0..DIMENSIONS).map(number).collect()
}

pub(crate) fn answer(request: &Value) -> Result<Served, String> {
    let texts = texts(request);
    if texts.is_empty() {
        return Err("`input` is missing".to_owned());
    }
    let base64 = request["encoding_format"] == "base64";
    let render = |text: &String| {
        let vector = vector(text);
        let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
        if base64 { json!(STANDARD.encode(bytes)) } else { json!(vector) }
    };
    let data: Vec<Value> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| json!({"object": "embedding", "index": index, "embedding": render(text)}))
        .collect();
    let tokens = texts.iter().map(|text| text.split_whitespace().count() as u64).sum::<u64>();
    let body = json!({
        "object": "list", "data": data, "model": request["model"],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    });
    Ok(Served {
        charge: Charge {
            inferences: texts.len() as u64,
            input_tokens: tokens,
            items: texts,
            ..Charge::default()
        },
        content_type: "application/json",
        body: body.to_string().into_bytes(),
    })
}
