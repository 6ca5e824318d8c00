//! What must hold for any bytes: requests and answers of each API, and server-sent events.
//!
//! The doors of `fuzz/`; the seeds and findings of `fuzz/corpus/` run through them in the ordinary tests too. Must not
//! open sockets. Invariant: each function asserts a property, not only that nothing panics.

use std::collections::BTreeMap;

use bytes::Bytes;
use tuition_ledger::{Amount, Answer, Json, Query, Record, Reply, Signal, Timestamp};

use crate::dialect::openai::stream::{self, MEDIA, Progress};
use crate::dialect::openai::{chat, embeddings as vectors};
use crate::dialect::{Asked, Operation, Target, given, open_inference as tensors, sse};

const JSON: &str = "application/json";
/// The most items that an answer is taken apart into.
const ITEMS_MAX: u8 = 8;

/// However a stream is cut into pieces, its events are the same, and they are its bytes.
pub fn sse(data: &[u8]) {
    let Some((cut, body)) = data.split_first_chunk::<2>() else { return };
    let cut = usize::from(u16::from_le_bytes(*cut)).min(body.len());
    let whole: Vec<&[u8]> = sse::events(body).collect();
    assert_eq!(whole.concat(), body, "the events are not the stream's bytes");
    let (mut pieces, mut seen) = (Vec::new(), 0);
    for end in [cut, body.len()] {
        while let Some(length) = sse::end_of_event(&body[seen..end]) {
            pieces.push(&body[seen..seen + length]);
            seen += length;
        }
    }
    if seen < body.len() {
        pieces.push(&body[seen..]);
    }
    assert_eq!(pieces, whole, "cut at {cut}, other events came out");
    let mut progress = Progress::new(1);
    let mut was_complete = false;
    for event in pieces {
        progress.see(event);
        assert!(!was_complete || progress.is_complete(), "a complete answer became incomplete");
        was_complete = progress.is_complete();
    }
}

/// A chat's canonical input is a request with the same canonical input and the same worst case, however it was spelled.
pub fn chat_request(data: &[u8]) {
    let target = Target::default();
    let Some(asked) = read(Operation::Chat, &target, data) else { return };
    assert_eq!((asked.parts.len(), asked.parts[0].calls), (1, asked.choices));
    for spelling in [asked.parts[0].input.clone(), respelled(data)] {
        let again =
            read(Operation::Chat, &target, spelling.as_bytes()).expect("another spelling is read as well");
        assert_eq!(again.parts[0].input, asked.parts[0].input, "another spelling has another key");
        assert_eq!(worst(&again), worst(&asked), "another spelling has another worst case");
    }
}

/// A whole answer unfolded into a stream and folded again says the same, and its stream is complete.
pub fn chat_reply(data: &[u8]) {
    let Ok(reply) = chat::reply(JSON, Bytes::copy_from_slice(data)) else { return };
    let record = record(0, &reply, JSON);
    let whole = chat::render(false, false, &record).expect("a whole answer is shown as it came");
    assert_eq!(whole.body, data, "the answer's bytes changed");
    let streamed = chat::render(true, true, &record).expect("a whole answer becomes a stream");
    let mut progress = Progress::new(1);
    sse::events(&streamed.body).for_each(|event| progress.see(event));
    if progress.failed().is_none() {
        assert!(progress.is_complete(), "the stream of a whole answer has no end");
    }
    let json = Json::parse(data).expect("it was read before");
    if is_ordinary(&json) {
        let again = chat::reply(MEDIA, streamed.body).expect("its stream is read as well");
        assert_eq!(again.usage, reply.usage, "the stream has another usage");
        assert_eq!(again.answers[0].signals, reply.answers[0].signals, "the stream says something else");
    }
}

/// A stream whose choices ended, folded, unfolded and folded again, is what it was after the first time.
pub fn chat_stream(data: &[u8]) {
    let Ok(folded) = stream::fold(data) else { return };
    let unfolded = stream::unfold(&folded, true).expect("what was folded unfolds");
    let again = stream::fold(&unfolded).expect("what was unfolded folds");
    let choices = folded.member("choices").and_then(Json::items).unwrap_or_default();
    let finished = |choice: &Json<'_>| given(choice, "finish_reason").is_some();
    if !choices.is_empty() && choices.iter().all(finished) {
        let words = "folding what was unfolded says something else";
        assert_eq!(again.canonical(), folded.canonical(), "{words}");
    }
    let silent = stream::without_usage(&Bytes::copy_from_slice(data));
    let silent = stream::fold(&silent).expect("fewer events of a stream that folds fold as well");
    assert_eq!(silent.member("choices"), folded.member("choices"), "without its usage the answer is another");
}

/// Each text is a request of its own with the same key; a smaller request asks for the texts that were chosen; vectors
/// put together and taken apart again are the same bits.
pub fn embeddings(data: &[u8]) {
    let Some((how, body)) = data.split_first() else { return };
    if how & 1 == 0 {
        return items(Operation::Embeddings, &Target::default(), how >> 1, body);
    }
    let asked = 1 + usize::from((how >> 1) % ITEMS_MAX);
    let Ok(reply) = vectors::reply(asked, JSON, body) else { return };
    assert_eq!(reply.answers.len(), asked);
    let records: Vec<Record> = (0..asked).map(|index| record(index, &reply, JSON)).collect();
    let records: Vec<&Record> = records.iter().collect();
    for base64 in [true, false] {
        let Ok(rendered) = vectors::render(base64, &records) else { continue };
        let again = vectors::reply(asked, JSON, &rendered.body).expect("what is put together is taken apart");
        for (again, first) in again.answers.iter().zip(&reply.answers) {
            let (again, first) = (bits(again), bits(first));
            let finite = first.iter().flatten().all(|bits| f32::from_bits(*bits).is_finite());
            assert!(again == first || !(base64 || finite), "the vector {first:?} became {again:?}");
        }
    }
}

/// Each row is a request of its own with the same key; a smaller request asks for the rows that were chosen; rows put
/// together and taken apart again are the same.
pub fn infer(data: &[u8]) {
    let Some((how, body)) = data.split_first() else { return };
    let target = Target {
        path: "/v2/models/m/infer".into(),
        model: Some("m".into()),
        version: None,
        rows: how & 2 != 0,
    };
    if how & 1 == 0 {
        return items(Operation::Infer, &target, how >> 2, body);
    }
    let rows = target.rows.then_some(1 + usize::from((how >> 2) % ITEMS_MAX));
    let Ok(reply) = tensors::reply(rows, JSON, Bytes::copy_from_slice(body)) else { return };
    assert_eq!(reply.answers.len(), rows.unwrap_or(1));
    let records: Vec<Record> = (0..reply.answers.len()).map(|index| record(index, &reply, JSON)).collect();
    let records: Vec<&Record> = records.iter().collect();
    let Ok(rendered) = tensors::render(None, "m", None, target.rows, &records) else { return };
    let again = tensors::reply(rows, JSON, rendered.body).expect("what is put together is taken apart");
    for (again, first) in again.answers.iter().zip(&reply.answers) {
        assert_eq!(again.body, first.body, "a row became another");
    }
}

/// What holds of the items of a request: each alone has the key that it has in the batch, and a smaller body asks for
/// those whose bit in `chosen` is set.
fn items(operation: Operation, target: &Target, chosen: u8, body: &[u8]) {
    let Some(asked) = read(operation, target, body) else { return };
    let inputs = |asked: &Asked| asked.parts.iter().map(|part| part.input.clone()).collect::<Vec<_>>();
    let again =
        read(operation, target, respelled(body).as_bytes()).expect("another spelling is read as well");
    assert_eq!(inputs(&again), inputs(&asked), "another spelling has other keys");
    let led: Vec<usize> = (0..asked.parts.len()).filter(|index| chosen & (1 << (index % 8)) != 0).collect();
    if led.is_empty() || operation == Operation::Infer && !target.rows {
        return;
    }
    let smaller = match operation {
        Operation::Embeddings => vectors::narrow(body, &led),
        _ => tensors::narrow(body, &led),
    };
    let smaller = smaller.expect("a request that was read is made smaller");
    let found = read(operation, target, &smaller).expect("a smaller request is read");
    let expected: Vec<String> = led.iter().map(|index| asked.parts[*index].input.clone()).collect();
    assert_eq!(inputs(&found), expected, "a smaller request asks for something else");
}

fn read(operation: Operation, target: &Target, body: &[u8]) -> Option<Asked> {
    let json = Json::parse(body).ok()?;
    operation.read(target, json, body.len()).ok()
}

/// The same JSON with its members in another order and spaces between them.
fn respelled(body: &[u8]) -> String {
    fn write(json: &Json<'_>, out: &mut String) {
        match json {
            Json::Array(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    out.push_str(if index > 0 { " ,\n" } else { " " });
                    write(item, out);
                }
                out.push_str(" ]");
            }
            Json::Object(members) => {
                out.push('{');
                for (index, (name, value)) in members.iter().rev().enumerate() {
                    out.push_str(if index > 0 { " ,\t" } else { "\r\n" });
                    out.push_str(&Json::String(name.clone()).to_string());
                    out.push_str(" : ");
                    write(value, out);
                }
                out.push_str(" }");
            }
            scalar => out.push_str(&scalar.to_string()),
        }
    }
    let mut out = String::new();
    write(&Json::parse(body).expect("it was read before"), &mut out);
    out
}

/// What a hold is made of, but for the bytes of the body.
fn worst(asked: &Asked) -> (u64, u64, impl PartialEq + std::fmt::Debug) {
    (asked.choices, asked.overhead_tokens, asked.output)
}

/// Whether the choices of an answer stand in the order of their indexes, as they do in the API.
fn is_ordinary(whole: &Json<'_>) -> bool {
    let choices = whole.member("choices").and_then(Json::items).unwrap_or_default();
    let index = |(position, choice): (usize, &Json<'_>)| {
        choice.member("index").and_then(Json::as_u64).unwrap_or(position as u64)
    };
    let indexes: Vec<u64> = choices.iter().enumerate().map(index).collect();
    indexes.windows(2).all(|pair| pair[0] < pair[1])
        && choices.iter().all(|choice| choice.member("delta").is_none())
}

fn bits(answer: &Answer) -> Option<Vec<u32>> {
    answer.signals.iter().find_map(|signal| match signal {
        Signal::Embedding(floats) => Some(floats.0.iter().map(|value| value.to_bits()).collect()),
        _ => None,
    })
}

/// The record of one answer of a reply.
fn record(index: usize, reply: &Reply, media: &str) -> Record {
    let query = Query {
        dialect: String::new(),
        operation: String::new(),
        teacher: String::new(),
        revision: String::new(),
        sample: 0,
        headers: BTreeMap::new(),
        input: index.to_string(),
    };
    Record {
        key: query.key(),
        query,
        model: "m".into(),
        answer: reply.answers[index].clone(),
        envelope: reply.envelope.clone(),
        media: media.to_owned(),
        share: Amount { calls: 1, ..Amount::ZERO },
        priced: false,
        at: Timestamp(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs every seed and every finding of a target.
    fn replay(target: &str, check: fn(&[u8])) {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
        let mut count = 0;
        for seed in std::fs::read_dir(&folder).unwrap() {
            let seed = seed.unwrap().path();
            println!("{}", seed.display());
            check(&std::fs::read(seed).unwrap());
            count += 1;
        }
        assert!(count > 0, "{} is empty", folder.display());
    }

    #[test]
    fn what_fuzzing_found_stays_found() {
        replay("sse", sse);
        replay("chat_request", chat_request);
        replay("chat_reply", chat_reply);
        replay("chat_stream", chat_stream);
        replay("embeddings", embeddings);
        replay("infer", infer);
    }
}
