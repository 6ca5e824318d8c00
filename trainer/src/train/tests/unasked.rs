//! What is learnt from inputs that nobody asked about: warm-ups, a proxy teacher, and averages whose statistics they give.

use super::*;
use crate::train::proxies::member_seed;

/// As `split`, with inputs of the same kind that have no answer.
fn with_pool(split: Split, few: usize) -> Split {
    let example = |at: usize| {
        let mut example = split.train[at % split.train.len()].clone();
        example.key = format!("pool-{at}");
        (example.target, example.hidden) = (None, vec![]);
        if let Input::Vector(values) = &mut example.input {
            values.iter_mut().for_each(|value| *value += ((at * 31) as f32).sin() * 0.2);
        }
        example
    };
    let pool = (0..120).map(example).collect();
    Split { train: split.train[..few].to_vec(), pool, ..split.clone() }
}

const WARM: &str = "warm_up = { kind = 'autoencoder', steps = 15, batch = 8, lr = 0.02 }";
const PROXY: &str = "student = { kind = 'mlp', hidden = [16] }, batch = 12";

fn stopped_at(
    task: &Task,
    folder: &Path,
    step: usize,
    in_the_proxy: bool,
) -> Result<Trained, Box<dyn std::error::Error>> {
    let kept = Some((folder, "method"));
    let interrupt: Arc<AtomicBool> = Arc::default();
    let proxy = task.proxy.as_ref().map(|proxy| proxy.method.name());
    let stop = |progress: &Progress| {
        let here = (Some(&progress.method) == proxy.as_ref()) == in_the_proxy;
        interrupt.store(here && progress.step == step, Ordering::Relaxed);
    };
    let stopping = Control { interrupt: interrupt.clone(), progress: &stop, resume: true };
    match train(task, 5, kept, &stopping)? {
        Ended::Interrupted { step: at } => assert_eq!(at, step),
        Ended::Finished(_) => panic!("nobody stopped it"),
    }
    Ok(finished(train(task, 5, kept, &control(true))?))
}

fn check_resumes(
    split: &Split,
    student: &StudentConfig,
    losses: &str,
    config: &TrainConfig,
    in_the_proxy: bool,
) {
    let method = method(losses);
    let task = Task::new(split, student, &method, config).unwrap();
    let straight = finished(train(&task, 5, None, &control(false)).unwrap());
    let again = finished(train(&task, 5, None, &control(false)).unwrap());
    assert_eq!(bits(&straight), bits(&again), "{losses}");
    for step in [3, 11, 17] {
        let folder = tempfile::tempdir().unwrap();
        let resumed = stopped_at(&task, folder.path(), step, in_the_proxy).unwrap();
        assert_eq!(bits(&straight), bits(&resumed), "{losses}, stopped at {step}");
        assert_eq!(straight.rows, resumed.rows);
    }
}

#[test]
fn warm_ups_proxies_and_averages_resume_bit_for_bit() {
    let split = with_pool(split(), 40);
    let config = TrainConfig { ema: Some(0.9), ..config(Rule::Adamw) };
    let kd = "losses = [{ kind = 'kd' }]";
    check_resumes(&split, &student(), &format!("{kd}\n{WARM}"), &config, false);
    let proxied = format!("{kd}\nproxy = {{ {PROXY}, steps = 20, {WARM} }}");
    check_resumes(&split, &student(), &proxied, &config, true);
    check_resumes(&split, &student(), &proxied, &config, false);
    let chain = format!(
        "{kd}\nproxy = {{ {PROXY}, ema = 0.9, members = 2, proxy = {{ {PROXY}, steps = 20, {WARM} }} }}"
    );
    check_resumes(&split, &student(), &chain, &config, true);
    check_resumes(&split, &student(), &chain, &config, false);
    check_resumes(&split, &student(), &format!("losses = [{{ kind = 'ckd' }}]\n{WARM}"), &config, false);
}

#[test]
fn image_students_warm_up_by_views_and_resume_bit_for_bit() {
    let split = with_pool(pictures(), 40);
    let augment = Some(Augment { crop: 1, flip: true, ..Augment::default() });
    let config = TrainConfig { steps: 18, augment, ema: Some(0.8), ..config(Rule::Adamw) };
    let views = "views = { crop = 1, flip = true, rotate = 10, scale = 0.1, gain = 0.3, cutout = 2 }";
    let warm = format!("warm_up = {{ kind = 'simclr', steps = 7, batch = 16, width = 8, {views} }}");
    let stages = "stages = [{ channels = 6 }], pool = 2";
    let proxy = format!(
        "proxy = {{ student = {{ kind = 'cnn', image = [1, 6, 6], {stages} }}, batch = 8, steps = 12, {warm} }}"
    );
    let consistent = "losses = [{ kind = 'kd' }]\nconsistency = { batch = 8, threshold = 0.5, strong = { crop = 1, gain = 0.3 } }";
    check_resumes(&split, &image_students()[0], consistent, &config, false);
    let averaged = "losses = [{ kind = 'kd' }]\nconsistency = { batch = 8, threshold = 0.0, by = 'average', form = 'mse', strong = { crop = 1, gain = 0.3 } }";
    check_resumes(&split, &image_students()[1], averaged, &config, false);
    for student in image_students() {
        check_resumes(
            &split,
            &student,
            &format!("losses = [{{ kind = 'kd' }}]\n{warm}\n{proxy}"),
            &config,
            false,
        );
    }
}

#[test]
fn a_proxy_hands_on_what_few_answers_say_to_many_inputs() {
    let agreement = |losses: &str| {
        let mean = |seed| {
            let split = with_pool(split(), 12);
            let config = TrainConfig { steps: 150, lr: 0.02, ..config(Rule::Adamw) };
            let task = Task::new(&split, &student(), &method(losses), &config).unwrap();
            let trained = finished(train(&task, seed, None, &control(false)).unwrap());
            validate(&trained.student, task.validation.as_ref().unwrap()).unwrap().0
        };
        (0..4).map(mean).sum::<f32>() / 4.0
    };
    let kd = "losses = [{ kind = 'kd', temperature = 1.0 }]";
    let (alone, proxied) = (agreement(kd), agreement(&format!("{kd}\nproxy = {{ {PROXY}, steps = 150 }}")));
    assert!(proxied < alone, "KL from the teacher: {proxied} with a proxy, {alone} without");
}

#[test]
fn proxies_label_by_the_mean_of_what_each_says_alone() {
    let split = with_pool(split(), 40);
    let labels = |proxy: &str, seed| {
        let method = method(&format!("losses = [{{ kind = 'kd' }}]\nproxy = {{ {PROXY}{proxy} }}"));
        let task = Task::new(&split, &student(), &method, &config(Rule::Adamw)).unwrap();
        match labels(&task, seed, None, &control(false)).unwrap() {
            Labelled::By(Some(labels)) => labels.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            _ => panic!("nobody labelled"),
        }
    };
    let (first, second) = (labels("", 5), labels("", member_seed(5, 1)));
    assert_ne!(first, second);
    let mean: Vec<f32> = first.iter().zip(&second).map(|(one, two)| (one + two) / 2.0).collect();
    let found = labels(", members = 2", 5);
    let apart = found.iter().zip(&mean).map(|(one, two)| (one - two).abs()).fold(0.0, f32::max);
    assert!(apart < 1e-6, "{apart}");
}

#[test]
fn what_is_kept_is_the_average_of_the_steps() {
    let split = Split { validation: vec![], ..split() };
    let after = |steps: usize, ema: Option<f64>| -> Vec<f32> {
        let constant = TrainConfig { schedule: Schedule::Constant, warmup: 0, ..config(Rule::Sgd) };
        let config = TrainConfig { steps, ema, ..constant };
        let task = Task::new(&split, &student(), &method("losses = [{ kind = 'kd' }]"), &config).unwrap();
        let trained = finished(train(&task, 3, None, &control(false)).unwrap());
        values(&trained.student).unwrap().concat()
    };
    // The first step is the average, and each later one has a fifth of it.
    let mut expected = after(1, None);
    for steps in 2..=6 {
        let now = after(steps, None);
        expected.iter_mut().zip(now).for_each(|(average, now)| *average = 0.8 * *average + 0.2 * now);
    }
    let found = after(6, Some(0.8));
    let apart = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart < 1e-6, "{apart}");
    assert_ne!(found, after(6, None));
}

#[test]
fn the_statistics_of_an_average_are_those_of_its_own_batches() {
    let split = with_pool(pictures(), 40);
    let method = method(
        "losses = [{ kind = 'kd' }]\nwarm_up = { kind = 'simclr', steps = 1, batch = 4, width = 4, views = { crop = 1 } }",
    );
    for student in image_students() {
        let config = TrainConfig { steps: 30, ema: Some(0.9), ..config(Rule::Adamw) };
        let task =
            Task::new(&Split { validation: vec![], ..split.clone() }, &student, &method, &config).unwrap();
        let trained = finished(train(&task, 0, None, &control(false)).unwrap()).student;
        // 160 inputs are one batch: normalised by itself it is what the statistics say, but for n / (n - 1).
        let rows: Vec<u32> = (0..task.everything() as u32).collect();
        let inputs = task.any(&rows).unwrap();
        let by_statistics = trained.forward(&inputs, Mode::Inference).unwrap();
        let by_batch = trained.forward(&inputs, Mode::Training).unwrap();
        let apart = (by_statistics - by_batch).unwrap().abs().unwrap().max_all().unwrap();
        let apart = apart.to_scalar::<f32>().unwrap();
        assert!(apart < 0.02, "{}: {apart}", student.name());
    }
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let refused = |split: &Split, losses: &str| {
        Task::new(split, &student(), &method(losses), &config(Rule::Adamw)).err().unwrap().to_string()
    };
    let kd = "losses = [{ kind = 'kd' }]";
    let views = format!("{kd}\nwarm_up = {{ kind = 'simclr', steps = 5 }}");
    assert_eq!(
        refused(&split(), &views),
        "a `simclr` warm-up compares views of images; student `mlp` takes none"
    );
    let never = format!("{kd}\nwarm_up = {{ kind = 'autoencoder', steps = 0 }}");
    assert_eq!(refused(&split(), &never), "`warm_up.steps` is 0; it must be 1 or more");
    let proxy = format!("{kd}\nproxy = {{ {PROXY} }}");
    assert!(refused(&split(), &proxy).starts_with("`method.proxy` labels inputs that nobody asked about"));
    let within = format!("{kd}\nproxy = {{ {PROXY}, proxy = {{ {PROXY}, members = 0 }} }}");
    assert_eq!(
        refused(&with_pool(split(), 40), &within),
        "`method.proxy.proxy.members` is 0; it must be 1 or more"
    );
    let consistency = format!("{kd}\nconsistency = {{}}");
    assert_eq!(
        refused(&with_pool(split(), 40), &consistency),
        "`method.consistency` compares views of images; student `mlp` takes none"
    );
    assert!(
        refused(&split(), "losses = [{ kind = 'labels' }]\ncutmix = true")
            .starts_with("`mixup` needs inputs of numbers")
    );
    let alone = format!("{kd}\nconsistency = {{ by = 'average', strong = {{ crop = 1 }} }}");
    let pool = with_pool(pictures(), 40);
    let error = Task::new(&pool, &image_students()[0], &method(&alone), &config(Rule::Adamw)).err().unwrap();
    assert_eq!(
        error.to_string(),
        "`method.consistency.by = \"average\"` needs the decay of the average, `ema`"
    );
    let bare = Split {
        layers: vec![],
        train: vec![Example { hidden: vec![], ..split().train[0].clone() }],
        ..split()
    };
    let sp = refused(&bare, "losses = [{ kind = 'labels' }, { kind = 'sp' }]");
    assert_eq!(sp, "loss `sp` compares the teacher's hidden tensors, and its answers hold none");
    assert_eq!(
        refused(&split(), "losses = [{ kind = 'taid' }, { kind = 'taid' }]"),
        "a run has at most one loss `taid`"
    );
    let mut answered = with_pool(split(), 40);
    answered.pool[3].target = Some(Target::Label(0));
    assert_eq!(refused(&answered, kd), "`pool-3` in the pool has a recorded answer");
    let ema = TrainConfig { ema: Some(1.0), ..config(Rule::Adamw) };
    let error = Task::new(&split(), &student(), &method(kd), &ema).err().unwrap();
    assert_eq!(error.to_string(), "`train.ema` is 1; it must be 0 to below 1");
}
