//! Who waits for which budget, and in what order.
//!
//! Must not know what a budget allows. Invariant: a budget's turn is with whoever joined its queue first of those who are
//! still in it; whoever stops waiting leaves no trace.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// The queues of a desk, one a budget.
#[derive(Default)]
pub(crate) struct Turns(Arc<Mutex<Queues>>);

// Held to join, to leave and to look, never across an await.
#[derive(Default)]
struct Queues {
    /// By budget and by ticket: whom to tell that it is their turn.
    queues: BTreeMap<String, BTreeMap<u64, oneshot::Sender<()>>>,
    tickets: u64,
}

/// A place in the queue of a budget; dropping it leaves the queue, and passes the turn on.
pub(crate) struct Place {
    turns: Arc<Mutex<Queues>>,
    budget: String,
    ticket: u64,
    turn: oneshot::Receiver<()>,
}

fn lock(queues: &Mutex<Queues>) -> MutexGuard<'_, Queues> {
    queues.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Turns {
    /// Queues up for `budget`.
    pub(crate) fn join(&self, budget: &str) -> Place {
        let (tell, turn) = oneshot::channel();
        let mut queues = lock(&self.0);
        queues.tickets += 1;
        let ticket = queues.tickets;
        queues.queues.entry(budget.to_owned()).or_default().insert(ticket, tell);
        queues.tell_first(budget);
        Place { turns: Arc::clone(&self.0), budget: budget.to_owned(), ticket, turn }
    }

    /// The budgets that somebody waits for, by name.
    pub(crate) fn awaited(&self) -> Vec<String> {
        lock(&self.0).queues.keys().cloned().collect()
    }

    /// How many places are taken.
    pub(crate) fn waiting(&self) -> usize {
        lock(&self.0).queues.values().map(BTreeMap::len).sum()
    }
}

impl Queues {
    /// Gives the turn to the first of a queue; one who has it already is told nothing.
    fn tell_first(&mut self, budget: &str) {
        let first = self.queues.get_mut(budget).and_then(|queue| queue.first_entry());
        if let Some(mut first) = first {
            let (unused, _) = oneshot::channel();
            // Whoever does not listen any more leaves in a moment.
            let _ = std::mem::replace(first.get_mut(), unused).send(());
        }
    }
}

impl Place {
    /// Waits for the turn, which lasts until the place is dropped.
    pub(crate) async fn turn(&mut self) {
        // The sender is kept until the turn is given.
        let _ = (&mut self.turn).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut queues = lock(&self.turns);
        let Some(queue) = queues.queues.get_mut(&self.budget) else { return };
        let had_turn = queue.first_key_value().is_some_and(|(first, _)| *first == self.ticket);
        queue.remove(&self.ticket);
        if queue.is_empty() {
            queues.queues.remove(&self.budget);
        } else if had_turn {
            queues.tell_first(&self.budget);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn the_first_in_a_queue_has_its_turn_and_leaving_passes_it_on() {
        let turns = Turns::default();
        let [mut first, second, mut third] = ["b"; 3].map(|budget| turns.join(budget));
        let mut other = turns.join("a");
        assert_eq!((turns.awaited(), turns.waiting()), (vec!["a".to_owned(), "b".to_owned()], 4));
        assert!(first.turn().now_or_never().is_some() && other.turn().now_or_never().is_some());
        assert!(third.turn().now_or_never().is_none());
        drop(second);
        assert!(third.turn().now_or_never().is_none(), "the first still has the turn");
        drop(first);
        assert!(third.turn().now_or_never().is_some());
        let mut fourth = turns.join("b");
        assert!(fourth.turn().now_or_never().is_none());
        drop((third, fourth, other));
        assert_eq!((turns.awaited(), turns.waiting()), (vec![], 0));
    }
}
