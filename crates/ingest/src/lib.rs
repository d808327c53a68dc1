//! The HTTP API: events in, tenants and endpoints managed, what became of events read back.
//!
//! Everything that comes in is checked here and then appended to a topic; nothing is kept. What is
//! answered is what the topics and the registry hold. An event is accepted (202) only when the log
//! has it durably; whatever else happens is a [problem](https://www.rfc-editor.org/rfc/rfc9457)
//! that says what to do.
//!
//! Every limit is in [`IngestConfig`]: bodies, events under way, what one request reads from
//! topics. What is beyond is refused at once or cut with a cursor to go on; nothing queues without
//! end.
//!
//! This crate knows nothing of how events are delivered.

mod admission;
mod api;
mod api_keys;
mod audit;
mod auditor;
mod auth;
mod changes;
mod config;
mod dead_letters;
mod encoding;
mod endpoints;
mod entrance;
mod events;
mod fields;
mod gzip;
mod history;
mod ids;
mod installation;
mod items;
mod lists;
mod metadata;
mod metrics;
mod operator_key;
mod owner;
mod page;
mod portal_tokens;
mod problem;
mod producing;
mod reading;
mod redrive;
mod replay;
mod request;
mod routes;
mod runs;
mod shared;
mod shares;
mod status;
mod tenants;
mod views;

pub use api::{Api, ApiContext};
pub use config::{IngestConfig, InvalidIngest};
pub use entrance::Entrance;
pub use metrics::IngestMetrics;
pub use operator_key::InvalidOperatorKey;
pub use routes::routes;
pub use shared::ApiError;
