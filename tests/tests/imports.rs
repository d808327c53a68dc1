//! Who imports whom within a crate: no circles but between parent and child, and the rules of
//! delivery know no runtime.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A module's path within its crate.
type Module = Vec<String>;

/// Crates whose files import each other in one direction.
const WITHOUT_CIRCLES: [&str; 3] = ["delivery", "ingest", "model"];

/// What decides in `deliver`, without a runtime, a log or a network.
const RULES: [&str; 8] = [
    "lane",
    "lanes",
    "limits",
    "lines",
    "partition",
    "permits",
    "state_id",
    "tally",
];
const RUNTIME: [&str; 6] = [
    "tokio",
    "tokio_util",
    "reqwest",
    "hyper",
    "rdkafka",
    "futures_util",
];

/// The files of a crate without their tests, and what they import: paths as written, but for the
/// names at their ends.
fn imports_of(name: &str) -> BTreeMap<Module, Vec<Module>> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../crates")
        .join(name)
        .join("src");
    let mut files = Vec::new();
    list(&source, &mut files);
    let module = |file: &Path| {
        let path = file
            .strip_prefix(&source)
            .expect("below")
            .with_extension("");
        let names = path.iter().map(|name| name.to_string_lossy().into_owned());
        names.filter(|name| name != "lib").collect::<Module>()
    };
    let read = |file: &PathBuf| {
        let text = fs::read_to_string(file).expect("a source file");
        let code = text
            .split("#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or_default();
        let lines = code
            .lines()
            .map(|line| line.split("//").next().unwrap_or_default());
        (module(file), uses(&lines.collect::<String>()))
    };
    files.iter().map(read).collect()
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let is_test = ["tests", "tests.rs", "fixtures.rs", "generated"]
            .iter()
            .any(|test| name == *test);
        if path.is_dir() && !is_test {
            list(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !is_test {
            files.push(path);
        }
    }
}

/// Every path of every `use`.
fn uses(code: &str) -> Vec<Module> {
    let mut paths = Vec::new();
    for statement in code.split(';') {
        let head = statement
            .rsplit_once("use ")
            .filter(|(before, _)| before.is_empty() || before.ends_with([' ', '}', '{', ')', ']']));
        if let Some((_, tree)) = head {
            let tree: String = tree
                .chars()
                .filter(|letter| !letter.is_whitespace())
                .collect();
            expand("", &tree, &mut paths);
        }
    }
    paths
}

fn expand(prefix: &str, tree: &str, paths: &mut Vec<Module>) {
    let Some((before, rest)) = tree.split_once('{') else {
        let path = format!("{prefix}{tree}");
        paths.push(path.split("::").map(str::to_owned).collect());
        return;
    };
    let prefix = format!("{prefix}{before}");
    let (mut depth, mut part) = (0, String::new());
    for letter in rest.trim_end_matches('}').chars().chain([',']) {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                expand(&prefix, &std::mem::take(&mut part), paths);
                continue;
            }
            _ => {}
        }
        part.push(letter);
    }
}

/// The file that a path leads to from a module; `None` if it leads out of the crate.
fn target(from: &Module, path: &[String], files: &BTreeMap<Module, Vec<Module>>) -> Option<Module> {
    let mut rest = path;
    let mut to = match path.first()?.as_str() {
        "crate" => Vec::new(),
        "self" | "super" => from.clone(),
        child => {
            let child = [from.clone(), vec![child.to_owned()]].concat();
            return files.contains_key(&child).then_some(child);
        }
    };
    while let Some(("super" | "crate" | "self", after)) = rest
        .split_first()
        .map(|(first, after)| (first.as_str(), after))
    {
        if rest[0] == "super" {
            to.pop();
        }
        rest = after;
    }
    for name in rest {
        to.push(name.clone());
        if !files.contains_key(&to) {
            to.pop();
            break;
        }
    }
    Some(to)
}

/// Whom each file imports, but parents and children.
fn edges(files: &BTreeMap<Module, Vec<Module>>) -> BTreeMap<&Module, BTreeSet<Module>> {
    let is_family = |one: &Module, other: &Module| one.starts_with(other) || other.starts_with(one);
    let of = |(from, paths): (&Module, &Vec<Module>)| -> BTreeSet<Module> {
        let targets = paths.iter().filter_map(|path| target(from, path, files));
        targets
            .filter(|to| files.contains_key(to) && !is_family(from, to))
            .collect()
    };
    files.iter().map(|file| (file.0, of(file))).collect()
}

/// A way from a module back to itself.
fn circle<'a>(
    at: &'a Module,
    edges: &'a BTreeMap<&'a Module, BTreeSet<Module>>,
    way: &mut Vec<&'a Module>,
    done: &mut BTreeSet<&'a Module>,
) -> Option<String> {
    if let Some(begins) = way.iter().position(|module| *module == at) {
        let names = way[begins..].iter().map(|module| module.join("::"));
        return Some(names.collect::<Vec<_>>().join(" -> "));
    }
    if !done.insert(at) {
        return None;
    }
    way.push(at);
    let found = edges[at].iter().find_map(|to| circle(to, edges, way, done));
    way.pop();
    found
}

#[test]
fn files_import_each_other_in_one_direction() {
    for name in WITHOUT_CIRCLES {
        let files = imports_of(name);
        assert!(files.len() > 10, "{name} was read");
        let edges = edges(&files);
        let mut done = BTreeSet::new();
        for module in files.keys() {
            let found = circle(module, &edges, &mut Vec::new(), &mut done);
            assert_eq!(found, None, "a circle in {name}");
        }
    }
}

#[test]
fn the_rules_of_deliver_know_no_runtime() {
    let files = imports_of("delivery");
    let is_rule = |module: &&Module| {
        module.first().is_some_and(|name| name == "deliver")
            && module
                .get(1)
                .is_some_and(|name| RULES.contains(&name.as_str()))
    };
    let rules: Vec<_> = files.keys().filter(is_rule).collect();
    assert!(rules.len() > RULES.len(), "{rules:?}");
    for rule in rules {
        for path in &files[rule] {
            assert!(
                !RUNTIME.contains(&path[0].as_str()),
                "{rule:?} imports {path:?}"
            );
        }
    }
}

#[test]
fn configuration_and_metrics_import_nothing_of_the_heart() {
    let files = imports_of("delivery");
    let edges = edges(&files);
    for name in ["config", "metrics"] {
        let imports = &edges[&vec![name.to_owned()]];
        let of_heart = imports.iter().find(|module| module[0] == "deliver");
        assert_eq!(of_heart, None, "of {name}");
    }
}

#[test]
fn a_use_tree_is_read() {
    let paths = uses("pub use a::{self, b::{C, D}, e::F};fn x() {}use super::g;");
    let joined: Vec<_> = paths.iter().map(|path| path.join("::")).collect();
    assert_eq!(
        joined,
        ["a::self", "a::b::C", "a::b::D", "a::e::F", "super::g"]
    );
}
