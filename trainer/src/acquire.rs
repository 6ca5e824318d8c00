//! Which inputs are asked about, and buying their answers through the desk.
//!
//! Inputs are taken in an order drawn from the seed alone. It must not know how a teacher is reached, nor clocks or
//! terminals. Invariant: the first n questions are the same however often a run is broken off and resumed, so a run's
//! total is never more than was asked for, and only what is not known costs.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tuition_ledger::{
    Desk, DeskError, InputBound, Item, Mode, Order, Outcome, OutputBound, QueryKey, Quote, Record, Refusal,
    Served, Teacher, Usd, Who,
};

use crate::data::split::{Draw, order};
use crate::data::{Collected, Raw};
use crate::form::{DIALECT, Form, OPERATION, Question, RowError};

/// Why answers could not be bought.
#[derive(Debug, thiserror::Error)]
pub enum AcquireError {
    /// An input that the teacher cannot be asked about.
    #[error("{place}")]
    Question {
        /// Where the input came from.
        place: String,
        /// Why.
        #[source]
        source: RowError,
    },
    /// The desk did not answer.
    #[error("{0}")]
    Desk(Box<DeskError>),
    /// A purchase panicked.
    #[error("a purchase broke off")]
    BrokenOff(#[source] JoinError),
}

impl From<DeskError> for AcquireError {
    fn from(error: DeskError) -> Self {
        Self::Desk(Box::new(error))
    }
}

/// Makes the questions of a source's inputs; of equal ones the first is kept.
///
/// # Errors
/// When an input does not fit the teacher.
pub fn questions(form: &Form, collected: Collected) -> Result<Vec<Question>, AcquireError> {
    let mut seen = BTreeSet::new();
    let mut questions = Vec::with_capacity(collected.inputs.len());
    for Raw { place, input, truth } in collected.inputs {
        let row = match form.row(&input) {
            Ok(row) => row.canonical(),
            Err(source) => return Err(AcquireError::Question { place, source }),
        };
        let query = form.query(row);
        let key = query.key();
        if seen.insert(key) {
            questions.push(Question { key, row: query.input, input, truth, place });
        }
    }
    Ok(questions)
}

/// Questions in two parts: those that may be bought to learn from, in buying order, and those held out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pool {
    /// To learn from, in the order in which they are bought.
    pub learn: Vec<Question>,
    /// Held out, in the order in which they are bought.
    pub test: Vec<Question>,
}

impl Pool {
    /// Holds a fraction out, by key.
    #[must_use]
    pub fn of(questions: Vec<Question>, test: f64, seed: u64) -> Self {
        let held = |question: &Question| Draw::Test.holds(seed, &question.key.to_string(), test);
        let (test, learn) = questions.into_iter().partition(held);
        Self { learn: ordered(learn, seed), test: ordered(test, seed) }
    }

    /// Takes the held-out questions from another source; a question that is in both is held out.
    #[must_use]
    pub fn with_test(questions: Vec<Question>, test: Vec<Question>, seed: u64) -> Self {
        let held: BTreeSet<QueryKey> = test.iter().map(|question| question.key).collect();
        let learn = questions.into_iter().filter(|question| !held.contains(&question.key)).collect();
        Self { learn: ordered(learn, seed), test: ordered(test, seed) }
    }

    /// The same parts, with another order of those to learn from.
    #[must_use]
    pub fn reordered(self, seed: u64) -> Self {
        Self { learn: ordered(self.learn, seed), test: self.test }
    }
}

fn ordered(questions: Vec<Question>, seed: u64) -> Vec<Question> {
    let keys: Vec<String> = questions.iter().map(|question| question.key.to_string()).collect();
    let mut questions: Vec<Option<Question>> = questions.into_iter().map(Some).collect();
    let place = |index: usize| questions[index].take().expect("an order names each index once");
    order(seed, &keys).into_iter().map(place).collect()
}

/// Who is asked, for whom, and how.
#[derive(Clone)]
pub struct Buyer {
    /// The desk.
    pub desk: Arc<Desk>,
    /// The teacher.
    pub teacher: Arc<dyn Teacher>,
    /// The form of its rows.
    pub form: Form,
    /// The run that pays.
    pub run: String,
    /// Whether what is not known is bought.
    pub mode: Mode,
    /// Questions in one exchange.
    pub batch: usize,
    /// Exchanges at a time.
    pub concurrency: usize,
}

/// How far a purchase has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Questions in all.
    pub total: usize,
    /// Answers bought now.
    pub bought: usize,
    /// Answers that cost nothing: already recorded, or being bought by somebody else.
    pub known: usize,
    /// Inferences paid for now.
    pub calls: u64,
    /// What they cost, where the model has a price.
    pub cost: Option<Usd>,
}

/// Why a purchase ended before its last question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stopped {
    /// A budget has not enough left for one more question.
    Budget(Refusal),
    /// Somebody asked to stop.
    Interrupted,
}

/// What a purchase came to.
#[derive(Debug, Clone)]
pub struct Purchase {
    /// The answers, one for each question in their order; none where it ended before.
    pub records: Vec<Option<Arc<Record>>>,
    /// What was counted.
    pub progress: Progress,
    /// Why it ended before its last question.
    pub stopped: Option<Stopped>,
}

/// A stretch of the questions.
type Stretch = std::ops::Range<usize>;

impl Buyer {
    /// Answers all `questions`, from the record or by buying; `tell` hears after each exchange. A true `stop` ends it
    /// after the exchanges under way.
    ///
    /// # Errors
    /// When the teacher or the store fails, or in replay mode an answer is not recorded; what was bought is kept.
    pub async fn buy(
        &self,
        questions: &[Question],
        stop: &watch::Receiver<bool>,
        tell: &mut (dyn FnMut(&Progress) + Send),
    ) -> Result<Purchase, AcquireError> {
        let mut purchase = Purchase {
            records: vec![None; questions.len()],
            progress: Progress { total: questions.len(), ..Progress::default() },
            stopped: None,
        };
        let mut waiting: VecDeque<Stretch> = stretches(questions.len(), self.batch).into();
        let mut asked: JoinSet<(Stretch, Result<Served, DeskError>)> = JoinSet::new();
        let mut failed = None;
        loop {
            if *stop.borrow() && !waiting.is_empty() {
                waiting.clear();
                purchase.stopped.get_or_insert(Stopped::Interrupted);
            }
            while asked.len() < self.concurrency.max(1)
                && let Some(stretch) = waiting.pop_front()
            {
                let (desk, teacher) = (Arc::clone(&self.desk), Arc::clone(&self.teacher));
                let order = Arc::new(self.order(&questions[stretch.clone()]));
                asked.spawn(async move { (stretch, desk.ask(teacher, order).await) });
            }
            let Some(ended) = asked.join_next().await else { break };
            match ended {
                Ok((stretch, Ok(served))) => {
                    purchase.take(stretch, served);
                    tell(&purchase.progress);
                }
                // What does not fit whole may fit in part.
                Ok((stretch, Err(DeskError::Refused(Refusal::Exhausted { .. })))) if stretch.len() > 1 => {
                    let middle = stretch.start + stretch.len() / 2;
                    waiting.push_front(middle..stretch.end);
                    waiting.push_front(stretch.start..middle);
                }
                Ok((_, Err(DeskError::Refused(refusal @ Refusal::Exhausted { .. })))) => {
                    waiting.clear();
                    purchase.stopped = Some(Stopped::Budget(refusal));
                }
                Ok((_, Err(error))) => {
                    waiting.clear();
                    failed.get_or_insert(AcquireError::from(error));
                }
                Err(error) => {
                    waiting.clear();
                    failed.get_or_insert(AcquireError::BrokenOff(error));
                }
            }
        }
        failed.map_or(Ok(purchase), Err)
    }

    /// What buying all `questions` would come to; asks nobody.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn plan(&self, questions: &[Question]) -> Result<Plan, AcquireError> {
        let mut plan = Plan::default();
        for stretch in stretches(questions.len(), self.batch) {
            let (known, quote) = self.desk.plan(&self.order(&questions[stretch])).await?;
            plan.known += known.iter().filter(|known| **known).count();
            plan.unknown += known.iter().filter(|known| !**known).count();
            plan.quotes.extend(quote);
        }
        Ok(plan)
    }

    /// The order of some questions.
    fn order(&self, questions: &[Question]) -> Order {
        let item = |question: &Question| Item {
            key: question.key,
            input: question.row.clone(),
            sample: 0,
            calls: 1,
            bound: InputBound::Unmetered,
        };
        Order {
            who: Who { teacher: self.form.teacher.clone(), run: Some(self.run.clone()), key: None },
            dialect: DIALECT.to_owned(),
            operation: OPERATION.to_owned(),
            revision: self.form.revision.clone(),
            model: self.form.model.clone(),
            headers: std::collections::BTreeMap::new(),
            items: questions.iter().map(item).collect(),
            overhead_tokens: 0,
            output: OutputBound::Unmetered,
            choices: 1,
            unbounded: None,
            mode: self.mode,
            forward: self.form.forward(questions),
        }
    }
}

fn stretches(count: usize, batch: usize) -> Vec<Stretch> {
    let batch = batch.max(1);
    (0..count).step_by(batch).map(|start| start..(start + batch).min(count)).collect()
}

impl Purchase {
    fn take(&mut self, stretch: Stretch, served: Served) {
        let bought = served.items.iter().filter(|item| item.outcome == Outcome::Bought).count();
        self.progress.bought += bought;
        self.progress.known += served.items.len() - bought;
        self.progress.calls = self.progress.calls.saturating_add(served.bought);
        self.progress.cost = match (self.progress.cost, served.cost) {
            (Some(before), Some(now)) => before.checked_add(now),
            (before, now) => before.or(now),
        };
        for (place, item) in self.records[stretch].iter_mut().zip(served.items) {
            *place = Some(item.record);
        }
    }
}

/// What a purchase would come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Questions whose answers are recorded.
    pub known: usize,
    /// Questions that would be bought.
    pub unknown: usize,
    /// The upper bound of each exchange.
    pub quotes: Vec<Quote>,
}

#[cfg(test)]
mod tests;
