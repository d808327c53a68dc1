use crate::support::{run, stderr, stdout};

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
        let output = run(&[
            "up",
            "--demo",
            "--for",
            "5s",
            "--data",
            data_dir,
            "--listen",
            "127.0.0.1:0",
            "--health-listen",
            "127.0.0.1:0",
        ]);
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
        let [delivered, _, given_up, pending] = row(&shown, "ep_demo_gone");
        assert!(
            delivered == 0 && given_up > 0 && pending == 0,
            "round {round}: {shown}"
        );
        assert!(shown.contains("nothing was lost"), "{shown}");
    }
}
