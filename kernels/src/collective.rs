//! Sums and copies across the ranks of a tensor-parallel group.
//!
//! A sum over ranks is a fixed binary tree over them in order, so with the virtual shards of a weight
//! ([`crate::host::Summation::Shards`]) one rank and several make the same sum, bit for bit.

mod solo;
mod threads;

use std::time::Duration;

pub use self::solo::Solo;
pub use self::threads::{Abort, Threads, WAIT_MAX};
use crate::backend::Backend;

/// Why a collective did not happen. The group is of no use afterwards.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CollectiveError {
    /// A group of this size cannot be made.
    #[error("a group of {world} ranks, expected a power of two up to {world_max}")]
    World {
        /// The size asked for.
        world: usize,
        /// The largest size.
        world_max: usize,
    },
    /// Ranks disagree about what they exchange.
    #[error("rank {rank} brings {got} elements, expected {expected}")]
    Length {
        /// The rank that differs.
        rank: usize,
        /// Its elements.
        got: usize,
        /// The elements of the rank that noticed.
        expected: usize,
    },
    /// A root that is no rank of the group.
    #[error("rank {root} cannot be the root of a group of {world}")]
    Root {
        /// The root asked for.
        root: usize,
        /// Ranks in the group.
        world: usize,
    },
    /// A rank did not come in time.
    #[error("rank {rank} did not arrive within {waited:?}")]
    Deadline {
        /// The first rank that is missing.
        rank: usize,
        /// How long the others waited.
        waited: Duration,
    },
    /// A rank has left the group.
    #[error("rank {rank} has left the group")]
    Left {
        /// The rank.
        rank: usize,
    },
    /// The group was aborted from outside.
    #[error("the group was aborted")]
    Aborted,
}

/// One rank's part in its group, over tensors of its device: what a model calls. NCCL sums them where they are.
pub trait Collective<B: Backend>: Send {
    /// Replaces `x` by its sum over all ranks.
    ///
    /// # Errors
    /// When the group is broken or becomes so.
    fn all_reduce(&mut self, backend: &mut B, x: &mut B::Tensor) -> Result<(), CollectiveError>;
}

/// A group that meets in host memory serves every device: it reads, exchanges and writes back.
impl<B, H> Collective<B> for H
where
    B: Backend,
    H: HostCollective,
{
    fn all_reduce(&mut self, backend: &mut B, x: &mut B::Tensor) -> Result<(), CollectiveError> {
        if self.world() == 1 {
            return Ok(());
        }
        let mut values = backend.read(x);
        self.all_reduce_sum(&mut values)?;
        let rows = backend.rows(x);
        backend.write(x, rows, &values);
        Ok(())
    }
}

/// One rank's part in a group that meets in host memory. Every rank calls the same operations in the same order.
pub trait HostCollective: Send {
    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// Ranks in the group.
    fn world(&self) -> usize;

    /// Replaces `values` by their sum over all ranks.
    ///
    /// # Errors
    /// When the group is broken or becomes so.
    fn all_reduce_sum(&mut self, values: &mut [f32]) -> Result<(), CollectiveError>;

    /// Fills `all` with every rank's `local`, in the order of ranks.
    ///
    /// # Errors
    /// When the group is broken or becomes so.
    fn all_gather(&mut self, local: &[f32], all: &mut [f32]) -> Result<(), CollectiveError>;

    /// Replaces `values` by those of the rank `root`.
    ///
    /// # Errors
    /// When the group is broken or becomes so.
    fn broadcast(&mut self, values: &mut [f32], root: usize) -> Result<(), CollectiveError>;
}

/// Checks that `all` has room for `world` parts like `local`.
fn check_gather(
    (rank, world): (usize, usize),
    local: &[f32],
    all: &[f32],
) -> Result<(), CollectiveError> {
    if all.len() == local.len() * world {
        return Ok(());
    }
    Err(CollectiveError::Length { rank, got: local.len() * world, expected: all.len() })
}
