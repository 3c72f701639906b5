//! The engine: its loop, and the pure parts the loop drives.

pub mod handle;

pub use self::handle::{EngineHandle, EngineLoad, SequenceEvent, SequenceRequest, SequenceStream, TokenFinish};
