//! The other end of the fail points: a process that takes a step of a paid call asks here what is to happen.
//! Knows names of steps and words of faults; must not know what they do.
//! Invariant: a plan strikes once; every other step of every call passes.

use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{oneshot, watch};

/// What is to happen, and when.
pub(super) struct Plan {
    pub(super) stage: &'static str,
    /// How often the step passes before.
    pub(super) passes: usize,
    pub(super) word: &'static str,
    /// What the bytes of a reply end with, or have close to their end, where the step is that a reply was sent.
    pub(super) reply_end: &'static str,
    /// What has to have happened before a step goes on.
    pub(super) waits: Vec<(&'static str, BoxFuture<'static, ()>)>,
}

struct Laid {
    plan: Plan,
    struck: oneshot::Sender<()>,
    /// Whether a settlement was synced since the plan was laid: the index and the replies that come then are its.
    settled: bool,
}

#[derive(Default)]
struct State {
    laid: Mutex<Option<Laid>>,
    passed: watch::Sender<BTreeMap<String, usize>>,
}

pub(super) struct Control {
    folder: TempDir,
    state: Arc<State>,
}

impl Control {
    /// Listens in a folder of its own.
    pub(super) fn start() -> Control {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("control.sock")).unwrap();
        let state = Arc::<State>::default();
        let answering = Arc::clone(&state);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(answer(Arc::clone(&answering), stream));
            }
        });
        Control { folder, state }
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Lays a plan; the receiver hears when it strikes.
    pub(super) fn lay(&self, plan: Plan) -> oneshot::Receiver<()> {
        let (struck, hears) = oneshot::channel();
        *self.state.laid.lock().unwrap() = Some(Laid { plan, struck, settled: false });
        hears
    }

    /// How often a step was passed.
    pub(super) fn passed(&self, stage: &str) -> usize {
        self.state.passed.borrow().get(stage).copied().unwrap_or(0)
    }

    /// Waits until a step was passed more often than `count`.
    pub(super) async fn passes(&self, stage: &str, count: usize) {
        let mut passed = self.state.passed.subscribe();
        let more = |passed: &BTreeMap<String, usize>| passed.get(stage).is_some_and(|found| *found > count);
        passed.wait_for(more).await.unwrap();
    }

    /// How much of the journal was synced when the process last said so.
    pub(super) fn synced(&self) -> u64 {
        let bytes = std::fs::read(self.folder().join("synced")).unwrap();
        u64::from_le_bytes(bytes.try_into().unwrap())
    }
}

async fn answer(state: Arc<State>, stream: UnixStream) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    // A process that was just killed by another of its threads asks in vain.
    if stream.read_line(&mut line).await.is_err() {
        return;
    }
    let (stage, tail) = line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""));
    let (wait, struck) = state.decide(stage, tail);
    if let Some(wait) = wait {
        wait.await;
    }
    let word = match struck {
        Some((word, struck)) => {
            // The test waits for this as long as it runs.
            let _ = struck.send(());
            word
        }
        None => {
            state.passed.send_modify(|passed| *passed.entry(stage.to_owned()).or_default() += 1);
            "pass"
        }
    };
    let _ = stream.get_mut().write_all(format!("{word}\n").as_bytes()).await;
}

type Decided = (Option<BoxFuture<'static, ()>>, Option<(&'static str, oneshot::Sender<()>)>);

impl State {
    /// What has to be waited for, and what strikes, if anything does.
    fn decide(&self, stage: &str, tail: &str) -> Decided {
        let mut laid = self.laid.lock().unwrap();
        let Some(plan) = laid.as_mut() else { return (None, None) };
        let meant = stage == plan.plan.stage && plan.means(stage, tail);
        plan.settled |= stage == "settle-synced";
        let strikes = meant && plan.plan.passes == 0;
        if meant && !strikes {
            plan.plan.passes -= 1;
            return (None, None);
        }
        let waits = &mut plan.plan.waits;
        let wait = waits.iter().position(|(before, _)| *before == stage).map(|at| waits.remove(at).1);
        let struck = if strikes { laid.take().map(|laid| (laid.plan.word, laid.struck)) } else { None };
        (wait, struck)
    }
}

impl Laid {
    fn means(&self, stage: &str, tail: &str) -> bool {
        match stage {
            "index-applied" => self.settled,
            "reply-sent" => self.settled && tail.contains(self.plan.reply_end),
            _ => true,
        }
    }
}
