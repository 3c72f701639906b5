//! Whether a worker can be of use: what probes ask. It outlives the worker, and then says no.

use phalanx_chassis::announce::Standing;
use tokio::sync::watch;

use crate::engine::EngineLoad;

/// A look at a worker from outside.
#[derive(Clone, Debug)]
pub struct WorkerReadiness {
    pub(crate) standing: watch::Receiver<Standing>,
    pub(crate) load: watch::Receiver<EngineLoad>,
}

// === impl WorkerReadiness ===

impl WorkerReadiness {
    /// Whether the engine runs and control has registered the worker at least once: control may go, and the
    /// worker serves on.
    ///
    /// # Errors
    /// What is missing.
    pub fn check(&self) -> Result<(), &'static str> {
        // The engine owns the other end, and drops it when it ends.
        if self.load.has_changed().is_err() {
            return Err("engine stopped");
        }
        if !self.standing.borrow().is_registered() {
            return Err("not registered");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use phalanx_proto::id::Epoch;

    use super::*;

    #[test]
    fn a_worker_is_ready_once_registered_and_as_long_as_its_engine_runs() {
        let (standing, load) =
            (watch::Sender::new(Standing::default()), watch::Sender::new(EngineLoad::default()));
        let readiness = WorkerReadiness { standing: standing.subscribe(), load: load.subscribe() };
        assert_eq!(readiness.check(), Err("not registered"));
        standing.send_modify(|standing| standing.epoch = Epoch(7));
        assert_eq!(readiness.check(), Ok(()));
        drop(load);
        assert_eq!(readiness.check(), Err("engine stopped"));
    }
}
