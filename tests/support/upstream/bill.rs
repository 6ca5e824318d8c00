//! The teacher's own bill, added up without the ledger's code: whole pico-dollars, no rounding.
//! Knows tokens and prices; must not know what was asked or answered.
//! Invariant: a bill is the sum of its charges.

/// Dollars a million tokens, as the configuration of the tests writes them.
pub(crate) const INPUT: &str = "0.15";
pub(crate) const CACHED: &str = "0.075";
pub(crate) const OUTPUT: &str = "0.60";

/// The same in nano-dollars a token.
const INPUT_NANOS: u64 = 150;
const CACHED_NANOS: u64 = 75;
const OUTPUT_NANOS: u64 = 600;

/// One request that was begun.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Charge {
    pub(crate) key: String,
    /// Choices, texts or rows: what money counts.
    pub(crate) inferences: u64,
    pub(crate) input_tokens: u64,
    /// The part of `input_tokens` that was read from the teacher's own cache.
    pub(crate) cached_tokens: u64,
    pub(crate) output_tokens: u64,
    /// What was asked for: one entry an item.
    pub(crate) items: Vec<String>,
}

/// The sum of some charges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bill {
    pub(crate) requests: u64,
    pub(crate) inferences: u64,
    pub(crate) tokens: u64,
    pub(crate) nanos: u64,
}

impl Bill {
    pub(crate) fn of(charges: &[Charge], counts: impl Fn(&Charge) -> bool) -> Bill {
        charges.iter().filter(|charge| counts(charge)).fold(Bill::default(), |bill, charge| Bill {
            requests: bill.requests + 1,
            inferences: bill.inferences + charge.inferences,
            tokens: bill.tokens + charge.input_tokens + charge.output_tokens,
            nanos: bill.nanos
                + (charge.input_tokens - charge.cached_tokens) * INPUT_NANOS
                + charge.cached_tokens * CACHED_NANOS
                + charge.output_tokens * OUTPUT_NANOS,
        })
    }

    /// Dollars with nine places, as a statement writes them.
    pub(crate) fn usd(&self) -> String {
        format!("{}.{:09}", self.nanos / 1_000_000_000, self.nanos % 1_000_000_000)
    }
}
