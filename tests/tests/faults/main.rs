//! What breaks beneath and beside Postrider while it works, on real processes and a real Kafka:
//! workers that die, freeze, come and go; brokers that die and freeze; topics that refuse. The name
//! of a test is what it promises.
//!
//! `make test` runs a short form of each, `make faults` the full one. Both are the same scenario
//! with other numbers. In each, events are published all the time, and at the end an auditor
//! compares what publishers were told, what the receivers got and what the topics say. The figures
//! go to `target/faults`.

#![expect(
    clippy::unwrap_used,
    reason = "a test may stop at what it does not expect"
)]

/// Makes tests of scenarios. They need a real Kafka, which their names say.
macro_rules! on_kafka {
    ($($scenario:ident),* $(,)?) => {
        mod kafka {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $scenario() {
                Box::pin(super::$scenario($crate::form::Form::asked())).await;
            })*
        }
    };
}

mod audit;
mod broker;
mod churn;
mod dead_clients;
mod figures;
mod form;
mod frozen;
mod kills;
mod load;
mod many_partitions;
mod moved_retries;
mod refused_writes;
mod rolling;
mod scaling;
mod slow_half;
mod three_brokers;
mod topics;
mod world;
