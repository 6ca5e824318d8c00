//! Bytes from files: a sorted walk of folders, and the window of each file that a byte model sees.
//!
//! Symbolic links are not followed, and nothing but regular files is opened. It must not know what the bytes mean.
//! Invariant: the walk's order and the windows depend on nothing but names and contents.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Collected, DataError, MAX_INPUTS, Raw};
use crate::example::{Input, PADDING};

/// The deepest folder that is walked into.
pub const MAX_DEPTH: usize = 64;
/// The largest block that is read of a file's beginning, and of its end.
const MAX_BLOCK: usize = 1 << 20;

/// Which bytes of a file a model sees: the beginning without leading white space, then the end without trailing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Symbols of the beginning.
    pub beginning: usize,
    /// Symbols of the end.
    pub end: usize,
    /// How many bytes are read at either side.
    pub block: usize,
    /// With fewer bytes than this a file is left out.
    pub least: usize,
}

impl Default for Window {
    /// The window of the magika models of 2024 and later.
    fn default() -> Self {
        Self { beginning: 1024, end: 1024, block: 4096, least: 8 }
    }
}

/// A byte model's description of itself, as magika publishes it.
#[derive(Debug, Deserialize)]
struct Published {
    beg_size: usize,
    mid_size: usize,
    end_size: usize,
    use_inputs_at_offsets: bool,
    min_file_size_for_dl: usize,
    padding_token: u16,
    block_size: usize,
    target_labels_space: Vec<String>,
}

/// Reads a window and the classes' names from a `config.min.json` as magika publishes it.
///
/// # Errors
/// When the file cannot be read, or describes another kind of preprocessing.
pub fn published(path: &Path) -> Result<(Window, Vec<String>), DataError> {
    let wrong = |reason: String| DataError::Window { path: path.to_owned(), reason };
    let text = fs::read(path).map_err(|error| DataError::read(path, error))?;
    let published: Published =
        serde_json::from_slice(&text).map_err(|error| wrong(format!("is not understood: {error}")))?;
    if published.mid_size != 0 || published.use_inputs_at_offsets || published.padding_token != PADDING {
        return Err(wrong("wants more than a beginning, an end and the padding 256".to_owned()));
    }
    let window = Window {
        beginning: published.beg_size,
        end: published.end_size,
        block: published.block_size,
        least: published.min_file_size_for_dl,
    };
    if window.block > MAX_BLOCK
        || window.block < window.beginning.max(window.end)
        || window.beginning < window.least
    {
        return Err(wrong(format!("has sizes that contradict each other, or a block above {MAX_BLOCK}")));
    }
    Ok((window, published.target_labels_space))
}

impl Window {
    /// The file's symbols; `None` where it holds too few bytes to ask about.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn of_file(&self, path: &Path) -> std::io::Result<Option<Vec<u16>>> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        let block = self.block.min(usize::try_from(size).unwrap_or(usize::MAX));
        let mut head = vec![0; block];
        file.read_exact(&mut head)?;
        if size == block as u64 {
            return Ok(self.of_blocks(&head, &head));
        }
        let mut tail = vec![0; block];
        file.seek(SeekFrom::Start(size - block as u64))?;
        file.read_exact(&mut tail)?;
        Ok(self.of_blocks(&head, &tail))
    }

    /// The symbols of a first and a last block.
    fn of_blocks(&self, head: &[u8], tail: &[u8]) -> Option<Vec<u16>> {
        let start = head.iter().position(|byte| !is_space(*byte))?;
        let stop = tail.iter().rposition(|byte| !is_space(*byte)).map_or(0, |last| last + 1);
        let (head, tail) = (&head[start..], &tail[..stop]);
        if head.len() < self.least {
            return None;
        }
        let head = &head[..head.len().min(self.beginning)];
        let tail = &tail[tail.len() - tail.len().min(self.end)..];
        let padding = self.beginning + self.end - head.len() - tail.len();
        let symbols = head.iter().copied().map(u16::from);
        let symbols = symbols.chain(std::iter::repeat_n(PADDING, padding));
        Some(symbols.chain(tail.iter().copied().map(u16::from)).collect())
    }
}

/// White space as Python's `bytes.strip` has it, which the published models were trained with.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

/// Reads the windows of all files that a folder holds or a pattern matches; a folder's subfolders count.
///
/// # Errors
/// When nothing is there, or the folder itself cannot be read. Files that cannot be read are counted as skipped.
pub fn read(place: &Path, window: &Window) -> Result<Collected, DataError> {
    let found = walk(place)?;
    let mut collected = Collected::default();
    for path in found {
        match window.of_file(&path) {
            Ok(Some(symbols)) => {
                let place = path.display().to_string();
                collected.inputs.push(Raw { place, input: Input::Bytes(symbols), truth: None });
            }
            Ok(None) | Err(_) => collected.skipped += 1,
        }
    }
    if collected.inputs.is_empty() {
        let reason = "no readable file with enough bytes in it";
        return Err(DataError::Empty { path: place.to_owned(), reason });
    }
    Ok(collected)
}

/// All regular files under a folder, or that a pattern with `*`, `**` and `?` matches, sorted by path.
///
/// # Errors
/// When the folder cannot be read, the pattern is none, or there are too many files. Folders further down that
/// cannot be read are passed over.
pub fn walk(place: &Path) -> Result<Vec<PathBuf>, DataError> {
    let pattern = Pattern::parse(place)?;
    let root = pattern.as_ref().map_or(place, |pattern| &pattern.root);
    let metadata = fs::metadata(root).map_err(|error| DataError::read(root, error))?;
    if metadata.is_file() {
        return Ok(vec![root.to_owned()]);
    }
    let mut found = Vec::new();
    visit(root, 0, &mut found)?;
    if let Some(pattern) = &pattern {
        found.retain(|path| pattern.matches(path));
    }
    found.sort();
    Ok(found)
}

fn visit(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), DataError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if depth == 0 => return Err(DataError::read(folder, error)),
        Err(_) => return Ok(()),
    };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && depth < MAX_DEPTH {
            visit(&entry.path(), depth + 1, found)?;
        } else if kind.is_file() {
            if found.len() == MAX_INPUTS {
                return Err(DataError::TooLarge {
                    path: folder.to_owned(),
                    limit: MAX_INPUTS,
                    unit: "files",
                });
            }
            found.push(entry.path());
        }
    }
    Ok(())
}

/// A path with wild cards: `*` and `?` within one name, `**` for any number of folders.
#[derive(Debug)]
struct Pattern {
    root: PathBuf,
    names: Vec<String>,
}

impl Pattern {
    fn parse(place: &Path) -> Result<Option<Self>, DataError> {
        let wild = |name: &str| name.contains(['*', '?']);
        if place.exists() || !wild(&place.to_string_lossy()) {
            return Ok(None);
        }
        let Some(text) = place.to_str() else {
            let pattern = place.display().to_string();
            return Err(DataError::Pattern { pattern, reason: "is not UTF-8" });
        };
        let mut root = PathBuf::new();
        let mut names = Vec::new();
        for component in place.components() {
            let name = component.as_os_str().to_str().expect("the whole path is UTF-8");
            if names.is_empty() && !wild(name) {
                root.push(name);
                continue;
            }
            if name.contains("**") && name != "**" {
                let pattern = text.to_owned();
                return Err(DataError::Pattern {
                    pattern,
                    reason: "has `**` beside other letters in a name",
                });
            }
            names.push(name.to_owned());
        }
        if root.as_os_str().is_empty() {
            root.push(".");
        }
        Ok(Some(Self { root, names }))
    }

    fn matches(&self, path: &Path) -> bool {
        let Some(parts) = path.strip_prefix(&self.root).ok().and_then(|rest| {
            rest.components().map(|part| part.as_os_str().to_str()).collect::<Option<Vec<&str>>>()
        }) else {
            return false;
        };
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        path_matches(&names, &parts)
    }
}

fn path_matches(names: &[&str], parts: &[&str]) -> bool {
    match (names.split_first(), parts.split_first()) {
        (None, None) => true,
        (Some((&"**", rest)), _) => {
            path_matches(rest, parts)
                || parts.split_first().is_some_and(|(_, parts)| path_matches(names, parts))
        }
        (Some((name, names)), Some((part, parts))) => {
            name_matches(name.as_bytes(), part.as_bytes()) && path_matches(names, parts)
        }
        _ => false,
    }
}

/// One name against one pattern; on a mismatch the last star takes one letter more.
fn name_matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if p < pattern.len() && pattern[p] == b'*' {
            star = Some((p, n));
            p += 1;
        } else if p < pattern.len() && (pattern[p] == b'?' || pattern[p] == name[n]) {
            p += 1;
            n += 1;
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            p = at + 1;
            n = taken + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|letter| *letter == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window() -> Window {
        Window { beginning: 4, end: 3, block: 6, least: 2 }
    }

    #[test]
    fn a_window_is_the_stripped_beginning_and_the_stripped_end() {
        const P: u16 = PADDING;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for (content, expected) in [
            // Each side strips its own end only, so a short file's white space stays inside.
            (b" ab \n".as_slice(), Some(vec![97, 98, 32, 10, 32, 97, 98])),
            (b"ab", Some(vec![97, 98, P, P, P, 97, 98])),
            (b"abcdefgh", Some(vec![97, 98, 99, 100, 102, 103, 104])),
            (b"\x0b\x0cabcdefg \r", Some(vec![97, 98, 99, 100, 101, 102, 103])),
            (b"      ab", None),
            (b"a", None),
            (b"", None),
        ] {
            fs::write(&path, content).unwrap();
            assert_eq!(window().of_file(&path).unwrap(), expected, "{}", content.escape_ascii());
        }
    }

    #[test]
    fn a_walk_is_sorted_and_follows_no_link() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for name in ["b/x.rs", "a/deep/y.rs", "a/z.txt", "c.rs"] {
            fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            fs::write(root.join(name), "some bytes").unwrap();
        }
        std::os::unix::fs::symlink(root.join("a"), root.join("loop")).unwrap();
        std::os::unix::fs::symlink(root.join("c.rs"), root.join("link.rs")).unwrap();
        let check = |pattern: &str, expected: &[&str]| {
            let found = walk(&root.join(pattern)).unwrap();
            let found: Vec<&str> =
                found.iter().map(|path| path.strip_prefix(root).unwrap().to_str().unwrap()).collect();
            assert_eq!(found, expected, "{pattern}");
        };
        check("", &["a/deep/y.rs", "a/z.txt", "b/x.rs", "c.rs"]);
        check("*.rs", &["c.rs"]);
        check("**/*.rs", &["a/deep/y.rs", "b/x.rs", "c.rs"]);
        check("?/*", &["a/z.txt", "b/x.rs"]);
        check("a/**", &["a/deep/y.rs", "a/z.txt"]);
        check("c.rs", &["c.rs"]);
        check("*.py", &[]);
    }

    #[test]
    fn an_empty_or_missing_place_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let empty = read(folder.path(), &window()).expect_err("nothing is there").to_string();
        assert!(empty.ends_with("is empty: no readable file with enough bytes in it"), "{empty}");
        let missing = read(&folder.path().join("missing"), &window()).expect_err("there is no such folder");
        assert!(matches!(missing, DataError::Read { .. }), "{missing}");
        let wild = walk(&folder.path().join("x**/y")).expect_err("such a pattern has no meaning").to_string();
        assert!(wild.ends_with("has `**` beside other letters in a name"), "{wild}");
    }
}
