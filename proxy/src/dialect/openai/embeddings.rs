//! OpenAI embeddings: each text is an item, so that a batch buys only what nobody bought before.
//!
//! Must not know HTTP. Invariants: numbers are kept as bits (those that came as text keep their spelling too); every
//! vector stands under the index of its text.

use std::borrow::Cow;
use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use tuition_ledger::{Answer, Floats, InputBound, Json, OutputBound, Record, Reply, Signal};

use super::{dearer_tier, usage, without_presentation};
use crate::dialect::{Asked, BadRequest, Part, Presentation, Rendered, Unreadable, number, string};

/// Tokens that a model may put around each text (beginning, end, separators, an instruction's frame).
const FRAME_TOKENS: u64 = 16;
/// What `input` has to be.
const INPUT: &str = "a text, a list of texts, a list of tokens, or a list of lists of tokens";

/// Takes a request apart.
pub(crate) fn read(model: String, json: Json<'_>) -> Result<Asked, BadRequest> {
    let base64 = match json.member("encoding_format") {
        None | Some(Json::Null) => false,
        Some(format) => match format.as_str() {
            Some("float") => false,
            Some("base64") => true,
            _ => return Err(BadRequest::wrong("encoding_format", "`float` or `base64`")),
        },
    };
    let unbounded = dearer_tier(&json);
    let Json::Object(mut members) = without_presentation(json) else {
        return Err(BadRequest::missing("input", INPUT));
    };
    let place = members.iter().position(|(name, _)| name == "input");
    let place = place.ok_or_else(|| BadRequest::missing("input", INPUT))?;
    let input = std::mem::replace(&mut members[place].1, Json::Null);
    let bounds = texts(&input)?.into_iter().map(bound_of).collect::<Result<Vec<_>, _>>()?;
    let texts = match input {
        Json::Array(items) if items.first().is_some_and(|first| !is_token(first)) => items,
        one => vec![one],
    };
    let mut item = Json::Object(members);
    let parts = texts.into_iter().zip(bounds).map(|(text, bound)| {
        if let Json::Object(members) = &mut item {
            members[place].1 = text;
        }
        Part { input: item.canonical(), calls: 1, bound }
    });
    Ok(Asked {
        model,
        parts: parts.collect(),
        overhead_tokens: 0,
        output: OutputBound::Unmetered,
        choices: 1,
        unbounded,
        wanted: Presentation::Embeddings { base64 },
    })
}

fn is_token(json: &Json<'_>) -> bool {
    matches!(json, Json::Number(_))
}

/// The texts of an `input`: a list of numbers is one of them.
fn texts<'j, 'a>(input: &'j Json<'a>) -> Result<Vec<&'j Json<'a>>, BadRequest> {
    match input {
        Json::String(_) => Ok(vec![input]),
        Json::Array(items) if items.is_empty() => Err(BadRequest::wrong("input", "a non-empty list")),
        Json::Array(items) if items.iter().any(is_token) => Ok(vec![input]),
        Json::Array(items) => Ok(items.iter().collect()),
        _ => Err(BadRequest::missing("input", INPUT)),
    }
}

/// The most tokens of one text: each of its bytes, or the tokens that it already is.
fn bound_of(text: &Json<'_>) -> Result<InputBound, BadRequest> {
    let length = match text {
        Json::String(text) => text.len(),
        Json::Array(tokens) if tokens.iter().all(|token| token.as_u64().is_some()) => tokens.len(),
        _ => return Err(BadRequest::wrong("input", INPUT)),
    };
    let length = u64::try_from(length).unwrap_or(u64::MAX);
    Ok(InputBound::Bytes(length.saturating_add(FRAME_TOKENS)))
}

/// A body that asks for the texts `led` only.
pub(crate) fn narrow(body: &[u8], led: &[usize]) -> Result<Bytes, BadRequest> {
    let mut json = Json::parse(body)?;
    if let Json::Object(members) = &mut json {
        for (_, input) in members.iter_mut().filter(|(name, _)| name == "input") {
            if let Json::Array(items) = input
                && !items.iter().any(is_token)
            {
                *input = Json::Array(led.iter().filter_map(|index| items.get(*index).cloned()).collect());
            }
        }
    }
    Ok(json.to_string().into())
}

/// Takes a complete reply to `asked` texts apart.
pub(crate) fn reply(asked: usize, media: &str, body: &[u8]) -> Result<Reply, Unreadable> {
    let mut json = Json::parse(body)
        .map_err(|error| Unreadable(format!("the answer is not the JSON that is taken: {error}")))?;
    let usage = usage(&json);
    let Json::Object(members) = &mut json else {
        return Err(Unreadable("the answer is no JSON object".into()));
    };
    let place = members.iter().position(|(name, _)| name == "data");
    let Some((_, Json::Array(data))) = place.map(|place| members.remove(place)) else {
        return Err(Unreadable("the answer has no `data`".into()));
    };
    if data.len() != asked {
        return Err(Unreadable(format!("{asked} texts were asked, and {} came back", data.len())));
    }
    let mut answers: Vec<Option<Answer>> = vec![None; asked];
    for (position, item) in data.into_iter().enumerate() {
        let index = match item.member("index") {
            None => Some(position),
            Some(index) => index.as_u64().and_then(|index| usize::try_from(index).ok()),
        };
        let free = index.and_then(|index| answers.get_mut(index)).filter(|slot| slot.is_none());
        let slot = free.ok_or_else(|| Unreadable("an `index` of `data` is wrong or stands twice".into()))?;
        *slot = Some(answer(item));
    }
    // The usage belongs to the exchange, and answers may be put together from several.
    members.retain(|(name, _)| name != "usage");
    let envelope = json.to_string().into();
    let answers = answers.into_iter().flatten().collect();
    Ok(Reply { usage, media: media.to_owned(), envelope, answers })
}

/// Keeps a vector's bits, and its spelling where it came as text.
fn answer(item: Json<'_>) -> Answer {
    let Json::Object(mut members) = item else {
        return Answer { body: item.to_string().into(), signals: vec![] };
    };
    members.retain(|(name, _)| name != "index");
    let mut signals = vec![];
    if let Some(place) = members.iter().position(|(name, _)| name == "embedding")
        && let Some(floats) = floats(&members[place].1)
    {
        signals.push(Signal::Embedding(floats));
        if members[place].1.as_str().is_some() {
            members.remove(place);
        }
    }
    Answer { body: Json::Object(members).to_string().into(), signals }
}

/// Reads numbers, or base64 over little-endian single-precision numbers.
fn floats(embedding: &Json<'_>) -> Option<Floats> {
    match embedding {
        Json::String(text) => {
            let bytes = STANDARD.decode(text.as_ref()).ok()?;
            let (values, rest) = bytes.as_chunks::<4>();
            rest.is_empty().then(|| Floats(values.iter().map(|value| f32::from_le_bytes(*value)).collect()))
        }
        Json::Array(numbers) => {
            let numbers = numbers.iter().map(|number| match number {
                Json::Number(text) => text.parse::<f32>().ok().filter(|value| value.is_finite()),
                _ => None,
            });
            numbers.collect::<Option<_>>().map(Floats)
        }
        _ => None,
    }
}

/// Puts vectors together in the order of the request.
pub(crate) fn render(base64: bool, records: &[&Record]) -> Result<Rendered, Unreadable> {
    let first = records.first().ok_or_else(|| Unreadable("no answer".into()))?;
    let mut out = String::from("{\"object\":\"list\",\"data\":[");
    for (index, record) in records.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        out.push_str(&vector(base64, index, record)?);
    }
    out.push(']');
    let envelope = Json::parse(&first.envelope).unwrap_or(Json::Null);
    for (name, value) in envelope.members().unwrap_or_default() {
        if !matches!(name.as_ref(), "object" | "data" | "usage") {
            out.push_str(&format!(",{}:{value}", string(name)));
        }
    }
    // A text that stands twice was paid for once.
    let mut keys = BTreeSet::new();
    let paid = records.iter().filter(|record| keys.insert(record.key));
    let tokens = paid.map(|record| record.share.tokens).fold(0, u64::saturating_add);
    out.push_str(&format!(",\"usage\":{{\"prompt_tokens\":{tokens},\"total_tokens\":{tokens}}}}}"));
    Ok(Rendered { media: "application/json".into(), body: out.into() })
}

fn vector(base64: bool, index: usize, record: &Record) -> Result<String, Unreadable> {
    let body = Json::parse(&record.answer.body)
        .map_err(|error| Unreadable(format!("the recorded answer {} is damaged: {error}", record.key)))?;
    let floats = record.answer.signals.iter().find_map(|signal| match signal {
        Signal::Embedding(floats) => Some(floats),
        _ => None,
    });
    let embedding = match (floats, base64, body.member("embedding")) {
        (Some(floats), true, _) => {
            let bytes: Vec<u8> = floats.0.iter().flat_map(|value| value.to_le_bytes()).collect();
            Json::String(Cow::Owned(STANDARD.encode(bytes)))
        }
        (_, _, Some(spelled)) => spelled.clone(),
        (Some(floats), false, None) => {
            let spell = |value: &f32| match value.is_finite() {
                true => Json::Number(Cow::Owned(value.to_string())),
                false => Json::Null,
            };
            Json::Array(floats.0.iter().map(spell).collect())
        }
        (None, _, None) => return Err(Unreadable(format!("the answer {} has no vector", record.key))),
    };
    let mut members = vec![("object".into(), string("embedding")), ("index".into(), number(index as u64))];
    members.push(("embedding".into(), embedding));
    let others = body.members().unwrap_or_default().iter();
    let known = ["object", "index", "embedding"];
    members.extend(others.filter(|(name, _)| !known.contains(&name.as_ref())).cloned());
    Ok(Json::Object(members).to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tuition_ledger::{Amount, Query, Timestamp, Usage};

    use super::*;

    fn asked(body: &str) -> Result<Asked, String> {
        let json = Json::parse(body.as_bytes()).map_err(|error| error.to_string())?;
        read("m".into(), json).map_err(|error| error.to_string())
    }

    #[test]
    fn each_text_is_an_item() {
        #[track_caller]
        fn check(input: &str, expected: &[(&str, u64)]) {
            let asked = asked(&format!(r#"{{"model":"m","input":{input},"dimensions":2}}"#)).unwrap();
            let found: Vec<_> = asked.parts.iter().map(|part| (part.input.clone(), part.bound)).collect();
            let expected: Vec<_> = expected
                .iter()
                .map(|(text, tokens)| {
                    let input = format!(r#"{{"dimensions":2,"input":{text},"model":"m"}}"#);
                    (input, InputBound::Bytes(tokens + FRAME_TOKENS))
                })
                .collect();
            assert_eq!(found, expected);
            assert!(asked.parts.iter().all(|part| part.calls == 1));
        }
        check(r#""é""#, &[("\"é\"", 2)]);
        check(r#"["a","bc"]"#, &[("\"a\"", 1), ("\"bc\"", 2)]);
        check(r#"[1,2,3]"#, &[("[1,2,3]", 3)]);
        check(r#"[[1,2],[3]]"#, &[("[1,2]", 2), ("[3]", 1)]);
    }

    #[test]
    fn a_bad_field_is_named() {
        #[track_caller]
        fn check(body: &str, expected: &str) {
            assert_eq!(asked(body).unwrap_err(), expected);
        }
        check(r#"{"model":"m"}"#, &format!("`input` is missing or is not {INPUT}"));
        check(r#"{"model":"m","input":null}"#, &format!("`input` is missing or is not {INPUT}"));
        check(r#"{"model":"m","input":[]}"#, "`input` is not a non-empty list");
        check(r#"{"model":"m","input":["a",1]}"#, &format!("`input` is not {INPUT}"));
        check(r#"{"model":"m","input":[1,-1]}"#, &format!("`input` is not {INPUT}"));
        check(r#"{"input":"a","encoding_format":"hex"}"#, "`encoding_format` is not `float` or `base64`");
    }

    #[test]
    fn a_smaller_body_keeps_everything_else() {
        let body = br#"{"input":["a","b","c"],"model":"m","encoding_format":"base64","user":"u","x":1.50}"#;
        let expected = r#"{"input":["a","c"],"model":"m","encoding_format":"base64","user":"u","x":1.50}"#;
        assert_eq!(narrow(body, &[0, 2]).unwrap(), expected);
    }

    fn record(number: u8, answer: Answer, envelope: &Bytes) -> Record {
        let query = Query {
            dialect: "openai".into(),
            operation: "embeddings".into(),
            teacher: "t".into(),
            revision: String::new(),
            sample: 0,
            headers: BTreeMap::new(),
            input: number.to_string(),
        };
        Record {
            key: query.key(),
            query,
            model: "m".into(),
            answer,
            envelope: envelope.clone(),
            media: "application/json".into(),
            share: Amount { calls: 1, tokens: 2, ..Amount::ZERO },
            priced: false,
            at: Timestamp(0),
        }
    }

    #[test]
    fn vectors_are_put_together_under_their_index() {
        let (one, two) = (STANDARD.encode(1.5f32.to_le_bytes()), STANDARD.encode(0.1f32.to_le_bytes()));
        // The second of the data comes first, and one is base64 while the other is not.
        let body = format!(
            r#"{{"object":"list","data":[{{"object":"embedding","index":1,"embedding":[0.10]}},{{"object":"embedding","index":0,"embedding":"{one}"}}],"model":"m-1","usage":{{"prompt_tokens":4,"total_tokens":4}}}}"#
        );
        let reply = reply(2, "application/json", body.as_bytes()).unwrap();
        assert_eq!(reply.usage, Some(Usage { input: 4, ..Usage::default() }));
        let records: Vec<_> =
            (0..).zip(&reply.answers).map(|(n, answer)| record(n, answer.clone(), &reply.envelope)).collect();
        let shown = |base64, order: &[usize]| {
            let records: Vec<_> = order.iter().map(|index| &records[*index]).collect();
            String::from_utf8(render(base64, &records).unwrap().body.to_vec()).unwrap()
        };
        let frame = |vectors: [&str; 3], tokens| {
            let items: Vec<_> = vectors
                .iter()
                .enumerate()
                .map(|(index, vector)| {
                    format!(r#"{{"object":"embedding","index":{index},"embedding":{vector}}}"#)
                })
                .collect();
            format!(
                r#"{{"object":"list","data":[{}],"model":"m-1","usage":{{"prompt_tokens":{tokens},"total_tokens":{tokens}}}}}"#,
                items.join(",")
            )
        };
        assert_eq!(shown(false, &[1, 0, 1]), frame(["[0.10]", "[1.5]", "[0.10]"], 4));
        let quoted = |text: &str| format!("\"{text}\"");
        assert_eq!(shown(true, &[0, 1, 0]), frame([&quoted(&one), &quoted(&two), &quoted(&one)], 4));
    }

    #[test]
    fn a_reply_to_another_question_is_told_apart() {
        #[track_caller]
        fn check(data: &str, expected: &str) {
            let body = format!(r#"{{"data":{data}}}"#);
            assert_eq!(reply(2, "application/json", body.as_bytes()).unwrap_err().0, expected);
        }
        check(r#"[{"index":0,"embedding":[1]}]"#, "2 texts were asked, and 1 came back");
        let twice = "an `index` of `data` is wrong or stands twice";
        check(r#"[{"index":0,"embedding":[1]},{"index":0,"embedding":[1]}]"#, twice);
        check(r#"[{"index":0,"embedding":[1]},{"index":2,"embedding":[1]}]"#, twice);
        check("null", "the answer has no `data`");
    }
}
