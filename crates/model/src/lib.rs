//! The rules of webhook delivery, without the world they act in.
//!
//! Everything here is a value or a function of values: no task, socket, log or clock. Times are
//! Unix milliseconds and come as arguments; randomness comes as a hash of what it is for.

pub mod address;
pub mod api_key;
pub mod audit;
pub mod commit_note;
pub mod delivery;
pub mod endpoint;
pub mod event;
pub mod filter;
#[cfg(any(test, feature = "fixtures"))]
pub mod fixtures;
pub mod flow;
pub mod hash;
pub mod identity;
pub mod ids;
pub mod lane_states;
pub mod operational;
pub mod outcome;
pub mod payload;
pub mod retry;
pub mod signature;
pub mod tenant;
pub mod topics;
pub mod verdict;
pub mod wire;
pub mod work;
