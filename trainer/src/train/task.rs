//! What a run is trained on: a split as tensors, checked against the method, and the digest of both.
//!
//! It must not know steps or files. Invariant: whatever a task's losses ask of a batch, the task has; what cannot be
//! trained is refused here, before the first step.

use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;

use super::{TrainConfig, TrainError};
use crate::compare::{Comparison, TUPLES_LIMIT, sample};
use crate::example::{Example, Input, Signal, Split, Target};
use crate::loss::{Balance, Batch, LossConfig, LossError, Maps, TaidLoss, balance, check_losses};
use crate::machine::Machine;
use crate::method::{
    CHECKPOINT, ConsistencyError, MethodConfig, Mixup, Phase, PlanError, ProxyConfig, ProxyError, column,
    extraction, progressive, warm_up,
};
use crate::student::{Built, Inputs, Mode, Student, StudentConfig};

/// A split, a student and a method, ready for any number of seeds.
pub(crate) struct Task {
    pub(crate) student: StudentConfig,
    pub(crate) method: MethodConfig,
    pub(crate) config: TrainConfig,
    pub(crate) machine: Machine,
    pub(crate) train: Part,
    pub(crate) validation: Option<Part>,
    /// The inputs that nobody asked about, where the method wants them.
    pub(crate) pool: Option<Pool>,
    /// What is learnt before the losses.
    pub(crate) phases: Vec<Phase>,
    /// The proxy teacher, which is trained on the same answers first.
    pub(crate) proxy: Option<Box<Task>>,
    /// What every seed begins with in the place of its own weights; not part of the digest, so never with checkpoints.
    pub(crate) begin: Option<Vec<Vec<f32>>>,
    /// The weights of the classes, where a loss wants them.
    balance: Option<Balance>,
    classes: usize,
    sample: Input,
    digests: (String, String),
}

/// One part of a split as tensors.
pub(crate) struct Part {
    pub(crate) inputs: Inputs,
    pub(crate) count: usize,
    pub(crate) teacher: Option<Tensor>,
    pub(crate) labels: Tensor,
    truth: Option<Tensor>,
    /// Shares of classes drawn from the teacher's distribution, and its last hidden tensor, where a loss wants them.
    samples: Option<Tensor>,
    hidden: Option<Tensor>,
}

/// Inputs without answers.
pub(crate) struct Pool {
    pub(crate) inputs: Inputs,
    pub(crate) count: usize,
}

impl Task {
    /// Checks everything and makes the tensors.
    pub(crate) fn new(
        split: &Split,
        student: &StudentConfig,
        method: &MethodConfig,
        config: &TrainConfig,
    ) -> Result<Self, TrainError> {
        split.check()?;
        Self::checked(split, digests(split), student, method, config)
    }

    /// As [`Task::new`], for a split that was checked.
    fn checked(
        split: &Split,
        digests: (String, String),
        student: &StudentConfig,
        method: &MethodConfig,
        config: &TrainConfig,
    ) -> Result<Self, TrainError> {
        let sample = split.train[0].input.clone();
        fits(student, method, config, &sample, split.pool.len())?;
        let gives = split.gives().ok_or(LossError::None)?;
        check_losses(&method.losses, gives)?;
        check_truth(&method.losses, &split.train)?;
        for shape in method.losses.iter().filter_map(LossConfig::tuples) {
            if shape.len() > split.train.len() {
                return Err(LossError::TooFew { needs: shape.len(), have: split.train.len() }.into());
            }
        }
        let machine = Machine::open(config.device, config.precision)?;
        let device = machine.device.clone();
        let classes = split.classes.len();
        let built = student.build(&sample, classes, 0, &machine)?;
        let phases = plan(split, &built, student, method, &device)?;
        let proxy = match &method.proxy {
            None => None,
            Some(proxy) => {
                let (method, own) = (proxy.method(method), proxied(proxy, config));
                Some(Box::new(Self::checked(split, digests.clone(), &proxy.student, &method, &own)?))
            }
        };
        let pool = if method.wants_pool() && !split.pool.is_empty() {
            let examples: Vec<&Example> = split.pool.iter().collect();
            Some(Pool { inputs: built.inputs(&examples)?, count: examples.len() })
        } else {
            None
        };
        let part = |examples: &[Example]| Part::new(&built, examples, &device);
        let mut train = part(&split.train)?;
        train.samples = samples(&method.losses, &split.train, &device)?;
        train.hidden = hidden(&method.losses, split, &device)?;
        let balanced = method.losses.iter().any(LossConfig::is_balanced);
        Ok(Self {
            balance: if balanced { Some(train.balance(classes)?) } else { None },
            train,
            validation: if split.validation.is_empty() { None } else { Some(part(&split.validation)?) },
            pool,
            phases,
            proxy,
            begin: None,
            digests,
            student: student.clone(),
            method: method.clone(),
            config: config.clone(),
            machine,
            classes,
            sample,
        })
    }

    /// A new student from `seed`.
    pub(crate) fn build(&self, seed: u64) -> candle_core::Result<Built> {
        let student = self.student.build(&self.sample, self.classes, seed, &self.machine)?;
        if let Some(values) = &self.begin {
            super::set_values(&student, values)?;
        }
        Ok(student)
    }

    /// The tuples that `rng` draws, if the losses want any.
    pub(crate) fn comparisons(&self, rng: &mut ChaCha8Rng) -> Option<Vec<Comparison>> {
        let shape = self.method.losses.iter().find_map(LossConfig::tuples)?;
        Some(sample(self.train.count, shape, TUPLES_LIMIT, rng))
    }

    /// The maps that the losses learn beside a student, one set a loss; none where none compares features.
    pub(crate) fn maps(&self, student: &Built, rng: &mut ChaCha8Rng) -> candle_core::Result<Vec<Maps>> {
        let Some(hidden) = &self.train.hidden else { return Ok(vec![]) };
        let sample = self.train.inputs.narrow(0, 1)?;
        let widths = [student.features(&sample, Mode::Inference)?.dim(1)?, hidden.dim(1)?];
        self.method.losses.iter().map(|loss| loss.maps(widths, rng, &self.machine)).collect()
    }

    /// The settings of a loss whose target moves towards the teacher, if there is one.
    pub(crate) fn interpolates(&self) -> Option<&TaidLoss> {
        self.method.losses.iter().find_map(LossConfig::interpolates)
    }

    /// The digest of all that decides a run's numbers, but for the seed; a checkpoint carries it.
    pub(crate) fn digest(&self) -> String {
        let settings = serde_json::json!({
            "student": self.student,
            "method": self.method,
            "train": TrainConfig { seeds: vec![], checkpoint_every: 0, ..self.config.clone() },
            "data": self.digests,
        });
        blake3::hash(settings.to_string().as_bytes()).to_hex().to_string()
    }

    /// Inputs and targets of the training examples at `rows`.
    pub(crate) fn batch(
        &self,
        rows: &[u32],
        weights: Option<Tensor>,
    ) -> candle_core::Result<(Inputs, Batch)> {
        let rows = Tensor::new(rows, &self.machine.device)?;
        let pick =
            |tensor: &Option<Tensor>| tensor.as_ref().map(|all| all.index_select(&rows, 0)).transpose();
        let labels = self.train.labels.index_select(&rows, 0)?;
        let batch = Batch {
            truth: pick(&self.train.truth)?,
            weights,
            samples: pick(&self.train.samples)?,
            hidden: pick(&self.train.hidden)?,
            balance: self.balance.clone(),
            answers: self.train.count,
            ..Batch::of(pick(&self.train.teacher)?, labels)
        };
        Ok((self.train.inputs.select(&rows)?, batch))
    }

    /// How many inputs there are to learn from without answers: the training examples, then the pool.
    pub(crate) fn everything(&self) -> usize {
        self.train.count + self.pool.as_ref().map_or(0, |pool| pool.count)
    }

    /// The inputs at `rows` of everything; those of the training examples come first.
    pub(crate) fn any(&self, rows: &[u32]) -> candle_core::Result<Inputs> {
        let own = self.train.count as u32;
        let (asked, not): (Vec<u32>, Vec<u32>) = rows.iter().partition(|row| **row < own);
        let asked = || self.train.inputs.select(&Tensor::new(&asked[..], &self.machine.device)?);
        let Some(pool) = self.pool.as_ref().filter(|_| !not.is_empty()) else { return asked() };
        let not: Vec<u32> = not.iter().map(|row| row - own).collect();
        let others = pool.inputs.select(&Tensor::new(&not[..], &self.machine.device)?)?;
        if not.len() == rows.len() { Ok(others) } else { asked()?.and(&others) }
    }

    /// Inputs of the pool at `rows`, with what the proxy says of them: logits `[M, C]`.
    pub(crate) fn proxied(&self, rows: &[u32], logits: &Tensor) -> candle_core::Result<(Inputs, Batch)> {
        let Some(pool) = &self.pool else { candle_core::bail!("a proxy labels a pool, and there is none") };
        let rows = Tensor::new(rows, &self.machine.device)?;
        let logits = logits.index_select(&rows, 0)?;
        let labels = logits.argmax(1)?;
        let batch = Batch { balance: self.balance.clone(), ..Batch::of(Some(logits), labels) };
        Ok((pool.inputs.select(&rows)?, batch))
    }

    /// Mixed inputs, with the targets of both sides.
    pub(crate) fn mixed(&self, rows: &[u32], mixup: &Mixup) -> candle_core::Result<(Inputs, Batch, Batch)> {
        let (inputs, batch) = self.batch(rows, None)?;
        let (others, other_batch) = self.batch(&mixup.partners, None)?;
        let mixed = match &mixup.kept {
            Some(kept) => inputs.patch(&others, kept)?,
            None => inputs.mix(&others, mixup.lambda)?,
        };
        Ok((mixed, batch, other_batch))
    }
}

/// How a proxy is trained: as its student, but for what it states itself.
pub(crate) fn proxied(proxy: &ProxyConfig, config: &TrainConfig) -> TrainConfig {
    TrainConfig {
        steps: proxy.steps.unwrap_or(config.steps),
        lr: proxy.lr.unwrap_or(config.lr),
        ema: proxy.ema,
        ..config.clone()
    }
}

/// Checks whatever can be checked before there are answers: the settings, and that the student and the method suit such inputs
/// and `pool` more of them that nobody asks about.
pub(crate) fn fits(
    student: &StudentConfig,
    method: &MethodConfig,
    config: &TrainConfig,
    sample: &Input,
    pool: usize,
) -> Result<(), TrainError> {
    config.check()?;
    // What a teacher gives is not known yet: no loss needs more than logits.
    check_losses(&method.losses, Signal::Logits)?;
    student.check(sample)?;
    let single = |loss: &LossConfig| loss.tuples().is_none() && !loss.compares_features();
    let mixable = student.build(sample, 2, 0, &Machine::cpu())?.mixable();
    let mixable = mixable && (!method.cutmix || student.image().is_some());
    let once = !(method.mixup && method.cutmix);
    if method.mixes() && !(mixable && once && method.losses.iter().all(single)) {
        return Err(TrainError::Mixup { student: student.name() });
    }
    match (&config.augment, student.image()) {
        (None, _) => {}
        (Some(_), None) => return Err(TrainError::Augment { student: student.name() }),
        (Some(augment), Some(image)) => augment.check(image, "train.augment")?,
    }
    if let Some(first) = &method.warm_up {
        warm_up(first, student, sample)?;
    }
    if let Some(consistency) = &method.consistency {
        consistency.check(method, student, pool, config.ema)?;
    }
    if let Some(proxy) = &method.proxy {
        proxy.check(method, pool)?;
        let inner = fits(&proxy.student, &proxy.method(method), &proxied(proxy, config), sample, pool);
        inner.map_err(within_the_proxy)?;
    }
    Ok(())
}

/// A refusal of what stands under `method.proxy`, which the check of a method names as if it stood under `method`.
fn within_the_proxy(mut error: TrainError) -> TrainError {
    let refused = match &mut error {
        TrainError::Proxy(ProxyError::Range(refused))
        | TrainError::Consistency(ConsistencyError::Range(refused)) => refused,
        _ => return error,
    };
    if let Some(rest) = refused.key.strip_prefix("method.") {
        refused.key = format!("method.proxy.{rest}");
    }
    error
}

/// What the method learns before its losses.
fn plan(
    split: &Split,
    student: &Built,
    config: &StudentConfig,
    method: &MethodConfig,
    device: &Device,
) -> Result<Vec<Phase>, PlanError> {
    let mut phases = Vec::new();
    if let Some(first) = &method.warm_up {
        phases.push(warm_up(first, config, &split.train[0].input)?);
    }
    let (name, signals, examples) = (config.name(), &split.layers, &split.train);
    if let Some(curriculum) = &method.curriculum {
        let sample = student.inputs(&[&examples[0]])?;
        let widths =
            (0..student.depth()).map(|layer| student.hidden(&sample, layer, Mode::Inference)?.dim(1));
        let widths = widths.collect::<candle_core::Result<Vec<usize>>>()?;
        phases.extend(extraction(curriculum, name, &widths, signals, examples, device)?);
    }
    if let Some(config) = &method.progressive {
        phases.extend(progressive(config, signals, split.classes.len(), examples, device)?);
    }
    Ok(phases)
}

impl Part {
    fn new(student: &Built, examples: &[Example], device: &Device) -> Result<Self, TrainError> {
        let count = examples.len();
        let borrowed: Vec<&Example> = examples.iter().collect();
        let targets: Vec<&Target> = examples.iter().filter_map(|example| example.target.as_ref()).collect();
        let labels: Vec<u32> = targets.iter().map(|target| target.label()).collect();
        let scores: Vec<f32> = targets
            .iter()
            .flat_map(|target| match target {
                Target::Logits(scores) | Target::LogProbabilities(scores) => scores.as_slice(),
                Target::Label(_) => &[],
            })
            .copied()
            .collect();
        // Scores of some answers only are of no use: the split then gives labels.
        let all_scored = targets.iter().all(|target| !matches!(target, Target::Label(_)));
        let teacher = if all_scored { Some(Tensor::from_vec(scores, (count, ()), device)?) } else { None };
        let truth: Option<Vec<u32>> = examples.iter().map(|example| example.truth).collect();
        Ok(Self {
            inputs: student.inputs(&borrowed)?,
            count,
            teacher,
            labels: Tensor::new(labels, device)?,
            truth: truth.map(|classes| Tensor::new(classes, device)).transpose()?,
            samples: None,
            hidden: None,
        })
    }

    /// The weights of `classes` classes.
    fn balance(&self, classes: usize) -> candle_core::Result<Balance> {
        let truth = self.truth.as_ref().map(|truth| balance(truth, classes)).transpose()?;
        Ok(Balance { teacher: balance(&self.labels, classes)?, truth })
    }
}

/// What a loss wants drawn from the teacher's distribution, for every training example.
fn samples(
    losses: &[LossConfig],
    examples: &[Example],
    device: &Device,
) -> candle_core::Result<Option<Tensor>> {
    let Some(loss) = losses.iter().find_map(LossConfig::samples) else { return Ok(None) };
    let shares = |example: &Example| match &example.target {
        Some(Target::Logits(scores) | Target::LogProbabilities(scores)) => loss.shares(&example.key, scores),
        Some(Target::Label(_)) | None => vec![],
    };
    let all: Vec<f32> = examples.iter().flat_map(shares).collect();
    Tensor::from_vec(all, (examples.len(), ()), device).map(Some)
}

/// The teacher's last hidden tensor for every training example, where a loss wants it.
fn hidden(losses: &[LossConfig], split: &Split, device: &Device) -> Result<Option<Tensor>, TrainError> {
    let Some(loss) = losses.iter().find(|loss| loss.compares_features()) else { return Ok(None) };
    let last = split.layers.iter().rposition(|layer| !layer.starts_with(CHECKPOINT));
    let place = last.ok_or(LossError::Hidden { loss: loss.name() })?;
    let width = split.train[0].hidden[place].len();
    Ok(Some(column(&split.train, place, width, device)?))
}

fn check_truth(losses: &[LossConfig], examples: &[Example]) -> Result<(), LossError> {
    let Some(loss) = losses.iter().find(|loss| loss.asks_truth()) else {
        return Ok(());
    };
    match examples.iter().find(|example| example.truth.is_none()) {
        Some(example) => Err(LossError::Truth { loss: loss.name(), key: example.key.clone() }),
        None => Ok(()),
    }
}

/// The digests of a split: of its keys, inputs, truth and classes; and of its keys and recorded answers.
pub(crate) fn digests(split: &Split) -> (String, String) {
    let (mut data, mut record) = (blake3::Hasher::new(), blake3::Hasher::new());
    let text = |hasher: &mut blake3::Hasher, value: &[u8]| {
        hasher.update(&(value.len() as u64).to_le_bytes());
        hasher.update(value);
    };
    split.classes.iter().for_each(|class| text(&mut data, class.as_bytes()));
    split.layers.iter().for_each(|layer| text(&mut record, layer.as_bytes()));
    for (name, examples) in split.parts() {
        let part = format!("{name} {}", examples.len());
        text(&mut data, part.as_bytes());
        text(&mut record, part.as_bytes());
        for Example { key, input, target, truth, hidden } in examples {
            text(&mut data, key.as_bytes());
            text(&mut data, &input_bytes(input));
            text(&mut data, format!("{truth:?}").as_bytes());
            text(&mut record, key.as_bytes());
            let given = target.as_ref().map(|target| (target.gives(), target.label()));
            text(&mut record, format!("{given:?}").as_bytes());
            if let Some(Target::Logits(scores) | Target::LogProbabilities(scores)) = target {
                text(&mut record, &scores.iter().flat_map(|score| score.to_le_bytes()).collect::<Vec<u8>>());
            }
            for values in hidden {
                text(&mut record, &values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
            }
        }
    }
    (data.finalize().to_hex().to_string(), record.finalize().to_hex().to_string())
}

fn input_bytes(input: &Input) -> Vec<u8> {
    match input {
        Input::Vector(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Input::Bytes(symbols) => symbols.iter().flat_map(|symbol| symbol.to_le_bytes()).collect(),
    }
}
