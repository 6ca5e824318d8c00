//! The offset fix: comparisons leave a constant of each class undetermined; the cached answers determine it.
//!
//! b <- b + mean_i (z_t(x_i) - z_s(x_i)) over the cached examples. It costs no call, and without it the argmax of a
//! student trained by comparisons alone is spoilt. Not in the paper (arXiv 2311.02253); `offset_fix = false` leaves
//! the published form as it is.

use candle_core::{Result, Tensor};

use crate::student::{Inputs, Mode, Student};

/// Puts the mean difference between the teacher's and the student's logits into the student's output bias.
pub(crate) fn fix_offset(student: &dyn Student, inputs: &Inputs, teacher: &Tensor) -> Result<()> {
    let difference = (teacher - student.forward(inputs, Mode::Inference)?)?.mean(0)?.detach();
    let bias = &student.output().bias;
    bias.set(&(bias.as_tensor() + difference)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::{Example, Input};
    use crate::machine::Machine;
    use crate::student::StudentConfig;
    use candle_core::Device;

    #[test]
    fn the_mean_difference_vanishes_and_the_bias_moves_by_it() {
        let cpu = Device::Cpu;
        let config = StudentConfig::Mlp { hidden: vec![4] };
        let vector = |at: f32| Input::Vector(vec![at, 1.0 - at]);
        let student = config.build(&vector(0.0), 3, 0, &Machine::cpu()).unwrap();
        let examples: Vec<Example> = (0..5)
            .map(|at| Example {
                key: at.to_string(),
                input: vector(at as f32),
                target: None,
                truth: None,
                hidden: vec![],
            })
            .collect();
        let inputs = student.inputs(&examples.iter().collect::<Vec<_>>()).unwrap();
        let shift = Tensor::new(&[[3f32, -2.0, 0.5]], &cpu).unwrap();
        let teacher =
            student.forward(&inputs, Mode::Inference).unwrap().broadcast_add(&shift).unwrap().detach();
        let before = student.output().bias.to_vec1::<f32>().unwrap();
        fix_offset(&student, &inputs, &teacher).unwrap();
        let after = student.output().bias.to_vec1::<f32>().unwrap();
        for (class, expected) in [3f32, -2.0, 0.5].into_iter().enumerate() {
            assert!((after[class] - before[class] - expected).abs() < 1e-5);
        }
        let left = (teacher - student.forward(&inputs, Mode::Inference).unwrap())
            .unwrap()
            .mean(0)
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        assert!(left.iter().all(|value| value.abs() < 1e-5), "{left:?}");
    }
}
