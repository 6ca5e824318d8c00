//! Amounts: calls (inferences), tokens and dollars, all integers.
//!
//! Must not know what is paid for. Invariant: no operation wraps, rounds down a price, or touches a float.

use std::fmt;
use std::str::FromStr;

use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use serde::{Deserialize, Serialize};

/// Nano-dollars in one dollar.
const NANOS: u64 = 1_000_000_000;

/// An amount of money in integer nano-dollars (10⁻⁹ dollar); prints as dollars with nine places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Usd(u64);

/// Why a text is no amount of dollars.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UsdError {
    /// Not a decimal number.
    #[error("`{0}` is not a decimal amount of dollars")]
    NotDecimal(String),
    /// Below zero.
    #[error("`{0}` is negative")]
    Negative(String),
    /// Finer than a nano-dollar.
    #[error("`{0}` has more than nine places after the point")]
    TooFine(String),
    /// Beyond what 64 bits of nano-dollars hold.
    #[error("`{0}` is larger than 18 billion dollars")]
    TooLarge(String),
}

impl Usd {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// An amount of `nanos` nano-dollars.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// The amount in nano-dollars.
    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// The sum, or none where it does not fit.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// The difference, or none where `other` is larger.
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    /// Splits the amount by `weights` into shares that add up exactly (largest remainder; ties go to the earlier item).
    ///
    /// Weights of zero in sum count as equal weights.
    pub fn split(self, weights: &[u64]) -> Vec<Self> {
        split(self.0, weights).into_iter().map(Self).collect()
    }
}

/// Splits `whole` by `weights` into integer shares that add up exactly (largest remainder, earlier item first).
pub fn split(whole: u64, weights: &[u64]) -> Vec<u64> {
    let equal = vec![1; weights.len()];
    let weights = if weights.iter().all(|weight| *weight == 0) { &equal } else { weights };
    let total: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    let mut shares = Vec::with_capacity(weights.len());
    let mut remainders = Vec::with_capacity(weights.len());
    for (index, weight) in weights.iter().enumerate() {
        let product = u128::from(whole) * u128::from(*weight);
        shares.push(u64::try_from(product / total).expect("a share is no larger than the whole"));
        remainders.push((std::cmp::Reverse(product % total), index));
    }
    let rest = whole - shares.iter().sum::<u64>();
    remainders.sort_unstable();
    for (_, index) in
        remainders.into_iter().take(usize::try_from(rest).expect("the rest is below the item count"))
    {
        shares[index] += 1;
    }
    shares
}

impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}", self.0 / NANOS, self.0 % NANOS)
    }
}

impl FromStr for Usd {
    type Err = UsdError;

    fn from_str(text: &str) -> Result<Self, UsdError> {
        let decimal = Decimal::from_str_exact(text).map_err(|_| UsdError::NotDecimal(text.to_owned()))?;
        if decimal.is_sign_negative() && !decimal.is_zero() {
            return Err(UsdError::Negative(text.to_owned()));
        }
        let nanos =
            decimal.checked_mul(Decimal::from(NANOS)).ok_or_else(|| UsdError::TooLarge(text.to_owned()))?;
        if !nanos.fract().is_zero() {
            return Err(UsdError::TooFine(text.to_owned()));
        }
        nanos.to_u64().map(Self).ok_or_else(|| UsdError::TooLarge(text.to_owned()))
    }
}

/// What was spent, held or doubted, in the three units that a budget may limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// Inferences: each choice of a chat, each text embedded, each row of a tensor.
    pub calls: u64,
    /// Tokens of every kind, input and output.
    pub tokens: u64,
    /// Nano-dollars.
    pub usd: Usd,
}

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self { calls: 0, tokens: 0, usd: Usd::ZERO };

    /// The sum in each unit, or none where one does not fit.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        Some(Self {
            calls: self.calls.checked_add(other.calls)?,
            tokens: self.tokens.checked_add(other.tokens)?,
            usd: self.usd.checked_add(other.usd)?,
        })
    }

    /// The difference in each unit, or none where one would be negative.
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        Some(Self {
            calls: self.calls.checked_sub(other.calls)?,
            tokens: self.tokens.checked_sub(other.tokens)?,
            usd: self.usd.checked_sub(other.usd)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<&str, UsdError>) {
        assert_eq!(text.parse::<Usd>().map(|usd| usd.to_string()), expected.map(str::to_owned));
    }

    #[test]
    fn dollars_are_read_exactly() {
        check("20.00", Ok("20.000000000"));
        check("0.000000001", Ok("0.000000001"));
        check("0", Ok("0.000000000"));
        check("-0", Ok("0.000000000"));
        check("1234567.123456789", Ok("1234567.123456789"));
        check("0.0000000001", Err(UsdError::TooFine("0.0000000001".into())));
        check("-1", Err(UsdError::Negative("-1".into())));
        check("1e3", Err(UsdError::NotDecimal("1e3".into())));
        check("twenty", Err(UsdError::NotDecimal("twenty".into())));
        check("", Err(UsdError::NotDecimal(String::new())));
        check("99999999999999", Err(UsdError::TooLarge("99999999999999".into())));
    }

    #[test]
    fn a_tie_goes_to_the_earlier_item() {
        assert_eq!(split(10, &[1, 1, 1]), [4, 3, 3]);
        assert_eq!(split(11, &[1, 1, 1]), [4, 4, 3]);
        assert_eq!(split(5, &[0, 0]), [3, 2]);
        assert_eq!(split(0, &[3, 4]), [0, 0]);
        assert_eq!(split(7, &[1, 0, 6]), [1, 0, 6]);
    }

    proptest! {
        #[test]
        fn shares_add_up(whole: u64, weights in prop::collection::vec(any::<u64>(), 1..40)) {
            let shares = split(whole, &weights);
            prop_assert_eq!(shares.iter().map(|share| u128::from(*share)).sum::<u128>(), u128::from(whole));
            let total: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
            for (share, weight) in shares.iter().zip(&weights) {
                let exact = u128::from(whole) * u128::from(*weight);
                // Weights of zero in sum count as equal ones.
                let Some(floor) = exact.checked_div(total) else { continue };
                prop_assert!(u128::from(*share) == floor || u128::from(*share) == floor + 1);
            }
        }
    }
}
