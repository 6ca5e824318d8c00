//! Benchmarks: `hits` beside a peer in the same run, `million` beside its bars, `postgres` over a server of its own
//! (`cargo run --release -p tuition-bench -- hits`).
//! Knows the pinned outside of the command; only `fill` calls into a room. Invariant: what is compared serves the same
//! bodies, over the same loop, in turns.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints a report")]

mod fill;
mod load;
mod million;
mod postgres;
mod process;
mod teacher;

use load::Measured;
use process::{Nginx, Serve};
use std::error::Error;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use teacher::Teacher;

const USAGE: &str = "usage: tuition-bench hits [--seconds N] [--clients N] [--command PATH]
       tuition-bench postgres [--seconds N] [--clients N] [--command PATH]
       tuition-bench million [--records N,N,...] [--command PATH] [--folder PATH]";
/// The embedded store, beside the configuration.
const FOLDER: &str = "sled:./tuition.store";
const QUESTIONS: usize = 1_000;
const TURNS: usize = 3;
/// Calls that the budget allows: more than any run makes.
const BUDGET_CALLS: u64 = 100_000_000;

type Failure = Box<dyn Error + Send + Sync>;

struct Settings {
    seconds: u64,
    clients: usize,
    /// The built command; without it, it is built first.
    command: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match bench().await {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("tuition-bench: {error}");
            ExitCode::from(2)
        }
    }
}

async fn bench() -> Result<String, Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [bench, flags @ ..] if bench == "hits" => hits(&settings(flags)?).await,
        [bench, flags @ ..] if bench == "postgres" => postgres::purchases(&settings(flags)?).await,
        [bench, flags @ ..] if bench == "million" => million::run(&million::Settings::read(flags)?).await,
        // What `million` starts as a process of its own.
        [bench, store, records] if bench == "fill" => {
            fill::fill(Path::new(store), records.parse()?).await?;
            Ok(format!("{records} records in {store}"))
        }
        [bench, ..] => Err(format!("no benchmark `{bench}`\n{USAGE}").into()),
        [] => Err(USAGE.into()),
    }
}

fn settings(flags: &[String]) -> Result<Settings, Failure> {
    let mut settings = Settings { seconds: 5, clients: 64, command: None };
    for flag in flags.chunks(2) {
        match flag {
            [name, value] if name == "--seconds" => settings.seconds = value.parse()?,
            [name, value] if name == "--clients" => settings.clients = value.parse()?,
            [name, value] if name == "--command" => settings.command = Some(std::path::absolute(value)?),
            _ => return Err(format!("`{}` is not understood\n{USAGE}", flag.join(" ")).into()),
        }
    }
    Ok(settings)
}

/// Known answers beside nginx's cache of the same bodies, then purchases with every commit synced.
async fn hits(settings: &Settings) -> Result<String, Failure> {
    let teacher = Teacher::start().await?;
    let folder = tempfile::tempdir()?;
    let nginx = Nginx::start(folder.path(), teacher.address)?;
    let command = process::command(settings.command.as_deref())?;
    let serve = Serve::start(&command, folder.path(), FOLDER, teacher.address, BUDGET_CALLS)?;
    let requests: Vec<Vec<u8>> = (0..QUESTIONS).map(|at| request(&format!("question number {at}"))).collect();
    for address in [nginx.address, serve.address] {
        load::once_each(address, &requests).await?;
    }
    let asked = teacher.asked();
    let duration = Duration::from_secs(settings.seconds);
    let (mut of_nginx, mut of_serve) = (Measured::default(), Measured::default());
    for turn in 0..TURNS {
        eprintln!("turn {} of {TURNS}: nginx, then tuition, {} s each", turn + 1, settings.seconds);
        of_nginx.add(load::repeat(nginx.address, settings.clients, duration, known(&requests)).await?);
        of_serve.add(load::repeat(serve.address, settings.clients, duration, known(&requests)).await?);
    }
    if teacher.asked() != asked {
        return Err("a measured request reached the teacher: these were no hits".into());
    }
    eprintln!("purchases, {} s", settings.seconds);
    let bought = load::repeat(serve.address, settings.clients, duration, new_questions).await?;
    let purchases = teacher.asked() - asked;
    if purchases < bought.count() {
        return Err(format!(
            "{} answers were counted as bought, the teacher gave {purchases}",
            bought.count()
        )
        .into());
    }
    Ok(report(settings, &of_nginx, &of_serve, &bought))
}

fn report(settings: &Settings, nginx: &Measured, serve: &Measured, bought: &Measured) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let row = |name: &str, measured: &Measured| {
        format!(
            "| {name} | {:.0} | {:.2} | {:.2} |",
            measured.rate(),
            measured.percentile(50.0),
            measured.percentile(99.0)
        )
    };
    let ratios = format!(
        "| tuition / nginx | {:.2} | {:.2} | {:.2} |",
        serve.rate() / nginx.rate(),
        serve.percentile(50.0) / nginx.percentile(50.0),
        serve.percentile(99.0) / nginx.percentile(99.0)
    );
    [
        format!(
            "{} clients, {QUESTIONS} questions, {TURNS} turns of {} s each, {cores} cores shared by the load, nginx, tuition and the teacher",
            settings.clients, settings.seconds
        ),
        String::new(),
        "| known answers | a second | p50 ms | p99 ms |".to_owned(),
        "| --- | --- | --- | --- |".to_owned(),
        row("nginx proxy_cache", nginx),
        row("tuition serve", serve),
        ratios,
        String::new(),
        "| purchases, every commit synced | a second | p50 ms | p99 ms |".to_owned(),
        "| --- | --- | --- | --- |".to_owned(),
        row("tuition serve", bought),
    ]
    .join("\n")
}

/// The bytes of one chat request.
fn request(question: &str) -> Vec<u8> {
    let body = serde_json::json!({
        "model": "scripted", "temperature": 0, "max_tokens": 100,
        "messages": [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": question}],
    })
    .to_string();
    http(&body)
}

/// A chat request with this body.
fn http(body: &str) -> Vec<u8> {
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    (head + body).into_bytes()
}

/// Walks through the known questions, each client from another place.
fn known(requests: &[Vec<u8>]) -> impl Fn(usize, usize) -> Vec<u8> + Clone + Send + 'static {
    let requests = std::sync::Arc::new(requests.to_vec());
    move |client, number| requests[(client * 37 + number) % requests.len()].clone()
}

fn new_questions(client: usize, number: usize) -> Vec<u8> {
    request(&format!("never asked before: {client} {number}"))
}

/// A free port of the loopback address.
fn free_address() -> std::io::Result<SocketAddr> {
    std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()
}
