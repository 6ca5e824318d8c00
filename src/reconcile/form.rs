//! The exports that are known, and a form made from a map of columns.
//!
//! Must not read a file. Invariant: what a column means stands here alone; docs/audit.md says the same.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use tuition_trainer::nearest;

use crate::words::Trouble;

/// A figure that a bill may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Column {
    /// Requests.
    Calls,
    /// All input tokens: fresh, read from the prompt cache, written to it.
    Input,
    /// Input tokens that have nothing to do with the prompt cache.
    Fresh,
    /// Input tokens read from the prompt cache.
    Cached,
    /// Input tokens written to the prompt cache.
    Written,
    /// Output tokens, reasoning included.
    Output,
    /// All tokens.
    Tokens,
    /// Dollars.
    Usd,
}

impl Column {
    const ALL: [Self; 8] = [
        Self::Calls,
        Self::Input,
        Self::Fresh,
        Self::Cached,
        Self::Written,
        Self::Output,
        Self::Tokens,
        Self::Usd,
    ];

    /// Its name in a table and in `--columns`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Calls => "calls",
            Self::Input => "input",
            Self::Fresh => "fresh_input",
            Self::Cached => "cached_input",
            Self::Written => "cache_write",
            Self::Output => "output",
            Self::Tokens => "tokens",
            Self::Usd => "usd",
        }
    }
}

/// Which columns of an export mean what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Form {
    /// What it is, for people.
    pub(super) name: &'static str,
    /// Where the day stands: the first of these that is there.
    pub(super) day: Vec<String>,
    /// Where the model stands; none: the export does not tell models apart.
    pub(super) model: Option<String>,
    /// Where the currency stands, if the export says it.
    pub(super) currency: Option<String>,
    /// The figures; several columns of one meaning are added up.
    pub(super) figures: Vec<(Column, String)>,
    /// The figures without which it is not this export.
    pub(super) needs: Vec<String>,
    /// Whether the model stands in front of a comma, as in `gpt-4o-2024-08-06, input`.
    pub(super) lists_items: bool,
}

/// The providers whose exports are known, and the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// OpenAI's usage or costs export.
    Openai,
    /// Anthropic's usage or cost export.
    Anthropic,
    /// Any CSV, with `--columns`.
    Generic,
}

/// The known exports, as they were found in November 2026.
pub(super) static KNOWN: LazyLock<[Form; 4]> = LazyLock::new(|| {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let figures = |figures: &[(Column, &str)]| {
        figures.iter().map(|(column, name)| (*column, (*name).to_owned())).collect::<Vec<_>>()
    };
    [
        Form {
            name: "OpenAI's usage export",
            day: names(&["start_time_iso", "start_time"]),
            model: Some("model".into()),
            currency: None,
            figures: figures(&[
                (Column::Calls, "num_model_requests"),
                (Column::Input, "input_tokens"),
                (Column::Cached, "input_cached_tokens"),
                (Column::Output, "output_tokens"),
            ]),
            needs: names(&["num_model_requests"]),
            lists_items: false,
        },
        Form {
            name: "OpenAI's costs export",
            day: names(&["start_time_iso", "start_time"]),
            model: Some("line_item".into()),
            currency: Some("amount_currency".into()),
            figures: figures(&[(Column::Usd, "amount_value")]),
            needs: names(&["amount_value"]),
            lists_items: true,
        },
        Form {
            name: "Anthropic's usage export",
            day: names(&["usage_date_utc"]),
            model: Some("model_version".into()),
            currency: None,
            figures: figures(&[
                (Column::Fresh, "usage_input_tokens_no_cache"),
                (Column::Written, "usage_input_tokens_cache_write_5m"),
                (Column::Written, "usage_input_tokens_cache_write_1h"),
                (Column::Written, "usage_input_tokens_cache_write"),
                (Column::Cached, "usage_input_tokens_cache_read"),
                (Column::Output, "usage_output_tokens"),
            ]),
            needs: names(&["usage_input_tokens_no_cache", "usage_output_tokens"]),
            lists_items: false,
        },
        Form {
            name: "Anthropic's cost export",
            day: names(&["usage_date_utc"]),
            model: Some("model".into()),
            currency: None,
            figures: figures(&[(Column::Usd, "cost_usd")]),
            needs: names(&["cost_usd"]),
            lists_items: false,
        },
    ]
});

impl Form {
    /// Whether a header row has all that the form needs.
    pub(super) fn fits(&self, found: &[String]) -> bool {
        let has = |name: &String| found.contains(name);
        self.day.iter().any(has)
            && self.needs.iter().all(has)
            && self.model.as_ref().is_none_or(has)
            && self.currency.as_ref().is_none_or(has)
    }
}

impl Format {
    /// The known exports of this provider; where none fits, the first names what is missing.
    pub(super) fn forms(self) -> &'static [Form] {
        match self {
            Self::Openai => &KNOWN[..2],
            Self::Anthropic => &KNOWN[2..],
            Self::Generic => &[],
        }
    }
}

/// A form from a map such as `day=Date,model=Model,usd=Cost`.
///
/// # Errors
/// A word that is no `KEY=COLUMN`, a key that is not known or stands twice, no day or model, no figure.
pub(super) fn mapped(words: &[String]) -> Result<Form, Trouble> {
    let known: Vec<&str> =
        ["day", "model", "currency"].into_iter().chain(Column::ALL.map(Column::name)).collect();
    let mut map = BTreeMap::new();
    for word in words {
        let Some((key, column)) = word.split_once('=').filter(|(_, column)| !column.is_empty()) else {
            let what = format!("`{}` in `--columns` is no KEY=COLUMN", word.escape_debug());
            return Err(Trouble::usage(what, "such as `day=Date,model=Model,usd=Cost`"));
        };
        if !known.contains(&key) {
            let what = format!("`--columns` knows no `{}`", key.escape_debug());
            let hint = match nearest(key, known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known: {}", known.join(", ")),
            };
            return Err(Trouble::usage(what, hint));
        }
        if map.insert(key, column.to_owned()).is_some() {
            return Err(Trouble::usage(format!("`--columns` names `{key}` twice"), "name it once"));
        }
    }
    let mut needed = |key: &str| {
        let hint = format!("add `{key}=COLUMN`, with the column of your file");
        map.remove(key).ok_or_else(|| Trouble::usage(format!("`--columns` names no `{key}`"), hint))
    };
    let (day, model) = (needed("day")?, needed("model")?);
    let currency = map.remove("currency");
    let figure = |column: Column| map.get(column.name()).map(|name| (column, name.clone()));
    let figures: Vec<(Column, String)> = Column::ALL.into_iter().filter_map(figure).collect();
    if figures.is_empty() {
        let names = Column::ALL.map(Column::name).join(", ");
        return Err(Trouble::usage("`--columns` names no figure", format!("add one of: {names}")));
    }
    let needs = figures.iter().map(|(_, name)| name.clone()).collect();
    Ok(Form {
        name: "the map of `--columns`",
        day: vec![day],
        model: Some(model),
        currency,
        figures,
        needs,
        lists_items: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(map: &str) -> String {
        let words: Vec<String> = map.split(',').map(str::to_owned).collect();
        crate::words::Words::of(&mapped(&words).unwrap_err()).text()
    }

    #[test]
    fn a_map_of_columns_is_refused_by_its_key() {
        insta::assert_snapshot!(refused("day=Date,modle=Model,usd=Cost"), @r"
        error: `--columns` knows no `modle`
          hint: did you mean `model`?
        ");
        insta::assert_snapshot!(refused("day=Date,colour=Model"), @r"
        error: `--columns` knows no `colour`
          hint: known: day, model, currency, calls, input, fresh_input, cached_input, cache_write, output, tokens, usd
        ");
        insta::assert_snapshot!(refused("day=Date,usd=Cost"), @r"
        error: `--columns` names no `model`
          hint: add `model=COLUMN`, with the column of your file
        ");
        insta::assert_snapshot!(refused("day=Date,model=Model"), @r"
        error: `--columns` names no figure
          hint: add one of: calls, input, fresh_input, cached_input, cache_write, output, tokens, usd
        ");
        insta::assert_snapshot!(refused("day=Date,model"), @r"
        error: `model` in `--columns` is no KEY=COLUMN
          hint: such as `day=Date,model=Model,usd=Cost`
        ");
        insta::assert_snapshot!(refused("day=Date,day=Tag,model=Model"), @r"
        error: `--columns` names `day` twice
          hint: name it once
        ");
    }
}
