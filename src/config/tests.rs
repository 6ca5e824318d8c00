//! Bad tuition.toml, row by row, and the exact message that answers it.

use tuition_trainer::Processor;
use tuition_trainer::hidden::Layers;

use super::*;

const TEACHER: &str = "[[teacher]]\nname = \"gpt\"\napi = \"openai\"\nurl = \"https://api.example.com/v1\"\n";
const PRICE: &str = "[[price]]\nmodel = \"m\"\nfrom = \"2026-01-01\"\ninput = \"0.4\"\noutput = \"1.6\"\n";

fn read(text: &str) -> Result<Config, ConfigError> {
    Config::read(Path::new("tuition.toml"), text)
}

#[track_caller]
fn check(text: &str, expected: &str) {
    let error = read(text).expect_err(expected);
    assert_eq!(crate::words::one_line(&error), expected, "{text}");
}

fn pinned(pin: &str) -> String {
    format!("[[key]]\nname = \"a\"\nhash = \"{}\"\n{pin}\n", "0".repeat(64))
}

#[test]
fn what_a_data_set_asks_is_judged() {
    let table = |ask: &str| {
        format!(
            "[[teacher]]\nname = \"d\"\napi = \"open-inference\"\nurl = \"http://localhost:1\"\nask = {ask}\n"
        )
    };
    let config =
        read(&table(r#"{ input = "x", datatype = "FP32", shape = [8, 8], outputs = ["y"] }"#)).unwrap();
    let TeacherKind::Http { ask, .. } = &config.teachers[0].kind else { panic!("it is asked over HTTP") };
    assert_eq!(ask.input.as_ref().unwrap().shape, [None, Some(8), Some(8)]);
    assert_eq!((&ask.model, &ask.outputs), (&None, &vec!["y".to_owned()]));
    check(
        &table(r#"{ input = "x", datatype = "float" }"#),
        "tuition.toml: `teacher.d.ask.datatype`: `float` is none that a data set fills, such as `FP32`",
    );
    check(
        &table(r#"{ datatype = "FP32" }"#),
        "tuition.toml: `teacher.d.ask`: `input` and `datatype` go together; `shape` (of one row) goes with them",
    );
    check(
        &format!("{TEACHER}ask = {{ model = \"m\" }}\n"),
        "tuition.toml: `teacher.gpt.ask`: rows of a data set are asked of api `open-inference`",
    );
}

#[test]
fn the_pinned_example_is_read() {
    let text = r#"
        [store]
        url = "sled:./tuition.store"
        [serve]
        listen = "127.0.0.1:8080"
        share = "all"
        unbudgeted = false
        hold_wait_s = 30
        [[teacher]]
        name = "gpt"
        api = "openai"
        url = "https://api.example.com/v1"
        key_env = "OPENAI_API_KEY"
        models = ["*"]
        headers = { "OpenAI-Beta" = "x", "x-gate" = "env:GATE" }
        revision = "2026-11"
        timeout_s = 120
        retries = 2
        [[teacher]]
        name = "digits"
        api = "onnx"
        path = "digits.onnx"
        device = "cuda"
        hidden = { tensors = ["relu1"], width = 8 }
        [[budget]]
        name = "pilot"
        calls = 5000
        usd = "20.00"
        run = "sentiment-1"
        window = "forever"
        [[price]]
        model = "gpt-4.1-mini"
        from = "2026-01-01"
        input = "0.40"
        output = "1.60"
        request = "0"
        max_input_tokens = 1047576
        max_output_tokens = 32768
        [[key]]
        name = "alice"
        hash = "0000000000000000000000000000000000000000000000000000000000000001"
    "#;
    let config = Config::read(Path::new("there/tuition.toml"), text).unwrap();
    assert_eq!(config.store, StoreUrl::Sled("there/tuition.store".into()));
    assert_eq!(
        config.teacher("digits").unwrap().kind,
        TeacherKind::Onnx {
            path: "there/digits.onnx".into(),
            hidden: Some(Hidden { layers: Layers::Named(vec!["relu1".into()]), width: 8, seed: 0 }),
            device: Some(Processor::Cuda),
        }
    );
    assert_eq!(config.budgets[0].limit.usd.unwrap().to_string(), "20.000000000");
    assert_eq!(config.budgets[0].scope.run.as_deref(), Some("sentiment-1"));
    assert_eq!(config.keys[0].name(), "alice");
    let environment = |name: &str| (name != "GATE").then(|| format!("of {name}"));
    let none = |_: &Path| Err("is not there".to_owned());
    let error = config.teachers[0].secrets(environment, none).map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), "teacher `gpt` needs the environment variable `GATE`, which is not set");
    let secrets = config.teachers[0].secrets(|name| Some(format!("of {name}")), none).unwrap();
    assert_eq!(secrets.key.as_deref(), Some("of OPENAI_API_KEY"));
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(secrets.headers, [header("openai-beta", "x"), header("x-gate", "of GATE")]);
}

#[test]
fn secrets_come_from_variables_and_files_and_are_never_printed() {
    let text = format!(
        "{TEACHER}key_file = \"the.key\"\nproxy = \"file:/proxy.url\"\nheaders = {{ a = \"file:x\", b = \"env:B\", c = \"sk-plain\" }}\n"
    );
    let config = Config::read(Path::new("there/tuition.toml"), &text).unwrap();
    let file = |path: &Path| Ok(format!("in {}", path.display()));
    let secrets = config.teachers[0].secrets(|name| Some(format!("of {name}")), file).unwrap();
    assert_eq!(secrets.key.as_deref(), Some("in there/the.key"));
    assert_eq!(secrets.proxy.as_deref(), Some("in /proxy.url"));
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let headers = [header("a", "in there/x"), header("b", "of B"), header("c", "sk-plain")];
    assert_eq!(secrets.headers, headers);
    let printed = format!("{config:?}");
    assert!(!printed.contains("sk-plain") && printed.contains("the.key"), "{printed}");
    let missing = |_: &Path| Err("is empty".to_owned());
    let error = config.teachers[0].secrets(|_| None, missing).map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), "teacher `gpt` needs the file `there/the.key`, which is empty");
}

#[test]
fn nothing_written_is_the_defaults() {
    let config = read("").unwrap();
    assert_eq!(config.store, StoreUrl::Sled("./tuition.store".into()));
    assert_eq!(config.serve.listen.to_string(), "127.0.0.1:8080");
    assert_eq!((config.serve.unbudgeted, config.serve.hold_wait.as_secs()), (false, 30));
    assert!(config.teachers.is_empty() && config.budgets.is_empty() && config.keys.is_empty());
}

#[test]
fn an_unknown_key_is_named_with_the_nearest() {
    check("[[budgets]]\n", "tuition.toml line 1: unknown key `budgets`; did you mean `budget`?");
    check(
        "[serve]\nlisten = \"127.0.0.1:1\"\nhold_wait = 3\n",
        "tuition.toml line 3: unknown key `hold_wait`; did you mean `hold_wait_s`?",
    );
    check(
        &format!("{TEACHER}keyenv = \"A\"\n"),
        "tuition.toml line 5: unknown key `keyenv`; did you mean `key_env`?",
    );
    check("[store]\nqqq = 1\n", "tuition.toml line 2: unknown key `qqq`; known here: `url`");
    check("[store]\n\"a`b\" = 1\n", "tuition.toml line 2: unknown key `a`b`; known here: `url`");
}

#[test]
fn a_value_of_the_wrong_form_is_shown() {
    check(
        "[[budget]]\nname = \"b\"\nusd = 20.0\n",
        "tuition.toml line 3: invalid type: floating point `20.0`, expected dollars as a decimal string, such as \"20.00\", in `usd = 20.0`",
    );
    check(
        "[[budget]]\nname = \"b\"\ncalls = -5\n",
        "tuition.toml line 3: invalid value: integer `-5`, expected u64, in `calls = -5`",
    );
    check("[[teacher]]\nname = \"gpt\"\n", "tuition.toml line 1: missing field `api`, in `[[teacher]]`");
    check(
        "[serve]\nlisten = \"x\"\nlisten = \"y\"\n",
        "tuition.toml line 3: duplicate key, in `listen = ...`",
    );
    // Somebody may have written a secret in a place where it does not belong.
    check(
        &format!("{TEACHER}timeout_s = \"sk-secret\"\n"),
        "tuition.toml line 5: invalid type: a string, expected u64, in `timeout_s = ...`",
    );
    for (line, shown) in
        [("key_env = sk-secret", "key_env = ..."), ("sk-secret", "..."), ("x = 'sk-secret", "x = ...")]
    {
        let said = crate::words::one_line(&read(&format!("{TEACHER}{line}\n")).unwrap_err());
        assert!(!said.contains("sk-secret") && said.ends_with(&format!("in `{shown}`")), "{said}");
    }
}

#[test]
fn a_secret_in_the_wrong_place_is_refused_and_not_repeated() {
    check(
        &format!("{TEACHER}key_env = \"A\"\nkey_file = \"b\"\n"),
        "tuition.toml: `teacher.gpt.key_file`: there is a `key_env` already",
    );
    check(
        &format!("{TEACHER}key_file = \"\"\n"),
        "tuition.toml: `teacher.gpt.key_file`: this is the path of a file that holds the secret",
    );
    check(
        &format!("{TEACHER}proxy = \"http://user:secret@proxy\"\n"),
        "tuition.toml: `teacher.gpt.proxy`: a URL with a password is a secret; use `env:NAME` or `file:PATH`",
    );
    check(
        &format!("{TEACHER}proxy = \"socks\"\n"),
        "tuition.toml: `teacher.gpt.proxy`: is no http or https URL",
    );
    let (zero, key) =
        ("0".repeat(64), |name: &str, hash: &str| format!("[[key]]\nname = \"{name}\"\nhash = \"{hash}\"\n"));
    check(
        &format!("{}{}", key("a", &zero), key("b", &zero)),
        "tuition.toml: `key.b.hash`: is the key of `a` as well: nobody could tell whose request it is",
    );
}

#[test]
fn a_value_that_does_not_do_is_named_by_its_key() {
    let teacher = |more: &str| format!("[[teacher]]\nname = \"gpt\"\n{more}\n");
    for (text, expected) in [
        (
            "[store]\nurl = \"postgres://me:secret@host\"\n".to_owned(),
            "tuition.toml: `store.url`: the URL of the database cannot be read: it names no database; use `postgres://USER@HOST/DATABASE`",
        ),
        (
            "[store]\nurl = \"x\"\n".into(),
            "tuition.toml: `store.url`: `x` is no store; use `sled:FOLDER` or `postgres://USER@HOST/DATABASE`",
        ),
        ("[store]\nurl = \"sled:\"\n".into(), "tuition.toml: `store.url`: `sled:` names no folder"),
        (
            "[serve]\nlisten = \"localhost\"\n".into(),
            "tuition.toml: `serve.listen`: `localhost` is no address and port, such as `127.0.0.1:8080`",
        ),
        (
            "[serve]\nshare = \"some\"\n".into(),
            "tuition.toml: `serve.share`: `some` is neither `all` nor `key`",
        ),
        (
            "[serve]\nshare = \"key\"\n".into(),
            "tuition.toml: `serve.share`: `key` needs at least one [[key]] to tell clients apart",
        ),
        (
            teacher("api = \"opnai\"\nurl = \"https://x\""),
            "tuition.toml: `teacher.gpt.api`: `opnai` is none of `openai`, `open-inference`, `onnx`; did you mean `openai`?",
        ),
        (
            teacher("api = \"anthropic\"\nurl = \"https://x\""),
            "tuition.toml: `teacher.gpt.api`: `anthropic` is not supported yet; use `openai`, `open-inference`, `onnx`",
        ),
        (teacher("api = \"openai\""), "tuition.toml: `teacher.gpt.url`: is missing"),
        (
            teacher("api = \"openai\"\nurl = \"api.example.com/v1\""),
            "tuition.toml: `teacher.gpt.url`: `api.example.com/v1` is no URL: relative URL without a base",
        ),
        (
            teacher("api = \"openai\"\nurl = \"ftp://x\""),
            "tuition.toml: `teacher.gpt.url`: `ftp://x` is neither http nor https",
        ),
        (
            teacher("api = \"openai\"\nurl = \"https://me:secret@x\""),
            "tuition.toml: `teacher.gpt.url`: a URL must not hold a user or a password; use `key_env`",
        ),
        (teacher("api = \"onnx\""), "tuition.toml: `teacher.gpt.path`: is missing: which model file?"),
        (
            teacher("api = \"onnx\"\nurl = \"https://x\""),
            "tuition.toml: `teacher.gpt.url`: api `onnx` has a `path`",
        ),
        (
            teacher("api = \"onnx\"\npath = \"m.onnx\"\nhidden = { every = 0 }"),
            "tuition.toml: `teacher.gpt.hidden`: either `tensors = [\"NAME\", ...]`, or `every = K` for every K-th activation, from 1 on",
        ),
        (
            teacher("api = \"onnx\"\npath = \"m.onnx\"\nhidden = { every = 1, width = 0 }"),
            "tuition.toml: `teacher.gpt.hidden.width`: 0 is not between 1 and 4096",
        ),
        (
            teacher("api = \"onnx\"\npath = \"m.onnx\"\ndevice = \"gpu\""),
            "tuition.toml: `teacher.gpt.device`: `gpu` is none of `auto`, `cpu` and `cuda`",
        ),
        (
            format!("{TEACHER}device = \"cuda\""),
            "tuition.toml: `teacher.gpt.device`: says what a model that runs here runs on: api `onnx`",
        ),
        (
            format!("{TEACHER}hidden = {{ every = 1 }}"),
            "tuition.toml: `teacher.gpt.hidden`: hidden tensors are those of a model that runs here: api `onnx`",
        ),
        (format!("{TEACHER}path = \"x\""), "tuition.toml: `teacher.gpt.path`: api `openai` has a `url`"),
        (
            format!("{TEACHER}key_env = \"sk-123\""),
            "tuition.toml: `teacher.gpt.key_env`: this is the name of an environment variable, never the secret itself",
        ),
        (
            format!("{TEACHER}timeout_s = 0"),
            "tuition.toml: `teacher.gpt.timeout_s`: 0 is not between 1 and 86400",
        ),
        (format!("{TEACHER}retries = 21"), "tuition.toml: `teacher.gpt.retries`: 21 is more than 20"),
        (
            format!("{TEACHER}models = []"),
            "tuition.toml: `teacher.gpt.models`: name at least one model, or `*`",
        ),
        (
            format!("{TEACHER}headers = {{ x-tuition-run = \"a\" }}"),
            "tuition.toml: `teacher.gpt.headers.x-tuition-run`: headers of tuition itself are not sent to a teacher",
        ),
        (format!("{TEACHER}{TEACHER}"), "tuition.toml: `teacher.gpt`: the name stands twice"),
        (
            "[[budget]]\nname = \"b\"\n".into(),
            "tuition.toml: `budget.b`: limits nothing: give `calls`, `tokens` or `usd`",
        ),
        (
            "[[budget]]\nname = \"b\"\ncalls = 1\nwindow = \"week\"\n".into(),
            "tuition.toml: `budget.b.window`: `week` is none of `forever`, `day`, `month`",
        ),
        (
            format!("{TEACHER}[[budget]]\nname = \"b\"\ncalls = 1\nteacher = \"gtp\"\n"),
            "tuition.toml: `budget.b.teacher`: there is no [[teacher]] of the name `gtp`; did you mean `gpt`?",
        ),
        (
            "[[budget]]\nname = \"b\"\ncalls = 1\nkey = \"alice\"\n".into(),
            "tuition.toml: `budget.b.key`: there is no [[key]] of the name `alice`",
        ),
        ("[[budget]]\nname = \"b\"\nusd = \"-1\"\n".into(), "tuition.toml: `budget.b.usd`: `-1` is negative"),
        (
            "[[budget]]\nname = \"b\"\nusd = \"1\"\n".into(),
            "tuition.toml: `budget.b.usd`: limits dollars, but there is no [[price]]: every call would be refused",
        ),
        (
            format!("{TEACHER}models = [\"m\", \"n\"]\n{PRICE}[[budget]]\nname = \"b\"\nusd = \"1\"\n"),
            "tuition.toml: `budget.b.usd`: limits dollars, but model `n` of teacher `gpt` has no [[price]]: it would be refused",
        ),
        (format!("{PRICE}{PRICE}"), "tuition.toml: `price`: model `m` has two prices from 2026-01-01"),
        (
            "[[price]]\nmodel = \"m\"\nfrom = \"2026-01-01\"\ninput = \"1\"\n".into(),
            "tuition.toml: `price.m.output`: is missing; write \"0\" where output is free",
        ),
        (
            "[[price]]\nmodel = \"m\"\nfrom = \"yesterday\"\nrequest = \"1\"\n".into(),
            "tuition.toml: `price.m.from`: `yesterday` is no day of the form YYYY-MM-DD from 1970 on",
        ),
        (
            "[[key]]\nname = \"alice\"\nhash = \"abc\"\n".into(),
            "tuition.toml: `key.alice.hash`: is not the 64 hex digits that `tuition key new alice` prints",
        ),
        (
            "[serve]\nalert_url = \"hooks.example/T0\"\n".into(),
            "tuition.toml: `serve.alert_url`: is no http or https URL",
        ),
        (
            pinned("runs = []"),
            "tuition.toml: `key.a.runs`: is empty: the key could ask for nothing; leave it out to allow all",
        ),
        (
            format!("{TEACHER}{}", pinned("teachers = [\"gtp\"]")),
            "tuition.toml: `key.a.teachers`: there is no [[teacher]] of the name `gtp`; did you mean `gpt`?",
        ),
        (
            pinned("mode = \"read\""),
            "tuition.toml: `key.a.mode`: `read` is none of `record`, `replay`, `refresh`",
        ),
    ] {
        check(&text, expected);
    }
}
