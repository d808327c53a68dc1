//! The binary, run as a user runs it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod commands;
mod config;
mod demo;
mod support;
mod up;
