//! What an operator relies on: probes, the ready file, and a line in the log for each failure.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use phalanx_cluster_tests::check::{chat, eventually, refusal, serves};
use phalanx_cluster_tests::client::Client;
use phalanx_cluster_tests::cluster::{Cluster, Served};
use phalanx_cluster_tests::process::Process;
use serde_json::json;

/// Far longer than what is waited for takes.
const PATIENCE: Duration = Duration::from_secs(20);

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[tokio::test]
async fn a_worker_that_is_not_registered_is_live_but_not_ready() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // Port 9 (discard) is closed on any machine that this runs on.
    let lost = ["worker", "--control", "http://127.0.0.1:9", "--listen", "127.0.0.1:0"];
    let arguments = [words(&lost), words(&["--metrics-listen", "127.0.0.1:0"])].concat();
    let mut worker = Process::start(folder.path(), "worker", &arguments)?;
    let addresses = worker.addresses().await?;
    let probe = Client::new(addresses["metrics"].as_str().context("no metrics address")?);
    ensure!(probe.get("/health/live").await?.status == 200);
    let answer = probe.get("/health/ready").await?;
    ensure!(answer.status == 503, "answered {}", answer.status);
    ensure!(answer.json()?["status"] == "not registered", "{:?}", answer.bytes);

    let cluster = Cluster::start(&[]).await?;
    ensure!(cluster.worker.metrics.get("/health/ready").await?.status == 200);
    Ok(())
}

#[tokio::test]
async fn a_control_node_without_a_leader_is_live_but_not_ready() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data").display().to_string();
    let waits = ["control", "--listen", "127.0.0.1:0", "--data-dir", &data];
    let arguments = [words(&waits), words(&["--metrics-listen", "127.0.0.1:0"])].concat();
    let mut control = Process::start(folder.path(), "control", &arguments)?;
    let addresses = control.addresses().await?;
    let probe = Client::new(addresses["metrics"].as_str().context("no metrics address")?);
    ensure!(probe.get("/health/live").await?.status == 200);
    let answer = probe.get("/health/ready").await?;
    ensure!(answer.status == 503, "answered {}", answer.status);
    ensure!(answer.json()?["status"] == "no leader known", "{:?}", answer.bytes);

    let cluster = Cluster::start(&[]).await?;
    ensure!(cluster.control.metrics.get("/health/ready").await?.status == 200);
    Ok(())
}

#[tokio::test]
async fn the_ready_file_goes_with_its_process() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("serve.ready");
    let served = words(&["serve", "--listen", "127.0.0.1:0"]);
    let mut process = Process::start(folder.path(), "serve", &served)?;
    process.addresses().await?;
    process.ask_to_end()?;
    process.exit(PATIENCE).await?;
    ensure!(!path.exists(), "the file outlived its process");

    // One that a crash left behind is gone before the next process can fail.
    let stale = folder.path().join("stale.ready");
    std::fs::write(&stale, "{}")?;
    let file = stale.display().to_string();
    let mut failing = std::process::Command::new(phalanx_cluster_tests::process::phalanx_binary()?)
        .args(["router", "--listen", "256.0.0.1:1", "--ready-file", &file])
        .spawn()?;
    ensure!(!failing.wait()?.success(), "it came up on an address that is none");
    ensure!(!stale.exists(), "the old file is still there");
    Ok(())
}

#[tokio::test]
async fn failures_leave_one_line_each_and_no_prompt() -> Result<()> {
    let mut cluster = Cluster::start(&[]).await?;
    let secret = "my-very-secret-prompt";
    serves(&cluster.client).await?;
    let fields = json!({"stream": true, "ignore_eos": true, "max_tokens": 1500});
    let mut left =
        cluster.client.stream("/v1/chat/completions", &chat(secret, fields.clone())).await?;
    left.next().await?.context("no first event")?;
    drop(left);
    let mut cut = cluster.client.stream("/v1/chat/completions", &chat(secret, fields)).await?;
    cut.next().await?.context("no first event")?;
    cluster.worker.process.crash()?;
    ensure!(cut.rest().await.is_err(), "the stream was not cut");
    eventually("nobody serves", PATIENCE, async || {
        let answer = cluster.client.post("/v1/chat/completions", &chat(secret, json!({}))).await?;
        refusal(&answer, 503, None).map(|()| true)
    })
    .await?;
    eventually("all three are in the log", PATIENCE, async || {
        let log = cluster.router.output()?;
        let has =
            |parts: &[&str]| log.lines().any(|line| parts.iter().all(|part| line.contains(part)));
        let left =
            ["\"INFO\"", "client is gone", "\"status\":499", "\"worker\":", "\"request\":\"req-"];
        let cut = [
            "\"WARN\"",
            "request failed",
            "worker_failed",
            "\"worker\":",
            "\"model\":\"demo-llm\"",
        ];
        let refused = ["\"WARN\"", "request failed", "\"status\":503", "\"cause\":\""];
        Ok(has(&left) && has(&cut) && has(&refused))
    })
    .await
    .with_context(|| cluster.router.output().unwrap_or_default())?;
    ensure!(!cluster.router.output()?.contains(secret), "the log holds a prompt");
    Ok(())
}

#[tokio::test]
async fn a_body_that_does_not_come_holds_up_nobody_who_leaves() -> Result<()> {
    let mut served = Served::start(&[]).await?;
    let address = served.client.base().trim_start_matches("http://").to_owned();
    let mut slow = tokio::net::TcpStream::connect(address).await?;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{";
    tokio::io::AsyncWriteExt::write_all(&mut slow, head.as_bytes()).await?;
    eventually("the body is awaited", PATIENCE, async || {
        Ok(served.client.metrics().await?.sum("phalanx_inflight_requests")? >= 1.0)
    })
    .await?;
    served.process.ask_to_end()?;
    let status = served.process.exit(PATIENCE).await?;
    ensure!(status.success(), "ended with {status}");
    Ok(())
}

#[tokio::test]
async fn a_node_that_waits_for_a_group_says_so() -> Result<()> {
    let hint = "start one node with --bootstrap";
    for (option, is_told) in [(&[][..], true), (&["--bootstrap"], false)] {
        let folder = tempfile::tempdir()?;
        let data_dir = folder.path().join("data").display().to_string();
        let own = ["control", "--listen", "127.0.0.1:0", "--data-dir", &data_dir];
        let arguments = [words(&own), words(option)].concat();
        let mut control = Process::start(folder.path(), "control", &arguments)?;
        control.addresses().await?;
        ensure!(control.output()?.contains(hint) == is_told, "{option:?}: {}", control.output()?);
    }
    Ok(())
}
