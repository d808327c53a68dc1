//! The registry: tenants and endpoints, as a view in memory over one compacted topic with one
//! partition.
//!
//! Actors: any number of processes, each with one [`Registry`] and its [`Follower`]. The follower
//! reads the topic for ever and keeps the view; every process reads the same records in the same
//! order and so sees the same.
//!
//! A write needs no leader and no transaction. It appends the whole entity under the key
//! `kind/id/version/nonce`, with the version after the one it saw, and waits until its own follower
//! says who won: of all records of an entity the highest version counts, and of one version the
//! first in the log. A version once taken is never taken again, so two writers that saw the same
//! state cannot both win, and the loser looks again at what is there and repeats its change. A
//! deletion is a version that stays; nobody writes one after it, so the id is never used again.
//!
//! Guaranteed: a write that was answered is in the log and was seen in this process's own view; no
//! update is lost; a view at the same position is the same everywhere, also after compaction. A
//! write of unknown fate says so: it may win later, or never, but only in place of the version it
//! was based on.
//!
//! Only an optimisation: records that were superseded or lost are tombstoned afterwards by the
//! process whose record won, so that compaction can remove them. The winner never is.
//! `min.compaction.lag.ms` of the topic must exceed the write deadline, so that no reader misses a
//! winner that was removed while it read.

mod follower;
mod keyring;
mod numbers;
mod past;
mod record;
mod registry;
mod view;
mod write;

pub use follower::Follower;
pub use keyring::{InvalidKeyring, Keyring, OpenError};
pub use numbers::Numbers;
pub use registry::{Registry, RegistryError, RegistryOptions};
pub use view::{Gate, Lookup, Matched, Versioned};
pub use write::{JoinError, RetryDelaysError, WriteError};
