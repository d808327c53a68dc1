//! The registry on a log in memory, with several processes and an adversary.

mod compaction;
mod following;
mod secrets;
mod world;
mod writing;
