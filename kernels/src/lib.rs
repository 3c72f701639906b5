//! Compute: weights, activations, the KV cache, and the dozen operations a transformer needs, per device.
//!
//! A model is written once over [`Backend`]; a device is one implementation of it. The batch a step works
//! on is plain data ([`Batch`]), so it can be sent to every rank of a tensor-parallel group as it is.
//! Sums over ranks go through a [`collective::Collective`].
//!
//! ```text
//! model ── Backend (embed, rms_norm, linear, rope_kv, attention, silu_mul, gather_rows, sample)
//!             └─ cpu::Cpu: AMX | AVX-512 | AVX2 | portable, chosen at run time
//! ```
//!
//! Every result row is a function of its own inputs alone: how many other rows share the step, how a
//! prompt was cut into chunks and whether its prefix came from the cache do not change a bit of it.
//!
//! Deliberately absent: requests, scheduling, files, text. This is the only crate with unsafe code.

#![allow(
    unsafe_code,
    reason = "vectors and the split of memory among threads need it; nowhere else in the workspace"
)]

pub mod backend;
pub mod batch;
pub mod collective;
pub mod cpu;
pub mod host;
pub mod sample;

pub use self::backend::{Backend, DeviceError, KvShape, RopeTable};
pub use self::batch::{Batch, Span};
