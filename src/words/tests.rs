//! Every message that people read, as a snapshot.

use tuition_ledger::{Billing, Cause, Failure, StoreUrl, Usd, Who, Window};

use super::*;

fn say(trouble: impl Into<Trouble>) -> String {
    let words = Words::of(&trouble.into());
    format!("{}\n{}", words.text(), words.exit.code())
}

fn exhausted(unit: Unit, unknown: u64) -> DeskError {
    DeskError::Refused(Refusal::Exhausted {
        budget: "pilot".into(),
        unit,
        limit: 2_000_000_000,
        settled: 1_500_000_000,
        reserved: 0,
        unknown,
        needed: 500_000_001,
        window: Window::Forever,
    })
}

fn quote(calls: u64) -> Box<Quote> {
    Box::new(Quote { calls, tokens: Ok(7), usd: Ok(Usd::from_nanos(5)), price: None, metered: true })
}

#[test]
fn what_a_budget_refuses() {
    insta::assert_snapshot!(say(exhausted(Unit::Usd, 0)), @r"
    error: budget `pilot` is exhausted: limit 2.000000000 dollars, settled 1.500000000 dollars, held 0.000000000 dollars, unknown 0.000000000 dollars; this call would have held 0.500000001 dollars
      hint: `tuition budget set pilot --usd MORE` raises the limit
    3
    ");
    insta::assert_snapshot!(say(exhausted(Unit::Calls, 1)), @r"
    error: budget `pilot` is exhausted: limit 2000000000 calls, settled 1500000000 calls, held 0 calls, unknown 1 calls; this call would have held 500000001 calls
      hint: `tuition budget set pilot --calls MORE` raises the limit; `tuition resolve` gives back unknown calls that were not billed
    3
    ");
    let unbounded =
        |why| DeskError::Refused(Refusal::Unbounded { budget: "pilot".into(), unit: Unit::Usd, why });
    insta::assert_snapshot!(say(unbounded(Unbounded::NoPrice("m".into()))), @r#"
    error: budget `pilot` limits dollars, and this call has no upper bound in dollars: model `m` has no price
      hint: add a [[price]] with model = "m" to the configuration
    3
    "#);
    insta::assert_snapshot!(say(unbounded(Unbounded::NoInputMaximum("m".into()))), @r"
    error: budget `pilot` limits dollars, and this call has no upper bound in dollars: the input is not plain text, and model `m` has no `max_input_tokens` in the price book
      hint: add `max_input_tokens` to the model's [[price]]
    3
    ");
    insta::assert_snapshot!(say(unbounded(Unbounded::NoOutputMaximum("m".into()))), @r"
    error: budget `pilot` limits dollars, and this call has no upper bound in dollars: the request sets no output limit, and model `m` has no `max_output_tokens` in the price book
      hint: add `max_output_tokens` to the model's [[price]], or limit the output in the request
    3
    ");
    insta::assert_snapshot!(say(unbounded(Unbounded::Part("web_search".into()))), @r"
    error: budget `pilot` limits dollars, and this call has no upper bound in dollars: `web_search` has no bounded cost
      hint: only a budget in calls can cover it
    3
    ");
    let who = Who { teacher: "gpt".into(), run: Some("r".into()), key: None };
    insta::assert_snapshot!(say(DeskError::Refused(Refusal::NoBudget { who })), @r"
    error: no budget covers a call to teacher `gpt` of run `r`, and `unbudgeted` is false
      hint: add a [[budget]], or `unbudgeted = true` under [serve]
    3
    ");
}

#[test]
fn what_is_not_recorded() {
    let key = |byte| QueryKey::from_bytes([byte; 32]);
    insta::assert_snapshot!(say(DeskError::NotRecorded { keys: vec![key(1)], quote: quote(1) }), @r"
    error: no answer is recorded under `0101010101010101010101010101010101010101010101010101010101010101`
      hint: buying would hold 1 calls, 0.000000005 dollars
    1
    ");
    let keys: Vec<QueryKey> = (0..14).map(key).collect();
    let unpriced = Box::new(Quote { usd: Err(Unbounded::NoPrice("m".into())), ..*quote(14) });
    let words = say(DeskError::NotRecorded { keys, quote: unpriced });
    assert!(words.starts_with("error: 14 answers are not recorded: `0000"), "{words}");
    assert!(words.ends_with(" and 11 more\n  hint: buying would hold 14 calls\n1"), "{words}");
}

#[test]
fn what_a_teacher_does() {
    let failure = Failure {
        teacher: "gpt".into(),
        cause: Cause::NotConnected,
        message: "connection refused by `127.0.0.1:9`".into(),
        billing: Billing::Unbilled { retry: true, after: None },
        status: None,
        media: String::new(),
        body: bytes::Bytes::new(),
    };
    insta::assert_snapshot!(say(DeskError::Teacher(failure)), @r"
    error: teacher `gpt`: connection refused by `127.0.0.1:9`
    2
    ");
    insta::assert_snapshot!(say(DeskError::CircuitOpen { teacher: "gpt".into(), failures: 5, wait_s: 30 }), @r"
    error: teacher `gpt` is left alone for 30 s after 5 calls in a row that may have been billed for nothing
      hint: `tuition audit` lists the unknown calls; `tuition resolve` closes them
    2
    ");
    insta::assert_snapshot!(say(DeskError::Draining), @r"
    error: closing: no new calls are taken
    2
    ");
}

#[test]
fn what_a_store_does() {
    insta::assert_snapshot!(say(StoreError::Unwritable("no space left on device".into())), @r"
    error: the store cannot be written, so nothing is bought: no space left on device
      hint: make room, then start again; what is known is still served
    2
    ");
    insta::assert_snapshot!(say(StoreError::Unreadable("`journal`: the frame at byte 7 is damaged".into())), @r"
    error: the store cannot be read: `journal`: the frame at byte 7 is damaged
    2
    ");
    insta::assert_snapshot!(say(DeskError::Store(StoreError::Gone("`desk.sock`".into()))), @r"
    error: the process that owns the store went away: `desk.sock`
      hint: start the command again; nothing that was promised is lost
    2
    ");
    insta::assert_snapshot!(say(StoreError::Contradiction("hold 7 is settled".into())), @r"
    error: hold 7 is settled
    2
    ");
}

#[test]
fn what_the_command_line_and_the_configuration_do() {
    let near = ConfigError::NoSuch { what: "teacher", name: "gtp".into(), near: Some("gpt".into()) };
    insta::assert_snapshot!(say(near), @r"
    error: there is no teacher `gtp` in the configuration
      hint: did you mean `gpt`?
    2
    ");
    let none = ConfigError::NoSuch { what: "teacher", name: "gpt".into(), near: None };
    insta::assert_snapshot!(say(none), @r"
    error: there is no teacher `gpt` in the configuration
      hint: add a [[teacher]] to the configuration
    2
    ");
    let secret = ConfigError::Secret { teacher: "gpt".into(), variable: "OPENAI_API_KEY".into() };
    insta::assert_snapshot!(say(secret), @r"
    error: teacher `gpt` needs the environment variable `OPENAI_API_KEY`, which is not set
      hint: set it before the command: `export OPENAI_API_KEY=...`
    2
    ");
    let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
    insta::assert_snapshot!(say(ConfigError::Read { file: "x.toml".into(), source: missing }), @r"
    error: the configuration `x.toml` cannot be read: entity not found
    2
    ");
    let taken = std::io::Error::from(std::io::ErrorKind::AddrInUse);
    insta::assert_snapshot!(say(Trouble::io("cannot listen on", "127.0.0.1:8080", taken)), @r"
    error: cannot listen on `127.0.0.1:8080`: address in use
    2
    ");
    insta::assert_snapshot!(say(Trouble::usage("there is no hold 7", "`tuition audit` lists them")), @r"
    error: there is no hold 7
      hint: `tuition audit` lists them
    2
    ");
    let words = Words::of(&Trouble::failed("it broke"));
    assert_eq!(words.json().to_string(), r#"{"error":{"hint":null,"message":"it broke"},"exit":2}"#);
}

#[test]
fn what_the_rooms_of_a_run_do() {
    insta::assert_snapshot!(say(OpenError::Owned("tuition.store".into())), @r"
    error: another process owns the store `tuition.store`
      hint: stop the other process, or work through it
    2
    ");
    let database = StoreUrl::parse("postgres://me:secret@host/db", "".as_ref()).unwrap();
    insta::assert_snapshot!(say(CopyError::Written(database.clone())), @r"
    error: a process writes the store `postgres://me@host/db`: two stores that both buy would each allow the whole budget
      hint: stop whatever buys through it, then copy
    2
    ");
    let away = OpenError::Database { url: database, why: "connection refused".into() };
    insta::assert_snapshot!(say(away), @r"
    error: the store `postgres://me@host/db` cannot be used: connection refused
      hint: does the server run, and may this user make tables in that database?
    2
    ");
    insta::assert_snapshot!(say(SetupError::NoRuntime), @r"
    error: ONNX Runtime is not installed: `tuition setup` installs it
      hint: `ORT_DYLIB_PATH` names the library, where one is installed elsewhere
    2
    ");
    let not_onnx = ModelError::NotOnnx { path: "m.onnx".into(), reason: "it is a text".into() };
    insta::assert_snapshot!(say(not_onnx), @r"
    error: `m.onnx` is not an ONNX model: it is a text
      hint: `path` of the teacher must name an .onnx file
    2
    ");
    insta::assert_snapshot!(say(RecordError::Empty { run: "r".into() }), @r"
    error: the record holds no rows of tensors bought by the run `r`
      hint: buy some through `tuition serve` with the header `x-tuition-run`, or with `tuition label --run`
    2
    ");
    insta::assert_snapshot!(say(TrainError::OtherRun { path: "s.safetensors".into() }), @r"
    error: checkpoint `s.safetensors` belongs to a run with other settings or data
      hint: leave out `--resume` to start this run anew, or give it another `name`
    2
    ");
    let refused = DeskError::Refused(Refusal::NoBudget { who: Who::default() });
    assert_eq!(Words::of(&AcquireError::Desk(Box::new(refused)).into()).exit, Exit::Budget);
    let empty = DataError::Empty { path: "d".into(), reason: "no row" };
    insta::assert_snapshot!(say(empty), @r"
    error: the data set `d` is empty: no row
    2
    ");
}
