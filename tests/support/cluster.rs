//! A PostgreSQL server of the tests' own: a cluster in a temporary folder, on a port of the loopback address.
//! Knows the system's PostgreSQL programs; must not know what is kept in it, nor any service of the system.
//! Invariant: the server ends and its folder goes when the process that started it ends, however that ends.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

const READY_TIMEOUT: Duration = Duration::from_secs(60);
const READY_PAUSE: Duration = Duration::from_millis(20);
const USER: &str = "tuition";

/// Starts and stops the server as it is told, and cleans up once nobody can tell it anything any more.
const KEEPER: &str = r#"
start() { "$1/postgres" -D "$2/data" -p "$3" -k "$2" -h 127.0.0.1 -c max_connections=60 >>"$2/log" 2>&1 & server=$!; }
start "$@"
while read -r word; do
    case $word in
        start) start "$@" ;;
        stop) kill -INT $server; wait $server; echo stopped ;;
        crash) kill -QUIT $server; wait $server; echo stopped ;;
    esac
done
kill -QUIT $server; wait $server
rm -rf "$2"
"#;

/// A running server.
pub(crate) struct Cluster {
    programs: PathBuf,
    port: u16,
    // Held for one word and its answer.
    keeper: Mutex<(Child, Option<ChildStdin>)>,
    databases: AtomicU32,
}

impl Cluster {
    /// The server that all tests of this process share; nobody may stop it.
    pub(crate) fn shared() -> &'static Cluster {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(Cluster::start)
    }

    /// A server of one's own.
    pub(crate) fn start() -> Cluster {
        let programs = programs();
        let folder = tempfile::Builder::new().prefix("tuition-pg-").tempdir().unwrap().keep();
        let user = unprivileged();
        if let Some((uid, gid)) = user {
            std::os::unix::fs::chown(&folder, Some(uid), Some(gid)).unwrap();
        }
        let as_user = |program: &Path| {
            let mut command = Command::new(program);
            if let Some((uid, gid)) = user {
                command.uid(uid).gid(gid);
            }
            command.current_dir("/").stdin(Stdio::null());
            command
        };
        let mut initdb = as_user(&programs.join("initdb"));
        initdb.args(["--username", USER, "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"]);
        let made = initdb.arg(folder.join("data")).output().unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut keeper = as_user(Path::new("/bin/sh"));
        keeper.args(["-c", KEEPER, "keeper"]).arg(&programs).arg(&folder).arg(port.to_string());
        // A group of its own: a ctrl-c at the tests must not come before the cleaning up.
        keeper.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut keeper = keeper.spawn().unwrap();
        let words = keeper.stdin.take();
        let cluster =
            Cluster { programs, port, keeper: Mutex::new((keeper, words)), databases: AtomicU32::new(0) };
        cluster.await_ready(&folder);
        cluster
    }

    /// The URL of a fresh database.
    pub(crate) fn database(&self) -> String {
        let name = format!("d{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let made = self.program("createdb").arg(&name).output().unwrap();
        assert!(made.status.success(), "createdb: {}", String::from_utf8_lossy(&made.stderr));
        format!("postgres://{USER}@127.0.0.1:{}/{name}", self.port)
    }

    /// Runs SQL in the database at `url`, as somebody who has access to it, and gives what it printed.
    #[allow(
        dead_code,
        reason = "only some of the test binaries that include this file look behind the store"
    )]
    pub(crate) fn sql(&self, url: &str, sql: &str) -> String {
        let found = Command::new(self.programs.join("psql"))
            .args([url, "--no-psqlrc", "--tuples-only", "--no-align", "--quiet", "--command", sql])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(found.status.success(), "{sql}: {}", String::from_utf8_lossy(&found.stderr));
        String::from_utf8(found.stdout).unwrap().trim().to_owned()
    }

    /// Stops the server: its sessions are ended, what it committed is kept.
    #[allow(dead_code, reason = "only some of the test binaries that include this file stop a server")]
    pub(crate) fn stop(&self) {
        self.tell("stop", true);
    }

    /// Ends the server as a crash would.
    #[allow(dead_code, reason = "only some of the test binaries that include this file stop a server")]
    pub(crate) fn crash(&self) {
        self.tell("crash", true);
    }

    /// Starts it again; it takes connections when this returns.
    #[allow(dead_code, reason = "only some of the test binaries that include this file stop a server")]
    pub(crate) fn start_again(&self) {
        self.tell("start", false);
        self.await_ready(Path::new("its folder"));
    }

    fn tell(&self, word: &str, answers: bool) {
        let mut keeper = self.lock();
        writeln!(keeper.1.as_mut().unwrap(), "{word}").unwrap();
        if answers {
            let mut answer = [0; "stopped\n".len()];
            std::io::Read::read_exact(keeper.0.stdout.as_mut().unwrap(), &mut answer).unwrap();
        }
    }

    fn lock(&self) -> MutexGuard<'_, (Child, Option<ChildStdin>)> {
        self.keeper.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command.args(["--host", "127.0.0.1", "--port", &self.port.to_string(), "--username", USER]);
        command.stdin(Stdio::null());
        command
    }

    fn await_ready(&self, folder: &Path) {
        let start = Instant::now();
        while !self.program("pg_isready").arg("--quiet").status().unwrap().success() {
            let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
            assert!(start.elapsed() < READY_TIMEOUT, "PostgreSQL does not start\n{log}");
            std::thread::sleep(READY_PAUSE);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let keeper = self.keeper.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        // With nothing more to hear, it ends.
        drop(keeper.1.take());
        let _ = keeper.0.wait();
    }
}

/// Where the server's programs lie.
fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    found.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    found.retain(|folder| folder.join("initdb").is_file() && folder.join("postgres").is_file());
    let version = |folder: &PathBuf| {
        let name = folder.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        name.and_then(|name| name.parse::<u32>().ok()).unwrap_or(0)
    };
    let newest = found.into_iter().max_by_key(version);
    newest.expect("PostgreSQL is not installed: `cargo xtask install` installs it")
}

/// A user that PostgreSQL runs as, where this one is root.
fn unprivileged() -> Option<(u32, u32)> {
    let root = fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0);
    if !root {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let of = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut numbers = line.split(':').skip(2).map(|number| number.parse().ok());
        Some((numbers.next()??, numbers.next()??))
    };
    Some(of("postgres").or_else(|| of("nobody")).expect("there is a user `postgres` or `nobody`"))
}
