//! Made inputs are new, lie where they should, and are the same the next time.

use super::*;
use crate::explore::ExploreConfig;
use crate::loss::{KdLoss, LossConfig};
use crate::method::MethodConfig;
use crate::selection::AcquireConfig;
use crate::student::StudentConfig;
use crate::train::TrainConfig;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const REAL: usize = 24;

fn scores(row: &[f32]) -> Vec<f32> {
    vec![2.0 * row[0], 2.0 * row[1] - 1.0, -row[0] - row[1]]
}

/// Points of a plane in three dimensions, answered by a linear teacher.
fn examples() -> Vec<Example> {
    let example = |at: usize| {
        let (x, y) = ((at as f32 * 1.7).sin(), (at as f32 * 0.9).cos());
        let row = vec![x, y, x + y];
        let target = Some(Target::Logits(scores(&row)));
        Example { key: format!("k{at}"), input: Input::Vector(row), target, truth: None, hidden: vec![] }
    };
    (0..REAL).map(example).collect()
}

fn split() -> Split {
    let classes = ["a", "b", "c"].map(str::to_owned).to_vec();
    Split { train: examples(), classes, ..Split::default() }
}

struct World {
    config: ExploreConfig,
    acquire: AcquireConfig,
    student: StudentConfig,
    inputs: Vec<Input>,
}

impl World {
    fn new(text: &str) -> Self {
        Self {
            config: toml::from_str(&format!("calls = 60\n{text}")).unwrap(),
            acquire: AcquireConfig::default(),
            student: StudentConfig::Mlp { hidden: vec![8] },
            inputs: examples().into_iter().map(|example| example.input).collect(),
        }
    }

    fn explorer(&self) -> Explorer<'_> {
        let kd = LossConfig::Kd(KdLoss { weight: 1.0, temperature: 1.0 });
        let train = TrainConfig { steps: 60, lr: 1e-2, ..TrainConfig::default() };
        let selector = Selector::new(&self.acquire, &self.student, &MethodConfig::of(vec![kd]), &train);
        let inputs: Vec<&Input> = self.inputs.iter().collect();
        Explorer::new(&self.config, 5, selector, &inputs, &inputs, None).unwrap()
    }

    fn made(&self, counts: &[usize]) -> Result<Vec<Explored>, ExploreError> {
        let (mut explorer, mut all) = (self.explorer(), Vec::new());
        for count in counts {
            all.extend(explorer.next(&split(), REAL, *count, &control(false))?.unwrap());
        }
        Ok(all)
    }
}

fn control(interrupted: bool) -> Control<'static> {
    Control { interrupt: Arc::new(AtomicBool::new(interrupted)), progress: &|_| {}, resume: false }
}

#[test]
fn every_kind_makes_new_inputs_within_the_ranges_and_the_same_again() {
    for kind in ["random", "gradient", "choice", "mixup", "noise"] {
        let world = World::new(&format!("kind = '{kind}'"));
        let made = world.made(&[30, 20]).unwrap();
        let explorer = world.explorer();
        let mut rows: BTreeSet<Vec<u32>> = world.inputs.iter().map(|input| bits(&values(input))).collect();
        for made in &made {
            let row = values(&made.input);
            assert!(rows.insert(bits(&row)), "{kind}: made twice");
            assert_eq!(explorer.ranges.clamp(&row), row, "{kind}");
            assert_eq!(made.score.is_some(), world.config.kind.asks_student(), "{kind}");
        }
        assert_eq!(rows.len(), REAL + 50, "{kind}");
        assert_eq!(made, world.made(&[30, 20]).unwrap(), "{kind}");
    }
    // Where no answers are looked at, a greater budget goes on where a smaller one ended.
    for kind in ["random", "noise"] {
        let world = World::new(&format!("kind = '{kind}'"));
        assert_eq!(world.made(&[50]).unwrap(), world.made(&[20, 30]).unwrap(), "{kind}");
    }
}

#[test]
fn decoded_inputs_lie_where_the_data_lie_and_noise_does_not() {
    let off = |kind: &str| {
        let made = World::new(&format!("kind = '{kind}'\nsigma = 0.2")).made(&[40]).unwrap();
        let off = made.iter().map(|made| {
            let row = values(&made.input);
            (row[0] + row[1] - row[2]).abs()
        });
        off.fold(0.0f32, f32::max)
    };
    assert!(off("noise") > 0.1, "{}", off("noise"));
    // Only values that were cut at the range of their column leave the plane.
    let world = World::new("kind = 'random'\nsigma = 0.2");
    let explorer = world.explorer();
    let made = world.made(&[40]).unwrap();
    let inner = made.iter().map(|made| values(&made.input)).filter(|row| {
        let wide: Vec<f32> = row.iter().map(|value| value * 1.0001).collect();
        explorer.ranges.clamp(&wide) == wide
    });
    let inner: Vec<Vec<f32>> = inner.collect();
    assert!(inner.len() > 10, "{}", inner.len());
    for row in inner {
        assert!((row[0] + row[1] - row[2]).abs() < 1e-4, "{row:?}");
    }
}

fn student(world: &World) -> Built {
    let mut explorer = world.explorer();
    explorer.selector.student(&split(), 0, &control(false)).unwrap().unwrap()
}

#[test]
fn the_gradient_leads_to_where_student_and_teacher_disagree() {
    let world = World::new("kind = 'gradient'\nsteps = 2\nstep = 0.1");
    let (explorer, student) = (world.explorer(), student(&world));
    let generator = explorer.generator.as_ref().unwrap();
    let labels: Vec<Example> = examples()
        .into_iter()
        .map(|example| Example {
            target: example.target.as_ref().map(|target| Target::Label(target.label())),
            ..example
        })
        .collect();
    for examples in [examples(), labels] {
        let answers = Answers::of(examples.iter()).unwrap();
        let inputs = rows(examples.iter().map(|example| &example.input)).unwrap();
        let latents = generator.encode(&inputs).unwrap();
        let climbed = explorer.climb(generator, &student, latents.clone(), &answers).unwrap();
        let disagreement = |latents: &Tensor| -> Vec<f64> {
            let rows = generator.decode(latents).unwrap().to_vec2::<f32>().unwrap();
            let logits = logits(&student, &rows).unwrap();
            logits.iter().enumerate().map(|(at, row)| answers.disagreement(at, row)).collect()
        };
        let (before, after) = (disagreement(&latents), disagreement(&climbed));
        let more = before.iter().zip(&after).filter(|(before, after)| after > before).count();
        assert!(more >= REAL - 2, "{more} of {REAL}: {before:?} {after:?}");
        // Two steps of a tenth of a whitened unit, whatever the gradient's own length.
        let moved = (climbed - latents).unwrap().sqr().unwrap().sum(1).unwrap().sqrt().unwrap();
        let moved: Vec<f32> = moved.to_vec1().unwrap();
        assert!(moved.iter().all(|length| *length < 0.2001 && *length > 0.01), "{moved:?}");
        // The mean of the rows is what is climbed.
        let logits = logits(&student, &inputs.to_vec2().unwrap()).unwrap();
        let flat: Vec<f32> = logits.concat();
        let mean = answers.loss(&Tensor::from_vec(flat, (REAL, 3), &Device::Cpu).unwrap()).unwrap();
        let rows = logits.iter().enumerate().map(|(at, row)| answers.disagreement(at, row));
        let expected = rows.sum::<f64>() / REAL as f64;
        assert!((f64::from(mean.to_scalar::<f32>().unwrap()) - expected).abs() < 1e-4);
    }
}

#[test]
fn a_choice_takes_the_candidate_that_the_student_is_least_sure_of() {
    let world = World::new("kind = 'choice'\ncandidates = 6");
    let (mut explorer, student) = (world.explorer(), student(&world));
    let made = explorer.walked(Some(&student), &examples(), REAL, 12).unwrap();
    let generator = explorer.generator.as_ref().unwrap();
    let inputs = rows(world.inputs.iter()).unwrap();
    let places = generator.encode(&inputs).unwrap().to_vec2::<f32>().unwrap();
    for (number, made) in made.iter().enumerate() {
        let mut slot = Slot::new(5, number);
        let place = &places[slot.start(&Starts::Even { seed: 5, count: REAL })];
        let doubts = (0..6).map(|_| {
            let noise = slot.noise(place.len(), 1.0);
            let latent: Vec<f32> = place.iter().zip(noise).map(|(place, noise)| place + noise).collect();
            let latent = Tensor::from_vec(latent, (1, place.len()), &Device::Cpu).unwrap();
            let row = explorer.clamped(&generator.decode(&latent).unwrap()).unwrap();
            entropy(&softmax(&logits(&student, &row).unwrap()[0]))
        });
        let doubts: Vec<f64> = doubts.collect();
        let most = doubts.iter().copied().fold(0.0, f64::max);
        assert!((made.score.unwrap() - most).abs() < 1e-5, "{number}: {:?} {doubts:?}", made.score);
    }
}

#[test]
fn active_mixup_asks_first_where_the_student_is_least_sure() {
    let world = World::new("kind = 'mixup'\ncandidates = 4");
    let (mut explorer, student) = (world.explorer(), student(&world));
    let real = examples();
    let made = explorer.mixed(&student, &real, 40).unwrap();
    assert!(made.windows(2).all(|pair| pair[0].score >= pair[1].score), "{made:?}");
    for made in &made {
        let row = values(&made.input);
        let doubt = 1.0
            - softmax(&logits(&student, std::slice::from_ref(&row)).unwrap()[0])
                .into_iter()
                .fold(0.0, f64::max);
        assert!((made.score.unwrap() - doubt).abs() < 1e-6);
        let of_pair = |one: &Example, two: &Example| {
            (0..LAMBDAS).any(|step| {
                let share = 0.3 + 0.04 * step as f32;
                let (one, two) = (values(&one.input), values(&two.input));
                row.iter()
                    .zip(one.iter().zip(&two))
                    .all(|(value, (one, two))| (value - share * one - (1.0 - share) * two).abs() < 1e-5)
            })
        };
        assert!(real.iter().any(|one| real.iter().any(|two| of_pair(one, two))), "{row:?}");
    }
    // Three inputs are three pairs, each with eleven shares; after that there is nothing left to ask about.
    let next = |count: usize| world.explorer().next(&split(), 3, count, &control(false));
    assert_eq!(next(33).unwrap().unwrap().len(), 33);
    let refused = next(34).unwrap_err().to_string();
    assert!(
        refused.starts_with("`explore` found 33 of 34 inputs that were not asked about before"),
        "{refused}"
    );
}

#[test]
fn what_cannot_be_explored_is_named() {
    let world = World::new("kind = 'mixup'");
    let few = world.explorer().next(&split(), 1, 5, &control(false)).unwrap_err().to_string();
    assert_eq!(few, "`explore` starts from 2 real inputs or more that are learnt from, and there are 1");
    assert!(
        world.explorer().next(&split(), REAL, 5, &control(true)).unwrap().is_none(),
        "it was interrupted"
    );
    let bytes = Input::Bytes(vec![1, 2]);
    let selector = world.explorer().selector;
    let refused = Explorer::new(&world.config, 5, selector, &[&bytes], &[], None).err().unwrap().to_string();
    assert_eq!(refused, "`explore` makes vectors, and the inputs of the data set are bytes");
    // No column varies: noise leads nowhere.
    let mut world = World::new("kind = 'noise'");
    world.inputs = vec![Input::Vector(vec![0.5, 0.5, 0.5])];
    let refused = world.explorer().next(&split(), REAL, 5, &control(false)).unwrap_err();
    assert!(matches!(refused, ExploreError::Exhausted { found: 0, wanted: 5 }), "{refused}");
}

#[test]
fn pairs_are_counted_without_a_list_of_them() {
    let listed = (0..40).flat_map(|two| (0..two).map(move |one| (one, two)));
    assert!((0..780).map(pair).eq(listed));
    let last = 60_000 * 59_999 / 2 - 1;
    assert_eq!([last, last + 1].map(pair), [(59_998, 59_999), (0, 60_000)]);
}
