//! `phalanx control`: one node of the group that knows the cluster.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use phalanx_chassis::config::Resolved;
use phalanx_chassis::metrics::Metrics;
use phalanx_control::{Control, ControlConfig, ControlReadiness};
use phalanx_proto::id::NodeId;
use serde_json::json;

use crate::failure::{Failure, chain};
use crate::ready::write_ready_file;
use crate::roles::{Role, Roles};
use crate::{serve_metrics, settings, start_logs};

/// Where a node keeps its state unless told otherwise.
const DATA_DIR_DEFAULT: &str = "phalanx-data";

/// Runs a control node until it is drained.
///
/// # Errors
/// When it cannot start, or ends by itself.
pub(crate) async fn run(resolved: &Resolved) -> Result<(), Failure> {
    start_logs(resolved)?;
    let mut roles = Roles::new()?;
    let metrics = Metrics::default();
    let data_dir = resolved.text(&settings::CONTROL_DATA_DIR).unwrap_or(DATA_DIR_DEFAULT);
    let peers = peers(resolved);
    let listen = listen_address(resolved).await?;
    if peers.len() > 1 && listen.port() == 0 {
        let text = "--listen needs a port, not 0: its peers must know it";
        return Err(Failure::usage(text));
    }
    let config = ControlConfig {
        node_id: NodeId(resolved.integer(&settings::CONTROL_NODE_ID).unwrap_or(1)),
        listen,
        data_dir: PathBuf::from(data_dir),
        bootstrap: resolved.is_on(&settings::CONTROL_BOOTSTRAP),
        peers,
    };
    if !config.bootstrap && is_empty(&config.data_dir) {
        tracing::warn!(
            data_dir,
            "this node has no state and waits until its group calls it; to form a new group, start one node \
             with --bootstrap"
        );
    }
    let Some((address, readiness)) = start(&mut roles, config, &metrics).await? else {
        return Ok(());
    };
    let url = format!("http://{address}");
    let readiness = Arc::new(move || readiness.check());
    let metrics_url =
        serve_metrics::start((&mut roles, Role::Control), resolved, metrics, readiness).await?;
    write_ready_file(resolved, &json!({"listen": url, "metrics": metrics_url}))?;
    roles.run().await
}

/// Whether nothing is kept there yet. What cannot be read is for the start to tell.
fn is_empty(folder: &Path) -> bool {
    match std::fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// Opens the state, binds a node and runs it; `None` when a signal came first.
///
/// # Errors
/// When it cannot start.
pub(crate) async fn start(
    roles: &mut Roles,
    config: ControlConfig,
    metrics: &Metrics,
) -> Result<Option<(SocketAddr, ControlReadiness)>, Failure> {
    config.validate().map_err(|error| Failure::usage(error.to_string()))?;
    let (node_id, data_dir) = (config.node_id, config.data_dir.display().to_string());
    let drain = roles.drain(Role::Control);
    let bind = async {
        Control::bind(config, metrics, drain).await.map_err(|error| {
            Failure::Failed(format!("the control node cannot start: {}", chain(&error)))
        })
    };
    let Some(control) = roles.during(bind).await? else { return Ok(None) };
    let started = (control.local_addr(), control.readiness());
    tracing::info!(%node_id, url = format!("http://{}", started.0), data_dir, "control node listens");
    roles.start(Role::Control, async move { control.run().await.map_err(|error| chain(&error)) });
    Ok(Some(started))
}

/// The only node of a group of one, as `serve` has it.
pub(crate) fn single_node(data_dir: &Path) -> ControlConfig {
    ControlConfig {
        node_id: NodeId(1),
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        data_dir: data_dir.to_owned(),
        bootstrap: true,
        peers: BTreeMap::new(),
    }
}

/// The first address that `--listen` stands for, if it is a name.
async fn listen_address(resolved: &Resolved) -> Result<SocketAddr, Failure> {
    let listen = resolved.text(&settings::CONTROL_LISTEN).unwrap_or_default();
    let fault = |problem: String| Failure::usage(format!("--listen {listen}: {problem}"));
    let mut addresses =
        tokio::net::lookup_host(listen).await.map_err(|error| fault(error.to_string()))?;
    addresses.next().ok_or_else(|| fault("the name has no address".to_owned()))
}

fn peers(resolved: &Resolved) -> BTreeMap<NodeId, String> {
    let pairs = resolved.list(&settings::CONTROL_PEERS).iter();
    pairs
        .filter_map(|pair| {
            let (id, url) = pair.split_once('=')?;
            Some((NodeId(id.parse().ok()?), url.to_owned()))
        })
        .collect()
}
