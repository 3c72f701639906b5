//! The engine: turns prompts into tokens, many at once, on one rank group.
//!
//! ```text
//! gRPC ─ server ─ text (template, tokens) ─► engine loop: scheduler.step() ─► executor.run(plan) ─► commit
//!           ▲                                                                                        │
//!           └──────────── text (detokenise, stop strings) ◄── one event stream per choice ◄──────────┘
//! ```
//!
//! Deliberately absent: openraft, HTTP, any knowledge of other workers.
#![forbid(unsafe_code)]

pub mod engine;
pub mod executor;
pub mod load;
pub mod model;
pub mod weights;
pub mod text;
