//! `phalanx worker`: one model on this machine, its own or one that the control plane chooses.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use phalanx_chassis::config::{Resolved, Setting};
use phalanx_chassis::metrics::Metrics;
use phalanx_worker::{RawWorker, Worker, WorkerMetrics, WorkerReadiness};
use serde_json::json;

use crate::failure::{Failure, chain};
use crate::model_folder::ModelFolder;
use crate::ready::write_ready_file;
use crate::roles::{Role, Roles};
use crate::{serve_metrics, settings, start_logs};

/// Runs a worker until it is drained.
///
/// # Errors
/// When it cannot start, or ends by itself.
pub(crate) async fn run(resolved: &Resolved) -> Result<(), Failure> {
    start_logs(resolved)?;
    let mut roles = Roles::new()?;
    let metrics = Metrics::default();
    let mut raw = raw_alone(resolved);
    let mut serves = "what the control plane places here".to_owned();
    if raw.models.is_none() {
        let model = ModelFolder::resolve(resolved)?;
        serves.clone_from(&model.name);
        raw = with_model(raw, &model);
    }
    let worker_metrics = WorkerMetrics::register(&metrics);
    let Some((address, readiness)) = start(&mut roles, raw, &worker_metrics).await? else {
        return Ok(());
    };
    let url = format!("http://{address}");
    tracing::info!(%url, serves, "worker listens");
    let readiness = Arc::new(move || readiness.check());
    let metrics_url =
        serve_metrics::start((&mut roles, Role::Worker), resolved, metrics, readiness).await?;
    write_ready_file(resolved, &json!({"listen": url, "metrics": metrics_url}))?;
    roles.run().await
}

/// Loads the model, binds a worker and runs it; `None` when a signal came first.
///
/// # Errors
/// When it cannot start.
pub(crate) async fn start(
    roles: &mut Roles,
    raw: RawWorker,
    metrics: &WorkerMetrics,
) -> Result<Option<(SocketAddr, WorkerReadiness)>, Failure> {
    let config = raw
        .validate()
        .map_err(|faults| Failure::Usage(faults.iter().map(ToString::to_string).collect()))?;
    let drain = roles.drain(Role::Worker);
    let bind = async {
        Worker::bind(config, metrics, drain)
            .await
            .map_err(|error| Failure::Failed(format!("the worker cannot start: {}", chain(&error))))
    };
    let Some(worker) = roles.during(bind).await? else { return Ok(None) };
    let (address, readiness) = (worker.local_addr(), worker.readiness());
    roles.start(Role::Worker, async move {
        Box::pin(worker.run()).await.map_err(|error| chain(&error))
    });
    Ok(Some((address, readiness)))
}

/// A worker with a process of its own. Without a pool's folder, the command adds the model.
pub(crate) fn raw_alone(resolved: &Resolved) -> RawWorker {
    RawWorker {
        control: resolved.list(&settings::WORKER_CONTROL).to_vec(),
        listen: resolved.text(&settings::WORKER_LISTEN).map(str::to_owned),
        advertise: resolved.text(&settings::WORKER_ADVERTISE).map(str::to_owned),
        zone: resolved.text(&settings::WORKER_ZONE).map(str::to_owned),
        models: resolved.text(&settings::WORKER_MODELS).map(PathBuf::from),
        threads: number(resolved, &settings::WORKER_THREADS),
        drain_timeout_ms: resolved.integer(&settings::WORKER_DRAIN_TIMEOUT),
        ..raw(resolved)
    }
}

/// The worker of one model.
pub(crate) fn with_model(raw: RawWorker, model: &ModelFolder) -> RawWorker {
    let ModelFolder { path, name } = model.clone();
    RawWorker { model: Some(path), model_name: Some(name), ..raw }
}

/// What a worker of any command is made of; where it listens, whom it joins and what it serves are the command's to
/// say.
pub(crate) fn raw(resolved: &Resolved) -> RawWorker {
    RawWorker {
        device: resolved.text(&settings::WORKER_DEVICE).map(str::to_owned),
        tp: resolved.text(&settings::WORKER_TP).and_then(|ranks| ranks.parse().ok()),
        cpu_path: resolved.text(&settings::WORKER_CPU_PATH).map(str::to_owned),
        kv_blocks: number(resolved, &settings::WORKER_KV_BLOCKS),
        kv_memory_mib: number(resolved, &settings::WORKER_KV_MEMORY),
        step_tokens_max: number(resolved, &settings::WORKER_STEP_TOKENS),
        running_max: number(resolved, &settings::WORKER_RUNNING),
        waiting_max: number(resolved, &settings::WORKER_WAITING),
        prefix_cache: resolved.text(&settings::WORKER_PREFIX_CACHE).map(|word| word == "on"),
        ..RawWorker::default()
    }
}

/// An integer setting whose limits fit 32 bits.
pub(crate) fn number(resolved: &Resolved, setting: &Setting) -> Option<u32> {
    resolved.integer(setting).map(|number| u32::try_from(number).unwrap_or(u32::MAX))
}
