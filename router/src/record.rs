//! What becomes of each request: its id, its place among those in progress, its line in the metrics.

use std::pin::Pin;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Body;
use bytes::Bytes;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use phalanx_proto::id::{ModelName, RequestId};
use tokio::sync::OwnedSemaphorePermit;

use crate::engine::Identity;
use crate::error::RouterError;
use crate::metrics::{GaugeGuard, RequestLabels, RouterMetrics};

pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longer ids are replaced, as they go into every log line.
const REQUEST_ID_BYTES_MAX: usize = 128;
/// nginx's code for a client that went away before its answer was complete.
const CLIENT_GONE: u16 = 499;

/// Shared by everyone who handles one request.
#[derive(Clone, Debug)]
pub(crate) struct RequestRecord(Arc<Record>);

#[derive(Debug)]
struct Record {
    id: RequestId,
    started: Instant,
    model: OnceLock<ModelName>,
    /// Who answered, once somebody began to.
    worker: OnceLock<Identity>,
    /// Why it is not served, or no longer.
    failure: OnceLock<RouterError>,
    /// What the request ends as if it ends now.
    code: AtomicU16,
}

/// Held while the request is in progress; on drop the request is counted under what it ended as.
#[derive(Debug)]
pub(crate) struct InProgress {
    record: RequestRecord,
    metrics: RouterMetrics,
    _inflight: GaugeGuard,
    _permit: Option<OwnedSemaphorePermit>,
}

/// A response body that keeps its request in progress until it is sent.
#[derive(Debug)]
pub(crate) struct RecordedBody {
    inner: Body,
    status: StatusCode,
    in_progress: Option<InProgress>,
}

// === impl RequestRecord ===

impl RequestRecord {
    /// A record for a request with these headers: the client's id, if it is sane, or a new one.
    pub(crate) fn new(headers: &HeaderMap) -> Self {
        let given = headers.get(X_REQUEST_ID).map(HeaderValue::as_bytes);
        let sane = given.filter(|id| {
            (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
        });
        let id = match sane.and_then(|id| std::str::from_utf8(id).ok()) {
            Some(id) => RequestId::from(id),
            None => RequestId::from(format!("req-{}", uuid::Uuid::new_v4().simple())),
        };
        Self(Arc::new(Record {
            id,
            started: Instant::now(),
            model: OnceLock::new(),
            worker: OnceLock::new(),
            failure: OnceLock::new(),
            code: AtomicU16::new(CLIENT_GONE),
        }))
    }

    /// The record that the outermost layer put among a request's extensions.
    pub(crate) fn of(extensions: &Extensions) -> Self {
        extensions.get::<Self>().cloned().unwrap_or_else(|| Self::new(&HeaderMap::new()))
    }

    pub(crate) fn id(&self) -> &RequestId {
        &self.0.id
    }

    pub(crate) fn started(&self) -> Instant {
        self.0.started
    }

    /// Names the model in the metrics.
    pub(crate) fn name_model(&self, model: &ModelName) {
        // A request has one model; a second name would be the same.
        let _ = self.0.model.set(model.clone());
    }

    /// Notes who answers.
    pub(crate) fn place(&self, worker: Identity) {
        // Several prompts may go to several workers; the first stands for all.
        let _ = self.0.worker.set(worker);
    }

    /// Notes an error inside a stream whose status is long sent.
    pub(crate) fn fail(&self, error: RouterError) {
        self.0.code.store(error.status().as_u16(), Ordering::Relaxed);
        self.explain(error);
    }

    /// Notes why the request will end as it does.
    pub(crate) fn explain(&self, error: RouterError) {
        // The first failure is the cause of later ones.
        let _ = self.0.failure.set(error);
    }

    fn complete(&self, status: StatusCode) {
        // An error noted before stays.
        let (gone, code) = (CLIENT_GONE, status.as_u16());
        let _ = self.0.code.compare_exchange(gone, code, Ordering::Relaxed, Ordering::Relaxed);
    }
}

// === impl Record ===

impl Record {
    /// One line: a warning for what failed on our side, a note for who left, else only for those who debug.
    fn log(&self, model: &str, status: u16, elapsed: f64) {
        let request = self.id.as_str();
        let failure = self.failure.get();
        let worker = self.worker.get().or_else(|| failure.and_then(RouterError::worker));
        let worker = worker.map(|worker| &*worker.name);
        let code = failure.and_then(RouterError::code);
        // As a string, so that no line of the log can be forged by what a client wrote.
        let cause = failure.map(ToString::to_string);
        // A failure after the placement is one inside an answer, whatever its status would have been.
        let is_cut = failure.is_some() && self.worker.get().is_some();
        if status == CLIENT_GONE {
            tracing::info!(request, model, worker, status, elapsed, "client is gone");
        } else if status >= 500 || is_cut {
            tracing::warn!(request, model, worker, status, code, cause, elapsed, "request failed");
        } else {
            tracing::debug!(request, model, worker, status, code, elapsed, "request ended");
        }
    }
}

// === impl InProgress ===

impl InProgress {
    /// Counts the request among those in progress, with its place under the concurrency limit.
    pub(crate) fn new(
        record: RequestRecord,
        metrics: RouterMetrics,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let inflight = metrics.enter();
        Self { record, metrics, _inflight: inflight, _permit: permit }
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        let record = &*self.record.0;
        let elapsed = record.started.elapsed().as_secs_f64();
        let code = record.code.load(Ordering::Relaxed);
        let model = record.model.get().map_or("unknown", ModelName::as_str).to_owned();
        record.log(&model, code, elapsed);
        self.metrics.request_duration.observe(elapsed);
        self.metrics.requests.get_or_create(&RequestLabels { model, code }).inc();
    }
}

// === impl RecordedBody ===

impl RecordedBody {
    /// `inner`, of a response with `status`, on behalf of a request in progress.
    pub(crate) fn new(inner: Body, status: StatusCode, in_progress: InProgress) -> Self {
        let mut body = Self { inner, status, in_progress: Some(in_progress) };
        if body.inner.is_end_stream() {
            body.end();
        }
        body
    }

    fn end(&mut self) {
        if let Some(in_progress) = self.in_progress.take() {
            in_progress.record.complete(self.status);
        }
    }
}

impl HttpBody for RecordedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx));
        // Bodies of known length are never asked for the frame after their last.
        if frame.is_none() || self.inner.is_end_stream() {
            self.end();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
