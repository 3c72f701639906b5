//! Tries another engine when one fails before its first event; after it, nothing may be repeated.

use std::task::{Context, Poll};

use futures::future::BoxFuture;
use tower::Service;

use crate::ask::Call;
use crate::error::RouterError;
use crate::metrics::RouterMetrics;
use crate::reply::Reply;

/// Engines one call may be sent to. Two failures in a row are bad luck, three are a pattern.
pub(crate) const ATTEMPTS_MAX: usize = 3;

/// The layer's service.
#[derive(Clone, Debug)]
pub(crate) struct Retry<S> {
    inner: S,
    metrics: RouterMetrics,
}

// === impl Retry ===

impl<S> Retry<S> {
    /// Tries `inner` up to [`ATTEMPTS_MAX`] times, never on the same engine.
    pub(crate) const fn new(inner: S, metrics: RouterMetrics) -> Self {
        Self { inner, metrics }
    }
}

impl<S> Service<Call> for Retry<S>
where
    S: Service<Call, Response = Reply, Error = RouterError> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Reply;
    type Error = RouterError;
    type Future = BoxFuture<'static, Result<Reply, RouterError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RouterError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut call: Call) -> Self::Future {
        let Self { mut inner, metrics } = self.clone();
        Box::pin(async move {
            let mut last = None;
            while call.excluded.len() < ATTEMPTS_MAX {
                let error = match inner.call(call.clone()).await {
                    Ok(reply) => return Ok(reply),
                    // Nobody else is left: what the last engine said is the better answer.
                    Err(error @ RouterError::NoWorker { .. }) => return Err(last.unwrap_or(error)),
                    Err(error) => error,
                };
                let Some(worker) = error.failed_worker() else { return Err(error) };
                tracing::info!(%worker, %error, "trying another worker");
                call.excluded.push(worker);
                last = Some(error);
                if call.excluded.len() < ATTEMPTS_MAX {
                    metrics.retries.inc();
                }
            }
            Err(last.unwrap_or_else(|| RouterError::NoWorker { model: call.ask.model.clone() }))
        })
    }
}
