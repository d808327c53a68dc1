//! What Kafka's clients tell, as metrics.

use std::sync::Arc;

use postrider_daemon::metrics::catalogue::{
    KAFKA_BROKERS, KAFKA_CLIENT_DEAD, KAFKA_CLIENTS_REPLACED, KAFKA_CONNECTED,
    KAFKA_CONSUMER_QUEUE, KAFKA_CONSUMER_QUEUE_BYTES, KAFKA_FETCH_REQUESTS, KAFKA_PRODUCE_REQUESTS,
    KAFKA_PRODUCER_QUEUE, KAFKA_PRODUCER_QUEUE_BYTES, KAFKA_REBALANCES, KAFKA_RECEIVED_BYTES,
    KAFKA_RECEIVED_RECORDS, KAFKA_REQUEST_ERRORS, KAFKA_REQUEST_RETRIES, KAFKA_REQUEST_TIMEOUTS,
    KAFKA_REQUESTS_IN_FLIGHT, KAFKA_ROUND_TRIP, KAFKA_SENT_BYTES, KAFKA_SENT_RECORDS,
};
use postrider_daemon::metrics::{Collected, Metric, Sample, whole};
use postrider_log::kafka::{ClientState, ClientStatistics, KafkaLog};

type Read = fn(&ClientStatistics) -> f64;

/// Each metric with a label `client`, and where its value is.
static BY_CLIENT: [(&Metric, Read); 17] = [
    (&KAFKA_BROKERS, |client| whole(client.brokers_connected)),
    (&KAFKA_PRODUCER_QUEUE, |client| {
        whole(client.producer_queue_records)
    }),
    (&KAFKA_PRODUCER_QUEUE_BYTES, |client| {
        whole(client.producer_queue_bytes)
    }),
    (&KAFKA_CONSUMER_QUEUE, |client| {
        whole(client.consumer_queue_records)
    }),
    (&KAFKA_CONSUMER_QUEUE_BYTES, |client| {
        whole(client.consumer_queue_bytes)
    }),
    (&KAFKA_REQUESTS_IN_FLIGHT, |client| {
        whole(client.requests_in_flight)
    }),
    (&KAFKA_ROUND_TRIP, |client| {
        whole(client.round_trip_us) / 1e6
    }),
    (&KAFKA_PRODUCE_REQUESTS, |client| {
        whole(client.totals.produce_requests)
    }),
    (&KAFKA_SENT_RECORDS, |client| {
        whole(client.totals.sent_records)
    }),
    (&KAFKA_FETCH_REQUESTS, |client| {
        whole(client.totals.fetch_requests)
    }),
    (&KAFKA_RECEIVED_RECORDS, |client| {
        whole(client.totals.received_records)
    }),
    (&KAFKA_SENT_BYTES, |client| whole(client.totals.sent_bytes)),
    (&KAFKA_RECEIVED_BYTES, |client| {
        whole(client.totals.received_bytes)
    }),
    (&KAFKA_REQUEST_ERRORS, |client| {
        whole(client.totals.request_errors)
    }),
    (&KAFKA_REQUEST_TIMEOUTS, |client| {
        whole(client.totals.request_timeouts)
    }),
    (&KAFKA_REQUEST_RETRIES, |client| {
        whole(client.totals.request_retries)
    }),
    (&KAFKA_REBALANCES, |client| whole(client.totals.rebalances)),
];

type ReadState = fn(&ClientState) -> Option<f64>;

/// The same, of how the clients are.
static BY_STATE: [(&Metric, ReadState); 3] = [
    (&KAFKA_CONNECTED, |state| {
        Some(whole(u64::from(state.connected?)))
    }),
    (&KAFKA_CLIENT_DEAD, |state| {
        Some(state.dead_for.as_secs_f64())
    }),
    (&KAFKA_CLIENTS_REPLACED, |state| {
        Some(whole(state.replaced_total))
    }),
];

/// Declares the metrics of the log's clients.
pub(super) fn declare(
    registry: &prometheus::Registry,
    log: Arc<KafkaLog>,
) -> Result<(), prometheus::Error> {
    let by_client = BY_CLIENT.iter().map(|(metric, _)| *metric);
    let by_state = BY_STATE.iter().map(|(metric, _)| *metric);
    let metrics: Vec<_> = by_client.chain(by_state).collect();
    Collected::declare(registry, &metrics, move || {
        let (clients, states) = (log.statistics(), log.clients());
        let by_client = BY_CLIENT.iter().map(|(metric, read)| {
            let samples = clients
                .iter()
                .map(|client| Sample::labelled([&client.client], read(client)));
            (*metric, samples.collect())
        });
        let by_state = BY_STATE.iter().map(|(metric, read)| {
            let samples = states
                .iter()
                .filter_map(|state| Some(Sample::labelled([&state.client], read(state)?)));
            (*metric, samples.collect())
        });
        by_client.chain(by_state).collect()
    })
}

#[cfg(test)]
mod tests {
    use postrider_daemon::metrics::catalogue::{Part, disagreements};
    use postrider_log::kafka::KafkaOptions;

    use super::*;

    #[tokio::test]
    async fn declares_what_the_catalogue_lists() {
        let bootstrap = ("bootstrap.servers".to_owned(), "127.0.0.1:1".to_owned());
        let options = KafkaOptions {
            prefix: String::new(),
            properties: [bootstrap].into(),
            replication: -1,
            client_id: "test".to_owned(),
            partitions: [].into(),
        };
        let registry = prometheus::Registry::new();
        declare(&registry, KafkaLog::connect(options).unwrap()).unwrap();
        assert_eq!(disagreements(&registry, &[Part::Kafka]), Vec::<&str>::new());
    }
}
