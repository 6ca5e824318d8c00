//! What a source hands to the trainer: inputs, the teacher's recorded answers, and the truth where it is known.
//!
//! This file is the boundary between where data comes from and what is learnt from it. It must not know files,
//! teachers, tensors or losses. Invariant: a target only ever comes from a teacher's recorded answer; the truth is
//! kept apart, so that no loss can mistake one for the other. Where nobody is asked the truth is the answer, as a label.

use std::collections::BTreeMap;
use std::fmt;

/// The symbol that stands for "no byte here" in [`Input::Bytes`].
pub const PADDING: u16 = 256;

/// One input of a student.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A vector of features.
    Vector(Vec<f32>),
    /// Bytes as symbols 0..=255 and [`PADDING`]; every input of a split has the same length.
    Bytes(Vec<u16>),
}

impl Input {
    /// The number of features or symbols.
    #[must_use]
    pub fn width(&self) -> usize {
        match self {
            Self::Vector(values) => values.len(),
            Self::Bytes(symbols) => symbols.len(),
        }
    }

    /// The kind's name, for errors.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Vector(_) => "vector",
            Self::Bytes(_) => "bytes",
        }
    }
}

/// What a teacher's recorded answer gives, one value a class.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// Scores before the softmax, up to a common constant.
    Logits(Vec<f32>),
    /// Natural logarithms of probabilities that sum to one.
    LogProbabilities(Vec<f32>),
    /// The index of one class, nothing more.
    Label(u32),
}

impl Target {
    /// The signal that this target gives.
    #[must_use]
    pub fn gives(&self) -> Signal {
        match self {
            Self::Logits(_) => Signal::Logits,
            Self::LogProbabilities(_) => Signal::LogProbabilities,
            Self::Label(_) => Signal::Label,
        }
    }

    /// The class that the teacher would name; ties go to the lowest index.
    #[must_use]
    pub fn label(&self) -> u32 {
        match self {
            Self::Logits(scores) | Self::LogProbabilities(scores) => argmax(scores),
            Self::Label(class) => *class,
        }
    }
}

/// A kind of signal: what a teacher gives and what a loss needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// One class.
    Label,
    /// The logarithm of a probability for each class.
    LogProbabilities,
    /// A score before the softmax for each class.
    Logits,
}

impl Signal {
    /// Whether a teacher that gives `self` can serve a loss that needs `needed`. Log-probabilities are logits up to
    /// a constant of each input, so they serve where logits are needed; a label serves only labels.
    #[must_use]
    pub fn serves(self, needed: Signal) -> bool {
        needed == Signal::Label || self != Signal::Label
    }

    /// The name used in refusals.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Label => "label",
            Self::LogProbabilities => "log-probabilities",
            Self::Logits => "logits",
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One input with what is known about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// The query key in lower-case hex; splits and orders derive from it, never from the file's order.
    pub key: String,
    /// What the student sees.
    pub input: Input,
    /// The teacher's recorded answer; `None` where it was not asked.
    pub target: Option<Target>,
    /// The true class, where the source knows it; for evaluation unless a loss asks for it by name.
    pub truth: Option<u32>,
    /// The teacher's hidden tensors as they were recorded, in the order of [`Split::layers`]; empty where nobody wants them.
    pub hidden: Vec<Vec<f32>>,
}

/// A data set in its three parts, as the record and the source gave them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Split {
    /// What the student is fitted to; every example has a target.
    pub train: Vec<Example>,
    /// What early stopping looks at; its answers count in the same budget as the training answers.
    pub validation: Vec<Example>,
    /// What the report is about; nothing is ever chosen by it.
    pub test: Vec<Example>,
    /// Inputs that nobody asked about; no example has a target. Empty where a method has no use for them.
    pub pool: Vec<Example>,
    /// The classes' names; a class is its index here.
    pub classes: Vec<String>,
    /// The names of the teacher's hidden tensors that came with its answers, from its input to its output.
    pub layers: Vec<String>,
}

/// The name of the part that nobody asked about.
const POOL: &str = "pool";

/// Why a split cannot be trained on.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SplitError {
    /// A part holds nothing.
    #[error("the {part} part of the data set is empty")]
    Empty {
        /// `train`, `validation` or `test`.
        part: &'static str,
    },
    /// An input is unlike the first one.
    #[error("`{key}` in the {part} part is {found}, but the data set is {expected}")]
    Shape {
        /// The example.
        key: String,
        /// The part that holds it.
        part: &'static str,
        /// Kind and width of this input.
        found: String,
        /// Kind and width of the first input.
        expected: String,
    },
    /// A class index is out of range.
    #[error("`{key}` has class {class}, but there are {classes} classes (0 to {last})", last = classes.saturating_sub(1))]
    Class {
        /// The example.
        key: String,
        /// The class found.
        class: u32,
        /// How many there are.
        classes: usize,
    },
    /// An answer has not one value for each class.
    #[error("the answer to `{key}` has {found} values, but there are {classes} classes")]
    Width {
        /// The example.
        key: String,
        /// How many values the answer has.
        found: usize,
        /// How many classes there are.
        classes: usize,
    },
    /// A training example without the hidden tensors of the others.
    #[error(
        "the answer to `{key}` has hidden tensors of {found:?} numbers, but the others have {expected:?}"
    )]
    Hidden {
        /// The example.
        key: String,
        /// The sizes found.
        found: Vec<usize>,
        /// The sizes of the first example's.
        expected: Vec<usize>,
    },
    /// A value that no arithmetic survives.
    #[error("`{key}` holds a value that is not finite in its {place}")]
    NotFinite {
        /// The example.
        key: String,
        /// `input` or `answer`.
        place: &'static str,
    },
    /// A training or validation example without an answer.
    #[error("`{key}` in the {part} part has no recorded answer")]
    Unanswered {
        /// The example.
        key: String,
        /// The part that holds it.
        part: &'static str,
    },
    /// An example of the pool with an answer: what was answered is learnt from as such.
    #[error("`{key}` in the pool has a recorded answer")]
    Answered {
        /// The example.
        key: String,
    },
    /// A key in two parts, which would let a test input be trained on.
    #[error("`{key}` is in the {first} part and in the {second} part")]
    Shared {
        /// The key.
        key: String,
        /// One part.
        first: &'static str,
        /// The other part.
        second: &'static str,
    },
}

impl Split {
    /// The parts with their names.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, &[Example]); 4] {
        [("train", &self.train), ("validation", &self.validation), ("test", &self.test), (POOL, &self.pool)]
    }

    /// Checks everything that training relies on.
    ///
    /// # Errors
    /// The first thing that is wrong, by the key of its example.
    pub fn check(&self) -> Result<(), SplitError> {
        let first = self.train.first().ok_or(SplitError::Empty { part: "train" })?;
        let shape = |input: &Input| format!("{} of width {}", input.kind(), input.width());
        let mut seen: BTreeMap<&str, &'static str> = BTreeMap::new();
        for (part, examples) in self.parts() {
            for example in examples {
                let key = || example.key.clone();
                if let Some(earlier) = seen.insert(&example.key, part)
                    && earlier != part
                {
                    return Err(SplitError::Shared { key: key(), first: earlier, second: part });
                }
                if example.input.kind() != first.input.kind() || example.input.width() != first.input.width()
                {
                    return Err(SplitError::Shape {
                        key: key(),
                        part,
                        found: shape(&example.input),
                        expected: shape(&first.input),
                    });
                }
                if let Input::Vector(values) = &example.input
                    && !values.iter().all(|value| value.is_finite())
                {
                    return Err(SplitError::NotFinite { key: key(), place: "input" });
                }
                if part == POOL && example.target.is_some() {
                    return Err(SplitError::Answered { key: key() });
                }
                if part != "test" && part != POOL && example.target.is_none() {
                    return Err(SplitError::Unanswered { key: key(), part });
                }
                self.check_answer(example)?;
                if part == "train" {
                    check_hidden(example, first, self.layers.len())?;
                }
            }
        }
        Ok(())
    }

    /// Checks that there is something to be judged by.
    ///
    /// # Errors
    /// When the test part is empty.
    pub fn check_test(&self) -> Result<(), SplitError> {
        if self.test.is_empty() { Err(SplitError::Empty { part: "test" }) } else { Ok(()) }
    }

    fn check_answer(&self, example: &Example) -> Result<(), SplitError> {
        let key = || example.key.clone();
        let classes = self.classes.len();
        if let Some(Target::Logits(scores) | Target::LogProbabilities(scores)) = &example.target {
            if scores.len() != classes {
                return Err(SplitError::Width { key: key(), found: scores.len(), classes });
            }
            if !scores.iter().all(|score| score.is_finite()) {
                return Err(SplitError::NotFinite { key: key(), place: "answer" });
            }
        }
        let labels = example.truth.into_iter().chain(example.target.as_ref().map(Target::label));
        for class in labels {
            if class as usize >= classes {
                return Err(SplitError::Class { key: key(), class, classes });
            }
        }
        Ok(())
    }

    /// The weakest signal among the training and validation answers: what every loss can rely on.
    #[must_use]
    pub fn gives(&self) -> Option<Signal> {
        self.train
            .iter()
            .chain(&self.validation)
            .filter_map(|example| example.target.as_ref())
            .map(Target::gives)
            .min()
    }
}

fn check_hidden(example: &Example, first: &Example, layers: usize) -> Result<(), SplitError> {
    let key = || example.key.clone();
    let sizes = |example: &Example| example.hidden.iter().map(Vec::len).collect::<Vec<_>>();
    let (found, expected) = (sizes(example), sizes(first));
    if found.len() != layers || found != expected {
        return Err(SplitError::Hidden { key: key(), found, expected });
    }
    match example.hidden.iter().flatten().all(|value| value.is_finite()) {
        true => Ok(()),
        false => Err(SplitError::NotFinite { key: key(), place: "hidden tensors" }),
    }
}

/// The index of the largest value; ties go to the lowest index.
pub(crate) fn argmax(scores: &[f32]) -> u32 {
    let mut best = 0;
    for (index, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = index;
        }
    }
    u32::try_from(best).expect("a teacher has fewer than 2^32 classes")
}

/// The probabilities of a row of scores.
pub(crate) fn softmax(row: &[f32]) -> Vec<f64> {
    let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = row.iter().map(|score| f64::from(score - highest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(key: &str, width: usize, target: Option<Target>, truth: Option<u32>) -> Example {
        Example { key: key.into(), input: Input::Vector(vec![0.5; width]), target, truth, hidden: vec![] }
    }

    fn split(train: Vec<Example>, test: Vec<Example>) -> Split {
        Split { train, validation: vec![], test, classes: vec!["a".into(), "b".into()], ..Split::default() }
    }

    #[test]
    fn a_split_names_what_is_wrong_with_it() {
        let good = || example("k1", 2, Some(Target::Logits(vec![1.0, 0.0])), Some(1));
        let test = || vec![example("k2", 2, None, Some(0))];
        let check = |train: Vec<Example>, test: Vec<Example>, expected: &str| {
            let error = split(train, test).check().expect_err(expected);
            assert_eq!(error.to_string(), expected);
        };
        assert_eq!(split(vec![good()], test()).check(), Ok(()));
        check(vec![], test(), "the train part of the data set is empty");
        let untested = split(vec![good()], vec![]);
        assert_eq!(
            (untested.check(), untested.check_test()),
            (Ok(()), Err(SplitError::Empty { part: "test" }))
        );
        check(vec![good()], vec![good()], "`k1` is in the train part and in the test part");
        check(
            vec![good(), example("k3", 3, Some(Target::Label(0)), None)],
            test(),
            "`k3` in the train part is vector of width 3, but the data set is vector of width 2",
        );
        check(vec![example("k1", 2, None, None)], test(), "`k1` in the train part has no recorded answer");
        check(
            vec![example("k1", 2, Some(Target::Label(2)), None)],
            test(),
            "`k1` has class 2, but there are 2 classes (0 to 1)",
        );
        check(
            vec![example("k1", 2, Some(Target::Logits(vec![0.0])), None)],
            test(),
            "the answer to `k1` has 1 values, but there are 2 classes",
        );
        check(
            vec![example("k1", 2, Some(Target::Logits(vec![0.0, f32::NEG_INFINITY])), None)],
            test(),
            "`k1` holds a value that is not finite in its answer",
        );
    }

    #[test]
    fn a_label_serves_only_labels() {
        for (given, needed, serves) in [
            (Signal::Label, Signal::Label, true),
            (Signal::Label, Signal::Logits, false),
            (Signal::Label, Signal::LogProbabilities, false),
            (Signal::LogProbabilities, Signal::Logits, true),
            (Signal::Logits, Signal::Label, true),
        ] {
            assert_eq!(given.serves(needed), serves, "{given} for {needed}");
        }
    }

    #[test]
    fn the_weakest_answer_decides_what_a_split_gives() {
        let logits = example("k1", 2, Some(Target::Logits(vec![1.0, 0.0])), None);
        let label = example("k2", 2, Some(Target::Label(1)), None);
        assert_eq!(split(vec![logits.clone()], vec![]).gives(), Some(Signal::Logits));
        assert_eq!(split(vec![logits, label], vec![]).gives(), Some(Signal::Label));
    }
}
