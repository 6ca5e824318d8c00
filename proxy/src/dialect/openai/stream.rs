//! Streams of chat completions: when one is complete, a stream folded into a whole, a whole unfolded into a stream.
//!
//! Must not know HTTP. Invariant: folding what was unfolded gives the same message, log-probabilities and usage, with
//! every number in its own spelling.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tuition_ledger::Json;

use crate::dialect::{Unreadable, given, number, sse, string};

/// The media type of a stream.
pub(crate) const MEDIA: &str = "text/event-stream";
/// The data of the last event.
const DONE: &str = "[DONE]";
/// Members that later events repeat and do not continue.
const LABELS: [&str; 6] = ["id", "type", "role", "name", "object", "index"];

type Members<'a> = Vec<(Cow<'a, str>, Json<'a>)>;

/// Follows a stream under way.
#[derive(Debug)]
pub(crate) struct Progress {
    choices: u64,
    finished: BTreeSet<u64>,
    done: bool,
    failed: Option<String>,
}

impl Progress {
    /// A stream of `choices` choices that has not begun.
    pub(crate) fn new(choices: u64) -> Self {
        Self { choices, finished: BTreeSet::new(), done: false, failed: None }
    }

    /// Takes note of the next event.
    pub(crate) fn see(&mut self, event: &[u8]) {
        let failure = sse::field(event, "error").or_else(|| {
            sse::field(event, "event").filter(|name| name == "error").and(sse::field(event, "data"))
        });
        let Some(data) = sse::field(event, "data").filter(|_| failure.is_none()) else {
            self.fail(failure.map(Cow::into_owned));
            return;
        };
        if data == DONE {
            self.done = true;
            return;
        }
        match Json::parse(data.as_bytes()) {
            Err(error) => self.fail(Some(format!("an event of the stream is not JSON: {error}"))),
            Ok(chunk) => {
                self.fail(given(&chunk, "error").map(ToString::to_string));
                for choice in chunk.member("choices").and_then(Json::items).unwrap_or_default() {
                    if given(choice, "finish_reason").is_some() {
                        self.finished.insert(index_of(choice));
                    }
                }
            }
        }
    }

    fn fail(&mut self, why: Option<String>) {
        if !self.is_complete() && self.failed.is_none() {
            self.failed = why;
        }
    }

    /// Whether a client that saw every event so far may conclude that it has the whole answer.
    pub(crate) fn is_complete(&self) -> bool {
        self.failed.is_none() && (self.done || self.finished.len() as u64 >= self.choices)
    }

    /// Whether the last event came.
    pub(crate) fn is_done(&self) -> bool {
        self.done
    }

    /// What the teacher said went wrong.
    pub(crate) fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }
}

fn index_of(choice: &Json<'_>) -> u64 {
    choice.member("index").and_then(Json::as_u64).unwrap_or(0)
}

/// Reads the chunks of a stream, without its end mark.
fn chunks(body: &[u8]) -> impl Iterator<Item = Result<Json<'_>, Unreadable>> {
    sse::events(body).filter_map(|event| sse::field(event, "data")).filter(|data| data != DONE).map(|data| {
        let unreadable = |error| Unreadable(format!("an event of the stream is not JSON: {error}"));
        match data {
            Cow::Borrowed(text) => Json::parse(text.as_bytes()).map_err(unreadable),
            Cow::Owned(text) => Json::parse(text.as_bytes()).map(Json::into_owned).map_err(unreadable),
        }
    })
}

/// Folds a stream into a `chat.completion`.
pub(crate) fn fold(body: &[u8]) -> Result<Json<'_>, Unreadable> {
    let mut head: Members<'_> = Vec::new();
    let mut choices: BTreeMap<u64, Members<'_>> = BTreeMap::new();
    let mut usage = None;
    for chunk in chunks(body) {
        let Json::Object(members) = chunk? else {
            return Err(Unreadable("an event of the stream is no JSON object".into()));
        };
        for (name, value) in members {
            match (name.as_ref(), value) {
                ("choices", Json::Array(items)) => {
                    for choice in items {
                        let folded = choices.entry(index_of(&choice)).or_default();
                        fold_choice(folded, choice);
                    }
                }
                ("usage", Json::Null) | ("object" | "obfuscation" | "choices", _) => {}
                ("usage", value) => usage = Some(value),
                (_, value) => match head.iter_mut().find(|(known, _)| *known == name) {
                    None => head.push((name, value)),
                    Some((_, known)) if known.is_null() => *known = value,
                    Some((known, _)) if is_fixed(known) => {}
                    Some((_, known)) => *known = value,
                },
            }
        }
    }
    head.push((Cow::Borrowed("object"), string("chat.completion")));
    let choices = choices.into_iter().map(|(index, members)| finish_choice(index, members)).collect();
    head.push((Cow::Borrowed("choices"), Json::Array(choices)));
    head.extend(usage.map(|usage| (Cow::Borrowed("usage"), usage)));
    Ok(Json::Object(head))
}

/// Members that every chunk repeats.
fn is_fixed(name: &str) -> bool {
    matches!(name, "id" | "created" | "model" | "system_fingerprint" | "service_tier")
}

fn fold_choice<'a>(folded: &mut Members<'a>, choice: Json<'a>) {
    let Json::Object(members) = choice else { return };
    for (name, value) in members {
        let name = match name.as_ref() {
            // It continues no message.
            "delta" | "message" if value.members().is_none() => continue,
            "delta" => Cow::Borrowed("message"),
            _ => name,
        };
        match (name.as_ref(), folded.iter_mut().find(|(known, _)| *known == name)) {
            ("index", _) => {}
            (_, None) => {
                // Merged into nothing, so that parts of one tool call in one delta come together too.
                let mut merged = if value.members().is_some() { Json::Object(vec![]) } else { Json::Null };
                merge(&mut merged, value, &name);
                folded.push((name, merged));
            }
            ("message" | "logprobs", Some((_, known))) => merge(known, value, &name),
            (_, Some((_, known))) => match (known, value) {
                (_, Json::Null) => {}
                (Json::Array(items), Json::Array(more)) => items.extend(more),
                (known, value) => *known = value,
            },
        }
    }
}

/// Continues a value by a later event's.
fn merge<'a>(into: &mut Json<'a>, from: Json<'a>, name: &str) {
    match (into, from) {
        (_, Json::Null) => {}
        (Json::String(text), Json::String(more)) if LABELS.contains(&name) => {
            if !more.is_empty() {
                *text = more;
            }
        }
        (Json::String(text), Json::String(more)) => text.to_mut().push_str(&more),
        (Json::Array(items), Json::Array(more)) => {
            for item in more {
                let place = item.member("index").and_then(Json::as_u64);
                let known = items
                    .iter_mut()
                    .find(|known| place.is_some() && known.member("index").and_then(Json::as_u64) == place);
                match known {
                    Some(known) => merge(known, item, ""),
                    None => items.push(item),
                }
            }
        }
        (Json::Object(members), Json::Object(more)) => {
            for (name, value) in more {
                match members.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, known)) => merge(known, value, &name),
                    None => members.push((name, value)),
                }
            }
        }
        (into, from) => *into = from,
    }
}

fn finish_choice(index: u64, mut members: Members<'_>) -> Json<'_> {
    let mut choice: Members<'_> = vec![(Cow::Borrowed("index"), number(index))];
    if !members.iter().any(|(name, _)| name == "message") {
        // A choice without a single delta says nothing, and ends.
        members.insert(0, (Cow::Borrowed("message"), Json::Object(vec![])));
    }
    for (name, mut value) in members {
        if let ("message", Json::Object(message)) = (name.as_ref(), &mut value) {
            for (missing, default) in [("content", Json::Null), ("role", string("assistant"))] {
                if !message.iter().any(|(name, _)| name == missing) {
                    message.insert(0, (Cow::Borrowed(missing), default));
                }
            }
            for (_, calls) in message.iter_mut().filter(|(name, _)| name == "tool_calls") {
                let Json::Array(calls) = calls else { continue };
                for call in calls {
                    if let Json::Object(members) = call {
                        members.retain(|(name, _)| name != "index");
                    }
                }
            }
        }
        choice.push((name, value));
    }
    Json::Object(choice)
}

/// Unfolds a `chat.completion` into the stream that a client would have got: for each choice its role, its message
/// with the log-probabilities, and its end; then the usage where it was asked for.
pub(crate) fn unfold(whole: &Json<'_>, include_usage: bool) -> Result<Vec<u8>, Unreadable> {
    let members = whole.members().unwrap_or_default();
    let mut head = String::from("data: {");
    for (name, value) in members {
        if !matches!(name.as_ref(), "object" | "choices" | "usage") {
            head.push_str(&format!("{}:{value},", string(name)));
        }
    }
    head.push_str("\"object\":\"chat.completion.chunk\",\"choices\":[");
    let tail = if include_usage { "],\"usage\":null}\n\n" } else { "]}\n\n" };
    let choices = whole.member("choices").and_then(Json::items);
    let choices = choices.ok_or_else(|| Unreadable("the recorded answer has no `choices`".into()))?;
    let mut out = String::new();
    for (position, choice) in choices.iter().enumerate() {
        let index = choice.member("index").and_then(Json::as_u64).unwrap_or(position as u64);
        for chunk in unfold_choice(index, choice) {
            out.push_str(&head);
            out.push_str(&chunk.to_string());
            out.push_str(tail);
        }
    }
    if let Some(usage) = given(whole, "usage").filter(|_| include_usage) {
        out.push_str(&head);
        out.push_str(&format!("],\"usage\":{usage}}}\n\n"));
    }
    out.push_str("data: [DONE]\n\n");
    Ok(out.into_bytes())
}

fn unfold_choice<'a>(index: u64, choice: &Json<'a>) -> [Json<'a>; 3] {
    let message = choice.member("message").and_then(Json::members).unwrap_or_default();
    let (role, rest): (Members<'a>, Members<'a>) =
        message.iter().cloned().partition(|(name, _)| name == "role");
    let role = if role.is_empty() { vec![("role".into(), string("assistant"))] } else { role };
    let delta = rest
        .into_iter()
        .map(|(name, value)| match (name.as_ref(), value) {
            ("tool_calls", Json::Array(calls)) => {
                let calls = calls.into_iter().enumerate().map(|(place, call)| match call {
                    Json::Object(mut members) => {
                        members.retain(|(name, _)| name != "index");
                        members.insert(0, ("index".into(), number(place as u64)));
                        Json::Object(members)
                    }
                    other => other,
                });
                (name, Json::Array(calls.collect()))
            }
            (_, value) => (name, value),
        })
        .collect();
    let others = choice.members().unwrap_or_default().iter();
    let others = others.filter(|(name, _)| !matches!(name.as_ref(), "index" | "message" | "logprobs"));
    let chunk = |delta: Members<'a>, logprobs: Option<&Json<'a>>, others: Members<'a>| {
        let mut members = vec![("index".into(), number(index)), ("delta".into(), Json::Object(delta))];
        members.extend(logprobs.map(|logprobs| ("logprobs".into(), logprobs.clone())));
        if others.is_empty() {
            members.push(("finish_reason".into(), Json::Null));
        }
        members.extend(others);
        Json::Object(members)
    };
    [
        chunk(role, None, vec![]),
        chunk(delta, choice.member("logprobs"), vec![]),
        chunk(vec![], None, others.cloned().collect()),
    ]
}

/// The events without those that hold nothing but usage, which a client gets only where it asked for it.
pub(crate) fn without_usage(body: &Bytes) -> Bytes {
    if !sse::events(body).any(is_usage) {
        return body.clone();
    }
    let kept: Vec<&[u8]> = sse::events(body).filter(|event| !is_usage(event)).collect();
    kept.concat().into()
}

fn is_usage(event: &[u8]) -> bool {
    let Some(data) = sse::field(event, "data").filter(|data| data.contains("\"usage\"")) else {
        return false;
    };
    let Ok(chunk) = Json::parse(data.as_bytes()) else { return false };
    let empty = chunk.member("choices").and_then(Json::items).is_none_or(<[_]>::is_empty);
    empty && given(&chunk, "usage").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two choices, log-probabilities, a tool call in pieces, reasoning, an unknown member, and a usage chunk.
    const STREAM: &str = concat!(
        r#"data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","obfuscation":"zz","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}"#,
        "\n\n",
        r#"data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"Hel","reasoning_content":"a "},"logprobs":{"content":[{"token":"Hel","logprob":-0.10000000000000001,"top_logprobs":[]}],"refusal":null},"finish_reason":null}],"usage":null}"#,
        "\n\n: keep-alive\n\n",
        r#"data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":1,"delta":{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"t","type":"function","function":{"name":"f","arguments":""}}]},"finish_reason":null}],"usage":null}"#,
        "\n\n",
        r#"data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"lo","reasoning_content":"b","x_new":7},"logprobs":{"content":[{"token":"lo","logprob":-2e-1,"top_logprobs":[]}],"refusal":null},"finish_reason":null},{"index":1,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"a\""}}]},"finish_reason":null}],"usage":null}"#,
        "\n\n",
        r#"data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":1,"delta":{"tool_calls":[{"index":0,"function":{"arguments":":1}"}}]},"finish_reason":null}],"usage":null}"#,
        "\n\n",
        r#"data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}"#,
        "\n\n",
        r#"data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":1,"delta":{},"finish_reason":"tool_calls"}],"usage":null}"#,
        "\n\n",
        r#"data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}"#,
        "\n\ndata: [DONE]\n\n",
    );

    const WHOLE: &str = concat!(
        r#"{"id":"c","created":1,"model":"m","object":"chat.completion","choices":["#,
        r#"{"index":0,"message":{"role":"assistant","content":"Hello","reasoning_content":"a b","x_new":7},"#,
        r#""logprobs":{"content":[{"token":"Hel","logprob":-0.10000000000000001,"top_logprobs":[]},"#,
        r#"{"token":"lo","logprob":-2e-1,"top_logprobs":[]}],"refusal":null},"finish_reason":"stop"},"#,
        r#"{"index":1,"message":{"role":"assistant","content":null,"tool_calls":[{"id":"t","type":"function","#,
        r#""function":{"name":"f","arguments":"{\"a\":1}"}}]},"finish_reason":"tool_calls"}],"#,
        r#""usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}"#,
    );

    #[test]
    fn a_stream_folds_into_a_whole() {
        assert_eq!(
            fold(STREAM.as_bytes()).unwrap().canonical(),
            Json::parse(WHOLE.as_bytes()).unwrap().canonical()
        );
        // Numbers keep their spelling.
        assert!(fold(STREAM.as_bytes()).unwrap().to_string().contains("-0.10000000000000001"));
    }

    #[test]
    fn what_is_unfolded_folds_back() {
        #[track_caller]
        fn check(whole: &str) {
            let json = Json::parse(whole.as_bytes()).unwrap();
            let stream = unfold(&json, true).unwrap();
            assert_eq!(fold(&stream).unwrap().canonical(), json.canonical());
            let mut progress = Progress::new(json.member("choices").unwrap().items().unwrap().len() as u64);
            sse::events(&stream).for_each(|event| progress.see(event));
            assert!(progress.is_complete() && progress.is_done());
        }
        check(WHOLE);
        check(
            r#"{"id":"c","object":"chat.completion","timings":{"ms":1.5},"choices":[{"index":0,"message":{"role":"assistant","content":null,"refusal":"no \"é\"\n"},"logprobs":null,"finish_reason":"content_filter","stop_reason":null}],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#,
        );
    }

    #[test]
    fn usage_is_shown_to_those_who_asked() {
        let json = Json::parse(WHOLE.as_bytes()).unwrap();
        let usage = |stream: &[u8]| fold(stream).unwrap().member("usage").map(ToString::to_string);
        let stated = r#"{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}"#;
        assert_eq!(usage(&unfold(&json, true).unwrap()).as_deref(), Some(stated));
        assert_eq!(usage(&unfold(&json, false).unwrap()), None);
        let quiet = without_usage(&Bytes::from_static(STREAM.as_bytes()));
        assert_eq!(usage(&quiet), None);
        let event = STREAM.find("data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[],").unwrap();
        let end = event + sse::end_of_event(&STREAM.as_bytes()[event..]).unwrap();
        assert_eq!(quiet, [&STREAM[..event], &STREAM[end..]].concat());
        assert_eq!(without_usage(&quiet), quiet);
    }

    #[test]
    fn an_end_is_an_end() {
        /// After how many events the answer is complete.
        #[track_caller]
        fn check(choices: u64, stream: &str, complete: Option<usize>, failed: Option<&str>) {
            let mut progress = Progress::new(choices);
            let mut found = None;
            for (index, event) in sse::events(stream.as_bytes()).enumerate() {
                progress.see(event);
                if progress.is_complete() && found.is_none() {
                    found = Some(index + 1);
                }
            }
            assert_eq!((found, progress.failed()), (complete, failed));
        }
        check(2, STREAM, Some(8), None);
        check(1, STREAM, Some(7), None);
        check(3, STREAM, Some(10), None);
        let cut = STREAM.rfind("data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":1,\"delta\":{}");
        check(2, &STREAM[..cut.unwrap()], None, None);
        check(
            1,
            "data: {\"error\":{\"message\":\"busy\"}}\n\ndata: [DONE]\n\n",
            None,
            Some(r#"{"message":"busy"}"#),
        );
        check(1, "event: error\ndata: oops\n\n", None, Some("oops"));
        check(1, "error: {\"code\":500}\n\n", None, Some("{\"code\":500}"));
        check(1, "data: [DONE]\n\n", Some(1), None);
        check(1, "", None, None);
    }
}
