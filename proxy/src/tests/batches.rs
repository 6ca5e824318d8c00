//! Batches: only what nobody bought before is asked, and everything goes back to its place.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::upstream::vector;
use super::{Reply, Setup, TestServer};

/// The vectors of a reply, floats or base64, checked against their texts.
#[track_caller]
fn check(reply: &Reply, texts: &[&str], outcome: &str, calls: &str) {
    assert_eq!((reply.status, reply.outcome.as_str(), reply.calls.as_str()), (200, outcome, calls));
    let body = reply.json();
    let data = body["data"].as_array().unwrap();
    assert_eq!(data.len(), texts.len());
    for (index, (item, text)) in data.iter().zip(texts).enumerate() {
        assert_eq!(item["index"], index);
        let found: Vec<f32> = match &item["embedding"] {
            Value::String(text) => {
                let bytes = STANDARD.decode(text).unwrap();
                bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
            }
            numbers => serde_json::from_value(numbers.clone()).unwrap(),
        };
        assert_eq!(found, vector(text), "{text}");
    }
}

#[tokio::test]
async fn texts_are_bought_one_by_one() {
    let server = TestServer::start(Setup::default()).await;
    let ask = async |input: Value, format: &str| {
        let body = json!({"model": "e", "input": input, "encoding_format": format});
        server.post("/v1/embeddings", &[], &body).await
    };
    let first = ask(json!(["a", "bb", "ccc"]), "base64").await;
    check(&first, &["a", "bb", "ccc"], "bought", "3");
    assert_eq!(first.json()["usage"], json!({"prompt_tokens": 9, "total_tokens": 9}));
    check(&ask(json!(["bb", "ccc", "dddd"]), "float").await, &["bb", "ccc", "dddd"], "mixed", "1");
    let body: Value = server.upstream.bill(|bill| serde_json::from_str(&bill.body).unwrap());
    assert_eq!(body["input"], json!(["dddd"]));
    check(&ask(json!(["dddd", "a", "dddd"]), "base64").await, &["dddd", "a", "dddd"], "known", "0");
    let one = ask(json!("bb"), "float").await;
    check(&one, &["bb"], "known", "0");
    assert_eq!((one.json()["model"].as_str(), one.key.len()), (Some("e-1"), 64));
    check(&ask(json!(["e", "e"]), "float").await, &["e", "e"], "bought", "1");
    assert_eq!((server.upstream.calls(), server.calls().await), (5, [5, 0, 0]));
}

fn rows(id: &str, rows: &[[f32; 2]]) -> Value {
    let data: Vec<f32> = rows.iter().flatten().copied().collect();
    let input = json!({"name": "x", "shape": [rows.len(), 2], "datatype": "FP32", "data": data});
    json!({"id": id, "inputs": [input]})
}

#[tokio::test]
async fn rows_are_bought_one_by_one() {
    let server = TestServer::start(Setup::default()).await;
    let path = "/v2/models/digits/infer";
    let first = server.post(path, &[], &rows("1", &[[1.0, 2.0], [3.0, 4.0]])).await;
    assert_eq!((first.outcome.as_str(), first.calls.as_str()), ("bought", "2"));
    let output = |data: Value, rows: u64| json!([{"name": "sum", "shape": [rows, 1], "datatype": "FP32", "data": data}]);
    assert_eq!(first.json()["outputs"], output(json!([3.0, 7.0]), 2));
    let second = server.post(path, &[], &rows("2", &[[5.0, 0.0], [3.0, 4.0], [1.0, 2.0]])).await;
    assert_eq!((second.outcome.as_str(), second.calls.as_str()), ("mixed", "1"));
    assert_eq!(second.json()["outputs"], output(json!([5.0, 7.0, 3.0]), 3));
    assert_eq!((&second.json()["id"], &second.json()["model_name"]), (&json!("2"), &json!("digits")));
    assert_eq!((server.upstream.calls(), server.calls().await), (3, [3, 0, 0]));
}
