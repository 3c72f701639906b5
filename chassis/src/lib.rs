//! What every process of the cluster does, whatever its role: configuration, logs and metrics, draining,
//! backing off, whole files, being a member of the cluster, and following its view.
//!
//! Deliberately absent: anything that only one role does.
#![forbid(unsafe_code)]

pub mod announce;
pub mod backoff;
pub mod chunk_feed;
pub mod config;
pub mod control_client;
pub mod drain;
pub mod error_chain;
pub mod metrics;
#[cfg(test)]
mod mock_control;
pub mod serve_metrics;
pub mod signals;
pub mod telemetry;
pub mod watch;
pub mod whole_file;
