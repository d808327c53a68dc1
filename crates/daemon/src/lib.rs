//! The life of a process: configuration, telemetry, health, tasks, signals, the HTTP server.
//!
//! A `main` built on it reads from top to bottom: [`config::load`], [`telemetry::init`],
//! [`signals::listen`], [`health::Health::serve`], spawn into [`tasks::Tasks`], wait, shut down,
//! exit code. Cancellation flows down by one token, completion flows up with a deadline.
//!
//! This crate knows nothing of webhooks.

pub mod config;
pub mod errors;
pub mod files;
pub mod health;
pub mod http;
pub mod lines;
pub mod metrics;
pub mod signals;
pub mod tasks;
pub mod telemetry;

pub use tokio_util::sync::CancellationToken;
