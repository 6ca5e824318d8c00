//! The known name nearest to a mistyped one, for hints in errors. It must not know what the names stand for.
//! Invariant: a hint is given only where it is likely to be meant.

/// How alike two names must be (Jaro and Winkler, 0 to 1) before one is offered for the other.
const ALIKE: f64 = 0.8;

/// The candidate nearest to `name`, if one is near enough; ties go to the first.
pub(crate) fn nearest<'a>(name: &str, candidates: &'a [String]) -> Option<&'a str> {
    let mut best: Option<(f64, &str)> = None;
    for candidate in candidates {
        let likeness = strsim::jaro_winkler(&name.to_lowercase(), &candidate.to_lowercase());
        if likeness >= ALIKE && best.is_none_or(|(before, _)| likeness > before) {
            best = Some((likeness, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_is_near_or_absent() {
        let known = ["target_label".to_owned(), "bytes".to_owned()];
        for (name, expected) in [
            ("byte", Some("bytes")),
            ("Bytes", Some("bytes")),
            ("targetlabel", Some("target_label")),
            ("x", None),
        ] {
            assert_eq!(nearest(name, &known), expected, "{name}");
        }
        assert_eq!(nearest("bytes", &[]), None);
    }
}
