//! How a store grows: opening, a rebuild of the index, the audit and the resident memory, from ten thousand recorded
//! answers to a million, each beside its bar.
//! Knows the pinned outside of the command; must not call into the rooms. Invariant: everything is measured in a process
//! that was started for it, and a measured process that asked the teacher ends the run.

use crate::process::{Ended, Serve, command, peak, resident, watch};
use crate::teacher::Teacher;
use crate::{BUDGET_CALLS, Failure, fill, http, load};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Hits that are served before memory is read a second time.
const HITS: u64 = 5_000;
/// What the log says once the index is rebuilt.
const REBUILT: &str = "the index is whole";
const REBUILD_TIMEOUT: Duration = Duration::from_secs(600);
const LOOK_EVERY: Duration = Duration::from_millis(10);

pub(crate) struct Settings {
    records: Vec<u64>,
    command: Option<PathBuf>,
    /// Stores made by an earlier run are used again.
    folder: Option<PathBuf>,
}

/// What one size gave; seconds and MiB.
struct Row {
    records: u64,
    journal_mib: f64,
    filled: f64,
    open: f64,
    resident: f64,
    resident_after_hits: f64,
    peak: f64,
    rebuild: f64,
    rebuild_peak: f64,
    replay: f64,
    audit: f64,
    audit_peak: f64,
}

impl Settings {
    pub(crate) fn read(flags: &[String]) -> Result<Self, Failure> {
        let mut settings = Self { records: vec![10_000, 100_000, 1_000_000], command: None, folder: None };
        for flag in flags.chunks(2) {
            match flag {
                [name, value] if name == "--records" => {
                    settings.records = value.split(',').map(str::parse).collect::<Result<_, _>>()?;
                }
                [name, value] if name == "--command" => settings.command = Some(std::path::absolute(value)?),
                [name, value] if name == "--folder" => settings.folder = Some(std::path::absolute(value)?),
                _ => return Err(format!("`{}` is not understood\n{}", flag.join(" "), crate::USAGE).into()),
            }
        }
        Ok(settings)
    }
}

pub(crate) async fn run(settings: &Settings) -> Result<String, Failure> {
    let command = command(settings.command.as_deref())?;
    let teacher = Teacher::start().await?;
    let temporary = tempfile::tempdir()?;
    let root = settings.folder.as_deref().unwrap_or(temporary.path());
    let mut rows = Vec::new();
    for records in &settings.records {
        let folder = root.join(records.to_string());
        rows.push(measure(&command, &teacher, &folder, *records).await?);
        if teacher.asked() > 0 {
            return Err("a measured process asked the teacher: these were no hits".into());
        }
        if settings.folder.is_none() {
            fs::remove_dir_all(&folder)?;
        }
    }
    Ok(report(&rows))
}

async fn measure(command: &Path, teacher: &Teacher, folder: &Path, records: u64) -> Result<Row, Failure> {
    let store = folder.join("tuition.store");
    let filled = made(folder, &store, records)?;
    let journal_mib = fs::metadata(store.join("journal"))?.len() as f64 / f64::from(1 << 20);

    let (serve, open) = started(command, folder, teacher)?;
    let resident_open = resident(serve.id())?;
    let step = (records / HITS).max(1);
    let hits: Vec<Vec<u8>> =
        (0..HITS.min(records)).map(|at| http(&fill::request_body(at * step % records))).collect();
    load::once_each(serve.address, &hits).await?;
    let resident_after_hits = resident(serve.id())?;
    let peak_open = peak(serve.id())?;
    serve.stop()?;

    eprintln!("{records} records: the index is rebuilt");
    fs::remove_dir_all(store.join("index"))?;
    let start = Instant::now();
    let (serve, _) = started(command, folder, teacher)?;
    while !fs::read_to_string(folder.join("serve.log"))?.contains(REBUILT) {
        if start.elapsed() > REBUILD_TIMEOUT {
            return Err(format!("no line `{REBUILT}` within {} s", REBUILD_TIMEOUT.as_secs()).into());
        }
        std::thread::sleep(LOOK_EVERY);
    }
    let rebuild = start.elapsed().as_secs_f64();
    let rebuild_peak = peak(serve.id())?;
    serve.stop()?;

    eprintln!("{records} records: opened without a checkpoint");
    fs::remove_file(store.join("checkpoint"))?;
    let (serve, replay) = started(command, folder, teacher)?;
    serve.stop()?;

    eprintln!("{records} records: audit --verify");
    let mut audit = Command::new(command);
    audit.args(["audit", "--verify", "--json"]).current_dir(folder);
    let Ended { seconds, peak_mib } = watch(audit)?;
    Ok(Row {
        records,
        journal_mib,
        filled,
        open,
        resident: resident_open,
        resident_after_hits,
        peak: peak_open,
        rebuild,
        rebuild_peak,
        replay,
        audit: seconds,
        audit_peak: peak_mib,
    })
}

/// Makes the store where there is none; returns how many seconds that took.
fn made(folder: &Path, store: &Path, records: u64) -> Result<f64, Failure> {
    if store.join("journal").exists() {
        eprintln!("{records} records: recorded before");
        return Ok(f64::NAN);
    }
    eprintln!("{records} records: recorded one by one");
    fs::create_dir_all(folder)?;
    let start = Instant::now();
    let status =
        Command::new(std::env::current_exe()?).arg("fill").arg(store).arg(records.to_string()).status()?;
    if !status.success() {
        return Err(format!("filling the store failed: {status}").into());
    }
    Ok(start.elapsed().as_secs_f64())
}

fn started(command: &Path, folder: &Path, teacher: &Teacher) -> Result<(Serve, f64), Failure> {
    let start = Instant::now();
    let serve = Serve::start(command, folder, crate::FOLDER, teacher.address, BUDGET_CALLS)?;
    Ok((serve, start.elapsed().as_secs_f64()))
}

/// A column: its name, its bar, its unit's decimals, and its figure.
type Column = (&'static str, Option<f64>, usize, fn(&Row) -> f64);

const COLUMNS: [Column; 10] = [
    ("opening, index current, s", Some(3.0), 2, |row| row.open),
    ("resident after opening, MiB", Some(400.0), 0, |row| row.resident),
    ("resident after 5,000 hits, MiB", Some(400.0), 0, |row| row.resident_after_hits),
    ("peak until then, MiB", Some(400.0), 0, |row| row.peak),
    ("rebuild of the index, s", Some(60.0), 1, |row| row.rebuild),
    ("peak while rebuilding, MiB", Some(400.0), 0, |row| row.rebuild_peak),
    ("opening from the journal alone, s", None, 1, |row| row.replay),
    ("`audit --verify`, s", Some(30.0), 1, |row| row.audit),
    ("peak of `audit --verify`, MiB", None, 0, |row| row.audit_peak),
    ("journal, MiB", None, 0, |row| row.journal_mib),
];

fn report(rows: &[Row]) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let mut lines = vec![format!(
        "answers of {} bytes, {cores} cores, each figure from a fresh process",
        fill::BODY_BYTES
    )];
    for row in rows.iter().filter(|row| row.filled.is_finite()) {
        lines.push(format!(
            "{} records were bought one by one in {:.0} s, {:.0} a second, every hold and every answer synced",
            row.records,
            row.filled,
            row.records as f64 / row.filled
        ));
    }
    let heads = rows.iter().map(|row| format!(" {} |", row.records)).collect::<String>();
    lines.push(format!("\n| |{heads} growth | bar |"));
    lines.push(format!("| --- |{} --- | --- |", " --- |".repeat(rows.len())));
    for (name, bar, decimals, figure) in COLUMNS {
        let cells = rows.iter().map(|row| format!(" {:.decimals$} |", figure(row))).collect::<String>();
        let growth = match rows {
            [first, .., last] => {
                let times = figure(last) / figure(first);
                format!("{times:.1} times for {} times the records", last.records / first.records)
            }
            _ => "-".to_owned(),
        };
        let bar = match (bar, rows.last()) {
            (Some(bar), Some(last)) => {
                let kept = if figure(last) < bar { "kept" } else { "MISSED" };
                format!("{bar:.0}, {kept}")
            }
            _ => "-".to_owned(),
        };
        lines.push(format!("| {name} |{cells} {growth} | {bar} |"));
    }
    lines.join("\n")
}
