//! How an endpoint is called: how many attempts at once, how often, and when not at all.
//!
//! Every type here is a rule without a clock: each call says what time it is, in milliseconds on a
//! clock of the caller's choice that never goes back. So what an endpoint is asked follows from
//! what it answered, and can be tested as such.

pub mod breaker;
pub mod bucket;
pub mod concurrency;
pub mod line;
pub mod network;
