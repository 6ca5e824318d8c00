//! SWEEP.toml: which methods, budgets and seeds, over which run file; every cell as a run file of its own.
//!
//! Must not read files or run anything. Invariants: every cell has been judged as `train` judges a run file before this
//! gives anything back; no method changes what all methods share: the data, the teacher, the budgets and the seeds.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};
use tuition_trainer::{ConfigError, RunConfig, nearest, parse_seeds};

use super::cells::Cell;

/// The most cells of one sweep.
const CELLS_MAX: usize = 10_000;

/// What is the sweep's to say, or the same for all methods: a method that says it otherwise is refused.
const SHARED: [(&str, &str); 6] = [
    ("name", ""),
    ("data", ""),
    ("teacher", "name"),
    ("budget", "calls"),
    ("acquire", "seed"),
    ("train", "seeds"),
];

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    name: String,
    run: String,
    budgets: Option<Vec<u64>>,
    seeds: Option<Value>,
    jobs: Option<usize>,
    baseline: Option<String>,
    #[serde(default)]
    method: Vec<MethodTable>,
}

/// A `[[method]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MethodTable {
    name: String,
    /// A method above it, whose `over` lies below its own.
    from: Option<String>,
    #[serde(default)]
    over: Table,
    budgets: Option<Vec<u64>>,
    seeds: Option<Value>,
}

/// A sweep whose cells have been judged.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Sweep {
    /// Its name, and its folder's.
    pub(crate) name: String,
    /// The run file that every cell starts from, as the sweep file names it.
    pub(crate) run: String,
    /// Cells at a time; none: one a core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) jobs: Option<usize>,
    /// The method that the others are held against.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) baseline: Option<String>,
    /// The methods, in the file's order.
    #[serde(rename(serialize = "method"))]
    pub(crate) methods: Vec<Method>,
    /// One for each method, budget and seed; those of one seed and budget stand together.
    #[serde(skip)]
    pub(crate) cells: Vec<Cell>,
}

/// A method: what it changes of the run file, and what it is swept over.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Method {
    /// Its name.
    pub(crate) name: String,
    /// The budgets in calls, ascending.
    pub(crate) budgets: Vec<u64>,
    /// The seeds.
    pub(crate) seeds: Vec<u64>,
    /// Laid over the run file.
    pub(crate) over: Table,
}

/// Why a sweep file cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum SweepError {
    /// It is no TOML, or a value is of the wrong type.
    #[error("{0}")]
    Form(String),
    /// A key that does not exist.
    #[error(transparent)]
    Unknown(ConfigError),
    /// A value that does not do.
    #[error("`{field}` is {value}; it must be {range}")]
    Range {
        /// The key.
        field: String,
        /// What it holds.
        value: String,
        /// What it may hold.
        range: String,
    },
    /// A method without budgets or seeds.
    #[error("method `{method}` has no `{key}`: write them beside its name, or for all methods above them")]
    Missing {
        /// The method.
        method: String,
        /// `budgets` or `seeds`.
        key: String,
    },
    /// A method changes what all methods share.
    #[error("method `{method}` sets `over.{key}`, which is the same for all methods: {instead}")]
    Shared {
        /// The method.
        method: String,
        /// The key.
        key: String,
        /// Where it belongs.
        instead: &'static str,
    },
    /// A cell that would be no run.
    #[error("method `{method}` over the run file `{run}`")]
    Cell {
        /// The method.
        method: String,
        /// The run file.
        run: String,
        /// What is wrong with it.
        #[source]
        source: ConfigError,
    },
}

fn check(fine: bool, field: String, value: String, range: &str) -> Result<(), SweepError> {
    if fine { Ok(()) } else { Err(SweepError::Range { field, value, range: range.to_owned() }) }
}

/// The run file that a sweep file names.
///
/// # Errors
/// It is no sweep file.
pub(crate) fn run_file(text: &str) -> Result<String, SweepError> {
    document(text).map(|document| document.run)
}

fn document(text: &str) -> Result<Document, SweepError> {
    toml::from_str(text).map_err(|error| match ConfigError::of(&error) {
        unknown @ ConfigError::Unknown { .. } => SweepError::Unknown(unknown),
        _ => SweepError::Form(error.to_string().trim_end().to_owned()),
    })
}

impl Sweep {
    /// Reads a sweep file and the text of the run file that it names.
    ///
    /// # Errors
    /// The first thing that is wrong, by its key and its method.
    pub(crate) fn parse(text: &str, run: &str) -> Result<Self, SweepError> {
        let document = document(text)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        let named = |field: &str, name: &str, dots: bool| {
            let fine = !name.is_empty()
                && !name.starts_with('.')
                && name.chars().all(|c| plain(c) || dots && c == '.');
            let range =
                if dots { "letters, digits, `-`, `_` and `.`" } else { "letters, digits, `-` and `_`" };
            check(fine, field.to_owned(), format!("{name:?}"), &format!("{range}, for it names a folder"))
        };
        named("name", &document.name, true)?;
        check(document.jobs != Some(0), "jobs".into(), "0".into(), "1 or more")?;
        let base: Table = run.parse().map_err(|error: toml::de::Error| SweepError::Cell {
            method: document.method.first().map(|method| method.name.clone()).unwrap_or_default(),
            run: document.run.clone(),
            source: ConfigError::Syntax(error.to_string()),
        })?;
        let mut methods: Vec<Method> = Vec::new();
        for table in document.method {
            named("method.name", &table.name, false)?;
            let mut over =
                table.from.map_or_else(|| Ok(Table::new()), |from| above(&methods, &table.name, &from))?;
            merge(&mut over, &table.over);
            let missing = |key: &str| SweepError::Missing { method: table.name.clone(), key: key.to_owned() };
            let method = Method {
                budgets: match (&table.budgets, &document.budgets) {
                    (Some(own), _) => budgets(&format!("method.{}.budgets", table.name), own)?,
                    (None, Some(all)) => budgets("budgets", all)?,
                    (None, None) => return Err(missing("budgets")),
                },
                seeds: match (&table.seeds, &document.seeds) {
                    (Some(own), _) => seeds(&format!("method.{}.seeds", table.name), own)?,
                    (None, Some(all)) => seeds("seeds", all)?,
                    (None, None) => return Err(missing("seeds")),
                },
                over,
                name: table.name,
            };
            shared(&method)?;
            methods.push(method);
        }
        let names: Vec<&str> = methods.iter().map(|method| method.name.as_str()).collect();
        let distinct = names.iter().collect::<BTreeSet<_>>().len() == names.len();
        let fine = !names.is_empty() && distinct;
        check(fine, "method".into(), format!("{names:?}"), "at least one [[method]], each `name` once")?;
        if let Some(baseline) = document.baseline.as_deref().filter(|name| !names.contains(name)) {
            return Err(SweepError::Unknown(ConfigError::Unknown {
                what: "method",
                name: baseline.to_owned(),
                hint: nearest(baseline, names.iter().copied()).map(str::to_owned),
                known: names.join(", "),
            }));
        }
        let count = methods.iter().map(|method| method.budgets.len() * method.seeds.len()).sum::<usize>();
        let most = format!("{CELLS_MAX} cells or fewer: methods times budgets times seeds");
        check(count <= CELLS_MAX, "method".into(), format!("{count} cells"), &most)?;
        let mut sweep = Self {
            name: document.name,
            run: document.run,
            jobs: document.jobs,
            baseline: document.baseline,
            methods,
            cells: vec![],
        };
        for method in &sweep.methods {
            for budget in &method.budgets {
                for seed in &method.seeds {
                    let run = cell(&sweep.name, &base, method, *budget, *seed);
                    let run = run.map_err(|source| SweepError::Cell {
                        method: method.name.clone(),
                        run: sweep.run.clone(),
                        source,
                    })?;
                    sweep.cells.push(Cell { method: method.name.clone(), budget: *budget, seed: *seed, run });
                }
            }
        }
        // What is finished first can be compared first: all methods of a seed and a budget. The sort is stable.
        sweep.cells.sort_by_key(|cell| (cell.seed, cell.budget));
        Ok(sweep)
    }
}

/// What the method that another starts from lays over the run file.
fn above(methods: &[Method], name: &str, from: &str) -> Result<Table, SweepError> {
    let found = methods.iter().find(|method| method.name == from).map(|method| method.over.clone());
    let names: Vec<&str> = methods.iter().map(|method| method.name.as_str()).collect();
    found.ok_or_else(|| SweepError::Range {
        field: format!("method.{name}.from"),
        value: format!("{from:?}"),
        range: if names.is_empty() {
            "absent: no method stands above it".to_owned()
        } else {
            format!("the name of a method above it: {}", names.join(", "))
        },
    })
}

fn budgets(field: &str, list: &[u64]) -> Result<Vec<u64>, SweepError> {
    let sorted: BTreeSet<u64> = list.iter().copied().collect();
    let fine = !sorted.is_empty() && !sorted.contains(&0) && sorted.len() == list.len();
    check(fine, field.to_owned(), format!("{list:?}"), "calls, at least one budget, each once")?;
    Ok(sorted.into_iter().collect())
}

fn seeds(field: &str, value: &Value) -> Result<Vec<u64>, SweepError> {
    let range = "a list, or text such as \"0..4\": at least one seed, each once";
    let found = match value {
        Value::String(text) => parse_seeds(text).ok(),
        Value::Array(list) => {
            list.iter().map(|seed| seed.as_integer().and_then(|seed| seed.try_into().ok())).collect()
        }
        _ => None,
    };
    let found: Vec<u64> = found.unwrap_or_default();
    let distinct = found.iter().collect::<BTreeSet<_>>().len() == found.len();
    check(!found.is_empty() && distinct, field.to_owned(), value.to_string(), range)?;
    Ok(found)
}

/// Refuses a method that changes what all share.
fn shared(method: &Method) -> Result<(), SweepError> {
    for (table, key) in SHARED {
        let inner = method.over.get(table);
        let found = if key.is_empty() { inner } else { inner.and_then(|inner| inner.get(key)) };
        if found.is_some() {
            let instead = match table {
                "name" => "a cell is named after its sweep, method, budget and seed",
                "budget" => "write `budgets` beside the method's name",
                "acquire" | "train" => "write `seeds` beside the method's name",
                _ => "write it into the run file, or make another sweep",
            };
            let dot = if key.is_empty() { "" } else { "." };
            let (method, key) = (method.name.clone(), format!("{table}{dot}{key}"));
            return Err(SweepError::Shared { method, key, instead });
        }
    }
    Ok(())
}

/// The run file of one cell.
fn cell(
    sweep: &str,
    base: &Table,
    method: &Method,
    budget: u64,
    seed: u64,
) -> Result<RunConfig, ConfigError> {
    let mut table = base.clone();
    merge(&mut table, &method.over);
    let name = format!("{sweep}.{}.{budget}.s{seed}", method.name);
    let text = toml::to_string(&table).map_err(|error| ConfigError::Syntax(error.to_string()))?;
    let own = [
        format!("name={:?}", name),
        format!("budget.calls={budget}"),
        format!("acquire.seed={seed}"),
        format!("train.seeds=[{seed}]"),
    ];
    RunConfig::parse(&text, &own)
}

/// Lays `over` over `below`: tables are merged, everything else is replaced, and so is a table that names another `kind`.
fn merge(below: &mut Table, over: &Table) {
    for (key, value) in over {
        match (below.get_mut(key), value) {
            (Some(Value::Table(below)), Value::Table(over))
                if over.get("kind").is_none_or(|kind| below.get("kind") == Some(kind)) =>
            {
                merge(below, over);
            }
            _ => drop(below.insert(key.clone(), value.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "name = \"r\"\n[teacher]\nname = \"t\"\n[data]\nsource = \"record\"\nrun = \"x\"\n[budget]\ncalls = 9\n\
                       [student]\nkind = \"mlp\"\nhidden = [4]\n[method]\nlosses = [{ kind = \"labels\" }]\n[train]\nsteps = 7\n";
    const SWEEP: &str = "name = \"s\"\nrun = \"run.toml\"\nbudgets = [250, 100]\nseeds = \"0..2\"\nbaseline = \"plain\"\n\
                         [[method]]\nname = \"plain\"\n[[method]]\nname = \"kd\"\nover.method.losses = [{ kind = \"kd\" }]\n\
                         over.train.lr = 0.01\nbudgets = [50]\n";

    #[test]
    fn a_cell_is_the_run_file_with_what_its_method_changes() {
        let sweep = Sweep::parse(SWEEP, RUN).unwrap();
        let names: Vec<&str> = sweep.cells.iter().map(|cell| cell.run.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "s.kd.50.s0",
                "s.plain.100.s0",
                "s.plain.250.s0",
                "s.kd.50.s1",
                "s.plain.100.s1",
                "s.plain.250.s1"
            ]
        );
        let run = &sweep.cells[3].run;
        assert_eq!((run.budget.calls, run.acquire.seed, &run.train.seeds), (Some(50), 1, &vec![1]));
        assert_eq!((run.train.lr, run.train.steps, run.method.name()), (0.01, 7, "kd".to_owned()));
        assert_eq!(sweep.cells[1].run.method.name(), "labels");
        // What is written into the sweep's folder is the same sweep.
        assert_eq!(Sweep::parse(&toml::to_string(&sweep).unwrap(), RUN).unwrap(), sweep);
    }

    #[test]
    fn a_method_from_another_changes_what_that_one_changed() {
        let more = "[[method]]\nname = \"kd-long\"\nfrom = \"kd\"\nover.train.steps = 9\n\
                    [[method]]\nname = \"hot\"\nfrom = \"kd-long\"\nover.method.losses = [{ kind = \"kd\", temperature = 9.0 }]\n";
        let sweep = Sweep::parse(&format!("{SWEEP}{more}"), RUN).unwrap();
        let run = |method: &str| &sweep.cells.iter().find(|cell| cell.method == method).unwrap().run;
        let settings =
            ["plain", "kd", "kd-long", "hot"].map(|method| (run(method).train.lr, run(method).train.steps));
        assert_eq!(settings[1..], [(0.01, 7), (0.01, 9), (0.01, 9)]);
        assert_ne!(settings[0].0, 0.01);
        assert_eq!(run("kd-long").method, run("kd").method);
        assert_ne!(run("hot").method, run("kd").method);
        // The budgets are each method's own, or the sweep's.
        assert!(sweep.cells.iter().any(|cell| cell.method == "kd-long" && cell.budget == 250));
        assert_eq!(Sweep::parse(&toml::to_string(&sweep).unwrap(), RUN).unwrap(), sweep);
    }

    #[test]
    fn tables_are_merged_and_another_kind_is_another_table() {
        let check = |over: &str, expected: &str| {
            let mut below: Table =
                "[student]\nkind = \"mlp\"\nhidden = [4]\n[train]\nlr = 1\nsteps = 2".parse().unwrap();
            merge(&mut below, &over.parse().unwrap());
            assert_eq!(below, expected.parse().unwrap(), "{over}");
        };
        let train = "[train]\nlr = 1\nsteps = 2\n";
        check("[student]\nhidden = [8]", &format!("{train}[student]\nkind = \"mlp\"\nhidden = [8]"));
        check("student = { kind = \"mlp\" }", &format!("{train}[student]\nkind = \"mlp\"\nhidden = [4]"));
        check("student = { kind = \"cnn\" }", &format!("{train}[student]\nkind = \"cnn\""));
        check(
            "x = 1\ntrain.lr = 3",
            "x = 1\n[train]\nlr = 3\nsteps = 2\n[student]\nkind = \"mlp\"\nhidden = [4]",
        );
    }

    #[test]
    fn whatever_is_wrong_is_said_with_its_key_and_its_method() {
        let say = |(from, to): (&str, &str)| {
            let error = Sweep::parse(&SWEEP.replace(from, to), RUN).unwrap_err();
            let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
            format!("{error}{}", source.unwrap_or_default())
        };
        let said = [
            ("budgets = [250, 100]", "budgetts = [1]"),
            ("seeds = \"0..2\"", "seeds = \"4..2\""),
            ("seeds = \"0..2\"", ""),
            ("seeds = \"0..2\"", "seeds = [1, 1]"),
            ("budgets = [250, 100]", "budgets = [0]"),
            ("budgets = [50]", "budgets = [5, 5]"),
            ("baseline = \"plain\"", "baseline = \"plian\""),
            ("name = \"kd\"", "name = \"plain\""),
            ("name = \"kd\"", "name = \"k.d\""),
            ("name = \"s\"", "name = \"s/t\""),
            ("name = \"s\"", "name = \"s\"\njobs = 0"),
            ("over.train.lr = 0.01", "over.train.seeds = [1]"),
            ("over.train.lr = 0.01", "over.data.test = 0.5"),
            ("over.train.lr = 0.01", "over.train.stps = 1"),
            ("name = \"kd\"", "name = \"kd\"\nfrom = \"kd\""),
            ("name = \"plain\"\n[", "name = \"plain\"\nfrom = \"kd\"\n["),
            ("kind = \"kd\"", "kind = \"kdd\""),
            ("over.train.lr = 0.01", "over.budget.validation = 2.0"),
        ]
        .map(say)
        // The names that a run file knows are told by its own tests.
        .map(|said| match said.split_once("; known here: ") {
            Some((before, _)) if said.contains("over the run file") => before.to_owned(),
            _ => said,
        });
        insta::assert_snapshot!(said.join("\n"), @r#"
        unknown key `budgetts`, did you mean `budgets`?; known here: name, run, budgets, seeds, jobs, baseline, method
        `seeds` is "4..2"; it must be a list, or text such as "0..4": at least one seed, each once
        method `plain` has no `seeds`: write them beside its name, or for all methods above them
        `seeds` is [1, 1]; it must be a list, or text such as "0..4": at least one seed, each once
        `budgets` is [0]; it must be calls, at least one budget, each once
        `method.kd.budgets` is [5, 5]; it must be calls, at least one budget, each once
        unknown method `plian`, did you mean `plain`?; known here: plain, kd
        `method` is ["plain", "plain"]; it must be at least one [[method]], each `name` once
        `method.name` is "k.d"; it must be letters, digits, `-` and `_`, for it names a folder
        `name` is "s/t"; it must be letters, digits, `-`, `_` and `.`, for it names a folder
        `jobs` is 0; it must be 1 or more
        method `kd` sets `over.train.seeds`, which is the same for all methods: write `seeds` beside the method's name
        method `kd` sets `over.data`, which is the same for all methods: write it into the run file, or make another sweep
        method `kd` over the run file `run.toml`: unknown key `stps`, did you mean `steps`?
        `method.kd.from` is "kd"; it must be the name of a method above it: plain
        `method.plain.from` is "kd"; it must be absent: no method stands above it
        method `kd` over the run file `run.toml`: unknown kind `kdd`, did you mean `kd`?
        method `kd` over the run file `run.toml`: `budget.validation` is 2; it must be 0 to below 1
        "#);
        assert_eq!(run_file("name = 1").unwrap_err().to_string().lines().count(), 5);
    }
}
