//! The live view: a block that is drawn again in place on a terminal, a line from time to time
//! elsewhere.

use std::io::{self, IsTerminal};
use std::time::Duration;

use tokio::time::Instant;

use super::Behaviour;
use super::audit::{Audit, Tally};
use super::ledger::Ledger;
use crate::output;

const REDRAW_INTERVAL: Duration = Duration::from_millis(500);
const LINE_INTERVAL: Duration = Duration::from_secs(2);
const CLEAR_BELOW: &str = "\x1b[J";

/// Shows the books.
#[derive(Debug)]
pub(crate) struct View {
    url: String,
    terminal: bool,
    started: Instant,
    lines_drawn: usize,
}

impl View {
    pub(crate) fn new(url: &str) -> Self {
        let terminal = io::stdout().is_terminal();
        output::data(format!(
            "Postrider shows itself at {url}. Control-C stops it."
        ));
        Self {
            url: url.to_owned(),
            terminal,
            started: Instant::now(),
            lines_drawn: 0,
        }
    }

    /// How often to show.
    pub(crate) fn interval(&self) -> Duration {
        if self.terminal {
            REDRAW_INTERVAL
        } else {
            LINE_INTERVAL
        }
    }

    /// Shows how it stands.
    pub(crate) fn show(&mut self, ledger: &Ledger, audit: &Audit) {
        if self.terminal {
            self.draw(ledger, audit);
        } else {
            output::data(line(ledger, audit));
        }
    }

    /// Shows how it stood at the end.
    pub(crate) fn end(&mut self, ledger: &Ledger, audit: &Audit) {
        if self.terminal {
            self.draw(ledger, audit);
        } else {
            output::data(self.block(ledger, audit).join("\n"));
        }
    }

    fn draw(&mut self, ledger: &Ledger, audit: &Audit) {
        let block = self.block(ledger, audit);
        let up = if self.lines_drawn > 0 {
            format!("\x1b[{}A\r", self.lines_drawn)
        } else {
            String::new()
        };
        output::data(format!("{up}{CLEAR_BELOW}{}", block.join("\n")));
        self.lines_drawn = block.len();
    }

    fn block(&self, ledger: &Ledger, audit: &Audit) -> Vec<String> {
        let seconds = self.started.elapsed().as_secs();
        let heading = format!(
            "{:<17}{:<21}{:>10}{:>9}{:>10}{:>9}",
            "endpoint", "which", "delivered", "retried", "given up", "pending"
        );
        let mut lines = vec![
            String::new(),
            format!(
                "{:02}:{:02}  {} events accepted at {}",
                seconds / 60,
                seconds % 60,
                ledger.accepted(),
                self.url
            ),
            String::new(),
            heading,
        ];
        let row = |name: &str, which: &str, tally: Tally| {
            let Tally {
                delivered,
                retried,
                given_up,
                pending,
            } = tally;
            format!("{name:<17}{which:<21}{delivered:>10}{retried:>9}{given_up:>10}{pending:>9}")
        };
        for behaviour in Behaviour::ALL {
            lines.push(row(
                &behaviour.endpoint(),
                behaviour.describe(),
                audit.tally(behaviour),
            ));
        }
        lines.push(row("total", "", total(audit)));
        lines
    }
}

fn line(ledger: &Ledger, audit: &Audit) -> String {
    let describe = |Tally {
                        delivered,
                        retried,
                        given_up,
                        pending,
                    }: Tally| {
        format!("delivered={delivered} retried={retried} given_up={given_up} pending={pending}")
    };
    let mut line = format!("accepted={} {}", ledger.accepted(), describe(total(audit)));
    for behaviour in Behaviour::ALL {
        line.push_str(&format!(
            " | {} {}",
            behaviour.endpoint(),
            describe(audit.tally(behaviour))
        ));
    }
    line
}

fn total(audit: &Audit) -> Tally {
    Behaviour::ALL
        .into_iter()
        .map(|behaviour| audit.tally(behaviour))
        .fold(Tally::default(), |sum, tally| Tally {
            delivered: sum.delivered + tally.delivered,
            retried: sum.retried + tally.retried,
            given_up: sum.given_up + tally.given_up,
            pending: sum.pending + tally.pending,
        })
}
