//! The command `tuition`: it reads the command line and hands over.
//!
//! A library, so that fuzzing can throw texts at the configuration; its one caller beside that is `main.rs`. Must not
//! know what a subcommand does. Invariant: whatever goes wrong is said once, in words, with its exit code.

mod args;
mod audit;
mod backup;
mod budget;
mod cache;
mod config;
mod copy;
mod dataset;
mod demo;
mod doctor;
mod expedition;
mod export;
mod faults;
mod install;
mod interrupt;
mod key;
mod label;
mod lesson;
mod open;
mod plan;
mod print;
mod progress;
mod purchase;
mod reconcile;
mod record;
mod repair;
mod resolve;
mod rounds;
mod seal;
mod secret;
mod serve;
mod setup;
mod sweep;
mod teachers;
mod till;
mod train;
mod words;

#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;

use std::process::ExitCode;

use clap::Parser;

use args::{Command, CommandLine};
use words::{Exit, Trouble, Words};

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let line = match CommandLine::try_parse() {
        Ok(line) => line,
        Err(error) => return misread(&error),
    };
    let json = line.globals.json;
    match faults::arm().and_then(|()| run(line)) {
        Ok(exit) => exit.into(),
        Err(trouble) => {
            let words = Words::of(&trouble);
            print::aside(&words.text());
            if json {
                print::json(&words.json());
            }
            words.exit.into()
        }
    }
}

/// Help was asked for, or the command line does not fit.
fn misread(error: &clap::Error) -> ExitCode {
    // A closed pipe: there is nobody to tell.
    let _ = error.print();
    if error.exit_code() == 0 {
        return Exit::Fine.into();
    }
    if std::env::args().any(|argument| argument == "--json") {
        let what =
            error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        print::json(&Words { what, hint: Some("`tuition help`".to_owned()), exit: Exit::Failed }.json());
    }
    Exit::Failed.into()
}

#[tokio::main]
async fn run(line: CommandLine) -> Result<Exit, Trouble> {
    let globals = &line.globals;
    match line.command {
        Command::Serve(args) => serve::run(args, globals).await,
        Command::Label(args) => label::run(args, globals).await,
        Command::Plan(args) => plan::run(args, globals).await,
        Command::Train(args) => train::run(args, globals).await,
        Command::Sweep(args) => sweep::run(args, globals).await,
        Command::Audit(args) => audit::run(&args, globals),
        Command::Budget(args) => budget::run(args, globals).await,
        Command::Resolve(args) => resolve::run(args, globals).await,
        Command::Cache(args) => cache::run(args, globals).await,
        Command::Export(args) => export::run(&args, globals),
        Command::Copy(args) => copy::run(args, globals).await,
        Command::Backup(args) => backup::run(&args, globals),
        Command::Setup => install::run(globals).await,
        Command::Doctor(args) => doctor::run(&args, globals),
        Command::Demo => demo::run(globals).await,
        Command::Key(args) => key::run(args, globals),
    }
}
