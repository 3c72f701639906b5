//! `phalanx serve`: the roles of a cluster in one process, joined over loopback as they are over a network.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread::available_parallelism;

use phalanx_chassis::config::Resolved;
use phalanx_chassis::metrics::Metrics;
use phalanx_worker::{RawWorker, WorkerMetrics};
use serde_json::json;

use crate::failure::Failure;
use crate::model_folder::ModelFolder;
use crate::ready::{wait_until_ready, write_ready_file};
use crate::roles::Roles;
use crate::{control, router, say, settings, start_logs, worker};

/// Where everything came to listen.
#[derive(Debug)]
struct Addresses {
    router: SocketAddr,
    control: SocketAddr,
    workers: Vec<SocketAddr>,
}

/// Where the control state is kept: the user's folder, or one that goes when the process does.
#[derive(Debug)]
enum DataDir {
    Kept(PathBuf),
    Temporary(tempfile::TempDir),
}

/// Runs all roles until they are drained, the router first.
///
/// # Errors
/// When one cannot start, or ends by itself.
pub(crate) async fn run(resolved: &Resolved) -> Result<(), Failure> {
    start_logs(resolved)?;
    let model = ModelFolder::resolve(resolved)?;
    let data_dir = DataDir::open(resolved)?;
    let mut roles = Roles::new()?;
    let Some(addresses) = start_all(&mut roles, resolved, &model, &data_dir).await? else {
        return Ok(());
    };
    let url = url_of(&addresses.router);
    // An address of all interfaces cannot be dialled everywhere; this process reaches itself on loopback.
    let own_url = if addresses.router.ip().is_unspecified() {
        format!("http://localhost:{}", addresses.router.port())
    } else {
        url.clone()
    };
    if roles.during(wait_until_ready(&own_url, addresses.workers.len())).await?.is_none() {
        return Ok(());
    }
    write_ready_file(
        resolved,
        &json!({
            "listen": url,
            "control": url_of(&addresses.control),
            "workers": addresses.workers.iter().map(url_of).collect::<Vec<String>>(),
        }),
    )?;
    say(&welcome(&model, &own_url, addresses.workers.len()));
    roles.run().await
}

async fn start_all(
    roles: &mut Roles,
    resolved: &Resolved,
    model: &ModelFolder,
    data_dir: &DataDir,
) -> Result<Option<Addresses>, Failure> {
    let metrics = Metrics::default();
    let node = control::single_node(data_dir.path());
    let Some((control, _)) = control::start(roles, node, &metrics).await? else { return Ok(None) };
    let control_urls = [url_of(&control)];
    let worker_metrics = WorkerMetrics::register(&metrics);
    let mut workers = Vec::new();
    for threads in threads_of_workers(resolved) {
        let raw = RawWorker {
            control: control_urls.to_vec(),
            listen: Some("127.0.0.1:0".to_owned()),
            threads: Some(threads),
            ..worker::with_model(worker::raw(resolved), model)
        };
        let Some((worker, _)) = worker::start(roles, raw, &worker_metrics).await? else {
            return Ok(None);
        };
        workers.push(worker);
    }
    let router = router::start(roles, resolved, &control_urls, &metrics).await?;
    Ok(router.map(|router| Addresses { router, control, workers }))
}

/// The threads of each worker: all there are, divided evenly, at least one each.
fn threads_of_workers(resolved: &Resolved) -> Vec<u32> {
    let cores = available_parallelism().map_or(1, usize::from);
    let cores = u32::try_from(cores).unwrap_or(u32::MAX);
    let threads = worker::number(resolved, &settings::WORKER_THREADS).unwrap_or(cores);
    let workers = worker::number(resolved, &settings::WORKER_COUNT).unwrap_or(1);
    divide(threads, workers)
}

fn divide(threads: u32, workers: u32) -> Vec<u32> {
    (0..workers)
        .map(|index| threads / workers + u32::from(index < threads % workers))
        .map(|share| share.max(1))
        .collect()
}

fn welcome(model: &ModelFolder, url: &str, workers: usize) -> String {
    let ModelFolder { name, path } = model;
    let workers = if workers == 1 { "1 worker".to_owned() } else { format!("{workers} workers") };
    let path = path.display();
    format!(
        "Serving {name} ({path}) on {url} with {workers}. Try it:\n\n  \
         curl {url}/v1/chat/completions -H 'content-type: application/json' -d \
         '{{\"model\": \"{name}\", \"messages\": [{{\"role\": \"user\", \"content\": \"What is a KV cache?\"}}]}}'\n\n\
         Or talk to it: phalanx chat --url {url}\nCtrl-C drains and ends; twice ends at once.\n"
    )
}

fn url_of(address: &SocketAddr) -> String {
    format!("http://{address}")
}

// === impl DataDir ===

impl DataDir {
    fn open(resolved: &Resolved) -> Result<Self, Failure> {
        match resolved.text(&settings::CONTROL_DATA_DIR) {
            Some(path) => Ok(Self::Kept(PathBuf::from(path))),
            None => {
                tempfile::Builder::new().prefix("phalanx-").tempdir().map(Self::Temporary).map_err(
                    |error| Failure::Failed(format!("cannot make a temporary folder: {error}")),
                )
            }
        }
    }

    fn path(&self) -> &std::path::Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(folder) => folder.path(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_divided_evenly_and_nobody_gets_none() {
        assert_eq!(divide(8, 1), [8]);
        assert_eq!(divide(8, 3), [3, 3, 2]);
        assert_eq!(divide(2, 4), [1, 1, 1, 1]);
    }
}
