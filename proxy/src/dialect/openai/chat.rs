//! OpenAI chat completions: the whole request is one item, and each of its choices is a call.
//!
//! Must not know HTTP. Invariants: the input bound covers every byte of the body; what no token count bounds is named.

use bytes::Bytes;
use tuition_ledger::answer::{Position, TokenLogProbability};
use tuition_ledger::{Answer, InputBound, Json, OutputBound, Record, Reply, Signal};

use super::{dearer_tier, stream, usage, without_presentation};
use crate::dialect::{Asked, BadRequest, Part, Presentation, Rendered, Unreadable, essence, flag, given};

/// Input tokens that a chat template may add to the bytes of a body.
const TEMPLATE_TOKENS: u64 = 256;
/// Input tokens that a template may add where it explains tools or an output format to the model.
const TOOL_TEMPLATE_TOKENS: u64 = 1024;
/// Members whose cost no token count bounds: searches, predicted outputs, spoken outputs.
const UNBOUNDED: [&str; 5] = ["web_search_options", "prediction", "audio", "plugins", "search_parameters"];
/// Limits of the output, in tokens a choice; the last is llama.cpp's own.
const OUTPUT_LIMITS: [&str; 3] = ["max_completion_tokens", "max_tokens", "n_predict"];
/// Members of a message that hold nothing but text.
const TEXT_MEMBERS: [&str; 9] = [
    "role",
    "name",
    "refusal",
    "tool_calls",
    "tool_call_id",
    "function_call",
    "reasoning",
    "reasoning_content",
    "content",
];

/// Takes a request apart.
pub(crate) fn read(model: String, json: Json<'_>, length: usize) -> Result<Asked, BadRequest> {
    let messages = json
        .member("messages")
        .and_then(Json::items)
        .filter(|messages| messages.iter().all(|message| message.members().is_some()))
        .ok_or_else(|| BadRequest::missing("messages", "a list of objects"))?;
    let bound = if messages.iter().all(is_text) {
        InputBound::Bytes(u64::try_from(length).unwrap_or(u64::MAX))
    } else {
        InputBound::Opaque
    };
    let choices = match given(&json, "n") {
        None => 1,
        Some(n) => {
            let positive = n.as_u64().filter(|n| *n > 0);
            positive.ok_or_else(|| BadRequest::wrong("n", "a positive integer"))?
        }
    };
    let wanted = Presentation::Chat {
        stream: flag(&json, "stream")?,
        include_usage: match given(&json, "stream_options") {
            None => false,
            Some(options) => flag(options, "include_usage")?,
        },
    };
    let explains = ["tools", "functions", "response_format"].iter().any(|name| given(&json, name).is_some());
    let overhead_tokens = TEMPLATE_TOKENS + if explains { TOOL_TEMPLATE_TOKENS } else { 0 };
    let (output, unbounded) = (output(&json)?, unbounded(&json)?);
    let input = without_presentation(json).canonical();
    let parts = vec![Part { input, calls: choices, bound }];
    Ok(Asked { model, parts, overhead_tokens, output, choices, unbounded, wanted })
}

/// Whether a message is plain inline text.
fn is_text(message: &Json<'_>) -> bool {
    let known = message
        .members()
        .unwrap_or_default()
        .iter()
        .all(|(name, value)| value.is_null() || TEXT_MEMBERS.contains(&name.as_ref()));
    let content = match message.member("content") {
        None | Some(Json::Null | Json::String(_)) => true,
        Some(Json::Array(parts)) => parts
            .iter()
            .all(|part| matches!(part.member("type").and_then(Json::as_str), Some("text" | "refusal"))),
        Some(_) => false,
    };
    known && content
}

fn output(json: &Json<'_>) -> Result<OutputBound, BadRequest> {
    let mut most = None;
    for name in OUTPUT_LIMITS {
        let Some(limit) = given(json, name) else { continue };
        if limit.as_f64().is_none() {
            return Err(BadRequest::wrong(name, "a number of tokens"));
        }
        // A negative limit is no limit.
        let Some(limit) = limit.as_u64() else { return Ok(OutputBound::Model) };
        most = most.max(Some(limit));
    }
    Ok(most.map_or(OutputBound::Model, OutputBound::Client))
}

fn unbounded(json: &Json<'_>) -> Result<Option<String>, BadRequest> {
    if let Some(name) = UNBOUNDED.iter().find(|name| given(json, name).is_some()) {
        return Ok(Some((*name).to_owned()));
    }
    if let Some(tools) = given(json, "tools") {
        let tools = tools.items().ok_or_else(|| BadRequest::wrong("tools", "a list"))?;
        for tool in tools {
            let kind = tool.member("type").and_then(Json::as_str).unwrap_or("tools");
            if !matches!(kind, "function" | "custom") {
                return Ok(Some(kind.to_owned()));
            }
        }
    }
    let speaks = given(json, "modalities")
        .and_then(Json::items)
        .is_some_and(|kinds| kinds.iter().any(|kind| kind.as_str() != Some("text")));
    Ok(if speaks { Some("modalities".to_owned()) } else { dearer_tier(json) })
}

/// Takes a complete reply apart: a JSON body, or a stream from its first event to its last.
pub(crate) fn reply(media: &str, body: Bytes) -> Result<Reply, Unreadable> {
    let (usage, signals) = {
        let whole = if essence(media) == stream::MEDIA { stream::fold(&body)? } else { parse(&body)? };
        (usage(&whole), signals(choices(&whole)?))
    };
    let answers = vec![Answer { body, signals }];
    Ok(Reply { usage, media: media.to_owned(), envelope: Bytes::new(), answers })
}

fn parse(body: &[u8]) -> Result<Json<'_>, Unreadable> {
    Json::parse(body)
        .map_err(|error| Unreadable(format!("the answer is not the JSON that is taken: {error}")))
}

fn choices<'j, 'a>(whole: &'j Json<'a>) -> Result<&'j [Json<'a>], Unreadable> {
    whole
        .member("choices")
        .and_then(Json::items)
        .filter(|choices| !choices.is_empty())
        .ok_or_else(|| Unreadable("the answer has no `choices`".into()))
}

/// The texts and the log-probabilities of the choices.
fn signals(choices: &[Json<'_>]) -> Vec<Signal> {
    let mut signals = Vec::new();
    for (position, choice) in choices.iter().enumerate() {
        let number = choice.member("index").and_then(Json::as_u64);
        let number = number.unwrap_or(position as u64);
        let Ok(number) = u32::try_from(number) else { continue };
        if let Some(text) =
            choice.member("message").and_then(|message| message.member("content")).and_then(Json::as_str)
        {
            let finish = choice.member("finish_reason").and_then(Json::as_str).map(str::to_owned);
            signals.push(Signal::Text { choice: number, text: text.to_owned(), finish });
        }
        let tokens = choice.member("logprobs").and_then(|logprobs| logprobs.member("content"));
        if let Some(tokens) = tokens.and_then(Json::items).filter(|tokens| !tokens.is_empty())
            && let Some(positions) = tokens.iter().map(position_of).collect()
        {
            signals.push(Signal::LogProbabilities { choice: number, positions });
        }
    }
    signals
}

fn position_of(token: &Json<'_>) -> Option<Position> {
    let taken = |token: &Json<'_>| {
        Some(TokenLogProbability {
            token: token.member("token")?.as_str()?.to_owned(),
            log_probability: token.member("logprob")?.as_f64()?,
        })
    };
    let top = token.member("top_logprobs").and_then(Json::items).unwrap_or_default();
    Some(Position { taken: taken(token)?, top: top.iter().map(taken).collect::<Option<_>>()? })
}

/// The recorded answer as the client wants it.
pub(crate) fn render(as_stream: bool, include_usage: bool, record: &Record) -> Result<Rendered, Unreadable> {
    let body = &record.answer.body;
    let recorded_stream = essence(&record.media) == stream::MEDIA;
    let body = match (recorded_stream, as_stream) {
        (false, false) => return Ok(Rendered { media: record.media.clone(), body: body.clone() }),
        (true, true) if include_usage => body.clone(),
        (true, true) => stream::without_usage(body),
        (false, true) => stream::unfold(&parse(body)?, include_usage)?.into(),
        (true, false) => {
            let body = stream::fold(body)?.to_string().into();
            return Ok(Rendered { media: "application/json".into(), body });
        }
    };
    Ok(Rendered { media: stream::MEDIA.into(), body })
}

#[cfg(test)]
mod tests {
    use tuition_ledger::Usage;

    use super::*;

    fn asked(body: &str) -> Result<Asked, String> {
        let json = Json::parse(body.as_bytes()).map_err(|error| error.to_string())?;
        read("m".into(), json, body.len()).map_err(|error| error.to_string())
    }

    /// A request with these members beside one plain message.
    fn with(members: &str) -> Result<Asked, String> {
        asked(&format!(r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}]{members}}}"#))
    }

    #[test]
    fn presentation_is_no_part_of_the_item() {
        let plain = with("").unwrap();
        assert_eq!(plain.parts[0].input, r#"{"messages":[{"content":"hi","role":"user"}],"model":"m"}"#);
        let presented = with(
            r#","stream":true,"stream_options":{"include_usage":true},"user":"u","metadata":{},"store":true,
            "safety_identifier":"s","prompt_cache_key":"k","service_tier":"auto","encoding_format":"x""#,
        );
        let presented = presented.unwrap();
        assert_eq!(presented.parts[0].input, plain.parts[0].input);
        assert_eq!(presented.wanted, Presentation::Chat { stream: true, include_usage: true });
        for changed in [r#","repetition_penalty":1.1"#, r#","unheard_of":1"#, r#","seed":9007199254740993"#] {
            assert_ne!(with(changed).unwrap().parts[0].input, plain.parts[0].input, "{changed}");
        }
        let seed = |seed: &str| with(&format!(r#","seed":{seed}"#)).unwrap().parts[0].input.clone();
        assert_ne!(seed("9007199254740993"), seed("9007199254740994"));
        assert_eq!(seed("0.0"), seed("0"));
    }

    #[test]
    fn the_worst_case_is_read_off_the_request() {
        #[track_caller]
        fn check(members: &str, calls: u64, output: OutputBound, unbounded: Option<&str>) {
            let asked = with(members).unwrap();
            let found = (asked.parts[0].calls, asked.output, asked.unbounded.as_deref());
            assert_eq!(found, (calls, output, unbounded), "{members}");
        }
        let model = OutputBound::Model;
        check("", 1, model, None);
        check(r#","n":null,"max_tokens":null"#, 1, model, None);
        check(r#","n":3,"max_tokens":7"#, 3, OutputBound::Client(7), None);
        check(r#","max_tokens":7,"max_completion_tokens":9"#, 1, OutputBound::Client(9), None);
        check(r#","max_tokens":7,"n_predict":-1"#, 1, model, None);
        check(r#","tools":[{"type":"function"},{"type":"custom"}]"#, 1, model, None);
        check(r#","tools":[{"type":"function"},{"type":"web_search"}]"#, 1, model, Some("web_search"));
        check(r#","web_search_options":{}"#, 1, model, Some("web_search_options"));
        check(r#","prediction":{"type":"content","content":"x"}"#, 1, model, Some("prediction"));
        check(r#","modalities":["text","audio"],"audio":{"voice":"v"}"#, 1, model, Some("audio"));
        check(r#","modalities":["text","image"]"#, 1, model, Some("modalities"));
        check(r#","service_tier":"priority""#, 1, model, Some("service_tier=priority"));
    }

    #[test]
    fn only_inline_text_is_bounded_by_its_bytes() {
        #[track_caller]
        fn check(message: &str, text: bool) {
            let body = format!(r#"{{"model":"m","messages":[{message}]}}"#);
            let bytes = InputBound::Bytes(body.len() as u64);
            let expected = if text { bytes } else { InputBound::Opaque };
            assert_eq!(asked(&body).unwrap().parts[0].bound, expected, "{message}");
        }
        check(r#"{"role":"user","content":"é"}"#, true);
        check(r#"{"role":"user","content":[{"type":"text","text":"a"}]}"#, true);
        check(r#"{"role":"assistant","content":null,"tool_calls":[{"id":"x"}],"audio":null}"#, true);
        check(r#"{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}"#, false);
        check(r#"{"role":"user","content":[{"type":"text","text":"a"},{"type":"file"}]}"#, false);
        check(r#"{"role":"assistant","audio":{"id":"x"}}"#, false);
        check(r#"{"role":"user","content":"a","images":["x"]}"#, false);
    }

    #[test]
    fn a_bad_field_is_named() {
        #[track_caller]
        fn check(body: &str, expected: &str) {
            assert_eq!(asked(body).unwrap_err(), expected);
        }
        check(r#"{"model":"m"}"#, "`messages` is missing or is not a list of objects");
        check(r#"{"model":"m","messages":"hi"}"#, "`messages` is missing or is not a list of objects");
        check(r#"{"model":"m","messages":["hi"]}"#, "`messages` is missing or is not a list of objects");
        check(r#"{"messages":[],"n":0}"#, "`n` is not a positive integer");
        check(r#"{"messages":[],"n":1.5}"#, "`n` is not a positive integer");
        check(r#"{"messages":[],"stream":"yes"}"#, "`stream` is not true or false");
        check(r#"{"messages":[],"max_tokens":"9"}"#, "`max_tokens` is not a number of tokens");
        check(r#"{"messages":[],"messages":[]}"#, "member `messages` stands twice in one object");
    }

    #[test]
    fn an_answer_gives_its_usage_and_its_signals() {
        let body = r#"{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},"logprobs":{"content":[
            {"token":"Hi","logprob":-0.25,"bytes":[72,105],"top_logprobs":[{"token":"Hi","logprob":-0.25},{"token":"Yo","logprob":-1.5}]}
            ],"refusal":null},"finish_reason":"stop"}],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,
            "prompt_tokens_details":{"cached_tokens":4},"completion_tokens_details":{"reasoning_tokens":2}}}"#;
        let reply = reply("application/json", body.into()).unwrap();
        let usage = Usage { input: 6, cached_input: 4, cache_write: 0, output: 3, reasoning: 2 };
        assert_eq!(reply.usage, Some(usage));
        let token =
            |token: &str, log_probability| TokenLogProbability { token: token.into(), log_probability };
        let positions =
            vec![Position { taken: token("Hi", -0.25), top: vec![token("Hi", -0.25), token("Yo", -1.5)] }];
        let text = Signal::Text { choice: 0, text: "Hi".into(), finish: Some("stop".into()) };
        let expected = [text, Signal::LogProbabilities { choice: 0, positions }];
        assert_eq!(reply.answers[0].signals, expected);
        assert_eq!(reply.answers[0].body, body);
    }

    #[test]
    fn what_is_no_answer_is_told_apart() {
        #[track_caller]
        fn check(body: &'static str, expected: &str) {
            assert_eq!(reply("application/json", body.into()).unwrap_err().0, expected);
        }
        check(r#"{"choices":[]}"#, "the answer has no `choices`");
        check(r#"{"error":{"message":"no"}}"#, "the answer has no `choices`");
        let broken = reply("application/json", r#"{"choices":"#.into()).unwrap_err().0;
        assert!(broken.starts_with("the answer is not the JSON that is taken: malformed JSON"), "{broken}");
        let silent = reply("application/json", r#"{"choices":[{"message":{}}]}"#.into()).unwrap();
        assert_eq!(silent.usage, None);
    }
}
