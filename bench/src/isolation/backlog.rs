//! A dead endpoint gathers a backlog and comes back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::spawn_blocking;

use super::{Options, STRAGGLERS, Stage, warm_up};
use crate::flow::Publisher;
use crate::receivers::Manner;
use crate::report::{Latencies, compare, record};
use crate::say;

const NEIGHBOURS: usize = 8;
const PER_SECOND: f64 = 25.0;
/// Number of the endpoint that dies.
const DEAD: usize = NEIGHBOURS;
/// The slowest that a backlog is expected to be served by an endpoint that answers at once.
const SERVED_PER_SECOND_MIN: u64 = 500;
/// What a delivery may leave behind, apart from itself.
const WRITTEN: [&str; 4] = ["attempts", "retry", "dead-letters", "endpoint-state"];

/// Neighbours at a steady pace: before an endpoint dies, while it gathers deliveries, when it has
/// them, while it is served and afterwards. And how many records its backlog leaves in the log
/// beside itself.
pub(crate) async fn backlog(options: &Options) {
    say(&format!(
        "\nbacklog: {NEIGHBOURS} endpoints with {PER_SECOND} events/s each; one more never answers, gathers {} \
         deliveries, answers again",
        options.backlog
    ));
    let stage = Stage::set(options, NEIGHBOURS + 1).await;
    let flows = stage.flows(NEIGHBOURS, PER_SECOND);
    let publisher = Publisher::new(&stage.receivers);
    let run = run(options, &stage, &publisher);
    let run = publisher.keep_pace(&flows, run).await;
    tokio::time::sleep(STRAGGLERS).await;
    report(options, &stage, &publisher, run);
}

/// What happened, by phase.
struct Run {
    phases: Vec<(&'static str, std::ops::Range<u64>)>,
    extra_records: BTreeMap<&'static str, i64>,
    filled_in: Duration,
    served: u64,
    served_in: Duration,
}

async fn run(options: &Options, stage: &Stage, publisher: &Publisher<'_>) -> Run {
    let (receivers, length) = (&stage.receivers, options.phase(10));
    tokio::time::sleep(warm_up()).await;
    let mut phases = vec![("before", stage.measure(length).await)];

    let written_before = written(stage).await;
    receivers.set(DEAD, Manner::Hangs);
    let (from, filling) = (receivers.now_us(), Instant::now());
    let flow = stage.flow(DEAD, PER_SECOND);
    publisher.pour(&flow, options.backlog).await;
    let filled_in = filling.elapsed();
    phases.push(("filling", from..receivers.now_us()));
    phases.push(("full", stage.measure(length).await));
    let mut extra_records = written(stage).await;
    for (topic, records) in &mut extra_records {
        *records -= written_before[topic];
    }

    receivers.set(DEAD, Manner::Answers);
    let (from, serving) = (receivers.now_us(), Instant::now());
    let at_most = length + Duration::from_secs(options.backlog / SERVED_PER_SECOND_MIN);
    while receivers.answered(DEAD) < options.backlog && serving.elapsed() < at_most {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (served, served_in) = (receivers.answered(DEAD), serving.elapsed());
    phases.push(("served", from..receivers.now_us()));
    phases.push(("after", stage.measure(length).await));
    Run {
        phases,
        extra_records,
        filled_in,
        served,
        served_in,
    }
}

fn report(options: &Options, stage: &Stage, publisher: &Publisher<'_>, run: Run) {
    let mut figures = json!({
        "backlog": options.backlog,
        "filled_s": run.filled_in.as_secs_f64(),
        "served": run.served,
        "served_s": run.served_in.as_secs_f64(),
        "extra_records": run.extra_records,
    });
    let mut before = None;
    for (name, due_us) in run.phases {
        let neighbours = |flow| flow != DEAD;
        let latencies = Latencies::of(publisher, &stage.receivers, neighbours, &due_us);
        latencies.say(name);
        figures[name] = latencies.json();
        match &before {
            None => before = Some(latencies),
            // Whoever publishes as fast as it can takes its part of the machine itself.
            Some(_) if name == "filling" => {}
            Some(before) => figures[name]["comparison"] = compare(before, &latencies),
        }
    }
    say(&format!(
        "  gathered in {:.1} s, {} of {} served in {:.1} s",
        run.filled_in.as_secs_f64(),
        run.served,
        options.backlog,
        run.served_in.as_secs_f64()
    ));
    say(&format!(
        "  records beside the backlog itself, and beside one attempt for each request: {:?}",
        run.extra_records
    ));
    record("backlog", &figures);
}

/// How many records each topic got so far, apart from one attempt for each request that came. It is
/// counted while events flow, so attempts may be wrong by what comes in the second that a count
/// takes.
async fn written(stage: &Stage) -> BTreeMap<&'static str, i64> {
    let mut written = BTreeMap::new();
    for topic in WRITTEN {
        let cluster = Arc::clone(&stage.cluster);
        let count = spawn_blocking(move || cluster.records_written(topic));
        let mut records = count.await.expect("a topic is counted");
        if topic == "attempts" {
            let requests = stage.receivers.arrivals().len();
            records -= i64::try_from(requests).unwrap_or(i64::MAX);
        }
        written.insert(topic, records);
    }
    written
}
