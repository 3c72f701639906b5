//! What the control plane does in time: commits, failovers, hand-overs, and changes on their way to routers;
//! three real nodes, real clients, every write checked.
//!
//! `cargo bench -p phalanx-cluster-tests --bench control [-- --out FILE]`
//!
//! All processes share one machine, so there is no network between them but loopback, and the disk syncs of
//! three nodes go to one disk. A time counts from when the clock said that something was due.
#![allow(clippy::print_stdout, reason = "a benchmark reports to its terminal")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run should say where")]

use std::time::Duration;

use futures::future::join_all;
use hdrhistogram::Histogram;
use phalanx_chassis::control_client::ControlClient;
use phalanx_chassis::watch::ViewWatch;
use phalanx_cluster_tests::control_group::ControlGroup;
use phalanx_cluster_tests::history::History;
use phalanx_cluster_tests::process::START_MAX;
use phalanx_cluster_tests::writers::{Load, Writers};
use phalanx_proto::change::{Change, Registration};
use phalanx_proto::id::ViewIndex;
use phalanx_proto::view::{Capacity, ClusterView, MemberRole};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout};

/// The control nodes.
const NODES: usize = 3;
/// The load of the paced measurements: so many clients that together write so often.
const PACED: (u32, u32) = (10, 50);
/// Clients that write one command after the other.
const CLOSED: u32 = 8;
/// Writes of one latency measurement.
const WRITES: u64 = 2000;
/// The load under which leaders come and go; its pace is the finest time that can be told apart.
const PROBES: (u32, u32) = (10, 200);
/// Leaders that are killed, and leaders that are asked to end.
const CHANGES: usize = 20;
/// What must have happened before a leader is taken away: a second of writes.
const SETTLED_WRITES: u64 = 200;
/// Routers that follow the view.
const ROUTERS: usize = 10;
/// Members that join and leave.
const MEMBERS: u32 = 100;
/// No failover may take longer and count.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// How a leader is taken away.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// SIGKILL.
    Killed,
    /// SIGTERM.
    Asked,
}

/// Named distributions, in the order measured.
#[derive(Default)]
struct Report {
    results: Map<String, Value>,
}

// === impl Report ===

impl Report {
    /// Adds one distribution and prints its line.
    fn add(&mut self, name: &str, times: impl IntoIterator<Item = Duration>) {
        let mut histogram = Histogram::<u64>::new(3).unwrap();
        for time in times {
            histogram.record(u64::try_from(time.as_micros()).unwrap()).unwrap();
        }
        #[expect(clippy::cast_precision_loss, reason = "microseconds of minutes at most")]
        let ms = |us: u64| us as f64 / 1e3;
        let (p50, p99) = (histogram.value_at_quantile(0.5), histogram.value_at_quantile(0.99));
        let (p50, p99, max) = (ms(p50), ms(p99), ms(histogram.max()));
        let count = histogram.len();
        println!("{name:<32} {count:>6} {p50:>10.2} {p99:>10.2} {max:>10.2}");
        let line = json!({"count": count, "p50_ms": p50, "p99_ms": p99, "max_ms": max});
        self.results.insert(name.replace([' ', ',', '-'], "_").replace("__", "_"), line);
    }
}

fn load((clients, writes): (u32, u32), name: &'static str) -> Load {
    Load::per_second(name, clients, writes)
}

/// Commit latency, as clients see it, under one load.
async fn commits(group: &ControlGroup, load: &Load) -> Vec<Duration> {
    let writers = Writers::start(&group.urls(), load).await.unwrap();
    writers.acknowledge(WRITES, START_MAX * 5).await.unwrap();
    let look = |history: &History| {
        history.check().unwrap();
        history.waits().collect()
    };
    writers.end_with(look).await.unwrap()
}

/// Waits until a restarted node has all that the others have, and all agree on who leads; gives that one.
async fn settled(group: &ControlGroup, restarted: usize) -> usize {
    let other = (restarted + 1) % NODES;
    group.leader_at(restarted, START_MAX).await.unwrap();
    group.caught_up(restarted, other, START_MAX).await.unwrap();
    group.leader_at(other, START_MAX).await.unwrap()
}

/// Takes the leader away again and again: killed, or asked to end. A killed leader's time is that from the kill
/// to the next write that is acknowledged; the other's is the longest time in which none was.
async fn changes_of_leader(group: &mut ControlGroup, end: End) -> Vec<Duration> {
    let name = if end == End::Killed { "failover" } else { "handover" };
    let writers = Writers::start(&group.urls(), &load(PROBES, name)).await.unwrap();
    let mut times = Vec::new();
    let mut leader = group.leader_at(0, START_MAX).await.unwrap();
    for _change in 0..CHANGES {
        writers.acknowledge(SETTLED_WRITES, WAIT_MAX).await.unwrap();
        let begun = writers.now();
        let process = &mut group.nodes[leader].process;
        times.push(match end {
            End::Killed => {
                process.crash().unwrap();
                writers.acknowledged_after(begun, WAIT_MAX).await.unwrap()
            }
            End::Asked => {
                process.ask_to_end().unwrap();
                assert!(process.exit(WAIT_MAX).await.unwrap().success());
                writers.acknowledged_after(writers.now(), WAIT_MAX).await.unwrap();
                writers.silence_max_since(begun)
            }
        });
        group.restart(leader).await.unwrap();
        leader = settled(group, leader).await;
    }
    writers.end().await.unwrap();
    times
}

/// Routers' views of the cluster, each beginning at another node.
fn views(group: &ControlGroup) -> Vec<ViewWatch> {
    let follow = |router: usize| {
        let mut urls = group.urls();
        urls.rotate_left(router % NODES);
        ViewWatch::start(ControlClient::new(&urls).unwrap(), None)
    };
    (0..ROUTERS).map(follow).collect()
}

/// Waits until every view is as it should be.
async fn all_show(views: &[ViewWatch], condition: impl Fn(&ClusterView) -> bool) {
    let each = views.iter().map(|watched| {
        let mut view = watched.view();
        let condition = &condition;
        async move {
            view.wait_for(|view| condition(view)).await.unwrap();
        }
    });
    timeout(WAIT_MAX, join_all(each)).await.unwrap();
}

/// From the acknowledgement of a write to each view that has it; nothing for a view that had it before.
async fn watch_lag(group: &ControlGroup) -> Vec<Duration> {
    let watched = views(group);
    all_show(&watched, |view| view.index > ViewIndex(0)).await;
    let started = Instant::now();
    let seen = watched.iter().map(|watched| {
        let mut view = watched.view();
        tokio::spawn(async move {
            let mut seen = Vec::new();
            while view.changed().await.is_ok() {
                seen.push((view.borrow_and_update().index, started.elapsed()));
            }
            seen
        })
    });
    let seen: Vec<_> = seen.collect();
    let writers = Writers::start(&group.urls(), &load(PACED, "watched")).await.unwrap();
    let offset = started.elapsed().saturating_sub(writers.now());
    writers.acknowledge(WRITES, START_MAX * 5).await.unwrap();
    let look = |history: &History| {
        history.check().unwrap();
        history.applied().map(|(index, at)| (index, at + offset)).collect::<Vec<_>>()
    };
    let applied = writers.end_with(look).await.unwrap();
    let last = applied.iter().map(|(index, _at)| *index).max().unwrap();
    all_show(&watched, |view| view.index >= last).await;
    drop(watched);
    let mut lags = Vec::new();
    for seen in join_all(seen).await {
        let seen = seen.unwrap();
        lags.extend(applied.iter().map(|(index, at)| {
            let first = seen.partition_point(|(shown, _at)| shown < index);
            seen[first].1.saturating_sub(*at)
        }));
    }
    lags
}

/// From the call with which a member joins, or leaves, to the last view that shows it.
async fn membership(group: &ControlGroup) -> (Vec<Duration>, Vec<Duration>) {
    let watched = views(group);
    let client = ControlClient::new(&group.urls()).unwrap();
    let (mut joins, mut leaves) = (Vec::new(), Vec::new());
    for number in 0..MEMBERS {
        let registration = Registration {
            instance: format!("member-{number}"),
            role: MemberRole::Router,
            address: format!("http://member-{number}:1"),
            zone: String::new(),
            models: Vec::new(),
            capacity: Capacity::default(),
        };
        let begun = Instant::now();
        let member = client.register(registration).await.unwrap();
        let (member_id, epoch) = (member.member_id, member.epoch);
        all_show(&watched, |view| view.members.contains_key(&member_id)).await;
        joins.push(begun.elapsed());
        let begun = Instant::now();
        let change = Change::Deregister { member_id, epoch };
        client.submit("members", u64::from(number) + 1, change).await.unwrap();
        all_show(&watched, |view| !view.members.contains_key(&member_id)).await;
        leaves.push(begun.elapsed());
    }
    (joins, leaves)
}

async fn run() -> Value {
    let mut group = ControlGroup::start(NODES).await.unwrap();
    let mut report = Report::default();
    println!("{:<32} {:>6} {:>10} {:>10} {:>10}", "ms", "count", "p50", "p99", "max");
    let (clients, writes) = PACED;
    let paced = format!("commit, {writes} per s");
    report.add(&paced, commits(&group, &load(PACED, "paced")).await);
    report.add("commit, 1 client", commits(&group, &Load::closed_loop("single", 1)).await);
    let begun = Instant::now();
    let closed = commits(&group, &Load::closed_loop("closed", CLOSED)).await;
    #[expect(clippy::cast_precision_loss, reason = "a count of writes is small")]
    let rate = closed.len() as f64 / begun.elapsed().as_secs_f64();
    report.add(&format!("commit, {CLOSED} clients"), closed);
    report.add("watch lag", watch_lag(&group).await);
    let (joins, leaves) = membership(&group).await;
    report.add("join to every view", joins);
    report.add("leave to every view", leaves);
    report.add("failover", changes_of_leader(&mut group, End::Killed).await);
    report.add("hand-over", changes_of_leader(&mut group, End::Asked).await);
    println!("{CLOSED} clients in a closed loop: {rate:.0} commits/s");
    json!({
        "command": "cargo bench -p phalanx-cluster-tests --bench control",
        "date": chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        "nodes": NODES, "routers": ROUTERS, "paced_clients": clients, "paced_per_s": writes,
        "closed_clients": CLOSED, "closed_commits_per_s": rate,
        "results": report.results,
    })
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let report = runtime.block_on(run());
    let out = arguments.iter().position(|argument| argument == "--out");
    if let Some(file) = out.and_then(|at| arguments.get(at + 1)) {
        std::fs::write(file, format!("{report:#}\n")).unwrap();
        println!("written to {file}");
    }
}
