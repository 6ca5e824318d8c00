//! The load: some clients, each with one kept-alive connection, each asking as soon as it was answered.
//! Knows as much HTTP/1.1 as the two servers speak; must not know which of them answers.
//! Invariant: only whole replies with status 200 are counted; anything else ends the run.

use crate::Failure;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const READ_BYTES: usize = 16 * 1024;

/// The latencies of some replies, and how long they took together.
#[derive(Default)]
pub(crate) struct Measured {
    micros: Vec<u32>,
    seconds: f64,
}

impl Measured {
    pub(crate) fn add(&mut self, other: Measured) {
        self.micros.extend(other.micros);
        self.seconds += other.seconds;
    }

    /// Adds what was measured at the same time.
    pub(crate) fn beside(&mut self, other: Measured) {
        self.micros.extend(other.micros);
        self.seconds = self.seconds.max(other.seconds);
    }

    pub(crate) fn count(&self) -> u64 {
        self.micros.len() as u64
    }

    /// Replies a second.
    pub(crate) fn rate(&self) -> f64 {
        self.micros.len() as f64 / self.seconds
    }

    /// The latency in milliseconds that `percent` of the replies do not exceed.
    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        let mut sorted = self.micros.clone();
        sorted.sort_unstable();
        let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).map_or(f64::NAN, |micros| f64::from(*micros) / 1000.0)
    }
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// Asks each request once, over one connection.
pub(crate) async fn once_each(address: SocketAddr, requests: &[Vec<u8>]) -> Result<(), Failure> {
    let mut connection = Connection::open(address).await?;
    for request in requests {
        connection.ask(request).await?;
    }
    Ok(())
}

/// Asks from `clients` connections until the time is over; `next(client, number)` makes the requests.
pub(crate) async fn repeat(
    address: SocketAddr,
    clients: usize,
    duration: Duration,
    next: impl Fn(usize, usize) -> Vec<u8> + Clone + Send + 'static,
) -> Result<Measured, Failure> {
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..clients {
        let next = next.clone();
        tasks.spawn(async move {
            let mut connection = Connection::open(address).await?;
            let mut micros = Vec::new();
            for number in 0.. {
                if start.elapsed() >= duration {
                    break;
                }
                let request = next(client, number);
                let asked = Instant::now();
                connection.ask(&request).await?;
                micros.push(u32::try_from(asked.elapsed().as_micros())?);
            }
            Ok::<_, Failure>(micros)
        });
    }
    let mut measured = Measured::default();
    while let Some(micros) = tasks.join_next().await {
        measured.micros.extend(micros??);
    }
    measured.seconds = start.elapsed().as_secs_f64();
    Ok(measured)
}

impl Connection {
    async fn open(address: SocketAddr) -> Result<Connection, Failure> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, buffer: Vec::with_capacity(READ_BYTES) })
    }

    /// Sends one request and reads its whole reply.
    async fn ask(&mut self, request: &[u8]) -> Result<(), Failure> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        loop {
            if let Some(head) = find(&self.buffer, b"\r\n\r\n") {
                let text = std::str::from_utf8(&self.buffer[..head])?;
                if !text.starts_with("HTTP/1.1 200") {
                    return Err(format!("not a 200: {}", String::from_utf8_lossy(&self.buffer)).into());
                }
                if is_whole(text, &self.buffer[head + 4..])? {
                    return Ok(());
                }
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err("the server closed the connection in the middle of a reply".into());
            }
        }
    }
}

/// Whether all of the body is here, by its length or by its last chunk.
fn is_whole(head: &str, body: &[u8]) -> Result<bool, Failure> {
    for line in head.lines().skip(1) {
        let Some((name, value)) = line.split_once(':') else { continue };
        if name.eq_ignore_ascii_case("content-length") {
            return Ok(body.len() >= value.trim().parse()?);
        }
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Ok(body.ends_with(b"0\r\n\r\n"));
        }
    }
    Err("a reply without a length".into())
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
