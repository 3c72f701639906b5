//! What goes wrong in a run, and when: drawn from the seed alone, before the run begins. Pure.

use std::collections::BTreeMap;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::history::Ms;
use super::network::{HostId, Weather};

/// The control nodes that found the cluster; in most runs it is the first three of them.
const FOUNDERS: [HostId; 5] = [1, 2, 3, 4, 5];
/// Hosts that nodes may join from.
const SPARES: [HostId; 2] = [6, 7];
/// Workers, each on a machine of its own.
pub(super) const WORKERS: [HostId; 3] = [11, 12, 13];
/// A router with its followers of the view.
pub(super) const ROUTER: HostId = 21;
/// Operators that change aliases and fence members.
pub(super) const OPERATORS: [HostId; 2] = [31, 32];
/// Who changes the control group, in some runs.
pub(super) const ADMIN: HostId = 41;

/// Of so many runs, one has five founders, and one has a group that changes.
const RUNS_PER_FIVE: u32 = 5;
/// See [`RUNS_PER_FIVE`].
const RUNS_PER_CHANGING: u32 = 3;

/// Faults begin after the group had time to form, most times.
const FAULTS_FROM_MS: Ms = 1500;
/// When every fault is over.
pub(super) const CALM_FROM_MS: Ms = 42_000;
/// From when on operators want nothing else to be served.
pub(super) const DEPLOYMENTS_UNTIL_MS: Ms = 44_000;
/// How long a run lasts.
pub(super) const END_MS: Ms = 60_000;

/// Steps that the writing of two files takes: each is made, filled, renamed, and its folder synced.
const FILE_STEPS_MAX: u32 = 8;

/// A network within a data centre on a good day.
const CALM: Weather = Weather { latency_ms: (1, 5), loss: 0.0 };

/// One thing that happens.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// Nothing passes from one host to another.
    Cut(HostId, HostId),
    /// Everything passes again.
    Heal,
    /// The processes of a host end.
    Kill(HostId),
    /// The power of a host fails: peers hear nothing of it.
    PowerOff(HostId),
    /// A host that does not run starts.
    Start(HostId),
    /// A process stands still.
    Pause(HostId),
    /// It goes on, at the time it is by then.
    Resume(HostId),
    /// How long a node's disk takes to sync.
    SyncTime(HostId, (u64, u64)),
    /// Whether a node's syncs fail.
    Failing(HostId, bool),
    /// A node snapshots its state and drops its log.
    Compact(HostId),
    /// The power of a host fails while it writes a file, after so many steps of it; or does not.
    DarkAfter(HostId, Option<u32>),
    /// How messages travel.
    Change(Weather),
    /// All control nodes end, and their disks are lost.
    Wipe,
}

/// A run.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    pub(super) seed: u64,
    pub(super) weather: Weather,
    /// Where nodes are from the beginning.
    pub(super) founders: Vec<HostId>,
    /// Where more may be; none in a run whose group stays as it is.
    pub(super) spares: Vec<HostId>,
    /// By host of a node: how wrong its wall clock is.
    pub(super) skews_ms: BTreeMap<HostId, i64>,
    /// By host of a node: how fast its clock runs, in millionths.
    pub(super) rates_ppm: BTreeMap<HostId, u64>,
    /// In the order of their times.
    pub(super) faults: Vec<(Ms, Fault)>,
}

// === impl Scenario ===

impl Scenario {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let weather = Weather {
            latency_ms: (1, rng.random_range(2..30)),
            loss: f64::from(rng.random_range(0_u32..4)) / 200.0,
        };
        let count = if rng.random_ratio(1, RUNS_PER_FIVE) { FOUNDERS.len() } else { 3 };
        let founders = FOUNDERS[..count].to_vec();
        let changes = rng.random_ratio(1, RUNS_PER_CHANGING);
        let spares = if changes { SPARES.to_vec() } else { Vec::new() };
        let hosts: Vec<HostId> = founders.iter().chain(&spares).copied().collect();
        let mut skew = |host: &HostId| (*host, rng.random_range(-3_600_000..3_600_000));
        let skews_ms = hosts.iter().map(&mut skew).collect();
        let mut rate = |host: &HostId| (*host, rng.random_range(990_000..=1_010_000));
        let rates_ppm = hosts.iter().map(&mut rate).collect();
        let mut faults = Vec::new();
        let mut at = FAULTS_FROM_MS + rng.random_range(0..3000);
        while at < CALM_FROM_MS - 4000 {
            let until = (at + rng.random_range(300..9000)).min(CALM_FROM_MS - 1);
            draw(&mut rng, &hosts, (at, until), &mut faults);
            at += rng.random_range(500..6000);
        }
        if !changes && rng.random_ratio(1, 8) {
            faults.push((rng.random_range(15_000..25_000), Fault::Wipe));
        }
        if rng.random_ratio(1, 4) {
            // While it learns which cluster it is of.
            let host = founders[rng.random_range(0..founders.len())];
            faults.push((0, Fault::DarkAfter(host, Some(rng.random_range(0..FILE_STEPS_MAX)))));
        }
        faults.push((CALM_FROM_MS, Fault::Heal));
        faults.push((CALM_FROM_MS, Fault::Change(CALM)));
        for &host in &hosts {
            faults.push((CALM_FROM_MS, Fault::SyncTime(host, super::machine::SYNC_MS)));
            faults.push((CALM_FROM_MS, Fault::Failing(host, false)));
            faults.push((CALM_FROM_MS, Fault::DarkAfter(host, None)));
        }
        for host in hosts.iter().copied().chain(WORKERS) {
            faults.push((CALM_FROM_MS, Fault::Resume(host)));
            faults.push((CALM_FROM_MS, Fault::Start(host)));
        }
        faults.sort_by_key(|(at, _fault)| *at);
        Self { seed, weather, founders, spares, skews_ms, rates_ppm, faults }
    }

    /// Where a control node may be.
    pub(super) fn hosts(&self) -> Vec<HostId> {
        self.founders.iter().chain(&self.spares).copied().collect()
    }
}

/// One fault with its end.
fn draw(
    rng: &mut SmallRng,
    hosts: &[HostId],
    (at, until): (Ms, Ms),
    faults: &mut Vec<(Ms, Fault)>,
) {
    let node = hosts[rng.random_range(0..hosts.len())];
    let other = hosts[rng.random_range(0..hosts.len())];
    let nodes = || hosts.iter().copied();
    match rng.random_range(0..14) {
        0 | 1 => {
            let others = nodes().chain(WORKERS).chain(OPERATORS).chain([ROUTER]);
            let group_only = rng.random_bool(0.5);
            for peer in others.filter(|peer| *peer != node && (!group_only || *peer < 10)) {
                faults.extend([(at, Fault::Cut(node, peer)), (at, Fault::Cut(peer, node))]);
            }
            faults.push((until, Fault::Heal));
        }
        2 => faults.extend([(at, Fault::Cut(node, other)), (until, Fault::Heal)]),
        3 => {
            let peers = nodes().filter(|peer| *peer != node);
            let inward = rng.random_bool(0.5);
            let cut = |peer| if inward { Fault::Cut(peer, node) } else { Fault::Cut(node, peer) };
            faults.extend(peers.map(|peer| (at, cut(peer))));
            faults.push((until, Fault::Heal));
        }
        4 => faults.extend([(at, Fault::Kill(node)), (until, Fault::Start(node))]),
        5 => faults.extend([(at, Fault::PowerOff(node)), (until, Fault::Start(node))]),
        6 => {
            let slow = (100, rng.random_range(200..900));
            for node in nodes() {
                faults.push((at, Fault::SyncTime(node, slow)));
                faults.push((until, Fault::PowerOff(node)));
                faults.push((until + rng.random_range(100..2000), Fault::Start(node)));
                faults.push((until, Fault::SyncTime(node, super::machine::SYNC_MS)));
            }
        }
        7 => faults.extend([(at, Fault::Pause(node)), (until, Fault::Resume(node))]),
        8 => {
            let slow = (50, rng.random_range(100..900));
            faults.push((at, Fault::SyncTime(node, slow)));
            faults.push((until, Fault::SyncTime(node, super::machine::SYNC_MS)));
        }
        9 => {
            faults.push((at, Fault::Failing(node, true)));
            faults.push((until, Fault::Failing(node, false)));
        }
        10 => {
            let worker = WORKERS[rng.random_range(0..3)];
            let end = if rng.random_bool(0.5) { Fault::Kill(worker) } else { Fault::Pause(worker) };
            faults.push((at, end));
            faults.extend([(until, Fault::Resume(worker)), (until, Fault::Start(worker))]);
        }
        11 | 12 => {
            let steps = rng.random_range(0..FILE_STEPS_MAX);
            faults.extend([(at, Fault::DarkAfter(node, Some(steps))), (at, Fault::Compact(node))]);
            faults.push((until, Fault::DarkAfter(node, None)));
            // What a crash leaves of it may be found by another.
            faults.extend([(until, Fault::PowerOff(node)), (until + 500, Fault::Start(node))]);
        }
        _ => {
            faults.push((at, Fault::Compact(node)));
            faults
                .extend([(at + 400, Fault::Kill(node)), (until.max(at + 500), Fault::Start(node))]);
        }
    }
}
