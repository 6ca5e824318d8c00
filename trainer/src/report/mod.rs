//! The run folder: files that other tools read, written from what training and evaluation found.
//!
//! It must not know how a student is trained, and it reads no clock: the same run writes the same bytes. Invariant:
//! `report.json` has the pinned shape, and every file is whole or absent.

mod page;
mod tensorboard;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::evaluate::Measures;
use crate::train::{MetricRow, TrainError, replace};

pub(crate) use page::card;

/// What a run cost, as the ledger's statement says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct Spend {
    /// Calls charged for the run, evaluation included.
    pub calls: u64,
    /// Dollars as a decimal string; absent where nothing is priced.
    pub usd: Option<String>,
    /// Of these dollars what the answers cost that are learnt from, in training and validation; absent as above.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_usd: Option<String>,
}

/// A row of comparison: something that answered the same test part.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What it is.
    pub name: String,
    /// How it scores.
    #[serde(flatten)]
    pub test: Measures,
}

/// The pinned content of `report.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The method's short name.
    pub method: String,
    /// The bought answers that it was trained and stopped by.
    pub calls: usize,
    /// The seeds.
    pub seeds: Vec<u64>,
    /// Scores on the test part.
    pub test: Measures,
    /// The teacher on the same test part, by its recorded answers.
    pub teacher: Row,
    /// The same student, steps and seeds, trained on the classes alone that the teacher's answers name.
    pub student_alone: Row,
    /// What it cost.
    pub spend: Spend,
}

/// Writes everything but the model folder and the checkpoints.
pub(crate) fn write(
    folder: &Path,
    name: &str,
    report: &Report,
    rows: &[MetricRow],
    manifest: &serde_json::Value,
) -> Result<(), TrainError> {
    let lines: Vec<String> = rows.iter().map(json).collect::<Result<_, _>>()?;
    replace(&folder.join("metrics.jsonl"), (lines.join("\n") + "\n").as_bytes())?;
    write_events(&folder.join("tensorboard"), rows)?;
    replace(&folder.join("manifest.json"), pretty(manifest)?.as_bytes())?;
    replace(&folder.join("report.html"), page::page(name, report, rows).as_bytes())?;
    // Last: where it is, the rest is too.
    replace(&folder.join("report.json"), pretty(report)?.as_bytes())
}

/// One events file a seed, each in a folder of its own, which TensorBoard shows as a run.
fn write_events(folder: &Path, rows: &[MetricRow]) -> Result<(), TrainError> {
    let mut seeds: BTreeMap<u64, Vec<(usize, &str, f32)>> = BTreeMap::new();
    for row in rows {
        let scalars = seeds.entry(row.seed).or_default();
        let mut add = |tag, value: Option<f32>| scalars.extend(value.map(|value| (row.step, tag, value)));
        add("train/loss", Some(row.loss));
        add("train/lr", Some(row.lr));
        add("train/gradient_norm", Some(row.gradient_norm));
        add("validation/loss", row.validation_loss);
        add("validation/agreement", row.validation_agreement);
    }
    for (seed, scalars) in seeds {
        let folder = folder.join(format!("seed-{seed}"));
        make(&folder)?;
        replace(&folder.join("events.out.tfevents.0.tuition"), &tensorboard::events(&scalars))?;
    }
    Ok(())
}

/// Makes a folder and those above it.
pub(crate) fn make(folder: &Path) -> Result<(), TrainError> {
    fs::create_dir_all(folder).map_err(|source| TrainError::Io { path: folder.to_owned(), source })
}

fn json(value: &impl Serialize) -> Result<String, TrainError> {
    serde_json::to_string(value).map_err(|error| TrainError::Export(error.to_string()))
}

/// JSON for people to read too.
pub(crate) fn pretty(value: &impl Serialize) -> Result<String, TrainError> {
    serde_json::to_string_pretty(value)
        .map(|text| text + "\n")
        .map_err(|error| TrainError::Export(error.to_string()))
}
