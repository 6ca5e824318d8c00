//! A bar for a person who watches: how far, at which rate, what is spent of what may be, and how long still.
//!
//! Must not know what is counted. Invariant: without a terminal, or with `--json`, nothing is drawn.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::print;

/// How often the bar is drawn at most.
const DRAWS_A_SECOND: u8 = 10;

/// A bar on standard error.
#[derive(Clone)]
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar of `total` things that are named `unit`.
    pub(crate) fn new(total: u64, unit: &str, json: bool) -> Self {
        let target = match print::is_watched() && !json {
            true => ProgressDrawTarget::stderr_with_hz(DRAWS_A_SECOND),
            false => ProgressDrawTarget::hidden(),
        };
        let template = format!(
            "{{prefix}} {{bar:30}} {{pos}}/{{len}} {unit}  {{msg}}  {{per_sec}}  {{eta_precise}} left"
        );
        let style =
            ProgressStyle::with_template(&template).expect("the template is a constant that is tested");
        let bar = ProgressBar::with_draw_target(Some(total), target).with_style(style);
        bar.enable_steady_tick(Duration::from_millis(500));
        Self { bar }
    }

    /// What is going on, in a word or two.
    pub(crate) fn stage(&self, stage: &str) {
        self.bar.set_prefix(stage.to_owned());
    }

    /// Stands at `done` of `total`, with a remark such as the spend.
    pub(crate) fn stand(&self, done: u64, total: u64, remark: String) {
        self.bar.set_length(total);
        self.bar.set_position(done);
        self.bar.set_message(remark);
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_that_nobody_watches_still_counts() {
        let progress = Progress::new(10, "answers", true);
        progress.stage("buying");
        progress.stand(3, 12, "0.5 of 1 dollars".into());
        assert!(progress.bar.is_hidden());
        assert_eq!((progress.bar.position(), progress.bar.length()), (3, Some(12)));
        progress.finish();
    }
}
