//! The router over real sockets: HTTP in front, a scripted worker behind.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helping functions too")]

mod alias;
mod bad_input;
mod breaker;
mod chat;
mod completions;
mod decisions;
mod drain;
mod endpoints;
mod faults;
mod foreign;
mod migration;
mod queue;
mod retry;

mod cluster;
mod server;
mod worker;
