//! A running average of a student's variables, and the statistics of batch normalisation that fit it.
//!
//! It must not know losses. Invariants: the average is of variables alone; running statistics are taken anew for it, since
//! those of the last values are not its own. Sources: Polyak and Juditsky, 1992; Mean teachers, arXiv 1703.01780; taking the
//! statistics anew, Averaging Weights Leads to Wider Optima, arXiv 1803.05407.

use candle_core::{Result, Tensor};

use super::task::Task;
use crate::student::{Built, MOMENTUM, Mode, Student};

/// Inputs of one batch whose statistics are taken.
const CHUNK: usize = 250;
/// The most inputs whose statistics are taken.
const RESTATED: usize = 5000;

/// The average, once a step was taken.
#[derive(Debug, Clone)]
pub(crate) struct Average {
    decay: f64,
    pub(crate) values: Option<Vec<Vec<f32>>>,
}

impl Average {
    /// An average that has seen nothing.
    pub(crate) fn new(decay: f64) -> Self {
        Self { decay, values: None }
    }

    /// Goes a step towards the student's variables; the first step is the average.
    pub(crate) fn follow(&mut self, student: &Built) -> Result<()> {
        let mut now = student.parameters().all().iter().map(|(_, var)| var.flatten_all()?.to_vec1::<f32>());
        match &mut self.values {
            empty @ None => *empty = Some(now.collect::<Result<_>>()?),
            Some(values) => {
                let (past, new) = (self.decay as f32, (1.0 - self.decay) as f32);
                for average in values {
                    let Some(now) = now.next() else { break };
                    average
                        .iter_mut()
                        .zip(now?)
                        .for_each(|(average, now)| *average = past * *average + new * now);
                }
            }
        }
        Ok(())
    }

    /// Gives `shadow`, another of the student's kind, the average's variables; before the first step the student's own.
    pub(crate) fn show(&self, student: &Built, shadow: &Built) -> Result<()> {
        let theirs = shadow.parameters().all();
        match &self.values {
            Some(values) => theirs.iter().zip(values).try_for_each(|((_, var), values)| {
                var.set(&Tensor::from_slice(values, var.dims(), var.device())?)
            }),
            None => theirs
                .iter()
                .zip(student.parameters().all())
                .try_for_each(|((_, var), (_, own))| var.set(&own.as_tensor().copy()?)),
        }
    }

    /// Makes the student the average; before the first step it stays as it is.
    pub(crate) fn put(&self, student: &Built, task: &Task) -> Result<()> {
        if self.values.is_none() {
            return Ok(());
        }
        self.show(student, student)?;
        restate(student, task)
    }
}

/// Takes the running statistics anew: the mean of those of equal batches of inputs, asked about or not.
fn restate(student: &Built, task: &Task) -> Result<()> {
    let buffers = student.parameters().buffers();
    let count = task.everything().min(RESTATED);
    if buffers.is_empty() {
        return Ok(());
    }
    let chunk = CHUNK.min(count);
    let chunks = count / chunk;
    let mut sums: Vec<Option<Tensor>> = vec![None; buffers.len()];
    for at in 0..chunks {
        for (_, buffer) in buffers {
            buffer.set(&buffer.zeros_like()?)?;
        }
        let rows: Vec<u32> = (at * chunk..(at + 1) * chunk).map(|row| row as u32).collect();
        student.forward(&task.any(&rows)?, Mode::Training)?;
        // From nothing a step moves a buffer to MOMENTUM times the batch's own.
        for (sum, (_, buffer)) in sums.iter_mut().zip(buffers) {
            let own = buffer.as_tensor().copy()?;
            *sum = Some(match sum.take() {
                Some(sum) => (sum + own)?,
                None => own,
            });
        }
    }
    for (sum, (_, buffer)) in sums.into_iter().flatten().zip(buffers) {
        buffer.set(&(sum / (chunks as f64 * MOMENTUM))?)?;
    }
    Ok(())
}
