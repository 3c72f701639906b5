//! Clusters: all roles in one process, or a process for each.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::check::eventually;
use crate::client::Client;
use crate::process::{Process, START_MAX, phalanx_binary};

/// `phalanx serve`: every role in one process.
#[derive(Debug)]
pub struct Served {
    /// The process.
    pub process: Process,
    /// Speaks to its router.
    pub client: Client,
    /// What its ready file says.
    pub addresses: Value,
    _folder: TempDir,
}

/// Control, worker and router, a process each.
#[derive(Debug)]
pub struct Cluster {
    /// Speaks to the router.
    pub client: Client,
    /// The router's process.
    pub router: Process,
    /// The worker, which can be broken and brought back.
    pub worker: Restartable,
    /// The control node, which can be broken and brought back.
    pub control: Restartable,
    folder: TempDir,
}

/// Control, a router, and workers that offer their capacity: nothing is served until control is told to.
#[derive(Debug)]
pub struct PoolCluster {
    /// Speaks to the router.
    pub client: Client,
    /// The router's process.
    pub router: Process,
    /// The workers.
    pub workers: Vec<Restartable>,
    /// The control node.
    pub control: Restartable,
    _folder: TempDir,
}

/// A router in front of engines that others run: neither control nor a worker belongs to it.
#[derive(Debug)]
pub struct Front {
    /// Speaks to the router.
    pub client: Client,
    /// The router's process.
    pub router: Process,
    _folder: TempDir,
}

/// A role that comes back on the port it had.
#[derive(Debug)]
pub struct Restartable {
    /// The process that runs now, or ran last.
    pub process: Process,
    /// Where it listens, as `http://HOST:PORT`.
    pub url: String,
    /// Where its metrics are.
    pub metrics: Client,
    name: String,
    arguments: Vec<String>,
    folder: std::path::PathBuf,
}

// === impl Served ===

impl Served {
    /// Starts `phalanx serve` on a free port with `options`, and waits until it serves.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(options: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let arguments = words(&["serve", "--listen", "127.0.0.1:0"], options);
        let mut process = Process::start(folder.path(), "serve", &arguments)?;
        let addresses = process.addresses().await?;
        let client = Client::new(url_in(&addresses, "listen")?);
        wait_until_ready(&client).await?;
        Ok(Self { process, client, addresses, _folder: folder })
    }
}

// === impl Cluster ===

impl Cluster {
    /// Starts a process for each role, the worker with `worker_options`, and waits until they serve.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub async fn start(worker_options: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let data_dir = folder.path().join("control").display().to_string();
        let arguments = words(&["control", "--bootstrap", "--data-dir"], &[&data_dir]);
        let control = Restartable::start(&folder, "control", arguments).await?;
        let arguments = words(&["worker", "--control", &control.url], worker_options);
        let worker = Restartable::start(&folder, "worker", arguments).await?;
        let (router, client) = start_router(&folder, "router", &control.url).await?;
        Ok(Self { client, router, worker, control, folder })
    }

    /// Adds a worker, and waits until the router reaches it.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn add_worker(&self, name: &'static str) -> Result<Restartable> {
        let arguments = words(&["worker", "--control", &self.control.url], &[]);
        let before = self.workers_up().await?;
        let worker = Restartable::start(&self.folder, name, arguments).await?;
        self.until_workers_up(before + 1.0).await?;
        Ok(worker)
    }

    /// Adds a router, and waits until it serves.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn add_router(&self, name: &'static str) -> Result<(Process, Client)> {
        start_router(&self.folder, name, &self.control.url).await
    }

    /// Waits until the router reaches as many workers as `expected`, no more and no less.
    ///
    /// # Errors
    /// When it does not.
    pub async fn until_workers_up(&self, expected: f64) -> Result<()> {
        eventually("the router reaches the workers", START_MAX, async || {
            let up = self.workers_up().await?;
            ensure!(up == expected, "{up} workers are up, not {expected}");
            Ok(true)
        })
        .await
    }

    async fn workers_up(&self) -> Result<f64> {
        self.client.metrics().await?.sum("phalanx_workers_up")
    }
}

async fn start_router(folder: &TempDir, name: &str, control: &str) -> Result<(Process, Client)> {
    let arguments = words(&["router", "--listen", "127.0.0.1:0", "--control", control], &[]);
    let mut router = Process::start(folder.path(), name, &arguments)?;
    let client = Client::new(url_in(&router.addresses().await?, "listen")?);
    wait_until_ready(&client).await?;
    Ok((router, client))
}

// === impl PoolCluster ===

impl PoolCluster {
    /// Starts a process for each role; the workers have the models in the folder `models`.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub async fn start(models: &str, workers: usize) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let data_dir = folder.path().join("control").display().to_string();
        let arguments = words(&["control", "--bootstrap", "--data-dir"], &[&data_dir]);
        let control = Restartable::start(&folder, "control", arguments).await?;
        let mut started = Vec::new();
        for worker in 1..=workers {
            let arguments = words(&["worker", "--control", &control.url, "--models"], &[models]);
            started
                .push(Restartable::start(&folder, &format!("worker-{worker}"), arguments).await?);
        }
        let arguments =
            words(&["router", "--listen", "127.0.0.1:0", "--control", &control.url], &[]);
        let mut router = Process::start(folder.path(), "router", &arguments)?;
        let client = Client::new(url_in(&router.addresses().await?, "listen")?);
        Ok(Self { client, router, workers: started, control, _folder: folder })
    }

    /// What an operator's command prints; the control node is told to it.
    ///
    /// # Errors
    /// When the command fails.
    pub fn ask(&self, arguments: &[&str]) -> Result<Value> {
        let asked = std::process::Command::new(phalanx_binary()?)
            .args(arguments)
            .args(["--json", "--control", &self.control.url])
            .output()?;
        let (said, errors) = (asked.stdout, String::from_utf8_lossy(&asked.stderr).into_owned());
        ensure!(asked.status.success(), "{arguments:?} ended with {}: {errors}", asked.status);
        serde_json::from_slice(&said).with_context(|| format!("{arguments:?} printed no JSON"))
    }
}

// === impl Front ===

impl Front {
    /// Starts a router with these `--engine`s, and waits until it serves.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(engines: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut arguments = words(&["router", "--listen", "127.0.0.1:0"], &[]);
        for engine in engines {
            arguments.extend(words(&["--engine", engine], &[]));
        }
        let mut router = Process::start(folder.path(), "router", &arguments)?;
        let client = Client::new(url_in(&router.addresses().await?, "listen")?);
        wait_until_ready(&client).await?;
        Ok(Self { client, router, _folder: folder })
    }

    /// Waits until the router reaches as many engines as `expected`, no more and no less.
    ///
    /// # Errors
    /// When it does not.
    pub async fn until_engines_up(&self, expected: f64) -> Result<()> {
        eventually("the router reaches the engines", START_MAX, async || {
            let up = self.client.metrics().await?.sum("phalanx_foreign_engines_up")?;
            ensure!(up == expected, "{up} engines are up, not {expected}");
            Ok(true)
        })
        .await
    }
}

// === impl Restartable ===

impl Restartable {
    async fn start(folder: &TempDir, name: &str, mut arguments: Vec<String>) -> Result<Self> {
        let any = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"];
        let first = words(&[], &any);
        let mut process =
            Process::start(folder.path(), name, &[arguments.clone(), first].concat())?;
        let addresses = process.addresses().await?;
        let url = url_in(&addresses, "listen")?.to_owned();
        let metrics = url_in(&addresses, "metrics")?.to_owned();
        for (flag, url) in [("--listen", &url), ("--metrics-listen", &metrics)] {
            arguments.push(flag.to_owned());
            arguments.push(url.trim_start_matches("http://").to_owned());
        }
        let folder = folder.path().to_owned();
        let (metrics, name) = (Client::new(&metrics), name.to_owned());
        Ok(Self { process, url, metrics, name, arguments, folder })
    }

    /// Starts the role again, on the same ports and data.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn restart(&mut self) -> Result<()> {
        self.process.crash()?; // frees the ports, if it still ran
        self.process = Process::start(&self.folder, &self.name, &self.arguments)?;
        self.process.addresses().await?;
        Ok(())
    }
}

async fn wait_until_ready(client: &Client) -> Result<()> {
    eventually("the router is ready", START_MAX, async || {
        Ok(client.get("/health/ready").await?.status == 200)
    })
    .await
}

fn url_in<'a>(addresses: &'a Value, key: &str) -> Result<&'a str> {
    addresses[key].as_str().with_context(|| format!("no {key:?} in the ready file: {addresses}"))
}

fn words(first: &[&str], rest: &[&str]) -> Vec<String> {
    first.iter().chain(rest).map(|word| (*word).to_owned()).collect()
}
