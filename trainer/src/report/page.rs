//! The report as one HTML page without scripts or links: a table and a plot, readable offline.
//!
//! It must not compute anything. Invariant: every text from outside is escaped.

use super::{Report, Row};
use crate::evaluate::{Measure, Measures};
use crate::html::{document, escape};
use crate::train::MetricRow;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 280.0;
const MARGIN: f64 = 48.0;
const COLOURS: [&str; 4] = ["#0b6e99", "#b5482f", "#4d7c2a", "#7a4fa0"];

/// Writes the page.
pub(crate) fn page(name: &str, report: &Report, rows: &[MetricRow]) -> String {
    let table: String = [
        table_row(&format!("student: {}", report.method), &report.test),
        table_row(&format!("the same student on {}", report.student_alone.name), &report.student_alone.test),
        table_row(&format!("teacher: {}", report.teacher.name), &report.teacher.test),
    ]
    .concat();
    let spend = &report.spend;
    let dollars = spend.usd.as_ref().map_or_else(|| "no price".to_owned(), |usd| format!("{usd} USD"));
    let body = format!(
        "<p>Trained from {calls} bought answers; the whole run cost {spent} calls, {dollars}. Seeds: {seeds}. Means over seeds ± half of the 95 % \
         interval (Student's t), on the test part, by which nothing was chosen.</p>\n<table><tr><th></th><th>accuracy\
         </th><th>agreement</th><th>ECE</th><th>loss</th></tr>\n{table}</table>\n<h2>Training</h2>\n{plot}\n",
        calls = report.calls,
        spent = spend.calls,
        dollars = escape(&dollars),
        seeds = report.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", "),
        plot = plot(rows),
    );
    document(name, &body)
}

fn table_row(name: &str, test: &Measures) -> String {
    let cell = |measure: &Measure| match (measure.mean, measure.ci95) {
        (Some(mean), Some(half)) => format!("{mean:.4} ± {half:.4}"),
        (Some(mean), None) => format!("{mean:.4}"),
        (None, _) => "–".to_owned(),
    };
    let cells = [&test.accuracy, &test.agreement, &test.ece, &test.loss]
        .map(|measure| format!("<td>{}</td>", cell(measure)));
    format!("<tr><td>{}</td>{}</tr>\n", escape(name), cells.concat())
}

/// The first seed's curves over steps: the loss, and the agreement on the validation part where there is one.
fn plot(rows: &[MetricRow]) -> String {
    let Some(seed) = rows.first().map(|row| row.seed) else {
        return String::from("<p>No step was evaluated.</p>");
    };
    let rows: Vec<&MetricRow> = rows.iter().filter(|row| row.seed == seed).collect();
    let curve = |pick: fn(&MetricRow) -> Option<f32>| -> Vec<(usize, f32)> {
        rows.iter().filter_map(|row| pick(row).map(|value| (row.step, value))).collect()
    };
    let curves = [
        ("training loss", curve(|row| Some(row.loss))),
        ("validation loss", curve(|row| row.validation_loss)),
        ("validation agreement", curve(|row| row.validation_agreement)),
    ];
    let steps = rows.iter().map(|row| row.step).max().unwrap_or(1) as f64;
    let mut drawn = String::new();
    for (at, (label, points)) in curves.iter().filter(|(_, points)| !points.is_empty()).enumerate() {
        let highest = points.iter().map(|point| f64::from(point.1)).fold(f64::MIN_POSITIVE, f64::max);
        let place = |(step, value): &(usize, f32)| {
            let x = MARGIN + (WIDTH - 2.0 * MARGIN) * *step as f64 / steps;
            let y = HEIGHT - MARGIN - (HEIGHT - 2.0 * MARGIN) * f64::from(*value).max(0.0) / highest;
            format!("{x:.1},{y:.1}")
        };
        let path: Vec<String> = points.iter().map(place).collect();
        let colour = COLOURS[at % COLOURS.len()];
        let y = 18.0 + 15.0 * at as f64;
        drawn.push_str(&format!(
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/><text x=\"{MARGIN}\" y=\"{y}\" \
             fill=\"{colour}\">{label} (top of the axis: {highest:.3})</text>\n",
            path.join(" ")
        ));
    }
    let (right, bottom) = (WIDTH - MARGIN, HEIGHT - MARGIN);
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"curves of seed {seed}\" font-size=\"12\">\n<path \
         d=\"M{MARGIN},{MARGIN} V{bottom} H{right}\" fill=\"none\" stroke=\"#888\"/>\n<text x=\"{right}\" y=\"{label}\" \
         text-anchor=\"end\">step {steps}</text><text x=\"{MARGIN}\" y=\"{label}\">0 (seed {seed})</text>\n{drawn}</svg>",
        label = bottom + 18.0,
    )
}

/// The model card that model hubs read: a metadata block with a model-index, then plain words.
pub(crate) fn card(name: &str, report: &Report, student: &str, classes: &[String]) -> String {
    let metric = |kind: &str, measure: &Measure| {
        measure.mean.map(|mean| format!("    - type: {kind}\n      value: {mean:.6}\n")).unwrap_or_default()
    };
    let metrics = [
        metric("accuracy", &report.test.accuracy),
        metric("agreement", &report.test.agreement),
        metric("ece", &report.test.ece),
        metric("loss", &report.test.loss),
    ]
    .concat();
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let shown: Vec<&str> = classes.iter().take(20).map(String::as_str).collect();
    let more = if classes.len() > shown.len() {
        format!(" and {} more", classes.len() - shown.len())
    } else {
        String::new()
    };
    let Row { name: teacher, .. } = &report.teacher;
    format!(
        "---\nlibrary_name: tuition\npipeline_tag: other\ntags:\n- knowledge-distillation\nmodel-index:\n- name: {index}\n  \
         results:\n  - task:\n      type: classification\n    dataset:\n      name: {index}\n      type: private\n    \
         metrics:\n{metrics}---\n# {name}\n\nA student of kind `{student}`, trained by {method} from {calls} answers \
         of `{teacher}`. The weights are those of seed {seed}; the numbers above are means over {seeds} seeds on \
         the test part.\n\n- `model.safetensors`: the variables; `config.json`: the architecture and the classes\n- \
         `model.onnx`: the same student for ONNX Runtime; input `input`, output `logits`\n\nClasses: {shown}{more}.\n",
        index = quoted(name),
        method = report.method,
        calls = report.calls,
        seed = report.seeds.first().copied().unwrap_or_default(),
        seeds = report.seeds.len(),
        shown = shown.join(", "),
    )
}
