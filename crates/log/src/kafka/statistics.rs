//! What librdkafka tells of its clients, summed up by what they are for.

use rdkafka::Statistics;
use rdkafka::statistics::{Broker, Partition};

/// The clients of one name: a producer's or a group's. What is a total goes on when a client is
/// replaced.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientStatistics {
    /// Name of the producer or group, without prefix.
    pub client: String,
    /// Connections that are up.
    pub brokers_connected: u64,
    /// Records in the producer's queue or under way.
    pub producer_queue_records: u64,
    /// Their bytes.
    pub producer_queue_bytes: u64,
    /// Records read ahead.
    pub consumer_queue_records: u64,
    /// Their bytes.
    pub consumer_queue_bytes: u64,
    /// Requests not sent yet, or not answered.
    pub requests_in_flight: u64,
    /// 99th percentile of the slowest broker's answers, in microseconds.
    pub round_trip_us: u64,
    /// What was counted since the process started.
    pub totals: ClientTotals,
}

/// What a client has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClientTotals {
    /// Requests to append, each with records of one partition.
    pub produce_requests: u64,
    /// Records appended.
    pub sent_records: u64,
    /// Requests for records.
    pub fetch_requests: u64,
    /// Records read.
    pub received_records: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Requests not sent, and answers not understood.
    pub request_errors: u64,
    /// Requests not answered in time.
    pub request_timeouts: u64,
    /// Requests sent again.
    pub request_retries: u64,
    /// Rebalances of the group.
    pub rebalances: u64,
}

impl ClientStatistics {
    pub(super) fn of(name: &str, statistics: &Statistics) -> Self {
        let brokers = || statistics.brokers.values();
        let partitions = || {
            statistics
                .topics
                .values()
                .flat_map(|topic| topic.partitions.values())
        };
        let sum = |count: fn(&Broker) -> u64| brokers().map(count).sum();
        let ahead = |count: fn(&Partition) -> u64| partitions().map(count).sum();
        let requests = |kind: &str| {
            let of_kind = brokers().filter_map(|broker| broker.req.get(kind));
            of_kind.map(|count| unsigned(*count)).sum()
        };
        let round_trips = brokers().filter_map(|broker| broker.rtt.as_ref());
        let group = statistics.cgrp.as_ref();
        Self {
            client: name.to_owned(),
            brokers_connected: sum(|broker| u64::from(broker.state == "UP")),
            producer_queue_records: statistics.msg_cnt,
            producer_queue_bytes: statistics.msg_size,
            consumer_queue_records: ahead(|partition| unsigned(partition.fetchq_cnt)),
            consumer_queue_bytes: ahead(|partition| partition.fetchq_size),
            requests_in_flight: sum(|broker| {
                unsigned(broker.outbuf_cnt) + unsigned(broker.waitresp_cnt)
            }),
            round_trip_us: round_trips
                .map(|window| unsigned(window.p99))
                .max()
                .unwrap_or(0),
            totals: ClientTotals {
                produce_requests: requests("Produce"),
                sent_records: unsigned(statistics.txmsgs),
                fetch_requests: requests("Fetch"),
                received_records: unsigned(statistics.rxmsgs),
                sent_bytes: unsigned(statistics.tx_bytes),
                received_bytes: unsigned(statistics.rx_bytes),
                request_errors: sum(|broker| broker.txerrs + broker.rxerrs),
                request_timeouts: sum(|broker| broker.req_timeouts),
                request_retries: sum(|broker| broker.txretries),
                rebalances: group.map_or(0, |group| unsigned(group.rebalance_cnt)),
            },
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.brokers_connected += other.brokers_connected;
        self.producer_queue_records += other.producer_queue_records;
        self.producer_queue_bytes += other.producer_queue_bytes;
        self.consumer_queue_records += other.consumer_queue_records;
        self.consumer_queue_bytes += other.consumer_queue_bytes;
        self.requests_in_flight += other.requests_in_flight;
        self.round_trip_us = self.round_trip_us.max(other.round_trip_us);
        self.totals.add(&other.totals);
    }
}

impl ClientTotals {
    pub(super) fn add(&mut self, other: &Self) {
        self.produce_requests += other.produce_requests;
        self.sent_records += other.sent_records;
        self.fetch_requests += other.fetch_requests;
        self.received_records += other.received_records;
        self.sent_bytes += other.sent_bytes;
        self.received_bytes += other.received_bytes;
        self.request_errors += other.request_errors;
        self.request_timeouts += other.request_timeouts;
        self.request_retries += other.request_retries;
        self.rebalances += other.rebalances;
    }
}

/// The client counts with signs, and says -1 for what it does not know.
fn unsigned(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}
