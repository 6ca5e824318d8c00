//! The committing task of one replica: takes everything that is asked, decides it under the lock of the log, writes it in
//! one transaction, and answers once that is durable.
//!
//! Must not know who asks. Invariants: nobody is answered before the commit; a commit whose outcome is not known is looked
//! up under the lock before anything else is decided; what did not land is undone here and decided anew.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use sqlx::PgConnection;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::ask::{Ask, Change, Outcome, WeakAsks, crash};
use super::find::Answers;
use super::fold::{Drafted, Fold, Mark};
use super::link::{Link, Unfit};
use super::log::{self, Head};
use crate::book::Present;
use crate::store::StoreError;
use crate::store::read::ReadError;
use crate::time::Timestamp;

/// Asks decided in one transaction, and the bytes from which on it takes no more.
const GROUP_MAX: usize = 512;
const GROUP_BYTES: u64 = 16 << 20;
/// The log is looked at so often even when nothing is announced.
const POLL: Duration = Duration::from_secs(1);
/// Looks at writers that may be dead are so far apart.
const SWEEP_PAUSE: Duration = Duration::from_secs(2);
/// Entries read under the lock; whoever is further behind reads them first.
const BEHIND_MAX: u64 = 500;
/// How long one exchange with the database may take.
const TURN_WAIT: Duration = Duration::from_secs(10);
/// Pauses between attempts to reach a database that is away.
const AWAY_PAUSE: Duration = Duration::from_millis(50);
const AWAY_PAUSE_MAX: Duration = Duration::from_secs(1);

/// What the task shares with callers and with the tasks beside it.
pub(crate) struct Shared {
    pub(crate) answers: Answers,
    pub(crate) changes: watch::Sender<u64>,
    /// Hits that wait to be counted; taken once a second.
    pub(crate) tallies: std::sync::Mutex<Vec<crate::entry::Tally>>,
    /// New entries were announced.
    pub(crate) moved: Notify,
    /// This replica's writer; 0 while there is none.
    pub(crate) writer: AtomicI64,
}

/// Asks that were decided together.
struct Group {
    asks: Vec<Ask>,
    outcomes: Vec<Outcome>,
    writer: i64,
    /// The number that the first entry has among the writer's, if it landed.
    first: u64,
    /// Where to go back to if it does not land.
    mark: Option<Mark>,
    /// Whether the commit was sent.
    sent: bool,
}

/// Why a turn ended early.
#[derive(Debug)]
enum Broken {
    /// The database is away; whatever was asked is asked again.
    Away(String),
    /// The database refuses what it was given.
    Refused(String),
    /// Another replica took this one for dead.
    Ended,
    /// Too far behind to hold the lock; reads on first.
    Behind,
    /// The record is not what this replica has seen.
    Damaged(String),
}

impl From<sqlx::Error> for Broken {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default().into_owned();
        // Connections, resources, operators, locks, and transactions that were ended: these pass.
        let passes = ["08", "53", "57", "40", "55", "25"].iter().any(|class| code.starts_with(class));
        match error {
            sqlx::Error::Database(error) if !passes => Self::Refused(error.to_string()),
            error => Self::Away(error.to_string()),
        }
    }
}

impl From<Unfit> for Broken {
    fn from(error: Unfit) -> Self {
        Self::Away(error.to_string())
    }
}

impl From<ReadError> for Broken {
    fn from(error: ReadError) -> Self {
        Self::Damaged(error.to_string())
    }
}

/// The committing task.
pub(crate) struct Committer {
    link: Link,
    program: String,
    shared: Arc<Shared>,
    asks: mpsc::UnboundedReceiver<Ask>,
    /// For holds that nobody takes.
    back: WeakAsks,
    connection: Option<PgConnection>,
    fold: Fold,
    now: Timestamp,
    waiting: VecDeque<Ask>,
    presents: Vec<Ask>,
    /// Being decided and written.
    group: Option<Group>,
    /// Sent, but nobody knows whether it landed.
    undecided: Option<Group>,
    /// Asks that are decided one by one, after the database refused them together.
    careful: usize,
    swept: Instant,
    away: Option<String>,
    pause: Duration,
    /// Set for good once the record is not what it was.
    damaged: Option<String>,
    closed: bool,
}

impl Committer {
    /// A task over a connection whose tables are made.
    pub(crate) async fn new(
        link: Link,
        program: String,
        shared: Arc<Shared>,
        asks: mpsc::UnboundedReceiver<Ask>,
        back: WeakAsks,
        mut connection: PgConnection,
    ) -> Result<Self, sqlx::Error> {
        let fold = Fold::new(log::name(&mut connection).await?);
        Ok(Self {
            link,
            program,
            shared,
            asks,
            back,
            connection: Some(connection),
            fold,
            now: Timestamp::default(),
            waiting: VecDeque::new(),
            presents: Vec::new(),
            group: None,
            undecided: None,
            careful: 0,
            swept: Instant::now(),
            away: None,
            pause: AWAY_PAUSE,
            damaged: None,
            closed: false,
        })
    }

    /// Reads the whole log, begins a writer, and makes the holds of dead ones unknown.
    pub(crate) async fn begin(&mut self) -> Result<(), String> {
        loop {
            let begun = async {
                self.catch_up().await?;
                self.register().await?;
                self.sweep().await
            };
            match begun.await {
                Ok(()) => return Ok(()),
                Err(Broken::Behind) => {
                    let connection = self.connection().map_err(|_| "the connection broke off".to_owned())?;
                    log::roll_back(connection).await.map_err(|error| error.to_string())?;
                }
                Err(Broken::Ended) => self.shared.writer.store(0, Ordering::Release),
                Err(Broken::Away(why) | Broken::Refused(why) | Broken::Damaged(why)) => return Err(why),
            }
        }
    }

    /// Commits until it is told to end.
    pub(crate) async fn run(mut self) {
        let mut tick = interval(POLL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let shared = Arc::clone(&self.shared);
        while !self.closed {
            if self.waiting.is_empty() && self.presents.is_empty() && self.undecided.is_none() {
                tokio::select! {
                    ask = self.asks.recv() => match ask {
                        Some(ask) => self.queue(ask),
                        None => return,
                    },
                    () = shared.moved.notified() => {}
                    _ = tick.tick() => self.count(),
                }
            }
            while let Ok(ask) = self.asks.try_recv() {
                self.queue(ask);
            }
            if self.closed {
                return;
            }
            let turned = timeout(TURN_WAIT, self.turn()).await;
            let late = || Broken::Away(format!("no answer within {} s", TURN_WAIT.as_secs()));
            match turned.unwrap_or_else(|_| Err(late())) {
                Ok(()) => self.back_again(),
                Err(broken) => self.recover(broken).await,
            }
        }
    }

    fn queue(&mut self, ask: Ask) {
        match ask {
            Ask::Stop => self.closed = true,
            Ask::Present(_) => self.presents.push(ask),
            Ask::Close(_) => {
                self.count();
                self.waiting.push_back(ask);
            }
            ask => self.waiting.push_back(ask),
        }
    }

    /// Takes the hits that have gathered.
    fn count(&mut self) {
        let tallies = std::mem::take(&mut *super::lock(&self.shared.tallies));
        if !tallies.is_empty() {
            self.waiting.push_back(Ask::Change { change: Change::Served(tallies), give: None });
        }
    }

    /// One exchange with the database: what others wrote, then a group of ours.
    async fn turn(&mut self) -> Result<(), Broken> {
        if let Some(why) = self.damaged.clone() {
            return Err(Broken::Damaged(why));
        }
        if self.connection.is_none() {
            self.connection = Some(self.link.connect().await?);
        }
        self.waiting.retain(|ask| !ask.is_given_up());
        // However much is asked: whoever waits for a dead replica's call waits for this.
        if self.undecided.is_none() && self.swept.elapsed() >= SWEEP_PAUSE {
            self.sweep().await?;
        }
        if self.waiting.is_empty() && self.undecided.is_none() {
            self.catch_up().await?;
        } else {
            if self.shared.writer.load(Ordering::Acquire) == 0 {
                self.register().await?;
            }
            self.refuse().await?;
            if !self.waiting.is_empty() || self.undecided.is_some() {
                self.commit().await?;
            }
        }
        if !self.presents.is_empty() {
            self.catch_up().await?;
            self.show(None);
        }
        Ok(())
    }

    fn connection(&mut self) -> Result<&mut PgConnection, Broken> {
        self.connection.as_mut().ok_or_else(|| Broken::Away("the connection broke off".into()))
    }

    /// Reads what others have written, without keeping anybody waiting.
    async fn catch_up(&mut self) -> Result<(), Broken> {
        let head = log::head(self.connection()?).await?;
        self.read(&head).await
    }

    /// Reads up to `head`.
    async fn read(&mut self, head: &Head) -> Result<(), Broken> {
        self.now = head.now;
        if head.seq < self.fold.chains.seq {
            let (found, seen) = (head.seq, self.fold.chains.seq);
            return Err(Broken::Damaged(format!(
                "the record ends at entry {found}, though entry {seen} was durable"
            )));
        }
        while self.fold.chains.seq < head.seq {
            let seq = self.fold.chains.seq;
            let rows = log::behind(self.connection()?, seq).await?;
            if rows.is_empty() {
                let number = seq + 1;
                return Err(Broken::Damaged(format!("entry {number} of the record is missing")));
            }
            let mut moved = Vec::new();
            for row in &rows {
                moved.extend(self.fold.take(row)?);
            }
            // Said first: whoever looks an answer up meanwhile keeps it only while nothing was said.
            self.shared.changes.send_replace(self.fold.chains.seq);
            self.shared.answers.forget(&moved);
        }
        Ok(())
    }

    /// Where nothing but holds is asked for, answers those that the present allows not: they change nothing, so they need
    /// not keep the other replicas waiting for the lock.
    async fn refuse(&mut self) -> Result<(), Broken> {
        let only_holds = self.waiting.iter().all(|ask| matches!(ask, Ask::Reserve { .. }));
        let refused = |ask: &Ask, this: &Self| ask.refusal(&this.fold.book, this.now);
        let any = || self.waiting.iter().any(|ask| refused(ask, self).is_some());
        if !only_holds || self.undecided.is_some() || !any() {
            return Ok(());
        }
        self.catch_up().await?;
        for ask in std::mem::take(&mut self.waiting) {
            match refused(&ask, self) {
                Some(why) => ask.answer(Outcome::NotGranted(why), &self.back),
                None => self.waiting.push_back(ask),
            }
        }
        Ok(())
    }

    /// Begins a transaction, locks the log, reads all of it, and finds out what became of a commit without an answer.
    async fn lock(&mut self) -> Result<(), Broken> {
        let head = log::lock(self.connection()?).await?;
        if head.seq.saturating_sub(self.fold.chains.seq) > BEHIND_MAX {
            return Err(Broken::Behind);
        }
        self.read(&head).await?;
        if let Some(group) = self.undecided.take() {
            let landed = self.fold.chains.of(group.writer).number >= group.first;
            if landed { self.answer(group) } else { self.again(group) }
        }
        Ok(())
    }

    /// Decides what waits, writes it and commits.
    async fn commit(&mut self) -> Result<(), Broken> {
        self.lock().await?;
        let writer = self.shared.writer.load(Ordering::Acquire);
        let mut drafted = Vec::new();
        let first = self.fold.chains.of(writer).number + 1;
        let mark = Some(self.fold.mark());
        let mut group = Group { asks: vec![], outcomes: vec![], writer, first, mark, sent: false };
        let (mut bytes, mut ends) = (0, false);
        let most = if self.careful > 0 { 1 } else { GROUP_MAX };
        while group.asks.len() < most && bytes < GROUP_BYTES && !ends {
            let Some(ask) = self.waiting.pop_front() else { break };
            let before = drafted.len();
            group.outcomes.push(ask.decide(&mut self.fold, writer, self.now, &mut drafted));
            bytes += drafted[before..].iter().map(|drafted| drafted.draft.bytes()).sum::<u64>();
            ends = matches!(ask, Ask::Close(_));
            group.asks.push(ask);
        }
        self.careful = self.careful.saturating_sub(group.asks.len());
        self.group = Some(group);
        self.write(writer, drafted, ends).await?;
        if let Some(group) = self.group.take() {
            self.answer(group);
        }
        self.closed = ends;
        Ok(())
    }

    /// Writes what the group in hand drafted, and commits.
    async fn write(&mut self, writer: i64, drafted: Vec<Drafted>, ends: bool) -> Result<(), Broken> {
        let connection = self.connection()?;
        if drafted.is_empty() {
            return Ok(log::roll_back(connection).await?);
        }
        if !log::write(connection, writer, &drafted, ends).await? {
            return Err(Broken::Ended);
        }
        if let Some(group) = &mut self.group {
            group.sent = true;
        }
        // A refusal of the commit itself is looked up like a silence.
        log::commit(self.connection()?).await.map_err(|error| Broken::Away(error.to_string()))
    }

    /// Begins this replica's writer.
    async fn register(&mut self) -> Result<(), Broken> {
        self.lock().await?;
        let (record, program) = (self.fold.chains.record, self.program.clone());
        let writer = log::begin_writer(self.connection()?, &record, &program).await?;
        let mark = Some(self.fold.mark());
        let opened = self.fold.book.opened(program, self.now);
        self.group = Some(Group { asks: vec![], outcomes: vec![], writer, first: 1, mark, sent: false });
        let drafted = self.fold.append(writer, &opened, vec![]);
        let drafted = drafted.map_err(|error| Broken::Refused(error.to_string()))?;
        self.write(writer, vec![drafted], false).await?;
        self.group = None;
        self.shared.changes.send_replace(self.fold.chains.seq);
        self.shared.writer.store(writer, Ordering::Release);
        Ok(())
    }

    /// Makes the holds of writers that went silent unknown.
    async fn sweep(&mut self) -> Result<(), Broken> {
        self.swept = Instant::now();
        let writer = self.shared.writer.load(Ordering::Acquire);
        let stale = log::stale(self.connection()?, writer).await?;
        if stale.is_empty() {
            return Ok(());
        }
        if writer == 0 {
            self.register().await?;
        }
        let writer = self.shared.writer.load(Ordering::Acquire);
        self.lock().await?;
        let ended = log::end_stale(self.connection()?, &stale).await?;
        let (mark, first) = (Some(self.fold.mark()), self.fold.chains.of(writer).number + 1);
        self.group = Some(Group { asks: vec![], outcomes: vec![], writer, first, mark, sent: false });
        let mut drafted = Vec::new();
        let crashed = crash(&mut self.fold, writer, &ended, self.now, &mut drafted);
        crashed.map_err(|error| Broken::Refused(error.to_string()))?;
        if !ended.is_empty() {
            tracing::warn!(
                ?ended,
                holds = drafted.len(),
                "writers that went silent were ended; their calls are unknown"
            );
        }
        if drafted.is_empty() {
            log::commit(self.connection()?).await?;
        } else {
            self.write(writer, drafted, false).await?;
        }
        self.group = None;
        self.shared.changes.send_replace(self.fold.chains.seq);
        Ok(())
    }

    /// Tells everybody in a group that landed.
    fn answer(&mut self, group: Group) {
        // Said first, as above.
        self.shared.changes.send_replace(self.fold.chains.seq);
        for (ask, outcome) in group.asks.iter().zip(&group.outcomes) {
            match (ask, outcome) {
                (_, Outcome::Settled(records)) => self.shared.answers.remember(records),
                (Ask::Change { change: Change::Forget(key, _), .. }, _) => {
                    self.shared.answers.forget(&[*key]);
                }
                _ => {}
            }
        }
        for (ask, outcome) in group.asks.into_iter().zip(group.outcomes) {
            ask.answer(outcome, &self.back);
        }
    }

    /// Puts the asks of a group that did not land back to where they waited.
    fn again(&mut self, group: Group) {
        for ask in group.asks.into_iter().rev() {
            self.waiting.push_front(ask);
        }
    }

    /// Tells the figures of the last entry that this replica has seen.
    fn show(&mut self, unwritable: Option<&str>) {
        let present = Present {
            unwritable: unwritable.map(|why| format!("the database does not answer: {why}")),
            ..self.fold.book.present(self.now)
        };
        for ask in self.presents.drain(..) {
            if let Ask::Present(give) = ask {
                drop(give.send(Ok(present.clone())));
            }
        }
    }

    fn back_again(&mut self) {
        self.pause = AWAY_PAUSE;
        if self.away.take().is_some() {
            tracing::info!("the database answers again");
            self.shared.changes.send_modify(|_| ());
        }
    }

    /// After a turn that ended early: nothing of it is left, and what was asked waits again, is looked up, or has failed.
    async fn recover(&mut self, broken: Broken) {
        let mut alone = None;
        if let Some(mut group) = self.group.take() {
            if let Some(mark) = group.mark.take() {
                self.fold.back_to(mark);
            }
            if group.sent {
                self.undecided = Some(group);
            } else if matches!(broken, Broken::Refused(_)) && group.asks.len() == 1 {
                alone = group.asks.pop();
            } else {
                if matches!(broken, Broken::Refused(_)) {
                    self.careful = self.careful.max(group.asks.len());
                }
                self.again(group);
            }
        }
        // Whatever it was in the middle of ends with the connection.
        let connection = self.connection.take();
        match broken {
            Broken::Ended => {
                tracing::warn!("another replica took this one for dead: it goes on as a new writer");
                self.shared.writer.store(0, Ordering::Release);
            }
            Broken::Behind => {
                self.connection = connection;
                let read = async {
                    log::roll_back(self.connection()?).await?;
                    self.catch_up().await
                };
                if timeout(TURN_WAIT, read).await.map_or(true, |read| read.is_err()) {
                    self.connection = None;
                }
            }
            Broken::Away(why) => self.wait(why).await,
            Broken::Refused(why) => match alone {
                Some(ask) => ask.fail(StoreError::Unwritable(why)),
                None if self.careful > 0 => {}
                None => self.wait(why).await,
            },
            Broken::Damaged(why) => self.give_up(&why),
        }
    }

    async fn wait(&mut self, why: String) {
        if self.away.is_none() {
            tracing::error!(why, "the database is away; what is known here is served, nothing is bought");
        }
        self.show(Some(&why));
        self.away = Some(why);
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(AWAY_PAUSE_MAX);
    }

    /// The record is not what this replica has seen: nothing more is decided on it.
    fn give_up(&mut self, why: &str) {
        if self.damaged.is_none() {
            tracing::error!(why, "the record is damaged; nothing is bought");
        }
        self.damaged = Some(why.to_owned());
        let undecided = self.undecided.take().map(|group| group.asks).unwrap_or_default();
        for ask in undecided.into_iter().chain(self.waiting.drain(..)) {
            self.closed |= matches!(ask, Ask::Close(_));
            ask.fail(StoreError::Unreadable(why.to_owned()));
        }
        self.show(Some(why));
    }
}
