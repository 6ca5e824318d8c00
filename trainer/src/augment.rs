//! Images changed at random: shifted within a border, mirrored, turned, scaled, made lighter or darker, with a hole.
//!
//! A teacher is not asked about a changed image: its recorded answer to the image itself stays the target. It must not
//! know students or losses. Invariant: what is not asked for draws no random numbers, and a seed's numbers are drawn in
//! one order. Sources: crops and flips, He et al., arXiv 1512.03385, section 4.2; holes, DeVries and Taylor, arXiv
//! 1708.04552.

use candle_core::{Result, Tensor};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::range::{Judged, OutOfRange};
use crate::student::Inputs;

/// How images are changed: the `augment` table under `[train]`, or the views of a warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// Pixels of zeros around an image, out of which a crop of its own size is cut; 0 cuts nothing.
    pub crop: usize,
    /// Whether half of the images are mirrored, left to right.
    pub flip: bool,
    /// The most degrees by which an image is turned, either way.
    #[serde(skip_serializing_if = "is_zero")]
    pub rotate: f64,
    /// The greatest share by which an image becomes larger or smaller.
    #[serde(skip_serializing_if = "is_zero")]
    pub scale: f64,
    /// The greatest share by which its values are multiplied up or down.
    #[serde(skip_serializing_if = "is_zero")]
    pub gain: f64,
    /// The side of a square of zeros, wholly inside the image; 0 leaves it whole.
    #[serde(skip_serializing_if = "is_none")]
    pub cutout: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands references")]
fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands references")]
fn is_none(value: &usize) -> bool {
    *value == 0
}

/// What is done to one image.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Change {
    /// Rows and columns by which the image moves up and to the left.
    shift: [isize; 2],
    mirror: bool,
    /// Radians, and the factor by which it becomes larger.
    turn: f64,
    zoom: f64,
    gain: f32,
    /// The first row and column of the hole.
    hole: Option<[usize; 2]>,
}

impl Augment {
    /// Checks the settings for images of `[C, H, W]`; `table` is where they stand in the run file.
    pub(crate) fn check(
        &self,
        [_, height, width]: [usize; 3],
        table: &'static str,
    ) -> std::result::Result<(), OutOfRange> {
        let extent = height.min(width);
        let table = Judged(table);
        let inside = "less than the image's height and width";
        table.check("crop", self.crop < extent, self.crop, inside)?;
        table.check("cutout", self.cutout < extent, self.cutout, inside)?;
        let fine = (0.0..=180.0).contains(&self.rotate);
        table.check("rotate", fine, self.rotate, "0 to 180 degrees")?;
        table.check("scale", (0.0..1.0).contains(&self.scale), self.scale, "0 to below 1")?;
        table.check("gain", (0.0..=1.0).contains(&self.gain), self.gain, "0 to 1")
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
            let change = self.draw(image, rng);
            change.apply(before, after, image);
            change.finish(after, image, self.cutout);
        }
        Ok(Inputs(vec![Tensor::from_vec(after, (n, width), rows.device())?]))
    }

    fn draw(&self, [_, height, width]: [usize; 3], rng: &mut impl Rng) -> Change {
        let mut shift = || rng.random_range(0..=2 * self.crop as u32) as isize - self.crop as isize;
        let shift = [shift(), shift()];
        let mirror = rng.random::<u32>() >> 31 == 1;
        // Uniform in -most..most.
        let mut about = |most: f64| if most == 0.0 { 0.0 } else { (rng.random::<f64>() * 2.0 - 1.0) * most };
        let (turn, zoom, gain) =
            (about(self.rotate.to_radians()), 1.0 + about(self.scale), 1.0 + about(self.gain) as f32);
        let hole = (self.cutout > 0).then(|| {
            [height, width].map(|extent| rng.random_range(0..=(extent - self.cutout) as u32) as usize)
        });
        Change { shift, mirror: mirror && self.flip, turn, zoom, gain, hole }
    }
}

impl Change {
    /// Writes the moved image over zeros.
    fn apply(self, before: &[f32], after: &mut [f32], [_, height, width]: [usize; 3]) {
        let planes = before.chunks_exact(height * width).zip(after.chunks_exact_mut(height * width));
        for (before, after) in planes {
            if self.turn == 0.0 && self.zoom == 1.0 {
                self.shifted(before, after, height, width);
            } else {
                self.turned(before, after, height, width);
            }
        }
    }

    fn shifted(self, before: &[f32], after: &mut [f32], height: usize, width: usize) {
        let moved = |at: usize, by: isize, extent: usize| at.checked_add_signed(by).filter(|at| *at < extent);
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

    /// As `shifted`, turned and zoomed about the middle, each value out of its four neighbours.
    fn turned(self, before: &[f32], after: &mut [f32], height: usize, width: usize) {
        let middle = [(height as f64 - 1.0) / 2.0, (width as f64 - 1.0) / 2.0];
        let (sine, cosine) = self.turn.sin_cos();
        let at = |row: isize, column: isize| {
            let inside = (0..height as isize).contains(&row) && (0..width as isize).contains(&column);
            if inside { before[row as usize * width + column as usize] } else { 0.0 }
        };
        for (row, after) in after.chunks_exact_mut(width).enumerate() {
            for (column, value) in after.iter_mut().enumerate() {
                let column = if self.mirror { width - 1 - column } else { column };
                let (y, x) = (row as f64 - middle[0], column as f64 - middle[1]);
                let y_from = (cosine * y - sine * x) / self.zoom + middle[0] + self.shift[0] as f64;
                let x_from = (sine * y + cosine * x) / self.zoom + middle[1] + self.shift[1] as f64;
                let (top, left) = (y_from.floor(), x_from.floor());
                let (down, right) = ((y_from - top) as f32, (x_from - left) as f32);
                let (top, left) = (top as isize, left as isize);
                let line = |row: isize| at(row, left) * (1.0 - right) + at(row, left + 1) * right;
                *value = line(top) * (1.0 - down) + line(top + 1) * down;
            }
        }
    }

    /// Multiplies the values, and makes the hole.
    fn finish(self, after: &mut [f32], [_, height, width]: [usize; 3], side: usize) {
        if self.gain != 1.0 {
            after.iter_mut().for_each(|value| *value *= self.gain);
        }
        let Some([top, left]) = self.hole else { return };
        for plane in after.chunks_exact_mut(height * width) {
            for row in top..top + side {
                plane[row * width + left..][..side].fill(0.0);
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

    const STILL: Change =
        Change { shift: [0, 0], mirror: false, turn: 0.0, zoom: 1.0, gain: 1.0, hole: None };

    fn check(change: Change, expected: [f32; 6]) {
        let mut after = [0.0; 6];
        change.apply(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &mut after, IMAGE);
        assert_eq!(after, expected, "{change:?}");
    }

    #[test]
    fn images_move_over_zeros_and_are_mirrored() {
        let change = |shift, mirror| Change { shift, mirror, ..STILL };
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
        let augment = Augment { crop: 1, flip: true, ..Augment::default() };
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..500 {
            let Change { shift, mirror, .. } = augment.draw(IMAGE, &mut rng);
            seen.insert((shift, mirror));
        }
        assert_eq!(seen.len(), 18);
        assert!(seen.iter().all(|(shift, _)| shift.iter().all(|by| (-1..=1).contains(by))));
        let mirrored = (0..1000).filter(|_| augment.draw(IMAGE, &mut rng).mirror).count();
        assert!((430..570).contains(&mirrored), "{mirrored}");
    }

    #[test]
    fn nothing_to_do_draws_nothing() {
        let rows = Tensor::new(&[[1f32, 2.0, 3.0, 4.0, 5.0, 6.0]], &Device::Cpu).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let same = Augment::default().apply(Inputs(vec![rows.clone()]), IMAGE, &mut rng).unwrap();
        assert_eq!(same.0[0].to_vec2::<f32>().unwrap(), rows.to_vec2::<f32>().unwrap());
        assert_eq!(rng.get_word_pos(), 0);
        let refused = |augment: Augment| augment.check(IMAGE, "train.augment").unwrap_err().to_string();
        assert_eq!(
            refused(Augment { crop: 2, ..Augment::default() }),
            "`train.augment.crop` is 2; it must be less than the image's height and width"
        );
        assert_eq!(
            refused(Augment { scale: 1.0, ..Augment::default() }),
            "`train.augment.scale` is 1; it must be 0 to below 1"
        );
    }

    #[test]
    fn images_are_turned_and_zoomed_about_their_middle() {
        // A quarter turn of 3x3, counter-clockwise: numpy.rot90.
        let image = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0];
        let mut after = [0.0; 9];
        let quarter = Change { turn: -std::f64::consts::FRAC_PI_2, ..STILL };
        quarter.apply(&image, &mut after, [1, 3, 3]);
        let expected = [3.0, 6.0, 9.0, 2.0, 5.0, 8.0, 1.0, 4.0, 7.0];
        assert!(after.iter().zip(expected).all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-5), "{after:?}");
        // Twice as large: half-way values between neighbours, the middle stays.
        Change { zoom: 2.0, ..STILL }.apply(&image, &mut after, [1, 3, 3]);
        assert_eq!(after, [3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 6.5, 7.0]);
        // As good as no zoom gives what a plain shift gives, zeros at the border included.
        let nearly = Change { shift: [1, 0], mirror: true, zoom: 1.0 + 1e-12, ..STILL };
        let mut exact = [0.0; 9];
        nearly.apply(&image, &mut after, [1, 3, 3]);
        Change { zoom: 1.0, ..nearly }.apply(&image, &mut exact, [1, 3, 3]);
        assert!(after.iter().zip(exact).all(|(a, b)| (a - b).abs() < 1e-5), "{after:?} {exact:?}");
    }

    #[test]
    fn values_are_multiplied_and_a_square_is_cut_out() {
        let mut image = [1.0; 12];
        let change = Change { gain: 0.5, hole: Some([0, 1]), ..STILL };
        change.finish(&mut image, [2, 2, 3], 2);
        assert_eq!(image, [0.5, 0.0, 0.0, 0.5, 0.0, 0.0, 0.5, 0.0, 0.0, 0.5, 0.0, 0.0]);
        let augment = Augment { gain: 0.4, cutout: 2, rotate: 15.0, scale: 0.15, ..Augment::default() };
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for _ in 0..200 {
            let Change { turn, zoom, gain, hole, .. } = augment.draw([1, 4, 3], &mut rng);
            assert!(turn.abs() <= 15f64.to_radians() && (0.85..=1.15).contains(&zoom));
            assert!((0.6..=1.4).contains(&gain));
            assert!(matches!(hole, Some([0..=2, 0..=1])), "{hole:?}");
        }
    }
}
