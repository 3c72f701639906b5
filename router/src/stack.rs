//! READ FIRST: the path of a request, outside in. Both stacks are put together here and nowhere else.
//!
//! ```text
//! HTTP stack        record ── admit ── routes ── api/* (wire types -> Ask)
//! generate stack    deadline ── shadow ── migrate ── retry ── dispatch ──► engine        (Call -> Reply)
//! ```

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::HeaderValue;
use phalanx_chassis::drain::{Drain, Phase};
use tokio::sync::Semaphore;

use crate::api::{Gateway, admin, chat, completions, decisions, health, models, pass, tokenize};
use crate::deadline::Deadline;
use crate::dispatch::Dispatch;
use crate::error::RouterError;
use crate::metrics::RouterMetrics;
use crate::migrate::Migrate;
use crate::record::{InProgress, RecordedBody, RequestRecord, X_REQUEST_ID};
use crate::retry::{Retry, RetryPolicy};
use crate::shadow::Shadow;

/// [`Call`](crate::ask::Call) to [`Reply`](crate::reply::Reply).
pub(crate) type GenerateStack = Deadline<Shadow<Migrate<Retry>>>;

/// The second stack, the innermost layer first.
pub(crate) fn generate_stack(
    dispatch: Dispatch,
    policy: RetryPolicy,
    metrics: RouterMetrics,
    drain: Drain,
) -> GenerateStack {
    // A worker that fails before its first event costs the client nothing: another one starts afresh. One that is
    // late may be raced by another (`hedge`).
    let retry = Retry::new(dispatch.clone(), policy, metrics.clone());
    // A worker that fails after it costs the client nothing either: another one goes on. Outside the retries, as that
    // one may fail to begin.
    let migrate = Migrate::new(retry, dispatch.clone(), metrics.clone());
    // Outside the retries, so that each request is copied once, to the shadow of its alias.
    let shadow = Shadow::new(migrate, dispatch, metrics);
    // Outside the retries, so that they share one deadline; its timer then rides along in the stream.
    Deadline::new(shadow, drain)
}

/// What the HTTP stack's own layers need.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    pub(crate) metrics: RouterMetrics,
    pub(crate) drain: Drain,
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) concurrency_max: usize,
}

/// The HTTP stack.
pub(crate) fn http_stack(gateway: Gateway, admission: Admission) -> Router {
    let passed = pass::PATHS.into_iter().fold(Router::new(), |router, path| {
        let pass = move |State(gateway), request| pass::create(gateway, path, request);
        router.route(path, post(pass))
    });
    let work = passed
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::get))
        .fallback(route_unknown)
        .method_not_allowed_fallback(method_not_allowed)
        // Counts, refuses when draining or full, and gives the request its id: before anything is read.
        .layer(from_fn_with_state(admission, admit));
    // Watching must work when work is refused, so these pass no admission.
    let watching = Router::new()
        .route("/health", get(health::live))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/metrics", get(health::metrics))
        .route("/admin/workers", get(admin::workers))
        .route("/admin/decisions/{*request_id}", get(decisions::get))
        .method_not_allowed_fallback(method_not_allowed);
    watching.merge(work).with_state(gateway)
}

/// Lets a request in, and keeps it on the books until the last byte of its answer is sent or given up.
async fn admit(State(admission): State<Admission>, mut request: Request, next: Next) -> Response {
    let record = RequestRecord::new(request.headers());
    request.extensions_mut().insert(record.clone());
    let permit = Arc::clone(&admission.permits).try_acquire_owned().ok();
    let is_full = permit.is_none();
    let in_progress = InProgress::new(record.clone(), admission.metrics.clone(), permit);
    let response = if admission.drain.phase() > Phase::Serving {
        RouterError::Draining.into_response()
    } else if is_full {
        RouterError::Overloaded { limit: admission.concurrency_max }.into_response()
    } else {
        next.run(request).await
    };
    let (mut parts, body) = response.into_parts();
    if let Some(error) = parts.extensions.remove::<RouterError>() {
        record.explain(error);
    }
    if let Ok(id) = HeaderValue::from_str(record.id().as_str()) {
        parts.headers.insert(X_REQUEST_ID, id);
    }
    let body = Body::new(RecordedBody::new(body, parts.status, in_progress));
    Response::from_parts(parts, body)
}

async fn route_unknown(request: Request) -> RouterError {
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    RouterError::RouteUnknown { method, path }
}

async fn method_not_allowed(request: Request) -> RouterError {
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    RouterError::MethodNotAllowed { method, path }
}
