//! Open Inference Protocol v2, `infer` in JSON: each row is an item where the teacher takes batches.
//!
//! Must not know HTTP. Invariants: a row's canonical form is the ledger's, so a row bought here and a row bought from a
//! local model have one key; outputs go back in the order of the rows, whoever answered them; the id is presentation.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tuition_ledger::{
    Answer, InputBound, Json, OutputBound, Record, Reply, Row, Signal, Tensor, TensorError,
};

use super::{Asked, BadRequest, Part, Presentation, Rendered, Target, Unreadable, given, number, string};

/// The most rows of one batch: a shape without elements may claim any number.
const ROWS_MAX: usize = 1 << 20;
/// Members of a tensor that its canonical form holds.
const TENSOR_MEMBERS: [&str; 4] = ["name", "shape", "datatype", "data"];

/// Takes a request apart.
pub(crate) fn read(model: String, target: &Target, json: Json<'_>) -> Result<Asked, BadRequest> {
    let id = match given(&json, "id") {
        None => None,
        Some(id) => Some(id.as_str().ok_or_else(|| BadRequest::wrong("id", "a string"))?.to_owned()),
    };
    let inputs = json
        .member("inputs")
        .and_then(Json::items)
        .filter(|inputs| !inputs.is_empty())
        .ok_or_else(|| BadRequest::missing("inputs", "a non-empty list of tensors"))?;
    refuse_binary(&json, inputs)?;
    let tensors: Vec<Tensor> = inputs.iter().map(Tensor::from_json).collect::<Result<_, _>>()?;
    let mut names = BTreeSet::new();
    if let Some(twice) = tensors.iter().find(|tensor| !names.insert(tensor.name.as_str())) {
        return Err(TensorError::Twice(twice.name.clone()).into());
    }
    let mut others: Vec<(String, String)> = Vec::new();
    for (name, value) in json.members().unwrap_or_default() {
        match name.as_ref() {
            "id" | "inputs" => {}
            // Names that a row's canonical form uses itself: they would hide what stands there.
            "model" | "version" | "batch_axis" | "input_members" => {
                return Err(BadRequest::Field {
                    name: "body",
                    problem: format!("has a member `{name}`, which is none of the protocol's"),
                });
            }
            _ => others.push((name.to_string(), value.canonical())),
        }
    }
    if let Some(more) = input_members(inputs) {
        others.push(("input_members".into(), more));
    }
    let rows = if target.rows { rows(&tensors)? } else { vec![tensors] };
    let parts = rows.into_iter().map(|inputs| {
        let row =
            Row { model: model.clone(), version: target.version.clone(), inputs, others: others.clone() };
        Part { input: row.canonical(), calls: 1, bound: InputBound::Unmetered }
    });
    let parts = parts.collect();
    let version = target.version.clone();
    let wanted = Presentation::Infer { id, model: model.clone(), version, rows: target.rows };
    Ok(Asked {
        model,
        parts,
        overhead_tokens: 0,
        output: OutputBound::Unmetered,
        choices: 1,
        unbounded: None,
        wanted,
    })
}

fn refuse_binary(json: &Json<'_>, inputs: &[Json<'_>]) -> Result<(), BadRequest> {
    fn parameter<'j, 'a>(json: &'j Json<'a>, name: &str) -> Option<&'j Json<'a>> {
        json.member("parameters").and_then(|parameters| given(parameters, name))
    }
    if inputs.iter().any(|input| parameter(input, "binary_data_size").is_some()) {
        return Err(BadRequest::Binary("an input has `binary_data_size`"));
    }
    let outputs = json.member("outputs").and_then(Json::items).unwrap_or_default();
    let binary = |value: Option<&Json<'_>>| value.is_some_and(|value| value.as_bool() != Some(false));
    if outputs.iter().any(|output| binary(parameter(output, "binary_data")))
        || binary(parameter(json, "binary_data_output"))
    {
        return Err(BadRequest::Binary("an output is asked as binary data"));
    }
    Ok(())
}

/// What the inputs say beside their tensors (their parameters), by name.
fn input_members(inputs: &[Json<'_>]) -> Option<String> {
    let mut more: Vec<(Cow<'_, str>, Json<'_>)> = Vec::new();
    for input in inputs {
        let members = input.members().unwrap_or_default().iter();
        let members: Vec<_> =
            members.filter(|(name, _)| !TENSOR_MEMBERS.contains(&name.as_ref())).cloned().collect();
        if !members.is_empty() {
            let name = input.member("name").and_then(Json::as_str).unwrap_or_default();
            more.push((Cow::Owned(name.to_owned()), Json::Object(members)));
        }
    }
    (!more.is_empty()).then(|| Json::Object(more).canonical())
}

/// The tensors of each row.
fn rows(tensors: &[Tensor]) -> Result<Vec<Vec<Tensor>>, BadRequest> {
    let first_extent = |tensor: &Tensor| tensor.shape.first().copied().unwrap_or(0);
    let count = tensors.first().map(first_extent).unwrap_or(0);
    if count == 0 || count > ROWS_MAX {
        let problem = format!("have {count} rows, and 1 to {ROWS_MAX} are taken");
        return Err(BadRequest::Field { name: "inputs", problem });
    }
    let mut rows = vec![Vec::with_capacity(tensors.len()); count];
    for tensor in tensors {
        let found = first_extent(tensor);
        if found != count {
            let name = tensor.name.clone();
            return Err(TensorError::Rows { name, rows: found, expected: count }.into());
        }
        rows.iter_mut().zip(tensor.rows()).for_each(|(row, tensor)| row.push(tensor));
    }
    Ok(rows)
}

/// A body with the rows `led` only.
pub(crate) fn narrow(body: &[u8], led: &[usize]) -> Result<Bytes, BadRequest> {
    let mut json = Json::parse(body)?;
    if let Json::Object(members) = &mut json {
        for (_, inputs) in members.iter_mut().filter(|(name, _)| name == "inputs") {
            if let Json::Array(inputs) = inputs {
                for input in inputs {
                    let rows = cut(input).ok_or_else(|| BadRequest::wrong("inputs", "a batch"))?;
                    let kept: Vec<Json<'_>> = led.iter().filter_map(|row| rows.get(*row).cloned()).collect();
                    *input = join(&kept).ok_or_else(|| BadRequest::wrong("inputs", "a batch"))?;
                }
            }
        }
    }
    Ok(json.to_string().into())
}

/// The rows of a tensor in JSON, each with its elements in their own spelling.
fn cut<'a>(tensor: &Json<'a>) -> Option<Vec<Json<'a>>> {
    let shape: Vec<u64> = tensor.member("shape")?.items()?.iter().map(Json::as_u64).collect::<Option<_>>()?;
    let (count, rest) = shape.split_first()?;
    let mut flat = Vec::new();
    flatten(tensor.member("data")?, &mut flat);
    let count = usize::try_from(*count).ok()?;
    let width = rest.iter().try_fold(1u64, |product, extent| product.checked_mul(*extent))?;
    let width = usize::try_from(width).ok()?;
    if count > ROWS_MAX || count.checked_mul(width)? != flat.len() {
        return None;
    }
    let mut shape = vec![number(1)];
    shape.extend(rest.iter().map(|extent| number(*extent)));
    let row = |row: usize| {
        let data = flat[row * width..(row + 1) * width].to_vec();
        with(tensor, Json::Array(shape.clone()), Json::Array(data))
    };
    Some((0..count).map(row).collect())
}

/// Rows of one tensor, one after the other.
fn join<'a>(rows: &[Json<'a>]) -> Option<Json<'a>> {
    let first = rows.first()?;
    let (mut data, mut count) = (Vec::new(), 0);
    for row in rows {
        let same = |name| row.member(name) == first.member(name);
        if !same("name") || !same("datatype") || width(row) != width(first) {
            return None;
        }
        count += row.member("shape")?.items()?.first()?.as_u64()?;
        flatten(row.member("data")?, &mut data);
    }
    let mut shape = first.member("shape")?.items()?.to_vec();
    *shape.first_mut()? = number(count);
    Some(with(first, Json::Array(shape), Json::Array(data)))
}

/// The extents behind the first.
fn width<'j, 'a>(tensor: &'j Json<'a>) -> Option<&'j [Json<'a>]> {
    tensor.member("shape").and_then(Json::items)?.get(1..)
}

fn with<'a>(tensor: &Json<'a>, shape: Json<'a>, data: Json<'a>) -> Json<'a> {
    let members = tensor.members().unwrap_or_default().iter().map(|(name, value)| {
        let value = match name.as_ref() {
            "shape" => shape.clone(),
            "data" => data.clone(),
            _ => value.clone(),
        };
        (name.clone(), value)
    });
    Json::Object(members.collect())
}

fn flatten<'a>(json: &Json<'a>, flat: &mut Vec<Json<'a>>) {
    match json {
        Json::Array(items) => items.iter().for_each(|item| flatten(item, flat)),
        scalar => flat.push(scalar.clone()),
    }
}

/// Takes a complete reply apart: into `rows` answers, or as the answer to the whole request.
pub(crate) fn reply(rows: Option<usize>, media: &str, body: Bytes) -> Result<Reply, Unreadable> {
    let media = if media.is_empty() { "application/json" } else { media }.to_owned();
    let (envelope, answers) = {
        let json = Json::parse(&body)
            .map_err(|error| Unreadable(format!("the answer is not the JSON that is taken: {error}")))?;
        let outputs = json
            .member("outputs")
            .and_then(Json::items)
            .filter(|outputs| !outputs.is_empty())
            .ok_or_else(|| Unreadable("the answer has no `outputs`".into()))?;
        match rows {
            None => {
                let answer = Answer { body: body.clone(), signals: signals(outputs) };
                (Bytes::new(), vec![answer])
            }
            Some(count) => {
                let mut answers: Vec<Vec<Json<'_>>> = vec![Vec::new(); count];
                for output in outputs {
                    let name = output.member("name").map(ToString::to_string).unwrap_or_default();
                    let found = cut(output).filter(|found| found.len() == count).ok_or_else(|| {
                        Unreadable(format!("output {name} does not have one row for each of {count} rows"))
                    })?;
                    answers.iter_mut().zip(found).for_each(|(row, output)| row.push(output));
                }
                let answers = answers.into_iter().map(|outputs| {
                    let signals = signals(&outputs);
                    let body = Json::Object(vec![("outputs".into(), Json::Array(outputs))]).to_string();
                    Answer { body: body.into(), signals }
                });
                let head = json.members().unwrap_or_default().iter();
                let head = head.filter(|(name, _)| name != "outputs").cloned().collect();
                (Json::Object(head).to_string().into(), answers.collect())
            }
        }
    };
    Ok(Reply { usage: None, media, envelope, answers })
}

fn signals(outputs: &[Json<'_>]) -> Vec<Signal> {
    outputs.iter().filter_map(|output| Tensor::from_json(output).ok()).map(Signal::Tensor).collect()
}

/// Puts answers together: the teacher's own outputs, row after row; those of a local model from its tensors.
pub(crate) fn render(
    id: Option<&str>,
    model: &str,
    version: Option<&str>,
    rows: bool,
    records: &[&Record],
) -> Result<Rendered, Unreadable> {
    let first = records.first().ok_or_else(|| Unreadable("no answer".into()))?;
    let media = "application/json".to_owned();
    if !rows && !first.answer.body.is_empty() {
        let body = match id {
            None => first.answer.body.clone(),
            Some(id) => identified(Json::parse(&first.answer.body).map_err(damaged(first))?, id),
        };
        return Ok(Rendered { media, body });
    }
    let mut stacks: Vec<(String, Vec<Json<'_>>)> = Vec::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for record in records {
        for output in outputs(record)? {
            let name = output.member("name").map(ToString::to_string).unwrap_or_default();
            let place = *places.entry(name.clone()).or_insert_with(|| {
                stacks.push((name, Vec::new()));
                stacks.len() - 1
            });
            stacks[place].1.push(output);
        }
    }
    let mut outputs = Vec::with_capacity(stacks.len());
    for (name, tensors) in &stacks {
        let whole = if tensors.len() == records.len() { join(tensors) } else { None };
        outputs.push(whole.ok_or_else(|| {
            Unreadable(format!("the rows of output {name} were answered in different shapes or types"))
        })?);
    }
    let mut members = match Json::parse(&first.envelope) {
        Ok(Json::Object(members)) => members,
        _ => vec![("model_name".into(), string(model))],
    };
    if let Some(version) = version
        && !members.iter().any(|(name, _)| name == "model_version")
    {
        members.push(("model_version".into(), string(version)));
    }
    members.push(("outputs".into(), Json::Array(outputs)));
    let whole = Json::Object(members);
    let body = match id {
        None => whole.to_string().into(),
        Some(id) => identified(whole, id),
    };
    Ok(Rendered { media, body })
}

fn outputs(record: &Record) -> Result<Vec<Json<'_>>, Unreadable> {
    if !record.answer.body.is_empty() {
        let body = Json::parse(&record.answer.body).map_err(damaged(record))?;
        if let Some(outputs) = body.member("outputs").and_then(Json::items) {
            return Ok(outputs.to_vec());
        }
    }
    let tensors = record.answer.signals.iter().filter_map(|signal| match signal {
        Signal::Tensor(tensor) => Some(tensor.to_json()),
        _ => None,
    });
    let tensors: Vec<_> = tensors.collect();
    if tensors.is_empty() {
        return Err(Unreadable(format!("the answer {} has no outputs", record.key)));
    }
    Ok(tensors)
}

fn damaged(record: &Record) -> impl FnOnce(tuition_ledger::JsonError) -> Unreadable {
    move |error| Unreadable(format!("the recorded answer {} is damaged: {error}", record.key))
}

fn identified(json: Json<'_>, id: &str) -> Bytes {
    let Json::Object(mut members) = json else { return json.to_string().into() };
    match members.iter_mut().find(|(name, _)| name == "id") {
        Some((_, known)) => *known = string(id),
        None => members.push(("id".into(), string(id))),
    }
    Json::Object(members).to_string().into()
}

#[cfg(test)]
mod tests {
    use tuition_ledger::{Amount, Elements, Query, QueryKey, Timestamp};

    use super::*;

    const BODY: &str = r#"{"id":"42","inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[[0.50,1],[2,3]]},
        {"name":"y","shape":[2],"datatype":"INT64","data":[7,8],"parameters":{"p":1}}],"outputs":[{"name":"o"}]}"#;

    fn asked(rows: bool, body: &str) -> Result<Asked, String> {
        let json = Json::parse(body.as_bytes()).map_err(|error| error.to_string())?;
        let target = Target { rows, version: Some("3".into()), ..Target::default() };
        read("m".into(), &target, json).map_err(|error| error.to_string())
    }

    #[test]
    fn rows_are_items_in_the_ledgers_own_form() {
        let found = asked(true, BODY).unwrap();
        let first = r#"{"input_members":{"y":{"parameters":{"p":1}}},"inputs":[{"data":[0.5,1],"datatype":"FP32","name":"x","shape":[1,2]},{"data":[7],"datatype":"INT64","name":"y","shape":[1]}],"model":"m","outputs":[{"name":"o"}],"version":"3"}"#;
        assert_eq!(found.parts.len(), 2);
        assert_eq!(found.parts[0].input, first);
        assert_eq!(Row::parse(first).unwrap().canonical(), first);
        let wanted = Presentation::Infer {
            id: Some("42".into()),
            model: "m".into(),
            version: Some("3".into()),
            rows: true,
        };
        assert_eq!(found.wanted, wanted);
        assert_eq!(asked(true, &BODY.replace("42", "43")).unwrap().parts, found.parts);
        assert_eq!(asked(false, BODY).unwrap().parts.len(), 1);
    }

    #[test]
    fn a_bad_request_is_named() {
        #[track_caller]
        fn check(from: &str, to: &str, expected: &str) {
            let body = BODY.replace(from, to);
            assert_ne!(body, BODY);
            assert_eq!(asked(true, &body).unwrap_err(), expected);
        }
        check("inputs", "input", "`inputs` is missing or is not a non-empty list of tensors");
        check("\"42\"", "42", "`id` is not a string");
        check("\"name\":\"y\"", "\"name\":\"x\"", "`inputs`: two inputs have the name `x`");
        check(
            "\"FP32\"",
            "\"FP8\"",
            "`inputs`: datatype `FP8` is not one of FP32, FP64, INT32, INT64, UINT8, BOOL, BYTES",
        );
        check(
            "[2],\"datatype\":\"INT64\",\"data\":[7,8]",
            "[1],\"datatype\":\"INT64\",\"data\":[7]",
            "`inputs`: tensor `y` has 1 rows where the request has 2",
        );
        check(
            "\"shape\":[2,2],\"datatype\":\"FP32\",\"data\":[[0.50,1],[2,3]]",
            "\"shape\":[1000000000,0],\"datatype\":\"FP32\",\"data\":[]",
            "`inputs` have 1000000000 rows, and 1 to 1048576 are taken",
        );
        check(
            "{\"p\":1}",
            "{\"binary_data_size\":16}",
            "binary tensors are not taken: send `data` in JSON (an input has `binary_data_size`)",
        );
        check(
            "{\"name\":\"o\"}",
            "{\"name\":\"o\",\"parameters\":{\"binary_data\":true}}",
            "binary tensors are not taken: send `data` in JSON (an output is asked as binary data)",
        );
        check(
            "\"id\":\"42\"",
            "\"model\":\"z\"",
            "`body` has a member `model`, which is none of the protocol's",
        );
    }

    #[test]
    fn a_smaller_body_holds_the_rows_that_are_led() {
        let expected = r#"{"id":"42","inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[2,3]},{"name":"y","shape":[1],"datatype":"INT64","data":[8],"parameters":{"p":1}}],"outputs":[{"name":"o"}]}"#;
        assert_eq!(narrow(BODY.as_bytes(), &[1]).unwrap(), expected);
        let all = r#""data":[0.50,1,2,3]"#;
        assert!(String::from_utf8_lossy(&narrow(BODY.as_bytes(), &[0, 1]).unwrap()).contains(all));
    }

    fn record(answer: Answer, envelope: Bytes) -> Record {
        let query = Query {
            dialect: String::new(),
            operation: String::new(),
            teacher: String::new(),
            revision: String::new(),
            sample: 0,
            headers: BTreeMap::new(),
            input: String::new(),
        };
        let (key, model) = (QueryKey::from_bytes([0; 32]), "m".to_owned());
        let (media, share, at) = ("application/json".to_owned(), Amount::ZERO, Timestamp(0));
        Record { key, query, model, answer, envelope, media, share, priced: false, at }
    }

    #[test]
    fn rows_go_back_in_the_order_of_the_request() {
        let body = r#"{"model_name":"m","id":"zz","outputs":[{"name":"o","shape":[2,2],"datatype":"FP64","data":[0.10,1e0,2,3]}]}"#;
        let reply = reply(Some(2), "application/json", body.into()).unwrap();
        let tensor = Tensor { name: "o".into(), shape: vec![1, 2], elements: Elements::F64(vec![2.0, 3.0]) };
        assert_eq!(reply.answers[1].signals, [Signal::Tensor(tensor)]);
        let records: Vec<_> =
            reply.answers.into_iter().map(|answer| record(answer, reply.envelope.clone())).collect();
        let shown = render(Some("42"), "m", None, true, &[&records[1], &records[0], &records[1]]).unwrap();
        let expected = r#"{"model_name":"m","id":"42","outputs":[{"name":"o","shape":[3,2],"datatype":"FP64","data":[2,3,0.10,1e0,2,3]}]}"#;
        assert_eq!(shown.body, expected);
    }

    #[test]
    fn a_local_models_tensors_are_its_reply() {
        let tensor = Tensor { name: "o".into(), shape: vec![1, 1], elements: Elements::F32(vec![0.5]) };
        let answer = Answer { body: Bytes::new(), signals: vec![Signal::Tensor(tensor)] };
        let record = record(answer, Bytes::new());
        let shown = render(None, "m", Some("3"), true, &[&record, &record]).unwrap();
        let expected = r#"{"model_name":"m","model_version":"3","outputs":[{"name":"o","shape":[2,1],"datatype":"FP32","data":[0.5,0.5]}]}"#;
        assert_eq!(shown.body, expected);
    }

    #[test]
    fn a_whole_answer_is_shown_as_it_came() {
        let body = r#"{"model_name":"m","outputs":[{"name":"o","shape":[],"datatype":"FP16","data":[1.0]}]}"#;
        let reply = reply(None, "", body.into()).unwrap();
        let record = record(reply.answers[0].clone(), reply.envelope);
        assert_eq!(render(None, "m", None, false, &[&record]).unwrap().body, body);
        let named = format!("{},\"id\":\"7\"}}", &body[..body.len() - 1]);
        assert_eq!(render(Some("7"), "m", None, false, &[&record]).unwrap().body, named);
    }

    #[test]
    fn a_reply_of_other_rows_is_told_apart() {
        #[track_caller]
        fn check(body: &'static str, expected: &str) {
            assert_eq!(reply(Some(2), "", body.into()).unwrap_err().0, expected);
        }
        check(r#"{"error":"no"}"#, "the answer has no `outputs`");
        check(
            r#"{"outputs":[{"name":"o","shape":[1],"datatype":"FP32","data":[1]}]}"#,
            "output \"o\" does not have one row for each of 2 rows",
        );
    }
}
