//! The order of the modules: each room's lib.rs lists them as data flows, and a module uses only those above it.
//! Knows tokens (comments and strings are none); must not know types: a path that names no module is traced through
//! the re-exports of lib.rs. Code under `#[cfg(test)]` may look anywhere.
//! Invariant: `module -> module` upwards only; a path that leads downwards is named with its file and line.

use super::{repository, sources};
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// What lib.rs says: the modules in order, and which module each re-exported name comes from.
#[derive(Default)]
struct Order {
    modules: Vec<String>,
    exports: BTreeMap<String, String>,
}

/// A name used below the crate's root, and the line it stands on.
type Used = (String, usize);

fn tokens(source: &str, file: &str) -> Vec<TokenTree> {
    let stream: TokenStream = source.parse().unwrap_or_else(|error| panic!("{file}: {error}"));
    stream.into_iter().collect()
}

fn ident(token: Option<&TokenTree>) -> Option<String> {
    match token {
        Some(TokenTree::Ident(ident)) => Some(ident.to_string()),
        _ => None,
    }
}

fn is_punct(token: Option<&TokenTree>, wanted: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

/// Whether `#` at `at` opens a `#[cfg(test)]`.
fn is_cfg_test(tokens: &[TokenTree], at: usize) -> bool {
    let Some(TokenTree::Group(attribute)) = tokens.get(at + 1) else { return false };
    let inner: Vec<TokenTree> = attribute.stream().into_iter().collect();
    let Some(TokenTree::Group(condition)) = inner.get(1) else { return false };
    is_punct(tokens.get(at), '#')
        && ident(inner.first()).as_deref() == Some("cfg")
        && condition.stream().to_string() == "test"
}

/// Leaves out each item under `#[cfg(test)]`; names the files of test modules (`mod tests;`) in `test_files`.
fn without_tests(tokens: &[TokenTree], test_files: &mut Vec<String>) -> Vec<TokenTree> {
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if !is_cfg_test(tokens, at) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        let item = at + 2;
        let is_end = |token: &TokenTree| match token {
            TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
            other => is_punct(Some(other), ';'),
        };
        let end = (item..tokens.len()).find(|&at| is_end(&tokens[at])).unwrap_or(tokens.len() - 1);
        if is_punct(Some(&tokens[end]), ';') && ident(tokens.get(end - 2)).as_deref() == Some("mod") {
            test_files.extend(ident(tokens.get(end - 1)));
        }
        at = end + 1;
    }
    kept
}

fn order(lib: &str) -> Order {
    let tokens = without_tests(&tokens(lib, "lib.rs"), &mut Vec::new());
    let mut order = Order::default();
    for statement in tokens.split(|token| is_punct(Some(token), ';')) {
        let words: Vec<String> = statement.iter().filter_map(|token| ident(Some(token))).collect();
        let keyword = words.iter().position(|word| word == "mod" || word == "use");
        let Some(keyword) = keyword else { continue };
        let named = words.get(keyword + 1..).unwrap_or_default();
        let first = named.iter().find(|word| !["crate", "self"].contains(&word.as_str()));
        let Some(first) = first.cloned() else { continue };
        if words[keyword] == "mod" {
            order.modules.push(first);
        } else {
            let stream: TokenStream = statement.iter().cloned().collect();
            for name in every_ident(stream) {
                order.exports.insert(name, first.clone());
            }
        }
    }
    order
}

fn every_ident(stream: TokenStream) -> Vec<String> {
    let mut found = Vec::new();
    for token in stream {
        match token {
            TokenTree::Ident(ident) => found.push(ident.to_string()),
            TokenTree::Group(group) => found.extend(every_ident(group.stream())),
            _ => {}
        }
    }
    found
}

/// Every name that stands right after `crate::` (or after enough `super::` to reach the root from `depth` modules down).
fn uses(tokens: &[TokenTree], depth: usize, test_files: &mut Vec<String>) -> Vec<Used> {
    let tokens = without_tests(tokens, test_files);
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        if let TokenTree::Group(group) = token {
            let inner: Vec<TokenTree> = group.stream().into_iter().collect();
            let is_module = at > 1
                && group.delimiter() == Delimiter::Brace
                && ident(tokens.get(at - 2)).as_deref() == Some("mod");
            found.extend(uses(&inner, depth + usize::from(is_module), test_files));
        }
        if let Some(root) = past_the_root(&tokens, at, depth) {
            found.extend(first_names(&tokens[root..]));
        }
    }
    found
}

/// Where the name after the root begins, if the path at `at` starts at the crate's root.
fn past_the_root(tokens: &[TokenTree], at: usize, depth: usize) -> Option<usize> {
    let follows = |at: usize, word: &str| {
        ident(tokens.get(at)).as_deref() == Some(word)
            && is_punct(tokens.get(at + 1), ':')
            && is_punct(tokens.get(at + 2), ':')
    };
    if at > 0 && is_punct(tokens.get(at - 1), ':') {
        return None;
    }
    if follows(at, "crate") {
        return Some(at + 3);
    }
    (0..depth).all(|step| follows(at + 3 * step, "super")).then_some(at + 3 * depth)
}

/// The first name of a path, or of each path in `{a::b, c}`.
fn first_names(path: &[TokenTree]) -> Vec<Used> {
    match path.first() {
        Some(TokenTree::Ident(ident)) => vec![(ident.to_string(), ident.span().start().line)],
        Some(TokenTree::Group(group)) => {
            let inner: Vec<TokenTree> = group.stream().into_iter().collect();
            inner.split(|token| is_punct(Some(token), ',')).flat_map(first_names).collect()
        }
        _ => Vec::new(),
    }
}

/// What one file of module `module` breaks.
fn broken(order: &Order, module: &str, used: &[Used], file: &str) -> Vec<String> {
    let place = |name: &str| order.modules.iter().position(|module| module == name);
    let Some(own) = place(module) else {
        return vec![format!("{file}: the module `{module}` is not listed in lib.rs")];
    };
    let mut broken = Vec::new();
    for (name, line) in used {
        let target = if place(name).is_some() { Some(name) } else { order.exports.get(name) };
        match target.and_then(|target| Some((target, place(target)?))) {
            Some((target, at)) if at > own => broken.push(format!(
                "{file}:{line}: `{module}` uses `{target}` (`crate::{name}`), which stands below it in lib.rs"
            )),
            Some(_) => {}
            None => {
                broken.push(format!("{file}:{line}: `crate::{name}` is neither a module nor a re-export"));
            }
        }
    }
    broken
}

/// What the sources of one room break. `files`: paths relative to `src`, with their text.
fn room(lib: &str, files: &[(String, String)]) -> Vec<String> {
    let order = order(lib);
    let mut test_files = Vec::new();
    let mut top = Vec::new();
    without_tests(&tokens(lib, "lib.rs"), &mut top);
    let mut found = Vec::new();
    for (file, source) in files {
        let path: Vec<&str> = file.trim_end_matches(".rs").trim_end_matches("/mod").split('/').collect();
        if path == ["lib"] || path == ["main"] || top.iter().any(|module| module == path[0]) {
            continue;
        }
        let mut own_tests = Vec::new();
        let used = uses(&tokens(source, file), path.len(), &mut own_tests);
        test_files.extend(own_tests.into_iter().map(|name| format!("{}/{name}", path.join("/"))));
        found.push((path.join("/"), broken(&order, path[0], &used, file)));
    }
    let is_test =
        |path: &str| test_files.iter().any(|test| path == test || path.starts_with(&format!("{test}/")));
    found.into_iter().filter(|(path, _)| !is_test(path)).flat_map(|(_, broken)| broken).collect()
}

fn room_on_disk(folder: &Path, root: &str) -> Vec<String> {
    let text =
        |path: &Path| fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let files: Vec<(String, String)> = sources(folder)
        .iter()
        .map(|path| (path.strip_prefix(folder).unwrap().to_string_lossy().into_owned(), text(path)))
        .collect();
    let prefix = folder.strip_prefix(repository()).unwrap().display().to_string();
    room(&text(&folder.join(root)), &files).into_iter().map(|line| format!("{prefix}/{line}")).collect()
}

#[test]
fn modules_use_only_those_above_them() {
    let mut found = Vec::new();
    for (folder, root) in [("ledger", "lib.rs"), ("proxy", "lib.rs"), ("trainer", "lib.rs")] {
        found.extend(room_on_disk(&repository().join(folder).join("src"), root));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_use_downwards_is_named() {
    let lib = "//! Ledger.\nmod money;\npub mod book;\nmod desk;\n#[cfg(test)] mod histories;\npub use book::{Book, state::Held};";
    let check = |file: &str, source: &str, expected: &[&str]| {
        assert_eq!(room(lib, &[(file.to_owned(), source.to_owned())]), expected, "{source}");
    };
    let downwards = |line: u32, file: &str, own: &str, target: &str, name: &str| {
        format!("{file}:{line}: `{own}` uses `{target}` (`crate::{name}`), which stands below it in lib.rs")
    };
    check("desk.rs", "use crate::book::Book;\nuse crate::{Held, money::Usd};", &[]);
    check("book.rs", "use crate::desk::Desk;", &[&downwards(1, "book.rs", "book", "desk", "desk")]);
    check(
        "money.rs",
        "\nuse crate::{\n desk, book::Book};",
        &[
            &downwards(3, "money.rs", "money", "desk", "desk"),
            &downwards(3, "money.rs", "money", "book", "book"),
        ],
    );
    check("money.rs", "fn f() { crate::Held::new() }", &[&downwards(1, "money.rs", "money", "book", "Held")]);
    check(
        "money.rs",
        "fn f() { format!(\"{}\", crate::desk::N) }",
        &[&downwards(1, "money.rs", "money", "desk", "desk")],
    );
    check("book.rs", "use super::desk::Desk;", &[&downwards(1, "book.rs", "book", "desk", "desk")]);
    check(
        "book/state.rs",
        "use super::super::desk;",
        &[&downwards(1, "book/state.rs", "book", "desk", "desk")],
    );
    check("book/state.rs", "use super::desk;", &[]);
    check("book/mod.rs", "use super::desk;", &[&downwards(1, "book/mod.rs", "book", "desk", "desk")]);
    check(
        "book.rs",
        "mod inner { use super::desk; use super::super::desk; }",
        &[&downwards(1, "book.rs", "book", "desk", "desk")],
    );
    check("cellar.rs", "", &["cellar.rs: the module `cellar` is not listed in lib.rs"]);
    check(
        "book.rs",
        "use crate::cellar;",
        &["book.rs:1: `crate::cellar` is neither a module nor a re-export"],
    );
}

#[test]
fn comments_strings_and_tests_may_look_anywhere() {
    let lib = "mod book; mod desk; #[cfg(test)] mod histories;";
    let check = |files: &[(&str, &str)]| {
        let files: Vec<_> =
            files.iter().map(|(file, source)| ((*file).to_owned(), (*source).to_owned())).collect();
        assert_eq!(room(lib, &files), Vec::<String>::new());
    };
    check(&[("book.rs", "//! Not crate::desk.\nconst N: &str = \"crate::desk\";")]);
    check(&[("book.rs", "#[cfg(test)]\nmod tests { use super::*; use crate::desk::Desk; }")]);
    check(&[("book.rs", "#[cfg(test)]\nmod tests;"), ("book/tests.rs", "use crate::desk::Desk;")]);
    check(&[("histories.rs", "use crate::desk::Desk;")]);
}
