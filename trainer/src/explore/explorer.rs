//! Makes inputs round by round, by what was answered before.
//!
//! It must not know the account of what was bought. Invariant: a made input is new, or it is not made.

use std::collections::BTreeSet;

use candle_core::{Device, Tensor, Var};
use rand::seq::index;

use super::draw::{Slot, Starts};
use super::ranges::Ranges;
use super::{ExploreConfig, ExploreError, ExploreKind};
use crate::example::{Example, Input, Split, Target, softmax};
use crate::generator::Generator;
use crate::loss::{cross_entropy, kd};
use crate::selection::{Selector, entropy};
use crate::space::rows;
use crate::student::{Built, Inputs, Mode, Student};
use crate::teacher::Runtime;
use crate::train::{Control, stream};

/// Made inputs that are worked on together.
const CHUNK: usize = 1024;
/// How often an input that was asked about already is drawn anew.
const ATTEMPTS: usize = 16;
/// The random stream of pairs.
const PAIRS: u64 = 1 << 37;
/// The shares that active mixup tries: .30, .34, ..., .70.
const LAMBDAS: usize = 11;
/// The temperature at which disagreement is measured.
const TEMPERATURE: f64 = 1.0;

/// A made input.
#[derive(Debug, Clone, PartialEq)]
pub struct Explored {
    /// It.
    pub input: Input,
    /// What it was chosen by, where it was: the student's disagreement, entropy or doubt.
    pub score: Option<f64>,
}

/// A row that was tried, and what it would be chosen by.
type Tried = (Vec<f32>, Option<f64>);

/// Makes inputs from the real ones that were answered.
pub struct Explorer<'a> {
    config: &'a ExploreConfig,
    seed: u64,
    selector: Selector<'a>,
    generator: Option<Generator>,
    ranges: Ranges,
    /// The bits of all inputs that are real or were made.
    seen: BTreeSet<Vec<u32>>,
    made: usize,
    rounds: u64,
}

impl<'a> Explorer<'a> {
    /// Fits the generator and the ranges to the inputs of `fit`; what is in `known` is never made.
    ///
    /// # Errors
    /// When the inputs are no vectors, or there is no such generator.
    pub fn new(
        config: &'a ExploreConfig,
        seed: u64,
        selector: Selector<'a>,
        fit: &[&Input],
        known: &[&Input],
        runtime: Option<&Runtime>,
    ) -> Result<Self, ExploreError> {
        if let Some(input) = fit.iter().chain(known).find(|input| !matches!(input, Input::Vector(_))) {
            return Err(ExploreError::Vectors { found: input.kind() });
        }
        if fit.is_empty() {
            return Err(ExploreError::Starts { needs: 1, have: 0 });
        }
        let rows = rows(fit.iter().copied())?;
        let generator = config.decoder();
        let generator = generator.map(|config| Generator::fit(&config, &rows, seed, runtime)).transpose()?;
        let seen = known.iter().map(|input| bits(&values(input))).collect();
        Ok(Self { config, seed, selector, generator, ranges: Ranges::of(&rows)?, seen, made: 0, rounds: 0 })
    }

    /// Makes `count` inputs by what was `bought`, of whose training part the first `real` are real inputs; none where it was
    /// interrupted.
    ///
    /// # Errors
    /// When there is nothing to start from, no student can be trained, or nothing new is found.
    pub fn next(
        &mut self,
        bought: &Split,
        real: usize,
        count: usize,
        control: &Control<'_>,
    ) -> Result<Option<Vec<Explored>>, ExploreError> {
        let needs = if self.config.kind == ExploreKind::Mixup { 2 } else { 1 };
        if real < needs {
            return Err(ExploreError::Starts { needs, have: real });
        }
        let student = if self.config.kind.asks_student() {
            match self.selector.student(bought, 0, control)? {
                Some(student) => Some(student),
                None => return Ok(None),
            }
        } else {
            None
        };
        self.rounds += 1;
        let made = match (self.config.kind, &student) {
            (ExploreKind::Mixup, Some(student)) => self.mixed(student, &bought.train[..real], count)?,
            _ => self.walked(student.as_ref(), &bought.train, real, count)?,
        };
        if made.len() < count {
            return Err(ExploreError::Exhausted { found: made.len(), wanted: count });
        }
        self.made += made.len();
        Ok(Some(made))
    }

    /// Every kind that starts from single inputs.
    fn walked(
        &mut self,
        student: Option<&Built>,
        answered: &[Example],
        real: usize,
        count: usize,
    ) -> Result<Vec<Explored>, ExploreError> {
        let starts = if self.config.long_tail {
            Starts::rare_first(answered, real)
        } else {
            Starts::Even { seed: self.seed, count: real }
        };
        let real = &answered[..real];
        let inputs = rows(real.iter().map(|example| &example.input))?;
        let latents = self.generator.as_ref().map(|generator| generator.encode(&inputs)).transpose()?;
        let places = latents.unwrap_or(inputs);
        let (seed, first) = (self.seed, self.made);
        let mut slots: Vec<Slot> = (first..first + count).map(|number| Slot::new(seed, number)).collect();
        let mut made: Vec<Option<Explored>> = vec![None; count];
        for _ in 0..ATTEMPTS {
            let open: Vec<usize> = (0..count).filter(|at| made[*at].is_none()).collect();
            for some in open.chunks(CHUNK) {
                let own: Vec<&mut Slot> = slots
                    .iter_mut()
                    .enumerate()
                    .filter(|(at, _)| some.binary_search(at).is_ok())
                    .map(|(_, slot)| slot)
                    .collect();
                let tried = self.walk(own, &starts, real, &places, student)?;
                for (at, (row, score)) in some.iter().zip(tried) {
                    if self.seen.insert(bits(&row)) {
                        made[*at] = Some(Explored { input: Input::Vector(row), score });
                    }
                }
            }
        }
        Ok(made.into_iter().flatten().collect())
    }

    /// One try for each slot: a row and its score. `places` are the latents of the real inputs, or themselves.
    fn walk(
        &self,
        slots: Vec<&mut Slot>,
        starts: &Starts,
        real: &[Example],
        places: &Tensor,
        student: Option<&Built>,
    ) -> Result<Vec<Tried>, ExploreError> {
        let kind = self.config.kind;
        let candidates = if kind == ExploreKind::Choice { self.config.candidates } else { 1 };
        let (count, width) = (slots.len() * candidates, places.dim(1)?);
        let (mut from, mut noise) = (Vec::new(), Vec::new());
        for slot in slots {
            let start = slot.start(starts) as u32;
            for _ in 0..candidates {
                from.push(start);
                noise.extend(slot.noise(width, self.config.sigma));
            }
        }
        if kind == ExploreKind::Noise {
            let deviations = self.ranges.deviations.iter().cycle();
            noise.iter_mut().zip(deviations).for_each(|(noise, deviation)| *noise *= deviation);
        }
        let start = places.index_select(&Tensor::new(&from[..], &Device::Cpu)?, 0)?;
        let moved = (start + Tensor::from_vec(noise, (count, width), &Device::Cpu)?)?;
        let decoded = match (&self.generator, kind, student) {
            (None, ..) => moved,
            (Some(generator), ExploreKind::Gradient, Some(student)) => {
                let answers = Answers::of(from.iter().map(|at| &real[*at as usize]))?;
                let climbed = self.climb(generator, student, moved, &answers)?;
                let rows = self.clamped(&generator.decode(&climbed)?)?;
                let logits = logits(student, &rows)?;
                let scores = (0..count).map(|at| Some(answers.disagreement(at, &logits[at])));
                return Ok(rows.into_iter().zip(scores).collect());
            }
            (Some(generator), ..) => generator.decode(&moved)?,
        };
        let rows = self.clamped(&decoded)?;
        let Some(student) = student else { return Ok(rows.into_iter().map(|row| (row, None)).collect()) };
        let doubts: Vec<f64> = logits(student, &rows)?.iter().map(|row| entropy(&softmax(row))).collect();
        let scored: Vec<(Vec<f32>, f64)> = rows.into_iter().zip(doubts).collect();
        // Of equals the first.
        let best =
            |some: &[(Vec<f32>, f64)]| some.iter().rev().max_by(|one, two| one.1.total_cmp(&two.1)).cloned();
        Ok(scored.chunks(candidates).filter_map(best).map(|(row, doubt)| (row, Some(doubt))).collect())
    }

    /// Latents moved along the normalised gradient of the student's disagreement with the answers: its side of the gradient
    /// alone, since a teacher that is asked for its answers has none.
    fn climb(
        &self,
        generator: &Generator,
        student: &Built,
        mut latents: Tensor,
        answers: &Answers,
    ) -> Result<Tensor, ExploreError> {
        for _ in 0..self.config.steps {
            let at = Var::from_tensor(&latents)?;
            let decoded = generator.decode(at.as_tensor())?.to_device(student.parameters().device())?;
            let logits = student.forward(&Inputs(vec![decoded]), Mode::Inference)?;
            let loss = answers.loss(&logits.to_device(&Device::Cpu)?)?;
            let gradients = loss.backward()?;
            let gradient = match gradients.get(&at) {
                Some(gradient) => gradient.clone(),
                None => latents.zeros_like()?,
            };
            // Scaled before it is squared, so that a small gradient does not vanish.
            let largest = gradient.abs()?.max_keepdim(1)?.maximum(f64::from(f32::MIN_POSITIVE))?;
            let gradient = gradient.broadcast_div(&largest)?;
            let length = gradient.sqr()?.sum_keepdim(1)?.sqrt()?.maximum(1e-12)?;
            latents = (latents + (gradient.broadcast_div(&length)? * self.config.step)?)?.detach();
        }
        Ok(latents)
    }

    /// Active mixup: of each pair the share that the student is least sure at, the least sure pairs first.
    fn mixed(
        &mut self,
        student: &Built,
        real: &[Example],
        count: usize,
    ) -> Result<Vec<Explored>, ExploreError> {
        let pairs = real.len() * (real.len() - 1) / 2;
        let some = count.saturating_mul(self.config.candidates).min(pairs);
        let mut rng = stream(self.seed, PAIRS + self.rounds);
        let mut drawn = index::sample(&mut rng, pairs, some).into_vec();
        drawn.sort_unstable();
        let mut found = Vec::new();
        for (one, two) in drawn.into_iter().map(pair) {
            let (one, two) = (values(&real[one].input), values(&real[two].input));
            let mixed = (0..LAMBDAS).map(|step| {
                let share = (30 + 4 * step) as f32 / 100.0;
                let mix = one.iter().zip(&two).map(|(one, two)| share * one + (1.0 - share) * two);
                self.ranges.clamp(&mix.collect::<Vec<_>>())
            });
            let mixed: Vec<Vec<f32>> = mixed.collect();
            let doubt = |row: &Vec<f32>| 1.0 - softmax(row).into_iter().fold(0.0, f64::max);
            let doubts = logits(student, &mixed)?.iter().map(doubt).collect::<Vec<_>>();
            let mut of_pair: Vec<(f64, Vec<f32>)> =
                doubts.into_iter().zip(mixed).filter(|(_, row)| !self.seen.contains(&bits(row))).collect();
            of_pair.sort_by(|one, two| two.0.total_cmp(&one.0));
            found.extend(of_pair.into_iter().enumerate().map(|(level, (doubt, row))| (level, doubt, row)));
        }
        // A pair is asked about again only when all pairs were.
        found.sort_by(|one, two| one.0.cmp(&two.0).then(two.1.total_cmp(&one.1)));
        let mut made = Vec::new();
        for (_, doubt, row) in found {
            if made.len() < count && self.seen.insert(bits(&row)) {
                made.push(Explored { input: Input::Vector(row), score: Some(doubt) });
            }
        }
        Ok(made)
    }

    fn clamped(&self, rows: &Tensor) -> Result<Vec<Vec<f32>>, ExploreError> {
        Ok(rows.to_vec2::<f32>()?.iter().map(|row| self.ranges.clamp(row)).collect())
    }
}

/// The pair of this number: (0, 1), (0, 2), (1, 2), (0, 3) and so on. All pairs of 60,000 inputs would fill 29 GB.
fn pair(number: usize) -> (usize, usize) {
    let two = (1 + 8 * number).isqrt().div_ceil(2);
    (number - two * (two - 1) / 2, two)
}

/// What the teacher answered to the starts.
struct Answers {
    scores: Option<Tensor>,
    labels: Tensor,
    rows: Vec<Target>,
}

impl Answers {
    fn of<'e>(examples: impl Iterator<Item = &'e Example>) -> Result<Self, ExploreError> {
        let rows: Vec<Target> = examples.filter_map(|example| example.target.clone()).collect();
        let scores: Option<Vec<&Vec<f32>>> = rows
            .iter()
            .map(|target| match target {
                Target::Logits(scores) | Target::LogProbabilities(scores) => Some(scores),
                Target::Label(_) => None,
            })
            .collect();
        let scores = scores
            .map(|all| {
                Tensor::from_vec(all.into_iter().flatten().copied().collect(), (rows.len(), ()), &Device::Cpu)
            })
            .transpose()?;
        let labels: Vec<u32> = rows.iter().map(Target::label).collect();
        Ok(Self { scores, labels: Tensor::new(labels, &Device::Cpu)?, rows })
    }

    /// The mean disagreement: KL from the answers, or cross-entropy with them where they are labels.
    fn loss(&self, logits: &Tensor) -> candle_core::Result<Tensor> {
        match &self.scores {
            Some(scores) => kd(logits, scores, TEMPERATURE),
            None => cross_entropy(logits, &self.labels),
        }
    }

    /// The same of one row.
    fn disagreement(&self, at: usize, logits: &[f32]) -> f64 {
        let student = softmax(logits);
        let nats = |p: f64, q: f64| if p > 0.0 { p * (p / q.max(f64::MIN_POSITIVE)).ln() } else { 0.0 };
        match &self.rows[at] {
            Target::Logits(scores) | Target::LogProbabilities(scores) => {
                softmax(scores).into_iter().zip(student).map(|(p, q)| nats(p, q)).sum()
            }
            Target::Label(class) => nats(1.0, student[*class as usize]),
        }
    }
}

/// What the student makes of rows.
fn logits(student: &Built, rows: &[Vec<f32>]) -> Result<Vec<Vec<f32>>, ExploreError> {
    let example = |row: &Vec<f32>| Example {
        key: String::new(),
        input: Input::Vector(row.clone()),
        target: None,
        truth: None,
        hidden: vec![],
    };
    let examples: Vec<Example> = rows.iter().map(example).collect();
    Ok(student.logits(&examples.iter().collect::<Vec<_>>())?)
}

/// The values of a vector; [`Explorer::new`] lets nothing else in.
fn values(input: &Input) -> Vec<f32> {
    match input {
        Input::Vector(values) => values.clone(),
        Input::Bytes(_) => vec![],
    }
}

/// What tells two questions apart: all bits but the sign of zero.
fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|value| (value + 0.0).to_bits()).collect()
}

#[cfg(test)]
mod tests;
