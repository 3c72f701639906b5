//! Every control node and all their data are lost: a backup brings the cluster back, and nobody notices.
#![forbid(unsafe_code)]

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use phalanx_cluster_tests::check::{eventually, merge, refusal, serves};
use phalanx_cluster_tests::client::Client;
use phalanx_cluster_tests::cluster::Cluster;
use phalanx_cluster_tests::process::{Process, START_MAX, phalanx_binary};
use serde_json::{Value, json};
use tokio::time::Instant;

/// Longer than the registrations' time to live: whoever is still there was heard.
const BEYOND_LEASES: Duration = Duration::from_secs(8);

fn phalanx(words: &[&str], control: &str) -> Result<Output> {
    let mut command = Command::new(phalanx_binary()?);
    Ok(command.args(words).args(["--json", "--control", control]).output()?)
}

/// What an operator's command answers.
fn ask(words: &[&str], control: &str) -> Result<Value> {
    let output = phalanx(words, control)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{words:?} ended with {}: {errors}", output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// How an operator's command fails: its exit code, and its only line.
fn failure(words: &[&str], control: &str) -> Result<(i32, String)> {
    let output = phalanx(words, control)?;
    let line = String::from_utf8(output.stderr)?;
    ensure!(line.lines().count() == 1, "not one line: {line:?}");
    Ok((output.status.code().context("a signal ended it")?, line.trim_end().to_owned()))
}

/// Asks the model that an alias stands for.
async fn ask_model(client: &Client, name: &str) -> Result<phalanx_cluster_tests::client::Answer> {
    let mut request = phalanx_cluster_tests::check::chat("Hello", json!({"max_tokens": 4}));
    merge(&mut request, json!({"model": name}));
    client.post("/v1/chat/completions", &request).await
}

async fn is_served(client: &Client, name: &str) -> Result<bool> {
    Ok(ask_model(client, name).await?.status == 200)
}

fn workers(control: &str) -> Result<Vec<Value>> {
    let mut answer = ask(&["worker-admin", "list"], control)?;
    serde_json::from_value(answer["workers"].take()).context("no workers in the answer")
}

async fn start_fresh(folder: &Path, url: &str) -> Result<Process> {
    let data = folder.join("fresh").display().to_string();
    let listen = url.trim_start_matches("http://");
    let words = ["control", "--node-id", "7", "--listen", listen, "--data-dir", &data];
    let mut process = Process::start(folder, "fresh", &words.map(ToOwned::to_owned))?;
    process.addresses().await?;
    Ok(process)
}

/// Adds a node to the restored one, as the runbook says, until it votes.
async fn start_second(folder: &Path, first: &str) -> Result<Process> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let second = format!("http://127.0.0.1:{port}");
    let id = ask(&["cluster", "add", &second], first)?["id"].to_string();
    let peers = format!("7={first},{id}={second}");
    let data = folder.join("second").display().to_string();
    let listen = second.trim_start_matches("http://");
    let words =
        ["control", "--node-id", &id, "--listen", listen, "--data-dir", &data, "--peers", &peers];
    let mut process = Process::start(folder, "second", &words.map(ToOwned::to_owned))?;
    process.addresses().await?;
    eventually("the second node votes", START_MAX, async || {
        Ok(phalanx(&["cluster", "promote", &id], first)?.status.success())
    })
    .await?;
    Ok(process)
}

#[tokio::test]
async fn a_backup_brings_back_a_cluster_whose_control_nodes_are_all_lost() -> Result<()> {
    let mut cluster = Cluster::start(&[]).await?;
    let folder = tempfile::tempdir()?;
    let (file, url) = (folder.path().join("x.backup"), cluster.control.url.clone());
    let path = file.display().to_string();
    ask(&["alias", "set", "chat", "demo-llm=100"], &url)?;
    let saved = ask(&["cluster", "backup", &path], &url)?;
    ensure!(saved["aliases"] == 1 && saved["members"].as_u64() >= Some(1), "{saved}");
    let bytes = std::fs::read(&file)?;
    ensure!(saved["bytes"] == bytes.len(), "{saved}, not {} bytes", bytes.len());
    ensure!(std::fs::metadata(&file)?.permissions().mode() & 0o777 == 0o600);
    // What comes after the backup is lost with the nodes.
    ask(&["alias", "set", "later", "demo-llm=100"], &url)?;
    for name in ["chat", "later"] {
        eventually("the alias is served", START_MAX, async || {
            is_served(&cluster.client, name).await
        })
        .await?;
    }
    let (code, line) = failure(&["cluster", "restore", &path], &url)?;
    ensure!(code == 1 && line.contains("already belongs to cluster"), "{code} {line}");
    let device = "/dev/null";
    for verb in ["backup", "restore"] {
        let (code, line) = failure(&["cluster", verb, device], &url)?;
        ensure!(code == 64 && line.contains("is not a regular file"), "{code} {line}");
    }

    cluster.control.process.crash()?;
    serves(&cluster.client).await.context("without control")?;
    let fresh = start_fresh(folder.path(), &url).await?;
    let damaged = folder.path().join("damaged").display().to_string();
    std::fs::write(&damaged, &bytes[..bytes.len() - 1])?;
    let (code, line) = failure(&["cluster", "restore", &damaged], &url)?;
    ensure!(code == 1 && line.ends_with("its checksum does not match"), "{code} {line}");
    let (code, line) = failure(&["cluster", "restore", "/nowhere"], &url)?;
    ensure!(code == 64 && line.contains("/nowhere: cannot be read"), "{code} {line}");
    let two = format!("{url},http://127.0.0.1:9");
    let (code, line) = failure(&["cluster", "restore", &path], &two)?;
    ensure!(code == 64 && line.contains("exactly one URL"), "{code} {line}");

    let restored = ask(&["cluster", "restore", &path], &url)?;
    ensure!(restored["lineage"].as_u64() > saved["lineage"].as_u64(), "{restored} after {saved}");
    ensure!(restored["cluster_id"] != saved["cluster_id"] && restored["node_id"] == 7);
    eventually("the router has the restored view", START_MAX, async || {
        refusal(&ask_model(&cluster.client, "later").await?, 404, Some("model")).map(|()| true)
    })
    .await?;
    ensure!(is_served(&cluster.client, "chat").await?, "the alias in the backup is gone");
    let until = Instant::now() + BEYOND_LEASES;
    while Instant::now() < until {
        serves(&cluster.client).await.context("after the restore")?;
    }
    let left = workers(&url)?;
    ensure!(left.len() == 1 && left[0]["state"] == "ready", "{left:?}");
    // The group takes writes, and a worker that starts over registers.
    ask(&["alias", "set", "new", "demo-llm=100"], &url)?;
    cluster.worker.restart().await?;
    eventually("the worker is back under another epoch", START_MAX, async || {
        let now = workers(&url)?;
        Ok(now.len() == 1 && now[0]["epoch"].as_u64() > left[0]["epoch"].as_u64())
    })
    .await?;
    eventually("the new alias is served", START_MAX, async || {
        is_served(&cluster.client, "new").await
    })
    .await?;
    let second = start_second(folder.path(), &url).await?;
    drop((fresh, second));
    Ok(())
}
