//! The official OpenAI SDK in front of the proxy, a scripted teacher behind it that keeps its own bill.
//! Wants the Python packages `openai`.

use crate::support::{Client, Python, TestServer, Upstream, price, teacher, vector};
use serde_json::{Value, json};

const CALLS: &str = "[[budget]]\nname = \"pilot\"\ncalls = ";

async fn ask(server: &TestServer, concurrency: usize, requests: Vec<Value>) -> Value {
    let input = json!({
        "base_url": format!("{}/v1", server.url()), "api_key": "of-the-client",
        "concurrency": concurrency, "requests": requests,
    });
    Python::with("openai").run("ask.py", &[], &input).await
}

fn chat(kind: &str, content: &str, more: Value) -> Value {
    let mut args = json!({"model": "scripted", "messages": [{"role": "user", "content": content}]});
    args.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"kind": kind, "args": args})
}

fn embed(texts: &[&str], more: Value) -> Value {
    let mut args = json!({"model": "scripted", "input": texts});
    args.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"kind": "embeddings", "args": args})
}

fn results(answer: &Value) -> &Vec<Value> {
    answer["results"].as_array().unwrap()
}

fn outcome(result: &Value) -> &str {
    result["headers"]["x-tuition-outcome"].as_str().unwrap_or_else(|| panic!("no outcome: {result}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scripted_teacher_alone_satisfies_the_sdk_and_charges_each_call() {
    let upstream = Upstream::start().await;
    let more = json!({"logprobs": true, "top_logprobs": 1, "stream_options": {"include_usage": true}});
    let input = json!({
        "base_url": format!("{}/v1", upstream.url()), "api_key": "mine", "concurrency": 1,
        "requests": [
            chat("chat", "one two [503 once]", json!({"n": 2})), chat("stream", "one two", more),
            embed(&["a", "b"], json!({})), chat("stream", "one two [cut]", json!({})),
        ],
    });
    let answer = Python::with("openai").run("ask.py", &[], &input).await;
    let [plain, stream, vectors, cut] = &results(&answer)[..] else { panic!("{answer}") };
    assert_eq!(plain["choices"][1]["text"], "R\u{e9}ponse 1 \u{7b54}: once] [503 two one");
    assert_eq!(stream["choices"][0]["text"], "R\u{e9}ponse 0 \u{7b54}: two one");
    assert_eq!(stream["usage"]["completion_tokens"], 3);
    assert_eq!(numbers(&vectors["vectors"][1]), vector("b"));
    assert_eq!(cut["status"], Value::Null, "{cut}");
    assert_eq!((answer["sent"].as_u64(), upstream.asked()), (Some(5), 5), "the 503 is tried again");
    let bill = upstream.bill_of("mine");
    assert_eq!((bill, bill.requests, bill.inferences), (upstream.bill(), 4, 6));
    // Input: 4 + 3, 2 + 3, 2, 3 + 3 words; output: 2 * 5, 3, 0, 4 tokens.
    assert_eq!((bill.tokens, bill.usd().as_str()), (20 + 17, "0.000013200"));
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_calls_of_five_hundred_are_bought_and_the_rest_refused_once() {
    let upstream = Upstream::start().await;
    let server = TestServer::start(&format!("{}\n{CALLS}50", teacher(&upstream, "")));
    let requests = (0..500).map(|at| chat("chat", &format!("question {at}"), json!({}))).collect();
    let answer = ask(&server, 100, requests).await;

    assert_eq!((upstream.bill().inferences, upstream.asked()), (50, 50));
    let refused: Vec<&Value> = results(&answer).iter().filter(|result| result["status"] == 402).collect();
    let bought = results(&answer).iter().filter(|result| result["status"] == 200).count();
    assert_eq!((bought, refused.len()), (50, 450), "{answer}");
    assert_eq!(answer["sent"], 500, "a refusal was retried");
    for refusal in refused {
        assert_eq!(refusal["code"], "budget_exhausted", "{refusal}");
        assert_eq!(refusal["retries"], 0, "{refusal}");
        assert_eq!(refusal["headers"]["x-should-retry"], "false", "{refusal}");
    }
    let statement = Client::new(&server.url()).statement().await;
    assert_eq!(statement.total("settled").calls, 50);
    assert_eq!(statement.committed().calls, 50);
    assert_eq!(statement.budget("pilot")["left"]["calls"], 0);
    for headers in upstream.headers() {
        assert_eq!(headers["authorization"], "Bearer sk-of-the-teacher");
        assert!(headers.keys().all(|name| !name.as_str().starts_with("x-tuition")), "{headers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_identical_at_once_are_one_call() {
    let upstream = Upstream::start().await;
    let server = TestServer::start(&format!("{}\n{CALLS}50", teacher(&upstream, "")));
    let answer = ask(&server, 200, vec![chat("chat", "the same [slow 300]", json!({})); 200]).await;

    assert_eq!(upstream.bill().inferences, 1);
    let bought = results(&answer).iter().filter(|result| outcome(result) == "bought").count();
    assert_eq!(bought, 1);
    for result in results(&answer) {
        assert_eq!(result["choices"], results(&answer)[0]["choices"], "{result}");
        assert!(["bought", "followed", "known"].contains(&outcome(result)), "{result}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_text_is_bought_once_and_stands_under_its_index() {
    let upstream = Upstream::start().await;
    let server = TestServer::start(&format!("{}\n{CALLS}50", teacher(&upstream, "")));
    let batches: [(&[&str], Value, &str); 6] = [
        (&["a", "b", "c"], json!({}), "bought"),
        (&["b", "c", "d"], json!({}), "mixed"),
        (&["d", "a", "a", "b"], json!({"encoding_format": "float"}), "known"),
        (&["c"], json!({"encoding_format": "float"}), "known"),
        (&["e", "e"], json!({"encoding_format": "float"}), "bought"),
        (&["e", "c"], json!({"encoding_format": "base64"}), "known"),
    ];
    let requests = batches.iter().map(|(texts, more, _)| embed(texts, more.clone())).collect();
    let answer = ask(&server, 1, requests).await;

    for ((texts, _, expected), result) in batches.iter().zip(results(&answer)) {
        assert_eq!(outcome(result), *expected, "{texts:?}: {result}");
        // Asked for as base64 the SDK hands the text on; otherwise it decodes what came.
        let vectors: Vec<Vec<f32>> = result["vectors"].as_array().unwrap().iter().map(numbers).collect();
        assert_eq!(vectors, texts.iter().map(|text| vector(text)).collect::<Vec<_>>(), "{texts:?}");
    }
    assert_eq!(upstream.bill().inferences, 5);
    let items: Vec<String> = upstream.charges().into_iter().flat_map(|charge| charge.items).collect();
    assert_eq!(items, ["a", "b", "c", "d", "e"]);
}

fn numbers(vector: &Value) -> Vec<f32> {
    use base64::Engine as _;
    match vector.as_str() {
        Some(text) => {
            let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
            bytes.chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
        }
        None => vector.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_questions_are_known_and_others_are_not() {
    let upstream = Upstream::start().await;
    let server = TestServer::start(&format!("{}\n{CALLS}50", teacher(&upstream, "")));
    let client = Client::new(&server.url());
    let rows = [
        ("bought", r#"{"model":"scripted","messages":[{"role":"user","content":"one"}],"temperature":0}"#),
        ("known", r#"{"temperature":0,"messages":[{"content":"one","role":"user"}],"model":"scripted"}"#),
        (
            "known",
            "{ \"model\" : \"scripted\",\n\t\"messages\":[ {\"role\":\"user\",\"content\":\"one\"} ], \"temperature\" :0}",
        ),
        ("known", r#"{"model":"scripted","messages":[{"role":"user","content":"one"}],"temperature":0.0}"#),
        ("known", r#"{"model":"scripted","messages":[{"role":"user","content":"one"}],"temperature":0E5}"#),
        (
            "known",
            r#"{"model":"scripted","messages":[{"role":"user","content":"\u006fne"}],"temperature":0}"#,
        ),
        (
            "known",
            r#"{"model":"scripted","messages":[{"role":"user","content":"one"}],"temperature":0,"user":"u"}"#,
        ),
        (
            "known",
            r#"{"model":"scripted","messages":[{"role":"user","content":"one"}],"temperature":0,"stream":false}"#,
        ),
        ("bought", r#"{"model":"scripted","messages":[{"role":"user","content":"one"}],"temperature":1}"#),
        (
            "bought",
            r#"{"model":"scripted","messages":[{"role":"user","content":"one"}],"repetition_penalty":1.1}"#,
        ),
        (
            "bought",
            r#"{"model":"scripted","messages":[{"role":"user","content":"one"}],"repetition_penalty":1.2}"#,
        ),
        (
            "known",
            r#"{"model":"scripted","messages":[{"role":"user","content":"one"}],"repetition_penalty":1.20}"#,
        ),
        (
            "bought",
            r#"{"model":"scripted","messages":[{"role":"user","content":"one"}],"nobody_knows":null}"#,
        ),
        (
            "bought",
            r#"{"model":"scripted","messages":[{"role":"user","content":"one"}],"seed":9007199254740993}"#,
        ),
        (
            "bought",
            r#"{"model":"scripted","messages":[{"role":"user","content":"one"}],"seed":9007199254740992}"#,
        ),
        (
            "known",
            r#"{"model":"scripted","seed":9007199254740993,"messages":[{"role":"user","content":"one"}]}"#,
        ),
    ];
    for (expected, body) in rows {
        let reply = client.post("/v1/chat/completions", body).await.unwrap();
        assert_eq!((reply.status, reply.header("x-tuition-outcome")), (200, expected), "{body}: {reply:?}");
    }
    let bought = rows.iter().filter(|(expected, _)| *expected == "bought").count();
    assert_eq!(upstream.asked(), bought as u64);

    let twice = r#"{"model":"scripted","seed":1,"messages":[{"role":"user","content":"one"}],"seed":2}"#;
    let reply = client.post("/v1/chat/completions", twice).await.unwrap();
    assert_eq!(reply.status, 400, "{reply:?}");
    assert!(reply.json()["error"]["message"].as_str().unwrap().contains("`seed`"), "{reply:?}");
    let sampled = client.with("x-tuition-sample", "1").post("/v1/chat/completions", rows[0].1).await.unwrap();
    assert_eq!(sampled.header("x-tuition-outcome"), "bought");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_a_plain_call_and_a_stream_again_are_one_call() {
    let upstream = Upstream::start().await;
    let budget = "[[budget]]\nname = \"pilot\"\nusd = \"0.01\"";
    let server = TestServer::start(&format!("{}\n{}\n{budget}", teacher(&upstream, ""), price()));
    let more = json!({"logprobs": true, "top_logprobs": 2, "n": 2});
    let mut streamed = more.clone();
    streamed["stream_options"] = json!({"include_usage": true});
    let question = "tell me \u{e9}\u{e9}n ding [cached 7]";
    let requests = vec![
        chat("stream", question, streamed.clone()),
        chat("chat", question, more.clone()),
        chat("stream", question, streamed),
    ];
    let answer = ask(&server, 1, requests).await;

    let [first, second, third] = &results(&answer)[..] else { panic!("{answer}") };
    assert_eq!((outcome(first), outcome(second), outcome(third)), ("bought", "known", "known"));
    for part in ["choices", "usage"] {
        assert_eq!(first[part], second[part]);
        assert_eq!(first[part], third[part]);
    }
    assert_eq!(first["choices"][1]["text"], "R\u{e9}ponse 1 \u{7b54}: 7] [cached ding \u{e9}\u{e9}n me tell");
    assert_eq!(first["choices"][0]["logprobs"].as_array().unwrap().len(), 7);
    assert_eq!(first["choices"][0]["logprobs"][3]["top_logprobs"].as_array().unwrap().len(), 2);
    assert_eq!(upstream.asked(), 1);
    let statement = Client::new(&server.url()).statement().await;
    assert_eq!(statement.0["totals"]["usd"]["settled"], upstream.bill().usd());
    assert_eq!(statement.total("settled").calls, 2, "n = 2 is two inferences");
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_of_a_stream_and_of_a_plain_call_get_the_whole_answer() {
    let upstream = Upstream::start().await;
    let server = TestServer::start(&format!("{}\n{CALLS}50", teacher(&upstream, "")));
    let kinds = ["stream", "chat", "stream", "chat", "stream", "stream"];
    let requests = kinds.iter().map(|kind| chat(kind, "told to all [slow 400]", json!({}))).collect();
    let answer = ask(&server, kinds.len(), requests).await;
    assert_eq!(upstream.asked(), 1);
    for result in results(&answer) {
        assert_eq!(result["choices"], results(&answer)[0]["choices"], "{result}");
        assert_eq!(result["choices"][0]["finish"], "stop", "{result}");
    }
}
