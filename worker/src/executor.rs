//! What carries out a planned step.

pub mod rank;

use phalanx_kernels::sample::Sampled;

use crate::engine::plan::StepPlan;

/// A step could not be carried out, and so no later one can: a broken group or device.
#[derive(Debug, thiserror::Error)]
#[error("the step could not be carried out")]
pub struct ExecutorError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// Computes steps, in order, and draws the tokens each asks for.
pub trait Executor: Send + 'static {
    /// Computes `plan`; one result per planned draw, in order. A row that cannot be drawn from is
    /// [`Sampled::Numerical`]; it concerns its own sequence only.
    ///
    /// # Errors
    /// When this executor is of no more use.
    fn run(&mut self, plan: &StepPlan) -> Result<Vec<Sampled>, ExecutorError>;
}
