//! OpenAI chat completions, plain and streamed, with `n`, log-probabilities and usage.
//! Knows the shapes of the API; must not know about connections or mischief.
//! Invariant: the text, the log-probabilities and the usage depend on the request alone, `id` on the call.

use super::{Charge, Served, hash};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};

const DEFAULT_MAX_TOKENS: u64 = 64;

static CALLS: AtomicU64 = AtomicU64::new(0);

struct Choice {
    tokens: Vec<String>,
    finish_reason: &'static str,
}

/// The text of all messages: the words that ask for mischief stand in it.
pub(crate) fn question(request: &Value) -> String {
    let messages = request["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    messages.iter().filter_map(|message| message["content"].as_str()).collect::<Vec<_>>().join("\n")
}

pub(crate) fn answer(request: &Value) -> Result<Served, String> {
    let question = question(request);
    if request["messages"].as_array().is_none_or(Vec::is_empty) {
        return Err("`messages` is missing".to_owned());
    }
    let n = request["n"].as_u64().unwrap_or(1);
    let choices: Vec<Choice> = (0..n).map(|index| choice(request, &question, index)).collect();
    let cached = number_after(&question, "[cached ");
    let input = question.split_whitespace().count() as u64 + 3 + cached;
    let output = choices.iter().map(|choice| choice.tokens.len() as u64).sum::<u64>();
    let usage = json!({
        "prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output,
        "prompt_tokens_details": {"cached_tokens": cached},
    });
    let envelope = json!({
        "id": format!("chatcmpl-{}", CALLS.fetch_add(1, Ordering::Relaxed)),
        "created": 1_790_000_000_u64 + CALLS.load(Ordering::Relaxed),
        "model": request["model"],
        "system_fingerprint": "fp_scripted",
    });
    let with_logprobs = request["logprobs"].as_bool() == Some(true);
    let top = with_logprobs.then(|| request["top_logprobs"].as_u64().unwrap_or(0));
    let stream = request["stream"].as_bool() == Some(true);
    let body = if stream {
        let include_usage = request["stream_options"]["include_usage"].as_bool() == Some(true);
        events(&envelope, &choices, top, include_usage.then_some(&usage))
    } else {
        whole(envelope, &choices, top, usage)
    };
    Ok(Served {
        charge: Charge {
            inferences: n,
            input_tokens: input,
            cached_tokens: cached,
            output_tokens: output,
            items: vec![question],
            ..Charge::default()
        },
        content_type: if stream { "text/event-stream" } else { "application/json" },
        body,
    })
}

/// The question's words in reverse order, behind a few characters of more than one byte.
fn choice(request: &Value, question: &str, index: u64) -> Choice {
    let limit = ["max_completion_tokens", "max_tokens"].iter().find_map(|name| request[*name].as_u64());
    let limit = usize::try_from(limit.unwrap_or(DEFAULT_MAX_TOKENS)).expect("limits are small");
    let mut tokens = vec![format!("R\u{e9}ponse {index} \u{7b54}:")];
    tokens.extend(question.split_whitespace().rev().map(|word| format!(" {word}")));
    let finish_reason = if tokens.len() > limit { "length" } else { "stop" };
    tokens.truncate(limit);
    Choice { tokens, finish_reason }
}

fn whole(mut envelope: Value, choices: &[Choice], top: Option<u64>, usage: Value) -> Vec<u8> {
    let choices: Vec<Value> = choices
        .iter()
        .enumerate()
        .map(|(index, choice)| {
            let logprobs: Vec<Value> =
                choice.tokens.iter().map(|token| logprob(token, top.unwrap_or(0))).collect();
            json!({
                "index": index,
                "message": {"role": "assistant", "content": choice.tokens.concat(), "refusal": null},
                "logprobs": top.map(|_| json!({"content": logprobs, "refusal": null})),
                "finish_reason": choice.finish_reason,
            })
        })
        .collect();
    envelope["object"] = json!("chat.completion");
    envelope["choices"] = json!(choices);
    envelope["usage"] = usage;
    envelope.to_string().into_bytes()
}

fn events(envelope: &Value, choices: &[Choice], top: Option<u64>, usage: Option<&Value>) -> Vec<u8> {
    let mut lines = String::new();
    let mut event = |choices: Value, usage: Option<&Value>| {
        let mut chunk = envelope.clone();
        chunk["object"] = json!("chat.completion.chunk");
        chunk["choices"] = choices;
        if let Some(usage) = usage {
            chunk["usage"] = usage.clone();
        }
        lines.push_str(&format!("data: {chunk}\n\n"));
    };
    let delta = |index: usize, delta: Value, logprobs: Value, finish: Value| json!([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]);
    for index in 0..choices.len() {
        event(delta(index, json!({"role": "assistant", "content": ""}), Value::Null, Value::Null), None);
    }
    let longest = choices.iter().map(|choice| choice.tokens.len()).max().unwrap_or(0);
    for at in 0..longest {
        for (index, choice) in choices.iter().enumerate() {
            if let Some(token) = choice.tokens.get(at) {
                let logprobs = top.map(|top| json!({"content": [logprob(token, top)], "refusal": null}));
                event(delta(index, json!({"content": token}), json!(logprobs), Value::Null), None);
            }
        }
    }
    for (index, choice) in choices.iter().enumerate() {
        event(delta(index, json!({}), Value::Null, json!(choice.finish_reason)), None);
    }
    if usage.is_some() {
        event(json!([]), usage);
    }
    lines.push_str("data: [DONE]\n\n");
    lines.into_bytes()
}

fn logprob(token: &str, top: u64) -> Value {
    let one = |token: &str, rank: u64| {
        let number = -((hash(token) % 997) as f64) / 1000.0 - rank as f64;
        json!({"token": token, "logprob": number, "bytes": token.bytes().collect::<Vec<u8>>()})
    };
    let mut entry = one(token, 0);
    let others =
        (0..top).map(|rank| if rank == 0 { one(token, 0) } else { one(&format!("{token}{rank}"), rank) });
    entry["top_logprobs"] = others.collect();
    entry
}

fn number_after(question: &str, word: &str) -> u64 {
    let rest = question.split_once(word).and_then(|(_, rest)| rest.split_once(']'));
    rest.and_then(|(number, _)| number.parse().ok()).unwrap_or(0)
}
