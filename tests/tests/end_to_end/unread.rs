//! A log that nobody reads stops nothing.

use std::time::Duration;

use postrider_tests::{LogKind, Plan, Receiver};

use crate::load::{self, LOAD_WITHIN};

const EVENTS: usize = 300;
/// Nothing is under way, so there is nothing to wait for but the last lines.
const ENDS_WITHIN: Duration = Duration::from_secs(15);
const PATH: &str = "/unread";

on_both_logs!(a_log_that_nobody_reads_costs_lines_and_nothing_else);

async fn a_log_that_nobody_reads_costs_lines_and_nothing_else(log: LogKind) {
    let receiver = Receiver::healthy().await;
    let plan = Plan::new(log)
        .unread()
        .set("POSTRIDER_TELEMETRY__LOG", "debug")
        .set("POSTRIDER_TELEMETRY__LOG_QUEUE_BYTES_MAX", "100");
    let mut cluster = plan.start().await;
    let api = cluster.api();
    load::create_endpoints(&api, &receiver, PATH).await;
    let ids = load::publish(&api, EVENTS).await;
    receiver.wait_for_all(PATH, &ids, LOAD_WITHIN).await;
    load::assert_each_once(&receiver, PATH, &ids);
    let names = match log {
        LogKind::Embedded => vec!["up"],
        LogKind::Kafka => vec!["ingest-0", "deliver"],
    };
    for name in names {
        assert!(dropped(&cluster.metrics(name).await) > 0.0, "{name}");
        let ready = cluster.health(name, "/readyz").await;
        assert_eq!(ready.status, 200, "{name}: {ready:?}");
        let status = cluster.process(name).terminate(ENDS_WITHIN);
        assert!(status.success(), "{name} ended with {status}");
    }
}

fn dropped(metrics: &str) -> f64 {
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix("postrider_log_lines_dropped_total "));
    line.unwrap().parse().unwrap()
}
