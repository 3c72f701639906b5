//! What a client notices when the worker of its stream is killed: the longest wait between two tokens.
//!
//! `cargo bench -p phalanx-cluster-tests --bench migration [-- --out FILE]`
//!
//! A thousand streams over four simulated native workers, one of which is killed when all have begun; every token is
//! checked. Clients, router and workers share this machine's cores.
#![allow(clippy::print_stdout, reason = "a benchmark reports to its terminal")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run should say where")]

use std::time::Duration;

use phalanx_cluster_tests::live_streams::{Load, kill_one_worker};
use serde_json::{Value, json};

const LOAD: Load = Load { streams: 1000, workers: 4, tokens: 150, step_ms: 100 };

async fn run() -> Value {
    let mut gaps = kill_one_worker(LOAD).await.unwrap().gaps;
    gaps.sort_unstable();
    let ms = |gap: Duration| (gap.as_secs_f64() * 1e4).round() / 10.0;
    let at = |percent: usize| ms(gaps[(gaps.len() * percent / 100).min(gaps.len() - 1)]);
    let (p50, p99, max) = (at(50), at(99), at(100));
    println!("{} streams moved; gap in ms: p50 {p50}, p99 {p99}, max {max}", gaps.len());
    json!({
        "command": "cargo bench -p phalanx-cluster-tests --bench migration",
        "date": chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        "streams": LOAD.streams, "workers": LOAD.workers, "tokens": LOAD.tokens,
        "step_ms": LOAD.step_ms, "moved": gaps.len(), "errors": 0, "tokens_lost_or_repeated": 0,
        "gap_ms": {"p50": p50, "p99": p99, "max": max},
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
