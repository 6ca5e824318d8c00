//! ONNX Runtime as a library that is loaded at run time, and the sessions that it makes.
//!
//! It must not know inputs or outputs. Invariants: a process loads one library; a device that does not run a model is an error,
//! never the processor instead.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use ort::environment::Environment;
use ort::ep;
use ort::error::ErrorCode;
use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;

use super::ModelError;
use crate::processor::Processor;

/// The environment is one for the whole process, and so is the library it came from.
static LOADED: OnceLock<(PathBuf, Environment)> = OnceLock::new();
/// Held while the library is loaded, so that two threads do not load two.
static LOADING: Mutex<()> = Mutex::new(());

/// ONNX Runtime, loaded once for the whole process.
#[derive(Debug, Clone)]
pub struct Runtime {
    environment: Environment,
    library: PathBuf,
}

/// The part of the runtime that speaks to CUDA; a runtime for the CPU alone comes without it.
const CUDA_PART: &str = "libonnxruntime_providers_cuda.so";
/// What comes with the driver, and with nothing else.
const DRIVER: &str = "libcuda.so.1";
/// The first of CUDA's own libraries, where they lie beside the runtime.
const CUDA_LIBRARY: &str = "libcudart.so.13";

impl Runtime {
    /// Loads the runtime's library from an absolute path; a second call with the same path finds it loaded.
    ///
    /// # Errors
    /// When the path does not load, is older than 1.24, or another library is loaded already.
    pub fn load(library: &Path) -> Result<Self, ModelError> {
        let broken = |reason: String| ModelError::Runtime { path: library.to_owned(), reason };
        let path = library.canonicalize().map_err(|error| broken(error.to_string()))?;
        let _one_at_a_time = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
        if LOADED.get().is_none() {
            let builder = ort::init_from(&path).map_err(|error| broken(error.to_string()))?;
            let environment = builder
                .with_name("tuition")
                .with_telemetry(false)
                .build()
                .map_err(|error| broken(error.message().to_owned()))?;
            environment.set_log_level(ort::logging::LogLevel::Error);
            // Only this function sets it, and only one thread is here.
            let _ = LOADED.set((path.clone(), environment));
        }
        let (loaded, environment) = LOADED.get().expect("it was set above or before");
        if *loaded != path {
            return Err(ModelError::OtherRuntime { loaded: loaded.clone(), path });
        }
        Ok(Self { environment: environment.clone(), library: path })
    }

    /// The library in use.
    #[must_use]
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// Whether a part for CUDA lies beside the library. It says nothing of a driver or a device.
    #[must_use]
    pub fn has_cuda(&self) -> bool {
        self.library.with_file_name(CUDA_PART).is_file()
    }

    /// Loads CUDA's own libraries where they lie beside the runtime; elsewhere the system's loader finds them.
    fn load_cuda(&self) -> Result<(), String> {
        if !self.has_cuda() {
            return Err(format!("`{CUDA_PART}` does not lie beside `{}`", self.library.display()));
        }
        ort::util::preload_dylib(DRIVER).map_err(|error| {
            format!("`{DRIVER}`, which comes with NVIDIA's driver, does not load: {error}")
        })?;
        match self.library.parent() {
            Some(folder) if folder.join(CUDA_LIBRARY).is_file() => {
                ep::cuda::preload_dylibs(Some(folder), Some(folder))
                    .map_err(|error| error.message().to_owned())
            }
            _ => Ok(()),
        }
    }

    /// The runtime's own description of its build.
    #[must_use]
    pub fn build_info(&self) -> &'static str {
        ort::info()
    }
}

/// A session of a model file, or of its bytes where they were changed. A device that does not run it is an error: the runtime by
/// itself would go on without one and say nothing.
pub(super) fn session(
    runtime: &Runtime,
    path: &Path,
    bytes: Option<&[u8]>,
    threads: usize,
    on: Processor,
) -> Result<Session, ModelError> {
    let path = || path.to_owned();
    let refused = |code: ErrorCode, message: &str| {
        let reason = message.to_owned();
        match (code, on) {
            (ErrorCode::NoModel | ErrorCode::InvalidProtobuf, _) => {
                ModelError::NotOnnx { path: path(), reason }
            }
            (_, Processor::Cpu) => ModelError::Refused { path: path(), reason },
            (_, Processor::Cuda) => ModelError::Cuda { path: path(), reason },
        }
    };
    let mut builder = Session::builder(&runtime.environment)
        .map_err(|error| refused(error.code(), error.message()))?
        .with_optimization_level(GraphOptimizationLevel::All)
        .map_err(|error| refused(error.code(), error.message()))?
        .with_intra_threads(threads.max(1))
        .map_err(|error| refused(error.code(), error.message()))?;
    if on == Processor::Cuda {
        runtime.load_cuda().map_err(|reason| ModelError::Cuda { path: path(), reason })?;
        builder = builder
            .with_execution_providers([ep::CUDA::default().build().error_on_failure()])
            .map_err(|error| refused(error.code(), error.message()))?;
    }
    match bytes {
        None => builder.commit_from_file(path()),
        Some(bytes) => builder.commit_from_memory(bytes),
    }
    .map_err(|error| refused(error.code(), error.message()))
}
