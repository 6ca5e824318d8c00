//! A cell of a sweep: one method with one budget and one seed, its run folder, and what the folder says of it.
//!
//! Must not know how a cell is trained. Invariant: a cell counts as finished only by a report that belongs to the very
//! settings of the cell; scores are read from the files alone, whoever wrote them and when.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use tuition_ledger::Usd;
use tuition_trainer::RunConfig;

use crate::train::RUNS;
use crate::words::Trouble;

/// One method with one budget and one seed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Cell {
    /// The method.
    pub(crate) method: String,
    /// The calls.
    pub(crate) budget: u64,
    /// The seed of the buying order and of the student.
    pub(crate) seed: u64,
    /// The run file.
    pub(crate) run: RunConfig,
}

/// What lies in a cell's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stand {
    /// Nothing, or what an interrupted cell of these settings left.
    Open,
    /// What other settings left.
    Stale,
    /// The report of these settings.
    Finished,
}

/// What one cell scores, as its report says.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Score {
    /// The cell's run.
    pub(crate) cell: String,
    /// Its method.
    pub(crate) method: String,
    /// Its budget in calls.
    pub(crate) budget: u64,
    /// Its seed.
    pub(crate) seed: u64,
    /// The answers that it learnt from, those that validate among them.
    pub(crate) calls: u64,
    /// What they cost when they were bought; none where one of them has no price.
    #[serde(serialize_with = "dollars")]
    pub(crate) usd: Option<Usd>,
    /// Against the truth.
    pub(crate) accuracy: Option<f64>,
    /// With the teacher.
    pub(crate) agreement: Option<f64>,
    /// Expected calibration error.
    pub(crate) ece: Option<f64>,
    /// Cross-entropy.
    pub(crate) loss: Option<f64>,
    /// The teacher's own accuracy on the same part.
    #[serde(skip)]
    pub(crate) teacher: Option<f64>,
}

/// Dollars as a decimal string.
pub(crate) fn dollars<S: serde::Serializer>(usd: &Option<Usd>, to: S) -> Result<S::Ok, S::Error> {
    usd.map(|usd| usd.to_string()).serialize(to)
}

impl Cell {
    /// The run's folder.
    pub(crate) fn folder(&self) -> PathBuf {
        Path::new(RUNS).join(&self.run.name)
    }

    /// The run file, as `train` writes it too.
    ///
    /// # Errors
    /// Never for a configuration that was parsed.
    pub(crate) fn text(&self) -> Result<String, Trouble> {
        self.run.to_toml().map_err(|error| Trouble::failed(error.to_string()))
    }

    /// What lies in the folder.
    ///
    /// # Errors
    /// A file is there and cannot be read.
    pub(crate) fn stand(&self) -> Result<Stand, Trouble> {
        let Some(config) = read(&self.folder().join("config.toml"))? else { return Ok(Stand::Open) };
        if config != self.text()? {
            return Ok(Stand::Stale);
        }
        Ok(if self.report().exists() { Stand::Finished } else { Stand::Open })
    }

    /// Takes away what would be taken for this cell's own: an old report, and of other settings the checkpoints.
    ///
    /// # Errors
    /// It cannot be removed.
    pub(crate) fn clear(&self, stand: Stand) -> Result<(), Trouble> {
        let absent = |path: PathBuf, removed: std::io::Result<()>| match removed {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                Err(Trouble::io("cannot remove", path, source))
            }
            _ => Ok(()),
        };
        let report = self.report();
        absent(report.clone(), fs::remove_file(&report))?;
        let checkpoints = self.folder().join("checkpoints");
        match stand {
            Stand::Stale => absent(checkpoints.clone(), fs::remove_dir_all(&checkpoints)),
            Stand::Open | Stand::Finished => Ok(()),
        }
    }

    /// What the report says.
    ///
    /// # Errors
    /// There is none, or it is none of this cell.
    pub(crate) fn score(&self) -> Result<Score, Trouble> {
        let path = self.report();
        let text = fs::read_to_string(&path)
            .map_err(|source| Trouble::io("cannot read the report", &path, source))?;
        let wrong = |why: &str| Trouble::failed(format!("the report `{}` {why}", path.display()));
        let report: Value =
            serde_json::from_str(&text).map_err(|error| wrong(&format!("is none: {error}")))?;
        let value = |measures: &str, name: &str| report[measures][name]["mean"].as_f64();
        if report["seeds"] != serde_json::json!([self.seed]) {
            return Err(wrong(&format!("is not of seed {}", self.seed)));
        }
        let usd = report["spend"]["learning_usd"].as_str().map(str::parse::<Usd>).transpose();
        Ok(Score {
            cell: self.run.name.clone(),
            method: self.method.clone(),
            budget: self.budget,
            seed: self.seed,
            calls: report["calls"].as_u64().ok_or_else(|| wrong("does not say its calls"))?,
            usd: usd.map_err(|error| wrong(&format!("has no dollars: {error}")))?,
            accuracy: value("test", "accuracy"),
            agreement: value("test", "agreement"),
            ece: value("test", "ece"),
            loss: value("test", "loss"),
            teacher: value("teacher", "accuracy"),
        })
    }

    fn report(&self) -> PathBuf {
        self.folder().join("report.json")
    }
}

fn read(path: &Path) -> Result<Option<String>, Trouble> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(source) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Trouble::io("cannot read", path, source)),
    }
}
