//! `tuition label`: buys answers for a data set through the desk; what is known costs nothing, what was broken off goes
//! on where it stopped.
//!
//! Must not decide what may be spent. Invariant: `--calls N` is the run's total, however often it is resumed.

use clap::Args;
use tuition_ledger::DeskError;
use tuition_trainer::acquire::{self, Pool, Stopped};
use tuition_trainer::form::Question;

use crate::args::Globals;
use crate::config::Config;
use crate::dataset::DataArgs;
use crate::interrupt::Interrupt;
use crate::purchase::{self, Asked, SEED};
use crate::words::{Exit, Trouble};
use crate::{open, print};

/// What is asked about, of whom, for which run.
#[derive(Debug, Args)]
pub(crate) struct LabelArgs {
    /// The teacher, by its name in the configuration.
    #[arg(long, value_name = "T")]
    pub(crate) teacher: String,
    #[command(flatten)]
    pub(crate) dataset: DataArgs,
    /// The run that pays.
    #[arg(long, value_name = "R")]
    pub(crate) run: String,
    /// The run's total of answers, also when resumed; it becomes the run's budget.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) calls: Option<u64>,
}

impl LabelArgs {
    /// The questions, in buying order.
    ///
    /// # Errors
    /// The data set cannot be read, or does not fit the teacher.
    pub(crate) fn questions(&self, asked: &Asked) -> Result<Vec<Question>, Trouble> {
        let collected = self.dataset.collect()?;
        if collected.skipped > 0 {
            print::aside(&format!("note: {} files hold too little to ask about", collected.skipped));
        }
        let mut questions = Pool::of(acquire::questions(&asked.form, collected)?, 0.0, SEED).learn;
        if let Some(calls) = self.calls {
            questions.truncate(usize::try_from(calls).unwrap_or(usize::MAX));
        }
        Ok(questions)
    }
}

pub(crate) async fn run(args: LabelArgs, globals: &Globals) -> Result<Exit, Trouble> {
    let config = globals.config()?;
    let asked = Asked::of(&config, &args.teacher).await?;
    let questions = args.questions(&asked)?;
    let interrupt =
        Interrupt::listen("stopping after the calls under way; the same command goes on from here")?;
    let opened = open::open(&config).await?;
    let result = buy(&args, globals, &config, &asked, &questions, &interrupt, &opened).await;
    open::close(opened).await?;
    result
}

async fn buy(
    args: &LabelArgs,
    globals: &Globals,
    config: &Config,
    asked: &Asked,
    questions: &[Question],
    interrupt: &Interrupt,
    opened: &tuition_ledger::OpenStore,
) -> Result<Exit, Trouble> {
    open::apply(config, &*opened.store).await?;
    if let Some(calls) = args.calls {
        purchase::allow(config, &*opened.store, &args.run, calls).await?;
    }
    let desk = open::desk(config, opened);
    let purchase = purchase::buy(&asked.buyer(&desk, &args.run), questions, interrupt, globals.json).await;
    desk.drain().await;
    let purchase = purchase?;
    let progress = &purchase.progress;
    if globals.json {
        print::json(&purchase::summary(&args.run, &args.teacher, &purchase));
    } else {
        let cost = progress.cost.map(|cost| format!(" for {cost} dollars")).unwrap_or_default();
        print::line(&format!(
            "{} of {} answers: {} bought{cost}, {} known",
            progress.bought + progress.known,
            progress.total,
            progress.bought,
            progress.known
        ));
    }
    match purchase.stopped {
        Some(Stopped::Budget(refusal)) if globals.json => {
            print::aside(&refusal.to_string());
            Ok(Exit::Budget)
        }
        Some(Stopped::Budget(refusal)) => Err(DeskError::Refused(refusal).into()),
        Some(Stopped::Interrupted) | None => Ok(Exit::Fine),
    }
}
