//! Cross-entropy with one class for each input.

use candle_core::{Result, Tensor};
use candle_nn::ops::log_softmax;

/// The mean cross-entropy of `logits` `[n, C]` with `classes` `[n]` (u32).
pub(crate) fn cross_entropy(logits: &Tensor, classes: &Tensor) -> Result<Tensor> {
    log_softmax(logits, 1)?.gather(&classes.unsqueeze(1)?, 1)?.mean_all()?.neg()
}

#[cfg(test)]
mod tests {
    use crate::loss::tests::{Fixture, check};

    // s, t, y = the fixture of loss/mod.rs
    // torch.nn.functional.cross_entropy(s, y)   # 0.7745660; gradient [0,0] -0.1025506, [3,1] 0.1518704
    #[test]
    fn equals_pytorch() {
        check(|Fixture { s, y, .. }| super::cross_entropy(s, y), 0.774_566, -0.102_550_6, 0.151_870_4);
    }
}
