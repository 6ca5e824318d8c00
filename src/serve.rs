//! `tuition serve`: the proxy, from the configuration to a clean end.
//!
//! Must not know requests. Invariants: it owns the store for as long as it listens; without client keys it listens on
//! the loopback address only; standard output carries one line, the address.

use std::net::SocketAddr;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use serde_json::json;
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;
use tuition_ledger::{Mode, OpenStore, StoreUrl, View};
use tuition_proxy::{Limits, Proxy, Secret, StatementSource};

use crate::args::Globals;
use crate::config::{self, Config, Given};
use crate::interrupt::Interrupt;
use crate::words::{Exit, Trouble};
use crate::{faults, open, print, record, teachers};

/// The variable that says what is logged, such as `debug` or `tuition_proxy=trace`.
const LOG: &str = "TUITION_LOG";

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
    let listener = TcpListener::bind(wanted).await;
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
    let desk = open::desk(&config, &opened);
    let proxy = Proxy {
        desk: Arc::clone(&desk),
        teachers,
        keys: config.keys.clone(),
        mode: args.mode.into(),
        share: config.serve.share,
        limits: Limits::default(),
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
    let variable = match given {
        None => return Ok(None),
        Some(Given::Text(url)) => return Ok(Some(Secret::new(url))),
        Some(Given::Env(variable)) => variable,
    };
    let wrong = |why: &str| {
        Trouble::usage(
            format!("`serve.alert_url`: the environment variable `{variable}` {why}"),
            "it holds the webhook's address",
        )
    };
    let url = std::env::var(variable).map_err(|_| wrong("is not set"))?;
    config::webhook(&url).map_err(|why| wrong(&why))?;
    Ok(Some(Secret::new(url)))
}

/// Refuses to let anybody on the network spend.
fn guard(listen: SocketAddr, keys: usize) -> Result<(), Trouble> {
    if keys > 0 || listen.ip().is_loopback() {
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
                record::statement(&store).map(|statement| statement.to_json(&now))
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
    fn nobody_spends_from_the_network_without_a_key() {
        for (listen, keys, fine) in [
            ("127.0.0.1:8080", 0, true),
            ("[::1]:8080", 0, true),
            ("127.9.9.9:8080", 0, true),
            ("0.0.0.0:8080", 0, false),
            ("[::]:8080", 0, false),
            ("192.168.0.7:8080", 0, false),
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
