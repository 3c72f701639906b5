//! `phalanx bench` sends what it was asked to send, and reports what the engines counted.
#![forbid(unsafe_code)]

use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use phalanx_cluster_tests::engines::Engines;
use phalanx_cluster_tests::process::phalanx_binary;
use serde_json::{Value, json};

/// Fast enough not to be waited for.
const FAST: [&str; 4] = ["--prefill-rate", "10000000", "--decode-base-ms", "0"];

/// Runs the command to its end.
async fn bench(url: &str, options: &[&str]) -> Result<Output> {
    let mut command = Command::new(phalanx_binary()?);
    command.args(["bench", "--json", "--url", url]).args(options);
    Ok(tokio::task::spawn_blocking(move || command.output()).await??)
}

/// What a load that went well reports.
async fn report(url: &str, options: &[&str]) -> Result<Value> {
    let output = bench(url, options).await?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(output.stderr.is_empty(), "no terminal, no progress: {output:?}");
    serde_json::from_slice(&output.stdout).with_context(|| format!("not JSON: {output:?}"))
}

#[tokio::test]
async fn a_closed_loop_sends_exactly_what_was_asked_for() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let engines = Engines::start(folder.path(), "engines", &FAST).await?;
    let options = ["--concurrency", "4", "--requests", "50", "--max-tokens", "3"];
    let report = report(&engines.urls[0], &options).await?;
    ensure!(report["requests"] == 50 && report["ok"] == 50, "{report}");
    ensure!(report["completion_tokens"] == 150 && report["errors"] == json!({}), "{report}");
    for times in ["ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"] {
        for quantile in ["mean", "p50", "p90", "p99", "max"] {
            ensure!(report[times][quantile].is_number(), "{times} {quantile}: {report}");
        }
    }
    let stats = engines.stats(0).await?;
    ensure!(stats["finished"] == 50 && stats["cached_tokens"] == 0, "{stats}");
    ensure!(stats["batch_peak"].as_u64() <= Some(4), "{stats}");
    engines.is_idle(0).await
}

#[tokio::test]
async fn conversations_share_what_the_engine_finds_in_its_cache() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let engines = Engines::start(folder.path(), "engines", &FAST).await?;
    // One client after the other, and all prefixes fit: only what is new is computed.
    let shape = ["--shape", "chat", "--prefixes", "2", "--prefix-bytes", "4096"];
    let options = [&shape[..], &["--requests", "60", "--max-tokens", "4"]].concat();
    let report = report(&engines.urls[0], &options).await?;
    let stats = engines.stats(0).await?;
    ensure!(report["ok"] == 60, "{report}");
    ensure!(report["prompt_tokens"] == stats["prompt_tokens"], "{report} {stats}");
    ensure!(report["cached_tokens"] == stats["cached_tokens"], "{report} {stats}");
    let cached = report["cached_percent"].as_f64().context("no share")?;
    ensure!((60.0..100.0).contains(&cached), "{report}");
    Ok(())
}

#[tokio::test]
async fn an_open_loop_and_a_trace_send_at_their_times() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let engines = Engines::start(folder.path(), "engines", &FAST).await?;
    let url = &engines.urls[0];
    let report_of = |name: &'static str, options: Vec<String>| async move {
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        report(url, &options).await.context(name)
    };
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let open = report_of("open", words("--rate 500 --requests 40 --stream=false")).await?;
    ensure!(open["ok"] == 40 && open["ttft_ms"] == Value::Null, "{open}");

    let trace = folder.path().join("trace.jsonl");
    let line = |at: u64, output: u32| json!({"timestamp": at, "input_length": 1024, "output_length": output, "hash_ids": [1, 2]});
    std::fs::write(&trace, format!("{}\n{}\n{}\n", line(0, 1), line(40, 2), line(80, 3)))?;
    let options = words(&format!("--shape trace --trace {}", trace.display()));
    let traced = report_of("trace", options).await?;
    ensure!(traced["ok"] == 3 && traced["completion_tokens"] == 6, "{traced}");
    // The same two blocks each time: whole chunks of them are found, twice.
    let cached = traced["cached_tokens"].as_u64().context("no count")?;
    ensure!(cached >= 2 * 7 * 128, "{traced}");
    Ok(())
}

#[tokio::test]
async fn failures_are_counted_by_their_code_and_decide_the_exit_code() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let engines = Engines::start(folder.path(), "engines", &FAST).await?;
    let url = &engines.urls[0];
    let options = ["--requests", "20", "--max-tokens", "2", "--model", "sim"];
    engines.set_faults(0, &json!({"fail_share": 0.5})).await?;
    let half = report(url, &options).await?;
    ensure!(half["ok"] == 10 && half["errors"] == json!({"500": 10}), "{half}");

    engines.set_faults(0, &json!({"die_after": 1})).await?;
    let none = bench(url, &options).await?;
    ensure!(none.status.code() == Some(1), "{none:?}");
    let report: Value = serde_json::from_slice(&none.stdout)?;
    ensure!(report["errors"] == json!({"broken": 20}), "{report}");

    let gone = bench("http://127.0.0.1:1", &options).await?;
    ensure!(gone.status.code() == Some(69), "{gone:?}");
    for bad in [&["--shape", "trace"][..], &["--rate", "-1"], &["--shape", "cube"]] {
        let bad = bench(url, bad).await?;
        ensure!(bad.status.code() == Some(64) && bad.stdout.is_empty(), "{bad:?}");
    }
    Ok(())
}
