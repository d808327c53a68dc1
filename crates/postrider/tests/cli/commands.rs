use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

use crate::support::{Receiver, Up, postrider, stderr, stdout, wait_for};

/// Commands against one `up`.
struct Operator<'a>(&'a Path);

impl Operator<'_> {
    fn output(&self, line: &str) -> Output {
        postrider(&line.split(' ').collect::<Vec<_>>())
            .arg("--data-dir")
            .arg(self.0)
            .output()
            .unwrap()
    }

    /// Runs a command that must work, and gives what it answers.
    fn run(&self, line: &str) -> String {
        let output = self.output(line);
        assert!(output.status.success(), "{line}: {}", stderr(&output));
        stdout(&output)
    }

    /// Runs a command that must fail, and gives what it says.
    fn refused(&self, line: &str) -> String {
        let output = self.output(line);
        assert_eq!(output.status.code(), Some(1), "{line}: {}", stdout(&output));
        stderr(&output)
    }
}

#[test]
fn many_events_are_published_from_standard_input() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    let operator = Operator(directory.path());
    let receiver = Receiver::start(204);
    operator.run(&format!(
        "endpoint create -t acme --url {} --format raw --event-types a.*",
        receiver.url()
    ));

    // One a line, spread over lines, and one that is refused: a wrong type keeps the others from
    // nothing.
    let events = "{\"type\":\"a.one\",\"data\":{\"n\":  1}}\n{\n  \"type\": \"a.two\",\n  \"data\": [2.50]\n}\n\
                  {\"type\":\"not a type\",\"data\":0}\n{\"type\":\"b.other\",\"data\":3}\n";
    let mut publishing = postrider(&[
        "event",
        "publish",
        "-t",
        "acme",
        "--file",
        "-",
        "--data-dir",
    ])
    .arg(directory.path())
    .stdin(Stdio::piped())
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    publishing
        .stdin
        .take()
        .unwrap()
        .write_all(events.as_bytes())
        .unwrap();
    let output = publishing.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout(&output).lines().count(), 3);
    let said = stderr(&output);
    assert!(
        said.contains("event 3 was refused")
            && said.contains("type:")
            && said.contains("3 events accepted, 1 refused"),
        "{said}"
    );

    wait_for("both webhooks", || {
        (receiver.requests().len() == 2).then_some(())
    });
    let mut bodies: Vec<_> = receiver
        .requests()
        .into_iter()
        .map(|request| request.body)
        .collect();
    bodies.sort();
    assert_eq!(bodies, ["[2.50]", "{\"n\":  1}"]);
    up.terminate();
}

#[test]
fn tenants_are_managed_by_commands() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    let operator = Operator(directory.path());
    operator.run("tenant create acme --name Acme --metadata plan=gold");
    let shown = operator.run("tenant show acme");
    assert!(shown.contains("Acme") && shown.contains("gold"), "{shown}");
    assert!(operator.run("tenant list").contains("acme"));
    assert!(operator.refused("tenant show other").contains("404"));
    up.terminate();
}

#[test]
fn endpoints_are_managed_by_commands() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    let operator = Operator(directory.path());
    let created = operator.run(
        "endpoint create -t acme --id ep_a --url https://example.com/a --retry-schedule 5s,1m",
    );
    assert!(
        created.contains("whsec_") && created.contains("5,60"),
        "{created}"
    );
    assert!(
        !operator
            .run("endpoint show -t acme ep_a")
            .contains("whsec_")
    );
    let secret = directory.path().join("secret");
    std::fs::write(&secret, format!("whsec_{}\n", "A".repeat(32))).unwrap();
    let ordered = operator.run(&format!(
        "endpoint create -t acme --url https://example.com/o --ordered --when-blocked wait --secret-file {}",
        secret.display()
    ));
    for part in [&format!("whsec_{}", "A".repeat(32)), "wait", "true"] {
        assert!(ordered.contains(part), "{ordered}");
    }
    let refused = operator.refused("endpoint create -t acme --url ftp://example.com --format xml");
    assert!(
        refused.contains("url:") && refused.contains("format:"),
        "{refused}"
    );

    let updated = operator.run("endpoint update -t acme ep_a --event-types invoice.* --json");
    let updated: serde_json::Value = serde_json::from_str(&updated).unwrap();
    assert_eq!(updated["version"], 2);
    let url = "--url https://example.com/b";
    let stale = operator.refused(&format!(
        "endpoint update -t acme ep_a {url} --if-version 1"
    ));
    assert!(stale.contains("412"), "{stale}");
    operator.run(&format!(
        "endpoint update -t acme ep_a {url} --if-version 2"
    ));
    assert!(
        operator
            .run("endpoint rotate-secret -t acme ep_a --yes")
            .contains("whsec_")
    );

    for verb in ["disable", "rotate-secret", "delete"] {
        assert!(
            operator
                .refused(&format!("endpoint {verb} -t acme ep_a"))
                .contains("--yes")
        );
    }
    assert!(
        operator
            .run("endpoint disable -t acme ep_a --yes")
            .contains("manual")
    );
    assert!(
        operator
            .run("endpoint enable -t acme ep_a")
            .contains("enabled")
    );
    operator.run("endpoint delete -t acme ep_a --yes");
    assert!(
        operator
            .refused("endpoint show -t acme ep_a")
            .contains("404")
    );
    up.terminate();
}

#[test]
fn the_status_and_the_rate_limit_of_an_endpoint_are_shown() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    let operator = Operator(directory.path());
    operator.run("endpoint create -t acme --id ep_a --url https://example.com/a");
    let status = operator.run("endpoint status -t acme ep_a");
    assert!(
        status.contains("gate") && status.contains("partition"),
        "{status}"
    );

    let limited = operator.run("endpoint update -t acme ep_a --rate-limit 2.5 --burst 9");
    assert!(
        limited.contains("2.5") && limited.contains('9'),
        "{limited}"
    );
    let unlimited = operator.run("endpoint update -t acme ep_a --no-rate-limit");
    assert!(!unlimited.contains("rate_limit"), "{unlimited}");
    up.terminate();
}

#[test]
fn endpoints_tenants_and_everything_are_paused_and_resumed() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    let operator = Operator(directory.path());
    operator.run("endpoint create -t acme --id ep_a --url https://example.com/a");
    assert!(
        operator
            .run("endpoint pause -t acme ep_a")
            .contains("paused")
    );
    assert!(
        operator
            .run("endpoint resume -t acme ep_a")
            .contains("enabled")
    );
    assert!(operator.run("tenant pause acme").contains("true"));
    assert!(operator.run("tenant list").contains("true"));
    assert!(operator.run("tenant resume acme").contains("false"));

    assert!(operator.refused("pause").contains("--yes"));
    assert!(operator.run("pause --show").contains("not paused"));
    assert!(operator.run("pause --yes").contains("are paused"));
    let shown = operator.run("pause --show --json");
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["deliveries_paused"], true);
    assert!(operator.refused("resume").contains("--yes"));
    assert!(operator.run("resume --yes").contains("not paused"));
    up.terminate();
}

#[test]
fn what_came_while_an_endpoint_was_paused_is_delivered_in_order_when_it_is_resumed() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    let operator = Operator(directory.path());
    let (paused, other) = (Receiver::start(204), Receiver::start(204));
    for (id, receiver) in [("ep_a", &paused), ("ep_b", &other)] {
        operator.run(&format!(
            "endpoint create -t acme --id {id} --url {}",
            receiver.url()
        ));
    }
    // One after the other, so that the order in which they arrive is that in which they were begun.
    operator.run("endpoint update -t acme ep_a --rate-limit 20 --burst 1");
    operator.run("endpoint pause -t acme ep_a");
    let ids = ["one", "two", "three"];
    for id in ids {
        operator.run(&format!(
            "event publish -t acme --id {id} --type a.b --data 1"
        ));
    }
    let arrived = |receiver: &Receiver| {
        let requests = receiver.requests();
        (requests.len() == ids.len()).then(|| {
            let ids = requests
                .iter()
                .map(|request| request.header("webhook-id").unwrap().to_owned());
            ids.collect::<Vec<_>>()
        })
    };
    wait_for("what the other endpoint gets", || arrived(&other));
    assert!(paused.requests().is_empty());
    operator.run("endpoint resume -t acme ep_a");
    assert_eq!(wait_for("what waited", || arrived(&paused)), ids);
    up.terminate();
}

#[test]
fn what_a_disabled_endpoint_missed_is_offered_and_replayed() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    let operator = Operator(directory.path());
    let receiver = Receiver::start(204);
    operator.run(&format!(
        "endpoint create -t acme --id ep_a --url {}",
        receiver.url()
    ));
    operator.run("endpoint disable -t acme ep_a --yes");
    operator.run("event publish -t acme --id missed --type a.b --data 1");
    // Enabled only when the event was matched, to nobody.
    wait_for("the event's route", || {
        let shown = operator.run("event show -t acme missed --json");
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        (!shown["route"].is_null()).then_some(())
    });
    let enabled = operator.output("endpoint enable -t acme ep_a");
    assert!(stdout(&enabled).contains("enabled"));
    let said = stderr(&enabled);
    let offer = said
        .lines()
        .find_map(|line| line.trim().strip_prefix("postrider "));
    let offer = offer.unwrap_or_else(|| panic!("nothing was offered: {said}"));
    assert!(operator.refused(offer).contains("--yes"));
    assert!(receiver.requests().is_empty());
    for _ in 0..2 {
        let replayed = operator.run(&format!("{offer} --yes --command-id once"));
        assert!(
            replayed.contains("1 replayed, 0 skipped, as once"),
            "{replayed}"
        );
    }
    operator.run("event publish -t acme --id last --type a.b --data 2");
    let ids = || {
        let requests = receiver.requests();
        let ids = requests
            .iter()
            .map(|request| request.header("webhook-id").unwrap().to_owned());
        let ids: Vec<_> = ids.collect();
        ids.contains(&"last".to_owned()).then_some(ids)
    };
    assert_eq!(wait_for("the last event", ids), ["missed", "last"]);

    let refused = operator.refused("endpoint enable -t acme ep_a --discard-backlog --yes");
    assert!(refused.contains("409"), "{refused}");
    operator.run("endpoint disable -t acme ep_a --yes");
    let enabled =
        operator.run("endpoint enable -t acme ep_a --discard-backlog --yes --replay-since 1h");
    assert!(enabled.contains("2 replayed"), "{enabled}");
    up.terminate();
}

#[test]
fn endpoints_are_imported_from_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    let operator = Operator(directory.path());
    let file = directory.path().join("endpoints.jsonl");
    let lines: String = (0..300)
        .map(|n| format!("{{\"id\":\"ep_{n:03}\",\"url\":\"https://example.com/{n}\"}}\n"))
        .collect();
    std::fs::write(&file, lines).unwrap();
    let file = file.to_str().unwrap();
    operator.run(&format!("endpoint import -t acme --file {}", file));
    let again = operator.refused(&format!("endpoint import -t acme --file {}", file));
    assert!(again.contains("0 created, 300 failed"), "{again}");
    let output = operator.output("endpoint list -t acme --limit 250");
    assert_eq!(stdout(&output).lines().count(), 251);
    let said = stderr(&output);
    let cursor = said.trim().rsplit(' ').next().unwrap().to_owned();
    assert_eq!(
        operator
            .run(&format!("endpoint list -t acme --cursor {}", cursor))
            .lines()
            .count(),
        51
    );
    up.terminate();
}

#[test]
fn what_was_given_up_is_listed_shown_and_redriven() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    let operator = Operator(directory.path());
    let receiver = Receiver::start(500);
    operator.run(&format!(
        "endpoint create -t acme --id ep_a --url {} --retry-schedule 1s",
        receiver.url()
    ));
    operator.run("event publish -t acme --id lost --type a.b --data {\"n\":1}");
    let letters = || {
        let list = operator.run("dead-letter list -t acme --json");
        let list: serde_json::Value = serde_json::from_str(&list).unwrap();
        list["data"][0]["id"].as_str().map(str::to_owned)
    };
    let id = wait_for("the dead letter", letters);
    assert!(operator.run("dead-letter list -t acme").contains("lost"));
    let shown = operator.run(&format!("dead-letter show -t acme {}", id));
    assert!(shown.contains("ep_a") && shown.contains("500"), "{shown}");

    receiver.answer(200);
    assert!(
        operator
            .refused("dead-letter redrive -t acme --since 1h")
            .contains("--yes")
    );
    for _ in 0..2 {
        let redriven = operator.run(&format!(
            "dead-letter redrive -t acme {} --command-id again",
            id
        ));
        assert!(redriven.contains("1 redriven"), "{redriven}");
    }
    // It comes after both redrives in its endpoint's partition, so what they lead to has happened
    // when it arrives.
    operator.run("event publish -t acme --id last --type a.b --data 2");
    wait_for("the last event", || {
        let requests = receiver.requests();
        requests
            .iter()
            .any(|request| request.header("webhook-id") == Some("last"))
            .then_some(())
    });
    let attempts = || {
        let attempts = operator.run("endpoint attempts -t acme ep_a");
        (attempts.lines().count() >= 5).then_some(attempts)
    };
    let attempts = wait_for("what was recorded", attempts);
    assert_eq!(attempts.matches("delivered").count(), 2, "{attempts}");
    assert_eq!(receiver.requests().len(), 4);
    up.terminate();
}

#[test]
fn an_api_that_is_not_there_is_said_to_be_missing() {
    let output = postrider(&[
        "tenant",
        "list",
        "--api-url",
        "http://127.0.0.1:1",
        "--api-key",
        "k",
    ])
    .output()
    .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("POSTRIDER_URL"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn generated_keys_are_taken() {
    let encryption = postrider(&["key", "generate", "encryption"])
        .output()
        .unwrap();
    let operator = postrider(&["key", "generate", "operator"])
        .output()
        .unwrap();
    let check = postrider(&["--check-config"])
        .env("POSTRIDER_KEYS__ENCRYPTION", stdout(&encryption).trim())
        .env("POSTRIDER_INGEST__OPERATOR_KEY", stdout(&operator).trim())
        .output()
        .unwrap();
    assert!(check.status.success(), "{}", stderr(&check));
    assert!(stdout(&operator).trim().len() >= 32);
}
