//! Makes the teachers of the configuration: HTTP teachers with their secrets, local models with their runtime.
//!
//! Must not ask them. Invariant: a secret is read here, when a teacher is made, and goes nowhere else.

use std::sync::Arc;

use serde_json::{Value, json};
use tuition_ledger::Teacher as _;
use tuition_proxy::teacher::ANSWER_BYTES_MAX;
use tuition_proxy::{HttpSettings, HttpTeacher, Route, Secret};
use tuition_trainer::Processor;
use tuition_trainer::local::LocalTeacher;
use tuition_trainer::port::Port;
use tuition_trainer::teacher::Runtime;

use crate::config::{Config, Teacher, TeacherKind};
use crate::print;
use crate::secret;
use crate::setup::{Cache, find_runtime};
use crate::words::Trouble;

/// The routes of all teachers, in the configuration's order.
///
/// # Errors
/// A missing secret, a header that cannot be sent, a model that cannot be loaded.
pub(crate) fn routes(config: &Config) -> Result<Vec<Route>, Trouble> {
    config.teachers.iter().map(route).collect()
}

fn route(teacher: &Teacher) -> Result<Route, Trouble> {
    let (models, revision) = (teacher.models.clone(), teacher.revision.clone());
    match &teacher.kind {
        TeacherKind::Http { .. } => Ok(Route::http(Arc::new(http(teacher)?), models, revision)),
        TeacherKind::Onnx { .. } => {
            let teacher = local(teacher)?;
            let metadata = metadata(&teacher);
            Ok(Route::local(Arc::new(teacher), models, revision, metadata))
        }
    }
}

/// A model that runs in this process.
///
/// # Errors
/// ONNX Runtime is not installed, or the file is no model that it runs.
pub(crate) fn local(teacher: &Teacher) -> Result<LocalTeacher, Trouble> {
    let TeacherKind::Onnx { path, hidden, device } = &teacher.kind else {
        return Err(Trouble::usage(
            format!("teacher `{}` is asked over HTTP", teacher.name),
            "only a teacher with api = \"onnx\" runs here",
        ));
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let name = &teacher.name;
    let local = LocalTeacher::load(name, &runtime()?, path, threads, hidden.as_ref(), *device)?;
    match (local.model().device(), local.model().refusal()) {
        (device, Some(why)) => print::aside(&format!("teacher `{name}` runs on the {device}: {why}")),
        (Processor::Cuda, None) => print::aside(&format!("teacher `{name}` runs on CUDA")),
        (Processor::Cpu, None) => {}
    }
    Ok(local)
}

/// The ONNX Runtime of this machine.
///
/// # Errors
/// None is installed, or it does not load.
pub(crate) fn runtime() -> Result<Runtime, Trouble> {
    let library = find_runtime(&Cache::from_environment()?)?;
    Ok(Runtime::load(&library)?)
}

/// What Open Inference calls a model's metadata.
fn metadata(teacher: &LocalTeacher) -> Value {
    let ports = |ports: &[Port]| {
        let port = |port: &Port| {
            let shape: Vec<i64> = port
                .shape
                .iter()
                .map(|extent| extent.and_then(|extent| extent.try_into().ok()).unwrap_or(-1))
                .collect();
            json!({"name": port.name, "datatype": datatype(port), "shape": shape})
        };
        ports.iter().map(port).collect::<Vec<Value>>()
    };
    json!({
        "name": teacher.name(),
        "platform": "onnxruntime_onnx",
        "versions": [],
        "inputs": ports(teacher.model().inputs()),
        "outputs": ports(&teacher.gives()),
    })
}

fn datatype(port: &Port) -> &str {
    port.element_type.as_ref().map_or_else(String::as_str, |kind| kind.datatype())
}

/// An HTTP teacher.
///
/// # Errors
/// A missing secret, or a header that cannot be sent.
pub(crate) fn http(teacher: &Teacher) -> Result<HttpTeacher, Trouble> {
    let TeacherKind::Http { api, url, .. } = &teacher.kind else {
        return Err(Trouble::usage(format!("teacher `{}` runs here", teacher.name), "it has no URL"));
    };
    let secrets = teacher.secrets(|name| std::env::var(name).ok(), secret::from_file)?;
    Ok(HttpTeacher::new(HttpSettings {
        name: teacher.name.clone(),
        api: *api,
        url: url.to_string(),
        secret: secrets.key.map(Secret::new),
        proxy: secrets.proxy.map(Secret::new),
        headers: secrets.headers.into_iter().map(|(name, value)| (name, Secret::new(value))).collect(),
        timeout: teacher.timeout,
        retries: teacher.retries,
        unbilled: teacher.unbilled.clone(),
        rows: teacher.rows,
        answer_bytes_max: ANSWER_BYTES_MAX,
    })?)
}
