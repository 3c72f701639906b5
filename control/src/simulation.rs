//! Whole clusters in one thread, under faults drawn from a seed: the real control nodes and the real clients, on
//! a network, disks and clocks that are made here. What a run shows is checked against what must hold.
//!
//! ```text
//! seed ─► scenario (pure: what goes wrong, and when)
//!            │
//!         cluster: hosts take turns ── network: connections, cut and late
//!            │      nodes, clients  └─ machine: disks, wall clocks
//!            ▼
//!         history ─► check, linear (pure: what was violated)
//! ```
//!
//! `docs/testing/simulation.md` says how to run one seed and how to add a check.

mod admin;
mod check;
mod clients;
mod cluster;
mod files;
mod history;
mod linear;
mod machine;
mod network;
mod ranks;
mod roster;
pub(crate) mod runtime;
mod scenario;
mod tests;
mod watch;

use std::cell::Cell;

use self::cluster::Cluster;
use self::history::{History, Ms};
use self::scenario::Scenario;
use crate::planted::Bug;
use crate::state::State;

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// What a run came to.
#[derive(Debug)]
struct Outcome {
    /// Of everything that happened.
    trace: blake3::Hash,
    /// How long after the last fault a write was answered.
    recovered_ms: Option<Ms>,
    violations: Vec<String>,
}

/// Whether `bug` is planted in the run on this thread.
pub(crate) fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Runs one scenario, on a thread of its own: nothing is left of the run before.
fn run(seed: u64, bug: Option<Bug>) -> Outcome {
    let run = std::thread::Builder::new().name(format!("seed {seed}")).spawn(move || {
        runtime::seed(seed);
        PLANTED.set(bug);
        let history = History::default();
        Cluster::new(Scenario::new(seed), history.clone()).run();
        // The log is judged by the state machine without the fault.
        PLANTED.set(None);
        let violations = history.read(check::check);
        let recovered_ms = history.read(|records| check::recovered_ms(&records.era));
        Outcome { trace: history.digest(), recovered_ms, violations }
    });
    run.expect("a thread starts").join().unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map_or("a panic", String::as_str);
        let violations = vec![text.to_owned()];
        Outcome { trace: blake3::hash(&[]), recovered_ms: None, violations }
    })
}

fn digest(state: &State) -> blake3::Hash {
    blake3::hash(&serde_json::to_vec(state).unwrap())
}
