//! Events on their way to endpoints: at fixed times, whether the earlier ones were answered or not,
//! or as fast as they are taken.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use axum::http::Method;
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use postrider_tests::Api;

use crate::receivers::Receivers;

const PUBLISHERS: usize = 128;
const EVENT_BYTES: usize = 512;

/// A stream of events that one endpoint wants. Its number is that of its endpoint.
#[derive(Debug)]
pub(crate) struct Flow {
    /// Number of its endpoint.
    pub(crate) endpoint: usize,
    /// Its tenant.
    pub(crate) api: Api,
    /// Time between two events.
    pub(crate) every: Duration,
}

/// An event that was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Sent {
    /// Whose.
    pub(crate) flow: usize,
    /// When it was due to be published.
    pub(crate) due_us: u64,
    /// Tells events apart that were due at once.
    pub(crate) number: u64,
}

/// Publishes and remembers what was accepted.
#[derive(Debug)]
pub(crate) struct Publisher<'a> {
    receivers: &'a Receivers,
    sent: Mutex<Vec<Sent>>,
}

/// When the first event of each flow is due: spread, so that they don't come all at once.
fn first_times(flows: &[Flow], now_us: u64) -> BTreeSet<(u64, usize)> {
    let count = u32::try_from(flows.len()).unwrap_or(u32::MAX);
    let first = (0_u32..).zip(flows).zip(0..);
    first
        .map(|((number, flow), index)| (now_us + microseconds(flow.every * number / count), index))
        .collect()
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The type of event that an endpoint wants.
pub(crate) fn event_type(endpoint: usize) -> String {
    format!("bench.n{endpoint}")
}

impl<'a> Publisher<'a> {
    pub(crate) fn new(receivers: &'a Receivers) -> Self {
        Self {
            receivers,
            sent: Mutex::default(),
        }
    }

    /// Publishes the events of all flows, evenly spread, each at its time, while something goes on,
    /// and gives what that gives.
    pub(crate) async fn keep_pace<T>(
        &self,
        flows: &[Flow],
        meanwhile: impl Future<Output = T>,
    ) -> T {
        let stop = AtomicBool::new(false);
        let until_it_ends = async {
            let given = meanwhile.await;
            stop.store(true, Ordering::Relaxed);
            given
        };
        let ((), given) = tokio::join!(self.publish_until(flows, &stop), until_it_ends);
        given
    }

    async fn publish_until(&self, flows: &[Flow], stop: &AtomicBool) {
        let began = tokio::time::Instant::from_std(self.receivers.began());
        let mut due = first_times(flows, self.receivers.now_us());
        let events = stream::poll_fn(move |_| {
            let next = due.pop_first().filter(|_| !stop.load(Ordering::Relaxed));
            if let Some((due_us, index)) = next {
                due.insert((due_us + microseconds(flows[index].every), index));
            }
            Poll::Ready(next)
        });
        events
            .then(async |(due_us, index)| {
                tokio::time::sleep_until(began + Duration::from_micros(due_us)).await;
                (due_us, index)
            })
            .for_each_concurrent(PUBLISHERS, |(due_us, index)| {
                self.publish(&flows[index], due_us, 0)
            })
            .await;
    }

    /// Publishes so many events of one flow as fast as they are accepted.
    pub(crate) async fn pour(&self, flow: &Flow, count: u64) {
        stream::iter(0..count)
            .for_each_concurrent(PUBLISHERS / 2, |number| {
                // From 1: 0 is that of events with a time of their own.
                self.publish(flow, self.receivers.now_us(), number + 1)
            })
            .await;
    }

    async fn publish(&self, flow: &Flow, due_us: u64, number: u64) {
        let Flow { endpoint, api, .. } = flow;
        let event_type = event_type(*endpoint);
        let padding = "x".repeat(EVENT_BYTES);
        let body = format!(
            r#"{{"id":"b{endpoint}-{due_us}-{number}","type":"{event_type}","data":{{"padding":"{padding}"}}}}"#
        );
        let json = [("content-type", "application/json")];
        let answer = api.call(Method::POST, "/events", &json, body).await;
        let answer = answer.expect("ingest answers");
        assert_eq!(answer.status, 202, "{}", answer.json());
        self.sent().push(Sent {
            flow: *endpoint,
            due_us,
            number,
        });
    }

    /// What was accepted so far, in order.
    pub(crate) fn accepted(&self) -> Vec<Sent> {
        let mut sent = self.sent().clone();
        sent.sort_unstable();
        sent
    }

    fn sent(&self) -> parking_lot::MutexGuard<'_, Vec<Sent>> {
        self.sent.lock()
    }
}
