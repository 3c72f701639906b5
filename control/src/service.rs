//! gRPC to commands and back. No decisions.

mod archive;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use phalanx_chassis::drain::{Drain, Phase};
use phalanx_proto::change::{Change, GROUP_NODE, GROUP_URL, Registration};
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::id::{Epoch, Lineage, MemberId, NodeId, ViewIndex};
use phalanx_proto::pb;
use phalanx_proto::view::MemberState;
use phalanx_proto::wire::to_status;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use self::archive::BackupParts;
use crate::command::{Command, validate};
use crate::feed::{Feed, Position, Scope, Subscriber, WatchError};
use crate::forward::Forwarder;
use crate::identity::Identity;
use crate::leader::Leadership;
use crate::planted::{Bug, planted};
use crate::raft::{Consensus, GroupError, ProposeError, check};
use crate::state::{Refusal, Reply};

/// When a caller should try again after a refusal that an election may end.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How long a change of the group waits for the one before it: as long as that one waits for its commit.
const GROUP_TURN_WAIT_MAX: Duration = Duration::from_secs(4);

/// The service of one node.
#[derive(Clone, Debug)]
pub(crate) struct ControlService {
    pub(crate) node_id: u64,
    pub(crate) consensus: Arc<Consensus>,
    pub(crate) leadership: Leadership,
    pub(crate) forwarder: Forwarder,
    pub(crate) feed: Feed,
    pub(crate) drain: Drain,
    /// Changes of the group are made one after another: what is asked for again while it is being made is found done.
    pub(crate) group_changes: Arc<tokio::sync::Mutex<()>>,
}

/// Where a call is answered.
enum Place {
    /// By this node, which leads.
    Here,
    /// By the node that leads, at its URL.
    Leader(NodeId, String),
}

type Stub = pb::control_client::ControlClient<Channel>;
type WatchEvents = Pin<Box<dyn Stream<Item = Result<pb::WatchEvent, Status>> + Send>>;

#[tonic::async_trait]
impl pb::control_server::Control for ControlService {
    async fn register(
        &self,
        request: Request<pb::RegisterRequest>,
    ) -> Result<Response<pb::RegisterResponse>, Status> {
        let (place, message) = self.place(request).await?;
        if let Place::Leader(id, url) = place {
            let call = |mut stub: Stub, request| async move { stub.register(request).await };
            return self.forwarder.forward((id, &url), message, call).await;
        }
        let response = self.do_register(message).await;
        response.map(Response::new).map_err(|fault| to_status(&fault))
    }

    async fn heartbeat(
        &self,
        request: Request<pb::HeartbeatRequest>,
    ) -> Result<Response<pb::HeartbeatResponse>, Status> {
        let (place, message) = self.place(request).await?;
        if let Place::Leader(id, url) = place {
            let call = |mut stub: Stub, request| async move { stub.heartbeat(request).await };
            return self.forwarder.forward((id, &url), message, call).await;
        }
        let pb::HeartbeatRequest { member_id, epoch } = message;
        let state = self.do_heartbeat(MemberId(member_id), Epoch(epoch));
        let state = state.map_err(|fault| to_status(&fault))?;
        let state = pb::MemberState::from(state).into();
        Ok(Response::new(pb::HeartbeatResponse { state }))
    }

    async fn submit(
        &self,
        request: Request<pb::SubmitRequest>,
    ) -> Result<Response<pb::SubmitResponse>, Status> {
        let (place, message) = self.place(request).await?;
        if let Place::Leader(id, url) = place {
            let call = |mut stub: Stub, request| async move { stub.submit(request).await };
            return self.forwarder.forward((id, &url), message, call).await;
        }
        let response = self.do_submit(message).await;
        response.map(Response::new).map_err(|fault| to_status(&fault))
    }

    type WatchStream = WatchEvents;

    async fn watch(
        &self,
        request: Request<pb::WatchRequest>,
    ) -> Result<Response<WatchEvents>, Status> {
        let scope = match request.get_ref().role() {
            pb::Role::Router => Scope::Whole,
            pb::Role::Worker | pb::Role::Unspecified => Scope::WithoutAccess,
        };
        let pb::WatchRequest { lineage, after_index, role: _ } = request.into_inner();
        let after = Position { lineage: Lineage(lineage), index: ViewIndex(after_index) };
        let subscriber = self.feed.subscribe(after, scope);
        let subscriber = subscriber.map_err(|error| to_status(&error.into()))?;
        let drain = self.drain.clone();
        let until_drained = async move { drain.reached(Phase::Draining).await };
        // An open watch must not hold up a shutdown.
        Ok(Response::new(Box::pin(events(subscriber).take_until(until_drained))))
    }

    async fn read_view(
        &self,
        request: Request<pb::ReadViewRequest>,
    ) -> Result<Response<pb::ReadViewResponse>, Status> {
        if !request.get_ref().stale {
            let (place, message) = self.place(request).await?;
            if let Place::Leader(id, url) = place {
                let call = |mut stub: Stub, request| async move { stub.read_view(request).await };
                return self.forwarder.forward((id, &url), message, call).await;
            }
            self.consensus.catch_up().await.map_err(|error| to_status(&error.into()))?;
        }
        let view = self.feed.view().map_err(|error| to_status(&error.into()))?;
        Ok(Response::new(pb::ReadViewResponse { view: Some(view.into()), node_id: self.node_id }))
    }

    async fn status(
        &self,
        _request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        let status = self.consensus.status();
        let members = status.nodes.into_iter().map(|(id, (url, votes))| {
            let role = if votes { "voter" } else { "learner" };
            pb::RaftMember { id: id.0, url, role: role.to_owned() }
        });
        Ok(Response::new(pb::StatusResponse {
            node_id: self.node_id,
            leader: status.leader.map_or(0, |leader| leader.0),
            term: status.term,
            last_applied: status.last_applied,
            members: members.collect(),
            lineage: self.feed.end().lineage.0,
            cluster_id: self.consensus.cluster_id().await.unwrap_or_default(),
        }))
    }

    async fn change_group(
        &self,
        request: Request<pb::ChangeGroupRequest>,
    ) -> Result<Response<pb::ChangeGroupResponse>, Status> {
        let (place, message) = self.place(request).await?;
        if let Place::Leader(id, url) = place {
            let call = |mut stub: Stub, request| async move { stub.change_group(request).await };
            return self.forwarder.forward((id, &url), message, call).await;
        }
        let changed = async {
            let turn = timeout(GROUP_TURN_WAIT_MAX, self.group_changes.lock()).await;
            let _turn = turn.map_err(|_elapsed| {
                GroupError::Busy("another change of it is being made".to_owned())
            })?;
            let node = self.consensus.change_group(message.try_into()?).await?;
            Ok(pb::ChangeGroupResponse { node_id: node.0 })
        };
        changed.await.map(Response::new).map_err(|fault: Fault| to_status(&fault))
    }

    type BackupStream = BackupParts;

    async fn backup(
        &self,
        request: Request<pb::BackupRequest>,
    ) -> Result<Response<BackupParts>, Status> {
        self.do_backup(request).await
    }

    async fn restore(
        &self,
        request: Request<Streaming<pb::BackupPart>>,
    ) -> Result<Response<pb::RestoreResponse>, Status> {
        let restored = self.do_restore(request.into_inner()).await;
        restored.map(Response::new).map_err(|fault| to_status(&fault))
    }
}

// === impl ControlService ===

impl ControlService {
    /// Says where a call is answered. One from another node was passed on already, and must be of this
    /// cluster.
    async fn place<T>(&self, request: Request<T>) -> Result<(Place, T), Status> {
        let (metadata, _extensions, message) = request.into_parts();
        let passed_on = Identity::is_stamped(&metadata);
        if passed_on {
            check(self.consensus.identity(), &metadata).await?;
        }
        if self.leads() {
            return Ok((Place::Here, message));
        }
        let status = self.consensus.status();
        match status.leader_url().filter(|(leader, _url)| leader.0 != self.node_id) {
            Some((leader, url)) if !passed_on => {
                Ok((Place::Leader(leader, url.to_owned()), message))
            }
            leader => {
                let leader = leader.map(|(leader, _url)| leader);
                Err(to_status(&ProposeError::NotLeader { leader }.into()))
            }
        }
    }

    async fn do_register(
        &self,
        request: pb::RegisterRequest,
    ) -> Result<pb::RegisterResponse, Fault> {
        let registration = Registration::try_from(request)?;
        if planted(Bug::EpochReused)
            && let Some(member) = self.feed.with_view(|view| {
                view.members.values().find(|it| it.address == registration.address).cloned()
            })
        {
            return Ok(self.registered(member.id, member.epoch));
        }
        let reply = self.propose(Command::Register(registration)).await?;
        let Reply::Registered { member_id, epoch } = reply else {
            return Err(unexpected(&reply));
        };
        // The lease counts from the answer, not from the leader's next look at the members.
        self.leadership.renew(member_id, epoch);
        Ok(self.registered(member_id, epoch))
    }

    fn registered(&self, member_id: MemberId, epoch: Epoch) -> pb::RegisterResponse {
        let timings = self.leadership.timings();
        pb::RegisterResponse {
            member_id: member_id.0,
            epoch: epoch.0,
            heartbeat_every_ms: millis(timings.heartbeat_every),
            ttl_ms: millis(timings.ttl),
        }
    }

    fn do_heartbeat(&self, id: MemberId, epoch: Epoch) -> Result<MemberState, Fault> {
        self.check_established()?;
        let member = self.feed.member(id);
        if planted(Bug::FenceCheckSkipped) && member.is_none() {
            return Ok(MemberState::Ready);
        }
        let member = member.ok_or(Refusal::NotRegistered { member_id: id })?;
        if member.epoch != epoch {
            let current = member.epoch;
            return Err(Refusal::StaleEpoch { member_id: id, epoch, current }.into());
        }
        self.leadership.renew(id, epoch);
        Ok(member.state)
    }

    async fn do_submit(&self, request: pb::SubmitRequest) -> Result<pb::SubmitResponse, Fault> {
        let pb::SubmitRequest { client, sequence, command } = request;
        let command = command.ok_or_else(|| Fault::invalid("command", "command is missing"))?;
        let change = Change::try_from(command)?;
        match self.propose(Command::Submit { client, sequence, change }).await? {
            Reply::Applied { index } => Ok(pb::SubmitResponse { index: index.0 }),
            reply => Err(unexpected(&reply)),
        }
    }

    async fn propose(&self, command: Command) -> Result<Reply, Fault> {
        validate(&command)?;
        self.check_established()?;
        match self.consensus.propose(command).await? {
            Reply::Refused(refusal) => Err(refusal.into()),
            reply => Ok(reply),
        }
    }

    /// Whether this node leads, and hears its group at this moment: it may have stood still since it last looked,
    /// and another may lead by now.
    fn leads(&self) -> bool {
        let leader = self.consensus.status().leader;
        self.leadership.is_established() && leader == Some(NodeId(self.node_id))
    }

    /// Refuses what only an up-to-date leader can answer.
    fn check_established(&self) -> Result<(), Fault> {
        if self.leads() {
            return Ok(());
        }
        let leader = self.consensus.status().leader.filter(|leader| leader.0 != self.node_id);
        Err(ProposeError::NotLeader { leader }.into())
    }
}

fn events(subscriber: Subscriber) -> impl Stream<Item = Result<pb::WatchEvent, Status>> {
    futures::stream::unfold(Some(subscriber), |subscriber| async {
        let mut subscriber = subscriber?;
        match subscriber.next().await {
            Ok(event) => Some((Ok(event.into()), Some(subscriber))),
            Err(error) => Some((Err(to_status(&error.into())), None)),
        }
    })
}

fn unexpected(reply: &Reply) -> Fault {
    Fault::new(FaultCode::Internal, format!("command was answered with {reply:?}"))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<ProposeError> for Fault {
    fn from(error: ProposeError) -> Self {
        let code = match error {
            ProposeError::NotLeader { .. } | ProposeError::Stopped(_) => FaultCode::Unavailable,
            ProposeError::Timeout => FaultCode::DeadlineExceeded,
        };
        Self::new(code, error.to_string()).with_retry_after(RETRY_AFTER)
    }
}

impl From<GroupError> for Fault {
    fn from(error: GroupError) -> Self {
        match error {
            GroupError::Propose(error) => error.into(),
            GroupError::Busy(_) => {
                Self::new(FaultCode::Unavailable, error.to_string()).with_retry_after(RETRY_AFTER)
            }
            GroupError::Refused(_) => Self::new(FaultCode::InvalidRequest, error.to_string()),
            GroupError::Url(_) => Self::invalid(GROUP_URL, error.to_string()),
            GroupError::NotInGroup(_) => Self::invalid(GROUP_NODE, error.to_string()),
        }
    }
}

impl From<WatchError> for Fault {
    fn from(error: WatchError) -> Self {
        let code = match error {
            WatchError::NotFounded | WatchError::Behind { .. } | WatchError::CutOff { .. } => {
                FaultCode::Unavailable
            }
            WatchError::TooSlow => FaultCode::Overloaded,
        };
        Self::new(code, error.to_string()).with_retry_after(RETRY_AFTER)
    }
}
