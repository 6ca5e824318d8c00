//! The known name nearest to a mistyped one.
//!
//! It must not know what the names stand for. Invariant: a hint is given only where it is likely to help.

/// The candidate nearest to `name` where at most a third of the letters differ; ties go to the first.
#[must_use]
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |candidate: &str| strsim::osa_distance(&name.to_lowercase(), &candidate.to_lowercase());
    let best = candidates.into_iter().min_by_key(|candidate| distance(candidate))?;
    let longest = name.chars().count().max(best.chars().count());
    (distance(best) * 3 <= longest).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_is_near_or_absent() {
        for (name, expected) in [
            ("timeout", Some("timeout_s")),
            ("modells", Some("models")),
            ("NAME", Some("name")),
            ("hedaers", Some("headers")),
            ("mae", None),
            ("zzz", None),
            ("timeouts", Some("timeout_s")),
        ] {
            assert_eq!(nearest(name, ["name", "models", "timeout_s", "headers"]), expected, "{name}");
        }
        assert_eq!(nearest("name", []), None);
    }
}
