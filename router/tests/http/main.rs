//! The router over real sockets: HTTP in front, a scripted worker behind.

mod bad_input;
mod chat;
mod completions;
mod drain;
mod endpoints;
mod faults;

mod cluster;
mod worker;
