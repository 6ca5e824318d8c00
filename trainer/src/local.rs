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
    Answer, Billing, Cause, Elements, Failure, Json, Live, Order, Reply, Row, Signal, Teacher, Tensor,
};

use crate::form::{Form, FormError};
use crate::hidden::{Hidden, Projection};
use crate::port::{ElementType, Port};
use crate::processor::Processor;
use crate::teacher::{Load, Model, ModelError, Runtime};

/// How long one exchange may take.
const TIMEOUT: Duration = Duration::from_secs(600);

/// A teacher that runs in this process.
#[derive(Debug)]
pub struct LocalTeacher {
    name: String,
    asked: Arc<AskedModel>,
}

/// A model, and what is kept of its hidden tensors.
#[derive(Debug)]
struct AskedModel {
    model: Model,
    projection: Option<Projection>,
}

impl LocalTeacher {
    /// Loads a teacher's model, to run on `threads` threads or on another device ([`Load`]); its answers have the `hidden` tensors beside its outputs, each
    /// projected and named by [`crate::hidden::recorded_name`].
    ///
    /// # Errors
    /// When the file is no model that this runtime runs, or has not these tensors.
    pub fn load(
        name: &str,
        runtime: &Runtime,
        path: &Path,
        threads: usize,
        hidden: Option<&Hidden>,
        on: Option<Processor>,
    ) -> Result<Self, ModelError> {
        let load = Load { threads, layers: hidden.map(|hidden| &hidden.layers), on };
        let model = Model::load_with(runtime, path, load)?;
        let projection = hidden.map(|hidden| Projection::new(hidden.width, hidden.seed));
        Ok(Self { name: name.to_owned(), asked: Arc::new(AskedModel { model, projection }) })
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.asked.model
    }

    /// What its answers hold: its outputs, then the hidden tensors as they are recorded.
    #[must_use]
    pub fn gives(&self) -> Vec<Port> {
        let outputs = self.asked.model.outputs().iter().cloned();
        let hidden = self.asked.recorded().map(|(name, _, projection)| Port {
            name,
            element_type: Ok(ElementType::F32),
            shape: vec![None, Some(projection.width())],
        });
        outputs.chain(hidden).collect()
    }

    /// The form of the rows that it is asked for a data set: one input, and every output that it has.
    ///
    /// # Errors
    /// When the model has not exactly one input, or one of an unfit type.
    pub fn form(&self, revision: &str) -> Result<Form, FormError> {
        Form::of_ports(&self.name, revision, &self.name, self.asked.model.inputs())
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
        let asked = Arc::clone(&self.asked);
        let answered = tokio::task::spawn_blocking(move || asked.answer(&texts)).await;
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

impl AskedModel {
    /// Answers every row, in order, each in a run of its own: several models answer a row differently in its last digits
    /// when it is run among others, and equal keys must mean interchangeable answers. On a processor it costs nothing.
    fn answer(&self, texts: &[String]) -> Result<Vec<Answer>, Refused> {
        let row = |text: &String| {
            Row::parse(text).map_err(|error| Refused { status: 400, message: error.to_string() })
        };
        texts.iter().map(|text| self.run(row(text)?)).collect()
    }

    fn run(&self, row: Row) -> Result<Answer, Refused> {
        let wanted = self.wanted(&row)?;
        let in_model: Vec<&str> = wanted
            .iter()
            .map(|name| self.hidden(name).map_or(name.as_str(), |(port, _)| &port.name))
            .collect();
        let mut outputs = self.model.run(row.inputs, &in_model)?;
        for (output, name) in outputs.iter_mut().zip(&wanted) {
            let unfit = |message: String| Refused { status: 500, message };
            if output.shape.first() != Some(&1) {
                let shape = &output.shape;
                return Err(unfit(format!(
                    "the output `{name}` has shape {shape:?} for one row: the model is not one of rows"
                )));
            }
            if let Some((port, projection)) = self.hidden(name) {
                let Elements::F32(values) = &output.elements else {
                    return Err(unfit(format!(
                        "the hidden tensor `{}` is not of f32 in this row",
                        port.name
                    )));
                };
                let projected = projection.project(&port.name, values);
                let (name, shape) = (name.clone(), vec![1, projected.len()]);
                *output = Tensor { name, shape, elements: Elements::F32(projected) };
            }
        }
        Ok(recorded(outputs))
    }

    /// The hidden tensors: their names in an answer, what they are in the model, and how they are projected.
    fn recorded(&self) -> impl Iterator<Item = (String, &Port, &Projection)> {
        let of = |projection| {
            self.model
                .hidden()
                .iter()
                .map(move |port: &Port| (Projection::recorded(projection, &port.name), port, projection))
        };
        self.projection.iter().flat_map(of)
    }

    /// The hidden tensor that is recorded under this name.
    fn hidden(&self, name: &str) -> Option<(&Port, &Projection)> {
        self.recorded()
            .find(|(recorded, ..)| recorded == name)
            .map(|(_, port, projection)| (port, projection))
    }

    /// The outputs that a row names, else all that can be read.
    fn wanted(&self, row: &Row) -> Result<Vec<String>, Refused> {
        let malformed =
            || Refused { status: 400, message: "`outputs` is no list of objects with a `name`".to_owned() };
        let named = row.others.iter().find(|(name, _)| name == "outputs");
        let Some((_, text)) = named else {
            let readable = self.model.outputs().iter().filter(|port| port.element_type.is_ok());
            let hidden = self.recorded().map(|(name, ..)| name);
            return Ok(readable.map(|port| port.name.clone()).chain(hidden).collect());
        };
        let json = Json::parse(text.as_bytes()).map_err(|_| malformed())?;
        let name = |output: &Json<'_>| output.member("name").and_then(Json::as_str).map(str::to_owned);
        json.items().and_then(|outputs| outputs.iter().map(name).collect()).ok_or_else(malformed)
    }
}

fn recorded(outputs: Vec<Tensor>) -> Answer {
    let list = Json::Array(outputs.iter().map(Tensor::to_json).collect());
    let body = Json::Object(vec![("outputs".into(), list)]).canonical();
    Answer { body: Bytes::from(body), signals: outputs.into_iter().map(Signal::Tensor).collect() }
}

#[cfg(test)]
mod tests {
    use tuition_ledger::{InputBound, Item, Mode, OutputBound, Who};

    use super::*;
    use crate::example::{Input, PADDING};
    use crate::form::{DIALECT, OPERATION};
    use crate::installed;

    fn magika() -> LocalTeacher {
        LocalTeacher::load("magika", &installed::runtime(), &installed::magika_model(), 1, None, None)
            .unwrap()
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
    async fn an_answer_has_the_projected_hidden_tensors_beside_the_outputs() {
        const POOLED: &str = "jax2tf_get_logits_/pjit_get_logits_/MagikaV2/Max_Squeeze__213:0";
        let hidden =
            Hidden { layers: crate::hidden::Layers::Named(vec![POOLED.to_owned()]), width: 8, seed: 5 };
        let (runtime, path) = (installed::runtime(), installed::magika_model());
        let teacher = LocalTeacher::load("magika", &runtime, &path, 1, Some(&hidden), None).unwrap();
        let recorded_name = format!("hidden.5.{POOLED}");
        assert_eq!(teacher.gives()[1].name, recorded_name);
        let row = text_row("<html><body>");
        let live = Live::new(false);
        let reply = teacher.ask(&order(std::slice::from_ref(&row)), &[0], &live).await.unwrap();
        let [Signal::Tensor(label), Signal::Tensor(pooled)] = &reply.answers[0].signals[..] else {
            panic!("two tensors were expected: {:?}", reply.answers[0].signals);
        };
        assert_eq!((label.name.as_str(), label.shape.as_slice()), ("target_label", [1, 214].as_slice()));
        let inputs = Row::parse(&row).unwrap().inputs;
        let raw = teacher.model().run(inputs, &[POOLED]).unwrap()[0].elements.to_f32().unwrap();
        let expected = Projection::new(8, 5).project(POOLED, &raw);
        assert_eq!((&pooled.name, &pooled.shape), (&recorded_name, &vec![1, 8]));
        assert_eq!(pooled.elements, Elements::F32(expected));
        // Another seed's projection has another name: nobody takes one for the other.
        let other = Hidden { seed: 6, ..hidden };
        let other = LocalTeacher::load("magika", &runtime, &path, 1, Some(&other), None).unwrap();
        assert_eq!(other.gives()[1].name, format!("hidden.6.{POOLED}"));
        // A row that names its outputs gets those alone, and may name a hidden tensor among them.
        for (named, expected) in [("target_label", "target_label"), (recorded_name.as_str(), POOLED)] {
            let mut row = Row::parse(&row).unwrap();
            row.others = vec![("outputs".into(), format!(r#"[{{"name":"{named}"}}]"#))];
            let reply = teacher.ask(&order(&[row.canonical()]), &[0], &live).await.unwrap();
            assert_eq!(reply.answers[0].signals.len(), 1, "{expected}");
        }
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
