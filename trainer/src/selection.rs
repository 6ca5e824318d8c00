//! Which inputs are bought: the settings of all rounds, and the first of them, by where the inputs lie.
//!
//! It must not know teachers or budgets. Invariants: what is held out and what validates is never chosen by a policy (they
//! are drawn at random, so what is measured on them stays unbiased); the same answers and seed choose the same inputs; a
//! chance is stated where inputs are drawn and absent where they are picked.

mod selector;

use serde::{Deserialize, Serialize};

use crate::example::Input;
use crate::space::{Clusters, Components, k_centre, rows};
use crate::train::{TrainError, stream};

pub use selector::Selector;
pub(crate) use selector::entropy;

/// Components that inputs are placed by.
const COMPONENTS: usize = 50;
/// Clusters of a stratified draw.
const STRATA: usize = 50;
/// The first of the random streams of rounds.
const STREAMS: u64 = 1 << 33;

/// How the first round is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum First {
    /// Uniformly.
    #[default]
    Random,
    /// From clusters of the inputs, in proportion to their sizes.
    Stratified,
    /// The nearest input to each of as many centres.
    KMeans,
    /// Each the farthest from those before.
    KCentre,
}

/// How later rounds are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// There are none: all is drawn as the first round is.
    #[default]
    Random,
    /// The least gap between the student's two most probable classes.
    Margin,
    /// The greatest entropy of its probabilities.
    Entropy,
    /// The greatest disagreement of several students.
    Committee,
    /// The farthest in its features from what was bought.
    KCentre,
}

/// Which network scores the inputs of later rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scorer {
    /// The student, by its losses alone.
    #[default]
    Student,
    /// The network of `method.proxy`, with its warm-up.
    Proxy,
}

impl First {
    /// Its name in a run file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Stratified => "stratified",
            Self::KMeans => "k-means",
            Self::KCentre => "k-centre",
        }
    }
}

impl Policy {
    /// Its name in a run file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Margin => "margin",
            Self::Entropy => "entropy",
            Self::Committee => "committee",
            Self::KCentre => "k-centre",
        }
    }
}

/// The `[acquire]` table of a run file: which inputs are bought.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AcquireConfig {
    /// The seed of the order in which inputs are drawn, and of all else that is random here; runs of one seed that draw alike
    /// share what they buy.
    pub seed: u64,
    /// How the first round is drawn.
    pub first: First,
    /// How later rounds are chosen.
    pub policy: Policy,
    /// The rounds, the first included.
    pub rounds: usize,
    /// The share of the training answers that the first round buys; later rounds share the rest evenly.
    pub share: f64,
    /// Inputs that are drawn at random and scored in a later round.
    pub candidates: usize,
    /// Which network scores them.
    pub scorer: Scorer,
    /// The networks of a committee.
    pub members: usize,
    /// Steps of the networks that score; none: the run's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Whether they go on from the weights of the round before.
    pub warm_start: bool,
}

impl Default for AcquireConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            first: First::Random,
            policy: Policy::Random,
            rounds: 2,
            share: 0.5,
            candidates: 2500,
            scorer: Scorer::Student,
            members: 4,
            steps: None,
            warm_start: false,
        }
    }
}

impl AcquireConfig {
    /// Whether a run file need not say it.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether inputs are bought in the order of the draw, so that nothing is to be chosen.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.first == First::Random && self.policy == Policy::Random
    }
}

/// A chosen input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pick {
    /// Its place among the inputs that it was chosen from.
    pub index: usize,
    /// What it was chosen by, the greatest first; none where nothing was compared.
    pub score: Option<f64>,
    /// With what probability it was drawn; none where it was picked.
    pub chance: Option<f64>,
}

/// How many training answers each round buys, of `total`.
#[must_use]
pub fn rounds(config: &AcquireConfig, total: usize) -> Vec<usize> {
    if config.policy == Policy::Random || config.rounds < 2 {
        return vec![total];
    }
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count of inputs times a fraction"
    )]
    let first = ((total as f64 * config.share).round() as usize).clamp(1.min(total), total);
    let later = config.rounds - 1;
    let rest = total - first;
    let mut all = vec![first];
    all.extend((0..later).map(|at| rest / later + usize::from(at < rest % later)));
    all.retain(|count| *count > 0);
    all
}

/// Chooses the first `count` of `inputs`, which lie in the order of a random draw.
///
/// # Errors
/// When the inputs are not of one kind and width.
pub fn first(config: &AcquireConfig, inputs: &[&Input], count: usize) -> Result<Vec<Pick>, TrainError> {
    let (n, count) = (inputs.len(), count.min(inputs.len()));
    let picked = |index| Pick { index, score: None, chance: None };
    if config.first == First::Random {
        let chance = Some(count as f64 / n.max(1) as f64);
        return Ok((0..count).map(|index| Pick { index, score: None, chance }).collect());
    }
    if count == 0 {
        return Ok(vec![]);
    }
    let mut rng = stream(config.seed, STREAMS);
    let rows = rows(inputs.iter().copied())?;
    let places = Components::of(&rows, COMPONENTS, &mut rng)?.places(&rows)?;
    if config.first == First::KCentre {
        return Ok(k_centre(&places, None, count)?.into_iter().map(picked).collect());
    }
    let centres = if config.first == First::KMeans { count } else { STRATA.min(count) };
    let clusters = Clusters::of(&places, centres, &mut rng)?;
    if config.first == First::KMeans {
        return Ok(clusters.representatives(&places)?.into_iter().map(picked).collect());
    }
    Ok(stratified(&clusters.assign(&places)?, count))
}

/// `count` of the inputs, from each cluster in proportion to its size (largest remainder), the first ones in their order.
fn stratified(clusters: &[u32], count: usize) -> Vec<Pick> {
    let most = clusters.iter().max().map_or(0, |most| *most as usize + 1);
    let mut members: Vec<Vec<usize>> = vec![vec![]; most];
    clusters.iter().enumerate().for_each(|(at, own)| members[*own as usize].push(at));
    let exact = |of: &Vec<usize>| of.len() * count;
    let mut shares: Vec<usize> = members.iter().map(|of| exact(of) / clusters.len()).collect();
    let mut order: Vec<usize> = (0..most).collect();
    order.sort_by_key(|at| std::cmp::Reverse(exact(&members[*at]) % clusters.len()));
    let missing = count - shares.iter().sum::<usize>();
    order.into_iter().take(missing).for_each(|at| shares[at] += 1);
    let mut picks: Vec<Pick> = members
        .iter()
        .zip(shares)
        .flat_map(|(members, share)| {
            let chance = Some(share as f64 / members.len().max(1) as f64);
            members.iter().take(share).map(move |index| Pick { index: *index, score: None, chance })
        })
        .collect();
    picks.sort_by_key(|pick| pick.index);
    picks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> AcquireConfig {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn rounds_add_up() {
        assert_eq!(rounds(&config(""), 100), [100]);
        assert_eq!(rounds(&config("policy = 'margin'"), 101), [51, 50]);
        assert_eq!(rounds(&config("policy = 'margin'\nrounds = 4\nshare = 0.25"), 10), [3, 3, 2, 2]);
        assert_eq!(rounds(&config("policy = 'margin'\nrounds = 4"), 1), [1]);
        assert_eq!(rounds(&config("policy = 'margin'\nshare = 0.0"), 9), [1, 8]);
    }

    #[test]
    fn a_stratified_draw_is_in_proportion_and_says_its_chances() {
        let clusters: Vec<u32> = [vec![0; 60], vec![1; 30], vec![2; 10]].concat();
        let picks = stratified(&clusters, 10);
        let of = |cluster: u32| picks.iter().filter(|pick| clusters[pick.index] == cluster).count();
        assert_eq!((of(0), of(1), of(2)), (6, 3, 1));
        // Horvitz and Thompson: the inverse chances add up to the pool.
        let pool: f64 = picks.iter().map(|pick| 1.0 / pick.chance.unwrap()).sum();
        assert!((pool - 100.0).abs() < 1e-9, "{pool}");
        assert_eq!(stratified(&[0, 1, 1], 2).len(), 2);
    }

    #[test]
    fn first_rounds_are_distinct_and_repeat_themselves() {
        let inputs: Vec<Input> = (0..120)
            .map(|at| Input::Vector(vec![(at as f32).sin(), (at as f32 * 0.7).cos(), (at % 3) as f32 * 4.0]))
            .collect();
        let inputs: Vec<&Input> = inputs.iter().collect();
        for name in ["random", "stratified", "k-means", "k-centre"] {
            let config = config(&format!("first = '{name}'"));
            let picks = first(&config, &inputs, 17).unwrap();
            assert_eq!(picks, first(&config, &inputs, 17).unwrap(), "{name}");
            let places: std::collections::BTreeSet<usize> = picks.iter().map(|pick| pick.index).collect();
            assert_eq!(places.len(), 17, "{name}");
            let drawn = picks.iter().all(|pick| pick.chance.is_some());
            assert_eq!(drawn, ["random", "stratified"].contains(&name), "{name}");
            assert_eq!(first(&config, &inputs, 500).unwrap().len(), 120, "{name}");
        }
    }
}
