//! What a test makes go wrong at the steps of a paid call: named fail points, which are nothing in a release.
//!
//! Must not know what a step does. Invariant: without the feature `failpoints` of the crate `fail`, which the tests'
//! dependencies alone name, [`arm`] refuses and every other function here does nothing.

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io::{self, BufRead, BufReader, IoSlice, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::OnceLock;
use std::time::Duration;

use fail::fail_point;
use futures::future::{Either, select};

use crate::entry::Fact;

/// A step of a paid call, in the order in which a call takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Its hold is written, not yet synced.
    HoldAppended,
    /// Its hold is synced; nobody has been told.
    HoldSynced,
    /// The request is on its way; nothing has come back.
    BytesSent,
    /// The teacher's status and headers are in.
    HeadersIn,
    /// A chunk of the teacher's body is in.
    ChunkIn,
    /// The teacher's body is complete.
    BodyComplete,
    /// Its settlement is written, not yet synced.
    SettleAppended,
    /// Its settlement is synced; nobody has been told.
    SettleSynced,
    /// Its answer is in the index.
    IndexApplied,
    /// Bytes of a reply are with the kernel.
    ReplySent,
}

/// Where a test is asked what to do, and where it reads how much of the journal is synced.
struct Control {
    socket: PathBuf,
    synced: File,
}

static CONTROL: OnceLock<Control> = OnceLock::new();

/// How much of a reply's end the test is shown.
const TAIL_BYTES: usize = 48;

/// Why no fault was armed.
#[derive(Debug, thiserror::Error)]
pub enum ArmError {
    /// A release, or any other build without fail points.
    #[error("this build has no fail points")]
    NotBuiltIn,
    /// No list of `STEP=ACTION`.
    #[error("`{found}` is not `STEP=ACTION`, where STEP is one of {}", Stage::ALL.map(Stage::name).join(", "))]
    Point {
        /// The text.
        found: String,
    },
    /// An action that the crate `fail` does not know.
    #[error("the action of `{point}` is not understood: {why}")]
    Action {
        /// The step.
        point: String,
        /// Why not.
        why: String,
    },
    /// The control folder cannot be used.
    #[error("the folder `{}` of the test cannot be used", .folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
}

impl Stage {
    /// All steps.
    pub const ALL: [Self; 10] = [
        Self::HoldAppended,
        Self::HoldSynced,
        Self::BytesSent,
        Self::HeadersIn,
        Self::ChunkIn,
        Self::BodyComplete,
        Self::SettleAppended,
        Self::SettleSynced,
        Self::IndexApplied,
        Self::ReplySent,
    ];

    /// The fail point's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::HoldAppended => "hold-appended",
            Self::HoldSynced => "hold-synced",
            Self::BytesSent => "bytes-sent",
            Self::HeadersIn => "headers-in",
            Self::ChunkIn => "chunk-in",
            Self::BodyComplete => "body-complete",
            Self::SettleAppended => "settle-appended",
            Self::SettleSynced => "settle-synced",
            Self::IndexApplied => "index-applied",
            Self::ReplySent => "reply-sent",
        }
    }

    /// The steps at which an entry is written and synced, where it is one of a paid call.
    pub(crate) fn of(fact: &Fact) -> Option<[Self; 2]> {
        match fact {
            Fact::Reserved { .. } => Some([Self::HoldAppended, Self::HoldSynced]),
            Fact::Settled { .. } => Some([Self::SettleAppended, Self::SettleSynced]),
            _ => None,
        }
    }
}

/// Arms fail points: `STEP=ACTION;...`, with the actions of the crate `fail`. `return(WORD)` makes a fault of this module:
/// `kill` (SIGKILL), `tear` (half of what was just written is taken back, then SIGKILL), `error`, `delay MS`, `pass`, or
/// `ask`: the test that listens at `control.sock` in `folder` says which. The synced length of the journal is noted in
/// the file `synced` there, eight bytes, little-endian.
///
/// # Errors
/// A build without fail points, a step or an action that is not known, a folder that cannot be used.
pub fn arm(points: &str, folder: Option<&Path>) -> Result<(), ArmError> {
    if !fail::has_failpoints() {
        return Err(ArmError::NotBuiltIn);
    }
    if let Some(folder) = folder {
        let synced = OpenOptions::new().write(true).create(true).truncate(false).open(folder.join("synced"));
        let failed = |source| ArmError::Folder { folder: folder.to_owned(), source };
        let control = Control { socket: folder.join("control.sock"), synced: synced.map_err(failed)? };
        // Armed twice, the first folder stands.
        let _ = CONTROL.set(control);
    }
    for found in points.split(';').map(str::trim).filter(|point| !point.is_empty()) {
        let known = |name: &str| Stage::ALL.iter().any(|stage| stage.name() == name);
        let point = found.split_once('=').filter(|(name, _)| known(name));
        let (name, action) = point.ok_or_else(|| ArmError::Point { found: found.to_owned() })?;
        fail::cfg(name, action).map_err(|why| ArmError::Action { point: name.to_owned(), why })?;
    }
    Ok(())
}

/// Whether any fail point is armed in this process: nothing that it does is to be relied on then.
pub fn is_armed() -> bool {
    fail::has_failpoints() && !fail::list().is_empty()
}

/// Passes a step, on a thread that may wait.
///
/// # Errors
/// The fault that a test asked for.
pub fn point(stage: Stage) -> io::Result<()> {
    point_or_tear(stage, || Ok(()))
}

/// Passes a step at which bytes were just written; `tear` takes half of them back.
pub(crate) fn point_or_tear(stage: Stage, tear: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    armed(stage).map_or(Ok(()), |word| act(stage, &word, "", tear))
}

/// Passes a step, in a task.
///
/// # Errors
/// The fault that a test asked for.
pub async fn point_in_task(stage: Stage) -> io::Result<()> {
    let Some(word) = armed(stage) else { return Ok(()) };
    let acted = tokio::task::spawn_blocking(move || act(stage, &word, "", || Ok(())));
    acted.await.map_err(io::Error::other)?
}

/// Does `work`; while it waits it stands at a step, and a fault there ends it.
///
/// # Errors
/// The fault that a test asked for.
pub async fn point_while<T>(stage: Stage, work: impl Future<Output = T>) -> io::Result<T> {
    let Some(word) = armed(stage) else { return Ok(work.await) };
    let acted = tokio::task::spawn_blocking(move || act(stage, &word, "", || Ok(())));
    match select(pin!(work), acted).await {
        Either::Left((done, _)) => Ok(done),
        Either::Right((acted, work)) => {
            acted.map_err(io::Error::other)??;
            Ok(work.await)
        }
    }
}

/// Passes the step at which the first `written` bytes of `parts` were sent to a client.
///
/// # Errors
/// The fault that a test asked for.
pub fn sent(parts: &[IoSlice<'_>], written: usize) -> io::Result<()> {
    let stage = Stage::ReplySent;
    let Some(word) = armed(stage) else { return Ok(()) };
    let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).take(written).collect();
    let tail = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..]).into_owned();
    act(stage, &word, &tail, || Ok(()))
}

/// Notes how much of the journal is synced, before anybody is told.
pub(crate) fn note_synced(length: impl FnOnce() -> io::Result<u64>) -> io::Result<()> {
    let Some(control) = CONTROL.get() else { return Ok(()) };
    control.synced.write_all_at(&length()?.to_le_bytes(), 0)
}

/// What is to happen at `stage`, if anything.
fn armed(stage: Stage) -> Option<String> {
    let _name = stage.name();
    fail_point!(_name, |word| Some(word.unwrap_or_default()));
    None
}

fn act(stage: Stage, word: &str, tail: &str, tear: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let asked = if word == "ask" { ask(stage, tail)? } else { word.to_owned() };
    let (word, number) = asked.split_once(' ').unwrap_or((&asked, "0"));
    if word == "pass" {
        return Ok(());
    }
    tracing::error!(step = stage.name(), fault = asked, "a fault is made to happen");
    match word {
        "kill" => die(),
        "tear" => tear().and_then(|()| die()),
        "delay" => {
            std::thread::sleep(Duration::from_millis(number.parse().map_err(io::Error::other)?));
            Ok(())
        }
        _ => Err(io::Error::other(format!("a fault at `{}`", stage.name()))),
    }
}

/// Asks the test what is to happen.
fn ask(stage: Stage, tail: &str) -> io::Result<String> {
    let control = CONTROL.get().ok_or_else(|| io::Error::other("no test is there to be asked"))?;
    let mut stream = UnixStream::connect(&control.socket)?;
    stream.write_all(format!("{} {}\n", stage.name(), tail.escape_debug()).as_bytes())?;
    let mut word = String::new();
    BufReader::new(stream).read_line(&mut word)?;
    Ok(word.trim().to_owned())
}

/// kill -9: no destructor, no flush, no farewell.
fn die() -> io::Result<()> {
    let killed = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    killed.expect("a process may end itself");
    loop {
        std::thread::park();
    }
}
