//! A cell of the matrix: a step, a fault and a kind of call, and what the record must say of the call afterwards.
//! Knows the steps in their order; must not know how a fault is made to happen.
//! Invariant: what is expected follows from what was synced, and from whether the teacher was asked.

use crate::support::STAGES;
use serde_json::json;

/// What goes wrong at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The process kills itself; what it wrote is in the kernel's cache, and stays.
    Kill,
    /// The same, and the journal loses every byte that was not synced.
    Dropped,
    /// Half of what was just written is there, and the process kills itself.
    Torn,
    /// The step fails: the disk, the connection, or the index.
    Error,
    /// The step takes long.
    Delay,
}

/// A kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Single,
    Streamed,
    /// Several items, of which one is known and one stands twice.
    Batch,
    /// Refused once without a bill; the step is that of the second attempt.
    Retry,
    /// Four clients with one question.
    Followers,
}

/// What the record says of a call after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing: no hold, and the teacher was not asked.
    Nothing,
    /// A hold, counted in full.
    Unknown,
    /// The answer, and its fee.
    Known,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Cell {
    pub(super) kind: Kind,
    pub(super) stage: &'static str,
    pub(super) fault: Fault,
}

/// A request of a cell: path and body.
pub(super) type Request = (&'static str, String);

impl Fault {
    pub(super) const ALL: [Fault; 5] = [Fault::Kill, Fault::Dropped, Fault::Torn, Fault::Error, Fault::Delay];

    /// Whether the process kills itself.
    pub(super) fn kills(self) -> bool {
        matches!(self, Fault::Kill | Fault::Dropped | Fault::Torn)
    }
}

/// A chat request.
pub(super) fn chat(content: &str, stream: bool) -> Request {
    let mut body = json!({"model": "scripted", "messages": [{"role": "user", "content": content}]});
    if stream {
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
    }
    ("/v1/chat/completions", body.to_string())
}

/// Texts to embed.
pub(super) fn embed(texts: &[&str]) -> Request {
    ("/v1/embeddings", json!({"model": "scripted", "input": texts}).to_string())
}

/// The text of a batch that is known before the first cell.
pub(super) const KNOWN_TEXT: &str = "a text that everybody knows";

impl Kind {
    pub(super) const ALL: [Kind; 5] =
        [Kind::Single, Kind::Streamed, Kind::Batch, Kind::Retry, Kind::Followers];

    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Single => "single",
            Kind::Streamed => "streamed",
            Kind::Batch => "batch",
            Kind::Retry => "retry",
            Kind::Followers => "followers",
        }
    }

    /// Inferences that the call takes.
    pub(super) fn calls(self) -> u64 {
        if self == Kind::Batch { 3 } else { 1 }
    }

    /// What is asked; `name` is in no other question, and `mischief` is what the teacher is asked to do.
    pub(super) fn requests(self, name: &str, mischief: &str) -> Vec<Request> {
        let question = format!("trigger {name} with some words to say {mischief}");
        match self {
            Kind::Single => vec![chat(&question, false)],
            Kind::Streamed => vec![chat(&question, true)],
            Kind::Retry => vec![chat(&format!("{question} [503 once]"), false)],
            Kind::Followers => [true, true, false, true].map(|stream| chat(&question, stream)).to_vec(),
            Kind::Batch => {
                let [second, third] = ["second", "third"].map(|text| format!("trigger {name} {text}"));
                vec![embed(&[&question, &second, &question, KNOWN_TEXT, &third])]
            }
        }
    }
}

impl Cell {
    /// Every cell of a kind; a delay comes last at its step, since the teacher's gate stays open after it.
    pub(super) fn of(kind: Kind) -> Vec<Cell> {
        let at = |stage| Fault::ALL.map(|fault| Cell { kind, stage, fault });
        STAGES.into_iter().flat_map(at).collect()
    }

    /// Why the cell has no meaning, where it has none.
    pub(super) fn meaningless(&self) -> Option<&'static str> {
        match (self.fault, self.stage) {
            (Fault::Torn, "hold-appended" | "settle-appended" | "index-applied") => None,
            (Fault::Torn, "hold-synced" | "settle-synced") => {
                Some("a partial write of a group that is already whole and synced")
            }
            (Fault::Torn, "reply-sent") => {
                Some("a partial write of a reply that the kernel has already taken whole")
            }
            (Fault::Torn, _) => Some("a partial write at a step at which the store writes nothing"),
            _ => None,
        }
    }

    fn step(&self) -> usize {
        STAGES.iter().position(|stage| *stage == self.stage).expect("a cell's step is one of them")
    }

    /// What the process is told to do.
    pub(super) fn word(&self) -> &'static str {
        match (self.fault, self.stage) {
            // The index is its library's file: the test tears it once the process is dead.
            (Fault::Torn, "index-applied") | (Fault::Kill | Fault::Dropped, _) => "kill",
            (Fault::Torn, _) => "tear",
            (Fault::Error, _) => "error",
            (Fault::Delay, _) => "delay 100",
        }
    }

    /// How often the call takes the step before it is the one that is meant: the second chunk, the second attempt.
    pub(super) fn passes(&self) -> usize {
        let chunk = usize::from(self.stage == "chunk-in");
        let first_attempt = self.kind == Kind::Retry
            && ["hold-appended", "hold-synced", "bytes-sent", "headers-in", "chunk-in"].contains(&self.stage);
        chunk + usize::from(first_attempt)
    }

    /// Whether the teacher was asked: from the step at which the request is on its way.
    pub(super) fn is_charged(&self) -> bool {
        self.fault == Fault::Delay || self.step() >= 2
    }

    /// Whether the journal failed under a process that lives on.
    pub(super) fn is_unwritable(&self) -> bool {
        self.fault == Fault::Error && ["hold-", "settle-"].iter().any(|part| self.stage.starts_with(part))
    }

    /// What the record must say afterwards.
    pub(super) fn left(&self) -> Left {
        let (first_held, first_known) = match self.fault {
            // Written is enough: a kill leaves the kernel's cache as it is.
            Fault::Kill => (0, 6),
            // Only what was synced when the step was reached.
            Fault::Dropped | Fault::Torn => (1, 7),
            // A group that failed to be written or synced never was; an answer that is known stays so.
            Fault::Error => (2, 8),
            Fault::Delay => (0, 0),
        };
        match self.step() {
            step if step >= first_known => Left::Known,
            step if step >= first_held => Left::Unknown,
            _ => Left::Nothing,
        }
    }
}
