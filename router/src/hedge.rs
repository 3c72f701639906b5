//! Asks a second engine when the first is late with its first event, as nineteen of twenty requests are not. Whichever
//! is heard first goes on; the other is cancelled at once, before it generates anything.
//!
//! ```text
//! first engine  ──────────── late ─────────────── ... cancelled
//! second engine               └────── first event ──► the reply
//! ```
//! Off unless asked for: it helps when single engines stall, and costs what the budget allows.

use std::time::{Duration, Instant};

use futures::future::{Either, select};
use parking_lot::Mutex;

use crate::ask::Call;
use crate::dispatch::Dispatch;
use crate::dispatch::budget::Budget;
use crate::dispatch::lateness::Lateness;
use crate::error::RouterError;
use crate::metrics::{HedgeLabels, RouterMetrics};
use crate::reply::Reply;

/// Sooner nothing is late: to ask a second engine takes about as long.
const LATE_MIN: Duration = Duration::from_millis(5);

/// When to ask a second engine.
#[derive(Debug)]
pub(crate) struct Hedge {
    budget: Mutex<Budget>,
    lateness: Mutex<Lateness>,
    metrics: RouterMetrics,
}

/// What became of a second engine.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// It was heard first.
    Won,
    /// The first engine was.
    Lost,
    /// It was not asked: there is no other, or the budget is spent.
    NotAsked,
}

// === impl Hedge ===

impl Hedge {
    /// Asks a second engine for up to this `share` of requests.
    pub(crate) fn new(share: f64, metrics: RouterMetrics) -> Self {
        let budget = Mutex::new(Budget::new(share, 0.0, Instant::now()));
        Self { budget, lateness: Mutex::default(), metrics }
    }

    /// One attempt of `call`; the engines that failed it are added to those excluded.
    pub(crate) async fn run(
        &self,
        dispatch: &Dispatch,
        call: &mut Call,
    ) -> Result<Reply, RouterError> {
        if call.excluded.is_empty() {
            self.budget.lock().earn();
        }
        let assignment = dispatch.admit(call).await?;
        let (engine, usual) = (assignment.worker().id, assignment.usual());
        let sent = Instant::now();
        let first = dispatch.begin(assignment, call);
        let late = usual.and_then(|usual| self.late(usual));
        let timer = Box::pin(async move {
            match late {
                Some(late) => tokio::time::sleep(late).await,
                None => std::future::pending().await,
            }
        });
        let first = match select(first, timer).await {
            Either::Left((reply, _)) => {
                if let (Ok(_), Some(usual)) = (&reply, usual) {
                    self.observe(sent, usual);
                }
                return reply;
            }
            Either::Right(((), first)) => first,
        };
        let also = Call { excluded: [&call.excluded[..], &[engine]].concat(), ..call.clone() };
        let is_paid = self.budget.lock().spend(Instant::now());
        let second = is_paid.then(|| dispatch.assign(&also).ok()).flatten();
        let Some(second) = second else {
            self.count(Outcome::NotAsked);
            return first.await;
        };
        tracing::debug!(worker = %engine, "worker is late, asking another one");
        let other = second.worker().id;
        let reply = match select(first, dispatch.begin(second, &also)).await {
            Either::Left((Ok(reply), _)) => Ok((reply, Outcome::Lost)),
            Either::Right((Ok(reply), _)) => Ok((reply, Outcome::Won)),
            Either::Left((Err(error), second)) => {
                exclude(call, &error);
                second.await.map(|reply| (reply, Outcome::Won))
            }
            Either::Right((Err(_), first)) => {
                call.excluded.push(other);
                first.await.map(|reply| (reply, Outcome::Lost))
            }
        };
        reply.map(|(reply, outcome)| {
            self.count(outcome);
            reply
        })
    }

    /// When a first event is late that usually takes `usual`; none before enough is known.
    fn late(&self, usual: Duration) -> Option<Duration> {
        self.lateness.lock().late().map(|ratio| usual.mul_f64(ratio).max(LATE_MIN))
    }

    fn observe(&self, sent: Instant, usual: Duration) {
        let ratio = sent.elapsed().as_secs_f64() / usual.as_secs_f64();
        self.lateness.lock().observe(ratio);
    }

    fn count(&self, outcome: Outcome) {
        self.metrics.hedges.get_or_create(&HedgeLabels { result: outcome.label() }).inc();
    }
}

fn exclude(call: &mut Call, error: &RouterError) {
    call.excluded.extend(error.failed_worker());
}

// === impl Outcome ===

impl Outcome {
    const fn label(self) -> &'static str {
        match self {
            Self::Won => "won",
            Self::Lost => "lost",
            Self::NotAsked => "not_asked",
        }
    }
}
