//! Files out of pinned wheels, which the machine's own pip fetches.
//!
//! It must not know what they are for, nor where pip looks. Invariant: a file is moved to its place whole, out of a wheel
//! whose SHA-256 is the pinned one, or not at all.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sha2::{Digest, Sha256};

use super::{Cache, SetupError, io_error};

/// The most bytes that are read of one file in a wheel.
const MAX_MEMBER_BYTES: u64 = 1 << 30;

/// A wheel by its exact name, as pip is asked for it.
pub(super) struct Wheel {
    pub(super) package: &'static str,
    pub(super) version: &'static str,
    pub(super) platforms: &'static [&'static str],
    pub(super) file: &'static str,
    pub(super) sha256: &'static str,
}

/// A file taken out of a wheel.
pub(super) struct Taken {
    pub(super) member: &'static str,
    pub(super) target: PathBuf,
    pub(super) header: Option<fn() -> Vec<u8>>,
}

/// Takes files out of a wheel unless they are all there; answers whether the wheel was fetched.
pub(super) fn take(
    cache: &Cache,
    wheel: &Wheel,
    files: &[Taken],
    tell: &mut dyn FnMut(&str),
) -> Result<bool, SetupError> {
    if files.iter().all(|file| file.target.is_file()) {
        return Ok(false);
    }
    tell(&format!("fetching {} {} through pip", wheel.package, wheel.version));
    fs::create_dir_all(cache.folder()).map_err(io_error(cache.folder()))?;
    let scratch = tempfile::Builder::new()
        .prefix("setup-")
        .tempdir_in(cache.folder())
        .map_err(io_error(cache.folder()))?;
    let path = fetch(wheel, scratch.path())?;
    check_hash(&path, wheel.file, wheel.sha256)?;
    for file in files {
        unpack(wheel, &path, file, scratch.path())?;
    }
    Ok(true)
}

/// Asks pip for exactly one wheel, whatever Python runs it.
fn fetch(wheel: &Wheel, folder: &Path) -> Result<PathBuf, SetupError> {
    let package = format!("{}=={}", wheel.package, wheel.version);
    let mut command = Command::new("python3");
    command.args([
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
    ]);
    command.args(["--quiet", "--implementation", "cp", "--python-version", "3.11", "--abi", "cp311"]);
    for platform in wheel.platforms {
        command.args(["--platform", platform]);
    }
    command.arg("--dest").arg(folder).arg(&package);
    let output =
        command.output().map_err(|source| SetupError::NoPython { package: package.clone(), source })?;
    let path = folder.join(wheel.file);
    if output.status.success() && path.is_file() {
        return Ok(path);
    }
    let said = said(&output);
    if said.contains("No module named pip") {
        return Err(SetupError::NoPip { package });
    }
    Err(SetupError::Pip { package, reason: said })
}

/// The last lines that a program wrote.
fn said(output: &Output) -> String {
    const LINES: usize = 4;
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines[lines.len().saturating_sub(LINES)..].join("; ");
    if last.is_empty() { format!("it ended with {} and no word", output.status) } else { last }
}

fn check_hash(path: &Path, file: &str, expected: &'static str) -> Result<(), SetupError> {
    let mut content = File::open(path).map_err(io_error(path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = content.read(&mut buffer).map_err(io_error(path))?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
    }
    let found: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found == expected { Ok(()) } else { Err(SetupError::Hash { file: file.to_owned(), found, expected }) }
}

/// Writes one file of a wheel beside its target, then moves it there in one step.
fn unpack(wheel: &Wheel, path: &Path, file: &Taken, scratch: &Path) -> Result<(), SetupError> {
    let broken = |reason: String| SetupError::Wheel { wheel: wheel.file.to_owned(), reason };
    let content = File::open(path).map_err(io_error(path))?;
    let mut archive = zip::ZipArchive::new(content).map_err(|error| broken(error.to_string()))?;
    let mut member =
        archive.by_name(file.member).map_err(|error| broken(format!("`{}`: {error}", file.member)))?;
    if member.size() > MAX_MEMBER_BYTES {
        return Err(broken(format!("`{}` has {} bytes", file.member, member.size())));
    }
    let draft = scratch.join("unpacked");
    let mut unpacked = File::create(&draft).map_err(io_error(&draft))?;
    if let Some(header) = file.header {
        unpacked.write_all(&header()).map_err(io_error(&draft))?;
    }
    io::copy(&mut member, &mut unpacked).map_err(io_error(&draft))?;
    unpacked.sync_all().map_err(io_error(&draft))?;
    let folder = file.target.parent().expect("every target lies in a folder of the cache");
    fs::create_dir_all(folder).map_err(io_error(folder))?;
    fs::rename(&draft, &file.target).map_err(io_error(&file.target))
}

#[cfg(test)]
mod tests {
    use super::super::MAGIKA;
    use super::*;

    #[test]
    fn another_file_than_the_pinned_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("some.whl");
        fs::write(&path, "abc").unwrap();
        // The digest of `abc` in FIPS 180.
        let pinned = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert!(check_hash(&path, "some.whl", pinned).is_ok());
        let error = check_hash(&path, "some.whl", MAGIKA.sha256).expect_err("another digest is pinned");
        assert!(error.to_string().starts_with("`some.whl` has the SHA-256 ba7816bf"), "{error}");
    }

    #[test]
    fn a_wheel_gives_whole_files_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(MAGIKA.file);
        let mut archive = zip::ZipWriter::new(File::create(&path).unwrap());
        archive.start_file("a/b.txt", zip::write::SimpleFileOptions::default()).unwrap();
        archive.write_all(b"content").unwrap();
        archive.finish().unwrap();
        let target = folder.path().join("x/y/b.txt");
        let taken = |member| Taken { member, target: target.clone(), header: None };
        let missing =
            unpack(&MAGIKA, &path, &taken("a/c.txt"), folder.path()).expect_err("there is no such member");
        assert!(missing.to_string().contains("`a/c.txt`"), "{missing}");
        assert!(!target.exists());
        unpack(&MAGIKA, &path, &taken("a/b.txt"), folder.path()).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"content");
    }
}
