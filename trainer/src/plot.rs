//! A plot of curves with intervals as SVG, without scripts or links.
//!
//! Must not know what is plotted. Invariant: every text from outside is escaped; the axis of x is logarithmic and its
//! values are above zero.

use std::fmt::Write as _;

use crate::html::escape;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 44.0;
/// Lines of the grid, more or less.
const LINES: f64 = 5.0;
/// Height of a line of the legend.
const LEGEND: f64 = 16.0;
/// Width of a number below the axis of x.
const TICK: f64 = 48.0;
/// How far the points of one curve stand beside those of the next.
const ASIDE: f64 = 4.0;
/// Half the width of an interval's ends.
const END: f64 = 3.0;
/// How far below the middle of a line its text stands.
pub const BASELINE: f64 = 4.0;
/// The curves' colours, one after the other.
pub const COLOURS: [&str; 8] =
    ["#0b6e99", "#b5482f", "#4d7c2a", "#7a4fa0", "#a37b00", "#c2498b", "#3b7f77", "#555555"];

/// A picture as a file that stands alone: its names are said to be those of SVG, which a page need not say.
#[must_use]
pub fn alone(svg: &str) -> String {
    const SPACE: &str = "<svg xmlns=\"http://www.w3.org/2000/svg\" font-family=\"sans-serif\" ";
    svg.replacen("<svg ", SPACE, 1)
}

/// A point of a curve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Above zero.
    pub x: f64,
    /// The mean.
    pub y: f64,
    /// Half the interval of the mean.
    pub half: Option<f64>,
}

/// Curves over one axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Plot<'a> {
    /// What it shows, for those who do not see it.
    pub title: &'a str,
    /// The name of the axis of x.
    pub across: &'a str,
    /// Names and points, the points by their x.
    pub curves: Vec<(&'a str, Vec<Point>)>,
    /// A level line and its name.
    pub level: Option<(&'a str, f64)>,
}

impl Plot<'_> {
    /// The picture, as it stands in a page; none without a point.
    #[must_use]
    pub fn svg(&self) -> Option<String> {
        let points = || self.curves.iter().flat_map(|(_, points)| points);
        let range = |values: &mut dyn Iterator<Item = f64>| {
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            })
        };
        let (first, last) = range(&mut points().map(|point| point.x.ln()));
        let ends = |point: &Point| [-1.0, 1.0].map(|sign| point.y + sign * point.half.unwrap_or(0.0));
        let level = self.level.map(|(_, y)| y);
        let (low, high) = range(&mut points().flat_map(ends).chain(level));
        if first > last {
            return None;
        }
        let step = round_step(high - low);
        let (low, high) = ((low / step).floor() * step, (high / step).ceil() * step);
        let high = if high > low { high } else { low + step };
        let wide = if last > first { last - first } else { 1.0 };
        let x = |x: f64| {
            LEFT + (WIDTH - LEFT - RIGHT) * (x.ln() - first + if last > first { 0.0 } else { 0.5 }) / wide
        };
        let y = |y: f64| TOP + (HEIGHT - TOP - BOTTOM) * (high - y) / (high - low);
        let mut drawn = String::new();
        self.axes(&mut drawn, (low, high, step), &x, &y);
        for (at, (name, points)) in self.curves.iter().enumerate() {
            let colour = COLOURS[at % COLOURS.len()];
            // Beside each other: intervals at the same x would hide each other.
            let aside = ASIDE * (at as f64 - (self.curves.len() - 1) as f64 / 2.0);
            curve(&mut drawn, colour, points, &|value| x(value) + aside, &y);
            let (from, line) = (LEFT, HEIGHT + LEGEND * (at + 1) as f64);
            let _ = writeln!(
                drawn,
                "<path d=\"M{from},{} h24\" stroke=\"{colour}\" stroke-width=\"2\"/><text x=\"{}\" y=\"{line}\" \
                 fill=\"{colour}\">{}</text>",
                line - BASELINE,
                from + 32.0,
                escape(name)
            );
        }
        let height = HEIGHT + LEGEND * (self.curves.len() + 1) as f64;
        Some(format!(
            "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\" font-size=\"12\">\n{drawn}</svg>",
            escape(self.title)
        ))
    }

    fn axes(
        &self,
        drawn: &mut String,
        (low, high, step): (f64, f64, f64),
        x: &dyn Fn(f64) -> f64,
        y: &dyn Fn(f64) -> f64,
    ) {
        let right = WIDTH - RIGHT;
        let places = (-step.log10().floor()).max(0.0) as usize;
        let lines = ((high - low) / step).round() as usize;
        for line in 0..=lines {
            let value = low + step * line as f64;
            let at = y(value);
            let _ = writeln!(
                drawn,
                "<path d=\"M{LEFT},{at:.1} H{right}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{value:.places$}</text>",
                LEFT - 6.0,
                at + BASELINE
            );
        }
        let mut ticks: Vec<f64> =
            self.curves.iter().flat_map(|(_, points)| points.iter().map(|point| point.x)).collect();
        ticks.sort_by(f64::total_cmp);
        let (bottom, mut free) = (HEIGHT - BOTTOM, 0.0);
        for tick in ticks {
            let at = x(tick);
            // As many as do not stand upon each other.
            if at < free {
                continue;
            }
            free = at + TICK;
            // The last one stays within the picture.
            let anchor = if at + TICK / 2.0 > WIDTH { "end" } else { "middle" };
            let _ = writeln!(
                drawn,
                "<path d=\"M{at:.1},{bottom} v4\" stroke=\"#888\"/><text x=\"{at:.1}\" y=\"{}\" \
                 text-anchor=\"{anchor}\">{}</text>",
                bottom + 18.0,
                figure(tick)
            );
        }
        let _ = writeln!(
            drawn,
            "<path d=\"M{LEFT},{TOP} V{bottom} H{right}\" fill=\"none\" stroke=\"#888\"/><text x=\"{right}\" y=\"{}\" \
             text-anchor=\"end\">{}</text>",
            HEIGHT - 8.0,
            escape(self.across)
        );
        if let Some((name, level)) = self.level {
            let at = y(level);
            let _ = writeln!(
                drawn,
                "<path d=\"M{LEFT},{at:.1} H{right}\" stroke=\"#222\" stroke-dasharray=\"6 4\"/><text x=\"{right}\" \
                 y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                at + 14.0,
                escape(name)
            );
        }
    }
}

fn curve(drawn: &mut String, colour: &str, points: &[Point], x: &dyn Fn(f64) -> f64, y: &dyn Fn(f64) -> f64) {
    let path: Vec<String> =
        points.iter().map(|point| format!("{:.1},{:.1}", x(point.x), y(point.y))).collect();
    let _ = writeln!(
        drawn,
        "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>",
        path.join(" ")
    );
    for point in points {
        let (at, middle) = (x(point.x), y(point.y));
        let _ = writeln!(drawn, "<circle cx=\"{at:.1}\" cy=\"{middle:.1}\" r=\"3\" fill=\"{colour}\"/>");
        if let Some(half) = point.half {
            let (top, bottom, left) = (y(point.y + half), y(point.y - half), at - END);
            let wide = 2.0 * END;
            let _ = writeln!(
                drawn,
                "<path d=\"M{at:.1},{top:.1} V{bottom:.1} M{left:.1},{top:.1} h{wide} M{left:.1},{bottom:.1} h{wide}\" \
                 stroke=\"{colour}\"/>"
            );
        }
    }
}

/// A round step (1, 2 or 5 times a power of ten) that divides a range into about five.
#[must_use]
pub fn round_step(range: f64) -> f64 {
    let rough = if range > 0.0 { range / LINES } else { 0.1 };
    let power = 10f64.powf(rough.log10().floor());
    let round = [1.0, 2.0, 5.0].into_iter().find(|times| times * power >= rough).unwrap_or(10.0);
    round * power
}

/// A number of an axis: whole where it is large, three figures where it is not.
fn figure(value: f64) -> String {
    if value >= 100.0 || value.fract() == 0.0 {
        return format!("{value:.0}");
    }
    let places = (2.0 - value.log10().floor()) as usize;
    let text = format!("{value:.places$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_and_figures_are_round() {
        for (range, expected) in [(1.0, 0.2), (0.04, 0.01), (0.3, 0.1), (7.0, 2.0), (0.0, 0.1)] {
            assert!((round_step(range) - expected).abs() < 1e-12, "{range}: {}", round_step(range));
        }
        for (value, expected) in [(250.0, "250"), (1.5, "1.5"), (0.012_345, "0.0123"), (40.0, "40")] {
            assert_eq!(figure(value), expected);
        }
    }

    #[test]
    fn a_curve_is_drawn_where_its_numbers_are() {
        let point = |x: f64, y: f64, half| Point { x, y, half };
        let points = vec![point(100.0, 0.5, Some(0.1)), point(400.0, 0.9, None)];
        let plot = Plot {
            title: "a < b",
            across: "calls",
            curves: vec![("k&d", points)],
            level: Some(("teacher", 1.0)),
        };
        let svg = plot.svg().unwrap();
        // The axis goes from 0.4 to 1 in steps of 0.2; 0.5 stands 5/6 down the 300 between 16 and 316.
        assert!(svg.contains("points=\"64.0,266.0 704.0,66.0\""), "{svg}");
        assert!(svg.contains("M64.0,216.0 V316.0"), "{svg}");
        assert!(svg.contains("a &lt; b") && svg.contains("k&amp;d") && svg.contains(">teacher<"), "{svg}");
        assert!(
            svg.contains("text-anchor=\"middle\">100<") && svg.contains("text-anchor=\"end\">400<"),
            "{svg}"
        );
        assert_eq!(svg.matches("<circle").count(), 2);
        let none = Plot { title: "", across: "", curves: vec![("x", vec![])], level: None };
        assert_eq!(none.svg(), None);
    }
}
