//! Whole nodes on loopback, called as workers and routers call them.

mod backup;
mod damaged;
mod disk;
mod golden;
mod group;
mod keys;
mod link;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use phalanx_chassis::control_client::{ControlClient, Registered};
use phalanx_chassis::drain::{self, DrainTrigger, Phase};
use phalanx_chassis::metrics::Metrics;
use phalanx_chassis::watch::ViewWatch;
use phalanx_proto::change::{Change, GroupChange, Registration, WatchEvent};
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::id::{Epoch, Lineage, MemberId, NodeId, ViewIndex};
use phalanx_proto::view::{
    Alias, AliasTarget, Capacity, ClusterView, MemberRole, MemberState, Model, ServedModel,
};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::liveness::Timings;
use crate::{Control, ControlConfig, RunError, StartError};

/// No test waits longer for anything.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Leases that no test outlives.
const LONG: Duration = Duration::from_secs(600);

/// A running node.
struct Node {
    address: SocketAddr,
    metrics: Metrics,
    trigger: DrainTrigger,
    task: JoinHandle<Result<(), RunError>>,
}

fn config(folder: &Path, listen: SocketAddr, bootstrap: bool) -> ControlConfig {
    ControlConfig {
        node_id: NodeId(1),
        listen,
        data_dir: folder.join("data"),
        bootstrap,
        peers: std::collections::BTreeMap::new(),
    }
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

impl Node {
    async fn start(folder: &Path, listen: SocketAddr, ttl: Duration) -> Self {
        Self::start_with(config(folder, listen, true), ttl).await.unwrap()
    }

    async fn start_with(config: ControlConfig, ttl: Duration) -> Result<Self, StartError> {
        let metrics = Metrics::default();
        let (trigger, drain) = drain::channel();
        let timings = Timings { heartbeat_every: ttl / 3, ttl };
        let control = Control::bind_with(config, timings, &metrics, drain).await?;
        let address = control.local_addr();
        Ok(Self { address, metrics, trigger, task: tokio::spawn(control.run()) })
    }

    fn client(&self) -> ControlClient {
        ControlClient::new(&[format!("http://{}", self.address)]).unwrap()
    }

    async fn stop(self) {
        self.trigger.advance(Phase::Draining);
        timeout(WAIT_MAX, self.task).await.expect("the node stops").unwrap().unwrap();
    }
}

fn registration(instance: &str) -> Registration {
    Registration {
        instance: instance.to_owned(),
        role: MemberRole::Worker,
        address: "http://worker:1".to_owned(),
        zone: String::new(),
        models: vec![ServedModel {
            name: "m".into(),
            revision: "r".into(),
            context_tokens_max: 2048,
            kv_tokens_max: 4096,
        }],
        capacity: Capacity::default(),
    }
}

/// Repeats a call until the node leads: it has just been started.
async fn once_led<T, F>(call: impl Fn() -> F) -> Result<T, Fault>
where
    F: Future<Output = Result<T, Fault>>,
{
    timeout(WAIT_MAX, async {
        loop {
            match call().await {
                Err(fault) if fault.code == FaultCode::Unavailable => {
                    tokio::task::yield_now().await;
                }
                other => break other,
            }
        }
    })
    .await
    .expect("the node leads")
}

async fn register(node: &Node, instance: &str) -> Registered {
    let client = node.client();
    once_led(|| client.register(registration(instance))).await.unwrap()
}

async fn seen(
    view: &mut watch::Receiver<Arc<ClusterView>>,
    condition: impl Fn(&ClusterView) -> bool,
) -> Arc<ClusterView> {
    let waited = timeout(WAIT_MAX, view.wait_for(|view| condition(view)));
    Arc::clone(&*waited.await.expect("the view gets there").unwrap())
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test]
async fn a_member_that_falls_silent_is_fenced_and_its_heartbeats_are_refused() {
    let folder = folder();
    let node = Node::start(folder.path(), any_port(), Duration::from_millis(600)).await;
    let watched = ViewWatch::start(node.client(), None);
    let mut view = watched.view();

    let member = register(&node, "i").await;
    let joined = seen(&mut view, |view| view.members.contains_key(&member.member_id)).await;
    assert_eq!(joined.members[&member.member_id].epoch, member.epoch);
    assert_eq!(joined.members[&member.member_id].models, registration("i").models);

    let left = seen(&mut view, |view| view.members.is_empty()).await;
    assert!(left.index > joined.index);
    let fault = node.client().heartbeat(member.member_id, member.epoch).await.unwrap_err();
    assert_eq!(fault.code, FaultCode::StaleEpoch);

    let again = register(&node, "i").await;
    assert!(again.epoch > member.epoch);
    node.stop().await;
}

#[tokio::test]
async fn a_member_that_sends_heartbeats_outlives_many_leases() {
    let folder = folder();
    let ttl = Duration::from_millis(600);
    let node = Node::start(folder.path(), any_port(), ttl).await;
    let Registered { member_id, epoch, heartbeat_every, .. } = register(&node, "i").await;
    let client = node.client();
    let mut beat = tokio::time::interval(heartbeat_every);
    for _beat in 0..10 {
        beat.tick().await;
        assert_eq!(client.heartbeat(member_id, epoch).await, Ok(MemberState::Ready));
    }
    node.stop().await;
}

#[tokio::test]
async fn a_restarted_node_keeps_its_members_and_never_shows_watchers_the_past() {
    let folder = folder();
    let node = Node::start(folder.path(), any_port(), LONG).await;
    let address = node.address;
    let client = node.client();
    let watched = ViewWatch::start(node.client(), Some(folder.path().join("view.json")));
    let mut view = watched.view();
    let member = register(&node, "i").await;
    let before = seen(&mut view, |view| view.members.len() == 1).await;
    node.stop().await;

    let node = Node::start(folder.path(), address, LONG).await;
    let beat = once_led(|| client.heartbeat(member.member_id, member.epoch)).await;
    assert_eq!(beat, Ok(MemberState::Ready));
    let retried = client.register(registration("i")).await.unwrap();
    assert_eq!((retried.member_id, retried.epoch), (member.member_id, member.epoch));

    let alias = Alias {
        name: "a".into(),
        targets: vec![AliasTarget { model: "m".into(), revision: None, weight: 1 }],
        shadow: None,
        previous: None,
    };
    client.submit("test", 1, Change::SetAlias(alias)).await.unwrap();
    let after = seen(&mut view, |view| !view.aliases.is_empty()).await;
    assert_eq!((after.lineage, &after.members), (before.lineage, &before.members));
    assert!(after.index > before.index);
    node.stop().await;
}

#[tokio::test]
async fn a_watch_resumes_with_the_changes_after_its_index_even_across_a_restart() {
    let folder = folder();
    let node = Node::start(folder.path(), any_port(), LONG).await;
    let address = node.address;
    let client = node.client();
    let member = register(&node, "i").await;
    let Ok(Some(WatchEvent::Snapshot(view))) =
        client.watch(Lineage(0), ViewIndex(0)).await.unwrap().next().await
    else {
        panic!("a client with nothing gets a snapshot");
    };
    let (member_id, epoch) = (member.member_id, member.epoch);
    let drained = client.submit("c", 1, Change::Drain { member_id, epoch }).await.unwrap();
    node.stop().await;

    let node = Node::start(folder.path(), address, LONG).await;
    let stream = once_led(|| client.watch(view.lineage, view.index)).await;
    let Ok(Some(WatchEvent::Delta(delta))) = stream.unwrap().next().await else {
        panic!("a client that is one change behind gets that change");
    };
    assert_eq!(delta.index, drained);
    node.stop().await;
}

#[tokio::test]
async fn a_command_repeated_after_a_restart_is_not_applied_twice() {
    let folder = folder();
    let node = Node::start(folder.path(), any_port(), LONG).await;
    let address = node.address;
    let client = node.client();
    let change = || Change::PutModel(Model { name: "extra".into(), revision: "r".into() });
    let first = once_led(|| client.submit("c", 7, change())).await.unwrap();
    node.stop().await;

    let node = Node::start(folder.path(), address, LONG).await;
    let second = once_led(|| client.submit("c", 7, change())).await.unwrap();
    assert_eq!(second, first);
    let fault = client.submit("c", 6, change()).await.unwrap_err();
    assert_eq!(fault.message, "command 6 of client c was superseded by 7");
    node.stop().await;
}

#[tokio::test]
async fn refusals_say_what_is_wrong() {
    let folder = folder();
    let node = Node::start(folder.path(), any_port(), LONG).await;
    let client = node.client();
    let member_id = register(&node, "i").await.member_id;
    let epoch = Epoch(9999);
    let fault = client.submit("c", 1, Change::Fence { member_id, epoch }).await.unwrap_err();
    assert_eq!(fault.code, FaultCode::StaleEpoch);
    let fault = client.heartbeat(MemberId(9999), epoch).await.unwrap_err();
    assert_eq!(
        (fault.code, fault.message.as_str()),
        (FaultCode::StaleEpoch, "member 9999 is not registered")
    );
    let unnamed = Registration { instance: String::new(), ..registration("i") };
    let fault = client.register(unnamed).await.unwrap_err();
    assert_eq!((fault.code, fault.param.as_deref()), (FaultCode::InvalidRequest, Some("instance")));
    node.stop().await;
}

#[tokio::test]
async fn a_pristine_node_without_bootstrap_waits_for_its_cluster() {
    let folder = folder();
    let node = Node::start_with(config(folder.path(), any_port(), false), LONG).await.unwrap();
    let client = node.client();
    let status = client.status().await.unwrap();
    assert_eq!((status.node_id, status.leader, status.members.len()), (1, 0, 0));
    let fault = client.register(registration("i")).await.unwrap_err();
    assert_eq!(fault.code, FaultCode::Unavailable);
    assert_eq!(fault.retry_after, Some(Duration::from_secs(1)));
    assert_eq!(fault.message, "this control node does not lead, and no leader is known");
    let fault = client.watch(Lineage(0), ViewIndex(0)).await.unwrap_err();
    assert_eq!(fault.code, FaultCode::Unavailable);
    node.stop().await;
}

#[tokio::test]
async fn a_second_process_on_the_same_data_is_refused_by_one_clear_error() {
    let folder = folder();
    let node = Node::start(folder.path(), any_port(), LONG).await;
    let second = Node::start_with(config(folder.path(), any_port(), true), LONG).await;
    let error = second.err().expect("the data directory is taken").to_string();
    assert!(
        error.starts_with(
            "cannot start control node 1: data directory is in use by another process: "
        ),
        "{error}"
    );
    node.stop().await;
}

#[tokio::test]
async fn status_and_metrics_show_the_group() {
    let folder = folder();
    let node = Node::start(folder.path(), any_port(), LONG).await;
    register(&node, "i").await;
    let status = node.client().status().await.unwrap();
    assert_eq!((status.leader, status.members.len()), (1, 1));
    assert_eq!(status.members[0].role, "voter");
    let refusal = node.client().change_group(GroupChange::Remove(NodeId(1))).await.unwrap_err();
    assert_eq!(refusal.message, "node 1 is the last voter, it cannot be removed");
    assert_eq!(status.members[0].url, format!("http://{}", node.address));
    assert!(!status.cluster_id.is_empty() && status.lineage > 0 && status.last_applied > 0);

    let shown = timeout(WAIT_MAX, async {
        while !node.metrics.encode().contains("phalanx_raft_leader 1\n") {
            tokio::task::yield_now().await;
        }
    });
    shown.await.expect("the gauges follow");
    let text = node.metrics.encode();
    assert!(text.contains("phalanx_raft_voters 1\n"), "{text}");
    assert!(text.contains("phalanx_raft_last_applied "), "{text}");
    assert!(text.contains("phalanx_raft_term "), "{text}");
    node.stop().await;
}

#[tokio::test]
async fn a_follower_with_a_saved_view_starts_without_any_control_node() {
    let folder = folder();
    let file = folder.path().join("view.json");
    let node = Node::start(folder.path(), any_port(), LONG).await;
    let client = node.client();
    let watched = ViewWatch::start(node.client(), Some(file.clone()));
    register(&node, "i").await;
    seen(&mut watched.view(), |view| view.members.len() == 1).await;
    // The file is written when the watch is lost.
    node.stop().await;
    let saved = timeout(WAIT_MAX, async {
        while !std::fs::read_to_string(&file).is_ok_and(|text| text.contains("worker:1")) {
            tokio::task::yield_now().await;
        }
    });
    saved.await.expect("the view is saved");
    drop(watched);

    let restarted = ViewWatch::start(client, Some(file));
    assert_eq!(restarted.view().borrow().members.len(), 1);
}
