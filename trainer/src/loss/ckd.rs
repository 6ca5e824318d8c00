//! Comparative distillation: the student's differences between inputs against the teacher's cached ones.
//!
//! Both forms as in the authors' released code: the one of 2023 (KL between softened differences) and the one of
//! 2025 (MSE). Neither has a term on single outputs, so the student's outputs float by a constant for each class;
//! `method` puts that offset back. Source: arXiv 2311.02253, code alextxu/ckd.

use candle_core::{Result, Tensor};

use super::{kd::kd, logit_mse::logit_mse};

/// The form of 2025: `w_cls` MSE(d_s, d_y) + `w_rel` MSE(d_s, d_t), over combined outputs `[m, C]`.
pub(crate) fn ckd_mse(
    student: &Tensor,
    teacher: &Tensor,
    labels: &Tensor,
    w_cls: f64,
    w_rel: f64,
) -> Result<Tensor> {
    (logit_mse(student, labels)? * w_cls)? + (logit_mse(student, teacher)? * w_rel)?
}

/// The form of 2023: `w_cls` T^2 KL(d_y || d_s) + `w_rel` T^2 KL(d_t || d_s), each softened by `temperature`.
pub(crate) fn ckd_kl(
    student: &Tensor,
    teacher: &Tensor,
    labels: &Tensor,
    temperature: f64,
    w_cls: f64,
    w_rel: f64,
) -> Result<Tensor> {
    (kd(student, labels, temperature)? * w_cls)? + (kd(student, teacher, temperature)? * w_rel)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::combine;
    use crate::loss::tests::{Fixture, check};
    use candle_core::Device;

    fn pairs(rows: &Tensor) -> Result<Tensor> {
        combine(rows, &Tensor::new(&[[1f32, -1.0], [1.0, -1.0]], &Device::Cpu)?)
    }

    // d = lambda z: z[[0, 2]] - z[[1, 3]]
    // ds, dt, dy = d(s), d(t), d(F.one_hot(y, 3).float())
    // F.mse_loss(ds, dy) + F.mse_loss(ds, dt)   # 7.1770830; gradient [0,0] -1.3333334, [3,1] -0.6666667
    // F.mse_loss(ds, dt)                        # 4.8229165; gradient [0,0] -1.3333334, [3,1] -0.7500000
    #[test]
    fn the_mse_form_equals_pytorch() {
        let loss = |w_cls| {
            move |Fixture { s, t, hot, .. }: &Fixture| {
                ckd_mse(&pairs(s)?, &pairs(t)?, &pairs(hot)?, w_cls, 1.0)
            }
        };
        check(loss(1.0), 7.177_083, -1.333_333_4, -0.666_666_7);
        check(loss(0.0), 4.822_916_5, -1.333_333_4, -0.75);
    }

    // kl = lambda a, b: F.kl_div(F.log_softmax(a/4, 1), F.softmax(b/4, 1), reduction='batchmean') * 16
    // kl(ds, dy) + kl(ds, dt)   # 2.2938814; gradient [0,0] -0.6481658, [3,1] 0.1127896
    #[test]
    fn the_kl_form_equals_pytorch() {
        check(
            |Fixture { s, t, hot, .. }| ckd_kl(&pairs(s)?, &pairs(t)?, &pairs(hot)?, 4.0, 1.0, 1.0),
            2.293_881_4,
            -0.648_165_8,
            0.112_789_6,
        );
    }
}
