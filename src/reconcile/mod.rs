//! `tuition audit --reconcile FILE`: the statement held against a provider's bill, by day and model.
//!
//! Must not change the record, nor take either side's word for the other. Invariant: figures come from the statement and
//! from the export alone; a row that does not add up is shown and makes the exit code 1.

mod bill;
mod compare;
mod form;
mod number;
mod page;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use clap::Args;
use tuition_ledger::{Statement, Timestamp};
use tuition_trainer::nearest;

pub(crate) use bill::BillError;
use compare::{Terms, compare};
pub(crate) use form::Format;

use crate::args::Globals;
use crate::words::{Exit, Trouble};
use crate::{print, record};

/// The other side of the statement.
#[derive(Debug, Default, Args)]
pub(crate) struct ReconcileArgs {
    /// Holds the statement against a provider's export (CSV), by day and model.
    #[arg(long = "reconcile", value_name = "FILE", conflicts_with_all = ["by", "verify"])]
    pub(crate) file: Option<PathBuf>,
    /// Whose export it is; without it the header row says so.
    #[arg(long, requires = "file")]
    format: Option<Format>,
    /// What the columns of any other CSV mean, such as day=Date,model=Model,calls=Requests,usd=Cost.
    #[arg(long, requires = "file", value_delimiter = ',', value_name = "KEY=COLUMN")]
    columns: Vec<String>,
    /// Only what was bought of this teacher.
    #[arg(long, requires = "file", value_name = "NAME")]
    teacher: Option<String>,
    /// Counts a model, on either side, as another.
    #[arg(long, requires = "file", value_delimiter = ',', value_parser = renaming, value_name = "MODEL=OTHER")]
    rename: Vec<(String, String)>,
    /// The export's dollars are rounded to so many places; without it they are exact.
    #[arg(long, requires = "file", value_parser = clap::value_parser!(u8).range(0..=8), value_name = "N")]
    places: Option<u8>,
}

fn renaming(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('=').filter(|(from, to)| !from.is_empty() && !to.is_empty());
    let (from, to) = parts.ok_or_else(|| format!("`{text}` is no MODEL=OTHER"))?;
    Ok((from.to_owned(), to.to_owned()))
}

/// The days that both sides are limited to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Days {
    pub(crate) since: Option<Timestamp>,
    pub(crate) until: Option<Timestamp>,
}

impl Days {
    /// A bill knows days only.
    fn whole(self) -> Result<Self, Trouble> {
        for (name, moment) in [("--since", self.since), ("--until", self.until)] {
            if let Some(moment) = moment.filter(|moment| moment.day().start() != *moment) {
                let what = format!("`{name}` is {moment}, and a bill is by day");
                return Err(Trouble::usage(what, "name a day, such as 2026-11-01"));
            }
        }
        Ok(self)
    }

    fn holds(self, at: Timestamp) -> bool {
        self.since.is_none_or(|since| at >= since) && self.until.is_none_or(|until| at < until)
    }
}

/// Reads the export, holds it against the statement and shows both.
///
/// # Errors
/// The export or the record cannot be read; arguments that name nothing.
pub(crate) fn run(
    file: &Path,
    args: &ReconcileArgs,
    days: Days,
    csv: bool,
    globals: &Globals,
) -> Result<Exit, Trouble> {
    let days = days.whole()?;
    let mut bill = read(file, args)?;
    let statement = record::statement(&globals.config()?.store)?;
    if let Some(teacher) = &args.teacher {
        known_teacher(teacher, &statement)?;
    }
    let (first, last) = (bill.rows.keys().next().cloned(), bill.rows.keys().next_back().cloned());
    bill.rows.retain(|(day, _), _| days.holds(day.start()));
    let bought = statement.bought(args.teacher.as_deref(), days.since, days.until);
    let models = bill.rows.keys().chain(bought.keys()).map(|(_, model)| model.as_str()).collect();
    let terms = Terms { renamed: renamed(&args.rename, &models)?, places: args.places };
    let compared = compare(&bill, bought, &terms);
    let shown = page::Shown {
        file,
        form: bill.form,
        span: first.zip(last).map(|((first, _), (last, _))| (first, last)),
        discrepancies: statement.discrepancies().len(),
        compared: &compared,
    };
    if globals.json {
        print::json(&shown.json());
    } else if csv {
        print::line(&shown.csv());
    } else {
        print::line(&shown.page());
    }
    Ok(if compared.adds_up() && shown.discrepancies == 0 { Exit::Fine } else { Exit::Found })
}

fn read(file: &Path, args: &ReconcileArgs) -> Result<bill::Bill, Trouble> {
    let map = match (args.format, args.columns.is_empty()) {
        (None | Some(Format::Generic), false) => Some(form::mapped(&args.columns)?),
        (Some(Format::Generic), true) => {
            let hint = "say what they mean: `--columns day=Date,model=Model,usd=Cost`";
            return Err(Trouble::usage("`--format generic` knows no columns", hint));
        }
        (Some(_), false) => {
            let hint = "leave out `--format`, or the map";
            return Err(Trouble::usage("`--columns` is for exports of no known format", hint));
        }
        (None | Some(_), true) => None,
    };
    let open = || File::open(file).map_err(|source| BillError::Read { file: file.to_owned(), source });
    if let Some(map) = &map {
        return Ok(bill::read(file, open()?, Some(map))?);
    }
    let Some(format) = args.format else { return Ok(bill::read(file, open()?, None)?) };
    let mut first = None;
    for form in format.forms() {
        match bill::read(file, open()?, Some(form)) {
            // The wrong one of a provider's exports; if the others do not fit either, the first says what is missing.
            Err(error @ BillError::NoColumn { .. }) => first = first.or(Some(error)),
            read => return Ok(read?),
        }
    }
    Err(first.expect("each provider has a form").into())
}

fn known_teacher(name: &str, statement: &Statement) -> Result<(), Trouble> {
    let teachers = statement.teachers();
    if teachers.contains(name) {
        return Ok(());
    }
    let hint = match nearest(name, teachers.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "`tuition audit --by teacher` lists them".to_owned(),
    };
    Err(Trouble::usage(format!("the record has no calls to a teacher `{name}`"), hint))
}

/// The map of `--rename`, each of whose models is on one side at least.
fn renamed(
    renamed: &[(String, String)],
    models: &BTreeSet<&str>,
) -> Result<BTreeMap<String, String>, Trouble> {
    for (from, _) in renamed {
        if !models.contains(from.as_str()) {
            let what =
                format!("`--rename` names `{from}`, and neither the export nor the record has such a model");
            let near = nearest(from, models.iter().copied());
            return Err(Trouble::usage(
                what,
                near.map_or(String::new(), |near| format!("did you mean `{near}`?")),
            ));
        }
    }
    Ok(renamed.iter().cloned().collect())
}
