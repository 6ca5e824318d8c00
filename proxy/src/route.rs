//! Which teacher serves which model: the first that lists it.
//!
//! Must not know requests. Invariant: a model that nobody serves is an error that names the nearest one served.

use std::sync::Arc;

use tuition_ledger::Teacher;

use crate::dialect::Api;
use crate::teacher::HttpTeacher;

/// A teacher and the models that it serves.
#[derive(Clone)]
pub struct Route {
    pub(crate) teacher: Arc<dyn Teacher>,
    pub(crate) http: Option<Arc<HttpTeacher>>,
    pub(crate) api: Api,
    pub(crate) models: Vec<String>,
    pub(crate) revision: String,
    pub(crate) rows: bool,
    pub(crate) metadata: Option<serde_json::Value>,
}

impl Route {
    /// A teacher behind HTTP; `models` are exact names or patterns with `*`.
    pub fn http(teacher: Arc<HttpTeacher>, models: Vec<String>, revision: String) -> Self {
        let (api, rows) = (teacher.api(), teacher.rows());
        let http = Some(Arc::clone(&teacher));
        Self { teacher, http, api, models, revision, rows, metadata: None }
    }

    /// A local model behind Open Inference, each row an item; `metadata` is what `/v2/models/M` answers.
    pub fn local(
        teacher: Arc<dyn Teacher>,
        models: Vec<String>,
        revision: String,
        metadata: serde_json::Value,
    ) -> Self {
        let (api, metadata) = (Api::OpenInference, Some(metadata));
        Self { teacher, http: None, api, models, revision, rows: true, metadata }
    }

    pub(crate) fn serves(&self, model: &str) -> bool {
        self.models.iter().any(|pattern| matches(pattern, model))
    }
}

/// Finds the teacher of a model, or says what is served.
pub(crate) fn find<'r>(routes: &'r [Route], api: Api, model: &str) -> Result<&'r Route, String> {
    // Such a name would lead the teacher's secret to another path of its server.
    if model.split(['/', '\\']).any(|part| matches!(part, "." | "..")) {
        return Err(format!("`{model}` is no name of a model"));
    }
    let of_api = || routes.iter().filter(|route| route.api == api);
    if let Some(route) = of_api().find(|route| route.serves(model)) {
        return Ok(route);
    }
    let names = of_api().flat_map(|route| &route.models);
    match names.min_by_key(|name| distance(name, model)) {
        Some(nearest) => Err(format!("no teacher serves model `{model}`; the nearest is `{nearest}`")),
        None => Err(format!("no teacher serves model `{model}`: none speaks {}", api.name())),
    }
}

/// Whether `pattern` (each `*` stands for any text) matches `model`.
fn matches(pattern: &str, model: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = model.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(place) => rest = &rest[place + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Edits between two names (Levenshtein).
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (line, from) in left.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], line + 1);
        for (column, to) in right.iter().enumerate() {
            let change = diagonal + usize::from(from != *to);
            diagonal = row[column + 1];
            row[column + 1] = change.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        #[track_caller]
        fn check(pattern: &str, model: &str, expected: bool) {
            assert_eq!(matches(pattern, model), expected, "{pattern} {model}");
        }
        check("*", "", true);
        check("*", "gpt-4", true);
        check("gpt-4", "gpt-4", true);
        check("gpt-4", "gpt-4o", false);
        check("gpt-*", "gpt-4o", true);
        check("gpt-*-mini", "gpt-4o-mini", true);
        check("gpt-*-mini", "gpt-mini", false);
        check("a*b*c", "aXbYc", true);
        check("a*b*c", "aXc", false);
        check("ab*ab", "ab", false);
    }

    #[test]
    fn the_nearest_name_is_near() {
        assert_eq!(distance("gpt-4", "gtp-4"), 2);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
