//! A worker and a router that follow a control group, and requests that never pause: what must go on
//! whatever happens to the group.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinHandle;

use crate::check::{eventually, serves};
use crate::client::Client;
use crate::control_group::ControlGroup;
use crate::network::Host;
use crate::process::{Process, START_MAX};

/// A worker with the demo model and a router, a process each.
#[derive(Debug)]
pub struct Serving {
    /// Speaks to the router.
    pub client: Client,
    /// The worker.
    pub worker: Process,
    /// The router.
    pub router: Process,
}

/// Requests, one after the other, until they are counted.
#[derive(Debug)]
pub struct Requests {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<u64>>,
}

// === impl Serving ===

impl Serving {
    /// Starts both, following `group`, and waits until they serve.
    ///
    /// # Errors
    /// When they do not come up.
    pub async fn start(group: &ControlGroup) -> Result<Self> {
        Self::start_on(None, group).await
    }

    /// As [`Self::start`], the worker and the router on hosts of their own, if there are some.
    ///
    /// # Errors
    /// When they do not come up.
    pub async fn start_on(hosts: Option<[&Host; 2]>, group: &ControlGroup) -> Result<Self> {
        let [worker, router] = hosts.map_or([None; 2], |hosts| hosts.map(Some));
        let (worker, _address) = group.start_role(worker, "worker", &["worker"]).await?;
        let (router, address) = group.start_role(router, "router", &["router"]).await?;
        let client = Client::new(&address);
        eventually("the router is ready", START_MAX, async || {
            Ok(client.get("/health/ready").await?.status == 200)
        })
        .await?;
        Ok(Self { client, worker, router })
    }

    /// Waits until the router reaches this many workers.
    ///
    /// # Errors
    /// When it does not come to that.
    pub async fn workers_up(&self, expected: f64) -> Result<()> {
        eventually("the router reaches the workers", START_MAX, async || {
            let up = self.client.metrics().await?.sum("phalanx_workers_up")?;
            ensure!(up == expected, "{up} workers are up, not {expected}");
            Ok(true)
        })
        .await
    }

    /// Begins to send requests.
    pub fn requests(&self) -> Requests {
        let client = self.client.clone();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut served = 0;
            while !stopped.load(Ordering::Relaxed) {
                serves(&client).await.with_context(|| format!("after {served} requests"))?;
                served += 1;
            }
            Ok(served)
        });
        Requests { stop, task }
    }
}

// === impl Requests ===

impl Requests {
    /// How many requests were served.
    ///
    /// # Errors
    /// When one of them failed.
    pub async fn end(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }
}
