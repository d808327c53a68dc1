//! What the tests of the workspace share, and the harness of the end-to-end tests
//! (`tests/end_to_end`): the real binary's processes on either log, a real broker, scripted
//! receivers, and programs on foreign libraries.
//!
//! It depends on no crate of the product, so that every crate's tests can use it, and so that the
//! end-to-end tests see only what a customer sees.

mod ports;

pub mod api;
pub mod cluster;
pub mod collector;
pub mod foreign;
pub mod http;
pub mod kafka;
pub mod poll;
pub mod process;
pub mod prometheus;
pub mod receiver;

pub use api::Api;
pub use cluster::{Cluster, LogKind, Plan};
pub use collector::Collector;
pub use kafka::KafkaBroker;
pub use poll::eventually;
pub use process::Process;
pub use receiver::{Received, Receiver, Reply};
