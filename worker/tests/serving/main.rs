//! A whole worker with the demo model, over loopback gRPC: what a router sees.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod answers;
#[path = "../../../chassis/src/mock_control.rs"]
mod mock_control;
mod resume;
mod worker;
