//! Many events at once.

use futures_util::StreamExt;
use futures_util::stream;
use postrider_tests::{Api, Cluster, Plan, Receiver};
use serde_json::json;
use std::time::Duration;

use crate::topic_log::drained;

/// How long a few thousand events may take on a busy machine.
pub(crate) const LOAD_WITHIN: Duration = Duration::from_secs(120);
/// Endpoints that share the load; each has a lane of its own.
pub(crate) const ENDPOINTS: usize = 4;
const PUBLISHERS: usize = 16;

/// Creates endpoints for the types `load.0`, `load.1`, …, all at the same path.
pub(crate) async fn create_endpoints(api: &Api, receiver: &Receiver, path: &str) {
    for number in 0..ENDPOINTS {
        let types = json!({ "event_types": [format!("load.n{number}")] });
        api.create_endpoint(&receiver.url(path), types).await;
    }
}

/// Publishes so many events, spread over the endpoints, and gives the ids of all: each was
/// accepted.
pub(crate) async fn publish(api: &Api, count: usize) -> Vec<String> {
    let events = stream::iter(0..count).map(async |number| {
        let event_type = format!("load.n{}", number % ENDPOINTS);
        api.publish(&json!({ "type": event_type, "data": { "number": number } }))
            .await
    });
    events.buffer_unordered(PUBLISHERS).collect().await
}

/// A cluster after so many events were published, came to the path and were settled, with their
/// ids.
pub(crate) async fn with_all_delivered(
    plan: Plan,
    path: &str,
    count: usize,
) -> (Cluster, Receiver, Vec<String>) {
    let mut cluster = plan.start().await;
    let api = cluster.api();
    let receiver = Receiver::healthy().await;
    create_endpoints(&api, &receiver, path).await;
    let ids = publish(&api, count).await;
    receiver.wait_for(path, count, LOAD_WITHIN).await;
    drained(&mut cluster).await;
    (cluster, receiver, ids)
}

/// Checks that each event came exactly once to the path, and nothing else did.
pub(crate) fn assert_each_once(receiver: &Receiver, path: &str, ids: &[String]) {
    assert_each_times(receiver, path, ids, 1);
}

/// Checks that each event came exactly so often to the path, and nothing else did.
pub(crate) fn assert_each_times(receiver: &Receiver, path: &str, ids: &[String], times: usize) {
    let counts = receiver.counts(path);
    let other: Vec<_> = counts
        .iter()
        .filter(|(_, count)| **count != times)
        .collect();
    assert!(
        other.is_empty(),
        "{} events did not come {times} times, such as {:?}",
        other.len(),
        other[0]
    );
    assert_eq!(counts.len(), ids.len());
}
