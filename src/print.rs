//! The only file that writes to standard output and standard error.
//!
//! Must not know what is printed. Invariant: a reader that went away (a closed pipe) ends the output, not the work.

use std::io::{IsTerminal, Write};

use serde_json::Value;

/// Writes one line to standard output.
pub(crate) fn line(text: &str) {
    // Nobody reads any more: there is nobody to tell either.
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// Writes one JSON object, in one line, to standard output.
pub(crate) fn json(value: &Value) {
    line(&value.to_string());
}

/// Writes one line to standard error.
pub(crate) fn aside(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Whether a person looks at standard error.
pub(crate) fn is_watched() -> bool {
    std::io::stderr().is_terminal()
}

/// A table of `rows` under `heads` with aligned columns; a column whose cells are all figures is flushed right.
pub(crate) fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let cells = |column: usize| rows.iter().map(move |row| row.get(column).map_or("", String::as_str));
    let columns: Vec<(usize, bool)> = heads
        .iter()
        .enumerate()
        .map(|(column, head)| {
            let widest = cells(column).map(|cell| cell.chars().count()).max().unwrap_or(0);
            let figures = cells(column).all(is_figure) && !rows.is_empty();
            (widest.max(head.chars().count()), figures)
        })
        .collect();
    let render = |row: Vec<&str>| {
        let mut text = String::new();
        for (cell, (width, figures)) in row.iter().zip(&columns) {
            let space = " ".repeat(width.saturating_sub(cell.chars().count()));
            text += &if *figures { format!("{space}{cell}  ") } else { format!("{cell}{space}  ") };
        }
        text.trim_end().to_owned()
    };
    let mut lines = vec![render(heads.to_vec())];
    lines.extend(rows.iter().map(|row| render(row.iter().map(String::as_str).collect())));
    lines.join("\n")
}

fn is_figure(cell: &str) -> bool {
    cell.is_empty() || cell == "-" || cell.chars().all(|c| c.is_ascii_digit() || c == '.')
}

/// Rows as CSV (RFC 4180).
pub(crate) fn csv(heads: &[&str], rows: &[Vec<String>]) -> String {
    let cell = |text: &str| {
        if text.contains([',', '"', '\n', '\r']) {
            format!("\"{}\"", text.replace('"', "\"\""))
        } else {
            text.to_owned()
        }
    };
    let mut lines = vec![heads.iter().map(|head| cell(head)).collect::<Vec<_>>().join(",")];
    lines.extend(rows.iter().map(|row| row.iter().map(|text| cell(text)).collect::<Vec<_>>().join(",")));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[&[&str]]) -> Vec<Vec<String>> {
        rows.iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()).collect()
    }

    #[test]
    fn figures_stand_right_and_names_left() {
        insta::assert_snapshot!(
            table(&["budget", "left"], &rows(&[&["pilot", "7"], &["ü", "1200"]])),
            @r"
        budget  left
        pilot      7
        ü       1200
        "
        );
    }

    #[test]
    fn a_cell_cannot_break_out_of_csv() {
        insta::assert_snapshot!(
            csv(&["run", "usd"], &rows(&[&["a,\"b\"", "1.5"], &["c", ""]])),
            @r#"
        run,usd
        "a,""b""",1.5
        c,
        "#
        );
    }
}
