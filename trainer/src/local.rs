//! A local ONNX model as a teacher at the desk: rows in, one answer a row.
//!
//! It must not know who pays or where answers are kept. Invariant: a row's answer is the same to the bit whether the
//! row was asked by itself or among others, by this program or by a client over HTTP.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tuition_ledger::{
    Answer, Billing, Cause, Failure, Json, Live, Order, Reply, Row, Signal, Teacher, Tensor,
};

use crate::form::{Form, FormError};
use crate::teacher::{Model, ModelError, Runtime};

/// How long one exchange may take.
const TIMEOUT: Duration = Duration::from_secs(600);

/// A teacher that runs in this process.
#[derive(Debug)]
pub struct LocalTeacher {
    name: String,
    model: Arc<Model>,
}

impl LocalTeacher {
    /// Loads a teacher's model, to run on `threads` threads.
    ///
    /// # Errors
    /// When the file is no model that this runtime runs.
    pub fn load(name: &str, runtime: &Runtime, path: &Path, threads: usize) -> Result<Self, ModelError> {
        let model = Model::load(runtime, path, threads)?;
        Ok(Self { name: name.to_owned(), model: Arc::new(model) })
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The form of the rows that it is asked for a data set: one input, and every output that it has.
    ///
    /// # Errors
    /// When the model has not exactly one input, or one of an unfit type.
    pub fn form(&self, revision: &str) -> Result<Form, FormError> {
        Form::of_ports(&self.name, revision, &self.name, self.model.inputs())
    }
}

#[async_trait]
impl Teacher for LocalTeacher {
    fn name(&self) -> &str {
        &self.name
    }

    fn timeout(&self) -> Duration {
        TIMEOUT
    }

    fn retries(&self) -> u32 {
        0
    }

    async fn ask(&self, order: &Arc<Order>, led: &[usize], _live: &Live) -> Result<Reply, Failure> {
        let texts: Vec<String> = led.iter().map(|index| order.items[*index].input.clone()).collect();
        let model = Arc::clone(&self.model);
        let answered = tokio::task::spawn_blocking(move || answer(&model, &texts)).await;
        let answered =
            answered.unwrap_or_else(|_| Err(Refused { status: 500, message: "the run panicked".into() }));
        let answers = answered.map_err(|refused| self.failure(refused))?;
        let envelope = Json::Object(vec![("model_name".into(), Json::String(order.model.as_str().into()))]);
        Ok(Reply {
            usage: None,
            media: "application/json".to_owned(),
            envelope: Bytes::from(envelope.canonical()),
            answers,
        })
    }
}

impl LocalTeacher {
    /// A local run that gave no answer cost nobody anything.
    fn failure(&self, refused: Refused) -> Failure {
        let body = Json::Object(vec![("error".into(), Json::String(refused.message.as_str().into()))]);
        Failure {
            teacher: self.name.clone(),
            cause: Cause::Status(refused.status),
            billing: Billing::Unbilled { retry: false, after: None },
            status: Some(refused.status),
            media: "application/json".to_owned(),
            body: Bytes::from(body.canonical()),
            message: refused.message,
        }
    }
}

/// Rows that the model does not answer.
#[derive(Debug)]
struct Refused {
    status: u16,
    message: String,
}

impl From<ModelError> for Refused {
    fn from(error: ModelError) -> Self {
        let status = if matches!(error, ModelError::Run { .. }) { 500 } else { 400 };
        Self { status, message: error.to_string() }
    }
}

/// Answers every row, in order, each in a run of its own: several models answer a row differently in its last digits
/// when it is run among others, and equal keys must mean interchangeable answers. On a processor it costs nothing.
fn answer(model: &Model, texts: &[String]) -> Result<Vec<Answer>, Refused> {
    let row =
        |text: &String| Row::parse(text).map_err(|error| Refused { status: 400, message: error.to_string() });
    texts.iter().map(|text| run(model, row(text)?)).collect()
}

fn run(model: &Model, row: Row) -> Result<Answer, Refused> {
    let wanted = wanted(model, &row)?;
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    let outputs = model.run(row.inputs, &wanted)?;
    if let Some(output) = outputs.iter().find(|output| output.shape.first() != Some(&1)) {
        let (name, shape) = (&output.name, &output.shape);
        let message =
            format!("the output `{name}` has shape {shape:?} for one row: the model is not one of rows");
        return Err(Refused { status: 500, message });
    }
    Ok(recorded(outputs))
}

/// The outputs that a row names, else all that can be read.
fn wanted(model: &Model, row: &Row) -> Result<Vec<String>, Refused> {
    let malformed =
        || Refused { status: 400, message: "`outputs` is no list of objects with a `name`".to_owned() };
    let named = row.others.iter().find(|(name, _)| name == "outputs");
    let Some((_, text)) = named else {
        let readable = model.outputs().iter().filter(|port| port.element_type.is_ok());
        return Ok(readable.map(|port| port.name.clone()).collect());
    };
    let json = Json::parse(text.as_bytes()).map_err(|_| malformed())?;
    let name = |output: &Json<'_>| output.member("name").and_then(Json::as_str).map(str::to_owned);
    json.items().and_then(|outputs| outputs.iter().map(name).collect()).ok_or_else(malformed)
}

fn recorded(outputs: Vec<Tensor>) -> Answer {
    let list = Json::Array(outputs.iter().map(Tensor::to_json).collect());
    let body = Json::Object(vec![("outputs".into(), list)]).canonical();
    Answer { body: Bytes::from(body), signals: outputs.into_iter().map(Signal::Tensor).collect() }
}

#[cfg(test)]
mod tests {
    use tuition_ledger::{Elements, InputBound, Item, Mode, OutputBound, Who};

    use super::*;
    use crate::example::{Input, PADDING};
    use crate::form::{DIALECT, OPERATION};
    use crate::installed;
    use crate::port::ElementType;

    fn magika() -> LocalTeacher {
        LocalTeacher::load("magika", &installed::runtime(), &installed::magika_model(), 1).unwrap()
    }

    fn order(rows: &[String]) -> Arc<Order> {
        let item = |text: &String| Item {
            key: magika_form().query(text.clone()).key(),
            input: text.clone(),
            sample: 0,
            calls: 1,
            bound: InputBound::Unmetered,
        };
        Arc::new(Order {
            who: Who { teacher: "magika".into(), run: None, key: None },
            dialect: DIALECT.into(),
            operation: OPERATION.into(),
            revision: "1".into(),
            model: "magika".into(),
            headers: std::collections::BTreeMap::new(),
            items: rows.iter().map(item).collect(),
            overhead_tokens: 0,
            output: OutputBound::Unmetered,
            choices: 1,
            unbounded: None,
            mode: Mode::Record,
            forward: tuition_ledger::Forward::default(),
        })
    }

    fn magika_form() -> Form {
        Form {
            teacher: "magika".into(),
            revision: "1".into(),
            model: "magika".into(),
            input: "bytes".into(),
            element_type: ElementType::I32,
            shape: None,
            outputs: vec![],
        }
    }

    fn text_row(text: &str) -> String {
        let mut symbols: Vec<u16> = text.bytes().map(u16::from).collect();
        symbols.resize(2048, PADDING);
        magika_form().row(&Input::Bytes(symbols)).unwrap().canonical()
    }

    #[test]
    fn the_form_follows_from_the_model() {
        assert_eq!(magika().form("1").unwrap(), magika_form());
    }

    #[tokio::test]
    async fn only_the_led_rows_are_answered_in_their_order() {
        let rows: Vec<String> =
            ["<html><body>", "fn main() { println!(); }", "#!/bin/sh\necho \"$1\"\n"].map(text_row).to_vec();
        let live = Live::new(false);
        let teacher = magika();
        let all = teacher.ask(&order(&rows), &[0, 1, 2], &live).await.unwrap();
        let some = teacher.ask(&order(&rows), &[0, 2], &live).await.unwrap();
        assert_eq!(all.envelope, r#"{"model_name":"magika"}"#);
        let scores = |answer: &Answer| match &answer.signals[..] {
            [Signal::Tensor(Tensor { name, shape, elements: Elements::F32(values) })] => {
                assert_eq!((name.as_str(), shape.as_slice()), ("target_label", [1, 214].as_slice()));
                values.clone()
            }
            other => panic!("one tensor was expected: {other:?}"),
        };
        let close =
            |a: &Answer, b: &Answer| scores(a).iter().zip(scores(b)).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(close(&all.answers[0], &some.answers[0]) && close(&all.answers[2], &some.answers[1]));
        assert!(!close(&all.answers[0], &all.answers[1]));
        let body = Json::parse(&all.answers[0].body).unwrap();
        let output = Tensor::from_json(&body.member("outputs").unwrap().items().unwrap()[0]).unwrap();
        assert_eq!(all.answers[0].signals, [Signal::Tensor(output)]);
    }

    #[tokio::test]
    async fn a_row_that_does_not_fit_is_refused_by_name_and_unbilled() {
        let live = Live::new(false);
        let check = async |row: String, expected: &str| {
            let failure = magika().ask(&order(&[row]), &[0], &live).await.expect_err(expected);
            assert_eq!(failure.message, expected);
            assert_eq!(failure.billing, Billing::Unbilled { retry: false, after: None });
            assert_eq!(failure.status, Some(400));
        };
        let mut row = Row::parse(&text_row("text")).unwrap();
        row.others = vec![("outputs".into(), r#"[{"name":"label"}]"#.into())];
        check(row.canonical(), "the model has no output `label`; it has `target_label`").await;
        row.others = vec![("outputs".into(), "7".into())];
        check(row.canonical(), "`outputs` is no list of objects with a `name`").await;
        let short = magika_form().row(&Input::Bytes(vec![1, 2])).unwrap().canonical();
        check(short, "the input `bytes` has shape [1, 2], but the model takes [any, 2048]").await;
    }
}
