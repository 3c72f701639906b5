//! What no setting can tell alone: limits that depend on other settings, and what a role itself refuses.
//!
//! The roles validate their own configuration; here each of their faults gets the place where its value was set.
//! Deliberately absent: what a role needs and nobody set. Its command says so when it runs.

use std::path::PathBuf;

use phalanx_chassis::config::{ConfigFault, Resolved, Setting};
use phalanx_router::{ConfigError, RouterConfig};
use phalanx_worker::RawWorker;

use crate::model_folder::ModelFolder;
use crate::{engine_sim, router, settings, worker};

/// Settings whose limit is another setting. A limit that could not be read limits nothing.
static LIMITED_BY: [(&Setting, &Setting); 3] = [
    (&settings::BREAKER_OPEN, &settings::BREAKER_OPEN_MAX),
    (&settings::ROUTER_TIMEOUT, &settings::ROUTER_TIMEOUT_MAX),
    (&settings::WORKER_RUNNING, &settings::WORKER_STEP_TOKENS),
];

/// All roles of `phalanx serve`.
pub(crate) fn of_serve(resolved: &Resolved) -> Vec<ConfigFault> {
    [of_router(resolved), of_worker(resolved)].concat()
}

/// Every role there is.
pub(crate) fn of_all(resolved: &Resolved) -> Vec<ConfigFault> {
    let roles = [of_router(resolved), of_control(resolved), of_worker(resolved)].concat();
    [roles, of_engine_sim(resolved)].concat()
}

/// One router.
pub(crate) fn of_router(resolved: &Resolved) -> Vec<ConfigFault> {
    let errors = RouterConfig::try_from(router::raw(resolved)).err().unwrap_or_default();
    let fault = |error: &ConfigError| fault(resolved, (error.section, error.key), &error.expected);
    errors.iter().filter_map(fault).collect()
}

/// One worker.
pub(crate) fn of_worker(resolved: &Resolved) -> Vec<ConfigFault> {
    let raw = worker::raw_alone(resolved);
    let (path, name) = (
        resolved.text(&settings::WORKER_MODEL).map(PathBuf::from),
        resolved.text(&settings::WORKER_MODEL_NAME).map(str::to_owned),
    );
    let raw = if raw.models.is_some() {
        RawWorker { model: path, model_name: name, ..raw }
    } else {
        // What is not named is found when the worker starts; until then the current folder stands for it.
        let path = path.unwrap_or_else(|| PathBuf::from("."));
        let name = name.unwrap_or_else(|| "model".to_owned());
        worker::with_model(raw, &ModelFolder { path, name })
    };
    let errors = raw.validate().err().unwrap_or_default();
    let fault = |key, expected: &str| fault(resolved, ("worker", key), expected);
    errors.iter().filter_map(|error| fault(error.key, &error.expected)).collect()
}

/// Simulated engines.
pub(crate) fn of_engine_sim(resolved: &Resolved) -> Vec<ConfigFault> {
    let errors = engine_sim::raw(resolved).validate().err().unwrap_or_default();
    let fault = |key, expected: &str| fault(resolved, ("sim", key), expected);
    errors.iter().filter_map(|error| fault(error.key, &error.expected)).collect()
}

/// One control node.
pub(crate) fn of_control(resolved: &Resolved) -> Vec<ConfigFault> {
    let peers = resolved.list(&settings::CONTROL_PEERS);
    let Some(node_id) = resolved.integer(&settings::CONTROL_NODE_ID) else { return Vec::new() };
    let is_own = |peer: &String| {
        peer.split_once('=').is_some_and(|(id, _)| id.trim().parse() == Ok(node_id))
    };
    if peers.is_empty() || peers.iter().any(is_own) {
        return Vec::new();
    }
    let expected = format!("a list that holds node {node_id} itself");
    fault(resolved, ("control", settings::CONTROL_PEERS.key), &expected).into_iter().collect()
}

/// A fault of the setting with this section and key, unless nobody set it.
fn fault(resolved: &Resolved, (section, key): (&str, &str), expected: &str) -> Option<ConfigFault> {
    let is_it = |setting: &&&Setting| setting.section == section && setting.key == key;
    let setting = settings::ALL.iter().find(is_it)?;
    let limit = LIMITED_BY.iter().find(|(limited, _)| limited == setting).map(|(_, limit)| limit);
    match limit {
        Some(limit) if resolved.is_faulty(limit) => None,
        Some(limit) => resolved.fault(setting, format!("must be {expected} ({})", limit.key)),
        None => resolved.fault(setting, format!("must be {expected}")),
    }
}
