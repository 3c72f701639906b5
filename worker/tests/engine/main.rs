//! The real model on the real backend, without a network: golden outputs, the promise that a request's
//! bits do not depend on its company, and the errors of folders
//! that cannot be served.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that meets the unexpected should end there and say where"
)]

mod bad_folders;
mod bits;
mod golden;
mod harness;
mod tensor_parallel;
