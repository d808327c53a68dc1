use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::support::{postrider, run, stderr, stdout};

/// The arguments of a demo on this directory.
fn demo(data_dir: &str) -> [&str; 8] {
    [
        "up",
        "--demo",
        "--data",
        data_dir,
        "--listen",
        "127.0.0.1:0",
        "--health-listen",
        "127.0.0.1:0",
    ]
}

fn demo_for<'a>(time: &'a str, data_dir: &'a str) -> Vec<&'a str> {
    let mut arguments = demo(data_dir).to_vec();
    arguments.extend(["--for", time]);
    arguments
}

/// The number after `name=` in the last line that has it.
fn last(text: &str, name: &str) -> u64 {
    let line = text
        .lines()
        .rfind(|line| line.starts_with("accepted="))
        .unwrap();
    let value = line
        .split(' ')
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    value.unwrap().parse().unwrap()
}

/// The columns of a row of the final table: delivered, retried, given up, pending.
fn row(text: &str, name: &str) -> [u64; 4] {
    let line = text
        .lines()
        .rfind(|line| line.starts_with(name))
        .unwrap_or_else(|| panic!("no {name} in {text}"));
    let mut numbers = line
        .split_whitespace()
        .rev()
        .take(4)
        .map(|word| word.parse().unwrap());
    let mut columns = [0; 4];
    columns
        .iter_mut()
        .rev()
        .for_each(|column| *column = numbers.next().unwrap());
    columns
}

fn accepted(text: &str) -> u64 {
    let line = text
        .lines()
        .rfind(|line| line.contains("events accepted"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn the_demo_loses_nothing_and_goes_on_where_it_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().to_str().unwrap();
    for round in 1..=2 {
        let output = run(&demo_for("5s", data_dir));
        let shown = stdout(&output);
        assert!(
            output.status.success(),
            "round {round}: {shown}\n{}",
            stderr(&output)
        );
        let accepted = accepted(&shown);
        assert!(accepted >= 20, "round {round}: {shown}");
        assert!(last(&shown, "accepted") <= accepted);
        let [delivered, _, given_up, pending] = row(&shown, "ep_demo_healthy");
        assert_eq!(
            (delivered, given_up, pending),
            (accepted, 0, 0),
            "round {round}: {shown}"
        );
        let [delivered, retried, given_up, pending] = row(&shown, "ep_demo_flaky");
        assert_eq!(
            (delivered, given_up, pending),
            (accepted, 0, 0),
            "round {round}: {shown}"
        );
        assert!(retried > 0 && retried < accepted, "round {round}: {shown}");
        let [delivered, _, given_up, _] = row(&shown, "ep_demo_gone");
        assert!(delivered == 0 && given_up > 0, "round {round}: {shown}");
        assert!(shown.contains("nothing was lost"), "{shown}");
    }
}

#[test]
fn a_demo_that_was_killed_goes_on_with_what_it_left() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().to_str().unwrap();
    let mut killed = postrider(&demo(data_dir))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(killed.stdout.take().unwrap()).lines();
    let many = lines
        .map(Result::unwrap)
        .find(|line| line.starts_with("accepted=") && last(line, "accepted") >= 100);
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(many.is_some(), "the demo ended early");

    let output = run(&demo_for("3s", data_dir));
    let shown = stdout(&output);
    assert!(output.status.success(), "{shown}\n{}", stderr(&output));
    for endpoint in ["ep_demo_healthy", "ep_demo_flaky"] {
        let [.., pending] = row(&shown, endpoint);
        assert_eq!(pending, 0, "{shown}");
    }
}
