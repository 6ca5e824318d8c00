//! The command line: what is common to all subcommands, and the list of them.
//!
//! Must not do anything. Invariant: each subcommand's own arguments stand in its own file.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::Config;
use crate::words::Trouble;

/// A hard budget on the calls to an expensive teacher, a record of every answer, and a student trained from it.
#[derive(Debug, Parser)]
#[command(name = "tuition", version, propagate_version = true)]
#[command(after_help = "Exit codes: 0 fine, 1 found something, 2 failed, 3 the budget stopped it.")]
pub(crate) struct CommandLine {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every subcommand takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Globals {
    /// The configuration; without it `tuition.toml` is read where there is one.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The store, such as `sled:./tuition.store` or `postgres://user@host/database`; overrides the configuration.
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) store: Option<String>,
    /// Prints one JSON object on standard output, and nothing else there.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

impl Globals {
    /// The configuration.
    ///
    /// # Errors
    /// See [`Config::load`].
    pub(crate) fn config(&self) -> Result<Config, Trouble> {
        Ok(Config::load(self.config.as_deref(), self.store.as_deref())?)
    }
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serves clients: the same APIs, a hard budget, every answer kept.
    Serve(crate::serve::ServeArgs),
    /// Buys answers for a data set; only what is not known costs.
    Label(crate::label::LabelArgs),
    /// Shows what `label` would cost at most; asks nobody.
    Plan(crate::label::LabelArgs),
    /// Trains a student from bought answers.
    Train(crate::train::TrainArgs),
    /// Trains methods with budgets and seeds on the same bought answers; ends in a table and plots.
    Sweep(crate::sweep::SweepArgs),
    /// Shows where every call went, and proves that it adds up.
    Audit(crate::audit::AuditArgs),
    /// Shows and changes limits.
    Budget(crate::budget::BudgetArgs),
    /// Closes an unknown call by a person's word.
    Resolve(crate::resolve::ResolveArgs),
    /// Shows recorded answers.
    Cache(crate::cache::CacheArgs),
    /// Writes the answers, or every entry, to a file that other tools read.
    Export(crate::export::ExportArgs),
    /// Moves the record to another store, a folder or a database; every entry is held against its copy.
    Copy(crate::copy::CopyArgs),
    /// Copies the store's journal into a folder, beside whoever writes the store.
    Backup(crate::backup::BackupArgs),
    /// Installs ONNX Runtime and what the demo needs.
    Setup,
    /// Looks at the configuration, the store, the teachers and the machine; with `--repair`, the way back from a damaged journal.
    Doctor(crate::doctor::DoctorArgs),
    /// The tour: a real teacher, a budget, a student, its quality and what it cost.
    Demo,
    /// Makes client keys, and the key of seals.
    Key(crate::key::KeyArgs),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn what_is_pinned_is_read_and_what_does_not_fit_is_refused() {
        use ErrorKind::{
            ArgumentConflict, InvalidSubcommand, InvalidValue, MissingRequiredArgument, ValueValidation,
        };
        for (line, expected) in [
            ("serve --listen 127.0.0.1:0 --mode replay", None),
            ("serve --mode buy", Some(InvalidValue)),
            ("serve --listen here", Some(ValueValidation)),
            ("--config x.toml --store sled:./s label --teacher t --data d --run r --calls 5 --json", None),
            ("plan --teacher t --data d --run r", None),
            ("label --teacher t --data d", Some(MissingRequiredArgument)),
            ("label --teacher t --data d --run r --calls 0", Some(ValueValidation)),
            ("train RUN.toml --set a.b=c --set d=1 --seeds 0..4 --offline --resume auto", None),
            ("train RUN.toml --resume never", Some(InvalidValue)),
            ("train", Some(MissingRequiredArgument)),
            (
                "audit --by teacher,run,key,model,day --since 2026-01-01 --until 2026-02-01T00:00:00Z --verify",
                None,
            ),
            ("audit --by colour", Some(ValueValidation)),
            ("audit --since monday", Some(ValueValidation)),
            ("audit --csv --json", Some(ArgumentConflict)),
            ("audit --seal --key K", None),
            ("audit --against S --key K --json", None),
            ("audit --seal", Some(MissingRequiredArgument)),
            ("audit --against S", Some(MissingRequiredArgument)),
            ("audit --seal --against S --key K", Some(ArgumentConflict)),
            ("audit --seal --key K --since 2026-01-01", Some(ArgumentConflict)),
            ("audit --against S --key K --verify", Some(ArgumentConflict)),
            ("audit --reconcile bill.csv --format openai --teacher t --since 2026-01-01 --csv", None),
            ("audit --reconcile bill.csv --columns day=D,model=M,usd=C --rename a=b,c=d --places 2", None),
            ("audit --reconcile bill.csv --by day", Some(ArgumentConflict)),
            ("audit --reconcile bill.csv --verify", Some(ArgumentConflict)),
            ("audit --reconcile bill.csv --places 9", Some(ValueValidation)),
            ("audit --reconcile bill.csv --rename a", Some(ValueValidation)),
            ("audit --columns day=D,model=M,usd=C", Some(MissingRequiredArgument)),
            ("audit --reconcile bill.csv --format azure", Some(InvalidValue)),
            ("budget list", None),
            ("budget add b --calls 5 --usd 1.50 --run r", None),
            ("budget add b --usd 1e3", Some(ValueValidation)),
            ("budget add b --calls -5", Some(ErrorKind::UnknownArgument)),
            ("budget set b --lift", None),
            ("budget set b --lift --calls 5", Some(ArgumentConflict)),
            ("resolve 7 --billed --why bill", None),
            ("resolve 7 --billed --free --why bill", Some(ArgumentConflict)),
            ("resolve 7 --why bill", Some(MissingRequiredArgument)),
            ("resolve 7 --free", Some(MissingRequiredArgument)),
            ("cache list --run r --limit 5", None),
            ("cache show abc", Some(ValueValidation)),
            ("copy sled:./a postgres://u@h/d", None),
            ("export --format parquet --what entries --run r answers.parquet", None),
            ("export --format xlsx answers.xlsx", Some(InvalidValue)),
            ("export --format csv", Some(MissingRequiredArgument)),
            ("copy sled:./a", Some(MissingRequiredArgument)),
            ("cache forget abc", Some(ValueValidation)),
            ("backup ./copy", None),
            ("backup", Some(MissingRequiredArgument)),
            ("key new alice", None),
            ("key seal ./seal.key", None),
            ("setup --json", None),
            ("doctor", None),
            ("doctor --repair --json", None),
            ("sweep SWEEP.toml --offline --dry-run --jobs 2", None),
            ("sweep SWEEP.toml --jobs 0", Some(ValueValidation)),
            ("sweep", Some(MissingRequiredArgument)),
            ("sweeep SWEEP.toml", Some(InvalidSubcommand)),
        ] {
            let words = std::iter::once("tuition").chain(line.split(' '));
            let found = CommandLine::try_parse_from(words).err().map(|error| error.kind());
            assert_eq!(found, expected, "{line}");
        }
    }
}
