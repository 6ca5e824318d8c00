//! Several `tuition serve` over one PostgreSQL, and the commands beside them.
//! Wants the built command and the system's PostgreSQL programs; every server here is the tests' own.
//! Invariant: whatever dies, stands still or restarts, the limit holds, the teacher's bill lies within the statement, and
//! no key is held twice but one that was unknown.

use crate::support::{Client, Cluster, Reply, Statement, TestServer, Upstream, price, teacher};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const REQUESTS: usize = 10_000;
const LIMIT: u64 = 50;
/// Of so many requests one asks a question that the teacher answers; the others find it busy, for nothing.
const ANSWERED_OF: usize = 25;
/// Calls of each replica that are under way when the race begins.
const AT_THE_GATE: usize = 3;
const PAUSE: Duration = Duration::from_secs(10);
const LOOK_PAUSE: Duration = Duration::from_millis(100);

fn chat(content: &str) -> String {
    json!({"model": "scripted", "messages": [{"role": "user", "content": content}]}).to_string()
}

async fn ask(client: &Client, content: &str) -> Result<Reply, reqwest::Error> {
    client.post("/v1/chat/completions", chat(content)).await
}

fn replica(store: &str, upstream: &Upstream, calls: u64) -> TestServer {
    let budget = format!("[[budget]]\nname = \"all\"\ncalls = {calls}\n");
    let configuration = format!("{}\n{}\n{budget}", teacher(upstream, "retries = 0"), price());
    TestServer::start_at(store, "hold_wait_s = 60", &configuration)
}

/// A gauge of `/metrics`.
async fn gauge(client: &Client, name: &str) -> u64 {
    let page = client.get("/metrics").await.unwrap().body;
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no `{name}` in {page}")).parse().unwrap()
}

/// Looks at the statement until it is as wanted: what another process does is announced to nobody here.
async fn until(client: &Client, wanted: impl Fn(&Statement) -> bool) -> Statement {
    for _ in 0..600 {
        let statement = client.statement().await;
        if wanted(&statement) {
            return statement;
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    panic!("the statement does not come to be as it should: {}", client.statement().await.0)
}

/// Asks one replica, and where that is dead the next, as a load balancer would.
async fn race(clients: Arc<Vec<Client>>, number: usize) -> u16 {
    let block = number / ANSWERED_OF;
    let question = match number % ANSWERED_OF {
        // Neighbouring blocks ask the same question, of different replicas.
        0 => format!("answered {} [slow 30]", block / 2),
        _ => format!("busy {number} [503]"),
    };
    for turn in 0.. {
        let reply = ask(&clients[(number + block + turn) % clients.len()], &question).await;
        if let Ok(reply) = reply {
            return reply.status;
        }
    }
    unreachable!("one of the replicas lives")
}

/// Many connections at once, here and in the servers that are started from here.
fn many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard }).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_race_for_fifty_calls_while_replicas_die_and_stand_still_and_the_database_restarts() {
    many_files();
    let (cluster, upstream) = (Cluster::start(), Upstream::start().await);
    let store = cluster.database();
    let mut servers: Vec<_> = (0..3).map(|_| replica(&store, &upstream, LIMIT)).collect();
    let clients = Arc::new(servers.iter().map(|server| Client::new(&server.url())).collect::<Vec<_>>());
    // Calls under way on every replica, whatever happens to it.
    let gated: Vec<_> = (0..3 * AT_THE_GATE)
        .map(|number| {
            let client = clients[number % 3].clone();
            tokio::spawn(async move { ask(&client, &format!("gated {number} [gate]")).await })
        })
        .collect();
    upstream.at_the_gate(3 * AT_THE_GATE).await;
    let racing: Vec<_> =
        (0..REQUESTS).map(|number| tokio::spawn(race(Arc::clone(&clients), number))).collect();
    let bought = |count| {
        let upstream = &upstream;
        async move {
            while upstream.bill().inferences < count {
                tokio::time::sleep(LOOK_PAUSE).await;
            }
        }
    };
    bought(3 * AT_THE_GATE as u64 + 3).await;
    servers[0].kill();
    servers[1].pause();
    let paused = tokio::time::Instant::now();
    // The one that stands still may hold all that was left, and not have asked yet.
    tokio::select! {
        () = bought(3 * AT_THE_GATE as u64 + 6) => {}
        _ = until(&clients[2], |statement| statement.committed().calls == LIMIT) => {}
    }
    cluster.stop();
    cluster.start_again();
    tokio::time::sleep_until(paused + PAUSE).await;
    // The others miss both within seconds; the time in which there was no server to hear a heart beat does not count.
    while cluster.sql(&store, "SELECT count(*) FROM tuition.writer WHERE ended") != "2" {
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    upstream.open_the_gate(3 * AT_THE_GATE);
    servers[1].go_on();

    let mut statuses = BTreeMap::<u16, usize>::new();
    for racing in racing {
        *statuses.entry(racing.await.unwrap()).or_default() += 1;
    }
    let gated: Vec<_> = futures::future::join_all(gated).await;
    let answered = gated.into_iter().filter(|reply| reply.as_ref().is_ok_and(|reply| reply.is_ok())).count();
    assert_eq!(answered, 2 * AT_THE_GATE, "only the killed replica left its clients without a reply");
    assert!(statuses.keys().all(|status| [200, 402, 502, 503, 504].contains(status)), "{statuses:?}");
    // Whatever is left of the budget is bought now.
    let survivor = &clients[2];
    for number in 0.. {
        let reply = ask(survivor, &format!("the rest {number}")).await.unwrap();
        if reply.status == 402 {
            break;
        }
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    until(survivor, |statement| statement.total("reserved").calls == 0).await;
    let (statement, audit) = Statement::with_audit(survivor, &servers[2]).await;
    eprintln!("replies by status: {statuses:?}; {}", statement.0["totals"]["calls"]);
    assert_eq!(statement.committed().calls, LIMIT, "{}", statement.0["totals"]);
    assert!(upstream.bill().inferences <= LIMIT);
    statement.assert_within_limits();
    statement.assert_covers(upstream.bill(), upstream.bill());
    let unknown = statement.total("unknown").calls;
    assert!(unknown >= AT_THE_GATE as u64, "the killed replica's calls are unknown: {}", statement.0);
    assert_eq!(audit["discrepancies"], json!([]));
    assert_eq!(audit["totals"], statement.0["totals"]);
    assert_eq!(audit["unknown"].as_array().map(Vec::len), Some(usize::try_from(unknown).unwrap()));
    let writers: u32 = cluster.sql(&store, "SELECT count(*) FROM tuition.writer").parse().unwrap();
    assert!(writers >= 4, "the replica that stood still was not taken for dead: {writers} writers");
    check_holds(&cluster.sql(&store, "SELECT payload FROM tuition.entry ORDER BY seq"));
    let unknown_asked: Vec<_> =
        upstream.charges().into_iter().map(|charge| charge.items[0].clone()).collect();
    let twice =
        unknown_asked.iter().filter(|item| unknown_asked.iter().filter(|other| other == item).count() > 1);
    assert!(twice.count() as u64 <= 2 * unknown, "a question was bought twice though it was never unknown");
}

/// No key is held while it is held or once it is answered; only one that is unknown may be held again.
fn check_holds(payloads: &str) {
    let mut states = BTreeMap::<String, &str>::new();
    let mut keys = BTreeMap::<u64, Vec<String>>::new();
    for line in payloads.lines() {
        let payload: Value = serde_json::from_str(line).unwrap();
        let Some((fact, said)) = payload["entry"]["fact"].as_object().and_then(|fact| fact.iter().next())
        else {
            continue;
        };
        let Some(hold) = said["hold"].as_u64() else { continue };
        if fact == "Reserved" {
            let items = said["exchange"]["items"].as_array().unwrap();
            let held: Vec<_> = items.iter().map(|item| item["key"].to_string()).collect();
            for key in &held {
                let before = states.insert(key.clone(), "held").unwrap_or("free");
                assert!(
                    ["free", "unknown"].contains(&before),
                    "a key that is {before} is held again: {line}"
                );
            }
            keys.insert(hold, held);
            continue;
        }
        let state = match fact.as_str() {
            "Settled" => "answered",
            "Released" | "Resolved" => "free",
            "Forfeited" => "unknown",
            other => panic!("{other}"),
        };
        for key in &keys[&hold] {
            states.insert(key.clone(), state);
        }
    }
    assert!(states.len() > 500, "only {} questions were asked", states.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_that_are_asked_the_same_buy_once_and_a_dead_one_fails_its_followers() {
    let (cluster, upstream) = (Cluster::shared(), Upstream::start().await);
    let store = cluster.database();
    let (mut one, two) = (replica(&store, &upstream, 9), replica(&store, &upstream, 9));
    let (first, second) = (Client::new(&one.url()), Client::new(&two.url()));
    let both = |question: &'static str| {
        let (leader, follower) = (first.clone(), second.clone());
        let upstream = &upstream;
        async move {
            let before = upstream.bill().inferences;
            let leading = tokio::spawn(async move { ask(&leader, question).await });
            while upstream.bill().inferences == before {
                tokio::time::sleep(LOOK_PAUSE).await;
            }
            let asking = follower.clone();
            let following = tokio::spawn(async move { ask(&asking, question).await });
            while gauge(&follower, "tuition_calls_in_flight").await == 0 {
                tokio::time::sleep(LOOK_PAUSE).await;
            }
            (leading, following)
        }
    };
    let (leading, following) = both("asked of two at once [gate]").await;
    upstream.open_the_gate(1);
    let (bought, known) = (leading.await.unwrap().unwrap(), following.await.unwrap().unwrap());
    assert_eq!((bought.status, bought.header("x-tuition-outcome")), (200, "bought"), "{bought:?}");
    assert_eq!((known.status, known.header("x-tuition-outcome")), (200, "known"), "{known:?}");
    assert_eq!((bought.body, upstream.bill().inferences), (known.body, 1));

    let (leading, following) = both("asked of one that dies [gate]").await;
    one.kill();
    assert!(leading.await.unwrap().is_err());
    let failed = following.await.unwrap().unwrap();
    assert_eq!((failed.status, failed.header("x-should-retry")), (502, "false"), "{failed:?}");
    assert!(failed.body.contains("another process was making"), "{failed:?}");
    let statement = second.statement().await;
    assert_eq!((statement.total("settled").calls, statement.total("unknown").calls), (1, 1));
    assert_eq!(upstream.bill().inferences, 2);
    // Asked again on purpose, it is another call, and both count.
    upstream.open_the_gate(2);
    assert_eq!(ask(&second, "asked of one that dies [gate]").await.unwrap().status, 200);
    assert_eq!(second.statement().await.committed().calls, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_database_away_the_known_is_served_nothing_is_bought_and_it_comes_back_by_itself() {
    let (cluster, upstream) = (Cluster::start(), Upstream::start().await);
    let server = replica(&cluster.database(), &upstream, 9);
    let client = Client::new(&server.url());
    let known = ask(&client, "known").await.unwrap();
    cluster.stop();
    let again = ask(&client, "known").await.unwrap();
    assert_eq!((again.status, again.header("x-tuition-outcome"), &again.body), (200, "known", &known.body));
    let refused = ask(&client, "new").await.unwrap();
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(client.get("/readyz").await.unwrap().status, 503);
    assert_eq!(upstream.asked(), 1);
    let audit = server.run(&["audit"]);
    assert_eq!(audit.status.code(), Some(2));
    cluster.start_again();
    client.until_ready("/readyz").await;
    assert_eq!(ask(&client, "new").await.unwrap().status, 200);
    assert_eq!(client.statement().await.committed().calls, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_works_beside_replicas_and_a_record_moves_there_and_back() {
    let (cluster, upstream) = (Cluster::shared(), Upstream::start().await);
    let mut folder = replica("sled:./tuition.store", &upstream, 9);
    let client = Client::new(&folder.url());
    let bought = ask(&client, "before the move").await.unwrap();
    ask(&client, "lost before the move [cut]").await.unwrap();
    let store = cluster.database();
    let written = folder.json(&["copy", "sled:./tuition.store", &store], 2);
    assert!(
        written["error"]["message"].as_str().unwrap().contains("a process writes the store"),
        "{written}"
    );
    folder.terminate();
    assert!(folder.wait().success());
    let before = folder.json(&["audit", "--verify"], 0);
    let copied = folder.json(&["copy", "sled:./tuition.store", &store], 0);
    assert_eq!(copied["entries"], before["entries"]);
    let twice = folder.json(&["copy", "sled:./tuition.store", &store], 2);
    assert!(twice["error"]["message"].as_str().unwrap().contains("is not empty"), "{twice}");

    let (server, other) = (replica(&store, &upstream, 9), replica(&store, &upstream, 9));
    let client = Client::new(&server.url());
    let known = ask(&client, "before the move").await.unwrap();
    assert_eq!((known.header("x-tuition-outcome"), &known.body), ("known", &bought.body));
    assert_eq!(ask(&Client::new(&other.url()), "after the move").await.unwrap().status, 200);
    let audit = server.json(&["audit", "--verify"], 0);
    assert_eq!(audit["totals"]["calls"], json!({"settled": 2, "reserved": 0, "unknown": 1}));
    let id = audit["unknown"][0]["id"].to_string();
    server.json(&["resolve", id.trim_matches('"'), "--billed", "--why", "it stands on the bill"], 0);
    server.json(&["budget", "set", "all", "--calls", "12"], 0);
    assert_eq!(server.json(&["budget", "list"], 0)["budgets"][0]["limit"]["calls"], 12);
    assert_eq!(server.json(&["cache", "list"], 0)["total"], 2);
    let key = ask(&client, "after the move").await.unwrap().header("x-tuition-key").to_owned();
    assert_eq!(server.json(&["cache", "show", &key], 0)["key"], key);
    let doctor = server.run(&["doctor", "--json"]);
    let found: Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let finding = found["findings"].as_array().unwrap().iter().find(|finding| finding["what"] == "store");
    assert!(finding.is_some_and(|finding| finding["fine"] == true), "{found}");
    for mut server in [server, other] {
        server.terminate();
        assert!(server.wait().success());
    }
    let back = folder.json(&["copy", &store, "sled:./back.store"], 0);
    let audit = folder.json(&["--store", "sled:./back.store", "audit", "--verify"], 0);
    assert_eq!((&audit["entries"], &audit["totals"]["calls"]["settled"]), (&back["entries"], &json!(3)));
    let secret = folder.run(&["copy", "postgres://me:hunter2@127.0.0.1:1/none", "sled:./x"]);
    let words = String::from_utf8_lossy(&secret.stderr).into_owned();
    assert!(
        secret.status.code() == Some(2) && !words.contains("hunter2") && words.contains("me@127"),
        "{words}"
    );
}
