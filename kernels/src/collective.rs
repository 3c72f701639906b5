//! Sums and copies across the ranks of a tensor-parallel group.
//!
//! A model speaks to its group through [`Collective`], which works on the device's own tensors, so that NCCL
//! can sum them where they are. Groups on the host read, exchange and write them back.

use crate::backend::Backend;

/// A group that can no longer work together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CollectiveError {
    /// A rank did not come to the meeting in time.
    #[error("rank {rank} waited {waited_ms} ms for the other ranks")]
    Deadline {
        /// Who waited.
        rank: usize,
        /// How long.
        waited_ms: u64,
    },
    /// Some rank gave up; nobody waits any longer.
    #[error("rank {rank} found its group aborted")]
    Aborted {
        /// Who found out.
        rank: usize,
    },
}

/// One rank's way to the others. All ranks make the same calls in the same order.
pub trait Collective<B: Backend>: Send {
    /// Replaces `x` by the sum over all ranks, added up in one fixed binary tree over rank numbers.
    ///
    /// # Errors
    /// When the group is broken.
    fn all_reduce(&mut self, backend: &mut B, x: &mut B::Tensor) -> Result<(), CollectiveError>;
}

/// A group of one: there is nothing to sum.
#[derive(Clone, Copy, Debug, Default)]
pub struct Solo;

impl<B> Collective<B> for Solo
where
    B: Backend,
{
    fn all_reduce(&mut self, _backend: &mut B, _x: &mut B::Tensor) -> Result<(), CollectiveError> {
        Ok(())
    }
}
