//! How soon a control node is back after a stop: 1,000 members of 4 models each in its snapshot, and nearly
//! 10,000 log entries behind it, the most there can be.
//!
//! `cargo bench -p phalanx-control --bench recovery [-- --out FILE]`
//!
//! The data directory is made by the node itself, through its API. A start is measured until the state is
//! recovered, and until the node answers a read that no later leader can contradict.
#![allow(clippy::print_stdout, reason = "a benchmark reports to its terminal")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run should say where")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use parking_lot::Mutex;
use phalanx_chassis::control_client::{ControlClient, Registered};
use phalanx_chassis::drain::{self, DrainTrigger, Phase};
use phalanx_chassis::metrics::Metrics;
use phalanx_control::{Control, ControlConfig, RunError};
use phalanx_proto::change::{Change, Registration};
use phalanx_proto::id::NodeId;
use phalanx_proto::view::{Alias, AliasTarget, Capacity, MemberRole, ServedModel};
use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};

const MEMBERS: usize = 1000;
const MODELS_EACH: usize = 4;
/// A snapshot is taken every 10,000 entries; this is just short of the second one.
const ENTRIES: u64 = 19_900;
/// Clients that write side by side, so that their writes share syncs.
const WRITERS: usize = 32;
const STARTS: usize = 5;
/// Members are heard this often: half of what a lease asks for.
const BEAT_EVERY: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(30);
/// What the project promises.
const RECOVERY_MAX: Duration = Duration::from_secs(1);

struct Node {
    client: ControlClient,
    trigger: DrainTrigger,
    task: JoinHandle<Result<(), RunError>>,
}

// === impl Node ===

impl Node {
    /// Starts on `folder`; gives the time until its state was recovered, too.
    async fn start(folder: &Path) -> (Self, Duration) {
        let config = ControlConfig {
            node_id: NodeId(1),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            data_dir: folder.to_owned(),
            bootstrap: true,
            peers: BTreeMap::new(),
        };
        let (trigger, drain) = drain::channel();
        let begun = Instant::now();
        let control = Control::bind(config, &Metrics::default(), drain).await.unwrap();
        let recovered = begun.elapsed();
        let client = ControlClient::new(&[format!("http://{}", control.local_addr())]).unwrap();
        (Self { client, trigger, task: tokio::spawn(control.run()) }, recovered)
    }

    async fn stop(self) {
        self.trigger.advance(Phase::Draining);
        self.task.await.unwrap().unwrap();
    }
}

fn registration(member: usize) -> Registration {
    let model = |model| ServedModel {
        name: format!("organisation/model-{}", (member + model) % 50).into(),
        revision: format!("{:064x}", (member + model) % 50).into(),
        context_tokens_max: 131_072,
        kv_tokens_max: 1 << 20,
    };
    Registration {
        instance: format!("{member:032x}"),
        role: MemberRole::Worker,
        address: format!("http://worker-{member}.workers.cluster.local:7500"),
        zone: format!("zone-{}", member % 3),
        models: (0..MODELS_EACH).map(model).collect(),
        capacity: Capacity::default(),
    }
}

fn alias(writer: usize, sequence: u64) -> Change {
    let weight = u32::try_from(sequence).unwrap();
    let target = AliasTarget { model: "organisation/model-1".into(), revision: None, weight };
    let name = format!("alias-{writer}").into();
    Change::SetAlias(Alias { name, targets: vec![target], shadow: None, previous: None })
}

/// Fills the node's log up to [`ENTRIES`].
async fn fill(client: &ControlClient) {
    client.read_view(WAIT_MAX).await.unwrap();
    let members = Arc::<Mutex<Vec<Registered>>>::default();
    // From the first member on: to register them all may take longer than a lease.
    let beats = tokio::spawn(beat(client.clone(), Arc::clone(&members)));
    let registering = futures::stream::iter(0..MEMBERS).for_each_concurrent(WRITERS, async |at| {
        let registered = client.register(registration(at)).await.unwrap();
        members.lock().push(registered);
    });
    registering.await;
    let written = client.status().await.unwrap().last_applied;
    let each = (ENTRIES - written) / u64::try_from(WRITERS).unwrap();
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let client = client.clone();
        writers.spawn(async move {
            for sequence in 1..=each {
                let name = format!("writer-{writer}");
                client.submit(&name, sequence, alias(writer, sequence)).await.unwrap();
            }
        });
    }
    while writers.join_next().await.is_some_and(|written| written.is_ok()) {}
    beats.abort();
}

/// Keeps every member alive.
async fn beat(client: ControlClient, members: Arc<Mutex<Vec<Registered>>>) {
    let mut beat = tokio::time::interval(BEAT_EVERY);
    loop {
        beat.tick().await;
        let now = members.lock().clone();
        let beats = futures::stream::iter(now).for_each_concurrent(
            WRITERS,
            async |Registered { member_id, epoch, .. }| {
                client.heartbeat(member_id, epoch).await.unwrap();
            },
        );
        beats.await;
    }
}

/// The last entry in the latest snapshot, and the file's size.
fn snapshot(folder: &Path) -> (u64, u64) {
    let files = std::fs::read_dir(folder.join("snapshots")).unwrap().map(|file| file.unwrap());
    let latest = files.max_by_key(std::fs::DirEntry::file_name).unwrap();
    let name = latest.file_name().into_string().unwrap();
    let (index, _term) = name.split_once('-').unwrap();
    (index.parse().unwrap(), latest.metadata().unwrap().len())
}

async fn run() -> Value {
    let folder = tempfile::tempdir().unwrap();
    let (node, _empty) = Node::start(folder.path()).await;
    let begun = Instant::now();
    fill(&node.client).await;
    let (filled_s, last) =
        (begun.elapsed().as_secs_f64(), node.client.status().await.unwrap().last_applied);
    node.stop().await;
    let (snapshot_at, snapshot_bytes) = snapshot(folder.path());
    println!(
        "{last} entries written in {filled_s:.1} s; snapshot of {snapshot_at}: {snapshot_bytes} bytes"
    );

    let (mut recovered, mut answered) = (Vec::new(), Vec::new());
    for _start in 0..STARTS {
        let begun = Instant::now();
        let (node, took) = Node::start(folder.path()).await;
        let view = node.client.read_view(WAIT_MAX).await.unwrap().view;
        answered.push(begun.elapsed());
        recovered.push(took);
        assert_eq!(view.members.len(), MEMBERS);
        node.stop().await;
    }
    let millis = |times: &[Duration]| -> Vec<f64> {
        times.iter().map(|time| (time.as_secs_f64() * 1e4).round() / 10.0).collect()
    };
    let worst = recovered.iter().max().copied().unwrap_or_default();
    println!("recovered in {:?} ms, answered in {:?} ms", millis(&recovered), millis(&answered));
    assert!(worst <= RECOVERY_MAX, "{worst:?} to recover, at most {RECOVERY_MAX:?} is promised");
    json!({
        "command": "cargo bench -p phalanx-control --bench recovery",
        "date": chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        "members": MEMBERS, "models_each": MODELS_EACH,
        "log_entries_stored": last, "log_entries_replayed": last - snapshot_at,
        "snapshot_bytes": snapshot_bytes,
        "recovered_ms": millis(&recovered), "first_answer_ms": millis(&answered),
    })
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let report = runtime.block_on(run());
    let out = arguments.iter().position(|argument| argument == "--out");
    if let Some(file) = out.and_then(|at| arguments.get(at + 1)) {
        std::fs::write(file, format!("{report:#}\n")).unwrap();
        println!("written to {file}");
    }
}
