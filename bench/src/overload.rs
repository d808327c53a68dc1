//! What ingest does with more callers than it can serve.
//!
//! Each caller has a connection of its own and publishes one event after the other: first as many
//! as a busy producer has, which gives the peak, then many times more, who wait as `Retry-After`
//! says when they are refused, and as many who do not wait; each of these between two peaks that it
//! is compared with, since a machine is not the same for long. Whoever waits is to be refused soon,
//! and what is accepted is to be nearly as much as at the peak, in bounded memory. Callers and
//! broker share the machine with what is measured.

use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::Method;
use postrider_tests::{Api, Cluster, KafkaBroker, LogKind, Plan};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::cpu::{self, Used};
use crate::report::{at_per_mille, record};
use crate::say;

const BODIES: [usize; 2] = [1_000, 100_000];
const PEAK: Load = Load::of("peak", 256, true);
const OVERLOAD: Load = Load::of("overload", 4_000, true);
const IMPATIENT: Load = Load::of("impatient", 4_000, false);
/// Until all are connected and what came first is answered.
const BEGINS_FOR: Duration = Duration::from_secs(4);
const MEASURED_FOR: Duration = Duration::from_secs(7);
/// What an overload may leave of the peak.
const ACCEPTED_MIN: f64 = 0.9;
/// Within which half of those who wait when they are asked to are refused.
const REFUSED_WITHIN_MS: f64 = 20.0;
const MEMORY_MAX: u64 = 192 << 20;

/// Callers who publish one event after the other.
#[derive(Debug, Clone, Copy)]
struct Load {
    name: &'static str,
    callers: u32,
    /// They wait for as long as `Retry-After` says.
    wait: bool,
}

impl Load {
    const fn of(name: &'static str, callers: u32, wait: bool) -> Self {
        Self {
            name,
            callers,
            wait,
        }
    }
}

/// What callers were answered, and after how many microseconds.
#[derive(Debug, Default)]
struct Answers {
    accepted_us: Vec<u64>,
    refused_us: Vec<u64>,
    /// What else came, or why nothing did.
    other: Vec<String>,
    /// CPU seconds that each process took meanwhile.
    cpu_s: Vec<(String, f64)>,
}

pub(crate) async fn bench() {
    say("\noverload: callers that publish one event after the other, each on its own connection");
    raise_limit_of_files();
    let plan = Plan::new(LogKind::Kafka).set("POSTRIDER_TOPICS__PARTITIONS", "12");
    let cluster = plan.broker(KafkaBroker::as_shipped()).start().await;
    // So that code is warm, the broker's too.
    publish(&cluster, PEAK, BODIES[0]).await;
    for bytes in BODIES {
        say(&format!("  {bytes} bytes"));
        let before = publish(&cluster, PEAK, bytes).await;
        let waiting = publish(&cluster, OVERLOAD, bytes).await;
        let between = publish(&cluster, PEAK, bytes).await;
        let impatient = publish(&cluster, IMPATIENT, bytes).await;
        let peak = usize::midpoint(before.accepted_us.len(), between.accepted_us.len());
        let memory_bytes = peak_memory_bytes(&cluster);
        for (load, answers) in [
            (PEAK, before),
            (OVERLOAD, waiting),
            (PEAK, between),
            (IMPATIENT, impatient),
        ] {
            let figures = tell(load, &answers, peak, memory_bytes);
            record(
                "overload",
                &json!({ "bytes": bytes, "load": load.name, "seen": figures }),
            );
        }
    }
}

fn peak_memory_bytes(cluster: &Cluster) -> u64 {
    let ingest = cluster.processes().find(|(name, _)| *name == "ingest-0");
    ingest.map_or(0, |(_, process)| process.peak_memory_bytes())
}

/// As far as it may: each caller has a connection.
fn raise_limit_of_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).expect("a limit can be raised to its maximum");
}

/// Lets the callers publish, and gives what those were answered who asked while it was measured.
async fn publish(cluster: &Cluster, load: Load, bytes: usize) -> Answers {
    let padding = "x".repeat(bytes);
    let body = Bytes::from(format!(r#"{{"type":"bench.overload","data":"{padding}"}}"#));
    let began = Instant::now();
    let mut calling = JoinSet::new();
    for number in 0..load.callers {
        // Not all at the same moment.
        let begins = BEGINS_FOR / 2 * number / load.callers;
        let (api, body) = (cluster.api(), body.clone());
        calling.spawn(async move {
            tokio::time::sleep(begins).await;
            call(api, body, began, load.wait).await
        });
    }
    tokio::time::sleep_until((began + BEGINS_FOR).into()).await;
    let used = Used::new(cpu::processes(cluster, "callers"));
    let mut all = Answers::default();
    tokio::time::sleep_until((began + BEGINS_FOR + MEASURED_FOR).into()).await;
    let seconds = used.seconds();
    all.cpu_s = seconds
        .map(|(name, seconds)| (name.to_owned(), seconds))
        .collect();
    while let Some(one) = calling.join_next().await {
        let one = one.expect("a caller ends by itself");
        all.accepted_us.extend(one.accepted_us);
        all.refused_us.extend(one.refused_us);
        all.other.extend(one.other);
    }
    all.accepted_us.sort_unstable();
    all.refused_us.sort_unstable();
    all
}

/// Publishes one event after the other.
async fn call(api: Api, body: Bytes, began: Instant, wait: bool) -> Answers {
    let json = [("content-type", "application/json")];
    let mut answers = Answers::default();
    while began.elapsed() < BEGINS_FOR + MEASURED_FOR {
        if began.elapsed() < BEGINS_FOR {
            answers = Answers::default();
        }
        let asked = Instant::now();
        let answer = api.call(Method::POST, "/events", &json, body.clone()).await;
        let waited_us = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
        let again_after_s = match &answer {
            Ok(answer) => answer.header("retry-after").parse().ok(),
            Err(_) => None,
        };
        match (answer, again_after_s) {
            (Ok(answer), _) if answer.status == 202 => answers.accepted_us.push(waited_us),
            (Ok(_), Some(_)) => answers.refused_us.push(waited_us),
            (other, _) => answers.other.push(format!("{other:?}")),
        }
        if let Some(seconds) = again_after_s.filter(|_| wait) {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
        }
    }
    answers
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn tell(load: Load, answers: &Answers, peak: usize, memory_bytes: u64) -> Value {
    let per_second = |times: &[u64]| times.len() as f64 / MEASURED_FOR.as_secs_f64();
    let Answers {
        accepted_us,
        refused_us,
        other,
        cpu_s,
    } = answers;
    let of_peak = accepted_us.len() as f64 / peak as f64;
    let [accepted_ms, refused_ms] =
        [accepted_us, refused_us].map(|times| [500, 990].map(|part| at_per_mille(times, part)));
    let kept = of_peak >= ACCEPTED_MIN
        && (!load.wait || refused_ms[0] <= REFUSED_WITHIN_MS)
        && memory_bytes <= MEMORY_MAX
        && other.is_empty();
    say(&format!(
        "  {:<9} {:>5} callers: {:>6.0}/s accepted, p50 {:.1} ms, p99 {:.1} ms; {:>5.0}/s refused, p50 {:.1} ms, p99 {:.1} ms; \
         {} other answers; memory so far up to {} MiB; {of_peak:.2} of the peak: {}",
        load.name,
        load.callers,
        per_second(accepted_us),
        accepted_ms[0],
        accepted_ms[1],
        per_second(refused_us),
        refused_ms[0],
        refused_ms[1],
        other.len(),
        memory_bytes >> 20,
        if kept { "kept" } else { "NOT KEPT" },
    ));
    let per_event_us = |(name, seconds): &(String, f64)| {
        format!("{name} {:.0}", seconds * 1e6 / accepted_us.len() as f64)
    };
    say(&format!(
        "    CPU for each event accepted, in microseconds: {}",
        cpu_s
            .iter()
            .map(per_event_us)
            .collect::<Vec<_>>()
            .join(", ")
    ));
    if let Some(other) = other.first() {
        say(&format!("    such as {other}"));
    }
    json!({
        "callers": load.callers,
        "accepted_per_s": per_second(accepted_us),
        "accepted_p50_ms": accepted_ms[0],
        "accepted_p99_ms": accepted_ms[1],
        "refused_per_s": per_second(refused_us),
        "refused_p50_ms": refused_ms[0],
        "refused_p99_ms": refused_ms[1],
        "other": other.len(),
        "cpu_s": cpu_s.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        "memory_bytes": memory_bytes,
        "of_peak": of_peak,
        "kept": kept,
    })
}
