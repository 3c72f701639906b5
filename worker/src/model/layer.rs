//! Linear layers as a tensor-parallel group holds them. Sharding lives here and nowhere else in a model.

use phalanx_kernels::Backend;
use phalanx_kernels::collective::{Collective, CollectiveError};
use phalanx_kernels::host::{Summation, VIRTUAL_SHARDS};

use crate::weights::safetensors::{Shard, Slice};
use crate::weights::{LoadError, WeightSource};

/// Where weights come from and where they go, while a model is put together.
#[derive(Debug)]
pub struct Placement<'a, B, S> {
    /// The files, or a generator.
    pub source: &'a S,
    /// The rank's device.
    pub backend: &'a B,
    /// The rank's share.
    pub shard: Shard,
}

/// A layer whose outputs are split over ranks: each rank computes its own, nothing is exchanged.
#[derive(Debug)]
pub struct ColumnParallel<B: Backend>(B::Weight);

/// A layer whose inputs are split over ranks: each rank computes a partial sum, the group adds them up.
#[derive(Debug)]
pub struct RowParallel<B: Backend>(B::Weight);

// === impl Placement ===

impl<B, S> Placement<'_, B, S>
where
    B: Backend,
    S: WeightSource,
{
    /// A vector that every rank holds whole.
    ///
    /// # Errors
    /// As the source or the device says.
    pub fn vector(&self, name: &str, length: usize) -> Result<B::Vector, LoadError> {
        let host = self.source.vector(name, length)?;
        self.backend.vector(&host).map_err(|source| device(name, source))
    }

    /// A matrix that every rank holds whole.
    ///
    /// # Errors
    /// As the source or the device says.
    pub fn replicated(&self, name: &str, shape: (usize, usize)) -> Result<B::Weight, LoadError> {
        let host = self.source.matrix(name, shape, Slice::Whole)?;
        let weight = self.backend.weight(vec![host], Summation::Chain);
        weight.map_err(|source| device(name, source))
    }

    /// Layers that read the same input, fused along their outputs.
    ///
    /// # Errors
    /// As the source or the device says.
    pub fn column_parallel(
        &self,
        parts: &[(String, (usize, usize))],
    ) -> Result<ColumnParallel<B>, LoadError> {
        let hosts = parts
            .iter()
            .map(|(name, shape)| self.source.matrix(name, *shape, Slice::Rows(self.shard)))
            .collect::<Result<_, _>>()?;
        let weight = self.backend.weight(hosts, Summation::Chain);
        weight.map(ColumnParallel).map_err(|source| device(&parts[0].0, source))
    }

    /// A layer split along its inputs.
    ///
    /// # Errors
    /// As the source or the device says.
    pub fn row_parallel(
        &self,
        name: &str,
        shape: (usize, usize),
    ) -> Result<RowParallel<B>, LoadError> {
        let host = self.source.matrix(name, shape, Slice::Columns(self.shard))?;
        let summation = Summation::Shards(VIRTUAL_SHARDS / self.shard.world);
        let weight = self.backend.weight(vec![host], summation);
        weight.map(RowParallel).map_err(|source| device(name, source))
    }
}

fn device(what: &str, source: phalanx_kernels::DeviceError) -> LoadError {
    LoadError::Device { what: what.to_owned(), source }
}

// === impl ColumnParallel ===

impl<B> ColumnParallel<B>
where
    B: Backend,
{
    /// `out = x * weight^T`, this rank's outputs.
    pub fn forward(&self, backend: &mut B, x: &B::Tensor, out: &mut B::Tensor) {
        backend.linear(x, &self.0, out);
    }
}

// === impl RowParallel ===

impl<B> RowParallel<B>
where
    B: Backend,
{
    /// `out = x * weight^T`, summed over all ranks.
    ///
    /// # Errors
    /// When the group is broken.
    pub fn forward<C>(
        &self,
        (backend, collective): (&mut B, &mut C),
        x: &B::Tensor,
        out: &mut B::Tensor,
    ) -> Result<(), CollectiveError>
    where
        C: Collective<B>,
    {
        backend.linear(x, &self.0, out);
        collective.all_reduce(backend, out)
    }
}
