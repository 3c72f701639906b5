//! `/metrics` and `/health` of a process that serves no clients, where `--metrics-listen` asks for them.

use phalanx_chassis::config::Resolved;
use phalanx_chassis::metrics::Metrics;
use phalanx_chassis::serve_metrics::{MetricsServer, Readiness};

use crate::failure::{Failure, chain};
use crate::roles::{Role, Roles};
use crate::settings;

/// Serves them beside `role`, until the process ends, ready while `readiness` says so; gives their URL.
///
/// # Errors
/// When the address cannot be bound.
pub(crate) async fn start(
    (roles, role): (&mut Roles, Role),
    resolved: &Resolved,
    metrics: Metrics,
    readiness: Readiness,
) -> Result<Option<String>, Failure> {
    let Some(address) = resolved.text(&settings::METRICS_LISTEN) else { return Ok(None) };
    let server = MetricsServer::bind(address, metrics, roles.drain(role))
        .await
        .map_err(|error| Failure::Failed(chain(&error)))?;
    let url = format!("http://{}", server.local_addr());
    tokio::spawn(server.ready_when(readiness).run());
    Ok(Some(url))
}
