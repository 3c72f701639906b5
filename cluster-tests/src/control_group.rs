//! A group of control nodes, a process each: killed, asked to end, brought back, and asked what they know.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::check::eventually;
use crate::client::Client;
use crate::process::{Process, START_MAX, phalanx_binary};

/// The first port given out. All of them lie below the range from which Linux takes the ports of outgoing
/// connections, so that a killed node finds its own port free when it comes back.
const PORT_FIRST: u16 = 10_000;
/// How many ports there are to give out.
const PORTS: u16 = 20_000;
/// How many ports one process may look at, so that processes with neighbouring ids stay apart.
const PORTS_PER_PROCESS: u32 = 64;

/// Control nodes that form one group. They end when this is dropped.
#[derive(Debug)]
pub struct ControlGroup {
    /// The nodes; the one at 0 has id 1.
    pub nodes: Vec<ControlNode>,
    folder: TempDir,
}

/// One control node, which can be killed and brought back.
#[derive(Debug)]
pub struct ControlNode {
    /// The process that runs now, or ran last.
    pub process: Process,
    /// Where it listens, as `http://HOST:PORT`.
    pub url: String,
    /// Where its metrics are.
    pub metrics: Client,
    name: String,
    arguments: Vec<String>,
}

// === impl ControlGroup ===

impl ControlGroup {
    /// Starts a group of `count` nodes and waits until one of them leads.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(count: usize) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let ports = free_ports(count)?;
        let peers = (1..).zip(&ports).map(|(id, port)| format!("{id}={}", url_of(*port)));
        let peers = peers.collect::<Vec<_>>().join(",");
        let mut nodes = Vec::new();
        for (id, port) in (1..).zip(ports) {
            nodes.push(ControlNode::start(folder.path(), id, port, &peers).await?);
        }
        let group = Self { nodes, folder };
        group.leader_at(0, START_MAX).await?;
        Ok(group)
    }

    /// Every node's URL.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.url.clone()).collect()
    }

    /// Where the processes keep their logs and data.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What `phalanx cluster` answers to `words`.
    ///
    /// # Errors
    /// When no node answers it.
    pub fn ask(&self, words: &[&str]) -> Result<Value> {
        let mut command = Command::new(phalanx_binary()?);
        let urls = self.urls().join(",");
        let asked = command.arg("cluster").args(words).args(["--json", "--control", &urls]);
        let output = asked.output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{words:?} ended with {}: {errors}", output.status);
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// What stays the same whatever happens to the nodes: the cluster's id and who is in the group.
    ///
    /// # Errors
    /// When no node answers.
    pub fn constitution(&self) -> Result<(Value, Value)> {
        let mut status = self.ask(&["status"])?;
        Ok((status["cluster_id"].take(), status["members"].take()))
    }

    /// Which of the nodes leads in the eyes of the node `at`, if that one knows.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn leader(&self, at: usize) -> Result<Option<usize>> {
        let leader = self.nodes[at].metrics.metrics().await?.sum("phalanx_raft_leader")?;
        Ok((0..self.nodes.len()).find(|node| node_id(*node) == leader))
    }

    /// Waits until the node `at` knows who leads.
    ///
    /// # Errors
    /// When it does not `within` that time.
    pub async fn leader_at(&self, at: usize, within: Duration) -> Result<usize> {
        let what = format!("node {} knows who leads", at + 1);
        eventually(&what, within, async || Ok(self.leader(at).await?.is_some())).await?;
        self.leader(at).await?.context("the leader was lost again at once")
    }

    /// Waits until the node `at` has applied all that the node `ahead` had when this was called.
    ///
    /// # Errors
    /// When it does not `within` that time.
    pub async fn caught_up(&self, at: usize, ahead: usize, within: Duration) -> Result<()> {
        let target = self.nodes[ahead].applied().await?;
        let what = format!("node {} has caught up with {target}", at + 1);
        eventually(&what, within, async || Ok(self.nodes[at].applied().await? >= target)).await
    }

    /// Starts the node `at` again, on the port and the data it had.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn restart(&mut self, at: usize) -> Result<()> {
        let node = &mut self.nodes[at];
        node.process.crash()?; // frees the port, if it still ran
        node.process = Process::start(self.folder.path(), &node.name, &node.arguments)?;
        node.process.addresses().await?;
        Ok(())
    }

    /// Starts a role that follows this group, and gives its address.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start_role(&self, name: &str, arguments: &[&str]) -> Result<(Process, String)> {
        let urls = self.urls().join(",");
        let arguments = arguments.iter().chain(&["--listen", "127.0.0.1:0", "--control"]);
        let mut arguments: Vec<String> = arguments.map(|word| (*word).to_owned()).collect();
        arguments.push(urls);
        let mut process = Process::start(self.folder.path(), name, &arguments)?;
        let addresses = process.addresses().await?;
        let address = addresses["listen"].as_str().context("no address in the ready file")?;
        Ok((process, address.to_owned()))
    }
}

/// Ids count from 1.
fn node_id(node: usize) -> f64 {
    f64::from(u32::try_from(node + 1).unwrap_or(u32::MAX))
}

// === impl ControlNode ===

impl ControlNode {
    async fn start(folder: &Path, id: u32, port: u16, peers: &str) -> Result<Self> {
        let name = format!("control-{id}");
        let data = folder.join(&name).display().to_string();
        let (id, listen) = (id.to_string(), format!("127.0.0.1:{port}"));
        let metrics = format!("127.0.0.1:{}", free_ports(1)?[0]);
        let mut arguments = vec!["control", "--node-id", &id, "--peers", peers];
        arguments.extend(["--listen", &listen, "--metrics-listen", &metrics]);
        arguments.extend(["--data-dir", &data]);
        if id == "1" {
            arguments.push("--bootstrap");
        }
        let arguments: Vec<String> = arguments.into_iter().map(ToOwned::to_owned).collect();
        let mut process = Process::start(folder, &name, &arguments)?;
        process.addresses().await?;
        let metrics = Client::new(&format!("http://{metrics}"));
        Ok(Self { process, url: url_of(port), metrics, name, arguments })
    }

    /// The index of the last entry that the node applied.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn applied(&self) -> Result<f64> {
        self.metrics.metrics().await?.sum("phalanx_raft_last_applied")
    }
}

fn url_of(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

/// Ports that nobody listens on now, each given out once by this process.
///
/// # Errors
/// When there are none.
pub fn free_ports(count: usize) -> Result<Vec<u16>> {
    static LOOKED_AT: AtomicU16 = AtomicU16::new(0);
    let first = std::process::id().wrapping_mul(PORTS_PER_PROCESS) % u32::from(PORTS);
    let mut ports = Vec::new();
    while ports.len() < count {
        let looked_at = LOOKED_AT.fetch_add(1, Ordering::Relaxed);
        ensure!(looked_at < PORTS, "no port of {PORTS} is free");
        let offset = (first + u32::from(looked_at)) % u32::from(PORTS);
        let port = PORT_FIRST + u16::try_from(offset)?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            ports.push(port);
        }
    }
    Ok(ports)
}
