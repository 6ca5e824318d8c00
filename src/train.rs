//! `tuition train RUN.toml`: buys what is missing, trains, writes the run's folder.
//!
//! Must not know how a student learns. Invariants: what is held out is bought for a run of its own and chooses nothing;
//! offline nothing is asked and the store is not even opened, so a miss is an error.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tuition_ledger::{By, StoreUrl, View};
use tuition_trainer::{Control, Outcome, Report, RunConfig, Split, train_run};

use crate::args::Globals;
use crate::interrupt::Interrupt;
use crate::lesson::{self, Lesson};
use crate::open::clock;
use crate::progress::Progress;
use crate::rounds::Acquired;
use crate::words::{Exit, Trouble};
use crate::{print, record};

/// Where run folders lie.
pub(crate) const RUNS: &str = "runs";

/// A run.
#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    /// The run file.
    #[arg(value_name = "RUN.toml")]
    file: PathBuf,
    /// Overrides a value of the run file, such as train.lr=0.01 or method.losses.0.weight=2.
    #[arg(long = "set", value_name = "A.B=C")]
    set: Vec<String>,
    /// The seeds: 0..4 is 0, 1, 2 and 3; 0,3,7 are three.
    #[arg(long)]
    seeds: Option<String>,
    /// Buys nothing: an answer that is not recorded is an error.
    #[arg(long)]
    offline: bool,
    /// `auto` goes on from the checkpoints of the same run, where there are some.
    #[arg(long, value_enum)]
    resume: Option<Resume>,
    /// Stops, as at Ctrl-C, when standard input ends: whoever started this process holds it open.
    #[arg(long, hide = true)]
    leashed: bool,
    /// Shows the resolved run file and what is missing; buys, trains and writes nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Resume {
    /// Goes on where there is something to go on from.
    Auto,
}

impl TrainArgs {
    /// The run file with its overrides.
    fn run_config(&self) -> Result<RunConfig, Trouble> {
        let text = fs::read_to_string(&self.file)
            .map_err(|source| Trouble::io("cannot read the run file", &self.file, source))?;
        let seeds = self.seeds.iter().map(|seeds| format!("train.seeds={:?}", seeds));
        let overrides: Vec<String> = self.set.iter().cloned().chain(seeds).collect();
        RunConfig::parse(&text, &overrides)
            .map_err(|source| Trouble::RunFile { file: self.file.clone(), source })
    }
}

pub(crate) async fn run(args: TrainArgs, globals: &Globals) -> Result<Exit, Trouble> {
    let config = globals.config()?;
    let run = args.run_config()?;
    let lesson = Lesson::of(&config, &run, args.offline).await?;
    if args.dry_run {
        return dry(globals, &run, &lesson);
    }
    let words = "stopping after this step; `--resume auto` goes on from here";
    let interrupt = if args.leashed { Interrupt::listen_on_leash(words) } else { Interrupt::listen(words) }?;
    let Some(learnt) = lesson::learn(&config, &run, lesson, &interrupt, globals.json).await? else {
        return Ok(stopped(globals, &run, "while buying"));
    };
    let folder = Path::new(RUNS).join(&run.name);
    let resume = args.resume == Some(Resume::Auto);
    let (spend, acquired) = (learnt.spend, learnt.acquired);
    let split = Arc::new(learnt.split);
    match train(&run, &split, spend, &folder, resume, &interrupt, globals.json).await? {
        Outcome::Interrupted { seed, step } => {
            Ok(stopped(globals, &run, &format!("at seed {seed}, step {step}")))
        }
        Outcome::Finished(report) => {
            state(&config.store, &folder)?;
            account(&acquired, &folder)?;
            show(globals, &folder, &report)?;
            Ok(Exit::Fine)
        }
    }
}

/// Trains with a bar, on a thread of its own.
pub(crate) async fn train(
    run: &RunConfig,
    split: &Arc<Split>,
    spend: tuition_trainer::Spend,
    folder: &Path,
    resume: bool,
    interrupt: &Interrupt,
    json: bool,
) -> Result<Outcome, Trouble> {
    let bar = Progress::new(run.train.steps as u64, "steps", json);
    let (run, split, folder, flag, shown) =
        (run.clone(), Arc::clone(split), folder.to_owned(), interrupt.flag(), bar.clone());
    let training = tokio::task::spawn_blocking(move || {
        let progress = |progress: &tuition_trainer::Progress| {
            shown.stage(&format!("{}, seed {}", progress.method, progress.seed));
            shown.stand(progress.step as u64, progress.steps as u64, format!("loss {:.4}", progress.loss));
        };
        train_run(&run, &split, spend, &folder, &Control { interrupt: flag, progress: &progress, resume })
    });
    let outcome = training.await.map_err(|error| Trouble::failed(format!("the training broke off: {error}")));
    bar.finish();
    Ok(outcome??)
}

fn dry(globals: &Globals, run: &RunConfig, lesson: &Lesson) -> Result<Exit, Trouble> {
    let resolved = run.to_toml().map_err(|error| Trouble::failed(error.to_string()))?;
    let counts = lesson.counts(run);
    if globals.json {
        print::json(&json!({"run": run, "questions": counts}));
        return Ok(Exit::Fine);
    }
    print::line(resolved.trim_end());
    print::line("");
    for (part, count) in [("to learn from", "learn"), ("held out", "test")] {
        print::line(&format!(
            "{part}: {} questions, {} of them known",
            counts[count]["questions"], counts[count]["known"]
        ));
    }
    if let Some(made) = counts["made"].as_u64() {
        print::line(&format!("made by exploring: {made} questions"));
    }
    if let Some(later) = counts["later"].as_u64() {
        print::line(&format!("chosen in later rounds: {later} questions"));
    }
    Ok(Exit::Fine)
}

fn stopped(globals: &Globals, run: &RunConfig, at: &str) -> Exit {
    if globals.json {
        print::json(&json!({"run": run.name, "stopped": "interrupted", "at": at}));
    } else {
        print::line(&format!("run `{}` was stopped {at}; nothing that was paid for is lost", run.name));
    }
    Exit::Fine
}

/// Writes what everything has cost beside the report.
fn state(store: &StoreUrl, folder: &Path) -> Result<(), Trouble> {
    let view = View { by: vec![By::Run, By::Teacher], now: Some(clock()()), ..View::default() };
    let statement = record::statement(store)?.to_json(&view);
    let path = folder.join("statement.json");
    fs::write(&path, format!("{statement:#}\n")).map_err(|source| Trouble::io("cannot write", &path, source))
}

/// Writes why each answer was bought beside the report; nothing where nothing was bought.
fn account(acquired: &[Acquired], folder: &Path) -> Result<(), Trouble> {
    if acquired.is_empty() {
        return Ok(());
    }
    let path = folder.join("acquired.csv");
    let number = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
    let line = |Acquired { key, round, by, score, chance }: &Acquired| {
        format!("{key},{round},{by},{},{}\n", number(*score), number(*chance))
    };
    let lines: String = acquired.iter().map(line).collect();
    fs::write(&path, format!("key,round,by,score,chance\n{lines}"))
        .map_err(|source| Trouble::io("cannot write", &path, source))
}

fn show(globals: &Globals, folder: &Path, report: &Report) -> Result<(), Trouble> {
    let value = serde_json::to_value(report).map_err(|error| Trouble::failed(error.to_string()))?;
    if globals.json {
        print::json(&json!({"folder": folder, "report": value}));
        return Ok(());
    }
    print::line(&page(&value));
    print::line(&format!("\nthe student and its report: {}", folder.display()));
    Ok(())
}

/// The report's measures for people: mean and half the 95 % interval over the seeds.
fn page(report: &Value) -> String {
    let measure = |measures: &Value, name: &str| {
        let measure = &measures[name];
        match (measure["mean"].as_f64(), measure["ci95"].as_f64()) {
            (Some(mean), Some(interval)) => format!("{mean:.4} ± {interval:.4}"),
            (Some(mean), None) => format!("{mean:.4}"),
            (None, _) => "-".to_owned(),
        }
    };
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let rows = [
        (text(&report["method"]), &report["test"]),
        (text(&report["student_alone"]["name"]), &report["student_alone"]),
        (format!("teacher {}", text(&report["teacher"]["name"])), &report["teacher"]),
    ];
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .map(|(name, measures)| {
            let measured = ["accuracy", "agreement", "ece", "loss"].map(|name| measure(measures, name));
            std::iter::once(name).chain(measured).collect()
        })
        .collect();
    let usd = report["spend"]["usd"].as_str().map(|usd| format!(", {usd} dollars")).unwrap_or_default();
    format!(
        "{}\n\nlearnt from {} answers; {} calls were paid for{usd}",
        print::table(&["", "accuracy", "agreement", "ece", "loss"], &rows),
        report["calls"],
        report["spend"]["calls"]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_a_table() {
        let measures = |mean: f64| {
            json!({
                "accuracy": {"mean": mean, "ci95": 0.01, "values": [mean]},
                "agreement": {"mean": mean, "ci95": null, "values": [mean]},
                "ece": {"mean": null, "ci95": null, "values": []},
                "loss": {"mean": 0.25, "ci95": 0.0, "values": [0.25]},
            })
        };
        let mut alone = measures(0.5);
        alone["name"] = json!("labels only");
        let mut teacher = measures(1.0);
        teacher["name"] = json!("digits");
        let report = json!({
            "method": "ckd-mse", "calls": 200, "test": measures(0.75), "teacher": teacher, "student_alone": alone,
            "spend": {"calls": 700, "usd": "0.700000000"},
        });
        insta::assert_snapshot!(page(&report), @r"
                        accuracy         agreement  ece  loss
        ckd-mse         0.7500 ± 0.0100     0.7500    -  0.2500 ± 0.0000
        labels only     0.5000 ± 0.0100     0.5000    -  0.2500 ± 0.0000
        teacher digits  1.0000 ± 0.0100     1.0000    -  0.2500 ± 0.0000

        learnt from 200 answers; 700 calls were paid for, 0.700000000 dollars
        ");
    }

    #[test]
    fn overrides_and_seeds_reach_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("run.toml");
        let text = "name = \"r\"\n[teacher]\nname = \"t\"\n[data]\nsource = \"record\"\nrun = \"x\"\n[budget]\ncalls = 9\n\
                    [student]\nkind = \"mlp\"\nhidden = [4]\n[method]\nlosses = [{ kind = \"labels\" }]\n";
        fs::write(&file, text).unwrap();
        let args = |set: &str, seeds: Option<&str>| TrainArgs {
            file: file.clone(),
            set: vec![set.to_owned()],
            seeds: seeds.map(str::to_owned),
            offline: false,
            resume: None,
            leashed: false,
            dry_run: false,
        };
        let run = args("budget.calls=7", Some("0..3")).run_config().unwrap();
        assert_eq!((run.budget.calls, run.train.seeds), (Some(7), vec![0, 1, 2]));
        let say = |args: TrainArgs| {
            let words = crate::words::Words::of(&args.run_config().unwrap_err()).text();
            words.replace(&file.display().to_string(), "run.toml")
        };
        insta::assert_snapshot!(say(args("train.stps=1", None)), @r"error: the run file `run.toml`: unknown key `stps`, did you mean `steps`?; known here: steps, batch, optimizer, lr, schedule, warmup, weight_decay, momentum, nesterov, clip, augment, ema, alone, device, precision, evaluate_every, patience, until, checkpoint_every, seeds");
        insta::assert_snapshot!(say(args("train.steps=1", Some("4..1"))), @r"
        error: the run file `run.toml`: the run file does not fit: `4..1` is no list of seeds: `0..4` is 0, 1, 2 and 3; `0,3,7` are three
        in `train.seeds`
        ");
    }
}
