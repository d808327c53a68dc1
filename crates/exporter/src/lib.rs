//! The metrics exporter: what the topics look like from outside, whatever the other roles do.
//!
//! Every few seconds an [`Exporter`] gathers everything it shows, and shows it at once: nothing is
//! read when Prometheus asks, and what is shown belongs together. If a gathering fails, the values
//! of the one before stay, and the time it was made says how old they are.
//!
//! Two kinds of values. *Gauges* (lag, ready age, lanes behind, what waits for a retry) are worked
//! out from what the log holds now: commits and bounds, the registry, `endpoint-state`, the records
//! that are next in line. *Counters* are counted from the records of `attempts` and `dead-letters`,
//! each once ([`counts`]): the sums are kept in the metadata of the commit, beside the offset up to
//! which they were counted, and are shown only when that commit is acknowledged. So they go on
//! after a restart where they were: nothing is skipped, nothing is counted twice, and Prometheus
//! sees no reset.
//!
//! The commits are made from outside for a group that nobody joins, so a second exporter (while a
//! new one takes over from an old one) disturbs nothing: both count everything for themselves, and
//! whichever commit is last is true.
//!
//! Memory is bounded: by the number of partitions and reasons, by the endpoints that have a state,
//! by the configured number of retries and settled offsets, and by a fixed number of keys for
//! finding the worst.

mod config;
mod counting;
mod counts;
mod exporter;
mod lag;
mod lanes;
mod ready;
mod retries;
mod shown;
mod worst;

pub use config::ExporterConfig;
pub use exporter::{Exporter, ExporterContext, ExporterError};
