//! `GET /health`, `/health/live`, `/health/ready` and `/metrics`: for machines that watch the router.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use phalanx_chassis::drain::Phase;

use super::Gateway;

const TEXT_FORMAT: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// The process answers.
pub(crate) async fn live() -> Response {
    status(StatusCode::OK, "ok")
}

/// Requests would be served.
pub(crate) async fn ready(State(gateway): State<Gateway>) -> Response {
    if gateway.drain.phase() > Phase::Serving {
        return status(StatusCode::SERVICE_UNAVAILABLE, "draining");
    }
    if !gateway.dispatch.fleet().is_ready() {
        return status(StatusCode::SERVICE_UNAVAILABLE, "no ready worker");
    }
    status(StatusCode::OK, "ok")
}

/// All metrics of the process.
pub(crate) async fn metrics(State(gateway): State<Gateway>) -> Response {
    ([(header::CONTENT_TYPE, TEXT_FORMAT)], gateway.metrics.encode()).into_response()
}

fn status(code: StatusCode, text: &'static str) -> Response {
    let json = HeaderValue::from_static("application/json");
    (code, [(header::CONTENT_TYPE, json)], format!("{{\"status\":\"{text}\"}}")).into_response()
}
