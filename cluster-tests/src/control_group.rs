//! A group of control nodes, a process each: killed, asked to end, brought back, and asked what they know.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use phalanx_chassis::control_client::ControlClient;
use serde_json::Value;
use tempfile::TempDir;

use crate::check::eventually;
use crate::client::Client;
use crate::network::Host;
use crate::process::{Process, START_MAX, phalanx_binary};

/// The first port given out. All of them lie below the range from which Linux takes the ports of outgoing
/// connections, so that a killed node finds its own port free when it comes back.
const PORT_FIRST: u16 = 10_000;
/// How many ports there are to give out.
const PORTS: u16 = 20_000;
/// Where nodes on hosts of their own listen, and where they show their metrics.
const HOST_PORTS: [u16; 2] = [7400, 9400];
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
    site: Site,
}

/// Where a node lives.
#[derive(Debug)]
struct Site {
    /// None: this machine.
    host: Option<Host>,
    listen: SocketAddr,
    metrics: SocketAddr,
}

// === impl ControlGroup ===

impl ControlGroup {
    /// Starts a group of `count` nodes and waits until one of them leads.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(count: usize) -> Result<Self> {
        let ports = free_ports(2 * count)?;
        let sites = ports.chunks(2).map(|ports| Site::new(None, [ports[0], ports[1]]));
        Self::start_at(sites.collect()).await
    }

    /// As [`Self::start`], with a node on each of `hosts`.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start_on(hosts: &[Host]) -> Result<Self> {
        let sites = hosts.iter().map(|host| Site::new(Some(host.clone()), HOST_PORTS));
        Self::start_at(sites.collect()).await
    }

    async fn start_at(sites: Vec<Site>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let peers = (1..).zip(&sites).map(|(id, site)| format!("{id}={}", site.url()));
        let peers = peers.collect::<Vec<_>>().join(",");
        let mut nodes = Vec::new();
        for (id, site) in (1..).zip(sites) {
            nodes.push(ControlNode::start(folder.path(), id, site, &peers).await?);
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

    /// What stays the same whatever happens to the nodes, once the cluster is founded: its id and who is in the
    /// group.
    ///
    /// # Errors
    /// When no node answers, or none has heard of the founding in time.
    pub async fn constitution(&self) -> Result<(Value, Value)> {
        eventually("the cluster is founded", START_MAX, async || {
            Ok(self.ask(&["status"])?["cluster_id"].is_string())
        })
        .await?;
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

    /// Waits until all of these nodes name the same leader, and gives it with the term in which it leads.
    ///
    /// # Errors
    /// When they do not `within` that time.
    pub async fn agreed(&self, nodes: &[usize], within: Duration) -> Result<(usize, u64)> {
        let agreed = std::cell::Cell::new(None);
        let what = format!("the nodes at {nodes:?} agree on a leader");
        eventually(&what, within, async || {
            let mut seen = BTreeSet::new();
            for at in nodes {
                let status = self.client(*at)?.status().await?;
                seen.insert((status.leader, status.term));
            }
            let [(leader, term)] = seen.iter().copied().collect::<Vec<_>>()[..] else {
                bail!("leaders and terms are {seen:?}");
            };
            agreed.set(usize::try_from(leader)?.checked_sub(1).map(|leader| (leader, term)));
            Ok(agreed.get().is_some())
        })
        .await?;
        agreed.get().context("nobody leads")
    }

    /// A client of the node `at` alone.
    ///
    /// # Errors
    /// When its URL cannot be used.
    pub fn client(&self, at: usize) -> Result<ControlClient> {
        Ok(ControlClient::new(&[&self.nodes[at].url])?)
    }

    /// All nodes but the one `at`.
    pub fn others(&self, at: usize) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| *node != at).collect()
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
        let host = node.site.host.as_ref();
        node.process = Process::start_on(host, self.folder.path(), &node.name, &node.arguments)?;
        node.process.addresses().await?;
        Ok(())
    }

    /// Starts a role that follows this group, on a host or on this machine, and gives its address.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start_role(
        &self,
        host: Option<&Host>,
        name: &str,
        arguments: &[&str],
    ) -> Result<(Process, String)> {
        let address = host.map_or(Ipv4Addr::LOCALHOST, Host::address);
        let mut arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
        arguments.extend(["--listen".to_owned(), format!("{address}:0")]);
        arguments.extend(["--control".to_owned(), self.urls().join(",")]);
        let mut process = Process::start_on(host, self.folder.path(), name, &arguments)?;
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
    async fn start(folder: &Path, id: u32, site: Site, peers: &str) -> Result<Self> {
        let name = format!("control-{id}");
        let data = folder.join(&name).display().to_string();
        let id = id.to_string();
        let (listen, metrics) = (site.listen.to_string(), site.metrics.to_string());
        let mut arguments = vec!["control", "--node-id", &id, "--peers", peers];
        arguments.extend(["--listen", &listen, "--metrics-listen", &metrics]);
        arguments.extend(["--data-dir", &data]);
        if id == "1" {
            arguments.push("--bootstrap");
        }
        let arguments: Vec<String> = arguments.into_iter().map(ToOwned::to_owned).collect();
        let mut process = Process::start_on(site.host.as_ref(), folder, &name, &arguments)?;
        process.addresses().await?;
        let metrics = Client::new(&format!("http://{metrics}"));
        Ok(Self { process, url: site.url(), metrics, name, arguments, site })
    }

    /// The index of the last entry that the node applied.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn applied(&self) -> Result<f64> {
        self.metrics.metrics().await?.sum("phalanx_raft_last_applied")
    }
}

// === impl Site ===

impl Site {
    fn new(host: Option<Host>, [listen, metrics]: [u16; 2]) -> Self {
        let address = IpAddr::from(host.as_ref().map_or(Ipv4Addr::LOCALHOST, Host::address));
        let [listen, metrics] = [listen, metrics].map(|port| SocketAddr::new(address, port));
        Self { host, listen, metrics }
    }

    fn url(&self) -> String {
        format!("http://{}", self.listen)
    }
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
