//! The demo's files: real ones that any machine has, of many kinds, chosen the same way every time.
//!
//! It must not know what is learnt from them. Invariant: the choice depends on names and on the seed alone; no symbolic
//! link is followed and nothing but regular files is opened.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use tuition_trainer::data::files::walk;
use tuition_trainer::data::split::Draw;

/// The seed of the choice.
const SEED: u64 = 0;
/// An extension longer than this is no kind of file, but part of a name.
const LONGEST_EXTENSION: usize = 8;

/// Where files of many kinds lie: the system's, Python's, Rust's, and the sources that cargo has unpacked.
pub(super) fn places() -> Vec<PathBuf> {
    let home = env::var_os("HOME").map(PathBuf::from);
    let below = |variable: &str, folder: &str| {
        let set = env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from);
        set.or_else(|| home.as_ref().map(|home| home.join(folder)))
    };
    let mut places: Vec<PathBuf> =
        ["/usr/share", "/usr/lib", "/usr/include", "/usr/bin", "/etc"].map(PathBuf::from).to_vec();
    places.extend(below("RUSTUP_HOME", ".rustup").map(|folder| folder.join("toolchains")));
    places.extend(below("CARGO_HOME", ".cargo").map(|folder| folder.join("registry/src")));
    places.extend(python());
    places
}

/// The folder of Python's own library.
fn python() -> Option<PathBuf> {
    const ASK: &str = "import sysconfig; print(sysconfig.get_paths()['stdlib'])";
    let output = Command::new("python3").args(["-c", ASK]).output().ok()?;
    let folder = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    folder.is_absolute().then_some(folder)
}

/// About `wanted` files below `places`: of each kind, by the extension, as many as the square root of how many there
/// are, so that the many do not drown the rare.
pub(super) fn choose(places: &[PathBuf], wanted: usize) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = places.iter().filter_map(|place| walk(place).ok()).flatten().collect();
    found.sort();
    found.dedup();
    let mut kinds: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in found {
        kinds.entry(kind(&path)).or_default().push(path);
    }
    let roots: f64 = kinds.values().map(|files| root(files.len())).sum();
    let mut chosen = Vec::new();
    for files in kinds.into_values() {
        let share = share(wanted, root(files.len()), roots);
        let mut drawn: Vec<(u64, PathBuf)> =
            files.into_iter().map(|path| (Draw::Order.number(SEED, &path.to_string_lossy()), path)).collect();
        drawn.sort();
        chosen.extend(drawn.into_iter().take(share).map(|(_, path)| path));
    }
    chosen
}

#[expect(clippy::cast_precision_loss, reason = "a count of files")]
fn root(count: usize) -> f64 {
    (count as f64).sqrt()
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of a count of files"
)]
fn share(wanted: usize, root: f64, roots: f64) -> usize {
    (wanted as f64 * root / roots).ceil() as usize
}

/// The extension in lower case; empty where a name has none that could be one.
fn kind(path: &Path) -> String {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let plain = extension.len() <= LONGEST_EXTENSION && extension.chars().all(|c| c.is_ascii_alphanumeric());
    // A version or a section of the manual is a number and no kind.
    let number = extension.chars().all(|c| c.is_ascii_digit());
    if plain && !number { extension.to_ascii_lowercase() } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rare_are_not_drowned_and_the_choice_is_always_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: String| std::fs::write(folder.path().join(name), "content").unwrap();
        (0..400).for_each(|i| write(format!("{i}.html")));
        (0..4).for_each(|i| write(format!("{i}.C")));
        write("README".to_owned());
        let places = [folder.path().to_owned(), folder.path().to_owned(), folder.path().join("missing")];
        let chosen = choose(&places, 46);
        let count = |wanted: &str| chosen.iter().filter(|path| kind(path) == wanted).count();
        // Square roots of 400, 4 and 1, two files for each unit.
        assert_eq!((count("html"), count("c"), count("")), (40, 4, 1));
        assert_eq!(chosen, choose(&places, 46));
    }

    #[test]
    fn a_kind_is_an_extension_and_no_number() {
        for (name, expected) in [
            ("a.RS", "rs"),
            ("a.tar.gz", "gz"),
            ("libx.so.6", ""),
            ("ls.1", ""),
            (".profile", ""),
            ("x.averylongname", ""),
        ] {
            assert_eq!(kind(Path::new(name)), expected, "{name}");
        }
    }
}
