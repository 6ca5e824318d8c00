//! The cells of a sweep as processes: each is this very program that trains one run file, some of them at a time.
//!
//! Must not know what a cell scores. Invariants: a cell that ends badly ends alone; a cell is told to stop by the end of its
//! standard input, so that it hears of it once, and also where this process is killed; no two processes train one cell at a
//! time.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::interrupt::Interrupt;
use crate::words::{Exit, Trouble};

/// How often, and in which steps, it is waited for a process that a killed sweep left behind.
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(100);

/// Lines of a cell's standard error that are shown where it left no words.
const LINES_SHOWN: usize = 3;

/// A run file to be trained.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// The cell's name.
    pub(crate) name: String,
    /// The run file.
    pub(crate) file: PathBuf,
    /// What it says on standard error goes here.
    pub(crate) log: PathBuf,
}

/// How a cell ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// It is trained.
    Finished,
    /// It saved its state: it was told to stop.
    Interrupted,
    /// It could not be trained.
    Failed {
        /// Why.
        what: String,
        /// What to do about it.
        hint: Option<String>,
        /// What the cell's process said.
        exit: Exit,
    },
}

/// How far the cells are.
pub(crate) struct Progress<'a> {
    /// Those under way.
    pub(crate) running: Vec<&'a str>,
    /// Those that ended; the last of them is new since the telling before.
    pub(crate) ended: &'a [(String, End)],
}

/// Trains every job, `at_once` of them at a time; `arguments` stand before and behind `train FILE`. None of those that had
/// not begun when it was interrupted is among the ends.
///
/// # Errors
/// A process cannot be started or waited for; those under way are told to stop.
pub(crate) async fn train(
    jobs: &[Job],
    at_once: usize,
    arguments: (&[OsString], &[OsString]),
    interrupt: &Interrupt,
    tell: &mut dyn FnMut(&Progress<'_>),
) -> Result<Vec<(String, End)>, Trouble> {
    let program = std::env::current_exe()
        .map_err(|source| Trouble::io("the program's own file cannot be found", "", source))?;
    let mut waiting: VecDeque<usize> = (0..jobs.len()).collect();
    let mut under_way: JoinSet<(usize, Result<End, Trouble>)> = JoinSet::new();
    let (mut running, mut ends): (Vec<usize>, Vec<(String, End)>) = (vec![], vec![]);
    loop {
        while under_way.len() < at_once.max(1)
            && !interrupt.is_asked()
            && let Some(next) = waiting.pop_front()
        {
            let (job, interrupt) = (jobs[next].clone(), interrupt.clone());
            let mut command = Command::new(&program);
            command.args(arguments.0).arg("train").arg(&job.file).args(arguments.1);
            under_way.spawn(async move { (next, one(command, &job, &interrupt).await) });
            running.push(next);
        }
        let names = running.iter().map(|at| jobs[*at].name.as_str()).collect();
        tell(&Progress { running: names, ended: &ends });
        let Some(joined) = under_way.join_next().await else { return Ok(ends) };
        let (at, end) =
            joined.map_err(|error| Trouble::failed(format!("a cell's process was lost: {error}")))?;
        running.retain(|one| *one != at);
        ends.push((jobs[at].name.clone(), end?));
    }
}

/// Opens a job's log and locks it. Its process inherits the lock and holds it for as long as it lives, whatever becomes of
/// this one; none where another process trains the cell and goes on with it.
async fn claim(job: &Job) -> Result<Option<File>, Trouble> {
    let wrong = |source| Trouble::io("cannot write", &job.log, source);
    let log = File::options().create(true).append(true).open(&job.log).map_err(wrong)?;
    for _ in 0..ATTEMPTS {
        match log.try_lock() {
            Ok(()) => {
                log.set_len(0).map_err(wrong)?;
                return Ok(Some(log));
            }
            Err(TryLockError::WouldBlock) => tokio::time::sleep(PAUSE).await,
            Err(TryLockError::Error(source)) => return Err(wrong(source)),
        }
    }
    Ok(None)
}

/// Trains one job to its end.
async fn one(mut command: Command, job: &Job, interrupt: &Interrupt) -> Result<End, Trouble> {
    let Some(log) = claim(job).await? else {
        return Ok(End::Failed {
            what: "another process trains it".to_owned(),
            hint: Some("is the same sweep running twice?".to_owned()),
            exit: Exit::Failed,
        });
    };
    // One thread a cell: as many cells as cores waste least. In a group of its own Ctrl-C does not reach it: it is told once.
    command.env("RAYON_NUM_THREADS", "1").process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
    let doing = |source| Trouble::io("cannot run the cell", &job.file, source);
    let mut child = command.spawn().map_err(doing)?;
    // It holds the log, and with it the lock.
    drop(command);
    // Taken out: waiting would close it.
    let mut leash = child.stdin.take();
    let ended = child.wait_with_output();
    tokio::pin!(ended);
    let output = loop {
        tokio::select! {
            output = &mut ended => break output.map_err(doing)?,
            () = interrupt.asked(), if leash.is_some() => drop(leash.take()),
        }
    };
    Ok(end(&output, &std::fs::read_to_string(&job.log).unwrap_or_default()))
}

/// What a cell's process said at its end, `log` on standard error.
fn end(output: &Output, log: &str) -> End {
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let exit = match output.status.code() {
        Some(0) if said["stopped"] == "interrupted" => return End::Interrupted,
        Some(0) => return End::Finished,
        Some(code) if code == i32::from(Exit::Found.code()) => Exit::Found,
        Some(code) if code == i32::from(Exit::Budget.code()) => Exit::Budget,
        _ => Exit::Failed,
    };
    let error = &said["error"];
    let last = || {
        let lines: Vec<&str> = log.lines().rev().take(LINES_SHOWN).collect();
        let how = match (output.status.signal(), output.status.code()) {
            (Some(signal), _) => format!("signal {signal} ended it"),
            (None, code) => format!("it ended with {}", code.unwrap_or_default()),
        };
        let lines = lines.into_iter().rev().collect::<Vec<_>>().join(" / ");
        if lines.is_empty() { how } else { format!("{how}: {lines}") }
    };
    End::Failed {
        what: error["message"].as_str().map_or_else(last, str::to_owned),
        hint: error["hint"].as_str().map(str::to_owned),
        exit,
    }
}

/// The job of this name whose files lie in `folder`.
pub(crate) fn job(folder: &Path, name: &str) -> Job {
    Job {
        name: name.to_owned(),
        file: folder.join(format!("{name}.toml")),
        log: folder.join(format!("{name}.log")),
    }
}

#[cfg(test)]
mod tests {
    use std::process::ExitStatus;

    use super::*;

    #[test]
    fn what_a_process_said_is_how_the_cell_ended() {
        let check = |raw: i32, stdout: &str, log: &str, expected: End| {
            let status = ExitStatus::from_raw(raw);
            let output = Output { status, stdout: stdout.as_bytes().to_vec(), stderr: vec![] };
            assert_eq!(end(&output, log), expected, "{raw} {stdout}");
        };
        let failed = |what: &str, hint: Option<&str>, exit| End::Failed {
            what: what.to_owned(),
            hint: hint.map(str::to_owned),
            exit,
        };
        check(0, r#"{"folder":"runs/a","report":{}}"#, "", End::Finished);
        check(0, r#"{"run":"a","stopped":"interrupted","at":"seed 0"}"#, "", End::Interrupted);
        let error = r#"{"error":{"message":"no","hint":"more"},"exit":3}"#;
        check(3 << 8, error, "x", failed("no", Some("more"), Exit::Budget));
        let error = r#"{"error":{"message":"none","hint":null},"exit":1}"#;
        check(1 << 8, error, "x", failed("none", None, Exit::Found));
        check(101 << 8, "", "0\n1\n2\n3\n", failed("it ended with 101: 1 / 2 / 3", None, Exit::Failed));
        check(9, "", "", failed("signal 9 ended it", None, Exit::Failed));
    }
}
