//! Unified diffs: read, and applied where the text that they change stands exactly once.
//! Knows no file system; must not guess: line numbers are ignored, and a text that is missing or stands twice is an error.
//! Invariant: a patch applies as a whole or not at all.

use std::collections::BTreeMap;

/// A mutation: what it does wrong, the tests that must notice, and its hunks by file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Patch {
    pub(crate) what: String,
    /// Arguments of `cargo test`, the last of which is the test's full name.
    pub(crate) red: Vec<Vec<String>>,
    pub(crate) hunks: Vec<Hunk>,
    /// The diff alone, as the documents quote it.
    pub(crate) diff: String,
}

/// Lines that stand in a file, and those that replace them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Hunk {
    pub(crate) file: String,
    old: String,
    new: String,
}

impl Patch {
    /// Reads a file of `tests/mutations/`: a sentence, lines `Red: ARGUMENTS TEST`, an empty line, the diff.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (head, diff) = text.split_once("\n\n").ok_or("no empty line between head and diff")?;
        let mut lines = head.lines();
        let what = lines.next().unwrap_or_default().to_owned();
        let red = lines.map(|line| {
            let arguments = line.strip_prefix("Red: ").ok_or_else(|| format!("`{line}` is no `Red: ...`"))?;
            Ok(arguments.split_whitespace().map(str::to_owned).collect())
        });
        let red: Vec<_> = red.collect::<Result<_, String>>()?;
        if what.is_empty() || red.is_empty() {
            return Err("it does not say what it does wrong, and which test goes red".into());
        }
        Ok(Self { what, red, hunks: hunks(diff)?, diff: diff.trim_end().to_owned() })
    }

    /// The texts of the changed files, by path; `read` gives them as they are.
    pub(crate) fn apply(
        &self,
        read: impl Fn(&str) -> Result<String, String>,
    ) -> Result<BTreeMap<String, String>, String> {
        let mut files: BTreeMap<String, String> = BTreeMap::new();
        for Hunk { file, old, new } in &self.hunks {
            let text = match files.get(file) {
                Some(text) => text.clone(),
                None => read(file)?,
            };
            let count = text.matches(old.as_str()).count();
            if count != 1 {
                return Err(format!("{file}: the text to change stands {count} times in it:\n{old}"));
            }
            files.insert(file.clone(), text.replacen(old, new, 1));
        }
        Ok(files)
    }
}

fn hunks(diff: &str) -> Result<Vec<Hunk>, String> {
    let mut hunks: Vec<Hunk> = Vec::new();
    let mut file = String::new();
    for line in diff.lines() {
        if let Some(path) = line.strip_prefix("+++ b/") {
            file = path.to_owned();
        } else if line.starts_with("@@") {
            hunks.push(Hunk { file: file.clone(), old: String::new(), new: String::new() });
        } else if !line.starts_with("--- ") {
            let hunk = hunks.last_mut().ok_or_else(|| format!("`{line}` stands in no hunk"))?;
            // An editor may have taken the space of an empty line of context.
            let (mark, rest) = line.split_at_checked(1).unwrap_or((" ", ""));
            for (text, is_in) in [(&mut hunk.old, mark != "+"), (&mut hunk.new, mark != "-")] {
                if is_in {
                    text.push_str(rest);
                    text.push('\n');
                }
            }
        }
    }
    if hunks.is_empty() { Err("no hunk".into()) } else { Ok(hunks) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Two for one.\nRed: -p x --lib a_test\n\n--- a/f.rs\n+++ b/f.rs\n@@ -9,3 +9,3 @@ fn\n one\n-two\n+TWO\n three\n@@ -20 +20 @@\n-five\n";

    fn check(file: &str, expected: Result<&str, &str>) {
        let applied = Patch::parse(TEXT).unwrap().apply(|_| Ok(file.to_owned()));
        match (applied, expected) {
            (Ok(files), Ok(expected)) => assert_eq!(files["f.rs"], expected),
            (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
            (found, expected) => panic!("{found:?}, not {expected:?}"),
        }
    }

    #[test]
    fn a_patch_applies_where_its_text_stands_once() {
        check("zero\none\ntwo\nthree\nfour\nfive\n", Ok("zero\none\nTWO\nthree\nfour\n"));
        check("one\ntwo\nfour\n", Err("f.rs: the text to change stands 0 times"));
        check("one\ntwo\nthree\none\ntwo\nthree\nfive\n", Err("stands 2 times"));
        let patch = Patch::parse(TEXT).unwrap();
        assert_eq!(
            (patch.what.as_str(), patch.red[0].join(" ")),
            ("Two for one.", "-p x --lib a_test".into())
        );
        assert!(Patch::parse("Nobody notices.\n\n@@ -1 +1 @@\n-a\n").unwrap_err().contains("goes red"));
        assert!(Patch::parse("What.\nRed: a b\n\nprose\n").unwrap_err().contains("no hunk"));
    }
}
