//! Tells the control plane that this worker is here: registers, sends heartbeats, registers again when it was
//! fenced, and says goodbye.
//!
//! Serving does not depend on it: while control is away, the last epoch stays good.

use std::time::Duration;

use phalanx_chassis::backoff::Backoff;
use phalanx_chassis::control_client::{ControlClient, Registered};
use phalanx_chassis::drain::{Drain, Phase};
use phalanx_proto::change::{Change, Registration};
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::id::Epoch;
use phalanx_proto::view::MemberState;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

/// The first wait after a failed registration.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// The longest: a worker is back in the view soon after control is.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// How long a goodbye may take: routers notice a departure by themselves too.
const GOODBYE_WAIT_MAX: Duration = Duration::from_secs(2);
/// Heartbeats are never closer than this, whatever control asks for.
const HEARTBEAT_EVERY_MIN: Duration = Duration::from_millis(10);

/// Keeps one process registered.
#[derive(Debug)]
pub(crate) struct Announcer {
    pub(crate) control: ControlClient,
    pub(crate) registration: Registration,
    /// Where the current epoch is published.
    pub(crate) epoch: watch::Sender<Epoch>,
    pub(crate) drain: Drain,
}

/// Why heartbeats ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeartbeatsEnd {
    /// The control plane took the worker for dead, or never knew it.
    Fenced,
    /// The process leaves.
    Draining,
}

impl Announcer {
    /// Registers and stays registered until the process drains, then deregisters.
    pub(crate) async fn run(self) {
        let drain = self.drain.clone();
        loop {
            let registered = tokio::select! {
                biased;
                () = drain.reached(Phase::Draining) => return,
                registered = self.register() => registered,
            };
            match self.heartbeats(registered).await {
                HeartbeatsEnd::Fenced => {}
                HeartbeatsEnd::Draining => return self.deregister(registered).await,
            }
        }
    }

    /// Tries for ever: control may come back at any time.
    async fn register(&self) -> Registered {
        let seed = u64::from(std::process::id());
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX, seed);
        loop {
            match self.control.register(self.registration.clone()).await {
                Ok(registered) => {
                    let (member, epoch) = (registered.member_id, registered.epoch);
                    info!(%member, %epoch, address = self.registration.address, "registered");
                    self.epoch.send_replace(epoch);
                    return registered;
                }
                Err(fault) => {
                    let wait = backoff.delay();
                    warn!(%fault, ?wait, "cannot register, will try again");
                    sleep(wait).await;
                }
            }
        }
    }

    async fn heartbeats(&self, registered: Registered) -> HeartbeatsEnd {
        let every = registered.heartbeat_every.max(HEARTBEAT_EVERY_MIN);
        loop {
            let beaten = tokio::select! {
                biased;
                () = self.drain.reached(Phase::Draining) => return HeartbeatsEnd::Draining,
                beaten = self.heartbeat_after(every, registered) => beaten,
            };
            match beaten {
                Err(fault) if fault.code == FaultCode::StaleEpoch => {
                    warn!(%fault, "this worker was fenced, will register again");
                    return HeartbeatsEnd::Fenced;
                }
                Err(fault) => warn!(%fault, "a heartbeat was lost"),
                Ok(_state) => {}
            }
        }
    }

    async fn heartbeat_after(
        &self,
        wait: Duration,
        registered: Registered,
    ) -> Result<MemberState, Fault> {
        sleep(wait).await;
        self.control.heartbeat(registered.member_id, registered.epoch).await
    }

    async fn deregister(&self, registered: Registered) {
        let Registered { member_id, epoch, .. } = registered;
        let goodbye = Change::Deregister { member_id, epoch };
        // The instance names this process' commands; this is its only one.
        let said = self.control.submit(&self.registration.instance, 1, goodbye);
        tokio::select! {
            biased;
            said = timeout(GOODBYE_WAIT_MAX, said) => match said {
                Ok(Ok(_index)) => info!(member = %member_id, "deregistered"),
                Ok(Err(fault)) => warn!(%fault, "cannot deregister"),
                Err(_elapsed) => warn!(wait = ?GOODBYE_WAIT_MAX, "control did not hear the goodbye"),
            },
            () = self.drain.reached(Phase::Stopping) => {}
        }
    }
}

#[cfg(test)]
mod tests;
