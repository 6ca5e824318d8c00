//! `tuition doctor`: looks at the configuration, the store, the teachers and the machine, and says what is wrong.
//!
//! Must not change or ask anything, unless `--repair` says so. Invariant: one thing that is wrong does not hide the next.

use clap::Args;
use serde_json::{Value, json};
use tuition_ledger::{JournalError, OpenError, StoreUrl, View, examine, read_entries};
use tuition_trainer::BUILT_WITH_CUDA;

use crate::args::Globals;
use crate::config::{Config, Teacher, TeacherKind};
use crate::open::PROGRAM;
use crate::setup::{Cache, driver_answers};
use crate::words::{Exit, Trouble, Words};
use crate::{print, record, repair, secret, teachers};

/// What is looked at.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Keeps what stands before the damage in the store's journal, and sets the rest aside; deletes nothing.
    #[arg(long)]
    repair: bool,
}

/// One thing that was looked at.
#[derive(Debug)]
struct Finding {
    what: String,
    fine: bool,
    detail: String,
}

impl Finding {
    fn of(what: impl Into<String>, found: Result<String, Trouble>) -> Self {
        let (fine, detail) = match found {
            Ok(detail) => (true, detail),
            Err(trouble) => {
                let words = Words::of(&trouble);
                (false, words.hint.map_or(words.what.clone(), |hint| format!("{} ({hint})", words.what)))
            }
        };
        Self { what: what.into(), fine, detail }
    }
}

pub(crate) fn run(args: &DoctorArgs, globals: &Globals) -> Result<Exit, Trouble> {
    if args.repair {
        return repair::run(globals);
    }
    let mut findings =
        vec![Finding::of("program", Ok(PROGRAM.to_owned())), Finding::of("devices", Ok(devices()))];
    let runtime = teachers::runtime();
    let found = runtime
        .as_ref()
        .map(|runtime| format!("{} at {}", runtime.build_info(), runtime.library().display()));
    findings.push(match found {
        Ok(found) => Finding::of("onnx runtime", Ok(found)),
        Err(_) => Finding::of("onnx runtime", runtime.map(|_| String::new())),
    });
    findings.push(Finding::of(
        "cache",
        Cache::from_environment().map(|cache| cache.folder().display().to_string()).map_err(Into::into),
    ));
    match globals.config() {
        Err(trouble) => findings.push(Finding::of("configuration", Err(trouble))),
        Ok(config) => {
            findings.push(Finding::of("configuration", Ok(configuration(&config))));
            findings.push(Finding::of("store", store(&config)));
            findings.extend(
                config
                    .teachers
                    .iter()
                    .map(|found| Finding::of(format!("teacher `{}`", found.name), teacher(found))),
            );
        }
    }
    let wrong = findings.iter().filter(|finding| !finding.fine).count();
    if globals.json {
        let finding =
            |finding: &Finding| json!({"what": finding.what, "fine": finding.fine, "detail": finding.detail});
        print::json(
            &json!({"findings": findings.iter().map(finding).collect::<Vec<Value>>(), "wrong": wrong}),
        );
    } else {
        let row = |finding: &Finding| {
            vec![
                finding.what.clone(),
                if finding.fine { "fine" } else { "WRONG" }.to_owned(),
                finding.detail.clone(),
            ]
        };
        print::line(&print::table(&["what", "is", ""], &findings.iter().map(row).collect::<Vec<_>>()));
    }
    Ok(if wrong == 0 { Exit::Fine } else { Exit::Found })
}

/// What students are trained on; what a teacher runs on stands in its own row.
fn devices() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cuda = match (BUILT_WITH_CUDA, driver_answers()) {
        (true, true) => "CUDA, and a driver answers",
        (true, false) => "CUDA is part of this build, but no driver answers",
        (false, true) => "a driver for CUDA answers, but CUDA is not part of this build",
        (false, false) => "CUDA is not part of this build",
    };
    format!("cpu, {cores} cores ({cuda})")
}

fn configuration(config: &Config) -> String {
    let file =
        config.file.as_ref().map_or("none, the defaults".to_owned(), |file| file.display().to_string());
    format!(
        "{file}: {} teachers, {} budgets, {} prices, {} keys",
        config.teachers.len(),
        config.budgets.len(),
        config.prices.iter().count(),
        config.keys.len()
    )
}

fn store(config: &Config) -> Result<String, Trouble> {
    let store = &config.store;
    let found = match read_entries(store) {
        Err(OpenError::Absent(_)) => return Ok(format!("{store}: not made yet")),
        found => found,
    };
    if let StoreUrl::Sled(folder) = store
        && let Some(damage) = examine(folder)?
    {
        let (number, offset, why) = (damage.entry, damage.offset, damage.why);
        return Err(OpenError::Journal(match damage.file_header && number == 0 {
            true => JournalError::HeaderDamaged,
            false => JournalError::Corrupt { number, offset, why },
        })
        .into());
    }
    let owned = if found?.is_owned() { "a process owns it" } else { "nobody owns it" };
    let stated = record::verified(store)?.to_json(&View::default());
    let discrepancies = stated["discrepancies"].as_array().map_or(0, Vec::len);
    if discrepancies > 0 {
        return Err(Trouble::usage(
            format!("{store}: {discrepancies} discrepancies"),
            "`tuition audit --verify` lists them",
        ));
    }
    Ok(format!("{store}: {} entries, the chain holds, {owned}", stated["entries"]))
}

fn teacher(teacher: &Teacher) -> Result<String, Trouble> {
    match &teacher.kind {
        TeacherKind::Http { url, .. } => {
            teacher.secrets(|name| std::env::var(name).ok(), secret::from_file)?;
            Ok(format!("{url}, every secret it needs is there (it was not asked)"))
        }
        TeacherKind::Onnx { path, .. } => {
            let local = teachers::local(teacher)?;
            Ok(format!("{} runs on {}", path.display(), local.model().device()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_comes_with_its_hint() {
        let finding = Finding::of("store", Err(Trouble::usage("it is gone", "put it back")));
        assert_eq!((finding.fine, finding.detail.as_str()), (false, "it is gone (put it back)"));
    }

    #[test]
    fn a_missing_variable_is_named_and_none_is_shown() {
        let text = "[[teacher]]\nname = \"gpt\"\napi = \"openai\"\nurl = \"https://x\"\nkey_env = \"SURELY_NOT_SET_HERE\"\n";
        let config = Config::read(std::path::Path::new("tuition.toml"), text).unwrap();
        let finding = Finding::of("teacher", teacher(&config.teachers[0]));
        assert!(!finding.fine && finding.detail.contains("`SURELY_NOT_SET_HERE`"), "{finding:?}");
    }
}
