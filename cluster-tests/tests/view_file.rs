//! A router that is started while no control node answers serves from the view that it kept.
#![forbid(unsafe_code)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use phalanx_cluster_tests::check::{eventually, serves};
use phalanx_cluster_tests::client::Client;
use phalanx_cluster_tests::cluster::Cluster;
use phalanx_cluster_tests::process::{Process, START_MAX};

/// A view is written within a second of its change.
const SAVED_WITHIN: Duration = Duration::from_secs(10);

/// A second router of `cluster`, which keeps its view at `file`.
async fn router(folder: &Path, cluster: &Cluster, file: &Path) -> Result<(Process, Client)> {
    let file = file.display().to_string();
    let listen = ["router", "--listen", "127.0.0.1:0"];
    let follow = ["--control", &cluster.control.url, "--view-file", &file];
    let arguments: Vec<String> =
        listen.iter().chain(&follow).map(|&word| word.to_owned()).collect();
    let mut process = Process::start(folder, "router-with-file", &arguments)?;
    let addresses = process.addresses().await?;
    let client = Client::new(addresses["listen"].as_str().context("no address")?);
    eventually("the router is ready", START_MAX, async || {
        Ok(client.get("/health/ready").await?.status == 200)
    })
    .await?;
    Ok((process, client))
}

#[tokio::test]
async fn a_router_restarted_without_control_serves_from_the_view_it_kept() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("view.json");
    let mut cluster = Cluster::start(&[]).await?;
    let (mut process, _) = router(folder.path(), &cluster, &file).await?;
    eventually("the view names the worker", SAVED_WITHIN, async || {
        Ok(std::fs::read_to_string(&file)?.contains(&cluster.worker.url))
    })
    .await?;
    let mode = std::fs::metadata(&file)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "the file's mode is {mode:o}");
    process.crash()?;
    cluster.control.process.crash()?;
    let (_process, client) = router(folder.path(), &cluster, &file).await?;
    serves(&client).await
}
