//! `tuition sweep SWEEP.toml`: methods, budgets and seeds on the same bought answers; ends in a table and plots.
//!
//! Must not know how a cell is trained: each is `tuition train` in a process of its own. Invariants: every cell is judged
//! before any is trained; what is finished is not trained again; the numbers are read from the run folders, so that an
//! interrupted sweep ends in the very bytes of an undisturbed one.

mod cells;
mod children;
mod choice;
mod config;
mod forest;
mod page;
mod table;

use std::ffi::OsString;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};
use tuition_trainer::Source;

use crate::args::Globals;
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::train::RUNS;
use crate::words::{Exit, Trouble};
use crate::{open, print};

use cells::{Cell, Stand};
use children::{End, Job};
pub(crate) use config::SweepError;
use config::{Sweep, run_file};
use table::Results;

/// The run file in the sweep's own folder.
const BASE: &str = "base.toml";

/// A sweep.
#[derive(Debug, Args)]
pub(crate) struct SweepArgs {
    /// The sweep file.
    #[arg(value_name = "SWEEP.toml")]
    file: PathBuf,
    /// Buys nothing: a cell with an answer that is not recorded is an error.
    #[arg(long)]
    offline: bool,
    /// Cells at a time; overrides the sweep file, which says it by `jobs`. Default: one a core.
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Shows the cells and which are finished; buys, trains and writes nothing.
    #[arg(long)]
    dry_run: bool,
}

/// The cells with what lies in their folders.
type Stands<'a> = Vec<(&'a Cell, Stand)>;

pub(crate) async fn run(args: SweepArgs, globals: &Globals) -> Result<Exit, Trouble> {
    let (sweep, base) = read(&args.file)?;
    let config = globals.config()?;
    for cell in &sweep.cells {
        // Who is asked must be known before the first of them is.
        if let Some(teacher) = &cell.run.teacher {
            config.teacher(&teacher.name)?;
        }
    }
    let stands: Stands<'_> =
        sweep.cells.iter().map(|cell| Ok((cell, cell.stand()?))).collect::<Result<_, Trouble>>()?;
    if args.dry_run {
        return Ok(dry(globals, &sweep, &stands));
    }
    let folder = Path::new(RUNS).join(&sweep.name);
    let jobs = prepare(&sweep, &base, &stands, &folder)?;
    let interrupt = Interrupt::listen(
        "stopping: the cells under way save their state; the same command goes on from there",
    )?;
    let buys = |cell: &Cell| cell.run.data.source != Source::Record;
    let buys = !args.offline && stands.iter().any(|(cell, stand)| *stand != Stand::Finished && buys(cell));
    // One owner for the whole sweep: cells come and go, and each asks through it.
    let opened = if buys { Some(open::open(&config).await?) } else { None };
    let ends = train(&args, globals, &sweep, &jobs, &interrupt).await;
    if let Some(opened) = opened {
        open::close(opened).await?;
    }
    finish(globals, &sweep, &folder, stands.len() - jobs.len(), &ends?, &interrupt)
}

/// A sweep, and the text of its run file.
fn read(file: &Path) -> Result<(Sweep, String), Trouble> {
    let wrong = |source| Trouble::SweepFile { file: file.to_owned(), source };
    let text =
        fs::read_to_string(file).map_err(|source| Trouble::io("cannot read the sweep file", file, source))?;
    let run = file.parent().unwrap_or(Path::new("")).join(run_file(&text).map_err(wrong)?);
    let run = fs::read_to_string(&run)
        .map_err(|source| Trouble::io("cannot read the run file of the sweep", &run, source))?;
    Ok((Sweep::parse(&text, &run).map_err(wrong)?, run))
}

/// Writes the sweep file, so that it can be repeated from here, and the run files of what is not finished, and takes away what is in their way.
fn prepare(sweep: &Sweep, base: &str, stands: &Stands<'_>, folder: &Path) -> Result<Vec<Job>, Trouble> {
    if folder.join("checkpoints").exists() {
        return Err(Trouble::usage(
            format!("`{}` is the folder of a run", folder.display()),
            "give the sweep another `name`",
        ));
    }
    let cells = folder.join("cells");
    fs::create_dir_all(&cells).map_err(|source| Trouble::io("cannot make", &cells, source))?;
    let resolved = Sweep { run: BASE.to_owned(), cells: vec![], ..sweep.clone() };
    let resolved = toml::to_string(&resolved).map_err(|error| Trouble::failed(error.to_string()))?;
    write(&folder.join(BASE), base)?;
    write(&folder.join("sweep.toml"), &resolved)?;
    let mut jobs = Vec::new();
    for (cell, stand) in stands.iter().filter(|(_, stand)| *stand != Stand::Finished) {
        let job = children::job(&cells, &cell.run.name);
        cell.clear(*stand)?;
        write(&job.file, &cell.text()?)?;
        jobs.push(job);
    }
    let stale = stands.iter().filter(|(_, stand)| *stand == Stand::Stale).count();
    if stale > 0 {
        print::aside(&format!("note: {stale} cells were trained with other settings; they are trained anew"));
    }
    Ok(jobs)
}

/// Trains what is not finished, with a bar over all cells.
async fn train(
    args: &SweepArgs,
    globals: &Globals,
    sweep: &Sweep,
    jobs: &[Job],
    interrupt: &Interrupt,
) -> Result<Vec<(String, End)>, Trouble> {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let at_once = args.jobs.map(usize::from).or(sweep.jobs).unwrap_or_else(cores);
    let total = sweep.cells.len();
    let found = total - jobs.len();
    if found > 0 {
        print::aside(&format!("{found} of {total} cells were finished before"));
    }
    let bar = Progress::new(total as u64, "cells", globals.json);
    bar.stage(&sweep.name);
    let mut tell = |progress: &children::Progress<'_>| {
        let failed = progress.ended.iter().filter(|(_, end)| matches!(end, End::Failed { .. })).count();
        let failed = if failed > 0 { format!("{failed} failed; ") } else { String::new() };
        let now = (found + progress.ended.len()) as u64;
        bar.stand(now, total as u64, format!("{failed}now {}", progress.running.join(", ")));
        if let (Some((name, end)), false) = (progress.ended.last(), print::is_watched()) {
            let how = match end {
                End::Finished => "is trained",
                End::Interrupted => "saved its state",
                End::Failed { .. } => "failed",
            };
            print::aside(&format!("{now}/{total} `{name}` {how}"));
        }
    };
    let before = before(globals);
    let mut behind: Vec<OsString> = ["--resume", "auto", "--leashed"].map(OsString::from).to_vec();
    behind.extend(args.offline.then(|| "--offline".into()));
    let ends = children::train(jobs, at_once, (&before, &behind), interrupt, &mut tell).await;
    bar.finish();
    ends
}

/// What stands before `train` on a cell's command line.
fn before(globals: &Globals) -> Vec<OsString> {
    let mut before: Vec<OsString> = vec!["--json".into()];
    if let Some(config) = &globals.config {
        before.extend(["--config".into(), config.into()]);
    }
    if let Some(store) = &globals.store {
        before.extend(["--store".into(), store.into()]);
    }
    before
}

/// Writes the folder and says what came of it.
fn finish(
    globals: &Globals,
    sweep: &Sweep,
    folder: &Path,
    found: usize,
    ends: &[(String, End)],
    interrupt: &Interrupt,
) -> Result<Exit, Trouble> {
    let trained = ends.iter().filter(|(_, end)| *end == End::Finished).count();
    let total = sweep.cells.len();
    if interrupt.is_asked() && found + trained < total {
        if globals.json {
            print::json(
                &json!({"sweep": sweep.name, "stopped": "interrupted", "cells": total, "finished": found + trained}),
            );
        } else {
            print::line(&format!(
                "sweep `{}` was stopped with {} of {total} cells finished; the same command goes on from here",
                sweep.name,
                found + trained
            ));
        }
        return Ok(Exit::Fine);
    }
    let finished =
        |cell: &&Cell| ends.iter().all(|(name, end)| *name != cell.run.name || *end == End::Finished);
    let scores = sweep.cells.iter().filter(finished).map(Cell::score).collect::<Result<_, _>>()?;
    let results = table::results(sweep, scores);
    let value = serde_json::to_value(&results).map_err(|error| Trouble::failed(error.to_string()))?;
    write(&folder.join("report.md"), &page::markdown(&results))?;
    draw(folder, &page::plots(&results))?;
    write(&folder.join("report.html"), &page::html(&results))?;
    write(&folder.join("sweep.json"), &format!("{value:#}\n"))?;
    let exit = complain(ends);
    show(globals, folder, &results, value, (found, trained), ends, exit);
    Ok(exit)
}

/// Writes the plots, and takes away those that an earlier form of the sweep left: with other budgets there are others.
fn draw(folder: &Path, plots: &[page::Drawing]) -> Result<(), Trouble> {
    for plot in plots {
        write(&folder.join(&plot.file), &plot.alone())?;
    }
    for entry in fs::read_dir(folder).map_err(|source| Trouble::io("cannot read", folder, source))? {
        let entry = entry.map_err(|source| Trouble::io("cannot read", folder, source))?;
        let name = entry.file_name();
        let earlier = name.to_str().is_some_and(page::is_plot);
        if earlier && !plots.iter().any(|plot| *plot.file == *name) {
            let path = entry.path();
            fs::remove_file(&path).map_err(|source| Trouble::io("cannot take away", &path, source))?;
        }
    }
    Ok(())
}

fn show(
    globals: &Globals,
    folder: &Path,
    results: &Results,
    value: Value,
    (found, trained): (usize, usize),
    ends: &[(String, End)],
    exit: Exit,
) {
    if globals.json {
        let failed = |(name, end): &(String, End)| match end {
            End::Failed { what, hint, exit } => {
                Some(json!({"cell": name, "message": what, "hint": hint, "exit": exit.code()}))
            }
            End::Interrupted => Some(json!({"cell": name, "message": STOPPED, "hint": null, "exit": 2})),
            End::Finished => None,
        };
        let failed: Vec<Value> = ends.iter().filter_map(failed).collect();
        print::json(&json!({
            "folder": folder, "found": found, "trained": trained, "failed": failed, "results": value, "exit": exit.code(),
        }));
        return;
    }
    print::line(&page::text(results));
    print::line(&format!(
        "\n{found} cells were finished before, {trained} are trained now; tables and plots: {}",
        folder.display()
    ));
}

/// What is said of a cell that somebody else told to stop.
const STOPPED: &str = "it was told to stop, but the sweep was not";

/// Names the cells that failed; the exit code of the worst: a failure, then the budget, then a miss.
fn complain(ends: &[(String, End)]) -> Exit {
    let mut exits = Vec::new();
    for (name, end) in ends {
        let (what, hint, exit) = match end {
            End::Finished => continue,
            End::Interrupted => (STOPPED, &None, Exit::Failed),
            End::Failed { what, hint, exit } => (what.as_str(), hint, *exit),
        };
        print::aside(&format!("error: cell `{name}`: {what}"));
        if let Some(hint) = hint {
            print::aside(&format!("  hint: {hint}"));
        }
        exits.push(exit);
    }
    [Exit::Failed, Exit::Budget, Exit::Found]
        .into_iter()
        .find(|exit| exits.contains(exit))
        .unwrap_or(Exit::Fine)
}

fn dry(globals: &Globals, sweep: &Sweep, stands: &Stands<'_>) -> Exit {
    let word = |stand: Stand| match stand {
        Stand::Open => "open",
        Stand::Stale => "trained with other settings",
        Stand::Finished => "finished",
    };
    let finished = stands.iter().filter(|(_, stand)| *stand == Stand::Finished).count();
    if globals.json {
        let cell = |(cell, stand): &(&Cell, Stand)| json!({"cell": cell.run.name, "method": cell.method, "budget": cell.budget, "seed": cell.seed, "stand": word(*stand)});
        let cells: Vec<Value> = stands.iter().map(cell).collect();
        print::json(&json!({"sweep": sweep.name, "cells": cells, "finished": finished}));
        return Exit::Fine;
    }
    let row = |(cell, stand): &(&Cell, Stand)| {
        vec![cell.method.clone(), cell.budget.to_string(), cell.seed.to_string(), word(*stand).to_owned()]
    };
    let rows: Vec<Vec<String>> = stands.iter().map(row).collect();
    print::line(&print::table(&["method", "calls", "seed", ""], &rows));
    print::line(&format!("\n{finished} of {} cells are finished", stands.len()));
    Exit::Fine
}

/// Writes a file that is whole or what it was before.
fn write(path: &Path, text: &str) -> Result<(), Trouble> {
    let beside = path.with_extension("new");
    let written = fs::write(&beside, text).and_then(|()| fs::rename(&beside, path));
    written.map_err(|source| Trouble::io("cannot write", path, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_cell_decides_the_exit_code() {
        let failed = |exit| End::Failed { what: "w".into(), hint: None, exit };
        let check = |ends: &[End], expected: Exit| {
            let ends: Vec<(String, End)> = ends.iter().map(|end| ("c".to_owned(), end.clone())).collect();
            assert_eq!(complain(&ends), expected);
        };
        check(&[End::Finished], Exit::Fine);
        check(&[End::Finished, failed(Exit::Found)], Exit::Found);
        check(&[failed(Exit::Budget), failed(Exit::Found)], Exit::Budget);
        check(&[failed(Exit::Budget), failed(Exit::Failed)], Exit::Failed);
        check(&[End::Interrupted], Exit::Failed);
    }

    #[test]
    fn the_plots_of_an_earlier_form_are_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let files =
            ["accuracy-minus-kd.svg", "accuracy-against-calls.svg", "report.md", "accuracy.svg", "mine.svg"];
        for file in files {
            fs::write(folder.path().join(file), "old").unwrap();
        }
        let plot = page::Drawing::new("Accuracy against calls".into(), "<svg ></svg>".into());
        draw(folder.path(), &[plot]).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["accuracy-against-calls.svg", "accuracy.svg", "mine.svg", "report.md"]);
        let drawn = fs::read_to_string(folder.path().join("accuracy-against-calls.svg")).unwrap();
        assert!(drawn.starts_with("<svg xmlns"), "{drawn}");
    }
}
