//! A whole worker with the demo model, over loopback gRPC: what a router sees.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod answers;
mod resume;
mod worker;
