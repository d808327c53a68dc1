//! Signals, on a process of its own: this program started again as a child.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use postrider_daemon::{CancellationToken, signals};

const CHILD: &str = "SIGNALS_TEST_CHILD";

/// The child: says when it listens, when it was asked to end, and then does not end.
#[test]
fn child() {
    if env::var_os(CHILD).is_none() {
        return;
    }
    let token = CancellationToken::new();
    signals::listen(token.clone()).unwrap();
    say("listening");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(token.cancelled());
    say("asked");
    std::thread::sleep(Duration::from_secs(60));
}

fn say(word: &str) {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "\n{word}").unwrap();
    stdout.flush().unwrap();
}

fn exit_code_after(first: &str, second: &str) -> Option<i32> {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let id = child.id().to_string();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut send_when = |word: &str, signal: &str| {
        assert!(
            lines.any(|line| line.unwrap() == word),
            "the child never said {word}"
        );
        assert!(
            Command::new("kill")
                .args(["-s", signal, &id])
                .status()
                .unwrap()
                .success()
        );
    };
    send_when("listening", first);
    send_when("asked", second);
    child.wait().unwrap().code()
}

#[test]
fn the_first_signal_asks_and_the_second_exits() {
    assert_eq!(exit_code_after("TERM", "TERM"), Some(143));
    assert_eq!(exit_code_after("TERM", "INT"), Some(130));
}
