//! `make bench`: what one machine carries end to end, and what endpoints in trouble cost the
//! others.
//!
//! `make bench ARGS="isolation --seconds 20"` runs one part. Each scenario prints what it measured
//! for people and as a line of JSON. Figures of one run compare with each other only.

mod cpu;
mod flow;
mod isolation;
mod overload;
mod receiver_process;
mod receivers;
mod report;
mod throughput;

use clap::{Parser, ValueEnum};
use postrider_tests::LogKind;

/// The argument that makes this program the receiver of the throughput benchmark.
const RECEIVER: &str = "receiver";

/// Measures Postrider on this machine.
#[derive(Debug, Parser)]
struct Args {
    /// What to measure; everything unless named.
    scenarios: Vec<Scenario>,
    #[command(flatten)]
    isolation: isolation::Options,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Throughput, latency and CPU on a real Kafka.
    Kafka,
    /// The same on the embedded log.
    Embedded,
    /// Of ten endpoints, one never answers and one answers 500.
    Isolation,
    /// Of a thousand endpoints, 300 never answer.
    ManyHang,
    /// One tenant floods while others trickle.
    Flood,
    /// A dead endpoint gathers a backlog and comes back.
    Backlog,
    /// An endpoint gets twice what it takes.
    Slow,
    /// Ingest has many times more callers than it can serve.
    Overload,
    /// This program's own receiver.
    #[value(hide = true)]
    Receiver,
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    let mut scenarios = args.scenarios;
    if scenarios.is_empty() {
        scenarios = Scenario::value_variants().to_vec();
        scenarios.retain(|scenario| *scenario != Scenario::Receiver);
    }
    for scenario in scenarios {
        let options = &args.isolation;
        match scenario {
            Scenario::Kafka => throughput::bench(LogKind::Kafka).await,
            Scenario::Embedded => throughput::bench(LogKind::Embedded).await,
            Scenario::Isolation => isolation::two_of_ten(options).await,
            Scenario::ManyHang => isolation::many_hang(options).await,
            Scenario::Flood => isolation::flood(options).await,
            Scenario::Backlog => isolation::backlog(options).await,
            Scenario::Slow => isolation::slow(options).await,
            Scenario::Overload => overload::bench().await,
            Scenario::Receiver => receiver_process::receive().await,
        }
    }
}

#[expect(clippy::print_stdout, reason = "this is what the program is for")]
fn say(line: &str) {
    println!("{line}");
}
