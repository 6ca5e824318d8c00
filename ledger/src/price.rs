//! Dated prices: an upper bound before a call ([`Quote`]), the exact fee after it.
//!
//! Must not know any dialect. Invariants: a quote is an upper bound or says by name why there is none; a fee is
//! computed in integers and rounded up once, to the next nano-dollar.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::answer::Usage;
use crate::money::{Amount, Usd};
use crate::time::{Day, Timestamp};

/// Prices are per this many tokens.
const PER_TOKENS: u128 = 1_000_000;

/// What one model costs from a day on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    /// The model's exact name.
    pub model: String,
    /// The first day (UTC) it is valid.
    pub from: Day,
    /// Dollars a million fresh input tokens.
    pub input: Usd,
    /// Dollars a million input tokens read from the provider's prompt cache; `input` where absent.
    pub cached_input: Option<Usd>,
    /// Dollars a million input tokens written to the provider's prompt cache; `input` where absent.
    pub cache_write: Option<Usd>,
    /// Dollars a million output tokens.
    pub output: Usd,
    /// Dollars a million reasoning tokens; `output` where absent.
    pub reasoning: Option<Usd>,
    /// Dollars a call (inference).
    pub request: Usd,
    /// The most input tokens that the model takes.
    pub max_input_tokens: Option<u64>,
    /// The most output tokens that the model gives to one choice.
    pub max_output_tokens: Option<u64>,
}

/// The first 16 hex digits of BLAKE3 over a price: which version of it a fee was computed with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PriceDigest(pub String);

/// How large a request's input may be, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputBound {
    /// The API does not bill input tokens.
    Unmetered,
    /// Plain inline text: no more tokens than this many bytes (the dialect's overhead included).
    Bytes(u64),
    /// Images, files, URLs, token ids of unknown expansion: only the model's own maximum bounds it.
    Opaque,
}

/// How large one choice of an answer may be, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputBound {
    /// The API does not bill output tokens.
    Unmetered,
    /// The client's own limit.
    Client(u64),
    /// Only the model's own maximum bounds it.
    Model,
}

/// The worst case of one exchange, as its dialect reads it off the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Inferences.
    pub calls: u64,
    /// Input of the whole exchange.
    pub input: InputBound,
    /// Output of one choice.
    pub output: OutputBound,
    /// Choices, each of up to `output`.
    pub choices: u64,
    /// A part that no token count bounds (a hosted tool, server-side state, predicted outputs), by its name.
    pub unbounded: Option<String>,
}

/// Why there is no upper bound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Unbounded {
    /// The price book has no price for the model today.
    #[error("model `{0}` has no price")]
    NoPrice(String),
    /// The request's input is bounded only by the model, and the price book does not say how.
    #[error("the input is not plain text, and model `{0}` has no `max_input_tokens` in the price book")]
    NoInputMaximum(String),
    /// The request sets no output limit, and the price book has none.
    #[error("the request sets no output limit, and model `{0}` has no `max_output_tokens` in the price book")]
    NoOutputMaximum(String),
    /// The request holds something whose cost nothing bounds.
    #[error("`{0}` has no bounded cost")]
    Part(String),
    /// The bound does not fit 64 bits.
    #[error("the upper bound for model `{0}` is too large to count")]
    TooLarge(String),
}

/// The upper bound of one exchange, made before anybody is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quote {
    /// Inferences.
    pub calls: u64,
    /// Tokens of all kinds.
    pub tokens: Result<u64, Unbounded>,
    /// Dollars.
    pub usd: Result<Usd, Unbounded>,
    /// The price used.
    pub price: Option<PriceDigest>,
    /// Whether the API bills tokens at all.
    pub metered: bool,
}

/// What an exchange cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fee {
    /// The amount.
    pub amount: Amount,
    /// Whether the answer stated no usage, so that the whole hold was charged.
    pub whole_hold: bool,
}

/// All prices, by model and day.
#[derive(Clone, Debug, Default)]
pub struct PriceBook(BTreeMap<String, BTreeMap<Day, Price>>);

/// Two prices for one model from one day.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("model `{model}` has two prices from {from}")]
pub struct PriceConflict {
    /// The model.
    pub model: String,
    /// The day.
    pub from: Day,
}

impl PriceBook {
    /// A book of these prices.
    ///
    /// # Errors
    /// Two prices for one model from one day.
    pub fn new(prices: impl IntoIterator<Item = Price>) -> Result<Self, PriceConflict> {
        let mut book: BTreeMap<String, BTreeMap<Day, Price>> = BTreeMap::new();
        for price in prices {
            let days = book.entry(price.model.clone()).or_default();
            if days.contains_key(&price.from) {
                return Err(PriceConflict { model: price.model, from: price.from });
            }
            days.insert(price.from, price);
        }
        Ok(Self(book))
    }

    /// The price of `model` that is valid at `at`.
    pub fn at(&self, model: &str, at: Timestamp) -> Option<&Price> {
        self.0.get(model)?.range(..=at.day()).next_back().map(|(_, price)| price)
    }

    /// All prices, by model, then day.
    pub fn iter(&self) -> impl Iterator<Item = &Price> {
        self.0.values().flat_map(BTreeMap::values)
    }
}

impl Price {
    /// Which version of the price this is.
    pub fn digest(&self) -> PriceDigest {
        let text = serde_json::to_string(self).expect("a price is plain data");
        PriceDigest(blake3::hash(text.as_bytes()).to_hex()[..16].to_owned())
    }

    /// What `usage` over `calls` inferences costs, rounded up to the next nano-dollar; none where it does not fit.
    pub fn fee(&self, calls: u64, usage: &Usage) -> Option<Usd> {
        let parts = [
            (usage.input, self.input),
            (usage.cached_input, self.cached_input.unwrap_or(self.input)),
            (usage.cache_write, self.cache_write.unwrap_or(self.input)),
            (usage.output, self.output),
            (usage.reasoning, self.reasoning.unwrap_or(self.output)),
        ];
        let mut micro: u128 = 0;
        for (tokens, rate) in parts {
            micro = micro.checked_add(u128::from(tokens) * u128::from(rate.nanos()))?;
        }
        let requests = u128::from(calls) * u128::from(self.request.nanos());
        let nanos = micro.div_ceil(PER_TOKENS).checked_add(requests)?;
        u64::try_from(nanos).ok().map(Usd::from_nanos)
    }

    /// The dearest that `input` and `output` tokens over `calls` inferences can be.
    fn worst(&self, calls: u64, input: u64, output: u64) -> Option<Usd> {
        let [fresh, cached, written] = [Some(self.input), self.cached_input, self.cache_write];
        let dearest_input = [fresh, cached, written].into_iter().flatten().max().unwrap_or_default();
        let dearest_output = self.reasoning.unwrap_or_default().max(self.output);
        let worst = Self {
            input: dearest_input,
            output: dearest_output,
            cached_input: None,
            cache_write: None,
            reasoning: None,
            ..self.clone()
        };
        worst.fee(calls, &Usage { input, output, ..Usage::default() })
    }
}

impl Quote {
    /// The upper bound of an exchange with `bound` at `price`.
    pub fn new(model: &str, price: Option<&Price>, bound: &Bound) -> Self {
        let metered = (bound.input, bound.output) != (InputBound::Unmetered, OutputBound::Unmetered);
        let sides = Self::sides(model, price, bound);
        let tokens = sides.clone().and_then(|(input, output)| {
            input.checked_add(output).ok_or_else(|| Unbounded::TooLarge(model.to_owned()))
        });
        let usd = match price {
            None => Err(Unbounded::NoPrice(model.to_owned())),
            Some(price) => sides.and_then(|(input, output)| {
                price.worst(bound.calls, input, output).ok_or_else(|| Unbounded::TooLarge(model.to_owned()))
            }),
        };
        Self { calls: bound.calls, tokens, usd, price: price.map(Price::digest), metered }
    }

    /// The most input and output tokens.
    fn sides(model: &str, price: Option<&Price>, bound: &Bound) -> Result<(u64, u64), Unbounded> {
        if let Some(part) = &bound.unbounded {
            return Err(Unbounded::Part(part.clone()));
        }
        let input = match bound.input {
            InputBound::Unmetered => 0,
            InputBound::Bytes(bytes) => bytes,
            InputBound::Opaque => price
                .and_then(|price| price.max_input_tokens)
                .ok_or_else(|| Unbounded::NoInputMaximum(model.to_owned()))?,
        };
        let choice = match bound.output {
            OutputBound::Unmetered => 0,
            OutputBound::Client(tokens) => tokens,
            OutputBound::Model => price
                .and_then(|price| price.max_output_tokens)
                .ok_or_else(|| Unbounded::NoOutputMaximum(model.to_owned()))?,
        };
        let output =
            choice.checked_mul(bound.choices).ok_or_else(|| Unbounded::TooLarge(model.to_owned()))?;
        Ok((input, output))
    }

    /// The hold that this quote asks for; units without a bound count as zero (a budget on them refuses before).
    pub fn hold(&self) -> Amount {
        Amount {
            calls: self.calls,
            tokens: *self.tokens.as_ref().unwrap_or(&0),
            usd: *self.usd.as_ref().unwrap_or(&Usd::ZERO),
        }
    }
}

/// The fee of an exchange: by its usage where the answer states one, else the whole hold.
pub fn fee(price: Option<&Price>, metered: bool, hold: Amount, usage: Option<&Usage>) -> Fee {
    let whole = Fee { amount: hold, whole_hold: metered };
    let Some(usage) = usage else { return whole };
    let usd = match price {
        None => Some(Usd::ZERO),
        Some(price) => price.fee(hold.calls, usage),
    };
    match usd {
        Some(usd) => {
            Fee { amount: Amount { calls: hold.calls, tokens: usage.total(), usd }, whole_hold: false }
        }
        None => whole,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn usd(text: &str) -> Usd {
        text.parse().unwrap()
    }

    fn price(from: &str, input: &str) -> Price {
        Price {
            model: "m".into(),
            from: from.parse().unwrap(),
            input: usd(input),
            cached_input: Some(usd("0.10")),
            cache_write: None,
            output: usd("1.60"),
            reasoning: None,
            request: usd("0.001"),
            max_input_tokens: None,
            max_output_tokens: Some(100),
        }
    }

    #[test]
    fn the_latest_price_up_to_the_day_is_valid() {
        let book = PriceBook::new([price("2026-01-01", "1"), price("2026-06-01", "2")]).unwrap();
        let at = |day: &str| {
            book.at("m", day.parse::<Day>().unwrap().start()).map(|price| price.input.to_string())
        };
        assert_eq!(at("2025-12-31"), None);
        assert_eq!(at("2026-05-31").as_deref(), Some("1.000000000"));
        assert_eq!(at("2026-06-01").as_deref(), Some("2.000000000"));
        assert!(PriceBook::new([price("2026-01-01", "1"), price("2026-01-01", "2")]).is_err());
    }

    #[test]
    fn a_fee_is_exact_and_rounded_up_once() {
        // 7 x 0.40 + 3 x 0.10 + 2 x 1.60 dollars a million tokens, and one request.
        let usage = Usage { input: 7, cached_input: 3, output: 2, ..Usage::default() };
        assert_eq!(price("2026-01-01", "0.40").fee(1, &usage).unwrap().to_string(), "0.001006300");
        let odd = Price { request: Usd::ZERO, ..price("2026-01-01", "0.000333333") };
        assert_eq!(odd.fee(1, &Usage { input: 1, ..Usage::default() }), Some(Usd::from_nanos(1)));
        assert_eq!(odd.fee(1, &Usage { input: u64::MAX, output: u64::MAX, ..Usage::default() }), None);
    }

    #[test]
    fn what_has_no_bound_is_named() {
        let bound = |input, output, unbounded: Option<&str>| Bound {
            calls: 2,
            input,
            output,
            choices: 2,
            unbounded: unbounded.map(str::to_owned),
        };
        let price = price("2026-01-01", "0.40");
        let quote = |price, bound: Bound| {
            let quote = Quote::new("m", price, &bound);
            (
                quote.tokens.map_err(|why| why.to_string()),
                quote.usd.map(|usd| usd.to_string()).map_err(|why| why.to_string()),
            )
        };
        let text = bound(InputBound::Bytes(10), OutputBound::Model, None);
        assert_eq!(quote(Some(&price), text.clone()), (Ok(210), Ok("0.002324000".into())));
        let no_output =
            "the request sets no output limit, and model `m` has no `max_output_tokens` in the price book";
        assert_eq!(quote(None, text), (Err(no_output.into()), Err("model `m` has no price".into())));
        let opaque = bound(InputBound::Opaque, OutputBound::Client(5), None);
        let no_input =
            "the input is not plain text, and model `m` has no `max_input_tokens` in the price book";
        assert_eq!(quote(Some(&price), opaque), (Err(no_input.into()), Err(no_input.into())));
        let tool = bound(InputBound::Bytes(1), OutputBound::Client(5), Some("web_search"));
        assert_eq!(quote(Some(&price), tool).0, Err("`web_search` has no bounded cost".into()));
        let rows = bound(InputBound::Unmetered, OutputBound::Unmetered, None);
        assert_eq!(quote(Some(&price), rows), (Ok(0), Ok("0.002000000".into())));
    }

    proptest! {
        #[test]
        fn no_fee_within_the_bound_is_above_the_quote(
            rates in prop::array::uniform5(0u64..10_000_000_000), split in prop::array::uniform3(0u64..5000),
            output in 0u64..5000, reasoning in 0u64..5000, calls in 1u64..9,
        ) {
            let rate = |index: usize| Usd::from_nanos(rates[index]);
            let price = Price {
                input: rate(0), cached_input: Some(rate(1)), cache_write: Some(rate(2)), output: rate(3),
                reasoning: Some(rate(4)), ..price("2026-01-01", "1")
            };
            let usage = Usage { input: split[0], cached_input: split[1], cache_write: split[2], output, reasoning };
            let bound = Bound {
                calls, input: InputBound::Bytes(split.iter().sum()), output: OutputBound::Client(output + reasoning),
                choices: 1, unbounded: None,
            };
            let quote = Quote::new("m", Some(&price), &bound);
            prop_assert!(price.fee(calls, &usage).unwrap() <= quote.usd.unwrap());
            prop_assert!(usage.total() <= quote.tokens.unwrap());
        }
    }
}
