//! Leaves a teacher alone after calls in a row that may have been billed for nothing.
//!
//! Must not know why they failed, nor read a clock. Invariant: while it is open, nobody is asked.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Default)]
struct State {
    failures: u32,
    closed_until: Option<Instant>,
}

/// One circuit a teacher.
pub(crate) struct Breaker {
    failures_max: u32,
    pause: Duration,
    // Held for one look-up; calls to many teachers end in many tasks.
    states: Mutex<HashMap<String, State>>,
}

/// The teacher is left alone.
pub(crate) struct CircuitOpen {
    pub(crate) failures: u32,
    pub(crate) wait: Duration,
}

impl Breaker {
    pub(crate) fn new(failures_max: u32, pause: Duration) -> Self {
        Self { failures_max, pause, states: Mutex::default() }
    }

    /// Whether `teacher` may be asked.
    pub(crate) fn check(&self, teacher: &str, now: Instant) -> Result<(), CircuitOpen> {
        let state = self.with(teacher, |state| *state);
        match state.closed_until.map(|until| until.saturating_duration_since(now)) {
            Some(wait) if !wait.is_zero() => Err(CircuitOpen { failures: state.failures, wait }),
            _ => Ok(()),
        }
    }

    /// The teacher answered.
    pub(crate) fn answered(&self, teacher: &str) {
        self.with(teacher, |state| *state = State::default());
    }

    /// A call ended unknown. After the pause one more such call opens the circuit again.
    pub(crate) fn failed(&self, teacher: &str, now: Instant) {
        self.with(teacher, |state| {
            state.failures = state.failures.saturating_add(1);
            if state.failures >= self.failures_max {
                state.closed_until = Some(now + self.pause);
            }
        });
    }

    fn with<T>(&self, teacher: &str, change: impl FnOnce(&mut State) -> T) -> T {
        let mut states = self.states.lock().expect("no code panics while it holds the states");
        change(states.entry(teacher.to_owned()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_open_the_circuit_for_a_while() {
        let breaker = Breaker::new(2, Duration::from_secs(30));
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        breaker.failed("t", start);
        assert!(breaker.check("t", start).is_ok());
        breaker.answered("t");
        breaker.failed("t", start);
        breaker.failed("t", start);
        assert!(breaker.check("t", start).is_err_and(|open| open.failures == 2 && open.wait.as_secs() == 30));
        assert!(breaker.check("other", start).is_ok());
        assert!(breaker.check("t", after(31)).is_ok());
        breaker.failed("t", after(31));
        assert!(breaker.check("t", after(32)).is_err());
        breaker.answered("t");
        breaker.failed("t", after(62));
        assert!(breaker.check("t", after(62)).is_ok());
    }
}
