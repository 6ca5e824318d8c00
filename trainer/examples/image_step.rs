//! Milliseconds a training step of the small image student, our own operators beside candle's stock ones in one run.
//!
//! Both sides are the same network (convolutions 5x5/2, 3x3/2 and 3x3 with 16, 32 and 64 filters, each with batch
//! normalisation and ReLU; maximum of 2x2; linear), start from the same weights, see the same batches of 64 images of
//! 28x28 and take the same steps of candle's AdamW; they take turns. It checks that both give the same logits before it
//! measures anything. A last line times the whole loop of `tuition train`, augmentation and losses included. Processor
//! time (of all threads, from Linux's /proc) stands beside wall time: on a machine with other work it says more.
//!
//! `cargo run --release -p tuition-trainer --example image_step [-- STEPS]`; `RAYON_NUM_THREADS=1` for one thread.

use std::time::Instant;

use candle_core::{D, Device, Result, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, loss::cross_entropy};
use tuition_trainer::ops::{Activation, Precision, batch_norm, convolve, max_pool, to_images, to_rows};
use tuition_trainer::{
    Augment, CnnConfig, Example, Input, MethodConfig, Split, StudentConfig, Target, TrainConfig, score_seeds,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BATCH: usize = 64;
const EPSILON: f64 = 1e-5;
/// Channels, filters, kernel and stride of each stage.
const STAGES: [[usize; 4]; 3] = [[1, 16, 5, 2], [16, 32, 3, 2], [32, 64, 3, 1]];
/// Turns of each side.
const TURNS: usize = 5;

/// Values between -1 and 1 that repeat from run to run.
fn noise(count: usize, salt: usize) -> Vec<f32> {
    (0..count).map(|at| ((at * 37 + salt * 101 + 11) as f32 * 0.618_034).sin()).collect()
}

struct Network {
    /// Weight, gamma and beta of each stage.
    stages: Vec<[Var; 3]>,
    output: [Var; 2],
}

impl Network {
    fn new() -> Result<Self> {
        let cpu = Device::Cpu;
        let var = |values: Vec<f32>, dims: &[usize]| Var::from_tensor(&Tensor::from_vec(values, dims, &cpu)?);
        let drawn = |dims: &[usize], inputs: usize, salt| {
            let bound = (1.0 / inputs as f32).sqrt();
            var(noise(dims.iter().product(), salt).into_iter().map(|value| value * bound).collect(), dims)
        };
        let stages = STAGES.iter().enumerate().map(|(at, [channels, filters, kernel, _])| {
            let weight = drawn(&[*filters, *channels, *kernel, *kernel], channels * kernel * kernel, at)?;
            Ok([weight, var(vec![1.0; *filters], &[*filters])?, var(vec![0.0; *filters], &[*filters])?])
        });
        let output = [drawn(&[10, 576], 576, 7)?, var(vec![0.0; 10], &[10])?];
        Ok(Self { stages: stages.collect::<Result<_>>()?, output })
    }

    fn vars(&self) -> Vec<Var> {
        self.stages.iter().flatten().chain(&self.output).cloned().collect()
    }

    fn linear(&self, rows: &Tensor) -> Result<Tensor> {
        rows.matmul(&self.output[0].t()?)?.broadcast_add(&self.output[1])
    }

    fn own(&self, rows: &Tensor) -> Result<Tensor> {
        let mut hidden = to_images(rows, [1, 28, 28])?;
        for ([weight, gamma, beta], [_, _, kernel, stride]) in self.stages.iter().zip(STAGES) {
            hidden = convolve(&hidden, weight, stride, (kernel - 1) / 2, Precision::F32)?;
            (hidden, _) = batch_norm(&hidden, gamma, beta, EPSILON, Activation::Relu)?;
        }
        self.linear(&to_rows(&max_pool(&hidden, [2, 2])?)?)
    }

    fn stock(&self, rows: &Tensor) -> Result<Tensor> {
        let mut hidden = rows.reshape((BATCH, 1, 28, 28))?;
        for ([weight, gamma, beta], [_, filters, kernel, stride]) in self.stages.iter().zip(STAGES) {
            hidden = hidden.conv2d(weight, (kernel - 1) / 2, stride, 1, 1)?;
            let channels_last = hidden.permute((0, 2, 3, 1))?;
            let by_channel = channels_last.flatten_to(2)?;
            let mean = by_channel.mean_keepdim(0)?;
            let centred = by_channel.broadcast_sub(&mean)?;
            let variance = centred.sqr()?.mean_keepdim(0)?;
            let normed = centred.broadcast_div(&(variance + EPSILON)?.sqrt()?)?;
            let scaled = normed.broadcast_mul(gamma)?.broadcast_add(beta)?;
            let images = scaled.reshape((BATCH, hidden.dim(2)?, hidden.dim(3)?, filters))?;
            hidden = images.permute((0, 3, 1, 2))?.contiguous()?.relu()?;
        }
        // candle's pooling has no gradient for an odd extent; the last row and column are dropped either way.
        let even = hidden.narrow(2, 0, 6)?.narrow(D::Minus1, 0, 6)?.contiguous()?;
        self.linear(&even.max_pool2d(2)?.flatten_from(1)?)
    }
}

/// A moment on the wall and in processor time, in seconds.
#[derive(Clone, Copy)]
struct Moment {
    wall: Instant,
    processor: f64,
}

impl Moment {
    fn now() -> Self {
        // User and system time in hundredths of a second, the twelfth and thirteenth field behind the program's name.
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
        let hundredths: f64 = fields.filter_map(|field| field.parse::<f64>().ok()).sum();
        Self { wall: Instant::now(), processor: hundredths / 100.0 }
    }

    /// Milliseconds a step since then: wall, processor.
    fn since(self, steps: usize) -> [f64; 2] {
        let seconds = [self.wall.elapsed().as_secs_f64(), Self::now().processor - self.processor];
        seconds.map(|seconds| seconds * 1e3 / steps as f64)
    }
}

/// One side: a network, its optimizer and the milliseconds of each of its turns.
struct Side {
    name: &'static str,
    network: Network,
    forward: fn(&Network, &Tensor) -> Result<Tensor>,
    optimizer: AdamW,
    turns: Vec<[f64; 2]>,
}

impl Side {
    fn new(name: &'static str, forward: fn(&Network, &Tensor) -> Result<Tensor>) -> Result<Self> {
        let network = Network::new()?;
        let settings = ParamsAdamW { lr: 1e-3, ..ParamsAdamW::default() };
        let optimizer = AdamW::new(network.vars(), settings)?;
        Ok(Self { name, network, forward, optimizer, turns: vec![] })
    }

    fn turn(&mut self, batches: &[(Tensor, Tensor)], steps: usize) -> Result<()> {
        let started = Moment::now();
        for (rows, classes) in batches.iter().cycle().take(steps) {
            let loss = cross_entropy(&(self.forward)(&self.network, rows)?, classes)?;
            self.optimizer.backward_step(&loss)?;
        }
        self.turns.push(started.since(steps));
        Ok(())
    }

    /// The middle of the turns; the first one warms up.
    fn milliseconds(&self) -> [f64; 2] {
        [0, 1].map(|which| {
            let mut turns: Vec<f64> = self.turns[1..].iter().map(|turn| turn[which]).collect();
            turns.sort_by(f64::total_cmp);
            turns[turns.len() / 2]
        })
    }
}

/// The milliseconds a step of the loop that `tuition train` runs, the student's and the optimizer's making included.
fn whole_loop(steps: usize) -> std::result::Result<[f64; 2], Box<dyn std::error::Error>> {
    let example = |at: usize| Example {
        key: format!("k{at}"),
        input: Input::Vector(noise(784, at).into_iter().map(f32::abs).collect()),
        target: Some(Target::Logits(noise(10, at + 1))),
        truth: None,
        hidden: vec![],
    };
    let part = |range: std::ops::Range<usize>| range.map(example).collect();
    let classes = (0..10).map(|class| class.to_string()).collect();
    let split =
        Split { train: part(0..500), validation: vec![], test: part(500..501), classes, ..Split::default() };
    let student = StudentConfig::Cnn(CnnConfig::tiny([1, 28, 28]));
    let method: MethodConfig = toml::from_str("losses = [{ kind = 'labels' }, { kind = 'kd' }]")?;
    let augment = Some(Augment { crop: 2, flip: true, ..Augment::default() });
    let config =
        TrainConfig { steps, batch: BATCH, evaluate_every: steps, augment, ..TrainConfig::default() };
    let started = Moment::now();
    score_seeds(&split, &student, &method, &config)?;
    Ok(started.since(steps))
}

#[expect(clippy::print_stdout, reason = "an example speaks to whoever runs it")]
fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let steps = std::env::args().nth(1).map_or(Ok(100), |text| text.parse())?;
    let batches: Vec<(Tensor, Tensor)> = (0..8)
        .map(|at| {
            let rows = Tensor::from_vec(noise(BATCH * 784, at), (BATCH, 784), &Device::Cpu)?;
            let classes: Vec<u32> = (0..BATCH as u32).map(|row| (row * 7 + at as u32) % 10).collect();
            Ok((rows, Tensor::new(classes, &Device::Cpu)?))
        })
        .collect::<Result<_>>()?;
    let mut sides = [Side::new("own operators", Network::own)?, Side::new("candle's stock", Network::stock)?];
    let logits = sides.each_ref().map(|side| (side.forward)(&side.network, &batches[0].0));
    let [own, stock] = logits;
    let gap = (own? - stock?)?.abs()?.max_all()?.to_scalar::<f32>()?;
    if gap > 1e-4 {
        return Err(format!("the two networks differ by {gap}").into());
    }
    for _ in 0..=TURNS {
        for side in &mut sides {
            side.turn(&batches, steps)?;
        }
    }
    println!("threads: {}, batch: {BATCH}, turns of {steps} steps", candle_core::utils::get_num_threads());
    for side in &sides {
        let [wall, processor] = side.milliseconds();
        println!("{}: {wall:.2} ms a step, {processor:.2} ms of processor time", side.name);
    }
    let [own, stock] = sides.each_ref().map(Side::milliseconds);
    println!("stock / own: {:.1} wall, {:.1} processor time", stock[0] / own[0], stock[1] / own[1]);
    let [wall, processor] = whole_loop(5 * steps)?;
    println!("the whole loop, with augmentation: {wall:.2} ms a step, {processor:.2} ms of processor time");
    Ok(())
}
