//! A transformer as nodes of an ONNX graph: what `student/transformer.rs` computes, layer by layer.
//!
//! It must not know files or ONNX Runtime. Invariant: the shapes are those of the student's forward pass, the first dimension free.

use candle_core::Result;

use super::onnx::{Graph, INPUT, float, int, ints};
use crate::student::{EPSILON, LayerNorm, Linear, Student, Tokens, Transformer, TransformerLayer};

/// From the input to the logits.
pub(super) fn network(graph: &mut Graph, student: &Transformer) -> Result<String> {
    let mut values = tokens(graph, student)?;
    let (count, width) = (student.count() as i64, student.config().width as i64);
    let positions = graph.floats(&[count, width], &student.positions().flatten_all()?.to_vec1()?);
    values = graph.op("Add", &[&values, &positions], vec![]);
    for layer in student.layers() {
        let normed = norm(graph, &values, &layer.before_attention)?;
        let seen = attention(graph, student, layer, &normed)?;
        values = graph.op("Add", &[&values, &seen], vec![]);
        let normed = norm(graph, &values, &layer.before_feed_forward)?;
        let wide = each(graph, student, &layer.up, &normed)?;
        let wide = graph.op("Relu", &[&wide], vec![]);
        let narrow = each(graph, student, &layer.down, &wide)?;
        values = graph.op("Add", &[&values, &narrow], vec![]);
    }
    let mean = graph.op("ReduceMean", &[&values], vec![ints("axes", &[1]), int("keepdims", 0)]);
    let features = norm(graph, &mean, student.last())?;
    graph.linear(&features, student.output())
}

/// The tokens of an input, `[n, T, width]`, without their positions.
fn tokens(graph: &mut Graph, student: &Transformer) -> Result<String> {
    let config = student.config();
    match student.tokens() {
        Tokens::Symbols(table) => {
            let symbols = graph.op("Cast", &[INPUT], vec![int("to", super::onnx::INT64.into())]);
            let (symbols_known, width) = table.dims2()?;
            let table = graph.floats(&[symbols_known as i64, width as i64], &table.flatten_all()?.to_vec1()?);
            Ok(graph.op("Gather", &[&table, &symbols], vec![]))
        }
        Tokens::Runs(linear) => each(graph, student, linear, INPUT),
        Tokens::Patches([channels, height, width], linear) => {
            let [channels, height, width, patch] =
                [*channels, *height, *width, config.patch].map(|size| size as i64);
            let squares = reshape(graph, INPUT, &[-1, channels, height / patch, patch, width / patch, patch]);
            let squares = graph.op("Transpose", &[&squares], vec![ints("perm", &[0, 2, 4, 1, 3, 5])]);
            each(graph, student, linear, &squares)
        }
    }
}

fn reshape(graph: &mut Graph, input: &str, shape: &[i64]) -> String {
    let shape = graph.integers(shape);
    graph.op("Reshape", &[input, &shape], vec![])
}

/// A linear layer over each token.
fn each(graph: &mut Graph, student: &Transformer, linear: &Linear, input: &str) -> Result<String> {
    let (output, width) = linear.weight.dims2()?;
    let rows = reshape(graph, input, &[-1, width as i64]);
    let rows = graph.linear(&rows, linear)?;
    Ok(reshape(graph, &rows, &[-1, student.count() as i64, output as i64]))
}

fn norm(graph: &mut Graph, input: &str, norm: &LayerNorm) -> Result<String> {
    let width = norm.gamma.elem_count() as i64;
    let gamma = graph.floats(&[width], &norm.gamma.to_vec1()?);
    let beta = graph.floats(&[width], &norm.beta.to_vec1()?);
    let attributes = vec![int("axis", -1), float("epsilon", EPSILON as f32)];
    Ok(graph.op("LayerNormalization", &[input, &gamma, &beta], attributes))
}

fn attention(
    graph: &mut Graph,
    student: &Transformer,
    layer: &TransformerLayer,
    input: &str,
) -> Result<String> {
    let (count, heads, width) =
        (student.count() as i64, student.config().heads as i64, student.config().width as i64);
    let depth = width / heads;
    let mixed = each(graph, student, &layer.mixed, input)?;
    let mixed = reshape(graph, &mixed, &[-1, count, 3, heads, depth]);
    let mut part = |at: i64, order: &[i64]| {
        let at = graph.integers(&[at]);
        let part = graph.op("Gather", &[&mixed, &at], vec![int("axis", 2)]);
        let part = reshape(graph, &part, &[-1, count, heads, depth]);
        graph.op("Transpose", &[&part], vec![ints("perm", order)])
    };
    let (queries, keys, values) = (part(0, &[0, 2, 1, 3]), part(1, &[0, 2, 3, 1]), part(2, &[0, 2, 1, 3]));
    let scores = graph.op("MatMul", &[&queries, &keys], vec![]);
    let scale = graph.floats(&[1], &[(depth as f32).sqrt()]);
    let scores = graph.op("Div", &[&scores, &scale], vec![]);
    let shares = graph.op("Softmax", &[&scores], vec![int("axis", -1)]);
    let seen = graph.op("MatMul", &[&shares, &values], vec![]);
    let seen = graph.op("Transpose", &[&seen], vec![ints("perm", &[0, 2, 1, 3])]);
    each(graph, student, &layer.joined, &seen)
}
