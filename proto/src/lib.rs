//! What two processes must agree on, and nothing else: message formats, ids, the cluster view, and the
//! only conversions between the wire and the types the rest of the code uses.
//!
//! ```text
//! bytes ── pb (generated) ── wire (the only parser) ──► generate, view, fault (domain types)
//! ```
//!
//! Reading order: [`id`], [`fault`], [`generate`] (router to worker), [`view`] (control to everyone),
//! [`prefix`] (what prompts have in common), [`change`] (everyone to control), [`api_key`] (what clients are
//! known by), [`wire`]. Deliberately absent: any clock, channel, socket or configuration.
#![forbid(unsafe_code)]

use std::time::Duration;

pub mod api_key;
mod base64_text;
pub mod change;
pub mod fault;
pub mod generate;
pub mod id;
pub mod name;
pub mod prefix;
pub mod view;
pub mod wire;

/// Messages and gRPC stubs generated from `proto/phalanx/v1/*.proto`.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::str_to_string,
    clippy::too_many_lines,
    clippy::clone_on_ref_ptr,
    clippy::wildcard_imports,
    clippy::semicolon_if_nothing_returned,
    clippy::large_futures,
    clippy::missing_const_for_fn,
    reason = "generated code"
)]
pub mod pb {
    tonic::include_proto!("phalanx.v1");
}

/// The largest gRPC message either side accepts, in bytes. A request body is at most 8 MiB of JSON
/// (the router's limit), and a prompt's token ids take at most 5 bytes each.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// How often a worker reports on its event stream at the least, with news or without: routers tell by its
/// silence that it is gone. Ten small messages a second and router cost a worker next to nothing.
pub const REPORT_EVERY: Duration = Duration::from_millis(100);
