//! The built command as a process: `serve` with its folder and its configuration, and every other subcommand beside it.
//! Knows how it is started, killed and stopped; must not know what it answers.
//! Invariant: a server that was started is dead after the test, and what it wrote to stderr is shown if the test failed.

use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use tempfile::TempDir;

/// The variable that holds the teacher's secret, and the secret.
pub(crate) const SECRET: (&str, &str) = ("TUITION_TEST_KEY", "sk-of-the-teacher");

const READY_LINES: usize = 20;

/// The steps of a paid call that have a fail point, in the order in which a call takes them.
pub(crate) const STAGES: [&str; 10] = [
    "hold-appended",
    "hold-synced",
    "bytes-sent",
    "headers-in",
    "chunk-in",
    "body-complete",
    "settle-appended",
    "settle-synced",
    "index-applied",
    "reply-sent",
];

/// A folder with `tuition.toml`, its store, and the running `tuition serve`.
pub(crate) struct TestServer {
    folder: TempDir,
    store: String,
    child: Option<Child>,
    address: String,
    faults: Option<PathBuf>,
    environment: Vec<(String, String)>,
}

/// `tuition ARGUMENTS` in `folder`, ready to be started.
pub(crate) fn tuition(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tuition"));
    command.current_dir(folder).env(SECRET.0, SECRET.1).env("NO_COLOR", "1").args(arguments);
    command
}

impl TestServer {
    /// Writes the configuration (its `[store]` and `[serve]` tables are added) and starts to serve.
    pub(crate) fn start(teachers_and_budgets: &str) -> TestServer {
        TestServer::start_with("", teachers_and_budgets)
    }

    /// As `start`, with more lines in `[serve]`.
    pub(crate) fn start_with(serve: &str, teachers_and_budgets: &str) -> TestServer {
        TestServer::start_at("sled:./tuition.store", serve, teachers_and_budgets)
    }

    /// As `start_with`, over the store of this URL.
    pub(crate) fn start_at(store: &str, serve: &str, teachers_and_budgets: &str) -> TestServer {
        let mut server = TestServer::prepare(&[]);
        store.clone_into(&mut server.store);
        server.configure(serve, teachers_and_budgets);
        server.restart();
        server
    }

    /// A folder without a configuration; the server will be given these variables too.
    pub(crate) fn prepare(environment: &[(&str, &str)]) -> TestServer {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let environment = environment.iter().map(owned).collect();
        TestServer {
            folder: tempfile::tempdir().unwrap(),
            store: "sled:./tuition.store".to_owned(),
            child: None,
            address: String::new(),
            faults: None,
            environment,
        }
    }

    /// Writes a configuration; it is read at the next start.
    pub(crate) fn configure(&self, serve: &str, teachers_and_budgets: &str) {
        let head = format!("[store]\nurl = \"{}\"\n[serve]\nlisten = \"127.0.0.1:0\"\n", self.store);
        fs::write(self.folder().join("tuition.toml"), format!("{head}{serve}\n{teachers_and_budgets}"))
            .unwrap();
    }

    /// Starts to serve; waits for the line that names the address.
    pub(crate) fn restart(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        let mut command = tuition(self.folder(), &["serve"]);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(folder) = &self.faults {
            command.env("TUITION_FAULTS", every_stage()).env("TUITION_FAULTS_AT", folder);
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        self.child = Some(child);
        for _ in 0..READY_LINES {
            let mut line = String::new();
            if stdout.read_line(&mut line).unwrap() == 0 {
                break;
            }
            if let Some(address) = address_in(&line) {
                self.address = address;
                // What it prints later must not fill the pipe.
                std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
                return;
            }
        }
        panic!("`tuition serve` named no address");
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From the next start on, asks whoever listens in `folder` at every step of a paid call.
    pub(crate) fn ask_at_every_step(&mut self, folder: &Path) {
        self.faults = Some(folder.to_owned());
    }

    /// kill -9, and the end of the process.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, without waiting for the end.
    pub(crate) fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// SIGSTOP: the process stands still until it is told to go on.
    pub(crate) fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// SIGCONT.
    pub(crate) fn go_on(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(self.child.as_ref().expect("it runs"));
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// The end of a process that was told to stop.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.take().expect("it runs").wait().unwrap()
    }

    /// Runs another subcommand in the same folder.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        let mut command = tuition(self.folder(), arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a subcommand with `--json`, expects the exit code, and gives the object that it printed.
    pub(crate) fn json(&self, arguments: &[&str], exit: i32) -> Value {
        let mut arguments = arguments.to_vec();
        arguments.push("--json");
        let output = self.run(&arguments);
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(exit), "{arguments:?}\nstdout: {stdout}\nstderr: {stderr}");
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error} in {stdout}"))
    }

    fn log(&self) -> PathBuf {
        self.folder().join("serve.log")
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; nothing is left to do then.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- serve.log\n{}", fs::read_to_string(self.log()).unwrap_or_default());
        }
    }
}

/// Every fail point, armed to ask the test.
fn every_stage() -> String {
    STAGES.map(|stage| format!("{stage}=return(ask)")).join(";")
}

/// The first loopback address in a line.
fn address_in(line: &str) -> Option<String> {
    let from = &line[line.find("127.0.0.1:")?..];
    let end = from.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':').unwrap_or(from.len());
    Some(from[..end].to_owned())
}
