//! A forest plot as SVG, without scripts or links: one line for each method, its difference from another and the interval.
//!
//! Must not know what is compared. Invariant: every text from outside is escaped; the level of no difference is in the
//! picture.

use std::fmt::Write as _;

use tuition_trainer::Measure;
use tuition_trainer::html::escape;
use tuition_trainer::plot::{BASELINE, COLOURS, round_step};

const WIDTH: f64 = 720.0;
/// For the names, on the left.
const LEFT: f64 = 144.0;
/// For the figures, on the right.
const RIGHT: f64 = 136.0;
const LINE: f64 = 20.0;
const BOTTOM: f64 = 44.0;

/// Differences, each with its name.
pub(crate) struct Forest<'a> {
    /// What it shows, for those who do not see it; below the axis for those who do.
    pub(crate) title: &'a str,
    /// The lines; those without a mean are left out, the others sorted by it.
    pub(crate) lines: Vec<(&'a str, &'a Measure)>,
}

impl Forest<'_> {
    /// The picture, as it stands in a page; none without a line.
    pub(crate) fn svg(&self) -> Option<String> {
        let half = |measure: &Measure| measure.ci95.unwrap_or(0.0);
        let mut lines: Vec<(&str, f64, f64)> = self
            .lines
            .iter()
            .filter_map(|(name, measure)| Some((*name, measure.mean?, half(measure))))
            .collect();
        if lines.is_empty() {
            return None;
        }
        lines.sort_by(|(_, one, _), (_, other, _)| other.total_cmp(one));
        let (low, high) = lines.iter().fold((0.0, 0.0), |(low, high): (f64, f64), (_, mean, half)| {
            (low.min(mean - half), high.max(mean + half))
        });
        let step = round_step(high - low);
        let (low, high) = ((low / step).floor() * step, (high / step).ceil() * step);
        let high = if high > low { high } else { low + step };
        let x = |value: f64| LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low);
        let bottom = LINE * (lines.len() + 1) as f64;
        let mut drawn = String::new();
        let places = (-step.log10().floor()).max(0.0) as usize;
        for mark in 0..=((high - low) / step).round() as usize {
            let value = low + step * mark as f64;
            // Close to nothing is nothing: sums of steps do not meet it.
            let (value, colour) = if value.abs() < step / 2.0 { (0.0, "#222") } else { (value, "#ddd") };
            let at = x(value);
            let _ = writeln!(
                drawn,
                "<path d=\"M{at:.1},8 V{bottom}\" stroke=\"{colour}\"/><text x=\"{at:.1}\" y=\"{}\" \
                 text-anchor=\"middle\">{value:.places$}</text>",
                bottom + 16.0
            );
        }
        for (at, (name, mean, half)) in lines.iter().enumerate() {
            let y = LINE * (at + 1) as f64;
            let _ = writeln!(
                drawn,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text><path d=\"M{:.1},{y} H{:.1}\" stroke=\"{}\" \
                 stroke-width=\"2\"/><circle cx=\"{:.1}\" cy=\"{y}\" r=\"4\" fill=\"{}\"/><text x=\"{WIDTH}\" y=\"{}\" \
                 text-anchor=\"end\">{mean:+.4} ± {half:.4}</text>",
                LEFT - 12.0,
                y + BASELINE,
                escape(name),
                x(mean - half),
                x(mean + half),
                COLOURS[0],
                x(*mean),
                COLOURS[0],
                y + BASELINE,
            );
        }
        let height = bottom + BOTTOM;
        let _ = writeln!(
            drawn,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            LEFT + (WIDTH - LEFT - RIGHT) / 2.0,
            height - 8.0,
            escape(self.title)
        );
        Some(format!(
            "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\" font-size=\"12\">\n{drawn}</svg>",
            escape(self.title)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_stands_where_its_numbers_are() {
        let measure = |mean: f64, half: f64| Measure { mean: Some(mean), ci95: Some(half), values: vec![] };
        let (worse, better) = (measure(-0.1, 0.1), measure(0.15, 0.05));
        let none = Measure::of(vec![]);
        let lines = vec![("a<b", &worse), ("none", &none), ("better", &better)];
        let svg = Forest { title: "x & y", lines }.svg().unwrap();
        // From -0.2 to 0.2 over the 440 between 144 and 584, sorted: the better one stands first.
        assert!(svg.contains("M474.0,20 H584.0") && svg.contains("cx=\"529.0\" cy=\"20\""), "{svg}");
        assert!(svg.contains("M144.0,40 H364.0") && svg.contains("cx=\"254.0\" cy=\"40\""), "{svg}");
        assert!(svg.contains("M364.0,8 V60\" stroke=\"#222\"") && svg.contains(">0.0<"), "{svg}");
        assert!(
            svg.contains("+0.1500 ± 0.0500") && svg.contains("a&lt;b") && svg.contains("x &amp; y"),
            "{svg}"
        );
        assert_eq!(svg.matches("<circle").count(), 2);
        assert_eq!(Forest { title: "", lines: vec![("none", &none)] }.svg(), None);
    }
}
