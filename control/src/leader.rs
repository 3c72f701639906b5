//! What only the leader does: give a new cluster its identity, keep the members' leases, fence whoever let
//! theirs run out, place what is to be served, and have the replicas compared.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use phalanx_proto::change::Change;
use phalanx_proto::id::{Epoch, Lineage, MemberId, NodeId};
use phalanx_proto::view::ClusterView;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::command::Command;
use crate::feed::Feed;
use crate::host::Host;
use crate::liveness::{Leases, Millis, Timings};
use crate::placement;
use crate::planted::{Bug, planted};
use crate::raft::{Consensus, NodeStatus, ProposeError};
use crate::state::Reply;
use crate::store::chain;

/// Leases are looked at this many times within one lease: a fence comes at most this share of it late.
const CHECKS_PER_LEASE: u32 = 20;

/// And at least this often, because a leadership that could not begin is tried again then.
const CHECK_EVERY_MAX: Duration = Duration::from_millis(500);

/// The leader's duties, and whether they have begun. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Leadership(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    node_id: NodeId,
    timings: Timings,
    host: Arc<dyn Host>,
    started: Instant,
    leases: Mutex<Leases>,
    /// The term this node leads, once it has applied all that was committed before.
    leads: watch::Sender<Option<u64>>,
}

// === impl Leadership ===

impl Leadership {
    pub(crate) fn new(node_id: NodeId, timings: Timings, host: Arc<dyn Host>) -> Self {
        let (leads, _receiver) = watch::channel(None);
        let leases = Mutex::new(Leases::new(timings.ttl));
        let started = Instant::now();
        Self(Arc::new(Shared { node_id, timings, host, started, leases, leads }))
    }

    /// Whether this node leads and its state is up to date.
    pub(crate) fn is_established(&self) -> bool {
        self.0.leads.borrow().is_some()
    }

    pub(crate) fn timings(&self) -> Timings {
        self.0.timings
    }

    /// Takes a heartbeat of a member whose registration holds.
    pub(crate) fn renew(&self, id: MemberId, epoch: Epoch) {
        self.0.leases.lock().renew(id, epoch, self.now());
    }

    /// Does the leader's work whenever this node leads. Ends with Raft or with its task.
    pub(crate) async fn run(self, consensus: Arc<Consensus>, feed: Feed) {
        let mut statuses = consensus.statuses();
        let mut tick = interval((self.0.timings.ttl / CHECKS_PER_LEASE).min(CHECK_EVERY_MAX));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                changed = statuses.changed() => if changed.is_err() { return },
            }
            // Without a quorum nobody leads, and heartbeats may go elsewhere: leases are armed anew after it.
            let term = self.led_term(&statuses.borrow_and_update());
            if term != *self.0.leads.borrow() {
                self.0.leads.send_replace(None);
                if let Some(term) = term {
                    self.begin(term, &consensus, &feed).await;
                }
            }
            if self.is_established() {
                self.fence_silent(&consensus, &feed).await;
                place(&consensus, &feed).await;
                compare_replicas(&consensus).await;
            }
        }
    }

    fn led_term(&self, status: &NodeStatus) -> Option<u64> {
        (status.leader == Some(self.0.node_id)).then_some(status.term)
    }

    /// Catches up, founds a new cluster, and arms every lease; only then are heartbeats judged.
    async fn begin(&self, term: u64, consensus: &Consensus, feed: &Feed) {
        if let Err(error) = self.prepare(consensus, feed).await {
            tracing::warn!(term, %error, "cannot take up leadership yet, trying again");
            return;
        }
        if !planted(Bug::LeaseNotRearmed) {
            feed.with_view(|view| self.0.leases.lock().begin(registrations(view), self.now()));
        }
        self.0.leads.send_replace(Some(term));
        tracing::info!(term, "leads the control plane");
    }

    async fn prepare(&self, consensus: &Consensus, feed: &Feed) -> Result<(), ProposeError> {
        consensus.catch_up().await?;
        if feed.end().lineage == Lineage(0) {
            let cluster_id = consensus.founding_id().await;
            let cluster_id = cluster_id.map_err(|error| ProposeError::Stopped(chain(&error)))?;
            let lineage = lineage_at(self.0.host.wall_clock());
            consensus.propose(Command::Found { cluster_id, lineage }).await?;
        }
        Ok(())
    }

    async fn fence_silent(&self, consensus: &Consensus, feed: &Feed) {
        let silent = feed.with_view(|view| {
            let mut leases = self.0.leases.lock();
            leases.align(registrations(view), self.now());
            leases.expired(self.now())
        });
        for (member_id, epoch) in silent {
            tracing::warn!(%member_id, %epoch, "member was silent for too long, fencing it");
            let fence = Command::Internal(Change::Fence { member_id, epoch });
            match consensus.propose(fence).await {
                Ok(Reply::Applied { .. } | Reply::Registered { .. }) => {}
                // It left or registered anew meanwhile.
                Ok(Reply::Refused(refusal)) => tracing::debug!(%refusal, "fence was not needed"),
                Err(error) => {
                    tracing::warn!(%error, %member_id, "cannot fence yet, trying again");
                    return;
                }
            }
        }
    }

    fn now(&self) -> Millis {
        Millis(u64::try_from(self.0.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

/// Puts the leader's hash into the log when one is due.
async fn compare_replicas(consensus: &Consensus) {
    let Some(checkpoint) = consensus.checkpoint_due() else { return };
    if let Err(error) = consensus.propose(checkpoint).await {
        tracing::debug!(%error, "cannot compare the replicas yet, trying again");
    }
}

/// Carries out a plan. A change that is refused, because something else came first, ends it: the next plan knows.
async fn place(consensus: &Consensus, feed: &Feed) {
    for change in feed.with_view(placement::plan) {
        match consensus.propose(Command::Internal(change.clone())).await {
            Ok(Reply::Applied { .. } | Reply::Registered { .. }) => {
                tracing::info!(?change, "changed the groups");
            }
            Ok(Reply::Refused(refusal)) => {
                return tracing::debug!(%refusal, ?change, "a plan was overtaken");
            }
            Err(error) => return tracing::warn!(%error, "cannot place groups yet, trying again"),
        }
    }
}

fn registrations(view: &ClusterView) -> impl Iterator<Item = (MemberId, Epoch)> {
    view.members.values().map(|member| (member.id, member.epoch))
}

/// Milliseconds since 1970, so that a cluster founded anew outranks the one whose data was lost. A clock before
/// 1970 yields the first lineage.
fn lineage_at(since_1970: Duration) -> Lineage {
    Lineage(u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX).max(1))
}
