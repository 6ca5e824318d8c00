//! Open Inference Protocol, JSON: one input tensor of numbers, two sums a row as the answer.
//! Knows the shapes of the API; must not know about connections or mischief.
//! Invariant: a row's answer depends on that row alone.

use super::{Charge, Served};
use serde_json::{Value, json};

pub(crate) fn answer(request: &Value) -> Result<Served, String> {
    let input = &request["inputs"][0];
    let shape: Vec<usize> =
        serde_json::from_value(input["shape"].clone()).map_err(|error| error.to_string())?;
    let mut numbers = Vec::new();
    flatten(&input["data"], &mut numbers);
    let [rows, columns] = shape[..] else { return Err(format!("expected two dimensions, got {shape:?}")) };
    if rows * columns != numbers.len() || rows == 0 {
        return Err(format!("shape {shape:?} does not hold {} numbers", numbers.len()));
    }
    let data: Vec<f64> = numbers
        .chunks(columns)
        .flat_map(|row| [row.iter().sum::<f64>(), row.iter().zip(1..).map(|(x, at)| x * f64::from(at)).sum()])
        .collect();
    let body = json!({
        "model_name": "sums", "model_version": "1", "id": request["id"],
        "outputs": [{"name": "sums", "datatype": "FP64", "shape": [rows, 2], "data": data}],
    });
    let items = numbers.chunks(columns).map(|row| format!("{row:?}")).collect();
    Ok(Served {
        charge: Charge { inferences: rows as u64, items, ..Charge::default() },
        content_type: "application/json",
        body: body.to_string().into_bytes(),
    })
}

/// `data` may be nested as the shape says, or flat.
fn flatten(data: &Value, numbers: &mut Vec<f64>) {
    match data {
        Value::Array(items) => items.iter().for_each(|item| flatten(item, numbers)),
        other => numbers.extend(other.as_f64()),
    }
}
