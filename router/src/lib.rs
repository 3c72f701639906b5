//! The stateless router: OpenAI's HTTP API in front, workers over gRPC and foreign engines over HTTP behind. Everything it holds can be
//! rebuilt: the fleet from the cluster view, loads and rates from the workers.
//!
//! ```text
//! client ── server ── HTTP stack ── api/* ── generate stack ── dispatch ──┬─ engine/native ──► worker
//!                                                                         └─ engine/foreign ─► server
//!                          stack.rs puts both together     view ──► fleet ◄── engine/link ◄── events
//! ```
//! Reading order: `stack` (both stacks), `server` (listens, drains), `api` (one endpoint a file), then the generate
//! stack: what goes down it (`ask`), then from the outside `deadline`, `shadow`, `migrate`, `retry` (and `hedge`),
//! `dispatch` (chooses, or lets wait in `queue`), `engine` (calls), and what comes back (`reply`, `stream`, `meter`).
//! `outline` reads no more of a body than it must. `error` is the only map to HTTP; `record` keeps the books on each
//! request.
//!
//! Deliberately absent: a tokenizer, the engine, and anything that must survive a restart.
#![forbid(unsafe_code)]

mod stack;

mod config;
mod error;
mod metrics;
mod record;
mod server;

mod api;

mod ask;
mod deadline;
mod dispatch;
mod engine;
mod hedge;
mod meter;
mod migrate;
mod outline;
mod queue;
mod reply;
mod retry;
mod shadow;
mod stream;

pub use self::config::{ConfigError, RawBreaker, RawDispatch, RawRetry, RawRouter, RouterConfig};
pub use self::server::{Router, StartError};
