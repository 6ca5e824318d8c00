//! `tuition audit --seal`, `tuition audit --against SEAL` and `tuition key seal FILE`: what a record held, signed, and
//! whether a later copy of it still does.
//!
//! Must not change the record, nor judge what differs: the ledger does. Invariant: nothing that has a discrepancy is sealed,
//! and a key is made once, in a file of its owner's, never over another.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use rand::TryRng;
use serde_json::json;
use tuition_ledger::{
    Discrepancy, Entries, OpenError, Seal, SealError, SealKey, SealedHead, Statement, read_entries,
};

use crate::args::Globals;
use crate::open::clock;
use crate::words::{Exit, Trouble};
use crate::{print, record, secret};

/// The longest seal, in bytes: a line for each writer that a record ever had.
const SEAL_BYTES_MAX: u64 = 16 << 20;

/// What `tuition audit` takes for seals.
#[derive(Debug, Default, Args)]
pub(crate) struct SealArgs {
    /// Prints a seal of the record, one JSON object signed with `--key`: keep it where nobody who writes the store can.
    #[arg(long, requires = "key", conflicts_with_all = ["by", "since", "until", "csv", "verify", "against"])]
    seal: bool,
    /// Checks that the record still holds what SEAL says, and has only grown since.
    #[arg(
        long,
        value_name = "SEAL",
        requires = "key",
        conflicts_with_all = ["by", "since", "until", "csv", "verify"]
    )]
    against: Option<PathBuf>,
    /// The key of seals, a file that `tuition key seal` made and only its owner may read.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

impl SealArgs {
    /// Whether any of them was given.
    pub(crate) fn are_given(&self) -> bool {
        self.seal || self.against.is_some() || self.key.is_some()
    }
}

pub(crate) fn run(args: &SealArgs, globals: &Globals) -> Result<Exit, Trouble> {
    let Some(key) = args.key.as_deref().filter(|_| args.seal || args.against.is_some()) else {
        return Err(Trouble::usage(
            "`--key` alone says nothing",
            "`tuition audit --seal --key FILE`, or `tuition audit --against SEAL --key FILE`",
        ));
    };
    let key = read_key(key)?;
    match &args.against {
        None => seal(&key, globals),
        Some(path) => check(path, &key, globals),
    }
}

/// Makes a key.
pub(crate) fn make_key(path: &Path, globals: &Globals) -> Result<Exit, Trouble> {
    let mut bytes = [0; 32];
    rand::rngs::SysRng
        .try_fill_bytes(&mut bytes)
        .map_err(|error| Trouble::failed(format!("the system gives no random numbers: {error}")))?;
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(Trouble::usage(
                format!("`{}` is there already, and a key is never written over anything", path.display()),
                "name another file; seals that were made with a key can be checked with that key only",
            ));
        }
        Err(error) => return Err(Trouble::io("cannot make the key file", path, error)),
    };
    let written = writeln!(file, "{}", SealKey::new(bytes).secret()).and_then(|()| file.sync_all());
    if let Err(error) = written {
        // Half a key is none.
        let _ = fs::remove_file(path);
        return Err(Trouble::io("cannot write the key file", path, error));
    }
    if globals.json {
        print::json(&json!({"file": path}));
    } else {
        print::line(&format!(
            "a key for seals is in `{}`; whoever has it can make seals: keep it, and the seals, where nobody who can write the store reaches them",
            path.display()
        ));
    }
    Ok(Exit::Fine)
}

fn read_key(path: &Path) -> Result<SealKey, Trouble> {
    let wrong = |why: &str| {
        let hint = "`tuition key seal FILE` makes one";
        Trouble::usage(format!("the key file `{}` {why}", path.display()), hint)
    };
    let text = secret::from_file(path).map_err(|why| wrong(&why))?;
    text.parse().map_err(|error: tuition_ledger::SealKeyError| wrong(&error.to_string()))
}

/// Prints a seal of the record, if the record adds up.
fn seal(key: &SealKey, globals: &Globals) -> Result<Exit, Trouble> {
    let store = globals.config()?.store;
    let (statement, heads) = record::proven(&store)?;
    let discrepancies = statement.discrepancies();
    if !discrepancies.is_empty() {
        print::aside(&format!("not sealed: the record has discrepancies\n{}", lines(discrepancies)));
        if globals.json {
            print::json(&json!({"discrepancies": discrepancies}));
        }
        return Ok(Exit::Found);
    }
    if heads.is_empty() {
        return Err(OpenError::Absent(store).into());
    }
    let heads = heads.iter().map(SealedHead::from).collect();
    print::json(&Seal::new(clock()(), heads, &statement).sign(key));
    Ok(Exit::Fine)
}

/// Holds the record against a seal.
fn check(path: &Path, key: &SealKey, globals: &Globals) -> Result<Exit, Trouble> {
    let seal = read_seal(path, key)?;
    let store = globals.config()?.store;
    let (differences, later) = compare(&seal, read_entries(&store)?);
    if globals.json {
        print::json(&json!({
            "sealed": {"at": seal.at, "entries": seal.entries},
            "later": later,
            "differences": differences,
        }));
    } else if differences.is_empty() {
        print::line(&format!(
            "{} entries are as they were sealed at {}; {later} came later",
            seal.entries, seal.at
        ));
    } else {
        print::line(&format!("not what was sealed at {}:\n{}", seal.at, lines(&differences)));
    }
    Ok(if differences.is_empty() { Exit::Fine } else { Exit::Found })
}

fn read_seal(path: &Path, key: &SealKey) -> Result<Seal, Trouble> {
    let failed = |error| Trouble::io("cannot read the seal", path, error);
    let (mut file, mut text) = (File::open(path).map_err(failed)?.take(SEAL_BYTES_MAX), Vec::new());
    file.read_to_end(&mut text).map_err(failed)?;
    Seal::open(&text, key).map_err(|error| {
        let hint = match error {
            SealError::Mac => "is this the key that it was made with?",
            SealError::Newer { .. } => "check it with the version of tuition that made it",
            _ => "`tuition audit --seal --key FILE` prints seals",
        };
        Trouble::usage(format!("`{}` {error}", path.display()), hint)
    })
}

/// Where the sealed part of the record is not what it was, and how many entries stand behind it. Those must only check.
fn compare(seal: &Seal, mut entries: Entries) -> (Vec<Discrepancy>, u64) {
    let mut statement = Statement::default();
    let (mut number, mut differences) = (0, None);
    let now = |entries: &Entries, statement: &Statement| {
        let heads: Vec<_> = entries.heads().iter().map(SealedHead::from).collect();
        seal.differences(&heads, statement)
    };
    loop {
        if number == seal.entries && differences.is_none() {
            differences = Some(now(&entries, &statement));
        }
        match entries.next() {
            Some(Ok(read)) => {
                number = read.number;
                if number <= seal.entries {
                    statement.add(&read.entry);
                }
            }
            Some(Err(error)) => {
                let entry = error.entry().unwrap_or(number + 1);
                let mut differences = differences.unwrap_or_default();
                differences.push(Discrepancy { entry, what: error.to_string() });
                return (differences, number.saturating_sub(seal.entries));
            }
            None => {
                let differences = differences.unwrap_or_else(|| now(&entries, &statement));
                return (differences, number.saturating_sub(seal.entries));
            }
        }
    }
}

fn lines(found: &[Discrepancy]) -> String {
    let lines = found.iter().map(|found| format!("entry {}: {}", found.entry, found.what));
    lines.collect::<Vec<_>>().join("\n")
}
