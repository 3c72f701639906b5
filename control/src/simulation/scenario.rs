//! What goes wrong in a run, and when: drawn from the seed alone, before the run begins. Pure.

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::history::Ms;
use super::network::{HostId, Weather};

/// The control nodes.
pub(super) const NODES: [HostId; 3] = [1, 2, 3];
/// Workers, each on a machine of its own.
pub(super) const WORKERS: [HostId; 3] = [11, 12, 13];
/// A router with its followers of the view.
pub(super) const ROUTER: HostId = 21;
/// Operators that change aliases and fence members.
pub(super) const OPERATORS: [HostId; 2] = [31, 32];

/// Faults begin after the group had time to form, most times.
const FAULTS_FROM_MS: Ms = 1500;
/// When every fault is over.
pub(super) const CALM_FROM_MS: Ms = 42_000;
/// How long a run lasts.
pub(super) const END_MS: Ms = 60_000;

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
    /// By node: how wrong its wall clock is.
    pub(super) skews_ms: [i64; 3],
    /// By node: how fast its clock runs, in millionths.
    pub(super) rates_ppm: [u64; 3],
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
        let skews_ms = std::array::from_fn(|_node| rng.random_range(-3_600_000..3_600_000));
        let rates_ppm = std::array::from_fn(|_node| rng.random_range(990_000..=1_010_000));
        let mut faults = Vec::new();
        let mut at = FAULTS_FROM_MS + rng.random_range(0..3000);
        while at < CALM_FROM_MS - 4000 {
            let until = (at + rng.random_range(300..9000)).min(CALM_FROM_MS - 1);
            draw(&mut rng, at, until, &mut faults);
            at += rng.random_range(500..6000);
        }
        if rng.random_ratio(1, 8) {
            faults.push((rng.random_range(15_000..25_000), Fault::Wipe));
        }
        faults.push((CALM_FROM_MS, Fault::Heal));
        faults.push((CALM_FROM_MS, Fault::Change(CALM)));
        for host in NODES {
            faults.push((CALM_FROM_MS, Fault::SyncTime(host, super::machine::SYNC_MS)));
            faults.push((CALM_FROM_MS, Fault::Failing(host, false)));
        }
        for host in NODES.into_iter().chain(WORKERS) {
            faults.push((CALM_FROM_MS, Fault::Resume(host)));
            faults.push((CALM_FROM_MS, Fault::Start(host)));
        }
        faults.sort_by_key(|(at, _fault)| *at);
        Self { seed, weather, skews_ms, rates_ppm, faults }
    }
}

/// One fault with its end.
fn draw(rng: &mut SmallRng, at: Ms, until: Ms, faults: &mut Vec<(Ms, Fault)>) {
    let node = NODES[rng.random_range(0..3)];
    let other = NODES[rng.random_range(0..3)];
    match rng.random_range(0..12) {
        0 | 1 => {
            let others = NODES.into_iter().chain(WORKERS).chain(OPERATORS).chain([ROUTER]);
            let group_only = rng.random_bool(0.5);
            for peer in others.filter(|peer| *peer != node && (!group_only || *peer < 10)) {
                faults.extend([(at, Fault::Cut(node, peer)), (at, Fault::Cut(peer, node))]);
            }
            faults.push((until, Fault::Heal));
        }
        2 => faults.extend([(at, Fault::Cut(node, other)), (until, Fault::Heal)]),
        3 => {
            let peers = NODES.into_iter().filter(|peer| *peer != node);
            let inward = rng.random_bool(0.5);
            let cut = |peer| if inward { Fault::Cut(peer, node) } else { Fault::Cut(node, peer) };
            faults.extend(peers.map(|peer| (at, cut(peer))));
            faults.push((until, Fault::Heal));
        }
        4 => faults.extend([(at, Fault::Kill(node)), (until, Fault::Start(node))]),
        5 => faults.extend([(at, Fault::PowerOff(node)), (until, Fault::Start(node))]),
        6 => {
            let slow = (100, rng.random_range(200..900));
            for node in NODES {
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
        _ => {
            faults.push((at, Fault::Compact(node)));
            faults
                .extend([(at + 400, Fault::Kill(node)), (until.max(at + 500), Fault::Start(node))]);
        }
    }
}
