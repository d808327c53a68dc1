//! Postrider as a whole: the real binary, a real Kafka or a directory, real HTTP. The name of a
//! test is what it promises. A scenario that applies to both logs runs on both.

#![expect(
    clippy::unwrap_used,
    reason = "a test may stop at what it does not expect"
)]

/// Makes tests of scenarios: one on the embedded log and one on Kafka of each.
macro_rules! on_both_logs {
    ($($scenario:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $scenario() {
                Box::pin(super::$scenario(postrider_tests::LogKind::Embedded)).await;
            })*
        }
        on_kafka!($($scenario),*);
    };
}

/// Makes tests of scenarios that need several processes.
macro_rules! on_kafka {
    ($($scenario:ident),* $(,)?) => {
        mod kafka {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $scenario() {
                Box::pin(super::$scenario(postrider_tests::LogKind::Kafka)).await;
            })*
        }
    };
}

mod check;
mod costs;
mod crashes;
mod deliveries;
mod direct;
mod exporter;
mod foreign_programs;
mod frozen;
mod full_disk;
mod identity;
mod keys;
mod load;
mod memory;
mod moving;
mod order;
mod outage;
mod partitions;
mod past;
mod pauses;
mod poison;
mod recover;
mod registry;
mod starts_first;
mod status;
mod topic_log;
mod traces;
mod unread;
