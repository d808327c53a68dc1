//! What only the log on Kafka can show: brokers that die, freeze and lose topics, members that come
//! and go.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

/// Makes tests of scenarios that both group protocols must pass. A scenario is given the properties
/// that choose one.
macro_rules! both_protocols {
    ($($scenario:ident),* $(,)?) => {
        mod classic {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $scenario() {
                let session = ("session.timeout.ms", "10000");
                super::$scenario(&[("group.protocol", "classic"), session]).await;
            })*
        }
        mod consumer {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $scenario() {
                super::$scenario(&[("group.protocol", "consumer")]).await;
            })*
        }
    };
}

#[path = "kafka/churn.rs"]
mod churn;
#[path = "kafka/closing.rs"]
mod closing;
#[path = "kafka/crowds.rs"]
mod crowds;
#[path = "kafka/forgotten.rs"]
mod forgotten;
#[path = "kafka/idle.rs"]
mod idle;
#[path = "kafka/jumps.rs"]
mod jumps;
#[path = "kafka/outages.rs"]
mod outages;
#[path = "kafka/protocols.rs"]
mod protocols;
#[path = "kafka/security.rs"]
mod security;
#[path = "kafka/support.rs"]
mod support;
#[path = "kafka/waits.rs"]
mod waits;
