//! The registry on a log in memory, with several processes and an adversary.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod api_keys;
mod compaction;
mod following;
mod identity;
mod pausing;
mod secrets;
mod world;
mod writing;
