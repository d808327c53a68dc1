//! An endpoint gets twice what it takes.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;

use super::{Options, STRAGGLERS, Stage};
use crate::flow::Publisher;
use crate::receivers::{Arrival, Manner};
use crate::report::{Latencies, record};
use crate::say;

const NEIGHBOURS: usize = 4;
const SLOW: usize = NEIGHBOURS;
const GETS_PER_SECOND: f64 = 20.0;
const ONE_TAKES: Duration = Duration::from_millis(100);
/// What is served is counted in pieces of this length.
const PIECE: Duration = Duration::from_secs(5);

/// How steadily a slow endpoint is served, and whether in order of acceptance.
pub(crate) async fn slow(options: &Options) {
    let length = options.phase(20);
    say(&format!(
        "\nslow: one endpoint gets {GETS_PER_SECOND} events/s and takes one in {ONE_TAKES:?}, for {length:?}, beside \
         {NEIGHBOURS} healthy ones"
    ));
    let stage = Stage::set(options, NEIGHBOURS + 1).await;
    let receivers = &stage.receivers;
    receivers.set(SLOW, Manner::TakesTurns(ONE_TAKES));
    let flows = stage.flows(NEIGHBOURS + 1, GETS_PER_SECOND);
    let publisher = Publisher::new(receivers);
    let from = receivers.now_us();
    let served = publisher.keep_pace(&flows, count_pieces(&stage, length));
    let served = served.await;
    let arrivals = receivers.arrivals();
    tokio::time::sleep(STRAGGLERS).await;
    let all = from..receivers.now_us();
    let neighbours = Latencies::of(&publisher, receivers, |flow| flow != SLOW, &all);
    neighbours.say("others");

    let own: Vec<Arrival> = arrivals
        .into_iter()
        .filter(|arrival| arrival.flow == SLOW)
        .collect();
    let events: BTreeSet<u64> = own.iter().map(|arrival| arrival.due_us).collect();
    let displaced = displaced_max(&own);
    say(&format!(
        "  served in each {PIECE:?}: {served:?} (50 are as steady as can be)"
    ));
    say(&format!(
        "  {} requests for {} events; none came before more than {displaced} earlier ones",
        own.len(),
        events.len()
    ));
    let figures = json!({
        "served_in_pieces": served,
        "piece_s": PIECE.as_secs(),
        "requests": own.len(),
        "events": events.len(),
        "displaced_max": displaced,
        "others": neighbours.json(),
    });
    record("slow", &figures);
}

/// What the slow endpoint answered in each piece of the time.
async fn count_pieces(stage: &Stage, length: Duration) -> Vec<u64> {
    let pieces = length.as_secs().div_ceil(PIECE.as_secs());
    let (mut served, mut before) = (Vec::new(), stage.receivers.answered(SLOW));
    let mut ticks = tokio::time::interval(PIECE);
    ticks.tick().await;
    for _ in 0..pieces {
        ticks.tick().await;
        let now = stage.receivers.answered(SLOW);
        served.push(now - before);
        before = now;
    }
    served
}

/// For each first request of an event: how many events published earlier came after it. The most of
/// these.
fn displaced_max(arrivals: &[Arrival]) -> usize {
    let mut seen = BTreeSet::new();
    let first: Vec<u64> = arrivals
        .iter()
        .map(|arrival| arrival.due_us)
        .filter(|due_us| seen.insert(*due_us))
        .collect();
    let mut later = BTreeSet::new();
    let mut most = 0;
    for due_us in first.iter().rev() {
        most = most.max(later.range(..due_us).count());
        later.insert(*due_us);
    }
    most
}
