//! Groups of three nodes, each on a runtime of its own so that it can be killed, behind wires that can be
//! cut.

mod drift;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use phalanx_chassis::control_client::{ControlClient, Registered};
use phalanx_chassis::drain::{self, DrainTrigger, Phase};
use phalanx_chassis::metrics::Metrics;
use phalanx_chassis::watch::ViewWatch;
use phalanx_proto::change::{Change, GroupChange, WatchEvent};
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::id::{Lineage, NodeId, ViewIndex};
use phalanx_proto::pb;
use phalanx_proto::view::{MemberState, Model};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};
use tonic::Code;

use super::link::Link;
use super::{LONG, WAIT_MAX, any_port, once_led, registration, seen};
use crate::backup::inspect;
use crate::host::ThisMachine;
use crate::identity::Identity;
use crate::liveness::Timings;
use crate::raft::Consensus;
use crate::store::identity::IdentityFile;
use crate::{Control, ControlConfig, RunError, StartError};

/// Between two looks at something that comes true by itself.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A node that runs until it is killed.
struct Killable {
    /// Taken when it is killed.
    runtime: Option<Runtime>,
    consensus: Arc<Consensus>,
    metrics: Metrics,
    run: JoinHandle<Result<(), RunError>>,
    trigger: DrainTrigger,
}

struct Group {
    folder: TempDir,
    ttl: Duration,
    links: BTreeMap<u64, Link>,
    nodes: BTreeMap<u64, Killable>,
}

// === impl Killable ===

impl Killable {
    async fn start(config: ControlConfig, ttl: Duration) -> Result<(Self, SocketAddr), StartError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (trigger, drain) = drain::channel();
        let timings = Timings { heartbeat_every: ttl / 3, ttl };
        let metrics = Metrics::default();
        let shown = metrics.clone();
        let bind = async move { Control::bind_with(config, timings, &shown, drain).await };
        let bound = runtime.spawn(bind).await.unwrap();
        let control = match bound {
            Ok(control) => control,
            Err(error) => {
                runtime.shutdown_background();
                return Err(error);
            }
        };
        let (consensus, address) = (control.consensus(), control.local_addr());
        let run = runtime.spawn(control.run());
        let runtime = Some(runtime);
        Ok((Self { runtime, consensus, metrics, run, trigger }, address))
    }
}

impl Drop for Killable {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

// === impl Group ===

impl Group {
    async fn start(ttl: Duration) -> Self {
        let mut group = Self {
            folder: tempfile::tempdir().unwrap(),
            ttl,
            links: BTreeMap::new(),
            nodes: BTreeMap::new(),
        };
        for id in 1..=3 {
            group.links.insert(id, Link::new().await);
        }
        for id in 1..=3 {
            group.start_node(id).await;
        }
        group
    }

    fn config(&self, id: u64) -> ControlConfig {
        let peers = self.links.iter().map(|(id, link)| (NodeId(*id), link.url.clone()));
        ControlConfig {
            node_id: NodeId(id),
            listen: any_port(),
            data_dir: self.folder.path().join(id.to_string()),
            bootstrap: id == 1,
            peers: peers.collect(),
        }
    }

    /// Starts a node on what it left on disk, as soon as its predecessor has let go of that.
    async fn start_node(&mut self, id: u64) {
        let started = timeout(WAIT_MAX, async {
            let mut look = interval(LOOK_EVERY);
            loop {
                look.tick().await;
                match Killable::start(self.config(id), self.ttl).await {
                    Ok(started) => break started,
                    Err(error) => assert!(error.to_string().contains("in use"), "{error}"),
                }
            }
        });
        let (node, address) = started.await.expect("the node starts");
        self.links[&id].lead_to(address);
        self.nodes.insert(id, node);
    }

    fn kill(&mut self, id: u64) {
        self.links[&id].cut();
        assert!(self.nodes.remove(&id).is_some(), "node {id} runs");
    }

    /// Asks a node to leave and waits until it has.
    async fn drain(&mut self, id: u64) {
        let mut node = self.nodes.remove(&id).expect("the node runs");
        node.trigger.advance(Phase::Draining);
        let stopped = timeout(WAIT_MAX, &mut node.run).await;
        stopped.expect("the node stops").unwrap().unwrap();
        self.links[&id].cut();
    }

    fn client(&self, id: u64) -> ControlClient {
        ControlClient::new(&[&self.links[&id].url]).unwrap()
    }

    /// Waits until a node other than `not` leads in the eyes of `at`.
    async fn leader(&self, at: u64, not: u64) -> u64 {
        let client = self.client(at);
        let waited = timeout(WAIT_MAX, async {
            let mut look = interval(LOOK_EVERY);
            loop {
                look.tick().await;
                match client.status().await {
                    Ok(status) if ![0, not].contains(&status.leader) => break status.leader,
                    Ok(_) | Err(_) => {}
                }
            }
        });
        waited.await.expect("somebody leads")
    }

    async fn put(&self, at: u64, name: &str) -> ViewIndex {
        put(&self.client(at), name).await.unwrap()
    }

    /// Waits until node `at` shows the model.
    async fn shows(&self, at: u64, name: &str) {
        let watched = ViewWatch::start(self.client(at), None);
        seen(&mut watched.view(), |view| view.models.contains(&model(name))).await;
    }
}

fn model(name: &str) -> Model {
    Model { name: name.into(), revision: "r".into() }
}

/// Puts a model under a name that also names the command, as soon as there is a leader.
async fn put(client: &ControlClient, name: &str) -> Result<ViewIndex, Fault> {
    once_led(|| client.submit(name, 1, Change::PutModel(model(name)))).await
}

/// Any two nodes but `id`.
fn others(id: u64) -> [u64; 2] {
    [id % 3 + 1, (id + 1) % 3 + 1]
}

#[tokio::test]
async fn three_nodes_form_one_cluster_and_each_of_them_takes_writes() {
    let group = Group::start(LONG).await;
    for id in 1..=3 {
        group.put(id, &format!("by {id}")).await;
    }
    let mut statuses = Vec::new();
    for id in 1..=3 {
        for from in 1..=3 {
            group.shows(id, &format!("by {from}")).await;
        }
        let status = group.client(id).status().await.unwrap();
        assert_eq!(status.node_id, id);
        let roles: Vec<(u64, &str)> =
            status.members.iter().map(|member| (member.id, member.role.as_str())).collect();
        assert_eq!(roles, [(1, "voter"), (2, "voter"), (3, "voter")]);
        statuses.push((status.cluster_id, status.lineage, status.leader));
    }
    assert!(!statuses[0].0.is_empty());
    assert!(statuses.iter().all(|status| *status == statuses[0]), "{statuses:?}");
}

#[tokio::test]
async fn a_read_at_any_node_holds_what_was_written_at_another_and_needs_a_quorum() {
    let mut group = Group::start(LONG).await;
    for turn in 0..9 {
        let name = format!("turn {turn}");
        group.put(turn % 3 + 1, &name).await;
        let reading = group.client((turn + 1) % 3 + 1).read_view(WAIT_MAX).await.unwrap();
        assert!(reading.view.models.contains(&model(&name)), "{name} is not read: {reading:?}");
    }
    let leader = group.leader(1, 0).await;
    let [left, other] = others(leader);
    group.shows(left, "turn 8").await;
    group.kill(leader);
    group.kill(other);

    let client = group.client(left);
    let patience = Duration::from_millis(500);
    let unread = client.read_view(patience).await.unwrap_err();
    let change = Change::PutModel(model("lost"));
    let unwritten = client.submit_within(patience, "c", 1, change).await.unwrap_err();
    for fault in [unread, unwritten] {
        let hint = (fault.code, fault.retry_after);
        assert_eq!(hint, (FaultCode::Unavailable, Some(Duration::from_secs(1))), "{fault}");
    }
    let stale = client.read_view_stale().await.unwrap();
    assert_eq!(stale.node_id, NodeId(left));
    assert!(stale.view.models.contains(&model("turn 8")));
}

#[tokio::test]
async fn when_the_leader_dies_writes_go_on_and_it_catches_up_when_it_is_back() {
    let mut group = Group::start(LONG).await;
    group.put(1, "before").await;
    let leader = group.leader(1, 0).await;
    group.kill(leader);
    let [other, another] = others(leader);
    group.put(other, "without it").await;
    assert_ne!(group.leader(another, leader).await, leader);

    group.start_node(leader).await;
    group.shows(leader, "without it").await;
    group.put(leader, "through it").await;
    group.shows(other, "through it").await;
}

#[tokio::test]
async fn a_leader_told_to_leave_makes_another_lead_before_it_is_gone() {
    let mut group = Group::start(LONG).await;
    group.put(1, "before").await;
    let leader = group.leader(1, 0).await;
    let [away, successor] = others(leader);
    let term = group.client(leader).status().await.unwrap().term;

    // Without this one the successor needs the leaver's own vote.
    group.kill(away);
    group.put(leader, "without it").await;
    group.drain(leader).await;
    let status = group.client(successor).status().await.unwrap();
    assert_eq!((status.leader, status.term), (successor, term + 1), "no election was waited for");

    group.start_node(away).await;
    group.put(away, "after").await;
    group.shows(successor, "after").await;
}

#[tokio::test]
async fn a_node_that_missed_what_is_no_longer_in_the_log_catches_up_by_snapshot() {
    let mut group = Group::start(LONG).await;
    group.put(1, "before").await;
    let away = others(group.leader(1, 0).await)[0];
    group.kill(away);
    for id in others(away) {
        group.put(id, &format!("missed {id}")).await;
    }
    let mut compacted = 0;
    for id in others(away) {
        compacted = group.nodes[&id].consensus.compact().await.max(compacted);
    }

    group.start_node(away).await;
    for id in others(away) {
        group.shows(away, &format!("missed {id}")).await;
    }
    let snapshots = group.folder.path().join(away.to_string()).join("snapshots");
    let names: Vec<String> = std::fs::read_dir(snapshots)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names.len(), 1, "exactly the one it was sent: {names:?}, leader had {compacted}");
    group.put(away, "after").await;
}

#[tokio::test]
async fn a_watch_goes_on_at_another_node_with_exactly_what_it_has_not_seen() {
    let mut group = Group::start(LONG).await;
    group.put(1, "seen").await;
    let mut stream = group.client(1).watch(Lineage(0), ViewIndex(0)).await.unwrap();
    let Ok(Some(WatchEvent::Snapshot(view))) = stream.next().await else {
        panic!("a client with nothing gets a snapshot");
    };
    assert!(view.models.contains(&model("seen")));
    group.kill(1);

    let missed = group.put(2, "missed").await;
    group.shows(3, "missed").await;
    let mut resumed = group.client(3).watch(view.lineage, view.index).await.unwrap();
    let Ok(Some(WatchEvent::Delta(delta))) = resumed.next().await else {
        panic!("a client that is one change behind gets that change");
    };
    assert_eq!(delta.index, missed);
}

#[tokio::test]
async fn members_that_beat_through_a_follower_outlive_a_change_of_leader() {
    let mut group = Group::start(Duration::from_secs(2)).await;
    let leader = group.leader(1, 0).await;
    let [follower, _other] = others(leader);
    let client = group.client(follower);
    let member = once_led(|| client.register(registration("i"))).await.unwrap();
    let Registered { member_id, epoch, heartbeat_every, .. } = member;

    group.kill(leader);
    let mut beat = interval(heartbeat_every);
    let mut answered = 0;
    // Leases in which the member is heard by a leader, after whatever the election took.
    for _beat in 0..20 {
        beat.tick().await;
        match client.heartbeat(member_id, epoch).await {
            Ok(state) => {
                assert_eq!(state, MemberState::Ready);
                answered += 1;
            }
            Err(fault) => {
                assert_eq!(fault.code, FaultCode::Unavailable, "{fault}");
            }
        }
    }
    assert!(answered >= 8, "only {answered} of 20 heartbeats were taken");
    let status = group.client(follower).status().await.unwrap();
    assert_ne!(status.leader, leader);
}

#[tokio::test]
async fn a_leader_without_a_quorum_takes_no_heartbeats_and_fences_nobody_for_it() {
    let mut group = Group::start(Duration::from_secs(3)).await;
    let leader = group.leader(1, 0).await;
    let client = group.client(leader);
    let member = once_led(|| client.register(registration("i"))).await.unwrap();
    let Registered { member_id, epoch, .. } = member;
    for id in others(leader) {
        group.kill(id);
    }

    let mut beat = interval(Duration::from_millis(500));
    let mut refused = 0;
    // Longer than a lease, after what it takes to notice.
    for _beat in 0..16 {
        beat.tick().await;
        match client.heartbeat(member_id, epoch).await {
            Ok(_state) => assert_eq!(refused, 0, "taken again without a quorum"),
            Err(fault) => {
                assert_eq!(fault.code, FaultCode::Unavailable, "{fault}");
                refused += 1;
            }
        }
    }
    assert!(refused >= 8, "it noticed too late, or never: {refused} of 16 were refused");
    assert_eq!(client.status().await.unwrap().leader, 0, "nobody leads without a quorum");
    for id in others(leader) {
        group.start_node(id).await;
    }
    let back = once_led(|| client.heartbeat(member_id, epoch)).await;
    assert_eq!(back, Ok(MemberState::Ready));
    for _beat in 0..8 {
        beat.tick().await;
        let again = once_led(|| client.heartbeat(member_id, epoch)).await;
        assert_eq!(again, Ok(MemberState::Ready));
    }
}

#[tokio::test]
async fn a_node_that_hears_nobody_does_not_unseat_the_leader() {
    let group = Group::start(LONG).await;
    group.put(1, "before").await;
    let leader = group.leader(1, 0).await;
    let [deaf, other] = others(leader);
    let term = group.client(leader).status().await.unwrap().term;

    // It no longer hears the leader, but everybody hears it ask for votes.
    group.links[&deaf].cut();
    let mut beat = interval(Duration::from_millis(500));
    for beat_number in 0..12 {
        beat.tick().await;
        put(&group.client(other), &format!("meanwhile {beat_number}")).await.unwrap();
    }
    let status = group.client(other).status().await.unwrap();
    assert_eq!((status.leader, status.term), (leader, term));
    let cut_off = group.nodes[&deaf].consensus.status();
    assert_eq!((cut_off.leader, cut_off.term), (None, term), "it knows that it knows nothing");
}

#[tokio::test]
async fn a_new_node_learns_then_votes_then_leads_and_an_old_one_leaves() {
    let mut group = Group::start(LONG).await;
    group.put(1, "before").await;
    let leader = group.leader(1, 0).await;
    let [follower, leaving] = others(leader);
    let client = group.client(follower);

    let link = Link::new().await;
    let add = GroupChange::Add { url: link.url.clone() };
    let NodeId(id) = client.change_group(add.clone()).await.unwrap();
    assert!(id > 3, "ids come from the log");
    assert_eq!(client.change_group(add).await, Ok(NodeId(id)), "a repeated call adds nobody");
    let early = client.change_group(GroupChange::Promote(NodeId(id))).await.unwrap_err();
    assert_eq!(early.code, FaultCode::InvalidRequest, "{early}");

    group.links.insert(id, link);
    group.start_node(id).await;
    group.shows(id, "before").await;
    let promote = || client.change_group(GroupChange::Promote(NodeId(id)));
    let promoted = timeout(WAIT_MAX, async {
        let mut look = interval(LOOK_EVERY);
        while promote().await.is_err() {
            look.tick().await;
        }
    });
    promoted.await.expect("it votes once it is up to date");

    let transfer = || client.change_group(GroupChange::Transfer(NodeId(id)));
    assert_eq!(once_led(transfer).await, Ok(NodeId(id)));
    let remove = |node| client.change_group(GroupChange::Remove(NodeId(node)));
    assert_eq!(once_led(|| remove(leaving)).await, Ok(NodeId(leaving)));
    let refusal = once_led(|| remove(id)).await.unwrap_err();
    assert_eq!(refusal.message, format!("node {id} leads, transfer the leadership first"));
    let refusal = once_led(|| remove(99)).await.unwrap_err();
    assert_eq!(refusal.message, "node 99 is not in the group");

    let expected = BTreeSet::from([leader, follower, id]);
    let shown = timeout(WAIT_MAX, async {
        let mut look = interval(LOOK_EVERY);
        loop {
            look.tick().await;
            // The node that is asked may be the last to hear of it.
            let status = client.status().await.unwrap();
            let is_voter = |member: &pb::RaftMember| member.role == "voter";
            let all_vote = status.members.iter().all(is_voter);
            let ids: BTreeSet<u64> = status.members.iter().map(|member| member.id).collect();
            if (status.leader, all_vote, &ids) == (id, true, &expected) {
                break;
            }
        }
    });
    shown.await.expect("the group is the new one, and led by the new node");
    group.put(id, "after").await;
    group.shows(follower, "after").await;
}

#[tokio::test]
async fn a_call_from_another_cluster_changes_nothing() {
    let group = Group::start(LONG).await;
    group.put(1, "before").await;
    group.shows(2, "before").await;
    let before = group.client(2).status().await.unwrap();

    let folder = tempfile::tempdir().unwrap();
    let file = IdentityFile::new(folder.path());
    let stranger = Identity::open(file, NodeId(1), BTreeSet::new(), Arc::new(ThisMachine)).unwrap();
    stranger.cluster_id_or("another").await.unwrap();
    let url = group.links[&2].url.clone();
    let mut stub = pb::raft_client::RaftClient::connect(url).await.unwrap();
    let vote = pb::RaftVote { term: 1000, node: 1, committed: true };
    let append = pb::AppendEntriesRequest { vote: Some(vote), ..Default::default() };
    let request = stranger.stamp(NodeId(2), append).unwrap();
    let refusal = stub.append_entries(request).await.unwrap_err();
    assert_eq!(refusal.code(), Code::FailedPrecondition);
    let ours = &before.cluster_id;
    assert_eq!(
        refusal.message(),
        format!("node 1 is of cluster another, this node is of cluster {ours}")
    );
    let unnamed = stub.vote(pb::VoteRequest::default()).await.unwrap_err();
    assert_eq!(unnamed.code(), Code::FailedPrecondition);

    let after = group.client(2).status().await.unwrap();
    assert_eq!((after.term, after.leader), (before.term, before.leader));
}

#[tokio::test]
async fn any_node_gives_a_backup_as_of_now_and_a_survivor_what_it_has() {
    let mut group = Group::start(LONG).await;
    for id in 1..=3 {
        let index = group.put(id, &format!("by {id}")).await;
        // Through every node, whoever leads: what was answered before is in it.
        let [other, _another] = others(id);
        let saved = once_led(|| async { group.client(other).backup(false).await }).await.unwrap();
        assert!(inspect(&saved).unwrap().index >= index);
    }
    group.kill(1);
    group.kill(2);
    let client = group.client(3);
    let fault = timeout(WAIT_MAX, async {
        // It may take an election's time until the survivor notices that it is alone.
        loop {
            if let Err(fault) = client.backup(false).await {
                break fault;
            }
        }
    });
    let fault = fault.await.expect("a node without a quorum cannot know what is latest");
    assert!(matches!(fault.code, FaultCode::Unavailable | FaultCode::DeadlineExceeded), "{fault}");
    let saved = client.backup(true).await.unwrap();
    assert_eq!(inspect(&saved).unwrap().models, 3);
}
