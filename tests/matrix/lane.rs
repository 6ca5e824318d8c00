//! A lane of the matrix: one kind of call, one store and one teacher, cell after cell. The process that is restarted after
//! one cell is the one that the next cell strikes.
//! Invariant: at every kill a bystander's call is in flight, so that no kill hits an idle process.

use super::Tally;
use super::cell::{Cell, Fault, KNOWN_TEXT, Kind, Left, Request, chat, embed};
use super::control::{Control, Plan};
use super::rules::Seen;
use crate::support::{Client, TestServer, Upstream, content, price, read, teacher};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// A step that is not reached by then is never reached.
const STRIKE_MAX: Duration = Duration::from_secs(60);
/// As many permits as the gate may ever want once nobody is to wait there any more.
const GATES: usize = 64;

/// What a client made of its call.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) request: Request,
    /// None where the connection broke before.
    pub(super) status: Option<u16>,
    /// Whether it was told not to try again.
    pub(super) never_retry: bool,
    /// The answer, where it came in full.
    pub(super) content: Option<Value>,
}

pub(super) struct Lane {
    pub(super) kind: Kind,
    pub(super) upstream: Arc<Upstream>,
    pub(super) server: TestServer,
    pub(super) control: Control,
    gates: usize,
}

async fn ask(client: Client, request: Request) -> Asked {
    let reply = client.send(request.0, request.1.clone()).await;
    let Ok(reply) = reply else { return Asked { request, status: None, never_retry: false, content: None } };
    let status = reply.status().as_u16();
    let never_retry = reply.headers().get("x-should-retry").is_some_and(|value| value == "false");
    let body = read(reply).await;
    let content = content(&body).filter(|_| status == 200);
    Asked { request, status: Some(status), never_retry, content }
}

/// The name of a cell: its run, and a word of its questions.
fn name(kind: Kind, number: usize) -> String {
    format!("{}-{number}", kind.name())
}

impl Lane {
    /// Runs every cell of a kind.
    pub(super) async fn run(kind: Kind) -> Tally {
        let mut lane = Lane::start(kind).await;
        let mut tally = Tally::default();
        let mut seen: Vec<Asked> = Vec::new();
        for (number, cell) in Cell::of(kind).into_iter().enumerate() {
            if cell.meaningless().is_some() {
                continue;
            }
            let asked = lane.cell(cell, &name(kind, number), &mut tally).await;
            seen.extend(asked.into_iter().filter(|asked| asked.content.is_some()));
            tally.cells += 1;
        }
        tally.answers = seen.len();
        lane.knows(&seen, "at the end").await;
        tally
    }

    async fn start(kind: Kind) -> Lane {
        let upstream = Arc::new(Upstream::start().await);
        let control = Control::start();
        let mut text = format!("{}\n{}", teacher(&upstream, "retries = 2"), price());
        text.push_str("[[budget]]\nname = \"all\"\ncalls = 100000\nusd = \"50.00\"\n");
        for number in 0..Cell::of(kind).len() {
            let (name, calls) = (name(kind, number), 1 + kind.calls());
            text.push_str(&format!("[[budget]]\nname = \"{name}\"\nrun = \"{name}\"\ncalls = {calls}\n"));
        }
        let mut server = TestServer::start(&text);
        server.kill();
        server.ask_at_every_step(control.folder());
        server.restart();
        let lane = Lane { kind, upstream, server, control, gates: 0 };
        for request in [lane.kept(), embed(&[KNOWN_TEXT])] {
            let applied = lane.control.passed("index-applied");
            let asked = ask(lane.client(), request).await;
            assert_eq!(asked.status, Some(200));
            lane.control.passes("index-applied", applied).await;
        }
        lane
    }

    pub(super) fn client(&self) -> Client {
        Client::new(&self.server.url())
    }

    /// A question that is known before the first cell.
    pub(super) fn kept(&self) -> Request {
        chat("what everybody knows", false)
    }

    /// Strikes once, restarts, and checks; gives what the clients of the cell were told.
    async fn cell(&mut self, cell: Cell, name: &str, tally: &mut Tally) -> Vec<Asked> {
        let client = self.client().with("x-tuition-run", name);
        let (charged, sent) = (self.upstream.charges().len(), self.control.passed("bytes-sent"));
        let bystander = tokio::spawn(ask(client.clone(), chat(&format!("bystander {name} [stall]"), false)));
        self.upstream.charged(charged + 1).await;
        // It may be at the teacher before it has asked here.
        self.control.passes("bytes-sent", sent).await;

        let gated = cell.stage == "bytes-sent";
        let requests = self.kind.requests(name, if gated { "[gate]" } else { "" });
        let struck = self.control.lay(self.plan(cell, &client, 1 + requests.len()));
        self.gates += usize::from(gated);
        let triggers: Vec<JoinHandle<Asked>> =
            requests.into_iter().map(|request| tokio::spawn(ask(client.clone(), request))).collect();
        let struck = tokio::time::timeout(STRIKE_MAX, struck).await;
        struck.unwrap_or_else(|_| panic!("{cell:?}: the step was never reached")).unwrap();

        let mut in_flight = 1;
        if cell.fault.kills() {
            assert_eq!(self.server.wait().signal(), Some(9), "{cell:?}");
        } else if gated && cell.fault == Fault::Delay {
            self.upstream.open_the_gate(GATES);
        }
        let mut asked = Vec::new();
        for trigger in triggers {
            asked.push(trigger.await.unwrap());
        }
        if cell.fault.kills() {
            in_flight += asked.iter().filter(|asked| asked.content.is_none()).count();
        } else {
            self.check_told(cell, &asked).await;
            assert!(!bystander.is_finished(), "{cell:?}: nothing is in flight");
            self.server.kill();
        }
        assert_eq!(bystander.await.unwrap().content, None, "{cell:?}");
        let kills = tally.kills.entry(cell.stage).or_default();
        *kills = (kills.0 + 1, kills.1 + in_flight);

        self.spoil(cell);
        self.server.restart();
        self.check(&Seen { cell, name, asked: &asked }).await;
        asked
    }

    fn plan(&self, cell: Cell, client: &Client, requests: usize) -> Plan {
        let mut plan = Plan {
            stage: cell.stage,
            passes: cell.passes(),
            word: cell.word(),
            reply_end: if matches!(self.kind, Kind::Streamed) { "[DONE]" } else { "" },
            waits: Vec::new(),
        };
        if self.kind == Kind::Followers {
            // Whoever follows is in before the leader's hold is written.
            let client = client.clone();
            let all_in = async move { in_flight(&client, requests).await };
            plan.waits.push(("hold-appended", Box::pin(all_in)));
        }
        if cell.stage == "bytes-sent" {
            let (upstream, arrived) = (Arc::clone(&self.upstream), self.gates + 1);
            plan.waits.push(("bytes-sent", Box::pin(async move { upstream.at_the_gate(arrived).await })));
        }
        plan
    }

    /// What the fault does to the files of a process that is dead.
    fn spoil(&self, cell: Cell) {
        let store = self.server.folder().join("tuition.store");
        let cut = |path: &std::path::Path, length: u64| {
            File::options().write(true).open(path).unwrap().set_len(length).unwrap();
        };
        match (cell.fault, cell.stage) {
            (Fault::Dropped, _) => {
                let (journal, synced) = (store.join("journal"), self.control.synced());
                let length = fs::metadata(&journal).unwrap().len();
                assert!(synced <= length, "{cell:?}: {synced} bytes are synced of {length}");
                let unsynced = cell.stage.ends_with("-appended");
                assert_eq!(synced < length, unsynced, "{cell:?}: {synced} bytes are synced of {length}");
                cut(&journal, synced);
            }
            (Fault::Torn, "index-applied") => {
                let index = store.join("index/db");
                cut(&index, fs::metadata(&index).unwrap().len() / 2);
            }
            _ => {}
        }
    }

    /// What the clients of a process that lives on are told, and what it does for others.
    async fn check_told(&self, cell: Cell, asked: &[Asked]) {
        let full = asked.iter().filter(|asked| asked.content.is_some()).count();
        match cell.left() {
            Left::Known if cell.stage == "reply-sent" => {}
            Left::Known => assert_eq!(full, asked.len(), "{cell:?}: {asked:?}"),
            _ => {
                assert_eq!(full, 0, "{cell:?}: an answer that is not in the record: {asked:?}");
                for asked in asked.iter().filter(|asked| asked.status != Some(200)) {
                    assert!(asked.never_retry, "{cell:?}: an SDK would ask again: {asked:?}");
                }
            }
        }
        if cell.is_unwritable() {
            let (client, charges) = (self.client(), self.upstream.charges().len());
            let known = client.post(self.kept().0, self.kept().1).await.unwrap();
            assert_eq!((known.status, known.header("x-tuition-outcome")), (200, "known"), "{cell:?}");
            let fresh = ask(client, chat(&format!("nobody asked this {cell:?}"), false)).await;
            assert_eq!((fresh.status, fresh.never_retry), (Some(503), true), "{cell:?}");
            assert_eq!(self.upstream.charges().len(), charges, "{cell:?}: bought without a journal");
        }
    }

    /// Asks as a client that counts on its answer.
    pub(super) async fn ask(&self, client: &Client, request: Request) -> Asked {
        ask(client.clone(), request).await
    }
}

/// Waits until so many requests are under way.
async fn in_flight(client: &Client, requests: usize) {
    let found = |metrics: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix("tuition_requests_in_flight "));
        line.and_then(|number| number.parse::<usize>().ok()).expect("the gauge is there")
    };
    while found(&client.get("/metrics").await.unwrap().body) < requests {
        tokio::task::yield_now().await;
    }
}
