//! `tuition serve`: the proxy, from the configuration to a clean end.
//!
//! Must not know requests. Invariants: it owns the store for as long as it listens; without client keys it listens on
//! the loopback address only; standard output carries one line, the address.

use std::net::SocketAddr;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;
use tuition_ledger::{Filling, Mode, OpenStore, StoreUrl, View};
use tuition_proxy::{Limits, Proxy, Secret, StatementSource};

use crate::args::Globals;
use crate::config::{self, Config, Given};
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::words::{Exit, Trouble};
use crate::{faults, open, print, record, secret, teachers};

/// The variable that says what is logged, such as `debug` or `tuition_proxy=trace`.
const LOG: &str = "TUITION_LOG";

/// Connections that wait in the system until there is a place for them; the system may allow fewer.
const QUEUED_MAX: u32 = 4096;
/// File descriptors of one connection: its own, and one to a teacher.
const DESCRIPTORS_EACH: usize = 2;
/// File descriptors of the store, its index, the log, and other processes at the store's socket.
const DESCRIPTORS_BESIDE: usize = 256;

/// The proxy.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Where to listen; overrides the configuration. Port 0 takes a free one.
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Whether recorded answers are served and new ones bought.
    #[arg(long, value_enum, default_value = "record")]
    mode: ModeName,
}

/// A mode by its name.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ModeName {
    /// Serve what is known, buy the rest.
    Record,
    /// Serve what is known, never buy.
    Replay,
    /// Buy again on purpose.
    Refresh,
}

impl From<ModeName> for Mode {
    fn from(name: ModeName) -> Self {
        match name {
            ModeName::Record => Self::Record,
            ModeName::Replay => Self::Replay,
            ModeName::Refresh => Self::Refresh,
        }
    }
}

pub(crate) async fn run(args: ServeArgs, globals: &Globals) -> Result<Exit, Trouble> {
    let config = globals.config()?;
    log()?;
    let wanted = args.listen.unwrap_or(config.serve.listen);
    guard(wanted, config.keys.len())?;
    let teachers = teachers::routes(&config)?;
    let limits = room(Limits::default());
    let listener = listen(wanted);
    let listener = listener.map_err(|source| Trouble::io("cannot listen on", wanted.to_string(), source))?;
    let address =
        listener.local_addr().map_err(|source| Trouble::io("no address of", wanted.to_string(), source))?;
    let interrupt = Interrupt::listen("closing: answers under way are waited for; once more ends at once")?;
    let opened = own(&config).await?;
    open::apply(&config, &*opened.store).await?;
    let beside = open::beside(&config, &*opened.store).await?;
    if !beside.is_empty() {
        tracing::warn!(
            "budgets in force that the configuration does not have: {}; `tuition budget set NAME --lift` ends one",
            beside.join(", ")
        );
    }
    if let Some(filling) = opened.filling.clone() {
        tokio::spawn(show_filling(filling, globals.json));
    }
    let desk = open::desk(&config, &opened);
    let proxy = Proxy {
        desk: Arc::clone(&desk),
        teachers,
        keys: config.keys.clone(),
        mode: args.mode.into(),
        share: config.serve.share,
        limits,
        statement: statement(&config.store),
        alert_url: alert_url(config.serve.alert_url.as_ref())?,
    };
    match globals.json {
        true => print::json(&json!({"listening": format!("http://{address}")})),
        false => print::line(&format!("listening on http://{address}{}", faults::mark())),
    }
    let stop = async move { interrupt.asked().await };
    let served = tuition_proxy::run(listener, proxy, stop).await;
    desk.drain().await;
    drop(desk);
    open::close(opened).await?;
    served?;
    Ok(Exit::Fine)
}

/// Listens, with a queue in the system for connections that come all at once.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart finds its port free, though connections of the last one linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(QUEUED_MAX)
}

/// The limits, as far as the system gives file descriptors for them: a connection that finds none would neither be
/// served nor refused.
fn room(limits: Limits) -> Limits {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = (limits.connections * DESCRIPTORS_EACH + DESCRIPTORS_BESIDE) as u64;
    let given = current.map_or(wanted, |current| current.max(wanted.min(maximum.unwrap_or(wanted))));
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(given), maximum })
        && current != Some(given)
    {
        tracing::warn!(%error, "the number of open files stays as it is");
        return fitting(limits, current.unwrap_or(given));
    }
    fitting(limits, given)
}

/// The limits that fit into so many file descriptors.
fn fitting(limits: Limits, descriptors: u64) -> Limits {
    let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
    let most = (descriptors.saturating_sub(DESCRIPTORS_BESIDE) / DESCRIPTORS_EACH).max(1);
    if most < limits.connections {
        tracing::warn!(
            "at most {most} connections at a time, not {}: this process may open {descriptors} files (`ulimit -n`)",
            limits.connections
        );
    }
    Limits { connections: limits.connections.min(most), ..limits }
}

/// Draws a bar while the index is filled from the journal; the journal answers meanwhile.
async fn show_filling(mut filling: watch::Receiver<Filling>, json: bool) {
    let behind = |filling: &Filling| filling.done < filling.total;
    while filling.wait_for(behind).await.is_ok() {
        let progress = Progress::new(filling.borrow().total, "answers", json);
        progress.stage("filling the index");
        loop {
            let Filling { done, total } = *filling.borrow_and_update();
            progress.stand(done, total, String::new());
            if done == total || filling.changed().await.is_err() {
                break;
            }
        }
        progress.finish();
    }
}

/// Opens the store as its owner.
async fn own(config: &Config) -> Result<OpenStore, Trouble> {
    let opened = open::open(config).await?;
    if opened.is_owner() {
        return Ok(opened);
    }
    Err(Trouble::usage(
        format!("another process owns the store `{}`", config.store),
        "one `tuition serve` at a time owns a store; stop the other one, or give this one another `store.url`",
    ))
}

/// The webhook of the configuration, or of the variable that it names.
fn alert_url(given: Option<&Given>) -> Result<Option<Secret>, Trouble> {
    let (place, read) = match given {
        None => return Ok(None),
        Some(Given::Text(url)) => return Ok(Some(Secret::new(url))),
        Some(Given::Env(variable)) => (
            format!("the environment variable `{variable}`"),
            std::env::var(variable).map_err(|_| "is not set".to_owned()),
        ),
        Some(Given::File(path)) => (format!("the file `{}`", path.display()), secret::from_file(path)),
    };
    let url = read.and_then(|url| config::webhook(&url).map(|()| url));
    let wrong = |why| {
        Trouble::usage(format!("`serve.alert_url`: {place}, which {why}"), "it holds the webhook's address")
    };
    Ok(Some(Secret::new(url.map_err(wrong)?)))
}

/// Refuses to let anybody on the network spend.
fn guard(listen: SocketAddr, keys: usize) -> Result<(), Trouble> {
    if keys > 0 || listen.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    Err(Trouble::usage(
        format!(
            "`{listen}` is open to the network, and the configuration has no [[key]]: anybody could spend"
        ),
        "add a [[key]] (`tuition key new NAME` prints one), or listen on 127.0.0.1",
    ))
}

/// Logs to standard error, by `TUITION_LOG`.
fn log() -> Result<(), Trouble> {
    let wanted = std::env::var(LOG).unwrap_or_else(|_| "info".to_owned());
    let filter = EnvFilter::try_new(&wanted).map_err(|error| {
        Trouble::usage(format!("`{LOG}` is `{wanted}`: {error}"), "such as `info` or `debug`")
    })?;
    let colours = print::is_watched() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(colours).with_env_filter(filter).init();
    Ok(())
}

/// The statement of the store, read anew each time.
fn statement(store: &StoreUrl) -> StatementSource {
    let store = store.clone();
    Arc::new(move || {
        let store = store.clone();
        Box::pin(async move {
            let read = move || {
                let now = View { now: Some(open::clock()()), ..View::default() };
                record::read(&store).map(|(statement, heads)| record::stated(&statement, &heads, &now))
            };
            let stated = tokio::task::spawn_blocking(read).await.map_err(|error| error.to_string())?;
            stated.map_err(|error| error.to_string())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::Words;

    #[test]
    fn connections_fit_into_the_open_files() {
        let most = |descriptors| fitting(Limits::default(), descriptors).connections;
        assert_eq!((most(1 << 20), most(1024), most(64)), (16_384, 384, 1));
    }

    #[test]
    fn nobody_spends_from_the_network_without_a_key() {
        for (listen, keys, fine) in [
            ("127.0.0.1:8080", 0, true),
            ("[::1]:8080", 0, true),
            ("127.9.9.9:8080", 0, true),
            ("0.0.0.0:8080", 0, false),
            ("[::]:8080", 0, false),
            ("192.168.0.7:8080", 0, false),
            ("[::ffff:127.0.0.1]:8080", 0, true),
            ("[::ffff:0.0.0.0]:8080", 0, false),
            ("[::ffff:192.168.0.7]:8080", 0, false),
            ("[fe80::1]:8080", 0, false),
            ("0.0.0.0:8080", 1, true),
        ] {
            assert_eq!(guard(listen.parse().unwrap(), keys).is_ok(), fine, "{listen} with {keys} keys");
        }
        let refused = guard("0.0.0.0:8080".parse().unwrap(), 0).unwrap_err();
        insta::assert_snapshot!(Words::of(&refused).text(), @r"
        error: `0.0.0.0:8080` is open to the network, and the configuration has no [[key]]: anybody could spend
          hint: add a [[key]] (`tuition key new NAME` prints one), or listen on 127.0.0.1
        ");
    }
}
