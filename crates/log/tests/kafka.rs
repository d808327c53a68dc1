//! What only the log on Kafka can show: brokers that die, freeze and lose topics, members that come and go.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "kafka/churn.rs"]
mod churn;
#[path = "kafka/closing.rs"]
mod closing;
#[path = "kafka/outages.rs"]
mod outages;
#[path = "kafka/security.rs"]
mod security;
#[path = "kafka/support.rs"]
mod support;
