//! Partitions that a client does not fetch any more.

use std::time::Duration;

use rdkafka::Offset as KafkaOffset;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};

use super::query;
use crate::port::{LogError, Partition};

/// The client's threads need a moment, on a busy machine a longer one.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Waits until the client has stopped fetching partitions that were taken from it. Who gives one
/// back before that, and takes it again, makes it stop twice, and that aborts the process
/// (librdkafka#5573). Blocks. `topic` has the prefix.
pub(super) fn wait<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    topic: &str,
    partitions: &[Partition],
) -> Result<(), LogError> {
    let partitions = partitions.iter().copied();
    let start = partitions.map(|partition| (partition, KafkaOffset::Beginning));
    // What a partition is told is done in order, so the answer, that one which is not fetched
    // cannot be moved, comes after the stop.
    let answered = client.seek_partitions(query::list(topic, start), TIMEOUT);
    answered.map(drop).map_err(|error| {
        LogError::Unavailable(format!("the client does not stop fetching: {error}"))
    })
}
