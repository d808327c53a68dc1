//! The binary, run as a user runs it.

mod commands;
mod config;
mod demo;
mod support;
mod up;
