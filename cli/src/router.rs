//! `phalanx router`: the HTTP front door.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use phalanx_chassis::announce::Announcer;
use phalanx_chassis::config::{Origin, Resolved};
use phalanx_chassis::control_client::ControlClient;
use phalanx_chassis::drain::Drain;
use phalanx_chassis::metrics::Metrics;
use phalanx_chassis::watch::ViewWatch;
use phalanx_proto::change::Registration;
use phalanx_proto::view::{Capacity, ClusterView, MemberRole};
use phalanx_router::{RawBreaker, RawDispatch, RawRetry, RawRouter, Router, RouterConfig};
use serde_json::json;
use tokio::sync::watch;

use crate::failure::{Failure, chain};
use crate::ready::write_ready_file;
use crate::roles::{Role, Roles};
use crate::{settings, start_logs};

/// Runs a router until it is drained.
///
/// # Errors
/// When it cannot start, or ends by itself.
pub(crate) async fn run(resolved: &Resolved) -> Result<(), Failure> {
    start_logs(resolved)?;
    let mut roles = Roles::new()?;
    let control = control_nodes(resolved);
    let Some(address) = start(&mut roles, resolved, control, &Metrics::default()).await? else {
        return Ok(());
    };
    let url = format!("http://{address}");
    tracing::info!(%url, ?control, "router listens");
    write_ready_file(resolved, &json!({"listen": url}))?;
    roles.run().await
}

/// The nodes to follow: none if nobody named any and there are foreign engines to serve with.
fn control_nodes(resolved: &Resolved) -> &[String] {
    let is_named = resolved.origin(&settings::ROUTER_CONTROL) != Some(&Origin::Default);
    let has_engines = !resolved.list(&settings::ROUTER_ENGINE).is_empty();
    if has_engines && !is_named { &[] } else { resolved.list(&settings::ROUTER_CONTROL) }
}

/// Binds a router that follows the nodes at `control`, if any, and runs it; `None` when a signal came first.
///
/// # Errors
/// When it cannot start.
pub(crate) async fn start(
    roles: &mut Roles,
    resolved: &Resolved,
    control: &[String],
    metrics: &Metrics,
) -> Result<Option<SocketAddr>, Failure> {
    let config = RouterConfig::try_from(raw(resolved))
        .map_err(|faults| Failure::Usage(faults.iter().map(ToString::to_string).collect()))?;
    let drain = roles.drain(Role::Router);
    if control.is_empty() {
        // Its sender is kept for as long as the router runs, though it has nothing to say.
        let (unchanging, view) = watch::channel(Arc::default());
        let Some(router) = roles.during(bind(config, view, metrics, drain)).await? else {
            return Ok(None);
        };
        let address = router.local_addr();
        roles.start(Role::Router, async move {
            router.run().await;
            drop(unchanging);
            Ok(())
        });
        return Ok(Some(address));
    }
    // Two clients: the watch leaves a node that lags, where a heartbeat would still be heard.
    let client = || {
        let client = ControlClient::new(control).map(ControlClient::as_router);
        client.map_err(|error| Failure::usage(format!("--control: {error}")))
    };
    let view_file = resolved.text(&settings::ROUTER_VIEW_FILE).map(PathBuf::from);
    let view = Arc::new(ViewWatch::start(client()?, view_file));
    let leaving = drain.clone();
    let binding = bind(config, view.view(), metrics, drain);
    let Some(router) = roles.during(binding).await? else { return Ok(None) };
    let followed = Arc::clone(&view);
    let router = router.with_staleness(move || followed.staleness());
    let address = router.local_addr();
    let announcer = Announcer::new(client()?, registration(resolved, address), leaving);
    roles.start(Role::Router, async move {
        announcer.during(router.run()).await;
        drop(view); // followed to the end: live streams are retried on workers of the latest view
        Ok(())
    });
    Ok(Some(address))
}

async fn bind(
    config: RouterConfig,
    view: watch::Receiver<Arc<ClusterView>>,
    metrics: &Metrics,
    drain: Drain,
) -> Result<Router, Failure> {
    Router::bind(config, view, metrics, drain)
        .await
        .map_err(|error| Failure::Failed(format!("the router cannot start: {}", chain(&error))))
}

fn registration(resolved: &Resolved, address: SocketAddr) -> Registration {
    let advertised = resolved.text(&settings::ROUTER_ADVERTISE).map(str::to_owned);
    Registration {
        instance: uuid::Uuid::new_v4().to_string(),
        role: MemberRole::Router,
        address: advertised.unwrap_or_else(|| own_url(address)),
        zone: String::new(),
        models: Vec::new(),
        capacity: Capacity::default(),
    }
}

/// Where others find a router that listens on `address`. All interfaces are known by the machine's name: members
/// are told apart by their URLs.
fn own_url(address: SocketAddr) -> String {
    if !address.ip().is_unspecified() {
        return format!("http://{address}");
    }
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = match name.trim() {
        "" => "localhost",
        name => name,
    };
    format!("http://{name}:{}", address.port())
}

/// A router as it is configured.
pub(crate) fn raw(resolved: &Resolved) -> RawRouter {
    RawRouter {
        listen: resolved.text(&settings::ROUTER_LISTEN).map(str::to_owned),
        body_bytes_max: resolved.integer(&settings::ROUTER_BODY_BYTES),
        concurrency_max: resolved.integer(&settings::ROUTER_CONCURRENCY),
        connections_max: resolved.integer(&settings::ROUTER_CONNECTIONS),
        request_timeout_ms: resolved.integer(&settings::ROUTER_TIMEOUT),
        request_timeout_ms_max: resolved.integer(&settings::ROUTER_TIMEOUT_MAX),
        drain_timeout_ms: resolved.integer(&settings::ROUTER_DRAIN_TIMEOUT),
        breaker: RawBreaker {
            breaker_window_ms: resolved.integer(&settings::BREAKER_WINDOW),
            breaker_samples_min: resolved.integer(&settings::BREAKER_SAMPLES),
            breaker_failure_percent: resolved.integer(&settings::BREAKER_PERCENT),
            breaker_failures_in_a_row: resolved.integer(&settings::BREAKER_FAILURES),
            breaker_open_ms: resolved.integer(&settings::BREAKER_OPEN),
            breaker_open_ms_max: resolved.integer(&settings::BREAKER_OPEN_MAX),
            breaker_probes: resolved.integer(&settings::BREAKER_PROBES),
            breaker_slow_percent: resolved.integer(&settings::BREAKER_SLOW),
        },
        retry: RawRetry {
            retry_budget_percent: resolved.integer(&settings::RETRY_PERCENT),
            retry_floor_per_second: resolved.integer(&settings::RETRY_FLOOR),
            hedge: resolved.is_on(&settings::RETRY_HEDGE),
            hedge_budget_percent: resolved.integer(&settings::RETRY_HEDGE_PERCENT),
        },
        dispatch: RawDispatch {
            queue_max: resolved.integer(&settings::DISPATCH_QUEUE),
            engine_requests_max: resolved.integer(&settings::DISPATCH_ENGINE),
            ttft_target_ms: resolved.integer(&settings::DISPATCH_TARGET),
        },
        engine: resolved.list(&settings::ROUTER_ENGINE).to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_on_all_interfaces_is_known_by_its_machines_name() {
        assert_eq!(own_url(([127, 0, 0, 1], 80).into()), "http://127.0.0.1:80");
        let url = own_url(([0, 0, 0, 0], 8080).into());
        let name = url.strip_prefix("http://").and_then(|rest| rest.strip_suffix(":8080"));
        assert!(name.is_some_and(|name| !name.is_empty() && name != "0.0.0.0"), "{url}");
    }
}
