//! The API as its callers see it, on a log in memory.
#![expect(clippy::unwrap_used, reason = "what a test does not expect fails it")]

#[path = "api/batches.rs"]
mod batches;
#[path = "api/dead_letters.rs"]
mod dead_letters;
#[path = "api/endpoints.rs"]
mod endpoints;
#[path = "api/entrance.rs"]
mod entrance;
#[path = "api/events.rs"]
mod events;
#[path = "api/history.rs"]
mod history;
#[path = "api/keys.rs"]
mod keys;
#[path = "api/replay.rs"]
mod replay;
#[path = "api/rights.rs"]
mod rights;
#[path = "api/states.rs"]
mod states;
#[path = "api/status.rs"]
mod status;
#[path = "api/surroundings.rs"]
mod surroundings;
#[path = "api/world.rs"]
mod world;
