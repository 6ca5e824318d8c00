//! What the loop promises: it learns, it repeats itself bit for bit, and it resumes as if nothing had happened.

use super::*;
use crate::augment::Augment;
use crate::example::{Example, Input, Split, Target};
use crate::loss::{CkdLoss, LossConfig};
use crate::method::MethodConfig;
#[cfg(feature = "cuda")]
use crate::ops::Precision;
use crate::optimizer::{Rule, Schedule};
#[cfg(feature = "cuda")]
use crate::processor::Processor;
use crate::student::{CnnConfig, ResnetConfig, ResnetModel, Stage, StudentConfig};

/// Points on a plane, a linear teacher of three classes.
fn split() -> Split {
    let example = |at: usize| {
        let (x, y) = ((at as f32 * 1.7).sin(), (at as f32 * 0.9).cos());
        let scores = vec![3.0 * x, 3.0 * y - 1.0, -2.0 * x - y + 4.0];
        let truth = Some(argmax(&scores));
        Example {
            key: format!("k{at}"),
            input: Input::Vector(vec![x, y]),
            target: Some(Target::Logits(scores)),
            truth,
            hidden: vec![
                vec![x + y, x - y, x * y],
                vec![x, y, 0.0, x.abs(), y.abs(), -x, -y, 1.0],
                vec![x, y - 1.0, 3.0],
            ],
        }
    };
    let classes = ["a", "b", "c"].map(str::to_owned).to_vec();
    let part = |range: std::ops::Range<usize>| range.map(example).collect();
    Split {
        train: part(0..40),
        validation: part(40..60),
        test: part(60..160),
        classes,
        layers: ["relu1", "relu2", "checkpoint.young"].map(str::to_owned).to_vec(),
        ..Split::default()
    }
}

fn method(losses: &str) -> MethodConfig {
    toml::from_str(losses).unwrap()
}

const METHODS: [&str; 14] = [
    "losses = [{ kind = 'ckd' }]",
    "losses = [{ kind = 'ckd', tuples = 'all', positives = 2 }]",
    "losses = [{ kind = 'ckd', form = 'kl' }, { kind = 'logit-mse' }]",
    "losses = [{ kind = 'labels', of = 'truth' }, { kind = 'kd' }]\nmixup = true",
    "losses = [{ kind = 'labels' }, { kind = 'rkd', weight = 25.0 }]",
    // Stopped at 20, the first is in its second phase, and the second in its only one.
    "losses = [{ kind = 'kd' }]\ncurriculum = { steps = 15, layers = [{ student = 1, teacher = 'relu1' }, { student = 1, teacher = 'relu2' }] }",
    "losses = [{ kind = 'ckd' }]\ncurriculum = { steps = 30, match = 'direct' }",
    "losses = [{ kind = 'kd' }]\ncurriculum = { steps = 1000, patience = 1 }",
    "losses = [{ kind = 'kd' }]\ncurriculum = { steps = 10 }\nprogressive = { steps = 15 }",
    "losses = [{ kind = 'taid', rate = 0.05 }]",
    "losses = [{ kind = 'sampled' }]",
    "losses = [{ kind = 'kd' }, { kind = 'sp' }]",
    "losses = [{ kind = 'kd' }, { kind = 'fitnet' }, { kind = 'crd', width = 4 }]\ncurriculum = { steps = 12 }",
    "losses = [{ kind = 'ckd' }, { kind = 'ckd', on = 'features' }]",
];

fn config(rule: Rule) -> TrainConfig {
    TrainConfig {
        steps: 40,
        batch: 16,
        optimizer: rule,
        lr: 0.01,
        schedule: Schedule::Cosine,
        warmup: 3,
        weight_decay: 1e-3,
        clip: Some(5.0),
        evaluate_every: 8,
        checkpoint_every: 7,
        ..TrainConfig::default()
    }
}

fn student() -> StudentConfig {
    StudentConfig::Mlp { hidden: vec![8] }
}

fn control(resume: bool) -> Control<'static> {
    Control { interrupt: Arc::default(), progress: &|_| {}, resume }
}

fn bits(trained: &Trained) -> Vec<u32> {
    values(&trained.student).unwrap().concat().into_iter().map(f32::to_bits).collect()
}

fn finished(ended: Ended) -> Trained {
    match ended {
        Ended::Finished(trained) => *trained,
        Ended::Interrupted { step } => panic!("interrupted at step {step}"),
    }
}

#[test]
fn forty_steps_are_twenty_and_twenty_more() {
    let split = split();
    for rule in [Rule::Adamw, Rule::Sgd] {
        for losses in METHODS {
            let (student, method, config) = (student(), method(losses), config(rule));
            let task = Task::new(&split, &student, &method, &config).unwrap();
            let straight = finished(train(&task, 5, None, &control(false)).unwrap());
            let again = finished(train(&task, 5, None, &control(false)).unwrap());
            assert_eq!(bits(&straight), bits(&again), "{losses}");

            let folder = tempfile::tempdir().unwrap();
            let kept = Some((folder.path(), "method"));
            let interrupt: Arc<AtomicBool> = Arc::default();
            let stop_at_20 = |progress: &Progress| interrupt.store(progress.step == 20, Ordering::Relaxed);
            let stopping = Control { interrupt: interrupt.clone(), progress: &stop_at_20, resume: true };
            match train(&task, 5, kept, &stopping).unwrap() {
                Ended::Interrupted { step } => assert_eq!(step, 20),
                Ended::Finished(_) => panic!("nobody stopped it"),
            }
            let resumed = finished(train(&task, 5, kept, &control(true)).unwrap());
            assert_eq!(bits(&straight), bits(&resumed), "{losses} {rule:?}");
            assert_eq!(straight.rows, resumed.rows);
            let other_seed = finished(train(&task, 6, None, &control(false)).unwrap());
            assert_ne!(bits(&straight), bits(&other_seed));
        }
    }
}

/// Small pictures, bright on one of three sides, and a teacher that says which.
fn pictures() -> Split {
    let example = |at: usize| {
        let class = at % 3;
        let value = |i: usize| {
            let bright = [i % 6 < 2, i % 6 > 3, i / 6 < 2][class];
            f32::from(u8::from(bright)) * 0.8 + ((at * 13 + i * 7) as f32).sin().abs() * 0.2
        };
        let mut scores = vec![0.0; 3];
        scores[class] = 4.0;
        Example {
            key: format!("k{at}"),
            input: Input::Vector((0..36).map(value).collect()),
            target: Some(Target::Logits(scores)),
            truth: Some(class as u32),
            hidden: vec![vec![class as f32, 1.0 - class as f32]],
        }
    };
    let classes = ["left", "right", "top"].map(str::to_owned).to_vec();
    let part = |range: std::ops::Range<usize>| range.map(example).collect();
    Split {
        train: part(0..40),
        validation: part(40..60),
        test: part(60..90),
        classes,
        layers: vec!["relu1".into()],
        ..Split::default()
    }
}

fn image_students() -> [StudentConfig; 2] {
    let stages = [4, 6].map(|channels| Stage { channels, kernel: 3, stride: 1 }).to_vec();
    let image = [1, 6, 6];
    [
        StudentConfig::Cnn(CnnConfig { image, stages, width: 1, pool: 2 }),
        StudentConfig::Resnet(ResnetConfig { image, model: ResnetModel::Resnet8 }),
    ]
}

#[test]
fn image_students_resume_bit_for_bit_with_their_statistics_and_augmentation() {
    let split = pictures();
    let augment = Some(Augment { crop: 1, flip: true, ..Augment::default() });
    let config = TrainConfig { steps: 16, augment, ..config(Rule::Adamw) };
    for student in image_students() {
        let curriculum = "losses = [{ kind = 'kd' }]\ncurriculum = { steps = 6 }";
        let cut = "losses = [{ kind = 'labels' }, { kind = 'kd' }]\ncutmix = true";
        let plain = "losses = [{ kind = 'labels' }, { kind = 'kd' }]";
        for losses in [plain, METHODS[0], METHODS[3], curriculum, cut] {
            let method = method(losses);
            let task = Task::new(&split, &student, &method, &config).unwrap();
            let straight = finished(train(&task, 5, None, &control(false)).unwrap());
            let folder = tempfile::tempdir().unwrap();
            let kept = Some((folder.path(), "method"));
            let interrupt: Arc<AtomicBool> = Arc::default();
            let stop_at_9 = |progress: &Progress| interrupt.store(progress.step == 9, Ordering::Relaxed);
            let stopping = Control { interrupt: interrupt.clone(), progress: &stop_at_9, resume: true };
            assert!(matches!(train(&task, 5, kept, &stopping).unwrap(), Ended::Interrupted { step: 9 }));
            let resumed = finished(train(&task, 5, kept, &control(true)).unwrap());
            assert_eq!(bits(&straight), bits(&resumed), "{losses}");
            assert_eq!(straight.rows, resumed.rows);
            let plain = TrainConfig { augment: None, ..config.clone() };
            let plain = Task::new(&split, &student, &method, &plain).unwrap();
            let plain = finished(train(&plain, 5, None, &control(false)).unwrap());
            assert_ne!(bits(&straight), bits(&plain), "augmentation changes what is learnt");
        }
    }
}

#[test]
fn image_students_learn_and_the_best_look_keeps_its_statistics() {
    let split = pictures();
    let method = method("losses = [{ kind = 'labels' }, { kind = 'kd' }]");
    let config = TrainConfig { steps: 60, augment: None, ..config(Rule::Adamw) };
    for student in image_students() {
        let task = Task::new(&split, &student, &method, &config).unwrap();
        let trained = finished(train(&task, 0, None, &control(false)).unwrap());
        let best = trained.rows.iter().filter_map(|row| row.validation_loss).fold(f32::INFINITY, f32::min);
        let (kept, agreement) = validate(&trained.student, task.validation.as_ref().unwrap()).unwrap();
        assert_eq!(kept, best, "{}", student.name());
        assert!(agreement >= 0.9, "{}: {agreement}", student.name());
    }
}

#[test]
fn augmentation_without_images_is_refused_by_name() {
    let (split, student, method) = (split(), student(), method(METHODS[0]));
    let config = TrainConfig {
        augment: Some(Augment { crop: 2, flip: true, ..Augment::default() }),
        ..config(Rule::Adamw)
    };
    let error = Task::new(&split, &student, &method, &config).err().unwrap();
    assert_eq!(error.to_string(), "`train.augment` changes images; student `mlp` takes none");
}

#[test]
fn a_checkpoint_of_other_settings_is_refused_and_a_damaged_one_named() {
    let (split, student, method) = (split(), student(), method(METHODS[0]));
    let config = config(Rule::Adamw);
    let folder = tempfile::tempdir().unwrap();
    let kept = Some((folder.path(), "method"));
    let task = Task::new(&split, &student, &method, &config).unwrap();
    train(&task, 0, kept, &control(false)).unwrap();
    let changed = TrainConfig { lr: 0.02, ..config.clone() };
    let other = Task::new(&split, &student, &method, &changed).unwrap();
    let error = train(&other, 0, kept, &control(true)).err().unwrap();
    assert!(matches!(error, TrainError::OtherRun { .. }), "{error}");
    let file = checkpoint::path(folder.path(), "method", 0);
    std::fs::write(&file, b"no checkpoint").unwrap();
    let error = train(&task, 0, kept, &control(true)).err().unwrap();
    assert!(error.to_string().contains("method-seed-0.safetensors"), "{error}");
}

#[test]
fn students_learn_and_the_published_form_does_not_put_the_offset_back() {
    let (split, student) = (split(), student());
    let config = TrainConfig { steps: 400, ..config(Rule::Adamw) };
    let agreement = |losses: &str| {
        let method = method(losses);
        let task = Task::new(&split, &student, &method, &config).unwrap();
        let trained = finished(train(&task, 0, None, &control(false)).unwrap());
        trained.rows.last().unwrap().validation_agreement.unwrap()
    };
    for losses in METHODS {
        assert!(agreement(losses) >= 0.85, "{losses}: {}", agreement(losses));
    }
    assert!(agreement("losses = [{ kind = 'ckd' }]\noffset_fix = false") < 0.75);
}

#[test]
fn a_seed_stops_when_validation_stands_still() {
    let (split, student, method) = (split(), student(), method("losses = [{ kind = 'labels' }]"));
    // A rate that overshoots: it gets worse soon.
    let config = TrainConfig { lr: 0.5, steps: 4000, patience: 3, ..config(Rule::Adamw) };
    let task = Task::new(&split, &student, &method, &config).unwrap();
    let trained = finished(train(&task, 0, None, &control(false)).unwrap());
    assert!(trained.rows.last().unwrap().step < 4000);
    let losses: Vec<f32> = trained.rows.iter().filter_map(|row| row.validation_loss).collect();
    let best = losses.iter().copied().fold(f32::INFINITY, f32::min);
    assert_eq!(losses.len() - 1 - losses.iter().position(|loss| *loss == best).unwrap(), 3);
    let (kept, _) = validate(&trained.student, task.validation.as_ref().unwrap()).unwrap();
    assert_eq!(kept, best, "the best look is what is kept");
}

#[test]
fn a_phase_ends_when_it_stands_still_or_after_its_steps() {
    let (split, student) = (split(), student());
    let config = config(Rule::Adamw);
    let steps = |curriculum: &str| {
        let method = method(&format!("losses = [{{ kind = 'kd' }}]\ncurriculum = {curriculum}"));
        let task = Task::new(&split, &student, &method, &config).unwrap();
        finished(train(&task, 0, None, &control(false)).unwrap()).rows.last().unwrap().step
    };
    assert_eq!(steps("{ steps = 25 }"), 25 + 40);
    let stood_still = steps("{ steps = 5000, patience = 2 }");
    assert!(stood_still < 5000 && (stood_still - 40).is_multiple_of(config.evaluate_every), "{stood_still}");
}

#[test]
fn what_cannot_be_trained_is_refused_before_the_first_step() {
    let check = |split: Split, losses: &str, config: TrainConfig, expected: &str| {
        let method = method(losses);
        let student = student();
        let error = Task::new(&split, &student, &method, &config).err().expect(expected);
        assert_eq!(error.to_string(), expected);
    };
    let labelled = || {
        let mut split = split();
        split.train[3].target = Some(Target::Label(1));
        split
    };
    let default = TrainConfig::default;
    check(
        labelled(),
        "losses = [{ kind = 'kd' }]",
        default(),
        "loss `kd` needs log-probabilities, but the teacher gives label",
    );
    let mut untrue = split();
    untrue.train[7].truth = None;
    check(
        untrue,
        "losses = [{ kind = 'labels', of = 'truth' }]",
        default(),
        "loss `labels` needs the truth (`of = \"truth\"`), but `k7` has none",
    );
    let mut unseen = split();
    unseen.train[5].hidden.pop();
    check(
        unseen,
        "losses = [{ kind = 'kd' }]\ncurriculum = { steps = 5 }",
        default(),
        "the answer to `k5` has hidden tensors of [3, 8] numbers, but the others have [3, 8, 3]",
    );
    check(
        split(),
        "losses = [{ kind = 'kd' }]\ncurriculum = { steps = 5, match = 'direct', layers = [{ student = 1, teacher = 'relu1' }] }",
        default(),
        "layer 1 of the student has 8 numbers and `relu1` was recorded as 3: `match = \"direct\"` needs as many; `match = \"head\"` does not",
    );
    let few = Split { train: split().train[..2].to_vec(), ..split() };
    check(
        few,
        "losses = [{ kind = 'ckd', positives = 2 }]",
        default(),
        "a tuple of loss `ckd` takes 3 examples, but there are 2",
    );
    check(
        split(),
        METHODS[0],
        TrainConfig { batch: 0, ..default() },
        "`train.batch` is 0; it must be 1 or more",
    );
}

#[test]
fn seeds_are_lists_or_ranges() {
    assert_eq!(parse_seeds("0..4"), Ok(vec![0, 1, 2, 3]));
    assert_eq!(parse_seeds("7"), Ok(vec![7]));
    assert_eq!(parse_seeds("1, 5"), Ok(vec![1, 5]));
    for wrong in ["4..0", "a", "", "0..99999", "1..b"] {
        assert!(parse_seeds(wrong).is_err(), "{wrong}");
    }
    let config: TrainConfig = toml::from_str("seeds = \"2..4\"").unwrap();
    assert_eq!(config.seeds, [2, 3]);
}

#[test]
fn a_loss_that_left_the_numbers_is_an_error() {
    let (split, student, method) = (split(), student(), method("losses = [{ kind = 'logit-mse' }]"));
    let config = TrainConfig { lr: 1e12, clip: None, ..config(Rule::Sgd) };
    let task = Task::new(&split, &student, &method, &config).unwrap();
    let error = train(&task, 3, None, &control(false)).err().unwrap();
    assert!(matches!(error, TrainError::Diverged { seed: 3, .. }), "{error}");
}

#[test]
fn losses_parse_as_the_run_file_has_them() {
    let parsed = method(
        "losses = [{ kind = 'ckd', form = 'mse', positives = 1, negatives = 1, weight = 1.0 }]\noffset_fix = true",
    );
    assert!(matches!(&parsed.losses[..], [LossConfig::Ckd(CkdLoss { positives: 1, .. })]));
    assert_eq!(parsed.name(), "ckd");
}

#[cfg(feature = "cuda")]
mod cuda;
mod unasked;
