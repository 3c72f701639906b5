//! Leaving in good order: first no new work, then, when that takes too long, no work at all.

use tokio::sync::watch;

/// How far the process is on its way out. Only ever moves down this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Takes new work.
    Serving,
    /// Refuses new work, finishes what it has.
    Draining,
    /// Drops what is left.
    Stopping,
}

/// The end that is told to leave (by signals, in `main`).
#[derive(Debug)]
pub struct DrainTrigger(watch::Sender<Phase>);

/// The end that is asked whether to leave. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Drain(watch::Receiver<Phase>);

/// A connected pair, serving.
pub fn channel() -> (DrainTrigger, Drain) {
    let (sender, receiver) = watch::channel(Phase::Serving);
    (DrainTrigger(sender), Drain(receiver))
}

// === impl DrainTrigger ===

impl DrainTrigger {
    /// Moves to `phase`, unless already there or past it.
    pub fn advance(&self, phase: Phase) {
        self.0.send_if_modified(|current| {
            let later = phase > *current;
            if later {
                *current = phase;
            }
            later
        });
    }
}

// === impl Drain ===

impl Drain {
    /// Where the process is now.
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Resolves once `phase` is reached or passed; at once if the trigger is gone.
    pub async fn reached(&self, phase: Phase) {
        // An error means the trigger was dropped: nobody is left to serve for.
        let _ = self.0.clone().wait_for(|current| *current >= phase).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_phase_is_never_taken_back() {
        let (trigger, drain) = channel();
        trigger.advance(Phase::Stopping);
        trigger.advance(Phase::Draining);
        drain.reached(Phase::Draining).await;
        assert_eq!(drain.phase(), Phase::Stopping);
    }
}
