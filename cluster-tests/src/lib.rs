//! Clusters of real processes, for tests: start them, break them, judge what they answer.
//!
//! ```text
//! tests/*.rs (one promise a file) ──► cluster (processes) ── client (HTTP) ──► check (what must hold)
//!                                 └─► control_group ── writers (gRPC) ──► history (what they met)
//!                                           └─ on hosts of a network, with faults between them
//! ```
//!
//! Tests see what users see, the `phalanx` binary and its ports; of the product only the client of the
//! control plane is linked, which every process has.
//! Reading order: [`process`], [`cluster`], [`client`], [`golden`], [`check`], [`engines`], [`live_streams`], [`usage`]; for
//! the control plane [`control_group`], [`serving`], [`history`], [`writers`]; what is done to it beside kills: [`network`],
//! [`small_disk`].
#![forbid(unsafe_code)]

pub mod check;
pub mod client;
pub mod cluster;
pub mod control_group;
pub mod engines;
pub mod golden;
pub mod history;
pub mod live_streams;
pub mod network;
pub mod operator;
pub mod process;
pub mod serving;
pub mod small_disk;
pub mod usage;
pub mod writers;
