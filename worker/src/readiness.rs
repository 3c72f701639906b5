//! Whether a worker can be of use: what probes ask. It outlives the worker, and then says no.

use phalanx_chassis::announce::Standing;
use phalanx_proto::view::MemberState;
use tokio::sync::watch;

use crate::server::Seat;

/// A look at a worker from outside.
#[derive(Clone, Debug)]
pub struct WorkerReadiness {
    pub(crate) standing: watch::Receiver<Standing>,
    pub(crate) seat: Seat,
}

// === impl WorkerReadiness ===

impl WorkerReadiness {
    /// Whether the engine runs, if there is a model, and control has registered the worker at least once and has not
    /// said that it drains: control may go, and the worker serves on.
    ///
    /// # Errors
    /// What is missing.
    pub fn check(&self) -> Result<(), &'static str> {
        // The engine owns the other end, and drops it when it ends.
        if self.seat.load().has_changed().is_err() {
            return Err("engine stopped");
        }
        let standing = *self.standing.borrow();
        if !standing.is_registered() {
            return Err("not registered");
        }
        if standing.state == MemberState::Draining {
            return Err("draining");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use phalanx_proto::id::Epoch;

    use super::*;
    use crate::engine::{EngineHandle, EngineLoad};
    use crate::server::{Seated, Served};
    use crate::text::Text;

    #[tokio::test]
    async fn a_worker_is_ready_once_registered_and_as_long_as_its_engine_runs() {
        let (standing, load) =
            (watch::Sender::new(Standing::default()), watch::Sender::new(EngineLoad::default()));
        let seat = Seat::default();
        let readiness = WorkerReadiness { standing: standing.subscribe(), seat: seat.clone() };
        assert_eq!(readiness.check(), Err("not registered"));
        standing.send_modify(|standing| standing.epoch = Epoch(7));
        assert_eq!(readiness.check(), Ok(()), "without a model, as in a pool");
        let (mail, _mailbox) = std::sync::mpsc::sync_channel(1);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo-llm");
        let text = Arc::new(Text::load(&folder).unwrap());
        let served = Served { name: "m".into(), context_tokens_max: 1, vocabulary: 1 };
        seat.take(Seated::new(
            text,
            EngineHandle::new(mail, load.subscribe(), Arc::default(), 1),
            served,
        ));
        assert_eq!(readiness.check(), Ok(()));
        for (state, expected) in
            [(MemberState::Draining, Err("draining")), (MemberState::Ready, Ok(()))]
        {
            standing.send_modify(|standing| standing.state = state);
            assert_eq!(readiness.check(), expected);
        }
        drop(load);
        assert_eq!(readiness.check(), Err("engine stopped"));
    }
}
