//! Secrets, file modes, the store's socket, and where a teacher's key goes; from outside, at the most talkative log.
//! Wants nothing but the built command and python3.

use crate::support::{Client, Reply, TestServer, Upstream, price, teacher, tuition};
use axum::Router;
use serde_json::json;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::Notify;

const HEADER_SECRET: &str = "gate-4f1d-of-the-header";
const FILE_SECRET: &str = "gate-77aa-of-the-file";
const HOOK_SECRET: &str = "T0B1-of-the-webhook";
/// A user who is neither root nor the owner of anything here.
const NOBODY: u32 = 65_534;

fn question(content: &str) -> String {
    json!({"model": "scripted", "messages": [{"role": "user", "content": content}]}).to_string()
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// A webhook; it notifies of every message.
async fn hook() -> (String, Arc<Notify>) {
    let told = Arc::new(Notify::new());
    let tells = Arc::clone(&told);
    let router = Router::new().fallback(move || {
        tells.notify_one();
        async {}
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/{HOOK_SECRET}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, told)
}

/// Everything that a reply says.
fn said(reply: &Reply) -> String {
    format!("{:?}\n{}", reply.headers, reply.body)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_written_anywhere() {
    let upstream = Upstream::start().await;
    let (hook, told) = hook().await;
    let environment = [("TUITION_LOG", "trace"), ("GATE", HEADER_SECRET), ("HOOK", hook.as_str())];
    let mut server = TestServer::prepare(&environment);
    let secrets = tempfile::tempdir().unwrap();
    let file = secrets.path().join("gate.key");
    fs::write(&file, format!("{FILE_SECRET}\n")).unwrap();
    set_mode(&file, 0o600);
    let made = server.json(&["key", "new", "alice"], 0);
    let [client_key, hash] = ["key", "hash"].map(|name| made[name].as_str().unwrap().to_owned());
    let headers = format!(
        "headers = {{ x-gate = \"env:GATE\", x-file = \"file:{}\" }}\ntimeout_s = 1\nretries = 1",
        file.display()
    );
    let config = format!(
        "{}\n{}\n[[budget]]\nname = \"pilot\"\ncalls = 10\nusd = \"1.00\"\n[[key]]\nname = \"alice\"\nhash = \"{hash}\"\n",
        teacher(&upstream, &headers),
        price()
    );
    server.configure("alert_url = \"env:HOOK\"", &config);
    server.restart();
    let nobody = Client::new(&server.url());
    let client = nobody.with("authorization", &format!("Bearer {client_key}"));

    let chats = "/v1/chat/completions";
    let mut words = Vec::new();
    let stream =
        json!({"model": "scripted", "stream": true, "messages": [{"role": "user", "content": "a stream"}]});
    let expected = [
        (200, question("the question of this test")),
        (200, question("the question of this test")),
        (200, stream.to_string()),
        (502, question("fails [500]")),
        (400, question("refused [400]")),
        (502, question("busy [503]")),
        (200, question("busy first [503 once]")),
        (502, question("cut off [cut]")),
        (504, question("never answered [stall]")),
        (400, "{\"model\":".to_owned()),
    ];
    for (status, body) in expected {
        let reply = client.post(chats, body.clone()).await.unwrap();
        assert_eq!(reply.status, status, "{body}: {reply:?}");
        words.push(said(&reply));
    }
    let texts = json!({"model": "scripted", "input": ["one", "two"]}).to_string();
    words.push(said(&client.post("/v1/embeddings", texts).await.unwrap()));
    let replay = client.with("x-tuition-mode", "replay");
    words.push(said(&replay.post(chats, question("not recorded")).await.unwrap()));
    // The budget's end: 402, and a message to the webhook.
    let mut last = client.post(chats, question("one more 0")).await.unwrap();
    for number in 1..20 {
        if last.status == 402 {
            break;
        }
        last = client.post(chats, question(&format!("one more {number}"))).await.unwrap();
    }
    assert_eq!(last.status, 402, "{last:?}");
    words.push(said(&last));
    told.notified().await;
    for stranger in [nobody.clone(), nobody.with("x-api-key", "tuition-wrong")] {
        let reply = stranger.post(chats, question("x")).await.unwrap();
        assert_eq!(reply.status, 401, "{reply:?}");
        words.push(said(&reply));
    }
    for path in
        ["/metrics", "/api/statement", "/v1/models", "/v1/models/scripted", "/", "/readyz", "/nowhere"]
    {
        words.push(said(&client.get_with(path).await.unwrap()));
    }
    // HTTP/2 has its own log of what it reads.
    let second = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let reply = second
        .post(format!("{}{chats}", server.url()))
        .bearer_auth(&client_key)
        .body(question("the question of this test"));
    let reply = reply.send().await.unwrap();
    assert_eq!((reply.version(), reply.status().as_u16()), (reqwest::Version::HTTP_2, 200));
    words.push(format!("{:?}", reply.headers()));
    for arguments in [
        &["audit", "--verify", "--by", "key,run,teacher"][..],
        &["audit", "--json"],
        &["budget", "list"],
        &["cache", "list"],
        &["doctor", "--json"],
        &["serve"],
    ] {
        let output = server.run(arguments);
        words.push(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned());
    }
    server.terminate();
    assert!(server.wait().success());

    let mut written: Vec<(String, Vec<u8>)> = words
        .into_iter()
        .enumerate()
        .map(|(number, words)| (format!("reply {number}"), words.into_bytes()))
        .collect();
    written.extend(
        files(server.folder()).into_iter().map(|path| (path.display().to_string(), fs::read(&path).unwrap())),
    );
    let holds = |needle: &str| -> Vec<&str> {
        let needle = needle.as_bytes();
        let found =
            written.iter().filter(|(_, bytes)| bytes.windows(needle.len()).any(|part| part == needle));
        found.map(|(name, _)| name.as_str()).collect()
    };
    // What is looked through is all there: the log at its most talkative, and the record.
    assert!(holds(" TRACE ").iter().any(|name| name.ends_with("serve.log")), "no trace in the log");
    assert!(
        holds("the question of this test").iter().any(|name| name.ends_with("journal")),
        "no question in the journal"
    );
    assert_eq!(upstream.headers()[0]["x-file"], FILE_SECRET, "the teacher got the secret");
    let teachers_key = "sk-of-the-teacher";
    for secret in [teachers_key, HEADER_SECRET, FILE_SECRET, HOOK_SECRET, client_key.as_str()] {
        assert_eq!(holds(secret), [""; 0], "`{secret}` was written");
    }
}

#[test]
fn a_key_file_that_others_may_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = "[[teacher]]\nname = \"gpt\"\napi = \"openai\"\nurl = \"http://127.0.0.1:9/v1\"\nkey_file = \"the.key\"\n";
    fs::write(folder.path().join("tuition.toml"), config).unwrap();
    let key = folder.path().join("the.key");
    fs::write(&key, "sk-in-a-file\n").unwrap();
    for wrong in [0o644, 0o640, 0o666] {
        set_mode(&key, wrong);
        for arguments in [&["serve"][..], &["doctor"]] {
            let output = tuition(folder.path(), arguments).output().unwrap();
            let words = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert_ne!(output.status.code(), Some(0), "{words}");
            assert!(words.contains("the.key") && words.contains("chmod 600"), "{words}");
            assert!(!words.contains("sk-in-a-file"), "{words}");
        }
    }
    assert!(!folder.path().join("tuition.store").exists(), "something was begun");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_is_its_owners_alone() {
    let upstream = Upstream::start().await;
    let mut server = TestServer::prepare(&[]);
    server.configure("", &format!("{}\n[[budget]]\nname = \"pilot\"\ncalls = 9\n", teacher(&upstream, "")));
    server.restart();
    let ask = async |server: &TestServer, text: &str| {
        let reply = Client::new(&server.url()).post("/v1/chat/completions", question(text)).await.unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
    };
    ask(&server, "a").await;
    let store = server.folder().join("tuition.store");
    let check = |store: &Path| {
        assert_eq!(mode(store), 0o700);
        for entry in fs::read_dir(store).unwrap() {
            let entry = entry.unwrap();
            let expected = if entry.file_type().unwrap().is_dir() { 0o700 } else { 0o600 };
            assert_eq!(mode(&entry.path()), expected, "{}", entry.path().display());
        }
    };
    check(&store);
    assert!(fs::symlink_metadata(store.join("desk.sock")).unwrap().file_type().is_socket());
    // A copy that was put in place has other rights than the store gave itself.
    server.terminate();
    assert!(server.wait().success());
    set_mode(&store.join("journal"), 0o644);
    set_mode(&store.join("index"), 0o755);
    server.restart();
    ask(&server, "b").await;
    check(&store);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stores_socket_is_for_the_same_user_only() {
    let upstream = Upstream::start().await;
    let server = TestServer::start(&teacher(&upstream, ""));
    let store = server.folder().join("tuition.store");
    // The rights are taken away on purpose: whoever comes is looked at all the same.
    for (path, open) in [(server.folder(), 0o755), (&store, 0o755), (&store.join("desk.sock"), 0o666)] {
        set_mode(path, open);
    }
    let greeting = |user: Option<u32>| {
        let script = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.settimeout(20)\ntry: print(len(s.recv(12)))\nexcept ConnectionResetError: print(0)";
        let mut command = Command::new("python3");
        command.args(["-c", script]).arg(store.join("desk.sock")).current_dir("/");
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        let output = command.output().unwrap();
        let words = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        words
    };
    assert_eq!(greeting(None), "12", "the same user is greeted");
    // Only root can become somebody else; elsewhere the rights of the socket, tested above, are what is left to test.
    if rustix::process::getuid().is_root() {
        assert_eq!(greeting(Some(NOBODY)), "0", "another user is greeted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_taken_from_the_configuration_only() {
    let (upstream, proxy) = (Upstream::start().await, Upstream::start().await);
    let names = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    let environment = names.map(|name| (name, proxy.url()));
    let environment: Vec<_> = environment.iter().map(|(name, url)| (*name, url.as_str())).collect();
    let mut server = TestServer::prepare(&environment);
    // This machine, and yet no loopback address: proxies are usually left out for those.
    let url = upstream.url().replace("127.0.0.1", "0.0.0.0");
    let config = |more: &str| {
        let teacher = teacher(&upstream, more).replace(&upstream.url(), &url);
        format!("{teacher}\n[[budget]]\nname = \"pilot\"\ncalls = 9\n")
    };
    server.configure("", &config(""));
    server.restart();
    let ask = async |server: &TestServer, text: &str| {
        let reply = Client::new(&server.url()).post("/v1/chat/completions", question(text)).await.unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
    };
    ask(&server, "directly").await;
    assert_eq!((upstream.asked(), proxy.asked()), (1, 0), "the key went through the environment's proxy");
    server.kill();
    server.configure("", &config(&format!("proxy = \"{}\"", proxy.url())));
    server.restart();
    ask(&server, "through the proxy").await;
    assert_eq!((upstream.asked(), proxy.asked()), (1, 1));
}
