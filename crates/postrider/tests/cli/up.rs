use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use crate::support::{Receiver, Up, postrider, run, signal, stderr, stdout, wait_for};

/// Pastes a line into a shell.
fn paste(line: &str, webhook_url: &str) -> Output {
    let output = Command::new("sh")
        .args(["-c", line])
        .env("WEBHOOK_URL", webhook_url)
        .env_remove("POSTRIDER_URL")
        .env_remove("POSTRIDER_API_KEY")
        .output()
        .unwrap();
    assert!(output.status.success(), "{line}\n{}", stderr(&output));
    output
}

#[test]
fn the_commands_it_prints_work_as_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("with space");
    let receiver = Receiver::start(200);
    let up = Up::start(&data_dir);
    let commands = up.commands();
    assert_eq!(commands.len(), 3, "{}", up.welcome);

    let created = paste(&commands[0], &receiver.url());
    assert!(stdout(&created).contains("whsec_"), "{}", stdout(&created));
    let published = paste(&commands[1], &receiver.url());
    assert_eq!(stdout(&published), "evt_first\n");
    let shown = stdout(&paste(&commands[2], &receiver.url()));
    assert!(
        shown.contains("delivered") && shown.contains("succeeded") && shown.contains("200"),
        "{shown}"
    );

    let requests = receiver.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].header("webhook-id"), Some("evt_first"));
    let data = r#""data":{"amount": 4200, "currency": "EUR"}}"#;
    assert!(requests[0].body.ends_with(data), "{}", requests[0].body);
    assert!(up.terminate().success());
}

#[test]
fn keys_are_generated_once_for_their_owner_alone_and_not_printed() {
    let directory = tempfile::tempdir().unwrap();
    let key_path = directory.path().join("operator.key");
    let up = Up::start(directory.path());
    let key = std::fs::read_to_string(&key_path).unwrap();
    assert!(
        up.welcome.contains(key_path.to_str().unwrap()) && !up.welcome.contains(key.trim()),
        "{}",
        up.welcome
    );
    for name in ["operator.key", "encryption.key"] {
        let mode = std::fs::metadata(directory.path().join(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let without = run(&[
        "tenant",
        "list",
        "--api-url",
        &up.url(),
        "--data-dir",
        "/nowhere",
    ]);
    assert_eq!(without.status.code(), Some(1));
    assert!(
        stderr(&without).contains("POSTRIDER_API_KEY"),
        "{}",
        stderr(&without)
    );
    let wrong = run(&[
        "tenant",
        "list",
        "--api-url",
        &up.url(),
        "--api-key",
        "0123456789abcdef",
    ]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(stderr(&wrong).contains("401"), "{}", stderr(&wrong));
    up.terminate();
    let again = Up::start(directory.path());
    assert_eq!(std::fs::read_to_string(&key_path).unwrap(), key);
    again.terminate();
}

#[test]
fn a_second_start_goes_on_with_what_waits() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().to_str().unwrap();
    let receiver = Receiver::start(500);
    let up = Up::start(directory.path());
    let created = run(&[
        "endpoint",
        "create",
        "--tenant",
        "acme",
        "--id",
        "ep_later",
        "--url",
        &receiver.url(),
        "--retry-schedule",
        "3s,1s,1s",
        "--data-dir",
        data_dir,
    ]);
    assert!(created.status.success(), "{}", stderr(&created));
    let published = run(&[
        "event",
        "publish",
        "--tenant",
        "acme",
        "--id",
        "waits",
        "--type",
        "a.b",
        "--data",
        "1",
        "--data-dir",
        data_dir,
    ]);
    assert!(published.status.success(), "{}", stderr(&published));
    let state = |wanted: &str| {
        let shown = run(&[
            "event",
            "show",
            "--tenant",
            "acme",
            "waits",
            "--json",
            "--data-dir",
            data_dir,
        ]);
        stdout(&shown).contains(wanted).then_some(())
    };
    wait_for("the first attempt", || state("\"retrying\""));
    up.kill();

    receiver.answer(200);
    let up = Up::start(directory.path());
    wait_for("the retry", || state("\"delivered\""));
    assert_eq!(receiver.requests().len(), 2);
    up.terminate();
}

#[test]
fn a_taken_port_says_which_and_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let data_dir = directory.path().to_str().unwrap();
    let free = "127.0.0.1:0";
    for (listen, health, flag) in [
        (address.as_str(), free, "--listen"),
        (free, address.as_str(), "--health-listen"),
    ] {
        let output = run(&[
            "up",
            "--data",
            data_dir,
            "--listen",
            listen,
            "--health-listen",
            health,
        ]);
        assert_eq!(output.status.code(), Some(1));
        let said = stderr(&output);
        assert!(said.contains(&address) && said.contains(flag), "{said}");
    }
}

#[test]
fn a_data_directory_in_use_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(directory.path());
    let second = postrider(&[
        "up",
        "--listen",
        "127.0.0.1:0",
        "--health-listen",
        "127.0.0.1:0",
        "--data",
    ])
    .arg(directory.path())
    .output()
    .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(
        stderr(&second).contains("--data-dir names another"),
        "{}",
        stderr(&second)
    );
    up.terminate();
}

#[test]
fn a_worker_asked_to_end_before_it_could_begin_ends_well() {
    // Nobody listens there, so it waits for its registry.
    let mut child = postrider(&["deliver", "--health-listen", "127.0.0.1:0"])
        .env("POSTRIDER_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
        .env("POSTRIDER_KEYS__ENCRYPTION", "00".repeat(32))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    // By then it hears signals.
    assert!(said.any(|line| line.unwrap().contains("no kafka broker answers")));
    signal(child.id(), "TERM");
    // Until its end: nobody writes to a closed pipe for long.
    assert!(said.all(|line| line.is_ok()));
    let status = wait_for("the end of the process", || child.try_wait().unwrap());
    assert!(status.success(), "{status}");
}
