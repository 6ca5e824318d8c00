//! The same rules made of candle's own operators, for variables that do not lie in the processor's memory.
//!
//! It must not know schedules or clipping. Invariant: one step is the one of the pass over slices, to rounding.

use candle_core::{Result, Tensor, Var};

use super::{BETA_1, BETA_2, EPSILON, Pace, Rule, Slot};

/// What one variable's past left behind, where the variable lies.
#[derive(Debug)]
pub(super) struct Moments {
    momentum: Tensor,
    square: Option<Tensor>,
}

impl Moments {
    /// Those of a slot.
    pub(super) fn of(slot: &Slot, var: &Var) -> Result<Self> {
        let tensor = |values: &[f32]| Tensor::from_slice(values, var.dims(), var.device());
        let square = (!slot.square.is_empty()).then(|| tensor(&slot.square)).transpose()?;
        Ok(Self { momentum: tensor(&slot.momentum)?, square })
    }

    /// As numbers, to be saved.
    pub(super) fn slot(&self) -> Result<Slot> {
        let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        let square = self.square.as_ref().map(values).transpose()?.unwrap_or_default();
        Ok(Slot { momentum: values(&self.momentum)?, square })
    }

    /// Moves a variable against its gradient.
    pub(super) fn step(&mut self, var: &Var, gradient: &Tensor, pace: &Pace<'_>) -> Result<()> {
        let gradient = (gradient * f64::from(pace.scale))?;
        let moved = match pace.settings.rule {
            Rule::Adamw => self.adamw(var, &gradient, pace)?,
            Rule::Sgd => self.sgd(var, &gradient, pace)?,
        };
        var.set(&moved)
    }

    fn adamw(&mut self, var: &Var, gradient: &Tensor, pace: &Pace<'_>) -> Result<Tensor> {
        let blend =
            |old: &Tensor, new: Tensor, keep: f32| (old * f64::from(keep))? + (new * f64::from(1.0 - keep))?;
        let square = match &self.square {
            None => gradient.zeros_like()?,
            Some(square) => square.clone(),
        };
        self.momentum = blend(&self.momentum, gradient.clone(), BETA_1)?;
        let square = blend(&square, gradient.sqr()?, BETA_2)?;
        let size = ((square.sqrt()? / f64::from(pace.corrections.1))? + f64::from(EPSILON))?;
        self.square = Some(square);
        let shrink = 1.0 - f64::from(pace.lr) * pace.settings.weight_decay;
        let rate = f64::from(pace.lr / pace.corrections.0);
        (var.as_tensor() * shrink)? - ((&self.momentum / size)? * rate)?
    }

    fn sgd(&mut self, var: &Var, gradient: &Tensor, pace: &Pace<'_>) -> Result<Tensor> {
        let gradient = (gradient + (var.as_tensor() * pace.settings.weight_decay)?)?;
        let keep = pace.settings.momentum;
        self.momentum = if pace.first { gradient.clone() } else { ((&self.momentum * keep)? + &gradient)? };
        let step = match pace.settings.nesterov {
            true => (gradient + (&self.momentum * keep)?)?,
            false => self.momentum.clone(),
        };
        var.as_tensor() - (step * f64::from(pace.lr))?
    }
}
