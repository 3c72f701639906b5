//! The hosts of one run: each has a runtime and a clock of its own, and all of them take turns on one thread.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use phalanx_chassis::drain;
use phalanx_chassis::metrics::Metrics;
use phalanx_proto::id::NodeId;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use super::admin;
use super::clients::{self, Client};
use super::history::{History, Ms};
use super::machine::{Disks, Machine};
use super::network::{HostId, Network};
use super::roster::Roster;
use super::scenario::{ADMIN, END_MS, Fault, OPERATORS, ROUTER, Scenario, WORKERS};
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
    roster: Roster,
    consoles: Consoles,
    hosts: BTreeMap<HostId, Process>,
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
        let outside = WORKERS.into_iter().chain(OPERATORS).chain([ROUTER]);
        let admin = (!scenario.spares.is_empty()).then_some(ADMIN);
        for host in scenario.hosts().into_iter().chain(outside).chain(admin) {
            hosts.insert(host, Process::default());
        }
        Self {
            disks: Disks::new(scenario.seed),
            roster: Roster::new(&scenario.founders, &scenario.spares),
            scenario,
            history,
            network,
            consoles: Consoles::default(),
            hosts,
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
            for host in self.roster.take_changed() {
                self.reseat(host);
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
            Fault::SyncTime(host, sync_ms) => self.disks.set_sync(host, sync_ms),
            Fault::Failing(host, fails) => self.disks.set_failing(host, fails),
            Fault::DarkAfter(host, steps) => self.disks.set_dark_after(host, steps),
            Fault::Compact(host) => self.compact(host),
            Fault::Wipe => {
                let hosts = self.scenario.hosts();
                hosts.iter().for_each(|host| self.stop(*host, false));
                hosts.iter().for_each(|host| self.disks.wipe(*host));
                self.history.new_era();
                hosts.iter().for_each(|host| self.start(*host));
            }
        }
    }

    fn process(&mut self, host: HostId) -> &mut Process {
        self.hosts.get_mut(&host).expect("every host has an entry")
    }

    /// A host took a node up, or gave one back with all that it had on disk.
    fn reseat(&mut self, host: HostId) {
        self.stop(host, false);
        self.disks.wipe(host);
        self.start(host);
    }

    fn start(&mut self, host: HostId) {
        if self.roster.is_of_control(host) && self.roster.node(host).is_none() {
            return;
        }
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
        if power_lost {
            self.disks.lose_power(host);
        }
        self.consoles.lock().remove(&host);
        let process = self.process(host);
        (process.task, process.ended) = (None, None);
        drop(process.runtime.take());
        self.disks.take_failed(host);
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
        let Some(runtime) = &process.runtime else {
            if process.ended.is_some_and(|ended| now >= ended + SUPERVISOR_MS) {
                self.start(host);
            }
            return;
        };
        if behind > 0 {
            let turn = Duration::from_millis(behind);
            runtime.block_on(async { tokio::time::sleep(turn).await });
        }
        if self.roster.is_of_control(host) && self.disks.take_dark(host) {
            // Whatever its processes still did, nobody heard of it.
            self.stop(host, true);
            self.process(host).ended = Some(now);
            return;
        }
        let process = self.process(host);
        if process.task.as_ref().is_some_and(JoinHandle::is_finished) {
            let ended = *process.ended.get_or_insert(now);
            if now >= ended + SUPERVISOR_MS {
                self.stop(host, false);
                self.start(host);
            }
        }
    }

    fn rate(&self, host: HostId) -> u64 {
        self.scenario.rates_ppm.get(&host).copied().unwrap_or(1_000_000)
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
        if let Some(node) = self.roster.node(host) {
            return self.node(host, node);
        }
        let client = Client {
            control: self.scenario.hosts(),
            host,
            incarnation,
            seed: self.scenario.seed,
            network: self.network.clone(),
            history: self.history.clone(),
        };
        match host {
            ROUTER => Box::pin(clients::router(client)),
            ADMIN => Box::pin(admin::admin(client, self.roster.clone())),
            host if OPERATORS.contains(&host) => Box::pin(clients::operator(client)),
            _ => Box::pin(clients::worker(client)),
        }
    }

    fn node(&self, host: HostId, node: NodeId) -> Software {
        let machine = Machine {
            host,
            node,
            network: self.network.clone(),
            disks: self.disks.clone(),
            history: self.history.clone(),
            skew_ms: self.scenario.skews_ms[&host],
        };
        let options = ConsensusOptions {
            node_id: node,
            url: Network::url(host),
            data_dir: PathBuf::from("/data"),
            bootstrap: node.0 == self.scenario.founders[0],
            peers: self.roster.urls(),
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
    let (node_id, host) = (machine.node, machine.host);
    let (_trigger, drain) = drain::channel();
    let started = Node::start(options, Timings::default(), &Metrics::default(), drain).await;
    let ended = match started {
        Err(error) => error.to_string(),
        Ok(node) => {
            let consensus = node.consensus();
            consoles.lock().insert(host, Arc::clone(&consensus));
            tokio::spawn(look(machine.clone(), Arc::clone(&consensus)));
            let incoming = machine.network.listen(host);
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
    machine.network.stop(host, false);
    consoles.lock().remove(&host);
    // Nothing but its disk may end it.
    if machine.disks.take_failed(host) || machine.disks.is_dark(host) {
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
            if let Some(entry) = machine.disks.entry(machine.host, at) {
                machine.history.applied(machine.node.0, &entry);
            }
        }
        seen = index.0 + 1;
        machine.history.looked(machine.node.0, index, super::digest(&state));
    }
}
