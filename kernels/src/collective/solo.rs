//! A group of one.

use super::{CollectiveError, HostCollective, check_gather};

/// The only rank: sums and copies are what it already has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Solo;

impl HostCollective for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn all_reduce_sum(&mut self, _values: &mut [f32]) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn all_gather(&mut self, local: &[f32], all: &mut [f32]) -> Result<(), CollectiveError> {
        check_gather((0, 1), local, all)?;
        all.copy_from_slice(local);
        Ok(())
    }

    fn broadcast(&mut self, _values: &mut [f32], root: usize) -> Result<(), CollectiveError> {
        if root == 0 { Ok(()) } else { Err(CollectiveError::Root { root, world: 1 }) }
    }
}
