//! Delivery: from the `events` topic to the endpoints' answers.
//!
//! Three stages, each a group over one topic, each a file to start reading at:
//!
//! - [`fan_out`]: an event becomes one delivery for each endpoint that wants it.
//! - [`deliver`]: a delivery waits in its endpoint's lane, is attempted, and is settled.
//! - [`scheduler`]: a retry waits until it is due and returns to `deliveries`.
//!
//! What follows from an attempt is decided in [`postrider_model::verdict::judge`] and carried out
//! in `deliver/attempt/settle.rs`. The stages take log, registry, sender and clock from outside and
//! measure intervals with tokio's clock, so that a single-threaded runtime with paused time runs
//! them as a simulation.

pub mod config;
pub mod deliver;
pub mod fan_out;
pub mod lane_status;
pub mod metrics;
pub mod scheduler;
pub mod sender;
pub mod standing;

mod dead_letter;
mod durable;
mod past;
mod progress;
mod said;
mod stage;
mod stopped;
mod view;

pub use config::DeliveryConfig;
pub use metrics::DeliveryMetrics;
pub use stage::{Producers, StageContext, StageError};
