//! Sends a copy of a request to the shadow of its alias, reads the answer to its end and throws it away.
//!
//! The copy starts once the request itself was dispatched, and never slows or fails it. It keeps the request's
//! deadline and outlives its client: what is compared is whole answers. It holds credit like any request, so
//! that dispatch sees its work.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures::StreamExt;
use futures::future::BoxFuture;
use http_body_util::BodyExt;
use tokio::sync::Semaphore;
use tower::Service;

use crate::ask::Call;
use crate::dispatch::{Assignment, Dispatch};
use crate::error::RouterError;
use crate::metrics::{RouterMetrics, ShadowLabels};
use crate::reply::Reply;

/// Copies in progress at once. A comparison needs a sample, and a shadow that is slower than the traffic must not
/// pile it up: further copies are dropped.
const SHADOWS_MAX: usize = 64;

/// The layer's service.
#[derive(Clone, Debug)]
pub(crate) struct Shadow<S> {
    inner: S,
    dispatch: Dispatch,
    places: Arc<Semaphore>,
    metrics: RouterMetrics,
}

/// What became of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Answered,
    Failed,
    /// Its request's deadline came first.
    DeadlineExceeded,
    /// No worker serves the shadow, or none has room.
    NoWorker,
    /// [`SHADOWS_MAX`] others are in progress.
    Dropped,
}

// === impl Shadow ===

impl<S> Shadow<S> {
    /// Copies what `inner` takes to the shadows that `dispatch` knows of.
    pub(crate) fn new(inner: S, dispatch: Dispatch, metrics: RouterMetrics) -> Self {
        Self { inner, dispatch, places: Arc::new(Semaphore::new(SHADOWS_MAX)), metrics }
    }
}

impl<S> Service<Call> for Shadow<S>
where
    S: Service<Call, Response = Reply, Error = RouterError>,
    S::Future: Send + 'static,
{
    type Response = Reply;
    type Error = RouterError;
    type Future = BoxFuture<'static, Result<Reply, RouterError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RouterError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let is_shadowed = self.dispatch.fleet().shadow(&call.ask.model).is_some();
        if !is_shadowed {
            return Box::pin(self.inner.call(call));
        }
        let (dispatch, places, metrics) =
            (self.dispatch.clone(), Arc::clone(&self.places), self.metrics.clone());
        let reply = self.inner.call(call.clone());
        Box::pin(async move {
            let reply = reply.await?;
            let count = move |outcome: Outcome| {
                metrics.shadows.get_or_create(&ShadowLabels { result: outcome.label() }).inc();
            };
            match places.try_acquire_owned() {
                Err(_full) => count(Outcome::Dropped),
                Ok(place) => {
                    tokio::spawn(async move {
                        let outcome = run(&dispatch, &call).await;
                        drop(place);
                        count(outcome);
                    });
                }
            }
            Ok(reply)
        })
    }
}

async fn run(dispatch: &Dispatch, call: &Call) -> Outcome {
    let Some(assignment) = dispatch.assign_shadow(call) else { return Outcome::NoWorker };
    let worker = assignment.worker().clone();
    match tokio::time::timeout_at(call.deadline.into(), read(assignment, call)).await {
        Ok(Ok(())) => Outcome::Answered,
        Err(_elapsed) => Outcome::DeadlineExceeded,
        Ok(Err(error)) if error.code() == Some("deadline_exceeded") => Outcome::DeadlineExceeded,
        Ok(Err(error)) => {
            tracing::debug!(%worker, %error, "a shadow request failed");
            Outcome::Failed
        }
    }
}

/// Reads the answer to its end, giving credit back as the work is done.
async fn read(assignment: Assignment, call: &Call) -> Result<(), RouterError> {
    match assignment.begin(call, std::future::pending()).await? {
        Reply::Tokens(mut events) => {
            while let Some(event) = events.next().await {
                event?;
            }
        }
        Reply::Passed(response) => {
            let mut body = response.into_body();
            while let Some(frame) = body.frame().await {
                frame?;
            }
        }
    }
    Ok(())
}

// === impl Outcome ===

impl Outcome {
    const fn label(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Failed => "failed",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::NoWorker => "no_worker",
            Self::Dropped => "dropped",
        }
    }
}
