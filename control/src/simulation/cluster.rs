//! The hosts of one run: each has a runtime and a clock of its own, and all of them take turns on one thread.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use phalanx_chassis::drain;
use phalanx_chassis::metrics::Metrics;
use phalanx_proto::id::NodeId;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use super::clients::{self, Client};
use super::history::{History, Ms};
use super::machine::{Disks, Machine};
use super::network::{HostId, Network};
use super::scenario::{END_MS, Fault, NODES, OPERATORS, ROUTER, Scenario, WORKERS};
use crate::liveness::Timings;
use crate::node::Node;
use crate::raft::{Consensus, ConsensusOptions};

/// How long each host runs before it is the next one's turn, and how finely messages arrive.
const TICK_MS: Ms = 5;

/// A process that ended by itself is started again after this long.
const SUPERVISOR_MS: Ms = 1000;

/// How often a node's state is compared.
const LOOK_EVERY: Duration = Duration::from_millis(250);

type Software = Pin<Box<dyn Future<Output = ()> + Send>>;
/// The nodes that run, for what only an operator's console would do.
type Consoles = Arc<Mutex<BTreeMap<HostId, Arc<Consensus>>>>;

/// Everything that takes part.
pub(super) struct Cluster {
    scenario: Scenario,
    history: History,
    network: Network,
    disks: Disks,
    consoles: Consoles,
    folder: TempDir,
    hosts: BTreeMap<HostId, Process>,
    era: u64,
}

/// A host, running or not.
#[derive(Default)]
struct Process {
    runtime: Option<Runtime>,
    task: Option<JoinHandle<()>>,
    /// How many processes it has had.
    incarnation: u64,
    /// When this one began, and how far its own clock is since then.
    began: Ms,
    clock: Ms,
    is_paused: bool,
    /// When it ended by itself.
    ended: Option<Ms>,
}

// === impl Cluster ===

impl Cluster {
    pub(super) fn new(scenario: Scenario, history: History) -> Self {
        let network = Network::new(scenario.seed, scenario.weather, history.clone());
        let mut hosts: BTreeMap<HostId, Process> = BTreeMap::new();
        for host in NODES.into_iter().chain(WORKERS).chain(OPERATORS).chain([ROUTER]) {
            hosts.insert(host, Process::default());
        }
        let memory = std::path::Path::new("/dev/shm");
        let folder = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
        Self {
            disks: Disks::new(scenario.seed),
            scenario,
            history,
            network,
            consoles: Consoles::default(),
            folder: folder.unwrap(),
            hosts,
            era: 0,
        }
    }

    /// Runs all of the scenario, or until something is found to be wrong.
    pub(super) fn run(&mut self) {
        let all: Vec<HostId> = self.hosts.keys().copied().collect();
        all.iter().for_each(|host| self.start(*host));
        let mut faults = self.scenario.faults.clone().into_iter().peekable();
        let mut now = 0;
        while now < END_MS && self.history.read(|records| records.violations.is_empty()) {
            now += TICK_MS;
            self.history.tick(now);
            while let Some((_at, fault)) = faults.next_if(|(at, _fault)| *at <= now) {
                self.history.trace(&fault);
                self.happen(fault);
            }
            self.network.deliver();
            for host in &all {
                self.turn(*host, now);
            }
        }
        all.iter().for_each(|host| self.stop(*host, true));
    }

    fn happen(&mut self, fault: Fault) {
        match fault {
            Fault::Cut(from, to) => self.network.cut(from, to),
            Fault::Heal => self.network.heal(),
            Fault::Change(weather) => self.network.set_weather(weather),
            Fault::Kill(host) => self.stop(host, false),
            Fault::PowerOff(host) => self.stop(host, true),
            Fault::Start(host) => self.start(host),
            Fault::Pause(host) => self.process(host).is_paused = true,
            Fault::Resume(host) => self.resume(host),
            Fault::SyncTime(host, sync_ms) => self.disks.set_sync(NodeId(host), sync_ms),
            Fault::Failing(host, fails) => self.disks.set_failing(NodeId(host), fails),
            Fault::Compact(host) => self.compact(host),
            Fault::Wipe => {
                NODES.into_iter().for_each(|host| self.stop(host, false));
                self.disks.wipe();
                self.era += 1;
                self.history.new_era();
                NODES.into_iter().for_each(|host| self.start(host));
            }
        }
    }

    fn process(&mut self, host: HostId) -> &mut Process {
        self.hosts.get_mut(&host).expect("every host has an entry")
    }

    fn start(&mut self, host: HostId) {
        let now = self.history.now();
        let process = self.process(host);
        if process.runtime.is_some() {
            return;
        }
        process.incarnation += 1;
        let incarnation = process.incarnation;
        (process.began, process.clock, process.is_paused, process.ended) = (now, 0, false, None);
        self.network.start(host);
        let runtime =
            Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        // Its clock then stands at a whole millisecond, whatever the time was when it was made.
        runtime.block_on(async { tokio::time::sleep(Duration::from_millis(1)).await });
        let software = self.software(host, incarnation);
        let task = runtime.spawn(software);
        let process = self.process(host);
        (process.runtime, process.task) = (Some(runtime), Some(task));
    }

    fn stop(&mut self, host: HostId, power_lost: bool) {
        self.network.stop(host, power_lost);
        self.consoles.lock().remove(&host);
        let process = self.process(host);
        process.task = None;
        drop(process.runtime.take());
        self.disks.take_failed(NodeId(host));
    }

    /// A process that was stopped for a while finds all its timers late at once.
    fn resume(&mut self, host: HostId) {
        let now = self.history.now();
        let rate = self.rate(host);
        let process = self.process(host);
        if std::mem::take(&mut process.is_paused) && process.runtime.is_some() {
            let behind = process.behind(now, rate);
            process.clock += behind;
            if let Some(runtime) = &process.runtime {
                runtime.block_on(tokio::time::advance(Duration::from_millis(behind)));
            }
        }
    }

    /// Lets a host run up to `now`.
    fn turn(&mut self, host: HostId, now: Ms) {
        let rate = self.rate(host);
        let process = self.process(host);
        if process.is_paused {
            return;
        }
        let behind = process.behind(now, rate);
        process.clock += behind;
        let Some(runtime) = &process.runtime else { return };
        if behind > 0 {
            let turn = Duration::from_millis(behind);
            runtime.block_on(async { tokio::time::sleep(turn).await });
        }
        if process.task.as_ref().is_some_and(JoinHandle::is_finished) {
            let ended = *process.ended.get_or_insert(now);
            if now >= ended + SUPERVISOR_MS {
                self.stop(host, false);
                self.start(host);
            }
        }
    }

    fn rate(&self, host: HostId) -> u64 {
        let node = NODES.iter().position(|node| *node == host);
        node.map_or(1_000_000, |node| self.scenario.rates_ppm[node])
    }

    fn compact(&mut self, host: HostId) {
        let console = self.consoles.lock().get(&host).cloned();
        let process = self.process(host);
        if let (Some(console), Some(runtime), false) =
            (console, &process.runtime, process.is_paused)
        {
            runtime.spawn(async move { console.try_compact().await });
        }
    }

    fn software(&self, host: HostId, incarnation: u64) -> Software {
        if NODES.contains(&host) {
            return self.node(host);
        }
        let client = Client {
            host,
            incarnation,
            seed: self.scenario.seed,
            network: self.network.clone(),
            history: self.history.clone(),
        };
        match host {
            ROUTER => Box::pin(clients::router(client)),
            host if OPERATORS.contains(&host) => Box::pin(clients::operator(client)),
            _ => Box::pin(clients::worker(client)),
        }
    }

    fn node(&self, host: HostId) -> Software {
        let at = NODES.iter().position(|node| *node == host).expect("a control node");
        let machine = Machine {
            node: NodeId(host),
            network: self.network.clone(),
            disks: self.disks.clone(),
            history: self.history.clone(),
            skew_ms: self.scenario.skews_ms[at],
        };
        let options = ConsensusOptions {
            node_id: NodeId(host),
            url: Network::url(host),
            data_dir: self.folder.path().join(format!("{}-{host}", self.era)),
            bootstrap: host == NODES[0],
            peers: NODES.iter().map(|node| (NodeId(*node), Network::url(*node))).collect(),
            host: Arc::new(machine.clone()),
        };
        Box::pin(serve(machine, options, Arc::clone(&self.consoles)))
    }
}

// === impl Process ===

impl Process {
    /// How far its clock has to go.
    const fn behind(&self, now: Ms, rate_ppm: u64) -> Ms {
        ((now - self.began) * rate_ppm / 1_000_000).saturating_sub(self.clock)
    }
}

/// A control node's process.
async fn serve(machine: Machine, options: ConsensusOptions, consoles: Consoles) {
    let node_id = machine.node;
    let (_trigger, drain) = drain::channel();
    let started = Node::start(options, Timings::default(), &Metrics::default(), drain).await;
    let ended = match started {
        Err(error) => error.to_string(),
        Ok(node) => {
            let consensus = node.consensus();
            consoles.lock().insert(node_id.0, Arc::clone(&consensus));
            tokio::spawn(look(machine.clone(), Arc::clone(&consensus)));
            let incoming = machine.network.listen(node_id.0);
            // Its process ends at once: nothing is left to chance between the parts of it that still run.
            tokio::select! {
                biased;
                reason = consensus.failed() => reason,
                ended = node.run(incoming) => {
                    ended.map_or_else(|error| error.to_string(), |()| "it drained".to_owned())
                }
            }
        }
    };
    machine.network.stop(node_id.0, false);
    consoles.lock().remove(&node_id.0);
    // Nothing but its disk may end it.
    if machine.disks.take_failed(node_id) {
        machine.history.trace(&ended);
    } else {
        machine.history.violated(&format!("node {node_id} ended by itself: {ended}"));
    }
}

/// Follows what a node has applied.
async fn look(machine: Machine, consensus: Arc<Consensus>) {
    let mut seen = 0;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(state) = consensus.state().await else { return };
        let index = state.view().index;
        for at in seen..=index.0 {
            if let Some(entry) = machine.disks.entry(machine.node, at) {
                machine.history.applied(machine.node.0, &entry);
            }
        }
        seen = index.0 + 1;
        machine.history.looked(machine.node.0, index, super::digest(&state));
    }
}
