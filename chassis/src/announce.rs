//! Keeps a process a member of the cluster: registers it, sends heartbeats, registers it again when it was
//! fenced, and says goodbye.
//!
//! ```text
//! register ──► heartbeats ◄── the process drains: control is told, so that nobody sends it new work
//!     ▲          │     └──── its work is over ──► deregister
//!     └─ fenced ─┘
//! ```
//! Serving does not depend on it: while control is away, the last epoch stays good.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use phalanx_proto::change::{Change, Registration};
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::id::Epoch;
use phalanx_proto::view::MemberState;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::control_client::{ControlClient, Registered};
use crate::drain::{Drain, Phase};

/// The first wait after a failed registration.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// The longest: a process is back in the view soon after control is.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// How long control may take to hear that a process drains, or leaves: the others notice by themselves, too.
const GOODBYE_WAIT_MAX: Duration = Duration::from_secs(2);
/// Heartbeats are never closer than this, whatever control asks for.
const HEARTBEAT_EVERY_MIN: Duration = Duration::from_millis(10);

/// What control last said of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The registration's fencing token; 0 before the first one.
    pub epoch: Epoch,
    /// Whether others send it new work.
    pub state: MemberState,
}

/// Announces one process.
#[derive(Debug)]
pub struct Announcer {
    control: ControlClient,
    /// Read anew for each registration.
    registration: watch::Sender<Registration>,
    standing: watch::Sender<Standing>,
    drain: Drain,
    /// How many commands the process has made.
    said: AtomicU64,
}

/// Why heartbeats ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeartbeatsEnd {
    /// Control took the process for dead, was told to remove it, or never knew it.
    Fenced,
    /// What it did is done.
    Over,
}

// === impl Standing ===

impl Standing {
    /// Whether the process is, or was, a member.
    pub fn is_registered(&self) -> bool {
        self.epoch != Epoch::default()
    }
}

impl Default for Standing {
    fn default() -> Self {
        Self { epoch: Epoch::default(), state: MemberState::Ready }
    }
}

// === impl Announcer ===

impl Announcer {
    /// Will announce `registration` to `control`; `drain` says when the process leaves.
    pub fn new(control: ControlClient, registration: Registration, drain: Drain) -> Self {
        let registration = watch::Sender::new(registration);
        let (standing, said) = (watch::Sender::default(), AtomicU64::new(0));
        Self { control, registration, standing, drain, said }
    }

    /// What is announced. A change of it is said with the next registration, if one is needed.
    pub fn registration(&self) -> watch::Sender<Registration> {
        self.registration.clone()
    }

    /// What control says of the process, as it changes.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Does `work` as a member of the cluster. Without control the work is done all the same.
    pub async fn during<W>(self, work: W) -> W::Output
    where
        W: Future,
    {
        let over = CancellationToken::new();
        // Boxed, as it is a whole process, and this future is passed around.
        let work = Box::pin(async {
            let outcome = work.await;
            over.cancel();
            outcome
        });
        let (outcome, ()) = tokio::join!(work, self.run(&over));
        outcome
    }

    /// A process on its way out does not register any more.
    async fn run(&self, over: &CancellationToken) {
        loop {
            let registered = tokio::select! {
                biased;
                () = over.cancelled() => return,
                () = self.drain.reached(Phase::Draining) => return,
                registered = self.register() => registered,
            };
            match self.heartbeats(registered, over).await {
                HeartbeatsEnd::Fenced => {}
                HeartbeatsEnd::Over => return self.deregister(registered).await,
            }
        }
    }

    /// Tries for ever: control may come back at any time.
    async fn register(&self) -> Registered {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX, self.control.jitter());
        loop {
            let registration = self.registration.borrow().clone();
            let address = registration.address.clone();
            match self.control.register(registration).await {
                Ok(registered) => {
                    let (member, epoch) = (registered.member_id, registered.epoch);
                    info!(%member, %epoch, address, "registered");
                    self.stand(Standing { epoch, state: MemberState::Ready });
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

    async fn heartbeats(&self, registered: Registered, over: &CancellationToken) -> HeartbeatsEnd {
        let every = registered.heartbeat_every.max(HEARTBEAT_EVERY_MIN);
        let mut is_leaving = false;
        loop {
            let beaten = tokio::select! {
                biased;
                () = over.cancelled() => return HeartbeatsEnd::Over,
                () = self.drain.reached(Phase::Draining), if !is_leaving => {
                    is_leaving = true;
                    self.say_drain(registered, over).await;
                    continue;
                }
                beaten = self.heartbeat_after(every, registered) => beaten,
            };
            match beaten {
                Err(fault) if fault.code == FaultCode::StaleEpoch => {
                    warn!(%fault, "this process was fenced");
                    return HeartbeatsEnd::Fenced;
                }
                Err(fault) => warn!(%fault, "a heartbeat was lost"),
                Ok(state) => {
                    self.stand(Standing { epoch: registered.epoch, state });
                    // Control did not hear it, or an operator took it back: the process leaves all the same.
                    if is_leaving && state == MemberState::Ready {
                        self.say_drain(registered, over).await;
                    }
                }
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

    fn stand(&self, standing: Standing) {
        self.standing.send_if_modified(|current| {
            let is_told = current.state == standing.state;
            if !is_told && standing.state == MemberState::Draining {
                info!(epoch = %standing.epoch, "control says that this process drains");
            }
            let is_new = *current != standing;
            *current = standing;
            is_new
        });
    }

    /// Whether it is heard or not, the process goes on leaving.
    async fn say_drain(&self, registered: Registered, over: &CancellationToken) {
        let Registered { member_id, epoch, .. } = registered;
        let said = self.say(Change::Drain { member_id, epoch });
        match over.run_until_cancelled(said).await {
            Some(Ok(())) => info!(member = %member_id, "draining, as control knows"),
            Some(Err(fault)) => warn!(%fault, "draining, but cannot tell control"),
            None => {}
        }
    }

    async fn deregister(&self, registered: Registered) {
        let Registered { member_id, epoch, .. } = registered;
        let goodbye = Change::Deregister { member_id, epoch };
        tokio::select! {
            biased;
            said = self.say(goodbye) => match said {
                Ok(()) => info!(member = %member_id, "deregistered"),
                Err(fault) => warn!(%fault, "cannot deregister"),
            },
            () = self.drain.reached(Phase::Stopping) => {}
        }
    }

    /// Submits a command of this process; the instance and their order name them.
    async fn say(&self, change: Change) -> Result<(), Fault> {
        let sequence = self.said.fetch_add(1, Ordering::Relaxed) + 1;
        let instance = self.registration.borrow().instance.clone();
        let said = self.control.submit(&instance, sequence, change);
        match timeout(GOODBYE_WAIT_MAX, said).await {
            Ok(said) => said.map(|_index| ()),
            Err(_elapsed) => {
                let message = format!("control did not hear it within {GOODBYE_WAIT_MAX:?}");
                Err(Fault::new(FaultCode::DeadlineExceeded, message))
            }
        }
    }
}

#[cfg(test)]
mod tests;
