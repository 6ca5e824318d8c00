//! ONNX Runtime for CUDA with the libraries of NVIDIA's that it wants, laid into one folder.
//!
//! It must not know how a wheel is fetched. Invariant: the runtime itself is taken last, so that a folder that has it has all
//! that it wants but the driver, which no wheel has.

use std::env;
use std::path::Path;
use std::process::Command;

use super::wheel::{Taken, Wheel, take};
use super::{Cache, Installed, SetupError};

pub(super) const FOLDER: &str = "onnxruntime-gpu-1.31.1";

/// A wheel, and its libraries that are taken: 1.5 GB of wheels, 2.2 GB of libraries.
struct Part {
    wheel: Wheel,
    members: &'static [&'static str],
}

const PARTS: [Part; 7] = [
    Part {
        wheel: Wheel {
            package: "nvidia-cuda-runtime",
            version: "13.0.96",
            platforms: &["manylinux2014_x86_64"],
            file: "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
            sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
        },
        members: &["nvidia/cu13/lib/libcudart.so.13"],
    },
    Part {
        wheel: Wheel {
            package: "nvidia-cuda-nvrtc",
            version: "13.0.88",
            platforms: &["manylinux2010_x86_64"],
            file: "nvidia_cuda_nvrtc-13.0.88-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
            sha256: "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
        },
        members: &["nvidia/cu13/lib/libnvrtc.so.13", "nvidia/cu13/lib/libnvrtc-builtins.so.13.0"],
    },
    Part {
        wheel: Wheel {
            package: "nvidia-cublas",
            version: "13.1.0.3",
            platforms: &["manylinux_2_27_x86_64"],
            file: "nvidia_cublas-13.1.0.3-py3-none-manylinux_2_27_x86_64.whl",
            sha256: "ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171",
        },
        members: &["nvidia/cu13/lib/libcublasLt.so.13", "nvidia/cu13/lib/libcublas.so.13"],
    },
    Part {
        wheel: Wheel {
            package: "nvidia-curand",
            version: "10.4.0.35",
            platforms: &["manylinux_2_27_x86_64"],
            file: "nvidia_curand-10.4.0.35-py3-none-manylinux_2_27_x86_64.whl",
            sha256: "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc",
        },
        members: &["nvidia/cu13/lib/libcurand.so.10"],
    },
    Part {
        wheel: Wheel {
            package: "nvidia-cufft",
            version: "12.5.0.14",
            platforms: &["manylinux2014_x86_64"],
            file: "nvidia_cufft-12.5.0.14-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
            sha256: "b8be26837a5abad2b5b74f3e92dd29f622a42934b355be0961a48712cbba23ad",
        },
        members: &["nvidia/cu13/lib/libcufft.so.12"],
    },
    Part {
        wheel: Wheel {
            package: "nvidia-cudnn-cu13",
            version: "9.28.1.4",
            platforms: &["manylinux_2_27_x86_64"],
            file: "nvidia_cudnn_cu13-9.28.1.4-py3-none-manylinux_2_27_x86_64.whl",
            sha256: "a54f205b1db1f2895d99f398754db1369816f0569dd459731f925635cf7b65ec",
        },
        members: &[
            "nvidia/cudnn/lib/libcudnn.so.9",
            "nvidia/cudnn/lib/libcudnn_adv.so.9",
            "nvidia/cudnn/lib/libcudnn_cnn.so.9",
            "nvidia/cudnn/lib/libcudnn_engines_precompiled.so.9",
            "nvidia/cudnn/lib/libcudnn_engines_runtime_compiled.so.9",
            "nvidia/cudnn/lib/libcudnn_engines_tensor_ir.so.9",
            "nvidia/cudnn/lib/libcudnn_ext.so.9",
            "nvidia/cudnn/lib/libcudnn_graph.so.9",
            "nvidia/cudnn/lib/libcudnn_heuristic.so.9",
            "nvidia/cudnn/lib/libcudnn_ops.so.9",
        ],
    },
    Part {
        wheel: Wheel {
            package: "onnxruntime-gpu",
            version: "1.31.1",
            platforms: &["manylinux_2_28_x86_64"],
            file: "onnxruntime_gpu-1.31.1-cp311-cp311-manylinux_2_28_x86_64.whl",
            sha256: "e26c475fe361b2015f45b4b824bd13f0bb20204e59b62814e6f0acd5f3d491a6",
        },
        members: &[
            "onnxruntime/capi/libonnxruntime_providers_shared.so",
            "onnxruntime/capi/libonnxruntime_providers_cuda.so",
            "onnxruntime/capi/libonnxruntime.so.1.31.1",
        ],
    },
];

/// Whether an NVIDIA driver answers.
pub(crate) fn driver_answers() -> bool {
    Command::new("nvidia-smi").arg("-L").output().is_ok_and(|output| output.status.success())
}

/// Whether there are wheels for this kind of machine.
pub(super) fn is_pinned() -> bool {
    env::consts::OS == "linux" && env::consts::ARCH == "x86_64"
}

/// Installs what is missing of it.
pub(super) fn install(cache: &Cache, tell: &mut dyn FnMut(&str)) -> Result<Installed, SetupError> {
    let folder = cache.folder().join(FOLDER);
    let mut fetched = false;
    if !cache.cuda_runtime().is_file() {
        tell("an NVIDIA driver answers: ONNX Runtime for CUDA, 1.5 GB");
        for part in &PARTS {
            fetched |= take(cache, &part.wheel, &taken(part.members, &folder), tell)?;
        }
    }
    Ok(Installed { name: "ONNX Runtime 1.31.1 for CUDA".to_owned(), path: cache.cuda_runtime(), fetched })
}

fn taken(members: &[&'static str], folder: &Path) -> Vec<Taken> {
    let take = |member: &&'static str| {
        let name = member.rsplit('/').next().unwrap_or(member);
        // The one that is asked for by its path stands there without its version, as the processor's own does.
        let name = if name.starts_with("libonnxruntime.so.") { "libonnxruntime.so" } else { name };
        Taken { member, target: folder.join(name), header: None }
    };
    members.iter().map(take).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_is_taken_last_and_each_library_once() {
        let folder = Path::new("x");
        let targets: Vec<_> =
            PARTS.iter().flat_map(|part| taken(part.members, folder)).map(|file| file.target).collect();
        assert_eq!(targets.last().unwrap(), &folder.join("libonnxruntime.so"));
        let distinct: std::collections::BTreeSet<_> = targets.iter().collect();
        assert_eq!(distinct.len(), targets.len());
    }
}
