//! Three control nodes: one may be killed at any time, and even without all of them serving goes on.
#![forbid(unsafe_code)]

use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use phalanx_cluster_tests::check::{eventually, serves};
use phalanx_cluster_tests::client::Client;
use phalanx_cluster_tests::process::{Process, START_MAX, phalanx_binary};
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How soon another node must lead once the leader is dead.
const FAILOVER_MAX: Duration = Duration::from_secs(5);
/// Longer than the registrations' time to live: nobody may be dropped for control's own absence.
const BEYOND_LEASES: Duration = Duration::from_secs(8);

/// Three control nodes, a worker and a router.
struct Group {
    nodes: Vec<Node>,
    urls: String,
    client: Client,
    folder: TempDir,
    _roles: Vec<Process>,
}

/// One control node, which can be killed and brought back.
struct Node {
    name: String,
    arguments: Vec<String>,
    process: Process,
    metrics: Client,
}

/// Requests that go on until they are counted.
struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<u64>>,
}

// === impl Group ===

impl Group {
    async fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let ports = free_ports(3)?;
        let url = |port: &u16| format!("http://127.0.0.1:{port}");
        let urls = ports.iter().map(url).collect::<Vec<_>>().join(",");
        let peers = (1..).zip(&ports).map(|(id, port)| format!("{id}={}", url(port)));
        let peers = peers.collect::<Vec<_>>().join(",");
        let mut nodes = Vec::new();
        for (id, port) in (1..).zip(&ports) {
            nodes.push(Node::start(&folder, id, *port, &peers).await?);
        }
        let worker =
            start(&folder, "worker", &["worker", "--listen", "127.0.0.1:0"], &urls).await?;
        let (router, address) =
            start(&folder, "router", &["router", "--listen", "127.0.0.1:0"], &urls).await?;
        let client = Client::new(&address);
        eventually("the router is ready", START_MAX, async || {
            Ok(client.get("/health/ready").await?.status == 200)
        })
        .await?;
        Ok(Self { nodes, urls, client, folder, _roles: vec![worker.0, router] })
    }

    /// What `phalanx cluster` answers to `words`.
    fn ask(&self, words: &[&str]) -> Result<Value> {
        let mut command = Command::new(phalanx_binary()?);
        let asked = command.arg("cluster").args(words).args(["--json", "--control", &self.urls]);
        let output = asked.output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{words:?} ended with {}: {errors}", output.status);
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// What stays the same whatever happens to the nodes: the cluster's id and who is in the group.
    fn constitution(&self) -> Result<(Value, Value)> {
        let mut status = self.ask(&["status"])?;
        Ok((status["cluster_id"].take(), status["members"].take()))
    }

    /// Which of `nodes` leads in the eyes of the node `at`, if that one knows.
    async fn leader(&self, at: usize) -> Result<Option<usize>> {
        let leader = self.nodes[at].metrics.metrics().await?.sum("phalanx_raft_leader")?;
        Ok((0..self.nodes.len()).find(|node| node_id(*node) == leader))
    }

    async fn workers_up(&self, expected: f64) -> Result<()> {
        eventually("the router reaches the workers", START_MAX, async || {
            let up = self.client.metrics().await?.sum("phalanx_workers_up")?;
            ensure!(up == expected, "{up} workers are up, not {expected}");
            Ok(true)
        })
        .await
    }
}

/// Ids count from 1.
fn node_id(node: usize) -> f64 {
    f64::from(u32::try_from(node + 1).unwrap_or(u32::MAX))
}

// === impl Node ===

impl Node {
    async fn start(folder: &TempDir, id: u32, port: u16, peers: &str) -> Result<Self> {
        let name = format!("control-{id}");
        let data = folder.path().join(&name).display().to_string();
        let (id, listen) = (id.to_string(), format!("127.0.0.1:{port}"));
        let metrics = format!("127.0.0.1:{}", free_ports(1)?[0]);
        let mut arguments = vec!["control", "--node-id", &id, "--peers", peers];
        arguments.extend(["--listen", &listen, "--metrics-listen", &metrics]);
        arguments.extend(["--data-dir", &data]);
        if id == "1" {
            arguments.push("--bootstrap");
        }
        let arguments: Vec<String> = arguments.into_iter().map(ToOwned::to_owned).collect();
        let mut process = Process::start(folder.path(), &name, &arguments)?;
        process.addresses().await?;
        let metrics = Client::new(&format!("http://{metrics}"));
        Ok(Self { name, arguments, process, metrics })
    }

    async fn restart(&mut self, folder: &TempDir) -> Result<()> {
        self.process = Process::start(folder.path(), &self.name, &self.arguments)?;
        self.process.addresses().await?;
        Ok(())
    }
}

/// Starts a role that follows the nodes at `urls`, and gives its address.
async fn start(
    folder: &TempDir,
    name: &str,
    arguments: &[&str],
    urls: &str,
) -> Result<(Process, String)> {
    let control = ["--control", urls];
    let arguments = arguments.iter().chain(&control);
    let arguments: Vec<String> = arguments.map(|word| (*word).to_owned()).collect();
    let mut process = Process::start(folder.path(), name, &arguments)?;
    let addresses = process.addresses().await?;
    let address = addresses["listen"].as_str().context("no address in the ready file")?;
    Ok((process, address.to_owned()))
}

/// Ports that nobody listens on now. All are held until all are known, so that they differ.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let bind = |_| Ok(TcpListener::bind(("127.0.0.1", 0))?);
    let listeners: Vec<TcpListener> = (0..count).map(bind).collect::<Result<_>>()?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

// === impl Load ===

impl Load {
    fn start(client: &Client) -> Self {
        let client = Client::new(client.base());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut served = 0;
            while !stopped.load(Ordering::Relaxed) {
                serves(&client).await.with_context(|| format!("after {served} requests"))?;
                served += 1;
            }
            Ok(served)
        });
        Self { stop, task }
    }

    /// How many requests were served; none may have failed.
    async fn end(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }
}

#[tokio::test]
async fn a_killed_leader_fails_no_request_and_another_takes_writes_within_seconds() -> Result<()> {
    let mut group = Group::start().await?;
    let before = group.constitution()?;
    let load = Load::start(&group.client);
    let leader = group.leader(0).await?.context("nobody leads")?;
    group.nodes[leader].process.crash()?;
    let survivor = (leader + 1) % group.nodes.len();
    eventually("another node leads", FAILOVER_MAX, async || {
        Ok(group.leader(survivor).await?.is_some_and(|now| now != leader))
    })
    .await?;
    // A registration is a write. The new worker knows the dead node, too.
    let arguments = ["worker", "--listen", "127.0.0.1:0"];
    let second = start(&group.folder, "worker-2", &arguments, &group.urls).await?;
    group.workers_up(2.0).await?;
    ensure!(load.end().await? > 0, "no request was served");
    let after = group.constitution()?;
    ensure!(after == before, "the group was {before:?} and is {after:?}");

    group.nodes[leader].restart(&group.folder).await?;
    eventually("the killed node follows again", START_MAX, async || {
        let applied = |metrics: &phalanx_cluster_tests::client::Metrics| {
            metrics.sum("phalanx_raft_last_applied")
        };
        let ahead = applied(&group.nodes[survivor].metrics.metrics().await?)?;
        Ok(applied(&group.nodes[leader].metrics.metrics().await?)? >= ahead)
    })
    .await?;
    drop(second);
    let restored = leader + 1;
    let answer = group.ask(&["transfer", &restored.to_string()])?;
    ensure!(answer["id"] == restored, "asked for {restored}, answered {answer}");
    let status = group.ask(&["status"])?;
    ensure!(status["leader"] == restored, "{restored} does not lead: {status}");
    Ok(())
}

#[tokio::test]
async fn serving_goes_on_without_any_control_node_and_their_return_drops_nobody() -> Result<()> {
    let mut group = Group::start().await?;
    let before = group.constitution()?;
    let load = Load::start(&group.client);
    for node in &mut group.nodes {
        node.process.crash()?;
    }
    let until = Instant::now() + BEYOND_LEASES;
    while Instant::now() < until {
        serves(&group.client).await.context("while control is gone")?;
    }
    for node in &mut group.nodes {
        node.restart(&group.folder).await?;
    }
    eventually("somebody leads", START_MAX, async || Ok(group.leader(0).await?.is_some())).await?;
    let until = Instant::now() + BEYOND_LEASES;
    while Instant::now() < until {
        serves(&group.client).await.context("after control came back")?;
    }
    group.workers_up(1.0).await?;
    let after = group.constitution()?;
    ensure!(after == before, "the group was {before:?} and is {after:?}");
    ensure!(load.end().await? > 0, "no request was served");
    Ok(())
}
