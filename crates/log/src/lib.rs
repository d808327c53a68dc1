//! The log: topics of records in partitions, read by groups that share the partitions among them.
//!
//! [`port`] says what every log must do; it is Kafka's semantics, with nothing left out. Three
//! adapters do it: [`kafka`] for production, [`embedded`] for one process on one directory, and
//! behind the feature `memory` one for tests and simulation, where it is also the adversary. One
//! conformance suite runs against all three (`tests/conformance`).
//!
//! This crate knows nothing of tenants, endpoints or webhooks.

mod backoff;
pub mod clock;
pub mod embedded;
pub mod kafka;
#[cfg_attr(
    not(feature = "memory"),
    expect(dead_code, reason = "some of it only the log in memory uses")
)]
mod local;
#[cfg(feature = "memory")]
pub mod memory;
pub mod partitioner;
pub mod port;
pub mod stretch;
pub mod tracker;

pub use backoff::Backoff;
pub use clock::{Clock, LogClock, SystemClock, TimeSample};
pub use partitioner::partition_for;
pub use port::{
    Append, AppendError, Assignment, Batch, Bounds, Commit, CommitAck, CommitError, Committed,
    Generation, Group, GroupEvent, GroupOptions, Log, LogError, NewRecord, Offset, Partition,
    Position, Producer, ProducerOptions, Reader, Record, Target, TopicDescription, TopicSpec,
};
pub use stretch::Stretch;
pub use tracker::OffsetTracker;
