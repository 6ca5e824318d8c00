//! `tuition export`: the recorded answers, or the entries themselves, as files that other tools read.
//!
//! Must not change the record. Invariants: what is exported is durable; a file stands under its name only once it is whole;
//! memory is bounded by a group of rows, whatever the record holds.

mod columnar;
mod rows;
mod text;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;
use tuition_ledger::{StoreUrl, View};

use self::rows::{Column, Row, Wanted};
use crate::args::Globals;
use crate::progress::Progress;
use crate::words::{Exit, Trouble};
use crate::{print, record};

/// Rows that are written together.
const GROUP: usize = 4096;
/// Bytes after which a group is written early.
const GROUP_BYTES: usize = 16 << 20;
/// The data of a folder that `datasets.load_dataset` reads.
const HF_DATA: &str = "data/train-00000-of-00001.parquet";

/// The record, out.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The form of the file; `hf` makes a folder that `datasets.load_dataset` reads.
    #[arg(long, value_enum)]
    format: Format,
    /// What is exported: the answers that are served, or every entry of the record.
    #[arg(long, value_enum, default_value = "answers")]
    what: What,
    /// Only what this run paid for.
    #[arg(long)]
    run: Option<String>,
    /// Only what this teacher answered.
    #[arg(long)]
    teacher: Option<String>,
    /// Only what this model answered.
    #[arg(long)]
    model: Option<String>,
    /// Overwrites OUT where it is there.
    #[arg(long)]
    force: bool,
    /// The file, or for `hf` the folder; `-` is standard output, for jsonl and csv.
    out: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Parquet,
    Jsonl,
    Csv,
    Hf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    Answers,
    Entries,
}

/// Where rows go.
trait Sink {
    /// Writes a group of rows.
    fn write(&mut self, rows: &[Row]) -> Result<(), Trouble>;
    /// Writes what comes last.
    fn finish(self: Box<Self>) -> Result<(), Trouble>;
}

pub(crate) fn run(args: &ExportArgs, globals: &Globals) -> Result<Exit, Trouble> {
    let store = globals.config()?.store;
    if args.out.as_os_str() == "-" {
        return to_stdout(args, globals, &store);
    }
    if args.out.symlink_metadata().is_ok() && !args.force {
        return Err(Trouble::usage(
            format!("`{}` is there already", args.out.display()),
            "`--force` overwrites it",
        ));
    }
    if args.out.is_dir() && !is_export(&args.out) {
        return Err(Trouble::usage(
            format!(
                "`{}` is a folder that holds more than an export, and is not overwritten",
                args.out.display()
            ),
            "name another",
        ));
    }
    let beside = beside(&args.out)?;
    let written = write(args, &store, &beside, globals.json).and_then(|rows| {
        if args.out.is_dir() {
            fs::remove_dir_all(&args.out).map_err(|error| failed("cannot remove", &args.out, error))?;
        }
        fs::rename(&beside, &args.out).map_err(|error| failed("cannot name", &args.out, error))?;
        Ok(rows)
    });
    if written.is_err() {
        // Nothing half done stays; where that fails as well, the first error is the one to tell.
        let _ = if beside.is_dir() { fs::remove_dir_all(&beside) } else { fs::remove_file(&beside) };
    }
    let rows = written?;
    let out = args.out.display().to_string();
    match globals.json {
        true => print::json(&json!({"out": out, "rows": rows})),
        false => print::line(&format!("{rows} rows in {out}")),
    }
    Ok(Exit::Fine)
}

/// Whether a folder holds what `hf` writes, and nothing else.
fn is_export(folder: &Path) -> bool {
    let Ok(found) = fs::read_dir(folder) else { return false };
    let known = |entry: io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| ["README.md", "data"].iter().any(|known| entry.file_name() == *known))
    };
    let data = folder.join("data");
    let files = || fs::read_dir(&data).into_iter().flatten().filter_map(Result::ok);
    found.into_iter().all(known) && files().all(|file| data.join(file.file_name()) == folder.join(HF_DATA))
}

/// A name beside OUT for what is not whole yet.
fn beside(out: &Path) -> Result<PathBuf, Trouble> {
    let Some(name) = out.file_name() else {
        return Err(Trouble::usage(
            format!("`{}` names no file", out.display()),
            "such as `answers.parquet`",
        ));
    };
    let mut partial = name.to_owned();
    partial.push(format!(".partial-{}", std::process::id()));
    Ok(out.with_file_name(partial))
}

fn to_stdout(args: &ExportArgs, globals: &Globals, store: &StoreUrl) -> Result<Exit, Trouble> {
    if globals.json || matches!(args.format, Format::Parquet | Format::Hf) {
        return Err(Trouble::usage(
            "only jsonl and csv go to standard output, and not beside `--json`",
            "name a file",
        ));
    }
    let columns = columns(args.what);
    let out = BufWriter::new(io::stdout().lock());
    match pour(args, store, true, text_sink(args.format, columns, out, &args.out)?) {
        // Whoever read it has seen enough.
        Err(Trouble::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::Fine),
        poured => poured.map(|_| Exit::Fine),
    }
}

fn columns(what: What) -> &'static [Column] {
    match what {
        What::Answers => rows::ANSWERS,
        What::Entries => rows::ENTRIES,
    }
}

fn text_sink<'w>(
    format: Format,
    columns: &'static [Column],
    out: impl Write + 'w,
    name: &Path,
) -> Result<Box<dyn Sink + 'w>, Trouble> {
    Ok(match format {
        Format::Csv => Box::new(text::Csv::new(columns, out, name)?),
        _ => Box::new(text::JsonLines::new(columns, out, name)),
    })
}

/// Writes everything to `path`, durably; gives the number of rows.
fn write(args: &ExportArgs, store: &StoreUrl, path: &Path, quiet: bool) -> Result<u64, Trouble> {
    let columns = columns(args.what);
    let mut data = path.to_owned();
    if args.format == Format::Hf {
        data.push(HF_DATA);
        let folder = data.parent().unwrap_or(path);
        fs::create_dir_all(folder).map_err(|error| failed("cannot make", folder, error))?;
    }
    let file = File::create_new(&data).map_err(|error| failed("cannot write", &data, error))?;
    let whole = file.try_clone().map_err(|error| failed("cannot write", &data, error))?;
    let out = BufWriter::new(file);
    let sink: Box<dyn Sink> = match args.format {
        Format::Parquet | Format::Hf => Box::new(columnar::Parquet::new(columns, out, &data)?),
        Format::Jsonl | Format::Csv => text_sink(args.format, columns, out, &data)?,
    };
    let rows = pour(args, store, quiet, sink)?;
    whole.sync_all().map_err(|error| failed("cannot write", &data, error))?;
    if args.format == Format::Hf {
        let readme = path.join("README.md");
        let card = card(args, store, rows)?;
        fs::write(&readme, card).map_err(|error| failed("cannot write", &readme, error))?;
    }
    Ok(rows)
}

/// Pours the rows into a sink, group by group.
fn pour(
    args: &ExportArgs,
    store: &StoreUrl,
    quiet: bool,
    mut sink: Box<dyn Sink + '_>,
) -> Result<u64, Trouble> {
    let wanted = Wanted { run: args.run.clone(), teacher: args.teacher.clone(), model: args.model.clone() };
    let bar = Progress::new(0, "rows", quiet);
    bar.stage("exporting");
    let (mut group, mut bytes, mut total) = (Vec::new(), 0, 0);
    let mut take = |row: Row| {
        bytes += rows::bytes(&row);
        group.push(row);
        total += 1;
        if group.len() < GROUP && bytes < GROUP_BYTES {
            return Ok(());
        }
        bar.stand(total, total, String::new());
        bytes = 0;
        let written = sink.write(&group);
        group.clear();
        written
    };
    match args.what {
        What::Answers => rows::answers(store, &wanted, &mut take)?,
        What::Entries => rows::entries(store, &wanted, &mut take)?,
    }
    sink.write(&group)?;
    sink.finish()?;
    bar.finish();
    Ok(total)
}

/// The card of a data set, with what it cost.
fn card(args: &ExportArgs, store: &StoreUrl, rows: u64) -> Result<String, Trouble> {
    let stated = record::statement(store)?.to_json(&View::default());
    let totals = &stated["totals"];
    let kind =
        if args.what == What::Answers { "recorded answers of a teacher" } else { "entries of a ledger" };
    Ok(format!(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {HF_DATA}\n---\n\n\
         {rows} {kind}, exported by tuition {}. The whole record that they come from: {} calls settled, {} unknown, \
         for {} dollars.\n",
        env!("CARGO_PKG_VERSION"),
        totals["calls"]["settled"],
        totals["calls"]["unknown"],
        totals["usd"]["settled"].as_str().unwrap_or_default(),
    ))
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> Trouble {
    Trouble::io(what, path.display().to_string(), source)
}
