//! Tries another engine when one fails before its first event; after it, nothing may be repeated.
//!
//! Attempts beyond the first are paid from a budget: when much of the fleet fails, to ask twice as often would finish
//! off the rest. Of those that fail, none is asked again by the same call.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tower::{Service, ServiceExt as _};

use crate::ask::Call;
use crate::dispatch::Dispatch;
use crate::dispatch::budget::Budget;
use crate::error::RouterError;
use crate::hedge::Hedge;
use crate::metrics::RouterMetrics;
use crate::reply::Reply;

/// Engines one call may be sent to. Two failures in a row are bad luck, three are a pattern.
pub(crate) const ATTEMPTS_MAX: usize = 3;

/// What attempts beyond the first may cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RetryPolicy {
    /// Retries per request.
    pub(crate) share: f64,
    /// Retries a second, however few requests there are.
    pub(crate) floor_per_second: f64,
    /// Second engines per request, asked because the first is late; none: that is never done.
    pub(crate) hedge_share: Option<f64>,
}

/// The layer's service.
#[derive(Clone, Debug)]
pub(crate) struct Retry {
    dispatch: Dispatch,
    hedge: Option<Arc<Hedge>>,
    budget: Arc<Mutex<Budget>>,
    metrics: RouterMetrics,
}

// === impl Retry ===

impl Retry {
    /// Tries `dispatch` up to [`ATTEMPTS_MAX`] times, never on the same engine.
    pub(crate) fn new(dispatch: Dispatch, policy: RetryPolicy, metrics: RouterMetrics) -> Self {
        let now = Instant::now();
        let budget = Budget::new(policy.share, policy.floor_per_second, now);
        let hedge = policy.hedge_share.map(|share| Arc::new(Hedge::new(share, metrics.clone())));
        Self { dispatch, hedge, budget: Arc::new(Mutex::new(budget)), metrics }
    }

    /// One attempt; the engines that failed it are added to those excluded.
    async fn attempt(&self, call: &mut Call) -> Result<Reply, RouterError> {
        match &self.hedge {
            Some(hedge) => hedge.run(&self.dispatch, call).await,
            None => self.dispatch.clone().oneshot(call.clone()).await,
        }
    }
}

impl Service<Call> for Retry {
    type Response = Reply;
    type Error = RouterError;
    type Future = BoxFuture<'static, Result<Reply, RouterError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RouterError>> {
        self.dispatch.poll_ready(cx)
    }

    fn call(&mut self, mut call: Call) -> Self::Future {
        let this = self.clone();
        this.budget.lock().earn();
        Box::pin(async move {
            let mut last = None;
            for attempt in 1..=ATTEMPTS_MAX {
                let error = match this.attempt(&mut call).await {
                    Ok(reply) => return Ok(reply),
                    // Nobody else is left, or none in time: what the last engine said is the better answer.
                    Err(
                        error @ (RouterError::NoWorker { .. }
                        | RouterError::DeadlineUnreachable { .. }),
                    ) => return Err(last.unwrap_or(error)),
                    Err(error) => error,
                };
                let Some(worker) = error.failed_worker() else { return Err(error) };
                if !call.excluded.contains(&worker) {
                    call.excluded.push(worker);
                }
                if attempt == ATTEMPTS_MAX {
                    return Err(error);
                }
                if !this.budget.lock().spend(Instant::now()) {
                    this.metrics.retries_refused.inc();
                    return Err(error);
                }
                tracing::info!(%worker, %error, "trying another worker");
                this.metrics.retries.inc();
                last = Some(error);
            }
            Err(last.unwrap_or_else(|| RouterError::NoWorker { model: call.ask.model.clone() }))
        })
    }
}
