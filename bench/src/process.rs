//! The two servers as processes in a temporary folder: nginx with a generated configuration, and the built command.
//! Knows how they are configured and started; must not know what is measured.
//! Invariant: both listen on the loopback address only, and end with the value that stands for them.

use crate::{Failure, free_address};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const START_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) struct Nginx {
    pub(crate) address: SocketAddr,
    child: Child,
}

pub(crate) struct Serve {
    pub(crate) address: SocketAddr,
    child: Child,
    /// Kept open: what it prints must have a reader.
    stdout: BufReader<ChildStdout>,
}

impl Nginx {
    /// Starts nginx with as many workers as there are cores, a cache keyed by the body, and kept-alive connections.
    pub(crate) fn start(folder: &Path, teacher: SocketAddr) -> Result<Nginx, Failure> {
        let address = free_address()?;
        let configuration = folder.join("nginx.conf");
        let place = folder.display();
        fs::write(
            &configuration,
            format!(
                r#"
user root;
worker_processes auto;
daemon off;
pid {place}/nginx.pid;
error_log {place}/nginx.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {place}/body;
    proxy_temp_path {place}/proxy;
    fastcgi_temp_path {place}/fastcgi;
    uwsgi_temp_path {place}/uwsgi;
    scgi_temp_path {place}/scgi;
    proxy_cache_path {place}/cache keys_zone=answers:10m max_size=1g;
    client_body_buffer_size 64k;
    keepalive_requests 100000000;
    server {{
        listen {address};
        location / {{
            proxy_pass http://{teacher};
            proxy_cache answers;
            proxy_cache_methods POST;
            proxy_cache_key "$request_uri|$request_body";
        }}
    }}
}}
"#
            ),
        )?;
        let child = Command::new("nginx").arg("-c").arg(&configuration).arg("-p").arg(folder).spawn();
        let child =
            child.map_err(|error| format!("could not start `nginx` (of the system's packages): {error}"))?;
        let nginx = Nginx { address, child };
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            if start.elapsed() > START_TIMEOUT {
                let log = fs::read_to_string(folder.join("nginx.log")).unwrap_or_default();
                return Err(format!("nginx did not listen on {address} in time\n{log}").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(nginx)
    }
}

impl Serve {
    /// Starts `tuition serve` with a calls budget.
    pub(crate) fn start(
        command: &Path,
        folder: &Path,
        store: &str,
        teacher: SocketAddr,
        calls: u64,
    ) -> Result<Serve, Failure> {
        fs::write(
            folder.join("tuition.toml"),
            format!(
                "[store]\nurl = \"{store}\"\n[serve]\nlisten = \"127.0.0.1:0\"\n\
                 [[teacher]]\nname = \"scripted\"\napi = \"openai\"\nurl = \"http://{teacher}/v1\"\nrevision = \"1\"\n\
                 [[budget]]\nname = \"bench\"\ncalls = {calls}\n"
            ),
        )?;
        let log = fs::File::create(folder.join("serve.log"))?;
        let mut child = Command::new(command)
            .arg("serve")
            .current_dir(folder)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(|error| format!("could not start `{}`: {error}", command.display()))?;
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut serve = Serve { address: SocketAddr::from(([127, 0, 0, 1], 0)), child, stdout };
        let mut line = String::new();
        while serve.stdout.read_line(&mut line)? > 0 {
            let mut words = line.split(|c: char| c.is_whitespace() || c == '/');
            if let Some(address) = words.find_map(|word| word.parse().ok()) {
                serve.address = address;
                return Ok(serve);
            }
            line.clear();
        }
        Err(format!("`tuition serve` named no address\n{}", fs::read_to_string(folder.join("serve.log"))?)
            .into())
    }

    /// The process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it in good order.
    pub(crate) fn stop(mut self) -> Result<(), Failure> {
        Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status()?;
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("`tuition serve` ended with {status}").into()) }
    }
}

/// A process that was watched to its end.
pub(crate) struct Ended {
    pub(crate) seconds: f64,
    /// The most memory that it had resident.
    pub(crate) peak_mib: f64,
}

/// Runs a command that must succeed.
pub(crate) fn watch(mut command: Command) -> Result<Ended, Failure> {
    let start = Instant::now();
    let mut child = command.stdout(Stdio::null()).spawn()?;
    let mut peak_mib = 0.0_f64;
    loop {
        if let Some(status) = child.try_wait()? {
            let seconds = start.elapsed().as_secs_f64();
            return match status.success() {
                true => Ok(Ended { seconds, peak_mib }),
                false => Err(format!("{command:?} ended with {status}").into()),
            };
        }
        // It may end just now: then the last figure stands.
        peak_mib = peak(child.id()).unwrap_or(peak_mib).max(peak_mib);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// MiB that a process has resident now.
pub(crate) fn resident(process: u32) -> Result<f64, Failure> {
    status(process, "VmRSS:")
}

/// The most MiB that a process has had resident.
pub(crate) fn peak(process: u32) -> Result<f64, Failure> {
    status(process, "VmHWM:")
}

fn status(process: u32, name: &str) -> Result<f64, Failure> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).ok_or(format!("no `{name}` in it"))?;
    Ok(kib.trim().parse::<f64>()? / 1024.0)
}

/// The command that was given, or else the one that is built in release mode.
pub(crate) fn command(given: Option<&Path>) -> Result<PathBuf, Failure> {
    given.map_or_else(built, |command| Ok(command.to_owned()))
}

fn built() -> Result<PathBuf, Failure> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo).args(["build", "--release", "--bin", "tuition"]).status()?;
    if !status.success() {
        return Err("`cargo build --release --bin tuition` failed".into());
    }
    Ok(std::env::current_exe()?.with_file_name("tuition"))
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master ends its workers on SIGTERM; killed, it would leave them.
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
