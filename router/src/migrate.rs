//! Lets native streams outlive their workers: when one dies, stalls or drains, another of the same model revision goes
//! on from the prompt and the tokens so far, which gives the very tokens that the first would have given.
//!
//! ```text
//! leg ── failed ─────────────────────► attempt ── first event ──► next leg ── ...
//!     ── its worker silent or stuck ──► attempt, beside the leg: whichever is heard first goes on
//! ```
//! What the client was told is in the [`ledger`], and only that counts: a worker's later events are never read.

mod lasting;
mod ledger;

use std::task::{Context, Poll};

use futures::future::BoxFuture;
use tower::{Service, ServiceExt as _};

pub(crate) use self::lasting::Lasting;
use crate::ask::Call;
use crate::dispatch::Dispatch;
use crate::error::RouterError;
use crate::metrics::RouterMetrics;
use crate::reply::Reply;

/// The layer's service.
#[derive(Clone, Debug)]
pub(crate) struct Migrate<S> {
    inner: S,
    dispatch: Dispatch,
    metrics: RouterMetrics,
}

/// Sends a call down the stack once more.
type Restart = Box<dyn Fn(Call) -> BoxFuture<'static, Result<Reply, RouterError>> + Send + Sync>;

// === impl Migrate ===

impl<S> Migrate<S> {
    /// Has `inner` start streams, and go on with them; `dispatch` tells who else there is.
    pub(crate) const fn new(inner: S, dispatch: Dispatch, metrics: RouterMetrics) -> Self {
        Self { inner, dispatch, metrics }
    }
}

impl<S> Service<Call> for Migrate<S>
where
    S: Service<Call, Response = Reply, Error = RouterError> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    type Response = Reply;
    type Error = RouterError;
    type Future = BoxFuture<'static, Result<Reply, RouterError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RouterError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let reply = self.inner.call(call.clone());
        let Self { inner, dispatch, metrics } = self.clone();
        Box::pin(async move {
            let stream = match reply.await? {
                Reply::Tokens(stream) => stream,
                // What a foreign engine holds is not known well enough to go on with it elsewhere.
                Reply::Passed(response) => return Ok(Reply::Passed(response)),
            };
            let restart: Restart = Box::new(move |call| Box::pin(inner.clone().oneshot(call)));
            Ok(Reply::Tokens(stream.lasting(|leg| {
                Lasting::new(leg, call, lasting::Means { restart, dispatch, metrics })
            })))
        })
    }
}
