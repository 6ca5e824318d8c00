//! Examples from the record: what a run has bought, by itself or joined with the inputs that were asked about.
//!
//! It must not know who paid. Invariant: a target is read from a recorded answer and from nothing else, and the order
//! of the examples is that of their keys or of the questions, never that of the purchase.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tuition_ledger::{QueryKey, Record};

use super::split::Draw;
use crate::example::{Example, Split, Target};
use crate::form::{DIALECT, Question};
use crate::question::{Gives, QuestionError, Seen, recorded_hidden, recorded_input, recorded_output, target};

/// How recorded rows and answers are read.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// The input that the student sees; none where rows have only one.
    pub input: Option<String>,
    /// The output that is learnt from; none where answers have only one.
    pub output: Option<String>,
    /// The least probability that a logarithm is taken of.
    pub least_probability: f32,
    /// What that output gives; none to see it from all answers.
    pub gives: Option<Gives>,
    /// What the student is to see.
    pub seen: Seen,
    /// The hidden tensors that every answer must hold, by name; none where nobody learns from them.
    pub layers: Vec<String>,
}

/// Why the record is no data set.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The run has bought nothing that can be learnt from.
    #[error("the record holds no rows of tensors bought by the run `{run}`")]
    Empty {
        /// The run.
        run: String,
    },
    /// A question or an answer cannot be read.
    #[error(transparent)]
    Unreadable(#[from] QuestionError),
    /// Two answers with different numbers of classes.
    #[error("the answer recorded under {key} has {found} classes, but the first has {expected}")]
    Classes {
        /// The key.
        key: QueryKey,
        /// Its classes.
        found: usize,
        /// The classes of the first answer.
        expected: usize,
    },
    /// An answer without the hidden tensors that a curriculum learns from.
    #[error(
        "the answer recorded under {key} holds {found}, but the run learns from the teacher's hidden tensors{wanted}"
    )]
    Hidden {
        /// The key.
        key: QueryKey,
        /// Those that it holds, as words.
        found: String,
        /// The one that is missing, as words.
        wanted: String,
    },
    /// An input without a label, where labels are all that is learnt from.
    #[error("{place} has no label, and the run file has no [teacher] that could be asked")]
    NoTruth {
        /// Where the input came from.
        place: String,
    },
    /// A true class that the teacher does not have.
    #[error("{place}: class {truth} is out of range: the teacher has {classes} classes (0 to {last})", last = classes.saturating_sub(1))]
    Truth {
        /// Where the input came from.
        place: String,
        /// The true class.
        truth: u32,
        /// The teacher's classes.
        classes: usize,
    },
}

impl Reading {
    /// What the outputs give, seen from all of them where it is not stated.
    ///
    /// # Errors
    /// When an answer has no fitting output.
    pub fn gives<'a>(
        &self,
        records: impl IntoIterator<Item = &'a Arc<Record>>,
    ) -> Result<Gives, RecordError> {
        if let Some(gives) = self.gives {
            return Ok(gives);
        }
        let output =
            |record: &'a Arc<Record>| recorded_output(record.key, &record.answer, self.output.as_deref());
        let outputs = records.into_iter().map(output).collect::<Result<Vec<_>, _>>()?;
        Ok(Gives::guess(outputs))
    }

    /// As this, with the hidden tensors that the answer under the least key holds.
    ///
    /// # Errors
    /// When it holds none.
    pub fn with_layers<'a>(
        self,
        records: impl IntoIterator<Item = &'a Arc<Record>>,
    ) -> Result<Self, RecordError> {
        let Some(first) = records.into_iter().min_by_key(|record| record.key) else { return Ok(self) };
        let layers: Vec<String> =
            recorded_hidden(&first.answer).into_iter().map(|(name, _)| name.to_owned()).collect();
        if layers.is_empty() {
            let (found, wanted) = ("none".to_owned(), String::new());
            return Err(RecordError::Hidden { key: first.key, found, wanted });
        }
        Ok(Self { layers, ..self })
    }

    fn hidden(&self, record: &Record) -> Result<Vec<Vec<f32>>, RecordError> {
        let held = recorded_hidden(&record.answer);
        let find = |layer: &String| {
            let found = held.iter().find(|(name, _)| name == layer);
            found.map(|(_, values)| values.clone()).ok_or_else(|| RecordError::Hidden {
                key: record.key,
                found: if held.is_empty() { "none".to_owned() } else { format!("{} others", held.len()) },
                wanted: format!(": `{layer}` is missing"),
            })
        };
        self.layers.iter().map(find).collect()
    }

    fn target(&self, record: &Record, gives: Gives) -> Result<Target, RecordError> {
        let output = recorded_output(record.key, &record.answer, self.output.as_deref())?;
        Ok(target(record.key, output, gives, self.least_probability)?)
    }
}

/// The examples in the records of a run, sorted by key; other dialects' records are passed over.
///
/// # Errors
/// When there is none, or one that cannot be read.
pub fn examples(
    run: &str,
    records: &[Arc<Record>],
    reading: &Reading,
) -> Result<(Vec<Example>, Gives), RecordError> {
    let rows: BTreeMap<QueryKey, &Arc<Record>> = records
        .iter()
        .filter(|record| record.query.dialect == DIALECT)
        .map(|record| (record.key, record))
        .collect();
    if rows.is_empty() {
        return Err(RecordError::Empty { run: run.to_owned() });
    }
    let gives = reading.gives(rows.values().copied())?;
    let mut examples = Vec::with_capacity(rows.len());
    for (key, record) in rows {
        let input = recorded_input(key, &record.query, reading.input.as_deref(), reading.seen)?;
        let target = Some(reading.target(record, gives)?);
        let hidden = reading.hidden(record)?;
        examples.push(Example { key: key.to_string(), input, target, truth: None, hidden });
    }
    Ok((examples, gives))
}

/// The examples of answered questions, in the questions' order; `records` has one for each of them.
///
/// # Errors
/// When an answer cannot be read.
pub fn answered(
    questions: &[Question],
    records: &[Arc<Record>],
    reading: &Reading,
    gives: Gives,
) -> Result<Vec<Example>, RecordError> {
    let example = |(question, record): (&Question, &Arc<Record>)| {
        let target = Some(reading.target(record, gives)?);
        let (input, truth) = (question.input.clone(), question.truth);
        let hidden = reading.hidden(record)?;
        Ok(Example { key: question.key.to_string(), input, target, truth, hidden })
    };
    questions.iter().zip(records).map(example).collect()
}

/// The examples of questions that nobody is asked, in their order: their answers are the labels of the data set.
///
/// # Errors
/// Names the first input without a label.
pub fn labelled(questions: &[Question]) -> Result<Vec<Example>, RecordError> {
    let example = |question: &Question| {
        let truth = question.truth.ok_or_else(|| RecordError::NoTruth { place: question.place.clone() })?;
        Ok(Example { target: Some(Target::Label(truth)), ..unasked(question) })
    };
    questions.iter().map(example).collect()
}

/// The example of a question that is not asked.
#[must_use]
pub fn unasked(question: &Question) -> Example {
    Example {
        key: question.key.to_string(),
        input: question.input.clone(),
        target: None,
        truth: question.truth,
        hidden: vec![],
    }
}

/// Adds what a checkpoint answered to the same questions; `records` has one for each of them.
///
/// # Errors
/// When an answer cannot be read, or names a class and nothing more.
pub fn add_checkpoint(
    examples: &mut [Example],
    records: &[Arc<Record>],
    reading: &Reading,
    gives: Gives,
) -> Result<(), RecordError> {
    for (example, record) in examples.iter_mut().zip(records) {
        match reading.target(record, gives)? {
            Target::Logits(scores) | Target::LogProbabilities(scores) => example.hidden.push(scores),
            Target::Label(_) => {
                let reason =
                    "a checkpoint is learnt from by its scores, and it names a class alone".to_owned();
                return Err(QuestionError::Gives { key: record.key, gives, reason }.into());
            }
        }
    }
    Ok(())
}

/// How many classes the answers have; labels alone have one more than the highest.
///
/// # Errors
/// When two answers differ.
pub fn classes<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Result<usize, RecordError> {
    let mut found = None;
    let mut highest = 0;
    for example in examples {
        match &example.target {
            Some(Target::Logits(scores) | Target::LogProbabilities(scores)) => {
                let expected = *found.get_or_insert(scores.len());
                if expected != scores.len() {
                    let key = example.key.parse().unwrap_or(QueryKey::from_bytes([0; 32]));
                    return Err(RecordError::Classes { key, found: scores.len(), expected });
                }
            }
            Some(Target::Label(class)) => highest = highest.max(*class as usize + 1),
            None => {}
        }
    }
    Ok(found.unwrap_or(highest))
}

/// Sets a fraction of the bought examples aside for validation: exactly that many, drawn by key.
#[must_use]
pub fn set_aside(bought: Vec<Example>, validation: f64, seed: u64) -> (Vec<Example>, Vec<Example>) {
    let aside = aside(bought.iter().map(|example| example.key.clone()), validation, seed);
    bought.into_iter().partition(|example| !aside.contains(&example.key))
}

/// The keys of what is set aside for validation: that fraction of `keys`, drawn by key.
#[must_use]
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count of examples times a fraction"
)]
pub fn aside(keys: impl Iterator<Item = String>, validation: f64, seed: u64) -> BTreeSet<String> {
    let mut drawn: Vec<(u64, String)> = keys.map(|key| (Draw::Validation.number(seed, &key), key)).collect();
    let count = (drawn.len() as f64 * validation).round() as usize;
    drawn.sort_unstable();
    drawn.into_iter().take(count).map(|(_, key)| key).collect()
}

/// Splits the examples of a record: a fraction for the test by key, of the rest a fraction for validation.
///
/// # Errors
/// When the answers' numbers of classes differ.
pub fn split(examples: Vec<Example>, test: f64, validation: f64, seed: u64) -> Result<Split, RecordError> {
    let classes = classes(&examples)?;
    let held = |example: &Example| Draw::Test.holds(seed, &example.key, test);
    let (test, bought) = examples.into_iter().partition(held);
    let (train, validation) = set_aside(bought, validation, seed);
    Ok(Split { train, validation, test, classes: names(classes, &[]), ..Split::default() })
}

/// The names of the teacher's classes: those of the source, then bare numbers.
#[must_use]
pub fn names(classes: usize, known: &[String]) -> Vec<String> {
    (0..classes).map(|class| known.get(class).cloned().unwrap_or_else(|| class.to_string())).collect()
}

/// Checks that every true class is one of the teacher's.
///
/// # Errors
/// Names the first input whose class is not.
pub fn check_truths(questions: &[Question], classes: usize) -> Result<(), RecordError> {
    let wrong = questions.iter().find_map(|question| {
        question.truth.filter(|truth| *truth as usize >= classes).map(|truth| (question, truth))
    });
    wrong.map_or(Ok(()), |(question, truth)| {
        Err(RecordError::Truth { place: question.place.clone(), truth, classes })
    })
}

#[cfg(test)]
mod tests {
    use tuition_ledger::{Amount, Answer, Elements, Signal, Tensor, Timestamp};

    use super::*;
    use crate::example::Input;
    use crate::form::Form;
    use crate::port::ElementType;
    use crate::question::LEAST_PROBABILITY;

    fn record(value: f32, dialect: &str, outputs: &[(&str, Elements)]) -> Arc<Record> {
        let form = Form {
            teacher: "t".into(),
            revision: "1".into(),
            model: "m".into(),
            input: "x".into(),
            element_type: ElementType::F32,
            shape: None,
            outputs: vec![],
        };
        let mut query = form.query(form.row(&Input::Vector(vec![value])).unwrap().canonical());
        query.dialect = dialect.to_owned();
        let tensor = |(name, elements): &(&str, Elements)| {
            let (name, elements) = ((*name).to_owned(), elements.clone());
            Signal::Tensor(Tensor { name, shape: vec![1, elements.len()], elements })
        };
        Arc::new(Record {
            key: query.key(),
            query,
            model: "m".into(),
            answer: Answer { body: bytes::Bytes::new(), signals: outputs.iter().map(tensor).collect() },
            envelope: bytes::Bytes::new(),
            media: "application/json".into(),
            share: Amount::ZERO,
            priced: false,
            at: Timestamp::default(),
        })
    }

    fn reading() -> Reading {
        Reading {
            input: None,
            output: None,
            least_probability: LEAST_PROBABILITY,
            gives: None,
            seen: Seen::Vector,
            layers: vec![],
        }
    }

    #[test]
    fn hidden_tensors_of_two_seeds_or_of_none_are_not_learnt_from_together() {
        let numbers = |values: [f32; 2]| Elements::F32(values.to_vec());
        let answered = |value: f32, hidden: &[(&str, Elements)]| {
            record(value, DIALECT, &[&[("y", numbers([value, 1.0]))], hidden].concat())
        };
        let seeded = |value, seed: u64| {
            answered(value, &[(&crate::hidden::recorded_name(seed, "relu1"), numbers([value, 0.0]))])
        };
        let same = [seeded(1.0, 7), seeded(2.0, 7)];
        let with = reading().with_layers(&same).unwrap();
        assert_eq!(with.layers, ["7.relu1"]);
        let (read, _) = examples("r", &same, &with).unwrap();
        let mut hidden: Vec<_> = read.into_iter().map(|example| example.hidden).collect();
        hidden.sort_by(|one, two| one[0][0].total_cmp(&two[0][0]));
        assert_eq!(hidden, [[vec![1.0, 0.0]], [vec![2.0, 0.0]]]);
        for other in [seeded(3.0, 8), answered(3.0, &[])] {
            let mixed = [seeded(1.0, 7), other];
            let refused = reading().with_layers(&mixed).and_then(|with| examples("r", &mixed, &with));
            assert!(matches!(refused, Err(RecordError::Hidden { .. })), "{refused:?}");
        }
    }

    #[test]
    fn what_a_run_bought_is_a_data_set() {
        let scores = |a: f32| Elements::F64(vec![f64::from(a), 0.0, 1.0]);
        let records: Vec<Arc<Record>> =
            (0..40_u8).map(|i| record(f32::from(i), DIALECT, &[("y", scores(f32::from(i)))])).collect();
        let mut backwards = records.clone();
        backwards.reverse();
        backwards.push(record(1.0, "openai", &[]));
        let (found, gives) = examples("r", &backwards, &reading()).unwrap();
        assert_eq!(gives, Gives::Logits);
        assert_eq!(found, examples("r", &records, &reading()).unwrap().0);
        let divided = split(found, 0.25, 0.2, 0).unwrap();
        assert_eq!(divided.classes, ["0", "1", "2"]);
        let bought = divided.train.len() + divided.validation.len();
        assert_eq!(divided.validation.len(), (bought + 2) / 5);
        assert_eq!(bought + divided.test.len(), 40);
        assert_eq!(divided.check(), Ok(()));
    }

    #[test]
    fn a_record_that_is_no_data_set_is_named() {
        let probabilities = Elements::F32(vec![0.5, 0.5]);
        let check = |records: &[Arc<Record>], reading: Reading, expected: &str| {
            let error = examples("r", records, &reading).expect_err(expected).to_string();
            assert!(error.ends_with(expected), "{error}");
        };
        check(
            &[record(1.0, "openai", &[])],
            reading(),
            "the record holds no rows of tensors bought by the run `r`",
        );
        check(
            &[record(
                1.0,
                DIALECT,
                &[("predict", Elements::I64(vec![1])), ("predict_proba", probabilities.clone())],
            )],
            reading(),
            "unless one is named; it has `predict`, `predict_proba`",
        );
        check(
            &[record(1.0, DIALECT, &[("y", probabilities.clone())])],
            Reading { output: Some("z".into()), ..reading() },
            "there is no `z`; it has `y`",
        );
        check(
            &[record(1.0, DIALECT, &[("y", probabilities.clone())])],
            Reading { seen: Seen::Bytes, gives: Some(Gives::Label), ..reading() },
            "does not give label: it has 2 values",
        );
        check(
            &[record(0.5, DIALECT, &[("y", probabilities)])],
            Reading { seen: Seen::Bytes, ..reading() },
            "since bytes and padding are whole numbers from 0 to 256; it has `x`",
        );
    }
}
