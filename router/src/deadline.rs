//! Ends a call at its deadline, or when the process stops, whether or not its first event came.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, Either, select};
use phalanx_chassis::drain::{Drain, Phase};
use phalanx_proto::fault::FaultCode;
use tower::Service;

use crate::ask::Call;
use crate::error::RouterError;
use crate::reply::Reply;

/// The layer's service.
#[derive(Clone, Debug)]
pub(crate) struct Deadline<S> {
    inner: S,
    drain: Drain,
}

/// Resolves with the reason why a call must end now.
pub(crate) struct Cutoff {
    /// What the request was given.
    timeout: Duration,
    reached: BoxFuture<'static, RouterError>,
}

// === impl Deadline ===

impl<S> Deadline<S> {
    /// Bounds `inner`'s calls by their deadline and by `drain`'s last phase.
    pub(crate) const fn new(inner: S, drain: Drain) -> Self {
        Self { inner, drain }
    }
}

impl<S> Service<Call> for Deadline<S>
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
        let (deadline, timeout) = (call.deadline, call.timeout);
        let cutoff = Cutoff::new(deadline, self.drain.clone(), timeout);
        let reply = self.inner.call(call);
        Box::pin(async move {
            match select(Box::pin(reply), cutoff).await {
                Either::Left((Ok(reply), cutoff)) => Ok(reply.until(cutoff)),
                // The worker keeps the same deadline and may notice first.
                Either::Left((Err(_), _)) if Instant::now() >= deadline => {
                    Err(RouterError::DeadlineExceeded { timeout })
                }
                Either::Left((Err(error), cutoff)) => Err(cutoff.reword(error)),
                Either::Right((error, _)) => Err(error),
            }
        })
    }
}

// === impl Cutoff ===

impl Cutoff {
    /// The deadline of a request that was given `timeout`, or the end of the process.
    pub(crate) fn new(deadline: Instant, drain: Drain, timeout: Duration) -> Self {
        let reached = Box::pin(async move {
            tokio::select! {
                () = tokio::time::sleep_until(deadline.into()) => {
                    RouterError::DeadlineExceeded { timeout }
                }
                () = drain.reached(Phase::Stopping) => RouterError::Draining,
            }
        });
        Self { timeout, reached }
    }

    /// `error`, in the terms of this request: a worker only knows the time that was left when it was called.
    pub(crate) fn reword(&self, error: RouterError) -> RouterError {
        match error {
            RouterError::Worker { fault, .. } if fault.code == FaultCode::DeadlineExceeded => {
                RouterError::DeadlineExceeded { timeout: self.timeout }
            }
            other => other,
        }
    }
}

impl Future for Cutoff {
    type Output = RouterError;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<RouterError> {
        self.reached.as_mut().poll(cx)
    }
}

impl fmt::Debug for Cutoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cutoff")
    }
}
