//! Groups of three nodes, each on a runtime of its own so that it can be killed, behind wires that can be
//! cut.

mod changes;
mod copies;
mod drift;
mod leaders;
mod leases;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use phalanx_chassis::control_client::ControlClient;
use phalanx_chassis::drain::{self, DrainTrigger, Phase};
use phalanx_chassis::metrics::Metrics;
use phalanx_chassis::watch::ViewWatch;
use phalanx_proto::change::Change;
use phalanx_proto::fault::Fault;
use phalanx_proto::id::{NodeId, ViewIndex};
use phalanx_proto::view::Model;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};

use super::link::Link;
use super::{WAIT_MAX, any_port, once_led, seen};
use crate::liveness::Timings;
use crate::raft::Consensus;
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

    /// Keeps all threads of its runtime busy, until what this gives is dropped.
    async fn hold(&self) -> std::sync::mpsc::Sender<()> {
        let (release, released) = std::sync::mpsc::channel();
        let (stands, standing) = oneshot::channel();
        let runtime = self.runtime.as_ref().expect("the node runs");
        runtime.spawn(async move {
            stands.send(()).unwrap();
            // Ends with an error, when the other end is dropped.
            let _ = released.recv();
        });
        standing.await.unwrap();
        release
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
