//! Judges the values of tuition.toml, key by key.
//!
//! Must not read files, the environment or a clock. Invariant: an error names the key's path.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tuition_ledger::{Budget, Limit, Mode, Price, PriceBook, Scope, StoreUrl, Usd};
use tuition_proxy::{Api, ClientKey, Pins, Share};
use tuition_trainer::Processor;
use tuition_trainer::hidden::{Hidden, Layers, MAX_WIDTH};
use tuition_trainer::nearest;
use tuition_trainer::port::{ElementType, Port};
use url::Url;

use super::shape::{
    AskTable, BudgetTable, Document, Dollars, HiddenTable, KeyTable, PriceTable, ServeTable, TeacherTable,
};
use super::{Ask, Config, ConfigError, Given, Serve, Teacher, TeacherKind};

/// The longest name of anything.
const NAME_LENGTH_MAX: usize = 100;
/// The longest time-out and the longest wait.
const SECONDS_MAX: u64 = 86_400;
/// The most retries of one call.
const RETRIES_MAX: u32 = 20;
const APIS: [&str; 3] = ["openai", "open-inference", "onnx"];
const APIS_LATER: [&str; 3] = ["anthropic", "tei", "json"];

/// What is wrong, and under which key.
type Wrong = (String, String);

fn wrong<T>(key: impl Into<String>, reason: impl Into<String>) -> Result<T, Wrong> {
    Err((key.into(), reason.into()))
}

/// Judges a whole file; paths are relative to its folder.
pub(super) fn config(file: &Path, document: Document) -> Result<Config, ConfigError> {
    let folder = file.parent().unwrap_or(Path::new(""));
    build(folder, document).map_err(|(key, reason)| ConfigError::Value { file: file.to_owned(), key, reason })
}

fn build(folder: &Path, document: Document) -> Result<Config, Wrong> {
    let url = document.store.url.as_deref().unwrap_or("sled:./tuition.store");
    let store = StoreUrl::parse(url, folder).map_err(|error| ("store.url".to_owned(), error.to_string()))?;
    unique("teacher", document.teacher.iter().map(|table| &table.name))?;
    unique("budget", document.budget.iter().map(|table| &table.name))?;
    unique("key", document.key.iter().map(|table| &table.name))?;
    let serve = serve(folder, &document.serve)?;
    if serve.share == Share::Key && document.key.is_empty() {
        return wrong("serve.share", "`key` needs at least one [[key]] to tell clients apart");
    }
    for (index, one) in document.key.iter().enumerate() {
        if let Some(other) =
            document.key[..index].iter().find(|other| other.hash.eq_ignore_ascii_case(&one.hash))
        {
            let reason =
                format!("is the key of `{}` as well: nobody could tell whose request it is", other.name);
            return wrong(format!("key.{}.hash", one.name), reason);
        }
    }
    let teachers: Vec<Teacher> =
        document.teacher.into_iter().map(|table| teacher(folder, table)).collect::<Result<_, _>>()?;
    let keys: Vec<ClientKey> =
        document.key.iter().map(|table| client_key(table, &teachers)).collect::<Result<_, _>>()?;
    let prices = document
        .price
        .into_iter()
        .enumerate()
        .map(|(index, table)| price(index, table))
        .collect::<Result<Vec<_>, _>>()?;
    let prices = PriceBook::new(prices).map_err(|error| ("price".to_owned(), error.to_string()))?;
    let budgets: Vec<Budget> =
        document.budget.into_iter().map(|table| budget(table, &teachers, &keys)).collect::<Result<_, _>>()?;
    for budget in &budgets {
        priced(budget, &teachers, &prices)?;
    }
    Ok(Config { file: None, store, serve, teachers, budgets, prices, keys })
}

fn unique<'a>(table: &str, names: impl Iterator<Item = &'a String>) -> Result<(), Wrong> {
    let mut seen = BTreeSet::new();
    for name in names {
        if name.is_empty() || name.len() > NAME_LENGTH_MAX || name.chars().any(char::is_control) {
            return wrong(
                format!("{table}.name"),
                format!("{name:?} is no name: it takes 1 to {NAME_LENGTH_MAX} printable characters"),
            );
        }
        if !seen.insert(name) {
            return wrong(format!("{table}.{name}"), "the name stands twice");
        }
    }
    Ok(())
}

fn serve(folder: &Path, table: &ServeTable) -> Result<Serve, Wrong> {
    let listen = table.listen.as_deref().unwrap_or("127.0.0.1:8080");
    let Ok(listen) = listen.parse::<SocketAddr>() else {
        return wrong("serve.listen", format!("`{listen}` is no address and port, such as `127.0.0.1:8080`"));
    };
    let share = match table.share.as_deref() {
        None | Some("all") => Share::All,
        Some("key") => Share::Key,
        Some(other) => return wrong("serve.share", format!("`{other}` is neither `all` nor `key`")),
    };
    let hold_wait_s = table.hold_wait_s.unwrap_or(30);
    if hold_wait_s > SECONDS_MAX {
        return wrong("serve.hold_wait_s", format!("{hold_wait_s} is more than {SECONDS_MAX} (a day)"));
    }
    let alert_url = match table.alert_url.as_deref() {
        None => None,
        Some(text) => Some(given(folder, "serve.alert_url", text)?),
    };
    if let Some(Given::Text(text)) = &alert_url {
        webhook(text).map_err(|reason| ("serve.alert_url".to_owned(), reason))?;
    }
    Ok(Serve {
        alert_url,
        listen,
        share,
        unbudgeted: table.unbudgeted.unwrap_or(false),
        hold_wait: Duration::from_secs(hold_wait_s),
    })
}

fn teacher(folder: &Path, table: TeacherTable) -> Result<Teacher, Wrong> {
    let key = |name: &str| format!("teacher.{}.{name}", table.name);
    let api = match table.api.as_str() {
        "openai" => Some(Api::OpenAi),
        "open-inference" => Some(Api::OpenInference),
        "onnx" => None,
        later if APIS_LATER.contains(&later) => {
            return wrong(key("api"), format!("`{later}` is not supported yet; use {}", listed(&APIS)));
        }
        other => {
            let near = nearest(other, APIS).map(|near| format!("; did you mean `{near}`?"));
            return wrong(
                key("api"),
                format!("`{other}` is none of {}{}", listed(&APIS), near.unwrap_or_default()),
            );
        }
    };
    let models = table.models.unwrap_or_else(|| vec!["*".to_owned()]);
    if models.is_empty() || models.iter().any(String::is_empty) {
        return wrong(key("models"), "name at least one model, or `*`");
    }
    let timeout_s = table.timeout_s.unwrap_or(120);
    if !(1..=SECONDS_MAX).contains(&timeout_s) {
        return wrong(key("timeout_s"), format!("{timeout_s} is not between 1 and {SECONDS_MAX}"));
    }
    let retries = table.retries.unwrap_or(2);
    if retries > RETRIES_MAX {
        return wrong(key("retries"), format!("{retries} is more than {RETRIES_MAX}"));
    }
    match table.batch_axis {
        None => {}
        Some(_) if api == Some(Api::OpenAi) => {
            return wrong(key("batch_axis"), "only tensors have one; api `openai` has none");
        }
        Some(0) => {}
        Some(axis) => {
            return wrong(key("batch_axis"), format!("{axis} is not supported; the batch axis is 0"));
        }
    }
    if let Some(status) = table.unbilled.iter().find(|status| !(300..600).contains(*status)) {
        return wrong(key("unbilled"), format!("{status} is no status of a failure (300 to 599)"));
    }
    let kind = match (api, table.url, table.path) {
        (Some(_), _, Some(_)) => return wrong(key("path"), format!("api `{}` has a `url`", table.api)),
        (Some(_), None, None) => return wrong(key("url"), "is missing"),
        (Some(api), Some(url), None) => TeacherKind::Http {
            api,
            url: address(&url).map_err(|reason| (key("url"), reason))?,
            key: match (table.key_env, table.key_file) {
                (None, None) => None,
                (Some(name), None) => Some(Given::Env(variable(&key("key_env"), name)?)),
                (None, Some(path)) => Some(Given::File(file(folder, &key("key_file"), &path)?)),
                (Some(_), Some(_)) => return wrong(key("key_file"), "there is a `key_env` already"),
            },
            proxy: table.proxy.map(|text| proxy(folder, &key("proxy"), &text)).transpose()?,
            headers: headers(folder, &key("headers"), table.headers)?,
            ask: match (api, table.ask) {
                _ if table.device.is_some() => {
                    return wrong(key("device"), "says what a model that runs here runs on: api `onnx`");
                }
                _ if table.hidden.is_some() => {
                    return wrong(
                        key("hidden"),
                        "hidden tensors are those of a model that runs here: api `onnx`",
                    );
                }
                (_, None) => Box::default(),
                (Api::OpenInference, Some(table)) => ask(&key("ask"), table)?.into(),
                (Api::OpenAi, Some(_)) => {
                    return wrong(key("ask"), "rows of a data set are asked of api `open-inference`");
                }
            },
        },
        (None, Some(_), _) => return wrong(key("url"), "api `onnx` has a `path`"),
        (None, None, None) => return wrong(key("path"), "is missing: which model file?"),
        (None, None, Some(path)) => {
            let secret = table.key_env.or(table.key_file).or(table.proxy).is_some();
            let remote = secret || !table.headers.is_empty() || !table.unbilled.is_empty();
            if remote || table.ask.is_some() {
                return wrong(
                    key("path"),
                    "a model that runs here takes no `key_env`, `key_file`, `proxy`, `headers`, `unbilled` or `ask`",
                );
            }
            let hidden = table.hidden.map(|table| hidden(&key("hidden"), table)).transpose()?;
            let device = table.device.as_deref().unwrap_or("auto");
            let device = match device {
                "auto" => None,
                "cpu" => Some(Processor::Cpu),
                "cuda" => Some(Processor::Cuda),
                other => {
                    let found = format!("`{other}` is none of `auto`, `cpu` and `cuda`");
                    return wrong(key("device"), found);
                }
            };
            TeacherKind::Onnx { path: folder.join(path), hidden, device }
        }
    };
    Ok(Teacher {
        rows: table.batch_axis == Some(0) || matches!(kind, TeacherKind::Onnx { .. }),
        kind,
        models,
        revision: table.revision.unwrap_or_default(),
        timeout: Duration::from_secs(timeout_s),
        retries,
        unbilled: table.unbilled,
        name: table.name,
    })
}

fn hidden(key: &str, table: HiddenTable) -> Result<Hidden, Wrong> {
    /// Enough for a linear head to learn from, little enough to be kept with every answer.
    const WIDTH: usize = 32;
    let layers = match (table.tensors, table.every) {
        (tensors, None) if !tensors.is_empty() => Layers::Named(tensors),
        (tensors, Some(every)) if tensors.is_empty() && every > 0 => Layers::Every(every),
        _ => {
            return wrong(
                key,
                "either `tensors = [\"NAME\", ...]`, or `every = K` for every K-th activation, from 1 on",
            );
        }
    };
    let width = table.width.unwrap_or(WIDTH);
    if !(1..=MAX_WIDTH).contains(&width) {
        return wrong(format!("{key}.width"), format!("{width} is not between 1 and {MAX_WIDTH}"));
    }
    Ok(Hidden { layers, width, seed: table.seed })
}

fn ask(key: &str, table: AskTable) -> Result<Ask, Wrong> {
    let input = match (table.input, table.datatype, table.shape) {
        (None, None, None) => None,
        (Some(name), Some(datatype), shape) => {
            let Some(kind) = ElementType::of_datatype(&datatype) else {
                return wrong(
                    format!("{key}.datatype"),
                    format!("`{datatype}` is none that a data set fills, such as `FP32`"),
                );
            };
            // The first extent is the row's; a vector may have any width.
            let extents = shape.map_or(vec![None], |shape| shape.into_iter().map(Some).collect());
            let shape = std::iter::once(None).chain(extents).collect();
            Some(Port { name, element_type: Ok(kind), shape })
        }
        _ => return wrong(key, "`input` and `datatype` go together; `shape` (of one row) goes with them"),
    };
    Ok(Ask { model: table.model, input, outputs: table.outputs })
}

/// Judges a webhook's address, which is often a secret: the reason does not repeat it.
pub(crate) fn webhook(text: &str) -> Result<(), String> {
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(()),
        Ok(_) | Err(_) => Err("is no http or https URL".to_owned()),
    }
}

fn address(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("`{text}` is no URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("`{text}` is neither http nor https"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        // Not repeated: it holds a secret.
        return Err("a URL must not hold a user or a password; use `key_env`".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("`{text}` must end with its path"));
    }
    Ok(url)
}

fn variable(key: &str, name: String) -> Result<String, Wrong> {
    let letters = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(letters) || name.starts_with(|c: char| c.is_ascii_digit()) {
        // Not repeated: somebody may have written the secret itself.
        return wrong(key, "this is the name of an environment variable, never the secret itself");
    }
    Ok(name)
}

/// A value as it stands, of a variable (`env:NAME`), or of a file (`file:PATH`).
fn given(folder: &Path, key: &str, text: &str) -> Result<Given, Wrong> {
    match (text.strip_prefix("env:"), text.strip_prefix("file:")) {
        (Some(name), _) => Ok(Given::Env(variable(key, name.to_owned())?)),
        (_, Some(path)) => Ok(Given::File(file(folder, key, path)?)),
        (None, None) => Ok(Given::Text(text.to_owned())),
    }
}

fn file(folder: &Path, key: &str, path: &str) -> Result<PathBuf, Wrong> {
    if path.is_empty() || path.chars().any(char::is_control) {
        return wrong(key, "this is the path of a file that holds the secret");
    }
    Ok(folder.join(path))
}

/// Judges a proxy's address, which may hold a password: the reason does not repeat it.
fn proxy(folder: &Path, key: &str, text: &str) -> Result<Given, Wrong> {
    let given = given(folder, key, text)?;
    if let Given::Text(text) = &given {
        let Some(url) = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https")) else {
            return wrong(key, "is no http or https URL");
        };
        if !url.username().is_empty() || url.password().is_some() {
            return wrong(key, "a URL with a password is a secret; use `env:NAME` or `file:PATH`");
        }
    }
    Ok(given)
}

fn headers(
    folder: &Path,
    key: &str,
    table: std::collections::BTreeMap<String, String>,
) -> Result<Vec<(String, Given)>, Wrong> {
    let mut found = Vec::new();
    for (name, value) in table {
        let key = format!("{key}.{name}");
        let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty() || !name.chars().all(token) {
            return wrong(key, "is no name of a header");
        }
        if name.to_ascii_lowercase().starts_with("x-tuition") {
            return wrong(key, "headers of tuition itself are not sent to a teacher");
        }
        let value = given(folder, &key, &value)?;
        if matches!(&value, Given::Text(text) if text.chars().any(char::is_control)) {
            return wrong(key, "holds a control character");
        }
        found.push((name.to_ascii_lowercase(), value));
    }
    Ok(found)
}

fn client_key(table: &KeyTable, teachers: &[Teacher]) -> Result<ClientKey, Wrong> {
    let key = |name: &str| format!("key.{}.{name}", table.name);
    let client = ClientKey::new(&table.name, &table.hash).or_else(|_| {
        wrong(key("hash"), format!("is not the 64 hex digits that `tuition key new {}` prints", table.name))
    })?;
    for (name, pinned) in [("runs", &table.runs), ("teachers", &table.teachers)] {
        if pinned.as_ref().is_some_and(Vec::is_empty) {
            return wrong(key(name), "is empty: the key could ask for nothing; leave it out to allow all");
        }
    }
    for teacher in table.teachers.iter().flatten() {
        known("teacher", teacher, teachers.iter().map(|teacher| teacher.name.as_str()))
            .map_err(|reason| (key("teachers"), reason))?;
    }
    let mode = match table.mode.as_deref() {
        None | Some("record") => Mode::Record,
        Some("replay") => Mode::Replay,
        Some("refresh") => Mode::Refresh,
        Some(other) => {
            return wrong(key("mode"), format!("`{other}` is none of `record`, `replay`, `refresh`"));
        }
    };
    Ok(client.pinned(Pins { runs: table.runs.clone(), teachers: table.teachers.clone(), mode }))
}

fn dollars(key: impl Fn(&str) -> String, name: &str, text: Option<Dollars>) -> Result<Option<Usd>, Wrong> {
    text.map(|Dollars(text)| text.parse().map_err(|error| (key(name), format!("{error}")))).transpose()
}

fn price(index: usize, table: PriceTable) -> Result<Price, Wrong> {
    if table.model.is_empty() {
        return wrong(format!("price[{index}].model"), "is empty");
    }
    let key = |name: &str| format!("price.{}.{name}", table.model);
    if table.image.is_some() {
        return wrong(key("image"), "a price a image is not supported yet");
    }
    let from = table.from.parse().map_err(|error| (key("from"), format!("{error}")))?;
    for (name, most) in
        [("max_input_tokens", table.max_input_tokens), ("max_output_tokens", table.max_output_tokens)]
    {
        if most == Some(0) {
            return wrong(key(name), "is 0; leave it out where it is not known");
        }
    }
    let input = dollars(key, "input", table.input)?;
    let output = dollars(key, "output", table.output)?;
    let request = dollars(key, "request", table.request)?;
    // A price that is forgotten must not count as nothing.
    let tokens = match (input, output) {
        (Some(input), Some(output)) => (input, output),
        (None, None) if request.is_some() => (Usd::ZERO, Usd::ZERO),
        (None, _) => return wrong(key("input"), "is missing; write \"0\" where input is free"),
        (_, None) => return wrong(key("output"), "is missing; write \"0\" where output is free"),
    };
    Ok(Price {
        from,
        input: tokens.0,
        cached_input: dollars(key, "cached_input", table.cached_input)?,
        cache_write: dollars(key, "cache_write", table.cache_write)?,
        output: tokens.1,
        reasoning: dollars(key, "reasoning", table.reasoning)?,
        request: request.unwrap_or_default(),
        max_input_tokens: table.max_input_tokens,
        max_output_tokens: table.max_output_tokens,
        model: table.model,
    })
}

fn budget(table: BudgetTable, teachers: &[Teacher], keys: &[ClientKey]) -> Result<Budget, Wrong> {
    let key = |name: &str| format!("budget.{}.{name}", table.name);
    let window =
        table.window.as_deref().map(str::parse).transpose().map_err(|reason| (key("window"), reason))?;
    let window = window.unwrap_or_default();
    let limit = Limit { calls: table.calls, tokens: table.tokens, usd: dollars(key, "usd", table.usd)? };
    if limit.is_lifted() {
        return wrong(format!("budget.{}", table.name), "limits nothing: give `calls`, `tokens` or `usd`");
    }
    if let Some(teacher) = &table.teacher {
        known("teacher", teacher, teachers.iter().map(|teacher| teacher.name.as_str()))
            .map_err(|reason| (key("teacher"), reason))?;
    }
    if let Some(client) = &table.key {
        known("key", client, keys.iter().map(ClientKey::name)).map_err(|reason| (key("key"), reason))?;
    }
    let scope = Scope { teacher: table.teacher, run: table.run, key: table.key };
    Ok(Budget { name: table.name, scope, limit, window })
}

fn known<'a>(table: &str, name: &str, names: impl Iterator<Item = &'a str> + Clone) -> Result<(), String> {
    if names.clone().any(|known| known == name) {
        return Ok(());
    }
    let near = nearest(name, names).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    Err(format!("there is no [[{table}]] of the name `{name}`{near}"))
}

/// A dollar budget needs a price for every model that it surely covers.
fn priced(budget: &Budget, teachers: &[Teacher], prices: &PriceBook) -> Result<(), Wrong> {
    if budget.limit.usd.is_none() {
        return Ok(());
    }
    let key = format!("budget.{}.usd", budget.name);
    if prices.iter().next().is_none() {
        return wrong(key, "limits dollars, but there is no [[price]]: every call would be refused");
    }
    if budget.scope.run.is_some() || budget.scope.key.is_some() {
        // Which teachers such a run or client asks is not known here.
        return Ok(());
    }
    let covered = |teacher: &&Teacher| budget.scope.teacher.as_ref().is_none_or(|name| *name == teacher.name);
    for teacher in teachers.iter().filter(covered) {
        for model in teacher.models.iter().filter(|model| !model.contains('*')) {
            if !prices.iter().any(|price| price.model == *model) {
                return wrong(
                    key,
                    format!(
                        "limits dollars, but model `{model}` of teacher `{}` has no [[price]]: it would be refused",
                        teacher.name
                    ),
                );
            }
        }
    }
    Ok(())
}

fn listed(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
