//! The baseline of the demonstration: logistic regression on hashed byte n-grams, fitted to the same answers.
//!
//! It must not know how students are trained. Invariants: it sees the training part to fit, the validation part to
//! choose its strength and its targets, and the test part once; and it is fitted to its optimum, not cut short, so that
//! whoever beats it beats the method and not its haste.
//!
//! The weights of such a regression are sums of training rows, so it is fitted in their coefficients (n examples by C
//! classes instead of 2^18 buckets by C), by Newton steps with Böhning's bound on the Hessian, accelerated.

use std::collections::BTreeSet;

use candle_core::{D, DType, Device, Result, Tensor};

use crate::example::{Example, Input, PADDING, Split, Target};

/// The longest n-gram.
const ORDERS: usize = 4;
/// The buckets that n-grams are hashed to.
const BUCKETS: u64 = 1 << 18;
/// The strengths of the penalty that are tried.
const STRENGTHS: [f64; 5] = [1e-4, 1e-5, 1e-6, 1e-7, 1e-8];
/// The most steps of one fit.
const STEPS: usize = 300;
/// A fit ends when no score of a training row moves by more.
const STILL: f32 = 1e-4;

/// Why the baseline cannot be fitted.
#[derive(Debug, thiserror::Error)]
pub enum BaselineError {
    /// The inputs are no bytes.
    #[error("the baseline reads bytes, but the input of `{key}` is none")]
    Input {
        /// The example.
        key: String,
    },
    /// An example without an answer.
    #[error("`{key}` has no recorded answer")]
    Unanswered {
        /// The example.
        key: String,
    },
    /// The arithmetic failed.
    #[error("the baseline could not be computed")]
    Arithmetic(#[from] candle_core::Error),
}

/// What the baseline came to.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Baseline {
    /// The share of the test part where it names the teacher's class.
    pub agreement: f64,
    /// The same share of the validation part, by which the two settings were chosen.
    pub validation: f64,
    /// The strength of the penalty that was chosen.
    pub strength: f64,
    /// Whether it was fitted to the teacher's probabilities, else to its classes.
    pub probabilities: bool,
}

/// A row of features: buckets in ascending order, with values.
type Row = Vec<(u32, f32)>;

/// Fits the baseline to the training part, chooses by the validation part, and scores it on the test part.
///
/// # Errors
/// When an input is no bytes or an example has no answer.
pub fn fit(split: &Split) -> std::result::Result<Baseline, BaselineError> {
    let train = features(&split.train)?;
    let kernel = |examples: &[Example]| -> std::result::Result<Tensor, BaselineError> {
        Ok(products(&features(examples)?, &train)?)
    };
    let (within, validation, test) =
        (products(&train, &train)?, kernel(&split.validation)?, kernel(&split.test)?);
    let labels =
        |examples: &[Example]| examples.iter().map(label).collect::<std::result::Result<Vec<u32>, _>>();
    let (of_train, of_validation, of_test) =
        (labels(&split.train)?, labels(&split.validation)?, labels(&split.test)?);
    let seen: Vec<u32> = of_train.iter().copied().collect::<BTreeSet<u32>>().into_iter().collect();
    let targets = [(false, certain(&of_train, &seen)?), (true, probable(&split.train, &seen)?)];
    let mut best: Option<(Baseline, Tensor)> = None;
    for strength in STRENGTHS {
        let step = inverse(&within, strength)?;
        for (probabilities, target) in &targets {
            let coefficients = optimum(&within, &step, target, strength)?;
            let share = agreement(&validation.matmul(&coefficients)?, &seen, &of_validation)?;
            if best.as_ref().is_none_or(|(before, _)| share > before.validation) {
                let chosen =
                    Baseline { agreement: 0.0, validation: share, strength, probabilities: *probabilities };
                best = Some((chosen, coefficients));
            }
        }
    }
    let (chosen, coefficients) = best.expect("there is at least one strength");
    let agreement = agreement(&test.matmul(&coefficients)?, &seen, &of_test)?;
    Ok(Baseline { agreement, ..chosen })
}

fn label(example: &Example) -> std::result::Result<u32, BaselineError> {
    let unanswered = || BaselineError::Unanswered { key: example.key.clone() };
    example.target.as_ref().map(Target::label).ok_or_else(unanswered)
}

/// log(1 + count) of the n-grams of each example, at unit length, with a constant for the intercept.
fn features(examples: &[Example]) -> std::result::Result<Vec<Row>, BaselineError> {
    let row = |example: &Example| match &example.input {
        Input::Bytes(symbols) => Ok(grams(symbols)),
        Input::Vector(_) => Err(BaselineError::Input { key: example.key.clone() }),
    };
    examples.iter().map(row).collect()
}

fn grams(symbols: &[u16]) -> Row {
    let mut buckets: Vec<u32> = Vec::with_capacity(symbols.len() * ORDERS);
    for start in 0..symbols.len() {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for symbol in symbols[start..].iter().take(ORDERS).take_while(|symbol| **symbol != PADDING) {
            hash = (hash ^ u64::from(symbol + 1)).wrapping_mul(0x0100_0000_01b3);
            // The low bits of this hash are its weak ones.
            let mixed = (hash ^ (hash >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            buckets.push(u32::try_from(mixed % BUCKETS).expect("a bucket is below 2^18"));
        }
    }
    buckets.sort_unstable();
    let counted = buckets.chunk_by(|a, b| a == b);
    #[expect(clippy::cast_precision_loss, reason = "a count of some thousands")]
    let mut row: Row = counted.map(|same| (same[0], (same.len() as f32).ln_1p())).collect();
    let length = row.iter().map(|(_, value)| value * value).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    row.iter_mut().for_each(|(_, value)| *value /= length);
    row.push((u32::MAX, 1.0));
    row
}

/// The inner products of all `rows` with all `train` rows, `[rows, train]`.
fn products(rows: &[Row], train: &[Row]) -> Result<Tensor> {
    let mut index: Vec<(u32, u32, f32)> = train
        .iter()
        .zip(0_u32..)
        .flat_map(|(row, at)| row.iter().map(move |(bucket, value)| (*bucket, at, *value)))
        .collect();
    index.sort_unstable_by_key(|(bucket, at, _)| (*bucket, *at));
    let mut starts: std::collections::HashMap<u32, (usize, usize)> = std::collections::HashMap::new();
    let mut start = 0;
    for same in index.chunk_by(|a, b| a.0 == b.0) {
        starts.insert(same[0].0, (start, start + same.len()));
        start += same.len();
    }
    let mut values = vec![0_f32; rows.len() * train.len()];
    for (row, sums) in rows.iter().zip(values.chunks_mut(train.len().max(1))) {
        for (bucket, value) in row {
            let Some((start, end)) = starts.get(bucket) else { continue };
            for (_, at, other) in &index[*start..*end] {
                sums[*at as usize] += value * other;
            }
        }
    }
    Tensor::from_vec(values, (rows.len(), train.len()), &Device::Cpu)
}

/// One for the class of each example, among the classes seen.
fn certain(labels: &[u32], seen: &[u32]) -> Result<Tensor> {
    let mut values = Vec::with_capacity(labels.len() * seen.len());
    for label in labels {
        values.extend(seen.iter().map(|class| if class == label { 1.0_f32 } else { 0.0 }));
    }
    Tensor::from_vec(values, (labels.len(), seen.len()), &Device::Cpu)
}

/// The teacher's probabilities of the classes seen, scaled to sum to one.
fn probable(examples: &[Example], seen: &[u32]) -> Result<Tensor> {
    let mut values = Vec::with_capacity(examples.len() * seen.len());
    for example in examples {
        let row: Vec<f32> = match &example.target {
            Some(Target::Logits(scores) | Target::LogProbabilities(scores)) => {
                seen.iter().map(|class| scores[*class as usize]).collect()
            }
            Some(Target::Label(label)) => {
                seen.iter().map(|class| if class == label { 0.0 } else { f32::NEG_INFINITY }).collect()
            }
            None => vec![0.0; seen.len()],
        };
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let raised: Vec<f32> = row.iter().map(|score| (score - most).exp()).collect();
        let sum: f32 = raised.iter().sum();
        values.extend(raised.iter().map(|value| value / sum));
    }
    Tensor::from_vec(values, (examples.len(), seen.len()), &Device::Cpu)
}

/// The inverse of K / 2n + 2 strength I, by Cholesky's factor.
#[expect(clippy::needless_range_loop, reason = "the indices are those of the formulas")]
fn inverse(kernel: &Tensor, strength: f64) -> Result<Tensor> {
    let n = kernel.dim(0)?;
    let mut factor: Vec<Vec<f64>> = kernel.to_dtype(DType::F64)?.to_vec2()?;
    for i in 0..n {
        for j in 0..=i {
            factor[i][j] /= 2.0 * n as f64;
        }
        factor[i][i] += 2.0 * strength;
    }
    for i in 0..n {
        let (above, rest) = factor.split_at_mut(i);
        let row = &mut rest[0];
        for j in 0..i {
            let dot: f64 = above[j][..j].iter().zip(&row[..j]).map(|(a, b)| a * b).sum();
            row[j] = (row[j] - dot) / above[j][j];
        }
        let square: f64 = row[..i].iter().map(|value| value * value).sum();
        // Rounding must not make a pivot of a singular kernel negative: the penalty is its floor.
        row[i] = (row[i] - square).max(strength).sqrt();
    }
    // The inverse of the factor, column by column, kept as rows of its transpose.
    let mut inverted = vec![vec![0_f64; n]; n];
    for column in 0..n {
        let below = &mut inverted[column];
        below[column] = 1.0 / factor[column][column];
        for i in column + 1..n {
            let dot: f64 = factor[i][column..i].iter().zip(&below[column..i]).map(|(a, b)| a * b).sum();
            below[i] = -dot / factor[i][i];
        }
    }
    let transposed = Tensor::new(inverted, &Device::Cpu)?;
    transposed.matmul(&transposed.t()?)?.to_dtype(DType::F32)
}

/// The coefficients where mean cross-entropy plus `strength` times the squared weights is least.
fn optimum(kernel: &Tensor, step: &Tensor, target: &Tensor, strength: f64) -> Result<Tensor> {
    let n = kernel.dim(0)? as f64;
    let mut here = target.zeros_like()?;
    let mut ahead = here.clone();
    let mut scores = target.zeros_like()?;
    let mut momentum = 1.0_f64;
    for _ in 0..STEPS {
        let residual = (candle_nn::ops::softmax(&kernel.matmul(&ahead)?, D::Minus1)? - target)?;
        let slope = ((residual / n)? + (&ahead * (2.0 * strength))?)?;
        let next = (&ahead - step.matmul(&slope)?)?;
        let next_scores = kernel.matmul(&next)?;
        let moved = (&next_scores - &scores)?.abs()?.max_all()?.to_scalar::<f32>()?;
        // A step back against the way gone means that the momentum overshot: it starts anew.
        let against = ((&ahead - &next)? * (&next - &here)?)?.sum_all()?.to_scalar::<f32>()?;
        if against > 0.0 {
            momentum = 1.0;
        }
        let next_momentum = f64::midpoint(1.0, (1.0 + 4.0 * momentum * momentum).sqrt());
        ahead = (&next + ((&next - &here)? * ((momentum - 1.0) / next_momentum))?)?;
        (here, scores, momentum) = (next, next_scores, next_momentum);
        if moved < STILL {
            break;
        }
    }
    Ok(here)
}

/// The share of rows whose highest score is that of the teacher's class.
#[expect(clippy::cast_precision_loss, reason = "a count of examples")]
fn agreement(scores: &Tensor, seen: &[u32], labels: &[u32]) -> Result<f64> {
    let named = scores.argmax(D::Minus1)?.to_vec1::<u32>()?;
    let agreed = named.iter().zip(labels).filter(|(place, label)| seen[**place as usize] == **label).count();
    Ok(agreed as f64 / labels.len().max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(key: usize, class: u32, words: [&str; 2]) -> Example {
        let written = format!("{} {key} {} {}", words[key % 2], words[(key / 2) % 2], key * 7919 % 1000);
        let mut symbols: Vec<u16> = written.bytes().map(u16::from).collect();
        symbols.resize(64, PADDING);
        let target = Some(Target::LogProbabilities(match class {
            0 => vec![0.9_f32.ln(), 0.1_f32.ln()],
            _ => vec![0.1_f32.ln(), 0.9_f32.ln()],
        }));
        Example { key: key.to_string(), input: Input::Bytes(symbols), target, truth: None, hidden: vec![] }
    }

    fn part(from: usize, count: usize) -> Vec<Example> {
        (from..from + count)
            .map(|key| match key % 3 {
                0 => text(key, 0, ["alpha", "beta"]),
                _ => text(key, 1, ["gamma", "delta"]),
            })
            .collect()
    }

    #[test]
    fn what_can_be_told_by_its_words_is_told() {
        let split = Split {
            train: part(0, 60),
            validation: part(100, 30),
            test: part(200, 90),
            classes: vec!["a".into(), "b".into()],
            ..Split::default()
        };
        let baseline = fit(&split).unwrap();
        assert!(baseline.agreement > 0.97 && baseline.validation > 0.97, "{baseline:?}");
    }

    /// Half the `decision_function` of scikit-learn 1.9.1's
    /// `LogisticRegression(C=25, fit_intercept=False, tol=1e-12).fit(rows, [0, 1, 1, 1])`: our mean over four rows and
    /// strength 0.01 on two columns of weights is their sum with C = 1 / (4 * 0.01) on one column twice as long.
    #[test]
    fn a_fit_ends_at_the_optimum() {
        let rows = [[1.0_f32, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]];
        let rows: Vec<Row> = rows.iter().map(|row| vec![(0, row[0]), (1, row[1])]).collect();
        let kernel = products(&rows, &rows).unwrap();
        let strength = 0.01;
        let target = certain(&[0, 1, 1, 1], &[0, 1]).unwrap();
        let coefficients = optimum(&kernel, &inverse(&kernel, strength).unwrap(), &target, strength).unwrap();
        let scores = kernel.matmul(&coefficients).unwrap();
        let found: Vec<f32> = scores.get_on_dim(1, 1).unwrap().to_vec1().unwrap();
        let expected = [-0.662_771_5, 0.662_771_5, 1.988_314_6, 1.988_314_6];
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 2e-3, "{found} instead of {expected}");
        }
    }

    #[test]
    fn an_input_that_is_no_bytes_is_named() {
        let vector = Example {
            key: "k".into(),
            input: Input::Vector(vec![1.0]),
            target: None,
            truth: None,
            hidden: vec![],
        };
        let split = Split { train: vec![vector], ..Split::default() };
        let error = fit(&split).expect_err("a vector has no n-grams").to_string();
        assert_eq!(error, "the baseline reads bytes, but the input of `k` is none");
    }
}
