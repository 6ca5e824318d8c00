//! Where the tests find ONNX Runtime, the magika model and the digits: the cache folder that `cargo xtask test` fills.
//!
//! Invariant: a test that needs one of them fails with the command that installs it, and is never passed over.

use std::path::PathBuf;

use crate::teacher::Runtime;

fn installed(file: &str) -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("TUITION_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|folder| folder.join("tuition")))
        .or_else(|| set("HOME").map(|folder| folder.join(".cache/tuition")))
        .expect("neither `TUITION_CACHE` nor `HOME` is set");
    let path = cache.join(file);
    assert!(path.is_file(), "`{}` is missing: `cargo xtask test` installs it", path.display());
    path
}

/// ONNX Runtime, loaded.
pub(crate) fn runtime() -> Runtime {
    let library = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()).map(PathBuf::from);
    let library = library.unwrap_or_else(|| installed("onnxruntime-1.31.1/libonnxruntime.so"));
    Runtime::load(&library).expect("the installed ONNX Runtime loads")
}

/// The magika model.
pub(crate) fn magika_model() -> PathBuf {
    installed("magika-1.0.3/model.onnx")
}

/// The magika model's own description.
pub(crate) fn magika_config() -> PathBuf {
    installed("magika-1.0.3/config.min.json")
}

/// The handwritten digits.
pub(crate) fn digits() -> PathBuf {
    installed("digits/digits.csv.gz")
}
