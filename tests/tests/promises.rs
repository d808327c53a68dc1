//! `docs/reliability.md` names the test that holds each promise: these tests exist.

#![expect(
    clippy::unwrap_used,
    reason = "a test may stop at what it does not expect"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use postrider_tests::process::repository;

/// A word with so many underscores is the name of a test: nothing else there is called so at
/// length.
const UNDERSCORES_OF_A_TEST: usize = 3;
/// Failures of other systems that the list has.
const ENTRIES: std::ops::RangeInclusive<usize> = 1..=47;
/// What holds an entry beside a test or a file of tests.
const OTHERS: [&str; 3] = ["sim", "make bench", "deploy/helm/"];

/// The last cells of the tables' rows, which say what holds a row, with the first.
fn rows() -> Vec<(String, String)> {
    let text = fs::read_to_string(repository().join("docs/reliability.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| "));
    let cells = rows.map(|row| row.trim_matches('|').split(" | ").collect::<Vec<_>>());
    cells
        .map(|cells| (cells[0].trim().to_owned(), cells[1..].join(" | ")))
        .collect()
}

fn sources() -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), Vec::new());
    folders.extend(["crates", "tests", "deploy"].map(|folder| repository().join(folder)));
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found
}

fn functions(sources: &[PathBuf]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for source in sources {
        let text = fs::read_to_string(source).unwrap();
        for after in text.split("fn ").skip(1) {
            names.insert(after.chars().take_while(|&it| is_of_name(it)).collect());
        }
    }
    names
}

fn is_of_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}

/// `a_{b,c}_d` stands for two names.
fn expanded(word: &str) -> Vec<String> {
    let Some((before, rest)) = word.split_once('{') else {
        return vec![word.to_owned()];
    };
    let (choices, after) = rest.split_once('}').unwrap_or((rest, ""));
    let chosen = choices.split(',').map(|it| format!("{before}{it}{after}"));
    chosen.flat_map(|word| expanded(&word)).collect()
}

/// The names of tests and of files in a cell.
fn named(cell: &str) -> (Vec<String>, Vec<String>) {
    let is_of_word = |it: char| is_of_name(it) || "{,}:./".contains(it);
    let words = cell.split(|it| !is_of_word(it)).flat_map(expanded);
    let parts: Vec<String> = words
        .flat_map(|word| word.split("::").map(str::to_owned).collect::<Vec<_>>())
        .map(|part| part.trim_matches([',', '.', ':']).to_owned())
        .collect();
    let (files, others): (Vec<_>, Vec<_>) = parts.into_iter().partition(|it| it.ends_with(".rs"));
    let is_test = |it: &String| it.matches('_').count() >= UNDERSCORES_OF_A_TEST;
    (others.into_iter().filter(is_test).collect(), files)
}

#[test]
fn every_test_and_file_that_is_said_to_hold_a_promise_exists() {
    let sources = sources();
    let functions = functions(&sources);
    let ends_with = |path: &PathBuf, file: &String| path.ends_with(Path::new(file));
    let mut missing = Vec::new();
    for (first, rest) in rows() {
        let held_by = rest.rsplit(" | ").next().unwrap();
        let (tests, files) = named(held_by);
        let tests = tests.into_iter().filter(|test| !functions.contains(test));
        let files = files
            .into_iter()
            .filter(|file| !sources.iter().any(|path| ends_with(path, file)));
        missing.extend(tests.chain(files).map(|name| format!("{name} ({first})")));
    }
    assert!(missing.is_empty(), "not in the tree: {missing:#?}");
}

#[test]
fn every_failure_of_others_that_can_be_ours_is_held_by_something() {
    let mut open: BTreeSet<usize> = ENTRIES.collect();
    for (first, rest) in rows() {
        let number = first.split(' ').next().and_then(|it| it.parse().ok());
        let Some(number) = number.filter(|number| ENTRIES.contains(number)) else {
            continue;
        };
        let (applies, held_by) = rest.split_once(" | ").unwrap();
        let (tests, files) = named(held_by);
        let is_held = !tests.is_empty()
            || !files.is_empty()
            || OTHERS.iter().any(|other| held_by.contains(other));
        if applies.starts_with("no") || (is_held && !held_by.contains("not tested")) {
            open.remove(&number);
        }
    }
    assert!(open.is_empty(), "nothing holds {open:?}");
}
