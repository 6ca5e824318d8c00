//! What a sweep came to, for people: tables for the terminal, as markdown and as a page with plots.
//!
//! Must not compute anything but where ink goes. Invariant: the page has no scripts or links, and every text from outside
//! is escaped; the three forms show the same tables.

use tuition_trainer::html::{document, escape};
use tuition_trainer::plot::{Plot, Point, alone};
use tuition_trainer::{Measure, Measures};

use super::choice::Choice;
use super::forest::Forest;
use super::table::{Bound, Needed, Race, Results, Row};
use crate::print;

/// A table with its title.
struct Table {
    title: String,
    heads: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(title: String, heads: &[&str], rows: impl Iterator<Item = Vec<String>>) -> Self {
        Self { title, heads: heads.iter().map(|head| (*head).to_owned()).collect(), rows: rows.collect() }
    }
}

fn tables(results: &Results) -> Vec<Table> {
    let mut tables = vec![quality(results)];
    if let Some(baseline) = &results.baseline {
        tables.push(against(results, baseline));
        tables.extend(results.calls_needed.iter().map(|race| calls_needed(race, baseline)));
    }
    tables.push(Table::new(
        "Choosing inputs, minus the same method on inputs drawn at random".to_owned(),
        &["method", "at random", "calls", "seeds", "accuracy", "agreement", "better"],
        results.choices.iter().map(choice),
    ));
    tables.retain(|table| !table.rows.is_empty());
    tables
}

fn quality(results: &Results) -> Table {
    let title = "Quality".to_owned();
    let rows = results.table.iter();
    if rows.clone().all(|row| row.usd.is_none()) {
        let heads = ["method", "calls", "seeds", "accuracy", "agreement", "ECE", "loss"];
        return Table::new(title, &heads, rows.map(|row| scores(row, &row.test)));
    }
    let heads = ["method", "calls", "dollars", "seeds", "accuracy", "agreement", "ECE", "loss"];
    let rows = rows.map(|row| {
        let mut cells = scores(row, &row.test);
        cells.insert(2, row.usd.map_or_else(|| "-".to_owned(), |usd| usd.to_string()));
        cells
    });
    Table::new(title, &heads, rows)
}

fn against(results: &Results, baseline: &str) -> Table {
    let rows = results.table.iter().filter_map(|row| Some(scores(row, row.against_baseline.as_ref()?)));
    Table::new(
        format!("The same minus `{baseline}`, with the same calls and seeds"),
        &["method", "calls", "seeds", "accuracy", "agreement", "ECE", "loss"],
        rows,
    )
}

fn calls_needed(race: &Race, baseline: &str) -> Table {
    let Race { by, budget, target, methods } = race;
    let title = format!("Calls needed for the {by} that `{baseline}` reaches with {budget} ({target:.4})");
    let rows = methods.iter().map(|method| {
        let (calls, factor) = needed(method);
        vec![method.method.clone(), calls, factor]
    });
    Table::new(title, &["method", "calls", "saved"], rows)
}

/// Who, with how many calls and seeds, and the measures.
fn scores(row: &Row, measures: &Measures) -> Vec<String> {
    let seeds = measures.loss.values.len().max(measures.agreement.values.len());
    let mut cells = vec![row.method.clone(), row.budget.to_string(), seeds.to_string()];
    cells.extend([&measures.accuracy, &measures.agreement, &measures.ece, &measures.loss].map(measure));
    cells
}

/// A difference, and whether the seeds show it.
fn choice(choice: &Choice) -> Vec<String> {
    let Choice { method, random, budget, difference, better_by, worse_by } = choice;
    let seeds = difference.accuracy.values.len().max(difference.agreement.values.len());
    let better = match (better_by.join(", "), worse_by.join(", ")) {
        (better, worse) if better.is_empty() && worse.is_empty() => "not shown".to_owned(),
        (better, worse) if worse.is_empty() => format!("by {better}"),
        (better, worse) if better.is_empty() => format!("worse by {worse}"),
        (better, worse) => format!("by {better}; worse by {worse}"),
    };
    let [accuracy, agreement] = [&difference.accuracy, &difference.agreement].map(measure);
    vec![method.clone(), random.clone(), budget.to_string(), seeds.to_string(), accuracy, agreement, better]
}

/// Mean and half the interval.
fn measure(measure: &Measure) -> String {
    match (measure.mean, measure.ci95) {
        (Some(mean), Some(half)) => format!("{mean:.4} ± {half:.4}"),
        (Some(mean), None) => format!("{mean:.4}"),
        (None, _) => "-".to_owned(),
    }
}

/// Calls, and the baseline's calls over them.
fn needed(needed: &Needed) -> (String, String) {
    let Needed { bound, calls, factor, .. } = needed;
    match bound {
        Bound::About => (format!("{calls:.0}"), format!("{factor:.2} x")),
        Bound::AtMost => (format!("{calls:.0} or fewer"), format!("{factor:.2} x or more")),
        Bound::MoreThan => (format!("more than {calls:.0}"), format!("less than {factor:.2} x")),
    }
}

/// What is said under the tables.
fn notes(results: &Results) -> Vec<String> {
    let mut notes = vec![
        "Means over seeds ± half of the 95 % interval (Student's t), on the part that is held out, by which nothing was \
         chosen. A seed draws the order of buying and the student's first weights."
            .to_owned(),
    ];
    if results.table.iter().any(|row| row.usd.is_some()) {
        notes.push(
            "Dollars are what the answers of one cell cost that it learns from; cells share them.".to_owned(),
        );
    }
    if !results.calls_needed.is_empty() {
        notes.push(
            "Calls needed: where the means first reach it, linear in the logarithm of the calls between two budgets.".to_owned(),
        );
    }
    notes.extend(results.checkpoints.iter().map(|(method, count)| {
        let times = count + 1;
        format!("`{method}` asks earlier checkpoints as well: it buys {times} answers for each of its calls.")
    }));
    if !results.unfinished.is_empty() {
        let names: Vec<String> = results.unfinished.iter().map(|name| format!("`{name}`")).collect();
        notes.push(format!("Not finished, and not in these numbers: {}.", names.join(", ")));
    }
    notes
}

/// For a terminal.
pub(crate) fn text(results: &Results) -> String {
    let table = |table: Table| {
        let heads: Vec<&str> = table.heads.iter().map(String::as_str).collect();
        format!("{}\n{}", table.title, print::table(&heads, &table.rows))
    };
    tables(results).into_iter().map(table).collect::<Vec<_>>().join("\n\n")
}

/// Markdown to paste.
pub(crate) fn markdown(results: &Results) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let table = |table: &Table| {
        let rule = format!("|{}\n", " --- |".repeat(table.heads.len()));
        let rows: String = table.rows.iter().map(|row| line(row)).collect();
        format!("## {}\n\n{}{rule}{rows}", table.title, line(&table.heads))
    };
    let drawings: String =
        plots(results).iter().map(|plot| format!("![{}]({})\n\n", plot.title, plot.file)).collect();
    let tables: Vec<String> = tables(results).iter().map(table).collect();
    format!("# {}\n\n{drawings}{}\n{}\n", results.sweep, tables.join("\n"), notes(results).join("\n\n"))
}

/// A page that is readable offline.
pub(crate) fn html(results: &Results) -> String {
    let cells = |tag: &str, cells: &[String]| {
        let cells: String = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let table = |table: &Table| {
        let rows: String = table.rows.iter().map(|row| cells("td", row)).collect();
        format!("<h2>{}</h2>\n<table>{}{rows}</table>\n", escape(&table.title), cells("th", &table.heads))
    };
    let plots: String =
        plots(results).iter().map(|plot| format!("<h2>{}</h2>\n{}\n", plot.title, plot.svg)).collect();
    let tables: String = tables(results).iter().map(table).collect();
    let notes: String = notes(results).iter().map(|note| format!("<p>{}</p>\n", escape(note))).collect();
    document(&results.sweep, &format!("{plots}{tables}{notes}"))
}

/// A plot, and the name of the file that it is beside the tables in markdown.
pub(crate) struct Drawing {
    title: String,
    pub(crate) file: String,
    svg: String,
}

impl Drawing {
    pub(super) fn new(title: String, svg: String) -> Self {
        let file = format!("{}.svg", title.to_lowercase().replace(' ', "-"));
        Self { title, file, svg }
    }

    /// What goes into that file.
    pub(crate) fn alone(&self) -> String {
        alone(&self.svg)
    }
}

type Pick = fn(&Measures) -> &Measure;

/// What is drawn of each method.
const MEASURES: [(&str, Pick); 2] =
    [("Accuracy", |measures| &measures.accuracy), ("Agreement", |measures| &measures.agreement)];

/// Whether some sweep's plot has this file name. Every other file beside the tables is its owner's.
pub(crate) fn is_plot(file: &str) -> bool {
    let of = |what: &str| {
        let rest = file.strip_prefix(&what.to_lowercase())?.strip_suffix(".svg")?;
        Some(rest.starts_with("-against-") || rest.starts_with("-minus-"))
    };
    MEASURES.iter().any(|(what, _)| of(what) == Some(true))
}

/// Quality against calls, and against dollars where every row has a price that is no gift; where there is one budget and a
/// baseline, what each method has more than that.
pub(crate) fn plots(results: &Results) -> Vec<Drawing> {
    let one_budget = results.table.windows(2).all(|pair| pair[0].budget == pair[1].budget);
    let draw = |(what, pick): (&str, Pick)| match &results.baseline {
        Some(baseline) if one_budget => differences(results, what, pick, baseline).into_iter().collect(),
        _ => curves(results, what, pick),
    };
    MEASURES.into_iter().flat_map(draw).collect()
}

/// What each method has more than the baseline.
fn differences(results: &Results, what: &str, pick: Pick, baseline: &str) -> Option<Drawing> {
    let title = format!("{what} minus {baseline}");
    let lines = results.table.iter();
    let lines = lines.filter_map(|row| Some((row.method.as_str(), pick(row.against_baseline.as_ref()?))));
    let svg = Forest { title: &title, lines: lines.collect() }.svg()?;
    Some(Drawing::new(title, svg))
}

fn curves(results: &Results, what: &str, pick: Pick) -> Vec<Drawing> {
    let dollars = |row: &Row| row.usd.map(|usd| usd.nanos()).filter(|nanos| *nanos > 0);
    let priced = results.table.iter().all(|row| dollars(row).is_some());
    let mut names: Vec<&str> = vec![];
    for row in &results.table {
        if !names.contains(&row.method.as_str()) {
            names.push(&row.method);
        }
    }
    let mut plots = Vec::new();
    for money in [false, true] {
        if money && !priced {
            continue;
        }
        let point = |row: &Row| {
            let measure = pick(&row.test);
            // A place on paper, no money.
            let x = if money { dollars(row)? as f64 / 1e9 } else { row.budget as f64 };
            Some(Point { x, y: measure.mean?, half: measure.ci95 })
        };
        let curve = |name: &&'_ str| -> Vec<Point> {
            results.table.iter().filter(|row| row.method == *name).filter_map(point).collect()
        };
        let title = format!("{what} against {}", if money { "dollars" } else { "calls" });
        let plot = Plot {
            title: &title,
            across: if money { "dollars for the answers of one cell" } else { "calls" },
            curves: names.iter().map(|name| (*name, curve(name))).collect(),
            level: results.teacher_accuracy.filter(|_| what == "Accuracy").map(|level| ("teacher", level)),
        };
        plots.extend(plot.svg().map(|svg| Drawing::new(title, svg)));
    }
    plots
}

#[cfg(test)]
mod tests {
    use tuition_ledger::Usd;

    use super::*;

    fn results() -> Results {
        let measures = |values: &[f64]| Measures {
            accuracy: Measure::of(values.to_vec()),
            agreement: Measure::of(values.to_vec()),
            ece: Measure::of(vec![]),
            loss: Measure::of(values.to_vec()),
        };
        let row = |method: &str, budget: u64, against: Option<Measures>| Row {
            method: method.to_owned(),
            budget,
            seeds: vec![0, 1],
            usd: Some(Usd::from_nanos(budget * 1_000_000)),
            test: measures(&[0.5, 0.75]),
            against_baseline: against,
        };
        let needed = |method: &str, bound, calls: f64| Needed {
            method: method.into(),
            bound,
            calls,
            factor: 250.0 / calls,
        };
        Results {
            sweep: "s<1>".into(),
            baseline: Some("kd".into()),
            cells: vec![],
            unfinished: vec!["s.ckd.250.s1".into()],
            table: vec![
                row("kd", 100, None),
                row("kd", 250, None),
                row("ckd", 100, Some(measures(&[0.25, 0.25]))),
            ],
            calls_needed: vec![Race {
                by: "accuracy",
                budget: 250,
                target: 0.625,
                methods: vec![
                    needed("kd", Bound::About, 250.0),
                    needed("ckd", Bound::AtMost, 100.0),
                    needed("none", Bound::MoreThan, 250.0),
                ],
            }],
            choices: vec![Choice {
                method: "margin".into(),
                random: "kd".into(),
                budget: 100,
                difference: measures(&[0.25, 0.25]),
                better_by: vec!["agreement"],
                worse_by: vec!["accuracy"],
            }],
            checkpoints: [("progressive".to_owned(), 2)].into(),
            teacher_accuracy: Some(0.9),
        }
    }

    #[test]
    fn the_tables_can_be_pasted() {
        insta::assert_snapshot!(markdown(&results()), @r"
        # s<1>

        ![Accuracy against calls](accuracy-against-calls.svg)

        ![Accuracy against dollars](accuracy-against-dollars.svg)

        ![Agreement against calls](agreement-against-calls.svg)

        ![Agreement against dollars](agreement-against-dollars.svg)

        ## Quality

        | method | calls | dollars | seeds | accuracy | agreement | ECE | loss |
        | --- | --- | --- | --- | --- | --- | --- | --- |
        | kd | 100 | 0.100000000 | 2 | 0.6250 ± 1.5883 | 0.6250 ± 1.5883 | - | 0.6250 ± 1.5883 |
        | kd | 250 | 0.250000000 | 2 | 0.6250 ± 1.5883 | 0.6250 ± 1.5883 | - | 0.6250 ± 1.5883 |
        | ckd | 100 | 0.100000000 | 2 | 0.6250 ± 1.5883 | 0.6250 ± 1.5883 | - | 0.6250 ± 1.5883 |

        ## The same minus `kd`, with the same calls and seeds

        | method | calls | seeds | accuracy | agreement | ECE | loss |
        | --- | --- | --- | --- | --- | --- | --- |
        | ckd | 100 | 2 | 0.2500 ± 0.0000 | 0.2500 ± 0.0000 | - | 0.2500 ± 0.0000 |

        ## Calls needed for the accuracy that `kd` reaches with 250 (0.6250)

        | method | calls | saved |
        | --- | --- | --- |
        | kd | 250 | 1.00 x |
        | ckd | 100 or fewer | 2.50 x or more |
        | none | more than 250 | less than 1.00 x |

        ## Choosing inputs, minus the same method on inputs drawn at random

        | method | at random | calls | seeds | accuracy | agreement | better |
        | --- | --- | --- | --- | --- | --- | --- |
        | margin | kd | 100 | 2 | 0.2500 ± 0.0000 | 0.2500 ± 0.0000 | by agreement; worse by accuracy |

        Means over seeds ± half of the 95 % interval (Student's t), on the part that is held out, by which nothing was chosen. A seed draws the order of buying and the student's first weights.

        Dollars are what the answers of one cell cost that it learns from; cells share them.

        Calls needed: where the means first reach it, linear in the logarithm of the calls between two budgets.

        `progressive` asks earlier checkpoints as well: it buys 3 answers for each of its calls.

        Not finished, and not in these numbers: `s.ckd.250.s1`.
        ");
    }

    #[test]
    fn the_page_has_plots_and_no_scripts() {
        let page = html(&results());
        assert_eq!(page.matches("<svg").count(), 4, "{page}");
        assert_eq!(page.matches("<table>").count(), 4, "{page}");
        assert!(page.contains("s&lt;1&gt;") && !page.contains("<script") && !page.contains("http"), "{page}");
        let mut unpriced = results();
        unpriced.table[1].usd = None;
        assert_eq!(html(&unpriced).matches("<svg").count(), 2);
    }

    #[test]
    fn with_one_budget_methods_are_held_against_the_baseline() {
        let mut results = results();
        results.table.retain(|row| row.budget == 100);
        let files: Vec<String> = plots(&results).into_iter().map(|plot| plot.file).collect();
        assert_eq!(files, ["accuracy-minus-kd.svg", "agreement-minus-kd.svg"]);
        results.baseline = None;
        assert_eq!(plots(&results)[0].file, "accuracy-against-calls.svg");
        results.table.clear();
        assert!(plots(&results).is_empty());
    }
}
