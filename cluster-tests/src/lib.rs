//! Clusters of real processes, for tests: start them, break them, judge what they answer.
//!
//! ```text
//! tests/*.rs (one promise a file) ──► cluster (processes) ── client (HTTP) ──► check (what must hold)
//! ```
//!
//! Nothing of the product is linked here: tests see what users see, the `phalanx` binary and its ports.
//! Reading order: [`process`], [`cluster`], [`client`], [`golden`], [`check`].
#![forbid(unsafe_code)]

pub mod check;
pub mod client;
pub mod cluster;
pub mod golden;
pub mod process;
