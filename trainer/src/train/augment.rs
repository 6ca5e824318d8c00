//! Images changed at random before a step: shifted within a border, and mirrored.
//!
//! The teacher is not asked about the changed image: its recorded answer to the image itself stays the target. It must
//! not know students or losses. Invariant: as many random numbers are drawn for each image whatever comes out, so that a
//! resumed run goes on where the interrupted one stood. Source: He et al., arXiv 1512.03385, section 4.2.

use candle_core::{Result, Tensor};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::TrainError;
use crate::student::Inputs;

/// The `augment` table under `[train]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// Pixels of zeros around an image, out of which a crop of its own size is cut; 0 cuts nothing.
    pub crop: usize,
    /// Whether half of the images are mirrored, left to right.
    pub flip: bool,
}

/// What is done to one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Change {
    /// Rows and columns by which the image moves up and to the left.
    shift: [isize; 2],
    mirror: bool,
}

impl Augment {
    /// Checks the border against the smaller extent of an image.
    pub(crate) fn check(&self, extent: usize) -> std::result::Result<(), TrainError> {
        if self.crop < extent {
            return Ok(());
        }
        let value = self.crop.to_string();
        Err(TrainError::Range {
            field: "augment.crop",
            value,
            range: "less than the image's height and width",
        })
    }

    /// Changes each of the images `[n, C*H*W]`; `image` is `[C, H, W]`.
    pub(crate) fn apply(&self, inputs: Inputs, image: [usize; 3], rng: &mut impl Rng) -> Result<Inputs> {
        if *self == Self::default() {
            return Ok(inputs);
        }
        let rows = &inputs.0[0];
        let (n, width) = rows.dims2()?;
        let before = rows.flatten_all()?.to_vec1::<f32>()?;
        let mut after = vec![0.0; before.len()];
        for (before, after) in before.chunks_exact(width).zip(after.chunks_exact_mut(width)) {
            self.draw(rng).apply(before, after, image);
        }
        Ok(Inputs(vec![Tensor::from_vec(after, (n, width), rows.device())?]))
    }

    fn draw(&self, rng: &mut impl Rng) -> Change {
        let mut shift = || rng.random_range(0..=2 * self.crop as u32) as isize - self.crop as isize;
        let shift = [shift(), shift()];
        let mirror = rng.random::<u32>() >> 31 == 1;
        Change { shift, mirror: mirror && self.flip }
    }
}

impl Change {
    /// Writes the changed image over zeros.
    fn apply(self, before: &[f32], after: &mut [f32], [_, height, width]: [usize; 3]) {
        let moved = |at: usize, by: isize, extent: usize| at.checked_add_signed(by).filter(|at| *at < extent);
        let planes = before.chunks_exact(height * width).zip(after.chunks_exact_mut(height * width));
        for (before, after) in planes {
            for (row, after) in after.chunks_exact_mut(width).enumerate() {
                let Some(from) = moved(row, self.shift[0], height) else { continue };
                let before = &before[from * width..][..width];
                for (column, value) in after.iter_mut().enumerate() {
                    // Mirrored after it was cut out.
                    let column = if self.mirror { width - 1 - column } else { column };
                    if let Some(from) = moved(column, self.shift[1], width) {
                        *value = before[from];
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    const IMAGE: [usize; 3] = [1, 2, 3];

    fn check(change: Change, expected: [f32; 6]) {
        let mut after = [0.0; 6];
        change.apply(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &mut after, IMAGE);
        assert_eq!(after, expected, "{change:?}");
    }

    #[test]
    fn images_move_over_zeros_and_are_mirrored() {
        let change = |shift, mirror| Change { shift, mirror };
        check(change([0, 0], false), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        check(change([0, 0], true), [3.0, 2.0, 1.0, 6.0, 5.0, 4.0]);
        check(change([1, 0], false), [4.0, 5.0, 6.0, 0.0, 0.0, 0.0]);
        check(change([-1, 1], false), [0.0, 0.0, 0.0, 2.0, 3.0, 0.0]);
        check(change([0, 1], true), [0.0, 3.0, 2.0, 0.0, 6.0, 5.0]);
        check(change([2, 0], false), [0.0; 6]);
    }

    #[test]
    fn every_shift_and_side_is_drawn_and_each_image_takes_the_same_numbers() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let augment = Augment { crop: 1, flip: true };
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..500 {
            let Change { shift, mirror } = augment.draw(&mut rng);
            seen.insert((shift, mirror));
        }
        assert_eq!(seen.len(), 18);
        assert!(seen.iter().all(|(shift, _)| shift.iter().all(|by| (-1..=1).contains(by))));
        let mirrored = (0..1000).filter(|_| augment.draw(&mut rng).mirror).count();
        assert!((430..570).contains(&mirrored), "{mirrored}");
    }

    #[test]
    fn nothing_to_do_draws_nothing() {
        let rows = Tensor::new(&[[1f32, 2.0, 3.0, 4.0, 5.0, 6.0]], &Device::Cpu).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let same = Augment::default().apply(Inputs(vec![rows.clone()]), IMAGE, &mut rng).unwrap();
        assert_eq!(same.0[0].to_vec2::<f32>().unwrap(), rows.to_vec2::<f32>().unwrap());
        assert_eq!(rng.get_word_pos(), 0);
        let refused = Augment { crop: 2, flip: false }.check(2).unwrap_err().to_string();
        assert_eq!(refused, "`train.augment.crop` is 2; it must be less than the image's height and width");
    }
}
