//! How good a model's outputs are, and how sure that is over seeds.
//!
//! Pure numbers: it must not know tensors, students or files. Invariants: an interval needs two values or more and is
//! absent otherwise; paired differences are taken seed by seed.

use serde::Serialize;

use crate::example::{Example, argmax, softmax};

/// The bins of the expected calibration error, as in arXiv 1706.04599.
const BINS: usize = 15;

/// What one model scores on one part of a split; absent where nothing is known to score by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scores {
    /// The share of the right classes, where the truth is known.
    pub(crate) accuracy: Option<f64>,
    /// The share of the classes that the teacher names too, where it answered.
    pub(crate) agreement: Option<f64>,
    /// The expected calibration error against the truth, or the teacher's labels without it.
    pub(crate) ece: Option<f64>,
    /// The cross-entropy with the truth, or with the teacher's labels without it.
    pub(crate) loss: Option<f64>,
}

/// Scores logits `[n][C]` by what is known about their examples.
pub(crate) fn score(logits: &[Vec<f32>], examples: &[&Example]) -> Scores {
    let truth: Option<Vec<u32>> = examples.iter().map(|example| example.truth).collect();
    let teacher: Option<Vec<u32>> =
        examples.iter().map(|example| example.target.as_ref().map(|target| target.label())).collect();
    let named: Vec<u32> = logits.iter().map(|row| argmax(row)).collect();
    let share = |classes: &Vec<u32>| {
        let equal = named.iter().zip(classes).filter(|(named, class)| named == class).count();
        equal as f64 / classes.len() as f64
    };
    let reference = truth.as_ref().or(teacher.as_ref());
    let probabilities: Vec<Vec<f64>> = logits.iter().map(|row| softmax(row)).collect();
    Scores {
        accuracy: truth.as_ref().map(share),
        agreement: teacher.as_ref().map(share),
        ece: reference.map(|classes| ece(&probabilities, classes)),
        loss: reference.map(|classes| cross_entropy(logits, classes)),
    }
}

fn cross_entropy(logits: &[Vec<f32>], classes: &[u32]) -> f64 {
    let one = |(row, class): (&Vec<f32>, &u32)| {
        let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|score| f64::from(score - highest).exp()).sum();
        sum.ln() - f64::from(row[*class as usize] - highest)
    };
    logits.iter().zip(classes).map(one).sum::<f64>() / classes.len() as f64
}

fn ece(probabilities: &[Vec<f64>], classes: &[u32]) -> f64 {
    let mut bins = [(0usize, 0.0, 0usize); BINS];
    for (row, class) in probabilities.iter().zip(classes) {
        let (named, sure) =
            row.iter().enumerate().fold((0, 0.0), |best, (at, p)| if *p > best.1 { (at, *p) } else { best });
        // Bins are (low, high]: a value on an edge belongs below it.
        let bin = ((sure * BINS as f64).ceil() as usize).clamp(1, BINS) - 1;
        bins[bin].0 += 1;
        bins[bin].1 += sure;
        bins[bin].2 += usize::from(named == *class as usize);
    }
    let total = classes.len() as f64;
    bins.iter().map(|(_, sure, right)| (sure - *right as f64).abs() / total).sum()
}

/// A measure over seeds: the mean, half of its 95 % interval, and the values behind it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measure {
    /// The mean.
    pub mean: Option<f64>,
    /// Half the width of the 95 % interval of the mean (Student's t); absent for a single value.
    pub ci95: Option<f64>,
    /// One value a seed, in the order of the seeds.
    pub values: Vec<f64>,
}

impl Measure {
    /// Sums up one value a seed.
    #[must_use]
    pub fn of(values: Vec<f64>) -> Self {
        if values.is_empty() {
            return Self { mean: None, ci95: None, values };
        }
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let ci95 = (values.len() > 1).then(|| {
            let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
            student_t(values.len() - 1) * (variance / n).sqrt()
        });
        Self { mean: Some(mean), ci95, values }
    }

    /// The differences `one - two`, seed by seed; the two must be of the same seeds in the same order.
    #[must_use]
    pub fn paired(one: &Self, two: &Self) -> Self {
        Self::of(one.values.iter().zip(&two.values).map(|(one, two)| one - two).collect())
    }
}

/// The four measures of a report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measures {
    /// Against the truth; no values where the data set does not know it.
    pub accuracy: Measure,
    /// With the teacher; no values where it was not asked about the test part.
    pub agreement: Measure,
    /// Expected calibration error.
    pub ece: Measure,
    /// Cross-entropy.
    pub loss: Measure,
}

impl Measures {
    /// Sums up the scores of several seeds.
    pub(crate) fn of(scores: &[Scores]) -> Self {
        let measure =
            |pick: fn(&Scores) -> Option<f64>| Measure::of(scores.iter().filter_map(pick).collect());
        Self {
            accuracy: measure(|scores| scores.accuracy),
            agreement: measure(|scores| scores.agreement),
            ece: measure(|scores| scores.ece),
            loss: measure(|scores| scores.loss),
        }
    }
}

/// The 97.5 % quantile of Student's t, from tables to 30 degrees of freedom and by expansion beyond.
fn student_t(freedom: usize) -> f64 {
    const TABLE: [f64; 30] = [
        12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788,
        2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639,
        2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
    ];
    if let Some(value) = freedom.checked_sub(1).and_then(|at| TABLE.get(at)) {
        return *value;
    }
    let (z, d) = (1.959_964f64, freedom as f64);
    z + (z.powi(3) + z) / (4.0 * d) + (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / (96.0 * d * d)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::{Input, Target};

    fn example(truth: Option<u32>, teacher: Option<u32>) -> Example {
        let input = Input::Vector(vec![0.0]);
        Example { key: "k".into(), input, target: teacher.map(Target::Label), truth, hidden: vec![] }
    }

    #[test]
    fn scores_are_the_textbook_ones() {
        let logits = vec![
            vec![2.0f32.ln(), 0.0],
            vec![0.0, 3.0f32.ln()],
            vec![0.0, 1.0f32.ln()],
            vec![4.0f32.ln(), 0.0],
        ];
        let examples =
            [(0, 0), (1, 0), (1, 1), (1, 0)].map(|(truth, teacher)| example(Some(truth), Some(teacher)));
        let scores = score(&logits, &examples.iter().collect::<Vec<_>>());
        assert_eq!(scores.accuracy, Some(0.5));
        assert_eq!(scores.agreement, Some(0.5));
        // -ln of 2/3, 3/4, 1/2 and 1/5, averaged.
        let loss = [2.0 / 3.0, 0.75, 0.5, 0.2f64].iter().map(|p| -p.ln()).sum::<f64>() / 4.0;
        assert!((scores.loss.unwrap() - loss).abs() < 1e-6);
        // Each in a bin of its own: |2/3 - 1| + |3/4 - 1| + |1/2 - 0| + |4/5 - 0|, over 4.
        let ece = (1.0 / 3.0 + 0.25 + 0.5 + 0.8) / 4.0;
        assert!((scores.ece.unwrap() - ece).abs() < 1e-6, "{:?}", scores.ece);
    }

    #[test]
    fn what_is_not_known_is_not_scored() {
        let logits = vec![vec![1.0, 0.0]; 2];
        let examples = [example(None, Some(0)), example(Some(1), Some(1))];
        let scores = score(&logits, &examples.iter().collect::<Vec<_>>());
        assert_eq!((scores.accuracy, scores.agreement), (None, Some(0.5)));
        let examples = [example(None, None), example(None, Some(1))];
        let scores = score(&logits, &examples.iter().collect::<Vec<_>>());
        assert_eq!(scores, Scores { accuracy: None, agreement: None, ece: None, loss: None });
    }

    #[test]
    fn intervals_are_students() {
        // scipy.stats.t.interval(.95, 3, mean, sem) of [1, 2, 3, 4]: 2.5 +- 2.0543
        let measure = Measure::of(vec![1.0, 2.0, 3.0, 4.0]);
        assert_eq!(measure.mean, Some(2.5));
        assert!((measure.ci95.unwrap() - 2.0543).abs() < 1e-4);
        assert_eq!(Measure::of(vec![7.0]).ci95, None);
        assert_eq!(Measure::of(vec![]).mean, None);
        let difference = Measure::paired(&Measure::of(vec![3.0, 5.0]), &Measure::of(vec![1.0, 3.0]));
        assert_eq!((difference.mean, difference.ci95), (Some(2.0), Some(0.0)));
        // scipy.stats.t.ppf(.975, [40, 100]): 2.02108, 1.98397
        assert!((student_t(40) - 2.021_08).abs() < 1e-4 && (student_t(100) - 1.983_97).abs() < 1e-4);
    }
}
