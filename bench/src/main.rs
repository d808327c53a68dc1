//! `make bench`: what one machine carries end to end, and what endpoints in trouble cost the
//! others.
//!
//! `make bench ARGS="isolation --seconds 20"` runs one part. Each scenario prints what it measured
//! for people and as a line of JSON. Figures of one run compare with each other only.

mod builds;
mod cpu;
mod figures;
mod flow;
mod isolation;
mod overload;
mod perf;
mod pipe;
mod publish;
mod receiver_process;
mod receivers;
mod report;
mod scale;
mod throughput;
mod yardsticks;

use std::time::Instant;

use clap::{Parser, ValueEnum};
use postrider_tests::LogKind;

use pipe::PIPE;

/// The argument that makes this program the receiver of the throughput benchmark.
const RECEIVER: &str = "receiver";

/// Measures Postrider on this machine.
#[derive(Debug, Parser)]
struct Args {
    /// What to measure; everything unless named.
    scenarios: Vec<Scenario>,
    #[command(flatten)]
    builds: builds::Options,
    #[command(flatten)]
    isolation: isolation::Options,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// The parts that Postrider stands on, alone.
    Yardsticks,
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
    /// A hundred thousand endpoints.
    Scale,
    /// Ingest has many times more callers than it can serve.
    Overload,
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [RECEIVER] => receiver_process::receive().await,
        [PIPE, bootstrap, topic, url] => pipe::run(bootstrap, topic, url).await,
        _ => measure(Args::parse()).await,
    }
}

async fn measure(args: Args) {
    let mut scenarios = args.scenarios;
    if scenarios.is_empty() {
        scenarios = Scenario::value_variants().to_vec();
    }
    let began = Instant::now();
    for scenario in scenarios {
        let options = &args.isolation;
        match scenario {
            Scenario::Yardsticks => yardsticks::bench().await,
            Scenario::Kafka => throughput::bench(LogKind::Kafka, &args.builds).await,
            Scenario::Embedded => throughput::bench(LogKind::Embedded, &args.builds).await,
            Scenario::Isolation => isolation::two_of_ten(options).await,
            Scenario::ManyHang => isolation::many_hang(options).await,
            Scenario::Flood => isolation::flood(options).await,
            Scenario::Backlog => isolation::backlog(options).await,
            Scenario::Slow => isolation::slow(options).await,
            Scenario::Scale => scale::bench().await,
            Scenario::Overload => overload::bench().await,
        }
        say(&format!("  {} s so far", began.elapsed().as_secs()));
    }
}

#[expect(clippy::print_stdout, reason = "this is what the program is for")]
fn say(line: &str) {
    println!("{line}");
}
