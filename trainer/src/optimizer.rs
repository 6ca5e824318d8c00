//! AdamW and SGD with momentum, schedules of their learning rate, and clipping, with state that saves exactly.
//!
//! candle's own AdamW cannot be saved and its SGD has no momentum. This file must not know students, losses or files.
//! Invariants: one pass over each variable in a fixed order of operations, so that the same gradients give the same bits;
//! `state` and `restore` are exact inverses.

mod composed;

use std::cell::RefCell;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, Var};
use serde::{Deserialize, Serialize};

use composed::Moments;

/// The rule that turns gradients into steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Adam with decoupled weight decay, arXiv 1711.05101.
    #[default]
    Adamw,
    /// Stochastic gradient descent with momentum, as PyTorch defines it.
    Sgd,
}

/// How the learning rate changes over the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Stays as it is.
    #[default]
    Constant,
    /// Falls along half a cosine to zero at the last step.
    Cosine,
}

/// The numbers of an optimizer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Settings {
    pub(crate) rule: Rule,
    pub(crate) lr: f64,
    pub(crate) schedule: Schedule,
    /// Steps over which the learning rate rises from zero.
    pub(crate) warmup: usize,
    /// The run's number of steps.
    pub(crate) steps: usize,
    pub(crate) weight_decay: f64,
    /// SGD only.
    pub(crate) momentum: f64,
    /// SGD only.
    pub(crate) nesterov: bool,
    /// The largest norm of all gradients together; none: no clipping.
    pub(crate) clip: Option<f64>,
}

impl Settings {
    /// The learning rate of step `step`, counted from zero.
    pub(crate) fn lr_at(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.lr * (step + 1) as f64 / self.warmup as f64;
        }
        match self.schedule {
            Schedule::Constant => self.lr,
            Schedule::Cosine => {
                let span = self.steps.saturating_sub(self.warmup).max(1) as f64;
                let done = ((step - self.warmup) as f64 / span).min(1.0);
                self.lr * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
            }
        }
    }
}

const BETA_1: f32 = 0.9;
const BETA_2: f32 = 0.999;
const EPSILON: f32 = 1e-8;

/// What one variable's past left behind: momentum, and for AdamW the mean square.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Slot {
    pub(crate) momentum: Vec<f32>,
    pub(crate) square: Vec<f32>,
}

/// A variable's past, where the variable lies.
#[derive(Debug)]
enum Past {
    /// In the processor's memory.
    Host(Slot),
    /// On another device.
    Device(Moments),
}

impl Past {
    fn of(slot: Slot, var: &Var) -> Result<Self> {
        if var.device().is_cpu() { Ok(Self::Host(slot)) } else { Moments::of(&slot, var).map(Self::Device) }
    }
}

/// An optimizer over a student's variables.
#[derive(Debug)]
pub(crate) struct Optimizer {
    settings: Settings,
    vars: Vec<Var>,
    pasts: Vec<Past>,
    taken: usize,
}

impl Optimizer {
    /// An optimizer that has taken no step.
    pub(crate) fn new(settings: Settings, vars: Vec<Var>) -> Result<Self> {
        let adamw = settings.rule == Rule::Adamw;
        let past = |var: &Var| {
            let square = vec![0.0; if adamw { var.elem_count() } else { 0 }];
            Past::of(Slot { momentum: vec![0.0; var.elem_count()], square }, var)
        };
        let pasts = vars.iter().map(past).collect::<Result<_>>()?;
        Ok(Self { settings, vars, pasts, taken: 0 })
    }

    /// What its steps left, in the variables' order.
    pub(crate) fn slots(&self) -> Result<Vec<Slot>> {
        let slot = |past: &Past| match past {
            Past::Host(slot) => Ok(slot.clone()),
            Past::Device(moments) => moments.slot(),
        };
        self.pasts.iter().map(slot).collect()
    }

    /// Goes on from a saved state.
    pub(crate) fn restore(&mut self, taken: usize, slots: Vec<Slot>) -> Result<()> {
        self.taken = taken;
        self.pasts = slots
            .into_iter()
            .zip(&self.vars)
            .map(|(slot, var)| Past::of(slot, var))
            .collect::<Result<_>>()?;
        Ok(())
    }

    /// Takes one step and returns the norm of all gradients before clipping.
    pub(crate) fn step(&mut self, gradients: &GradStore) -> Result<f64> {
        let gradients: Vec<Option<Tensor>> = self
            .vars
            .iter()
            .map(|var| gradients.get(var).map(|gradient| gradient.contiguous()).transpose())
            .collect::<Result<_>>()?;
        let mut squares = 0.0;
        for gradient in gradients.iter().flatten() {
            squares += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
        }
        let norm = squares.sqrt();
        let scale = match self.settings.clip {
            Some(limit) if norm > limit => limit / norm,
            _ => 1.0,
        };
        let lr = self.settings.lr_at(self.taken);
        self.taken += 1;
        let pace = Pace::new(&self.settings, lr, scale, self.taken);
        for ((var, gradient), past) in self.vars.iter().zip(&gradients).zip(&mut self.pasts) {
            let Some(gradient) = gradient else { continue };
            match past {
                Past::Host(slot) => {
                    let update = Update { pace: &pace, slot: RefCell::new(slot) };
                    var.inplace_op2(gradient, &update)?;
                }
                Past::Device(moments) => moments.step(var, gradient, &pace)?,
            }
        }
        Ok(norm)
    }
}

/// The numbers of one step.
struct Pace<'a> {
    settings: &'a Settings,
    lr: f32,
    scale: f32,
    /// AdamW's corrections for the first steps' bias towards zero.
    corrections: (f32, f32),
    first: bool,
}

impl<'a> Pace<'a> {
    fn new(settings: &'a Settings, lr: f64, scale: f64, taken: usize) -> Self {
        let power = i32::try_from(taken).unwrap_or(i32::MAX);
        let corrections = (1.0 - f64::from(BETA_1).powi(power), 1.0 - f64::from(BETA_2).powi(power));
        Self {
            settings,
            lr: lr as f32,
            scale: scale as f32,
            corrections: (corrections.0 as f32, corrections.1.sqrt() as f32),
            first: taken == 1,
        }
    }

    fn adamw(&self, values: &mut [f32], gradients: &[f32], slot: &mut Slot) {
        let shrink = 1.0 - self.lr * self.settings.weight_decay as f32;
        let rate = self.lr / self.corrections.0;
        let moments = slot.momentum.iter_mut().zip(&mut slot.square);
        for ((value, gradient), (momentum, square)) in values.iter_mut().zip(gradients).zip(moments) {
            let gradient = gradient * self.scale;
            *momentum = BETA_1 * *momentum + (1.0 - BETA_1) * gradient;
            *square = BETA_2 * *square + (1.0 - BETA_2) * gradient * gradient;
            *value = *value * shrink - rate * *momentum / (square.sqrt() / self.corrections.1 + EPSILON);
        }
    }

    fn sgd(&self, values: &mut [f32], gradients: &[f32], slot: &mut Slot) {
        let (decay, keep) = (self.settings.weight_decay as f32, self.settings.momentum as f32);
        for ((value, gradient), momentum) in values.iter_mut().zip(gradients).zip(&mut slot.momentum) {
            let gradient = gradient * self.scale + decay * *value;
            // PyTorch starts the buffer with the first gradient, not with a damped one: the same when it starts at zero.
            *momentum = if self.first { gradient } else { keep * *momentum + gradient };
            let step = if self.settings.nesterov { gradient + keep * *momentum } else { *momentum };
            *value -= self.lr * step;
        }
    }
}

/// One variable's step, as an operator that writes in place.
struct Update<'a> {
    pace: &'a Pace<'a>,
    /// The operator is called through a shared reference, once.
    slot: RefCell<&'a mut Slot>,
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "optimizer-step"
    }

    fn cpu_fwd(
        &self,
        values: &mut CpuStorage,
        at: &Layout,
        gradients: &CpuStorage,
        from: &Layout,
    ) -> Result<()> {
        let (Some((start, end)), Some((first, last))) = (at.contiguous_offsets(), from.contiguous_offsets())
        else {
            candle_core::bail!("an optimizer step needs contiguous tensors");
        };
        let (CpuStorage::F32(values), CpuStorage::F32(gradients)) = (values, gradients) else {
            candle_core::bail!("an optimizer step needs f32 tensors");
        };
        let (values, gradients) = (&mut values[start..end], &gradients[first..last]);
        let mut slot = self.slot.borrow_mut();
        match self.pace.settings.rule {
            Rule::Adamw => self.pace.adamw(values, gradients, &mut slot),
            Rule::Sgd => self.pace.sgd(values, gradients, &mut slot),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn settings(rule: Rule) -> Settings {
        Settings {
            rule,
            lr: 0.1,
            schedule: Schedule::Constant,
            warmup: 0,
            steps: 3,
            weight_decay: 0.05,
            momentum: 0.9,
            nesterov: false,
            clip: None,
        }
    }

    /// Three steps down sum(w^4) from w = [1, -2, 0.5].
    fn walk(settings: Settings, composed: bool) -> Vec<f32> {
        let w = Var::new(&[1f32, -2.0, 0.5], &Device::Cpu).unwrap();
        let mut optimizer = Optimizer::new(settings, vec![w.clone()]).unwrap();
        if composed {
            let slots = optimizer.slots().unwrap();
            optimizer.pasts = vec![Past::Device(Moments::of(&slots[0], &w).unwrap())];
        }
        for _ in 0..3 {
            let loss = w.sqr().unwrap().sqr().unwrap().sum_all().unwrap();
            optimizer.step(&loss.backward().unwrap()).unwrap();
        }
        w.to_vec1().unwrap()
    }

    // w = torch.tensor([1., -2., .5], requires_grad=True); o = OPT([w], lr=.1, weight_decay=.05, ...)
    // for _ in range(3): o.zero_grad(); (w**4).sum().backward(); [clip_grad_norm_([w], 1.)]; o.step()
    #[test]
    fn three_steps_equal_pytorch() {
        let sgd = settings(Rule::Sgd);
        for (settings, expected) in [
            (settings(Rule::Adamw), [0.694_672_5, -1.674_604_7, 0.217_587_3]),
            (Settings { lr: 0.01, ..sgd }, [0.793_818_1, -0.699_065_6, 0.471_294_6]),
            (Settings { lr: 0.01, nesterov: true, ..sgd }, [0.730_037, -0.542_059_2, 0.459_858_2]),
            (Settings { clip: Some(1.0), ..sgd }, [0.894_798_5, -1.391_100_3, 0.476_081_7]),
        ] {
            for composed in [false, true] {
                for (found, expected) in walk(settings, composed).into_iter().zip(expected) {
                    assert!((found - expected).abs() < 2e-6, "{settings:?}: {found} instead of {expected}");
                }
            }
        }
    }

    #[test]
    fn a_restored_optimizer_goes_on_bit_for_bit() {
        for rule in [Rule::Adamw, Rule::Sgd] {
            let gradient = |w: &Var| w.sqr().unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let w = Var::new(&[1f32, -2.0, 0.5], &Device::Cpu).unwrap();
            let mut straight = Optimizer::new(settings(rule), vec![w.clone()]).unwrap();
            straight.step(&gradient(&w)).unwrap();
            let copy = Var::from_tensor(&w.copy().unwrap()).unwrap();
            let mut resumed = Optimizer::new(settings(rule), vec![copy.clone()]).unwrap();
            resumed.restore(1, straight.slots().unwrap()).unwrap();
            for _ in 0..2 {
                straight.step(&gradient(&w)).unwrap();
                resumed.step(&gradient(&copy)).unwrap();
            }
            let bits =
                |var: &Var| var.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>();
            assert_eq!(bits(&w), bits(&copy), "{rule:?}");
        }
    }

    #[test]
    fn schedules_rise_and_fall() {
        let cosine = Settings { schedule: Schedule::Cosine, warmup: 10, steps: 110, ..settings(Rule::Adamw) };
        for (step, expected) in
            [(0, 0.01), (4, 0.05), (9, 0.1), (10, 0.1), (60, 0.05), (110, 0.0), (500, 0.0)]
        {
            assert!((cosine.lr_at(step) - expected).abs() < 1e-12, "step {step}: {}", cosine.lr_at(step));
        }
        let constant = Settings { warmup: 2, ..settings(Rule::Adamw) };
        assert_eq!([0, 1, 2, 99].map(|step| constant.lr_at(step)), [0.05, 0.1, 0.1, 0.1]);
    }
}
