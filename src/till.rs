//! Where a run's answers come from: the record, and for what is not in it the desk.
//!
//! Must not know what the answers are for. Invariants: whoever owns the store is not disturbed while everything is known;
//! offline nothing is opened and a miss is an error that names the keys; the store that was opened is closed.

use std::collections::HashMap;
use std::sync::Arc;

use tuition_ledger::{Desk, DeskError, OpenStore, QueryKey, Quote, Record, Unbounded};
use tuition_trainer::acquire::Stopped;
use tuition_trainer::form::Question;

use crate::config::Config;
use crate::interrupt::Interrupt;
use crate::open;
use crate::purchase::{self, Asked};
use crate::words::Trouble;

/// A run that pays, and whom it asks.
#[derive(Clone)]
pub(crate) struct Customer {
    /// The run.
    pub(crate) run: String,
    /// What it may spend.
    pub(crate) calls: u64,
    /// The model that is asked.
    pub(crate) model: String,
    /// Who answers; nobody offline.
    pub(crate) asked: Option<Arc<Asked>>,
}

/// The record, and the desk once it is needed.
pub(crate) struct Till<'a> {
    config: &'a Config,
    known: &'a HashMap<QueryKey, Arc<Record>>,
    interrupt: &'a Interrupt,
    json: bool,
    opened: Option<(OpenStore, Arc<Desk>)>,
}

impl<'a> Till<'a> {
    /// A till that has opened nothing yet.
    pub(crate) fn new(
        config: &'a Config,
        known: &'a HashMap<QueryKey, Arc<Record>>,
        interrupt: &'a Interrupt,
        json: bool,
    ) -> Self {
        Self { config, known, interrupt, json, opened: None }
    }

    /// Whether all these are recorded.
    pub(crate) fn knows(&self, questions: &[Question]) -> bool {
        questions.iter().all(|question| self.known.contains_key(&question.key))
    }

    /// One record for each question, in their order; none where it was interrupted.
    ///
    /// # Errors
    /// A budget, the teacher, the store; offline what is not recorded.
    pub(crate) async fn answers(
        &mut self,
        customer: &Customer,
        questions: &[Question],
    ) -> Result<Option<Vec<Arc<Record>>>, Trouble> {
        let find = |question: &Question| self.known.get(&question.key).cloned();
        let known: Option<Vec<Arc<Record>>> = questions.iter().map(find).collect();
        if known.is_some() {
            return Ok(known);
        }
        let Some(asked) = &customer.asked else {
            return Err(missing(&customer.model, questions, self.known));
        };
        let (opened, desk) = match &mut self.opened {
            Some(open) => open,
            closed @ None => {
                let opened = open::open(self.config).await?;
                let applied = open::apply(self.config, &*opened.store).await;
                if let Err(error) = applied {
                    open::close(opened).await?;
                    return Err(error);
                }
                let desk = open::desk(self.config, &opened);
                closed.insert((opened, desk))
            }
        };
        purchase::allow(self.config, &*opened.store, &customer.run, customer.calls).await?;
        let buyer = asked.buyer(desk, &customer.run);
        let purchase = purchase::buy(&buyer, questions, self.interrupt, self.json).await;
        if purchase.is_err() {
            desk.drain().await;
        }
        let purchase = purchase?;
        match purchase.stopped {
            None => Ok(purchase.records.into_iter().collect()),
            Some(Stopped::Interrupted) => Ok(None),
            Some(Stopped::Budget(refusal)) => Err(DeskError::Refused(refusal).into()),
        }
    }

    /// Closes what was opened.
    ///
    /// # Errors
    /// The store cannot be closed.
    pub(crate) async fn close(self) -> Result<(), Trouble> {
        match self.opened {
            Some((opened, _)) => open::close(opened).await,
            None => Ok(()),
        }
    }
}

fn missing(model: &str, questions: &[Question], known: &HashMap<QueryKey, Arc<Record>>) -> Trouble {
    let keys = questions.iter().map(|question| question.key).filter(|key| !known.contains_key(key));
    let keys: Vec<QueryKey> = keys.collect();
    let quote = Quote {
        calls: keys.len() as u64,
        tokens: Ok(0),
        usd: Err(Unbounded::NoPrice(model.to_owned())),
        price: None,
        metered: false,
    };
    DeskError::NotRecorded { keys, quote: Box::new(quote) }.into()
}
