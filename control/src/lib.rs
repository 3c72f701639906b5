//! The control plane: a Raft group that knows which processes form the cluster, what they serve, and under
//! which names.
//!
//! ```text
//! workers, routers, operators ──gRPC──► service ──Command──► raft ──► state (pure) ──► feed ──► watchers
//!                │                         │                  │└─► store: log, snapshots
//!                │                         │                  └──► peers (identity checked on both ends)
//!                │                      leader ── leases that end (liveness, pure) ──► fences
//!                │                             └─ what is wanted (placement, pure) ──► groups
//!                └─ at a follower: forward ──gRPC──► the leader's service
//! ```
//!
//! Reading order: [`command`] and [`state`] (what may change, and how), [`liveness`], [`placement`], `feed`,
//! `service`, `forward`, `backup`, `leader`, `checkpoint` (replicas compared), `node` (what starts and stops all of
//! it), `entrance` (whose connection it is), `identity` and `peers` (who calls whom), `raft` and `store` (adapters), `host` (the machine under them).
//!
//! Deliberately absent: prompts, tokens and load, none of which this crate ever sees; and, outside `raft`, every
//! type of the Raft library.
#![forbid(unsafe_code)]

pub mod backup;
mod checkpoint;
pub mod command;
mod config;
mod entrance;
mod feed;
mod forward;
mod host;
mod identity;
mod leader;
pub mod liveness;
mod node;
mod peers;
pub mod placement;
mod planted;
mod raft;
mod readiness;
mod service;
pub mod state;
mod store;

pub use self::config::{ConfigError, ControlConfig};
pub use self::node::{Control, RunError, StartError};
pub use self::readiness::ControlReadiness;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
