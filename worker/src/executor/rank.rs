//! One rank: its share of the model, its device, its KV cache.

use phalanx_kernels::Backend;
use phalanx_kernels::collective::Collective;
use phalanx_kernels::sample::Sampled;

use super::{Executor, ExecutorError};
use crate::engine::plan::StepPlan;
use crate::model::Llama;
use crate::model::llama::Activations;

/// One rank of a group. Every rank is given the same plans and draws the same tokens.
#[derive(Debug)]
pub struct Rank<B: Backend, C> {
    /// The rank's share of the weights.
    pub model: Llama<B>,
    /// Its device.
    pub backend: B,
    /// Its way to the other ranks.
    pub collective: C,
    /// Its KV cache.
    pub kv: B::Kv,
    /// Its scratch memory.
    pub activations: Activations<B>,
}

impl<B, C> Executor for Rank<B, C>
where
    B: Backend,
    C: Collective<B> + 'static,
{
    fn run(&mut self, plan: &StepPlan) -> Result<Vec<Sampled>, ExecutorError> {
        let ranks = (&mut self.backend, &mut self.collective);
        let work = (&plan.batch, plan.draw_rows.as_slice());
        self.model
            .forward(ranks, &mut self.kv, work, &mut self.activations)
            .map_err(|source| ExecutorError(Box::new(source)))?;
        if plan.draws.is_empty() {
            return Ok(Vec::new());
        }
        Ok(self.backend.sample(&mut self.activations.logits, &plan.draws))
    }
}
