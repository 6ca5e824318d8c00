//! Training on a CUDA device, held to training on the processor: wants the feature `cuda`, and a device.
//!
//! The tolerances: the logits of two runs of the same seed differ by at most 1e-2 after 40 steps in f32 (sums are added in another
//! order, and steps carry it on), and the classes of 95 % of the inputs are the same in bf16.

use super::*;

fn trained(split: &Split, student: &StudentConfig, method: &MethodConfig, on: TrainConfig) -> Vec<Vec<f32>> {
    let task = Task::new(split, student, method, &on).unwrap();
    let trained = finished(train(&task, 5, None, &control(false)).unwrap());
    let all: Vec<&Example> = split.test.iter().collect();
    trained.student.logits(&all).unwrap()
}

fn on(device: Processor, precision: Precision) -> TrainConfig {
    TrainConfig { device, precision, ..config(Rule::Adamw) }
}

fn check(split: &Split, student: &StudentConfig, losses: &str) {
    let method = method(losses);
    let train = |device, precision| trained(split, student, &method, on(device, precision));
    let expected = train(Processor::Cpu, Precision::F32);
    let found = train(Processor::Cuda, Precision::F32);
    for (found, expected) in found.concat().iter().zip(expected.concat()) {
        let error = (found - expected).abs();
        assert!(error < 1e-2 * expected.abs().max(1.0), "{losses}: {found} instead of {expected}");
    }
    let rounded = train(Processor::Cuda, Precision::Bf16);
    let same = rounded.iter().zip(&expected).filter(|(one, two)| argmax(one) == argmax(two)).count();
    assert!(same * 20 >= expected.len() * 19, "{losses}: {same} of {} in bf16", expected.len());
}

#[test]
fn every_method_on_cuda_is_the_one_on_the_processor() {
    for losses in METHODS {
        check(&split(), &student(), losses);
    }
}

#[test]
fn every_kind_of_student_on_cuda_is_the_one_on_the_processor() {
    let transformer: StudentConfig =
        toml::from_str("kind = 'transformer'\nimage = [1, 6, 6]\npatch = 3\nwidth = 8\nlayers = 1").unwrap();
    for student in image_students().into_iter().chain([transformer]) {
        check(&pictures(), &student, "losses = [{ kind = 'labels' }, { kind = 'kd' }]");
    }
}

#[test]
fn a_run_on_cuda_goes_on_where_it_was_stopped() {
    let (split, method) = (split(), method(METHODS[0]));
    let config = on(Processor::Cuda, Precision::F32);
    let task = Task::new(&split, &student(), &method, &config).unwrap();
    let straight = finished(train(&task, 5, None, &control(false)).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let kept = Some((folder.path(), "method"));
    let interrupt: Arc<AtomicBool> = Arc::default();
    let stop_at_20 = |progress: &Progress| interrupt.store(progress.step == 20, Ordering::Relaxed);
    let stopping = Control { interrupt: interrupt.clone(), progress: &stop_at_20, resume: true };
    assert!(matches!(train(&task, 5, kept, &stopping).unwrap(), Ended::Interrupted { step: 20 }));
    let resumed = finished(train(&task, 5, kept, &control(true)).unwrap());
    let all = |trained: &Trained| values(&trained.student).unwrap().concat();
    for (found, expected) in all(&resumed).iter().zip(all(&straight)) {
        assert!((found - expected).abs() < 1e-3, "{found} instead of {expected}");
    }
}
