//! The client of the control plane, for workers, routers and operators: any node answers, so a call goes
//! to the node that answered last and moves on to the next one when that node cannot serve.
//!
//! ```text
//! register | heartbeat | submit | read_view | change_group | watch | backup
//!     └──► patience (asked again while that may help) ──► nodes (which one) ──► gRPC
//! ```
//!
//! Every call may be repeated: registrations are named by their instance, commands by client and
//! sequence, and the rest only reads, renews, or does what is done already.

mod archive;
mod nodes;
mod patience;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use phalanx_proto::change::{Change, GROUP_NODE, GroupChange, Registration, WatchEvent};
use phalanx_proto::fault::Fault;
#[cfg(doc)]
use phalanx_proto::fault::FaultCode;
use phalanx_proto::id::{Epoch, Lineage, MemberId, NodeId, ViewIndex};
use phalanx_proto::pb;
use phalanx_proto::view::{ClusterView, MemberRole, MemberState};
use phalanx_proto::wire::{WireError, from_status};
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

pub use self::nodes::ControlUrlError;
use self::nodes::{Nodes, Stub};
use self::patience::{is_between_leaders, is_passing, persist};

/// How long one node may take to answer. A write waits for one durable commit, at worst behind an election.
const CALL_WAIT_MAX: Duration = Duration::from_secs(5);

/// How long one node may take to answer a heartbeat, which writes nothing. A third of the least time to live:
/// with a node that swallows it, another one is asked before the member is taken for dead.
const HEARTBEAT_WAIT_MAX: Duration = Duration::from_secs(2);

/// A client of the control plane. Cheap to clone; connects when first used.
#[derive(Clone, Debug)]
pub struct ControlClient {
    nodes: Arc<Nodes>,
    /// What its process is to the cluster; none for operators and what is no member.
    role: Option<MemberRole>,
    /// Sets its pauses apart from those of other processes.
    jitter: u64,
}

/// A registration that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Who the process is now.
    pub member_id: MemberId,
    /// Its fencing token.
    pub epoch: Epoch,
    /// How often to send heartbeats.
    pub heartbeat_every: Duration,
    /// Silence after which the member is fenced.
    pub ttl: Duration,
}

/// The view, as one node gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewReading {
    /// The view.
    pub view: ClusterView,
    /// Whose it is: the leader's, or for a stale reading the node's that was asked.
    pub node_id: NodeId,
}

/// One open watch.
#[derive(Debug)]
pub struct WatchStream(tonic::Streaming<pb::WatchEvent>);

// === impl ControlClient ===

impl ControlClient {
    /// A client of the nodes at `urls`.
    ///
    /// # Errors
    /// [`ControlUrlError`] when there is no URL, or one that is not `http://HOST:PORT`.
    pub fn new<U>(urls: &[U]) -> Result<Self, ControlUrlError>
    where
        U: AsRef<str>,
    {
        Self::with_connect(urls, Endpoint::connect_lazy)
    }

    /// As [`ControlClient::new`], over another network: `connect` makes a channel that connects when first
    /// used.
    ///
    /// # Errors
    /// As [`ControlClient::new`].
    pub fn with_connect<U>(
        urls: &[U],
        connect: impl Fn(&Endpoint) -> Channel,
    ) -> Result<Self, ControlUrlError>
    where
        U: AsRef<str>,
    {
        let jitter = u64::from(std::process::id());
        Nodes::new(urls, connect).map(|nodes| Self { nodes: Arc::new(nodes), role: None, jitter })
    }

    /// The same client with pauses that `jitter` decides, for what must run alike in every process.
    #[must_use]
    pub fn with_jitter(self, jitter: u64) -> Self {
        Self { jitter, ..self }
    }

    /// The client of a router, which alone is shown who may use the cluster.
    #[must_use]
    pub fn as_router(self) -> Self {
        Self { role: Some(MemberRole::Router), ..self }
    }

    pub(crate) const fn jitter(&self) -> u64 {
        self.jitter
    }

    /// Whether its watches show who may use the cluster.
    pub(crate) fn is_routers(&self) -> bool {
        self.role == Some(MemberRole::Router)
    }

    /// Registers this process. To be repeated with the same instance when the answer was lost, and with
    /// the same instance again after the member was fenced.
    ///
    /// # Errors
    /// [`FaultCode::InvalidRequest`] for a registration that no node will take; otherwise as the last
    /// node that was tried answered.
    pub async fn register(&self, registration: Registration) -> Result<Registered, Fault> {
        let request = pb::RegisterRequest::from(registration);
        let response = self
            .call(|mut stub| {
                let request = request.clone();
                async move { stub.register(request).await }
            })
            .await?;
        Ok(Registered {
            member_id: MemberId(response.member_id),
            epoch: Epoch(response.epoch),
            heartbeat_every: Duration::from_millis(response.heartbeat_every_ms),
            ttl: Duration::from_millis(response.ttl_ms),
        })
    }

    /// Keeps a registration alive and learns whether the member should take work.
    ///
    /// # Errors
    /// [`FaultCode::StaleEpoch`] when the member was fenced: it must register anew. Otherwise as the last
    /// node that was tried answered.
    pub async fn heartbeat(&self, member_id: MemberId, epoch: Epoch) -> Result<MemberState, Fault> {
        let request = pb::HeartbeatRequest { member_id: member_id.0, epoch: epoch.0 };
        let beat = |mut stub: Stub| async move { stub.heartbeat(request).await };
        let response = self.call_within(HEARTBEAT_WAIT_MAX, beat).await?;
        Ok(response.state().try_into()?)
    }

    /// Applies `change` exactly once: `client` and `sequence` name it, whatever the retries. The sequence
    /// of one client only grows.
    ///
    /// # Errors
    /// [`FaultCode::StaleEpoch`] or [`FaultCode::InvalidRequest`] when the change was refused; otherwise
    /// as the last node that was tried answered.
    pub async fn submit(
        &self,
        client: &str,
        sequence: u64,
        change: Change,
    ) -> Result<ViewIndex, Fault> {
        let request =
            pb::SubmitRequest { client: client.to_owned(), sequence, command: Some(change.into()) };
        let response = self
            .call(|mut stub| {
                let request = request.clone();
                async move { stub.submit(request).await }
            })
            .await?;
        Ok(ViewIndex(response.index))
    }

    /// As [`ControlClient::submit`], asked again for up to `wait_max` while that may help: across an election,
    /// a restart or a lost answer.
    ///
    /// # Errors
    /// As for [`ControlClient::submit`]. When the time is up without an answer, the change may still be
    /// applied, once: an answer may have been lost.
    pub async fn submit_within(
        &self,
        wait_max: Duration,
        client: &str,
        sequence: u64,
        change: Change,
    ) -> Result<ViewIndex, Fault> {
        let submit = || self.submit(client, sequence, change.clone());
        persist(wait_max, self.jitter, submit, is_passing).await
    }

    /// The view with every write in it that was answered before; waits out an election for up to `wait_max`.
    ///
    /// # Errors
    /// As the last node that was tried answered.
    pub async fn read_view(&self, wait_max: Duration) -> Result<ViewReading, Fault> {
        let read = || self.read_view_once(false);
        persist(wait_max, self.jitter, read, is_between_leaders).await
    }

    /// The view as the first node that answers has it, which may lag behind. Needs no leader.
    ///
    /// # Errors
    /// As the last node that was tried answered.
    pub async fn read_view_stale(&self) -> Result<ViewReading, Fault> {
        self.read_view_once(true).await
    }

    async fn read_view_once(&self, stale: bool) -> Result<ViewReading, Fault> {
        let request = pb::ReadViewRequest { stale };
        let response = self.call(|mut stub| async move { stub.read_view(request).await }).await?;
        let view = response.view.ok_or(WireError { field: "view" })?;
        Ok(ViewReading { view: view.try_into()?, node_id: NodeId(response.node_id) })
    }

    /// Changes the control group, and says which node it was about: for an added one, its id. To repeat a
    /// change is harmless.
    ///
    /// # Errors
    /// [`FaultCode::InvalidRequest`] when the change was refused; otherwise as the last node that was tried
    /// answered.
    pub async fn change_group(&self, change: GroupChange) -> Result<NodeId, Fault> {
        let request = pb::ChangeGroupRequest::from(change);
        let response = self
            .call(|mut stub| {
                let request = request.clone();
                async move { stub.change_group(request).await }
            })
            .await?;
        Ok(NodeId(response.node_id))
    }

    /// As [`ControlClient::change_group`], asked again for up to `wait_max` while that may help: across an election,
    /// a restart or a lost answer.
    ///
    /// # Errors
    /// As for [`ControlClient::change_group`]. When the time is up without an answer, the change may still be made.
    pub async fn change_group_within(
        &self,
        wait_max: Duration,
        change: GroupChange,
    ) -> Result<NodeId, Fault> {
        // A node that is gone after it was there has left: an earlier answer may have been lost.
        let leaving = match change {
            GroupChange::Remove(node) if self.is_in_group(node).await => Some(node),
            _ => None,
        };
        let call = || self.change_group(change.clone());
        match (persist(wait_max, self.jitter, call, is_passing).await, leaving) {
            (Err(fault), Some(node)) if fault.param.as_deref() == Some(GROUP_NODE) => Ok(node),
            (changed, _) => changed,
        }
    }

    /// Whether any node still says so; not being sure counts as no.
    async fn is_in_group(&self, node: NodeId) -> bool {
        let status = self.status().await;
        status.is_ok_and(|status| status.members.iter().any(|member| member.id == node.0))
    }

    /// What one node knows of the Raft group.
    ///
    /// # Errors
    /// As the last node that was tried answered.
    pub async fn status(&self) -> Result<pb::StatusResponse, Fault> {
        self.call(|mut stub| async move { stub.status(pb::StatusRequest {}).await }).await
    }

    /// Follows the view from what the caller already has; both 0 for nothing. Tenants and keys are left out for all but
    /// [routers](Self::as_router).
    ///
    /// # Errors
    /// As the last node that was tried answered.
    pub async fn watch(&self, lineage: Lineage, after: ViewIndex) -> Result<WatchStream, Fault> {
        let role = self.role.map_or(pb::Role::Unspecified, pb::Role::from).into();
        let request = pb::WatchRequest { lineage: lineage.0, after_index: after.0, role };
        let stream = self.call(|mut stub| async move { stub.watch(request).await }).await?;
        Ok(WatchStream(stream))
    }

    /// Makes the next call start at another node: for a caller that saw this one lag.
    pub fn rotate(&self) {
        self.nodes.rotate();
    }

    async fn call<T, A, F>(&self, attempt: A) -> Result<T, Fault>
    where
        A: Fn(Stub) -> F,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.call_within(CALL_WAIT_MAX, attempt).await
    }

    async fn call_within<T, A, F>(&self, wait_max: Duration, attempt: A) -> Result<T, Fault>
    where
        A: Fn(Stub) -> F,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.nodes.call_within(wait_max, attempt).await
    }
}

// === impl WatchStream ===

impl WatchStream {
    /// The next event; `None` when the node ended the watch.
    ///
    /// # Errors
    /// [`FaultCode::Unavailable`] when the connection broke, or as the node said.
    pub async fn next(&mut self) -> Result<Option<WatchEvent>, Fault> {
        let event = self.0.message().await.map_err(|status| from_status(&status))?;
        event
            .map(|event| WatchEvent::try_from(event).map_err(|error: WireError| error.into()))
            .transpose()
    }
}

#[cfg(test)]
mod tests;
