//! Later rounds: what a student makes of the inputs that are open, after learning what was bought before.
//!
//! It must not know how the first round is drawn. Invariant: the same answers and seed choose the same inputs.
//!
//! Sources: margin and entropy, Settles, Active Learning Literature Survey, 2009; committees, Seung et al., 1992, by the mean
//! KL from the members' mean (McCallum and Nigam, 1998); k-centre, arXiv 1708.00489.

use candle_core::{Device, Tensor};
use rand::seq::index;

use super::{AcquireConfig, Pick, Policy, STREAMS, Scorer};
use crate::example::{Example, Split, softmax};
use crate::method::{MethodConfig, ProxyConfig};
use crate::space::k_centre;
use crate::student::{Built, Mode, Student, StudentConfig};
use crate::train::{Control, Ended, Task, TrainConfig, TrainError, proxied, stream, train, values};

/// Chooses later rounds by students that learn what has been bought so far.
pub struct Selector<'a> {
    acquire: &'a AcquireConfig,
    scorer: StudentConfig,
    method: MethodConfig,
    config: TrainConfig,
    /// The weights that each student ended with, where the next round goes on from them.
    ended: Vec<Vec<Vec<f32>>>,
}

impl<'a> Selector<'a> {
    /// A selector that has seen no answers.
    #[must_use]
    pub fn new(
        acquire: &'a AcquireConfig,
        student: &StudentConfig,
        method: &MethodConfig,
        config: &TrainConfig,
    ) -> Self {
        let (scorer, method, config) = match method.proxy.as_ref().filter(|_| acquire.scorer == Scorer::Proxy)
        {
            Some(proxy) => {
                let alone = ProxyConfig { proxy: None, consistency: None, ..proxy.clone() };
                (proxy.student.clone(), alone.method(method), proxied(&alone, config))
            }
            None => {
                let method = MethodConfig { mixup: method.mixup, ..MethodConfig::of(method.losses.clone()) };
                (student.clone(), method, TrainConfig { ema: None, ..config.clone() })
            }
        };
        let steps = acquire.steps.unwrap_or(config.steps);
        Self { acquire, scorer, method, config: TrainConfig { steps, ..config }, ended: vec![] }
    }

    /// Chooses `count` of the pool of `bought` in round `round` (from 2 on) by what its answers teach; none where it was
    /// interrupted.
    ///
    /// # Errors
    /// When no student can be trained on what was bought.
    pub fn next(
        &mut self,
        bought: &Split,
        count: usize,
        round: usize,
        control: &Control<'_>,
    ) -> Result<Option<Vec<Pick>>, TrainError> {
        let (acquire, open) = (self.acquire, &bought.pool);
        let mut rng = stream(acquire.seed, STREAMS + round as u64);
        let most = acquire.candidates.max(count).min(open.len());
        let mut candidates: Vec<usize> = index::sample(&mut rng, open.len(), most).into_vec();
        candidates.sort_unstable();
        let asked: Vec<&Example> = candidates.iter().map(|at| &open[*at]).collect();
        let Some(students) = self.students(bought, control)? else { return Ok(None) };
        if acquire.policy == Policy::KCentre {
            let features = |examples: &[&Example]| features(&students[0], examples);
            let covered = features(&bought.train.iter().collect::<Vec<_>>())?;
            let chosen = k_centre(&features(&asked)?, Some(&covered), count)?;
            let pick = |at: usize| Pick { index: candidates[at], score: None, chance: None };
            return Ok(Some(chosen.into_iter().map(pick).collect()));
        }
        let logits = students.iter().map(|student| student.logits(&asked));
        let logits = logits.collect::<candle_core::Result<Vec<_>>>()?;
        let score = |at: usize| {
            let rows: Vec<Vec<f64>> = logits.iter().map(|member| softmax(&member[at])).collect();
            match acquire.policy {
                Policy::Random | Policy::KCentre => 0.0,
                Policy::Margin => -margin(&rows[0]),
                Policy::Entropy => entropy(&rows[0]),
                Policy::Committee => disagreement(&rows),
            }
        };
        let mut scored: Vec<(usize, f64)> = (0..asked.len()).map(|at| (at, score(at))).collect();
        scored.sort_by(|one, two| two.1.total_cmp(&one.1).then(one.0.cmp(&two.0)));
        let pick =
            |(at, score): (usize, f64)| Pick { index: candidates[at], score: Some(score), chance: None };
        Ok(Some(scored.into_iter().take(count).map(pick).collect()))
    }

    /// The student of one seed that learns what was bought so far, with `warm_start` from where the one of the round before
    /// ended; none where it was interrupted. Members are asked for in their order.
    pub(crate) fn student(
        &mut self,
        bought: &Split,
        member: usize,
        control: &Control<'_>,
    ) -> Result<Option<Built>, TrainError> {
        let begin = self.ended.get(member).filter(|_| self.acquire.warm_start).cloned();
        if begin.is_some() {
            // What goes on was warmed up before the first round.
            self.method.warm_up = None;
        }
        let mut task = Task::new(bought, &self.scorer, &self.method, &self.config)?;
        task.begin = begin;
        let seed = self.acquire.seed.wrapping_add(member as u64);
        let Ended::Finished(trained) = train(&task, seed, None, control)? else { return Ok(None) };
        let ended = values(&trained.student)?;
        match self.ended.get_mut(member) {
            Some(before) => *before = ended,
            None => self.ended.push(ended),
        }
        Ok(Some(trained.student))
    }

    fn students(&mut self, bought: &Split, control: &Control<'_>) -> Result<Option<Vec<Built>>, TrainError> {
        let acquire = self.acquire;
        let members = if acquire.policy == Policy::Committee { acquire.members } else { 1 };
        let mut students = Vec::new();
        for member in 0..members {
            match self.student(bought, member, control)? {
                Some(student) => students.push(student),
                None => return Ok(None),
            }
        }
        Ok(Some(students))
    }
}

/// The student's features, in the processor's memory, where distances are taken.
fn features(student: &Built, examples: &[&Example]) -> candle_core::Result<Tensor> {
    let chunks = examples
        .chunks(256)
        .map(|chunk| Ok(student.features(&student.inputs(chunk)?, Mode::Inference)?.detach()));
    Tensor::cat(&chunks.collect::<candle_core::Result<Vec<_>>>()?, 0)?.to_device(&Device::Cpu)
}

/// The gap between the two greatest probabilities.
fn margin(probabilities: &[f64]) -> f64 {
    let (mut first, mut second) = (0.0, 0.0);
    for probability in probabilities {
        if *probability > first {
            (first, second) = (*probability, first);
        } else if *probability > second {
            second = *probability;
        }
    }
    first - second
}

pub(crate) fn entropy(probabilities: &[f64]) -> f64 {
    -probabilities.iter().filter(|p| **p > 0.0).map(|p| p * p.ln()).sum::<f64>()
}

/// The mean KL of the members' probabilities from their mean.
fn disagreement(members: &[Vec<f64>]) -> f64 {
    let classes = members[0].len();
    let count = members.len() as f64;
    let mean: Vec<f64> =
        (0..classes).map(|class| members.iter().map(|row| row[class]).sum::<f64>() / count).collect();
    entropy(&mean) - members.iter().map(|row| entropy(row)).sum::<f64>() / count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::Input;

    fn config(text: &str) -> AcquireConfig {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn a_warm_start_goes_on_from_the_round_before() {
        let example = |at: usize| Example {
            key: at.to_string(),
            input: Input::Vector(vec![(at as f32).sin(), (at as f32).cos()]),
            target: Some(crate::example::Target::Logits(vec![(at as f32).sin(), 0.0])),
            truth: None,
            hidden: vec![],
        };
        let classes = vec!["a".to_owned(), "b".to_owned()];
        let bought = Split { train: (0..30).map(example).collect(), classes, ..Split::default() };
        let student = StudentConfig::Mlp { hidden: vec![4] };
        let method = toml::from_str("losses = [{ kind = 'kd' }]").unwrap();
        let train = TrainConfig { steps: 20, lr: 0.05, ..TrainConfig::default() };
        let control = Control { interrupt: std::sync::Arc::default(), progress: &|_| {}, resume: false };
        let two_rounds = |text: &str| {
            let acquire = config(text);
            let mut selector = Selector::new(&acquire, &student, &method, &train);
            let mut round = || values(&selector.student(&bought, 0, &control).unwrap().unwrap()).unwrap();
            [round(), round()]
        };
        let (cold, warm) = (two_rounds(""), two_rounds("warm_start = true"));
        assert_eq!((&cold[0], &cold[0]), (&cold[1], &warm[0]), "without it each round begins anew");
        assert_ne!(warm[1], cold[1], "the second round forgot the first");
    }

    #[test]
    fn a_proxy_that_scores_is_the_methods_and_is_warmed_up_once() {
        let example = |at: usize, answered: bool| Example {
            key: format!("{at} {answered}"),
            input: Input::Vector(vec![(at as f32).sin(), (at as f32).cos()]),
            target: answered.then(|| crate::example::Target::Logits(vec![(at as f32).sin(), 0.0])),
            truth: None,
            hidden: vec![],
        };
        let classes = vec!["a".to_owned(), "b".to_owned()];
        let some = |answered| (0..30).map(|at| example(at, answered)).collect();
        let bought = Split { train: some(true), pool: some(false), classes, ..Split::default() };
        let method: MethodConfig = toml::from_str(
            "losses = [{ kind = 'kd' }]\nproxy = { student = { kind = 'mlp', hidden = [9] }, steps = 20, warm_up = { kind = 'autoencoder', steps = 7, batch = 8 } }",
        )
        .unwrap();
        let student = StudentConfig::Mlp { hidden: vec![4] };
        for (text, expected) in
            [("scorer = 'proxy'\nwarm_start = true", [27, 20]), ("scorer = 'proxy'", [27, 27])]
        {
            let acquire = config(&format!("policy = 'margin'\n{text}"));
            let mut selector = Selector::new(&acquire, &student, &method, &TrainConfig::default());
            let mut round = |round| {
                let taken = std::sync::atomic::AtomicUsize::new(0);
                let progress = |_: &crate::train::Progress| {
                    taken.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                };
                let control =
                    Control { interrupt: std::sync::Arc::default(), progress: &progress, resume: false };
                assert_eq!(selector.next(&bought, 5, round, &control).unwrap().unwrap().len(), 5);
                taken.into_inner()
            };
            assert_eq!([round(2), round(3)], expected, "{text}");
        }
    }

    #[test]
    fn doubt_is_bought_where_the_student_doubts_and_distance_where_nothing_was_bought() {
        let example = |x: f32, answered: bool| Example {
            key: format!("{x} {answered}"),
            input: Input::Vector(vec![x, 1.0]),
            target: answered.then(|| crate::example::Target::Logits(vec![4.0 * x, -4.0 * x])),
            truth: None,
            hidden: vec![],
        };
        let classes = vec!["right".to_owned(), "left".to_owned()];
        // Bought at both ends of the left half and just right of the middle; open is a grid over all.
        let train = [-1.0, -0.9, -0.8, 0.1, 0.15, 0.2].map(|x| example(x, true)).to_vec();
        let pool: Vec<Example> = (0..81).map(|at| example(at as f32 / 40.0 - 1.0, false)).collect();
        let bought = Split { train, pool, classes, ..Split::default() };
        let (student, method) = (StudentConfig::Mlp { hidden: vec![8] }, "losses = [{ kind = 'kd' }]");
        let train = TrainConfig { steps: 300, lr: 0.02, ..TrainConfig::default() };
        let control = Control { interrupt: std::sync::Arc::default(), progress: &|_| {}, resume: false };
        let chosen = |policy: &str| -> Vec<f32> {
            let acquire = config(&format!("policy = '{policy}'"));
            let method = toml::from_str(method).unwrap();
            let mut selector = Selector::new(&acquire, &student, &method, &train);
            let picks = selector.next(&bought, 5, 2, &control).unwrap().unwrap();
            assert!(picks.windows(2).all(|pair| pair[0].score >= pair[1].score), "{policy}: {picks:?}");
            picks.iter().map(|pick| pick.index as f32 / 40.0 - 1.0).collect()
        };
        for policy in ["margin", "entropy"] {
            let places = chosen(policy);
            assert!(places.iter().all(|x| (-0.8..0.2).contains(x)), "{policy}: {places:?}");
        }
        // Members agree where all was bought, and need not beyond what was.
        let places = chosen("committee");
        assert!(places.iter().all(|x| *x > -0.8), "{places:?}");
        assert_eq!(chosen("k-centre")[0], 1.0, "the far end, where nothing was bought");
    }

    #[test]
    fn scores_are_the_textbook_ones() {
        assert!((margin(&[0.2, 0.5, 0.3]) - 0.2).abs() < 1e-12);
        assert!((entropy(&[0.5, 0.5, 0.0]) - 2f64.ln()).abs() < 1e-12);
        let apart = [vec![1.0, 0.0], vec![0.0, 1.0]];
        assert!((disagreement(&apart) - 2f64.ln()).abs() < 1e-12);
        assert!(disagreement(&[vec![0.3, 0.7], vec![0.3, 0.7]]).abs() < 1e-12);
    }
}
