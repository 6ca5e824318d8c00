//! What must hold for any text: the configuration.
//!
//! The door of `fuzz/`; the seeds and findings of `fuzz/corpus/` run through it in the ordinary tests too. Must not read
//! files. Invariant: it asserts a property, not only that nothing panics.

use std::path::Path;

use crate::config::{Config, ConfigError};

/// Whatever is wrong is answered with its key, or its line; what is read gives each name once.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let lines = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let file = Path::new("tuition.toml");
    match Config::read(file, text) {
        Ok(config) => {
            let mut names: Vec<&str> = config.teachers.iter().map(|teacher| teacher.name.as_str()).collect();
            names.sort_unstable();
            assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "two teachers of one name");
            let known = |name: &Option<String>, names: &[&str]| {
                name.as_ref().is_none_or(|name| names.contains(&name.as_str()))
            };
            for budget in &config.budgets {
                assert!(known(&budget.scope.teacher, &names), "a budget of a teacher that there is not");
                let limit = &budget.limit;
                assert!(limit.calls.is_some() || limit.tokens.is_some() || limit.usd.is_some(), "no limit");
            }
        }
        Err(ConfigError::Value { key, reason, .. }) => {
            assert!(!key.is_empty() && !reason.is_empty(), "no key in: {reason}");
        }
        Err(ConfigError::UnknownKey { line, key, known, .. }) => {
            assert!((1..=lines).contains(&line), "`{key}` in line {line} of {lines}");
            let name = |name: &String| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            assert!(
                !known.is_empty() && known.iter().all(name),
                "`{key}` is unknown, and known are {known:?}"
            );
        }
        Err(ConfigError::Form { line, reason, .. }) => {
            assert!((1..=lines).contains(&line) && !reason.is_empty(), "line {line} of {lines}: {reason}");
        }
        Err(error) => panic!("reading a text ends with {error:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fuzzing_found_stays_found() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/config");
        let mut count = 0;
        for seed in std::fs::read_dir(&folder).unwrap() {
            let seed = seed.unwrap().path();
            println!("{}", seed.display());
            config(&std::fs::read(seed).unwrap());
            count += 1;
        }
        assert!(count > 0, "{} is empty", folder.display());
    }
}
