//! Chooses an engine for one attempt and starts it there: the innermost service of the second stack.
//!
//! ```text
//! view ── follow ──► Fleet (names -> engines) ── candidates ──► cost::choose ──► engine/native
//!                                  ▲                 ▲ credit, load, learnt rates
//! reports, and their silence ── listen
//! ```
//! An alias' traffic is divided by `affinity`. A prefix index adds a term to the cost, a breaker removes candidates: both belong here, unseen by `api`.

pub(crate) mod affinity;
pub(crate) mod cost;
pub(crate) mod credit;
pub(crate) mod fleet;
pub(crate) mod follow;
pub(crate) mod listen;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use phalanx_proto::generate::Generate;
use phalanx_proto::id::{MemberId, ModelName};
use phalanx_proto::pb;
use tower::Service;

use self::cost::{Offer, Work};
use self::credit::CreditGuard;
use self::fleet::{Fleet, Route};
use crate::ask::{Ask, Call};
use crate::engine::native::Native;
use crate::engine::{Engine, Kind, native};
use crate::error::{Progress, RouterError};
use crate::metrics::RouterMetrics;
use crate::reply::{Placement, Reply};
use crate::stream::TokenStream;

/// The service: [`Call`] to [`Reply`].
#[derive(Clone, Debug)]
pub(crate) struct Dispatch {
    fleet: Arc<ArcSwap<Fleet>>,
    rotation: Arc<AtomicUsize>,
    metrics: RouterMetrics,
}

/// The engine chosen, and what the request will call the model there.
pub(crate) struct Choice {
    pub(crate) engine: Arc<Engine>,
    pub(crate) model: ModelName,
}

/// A request on its way to an engine, its work on the books.
pub(crate) struct Assignment {
    pub(crate) engine: Arc<Engine>,
    pub(crate) credit: CreditGuard,
    pub(crate) sending: Sending,
    placement: Placement,
}

/// What the engine is sent, in the form that it takes.
pub(crate) enum Sending {
    Native { worker: Arc<Native>, message: Box<pb::GenerateRequest> },
}

// === impl Dispatch ===

impl Dispatch {
    pub(crate) fn new(fleet: Arc<ArcSwap<Fleet>>, metrics: RouterMetrics) -> Self {
        Self { fleet, rotation: Arc::default(), metrics }
    }

    /// The current fleet.
    pub(crate) fn fleet(&self) -> arc_swap::Guard<Arc<Fleet>> {
        self.fleet.load()
    }

    /// The engine that answers `work` for `name` soonest, of those not excluded. `draw` divides an alias' traffic.
    pub(crate) fn choose(
        &self,
        name: &ModelName,
        draw: u64,
        work: Work,
        excluded: &[MemberId],
    ) -> Result<Choice, RouterError> {
        let fleet = self.fleet.load();
        let route = fleet.route(name, draw, excluded).ok_or_else(|| fleet.unknown(name))?;
        self.choose_on(route, work, excluded)
            .ok_or_else(|| RouterError::NoWorker { model: name.clone() })
    }

    fn choose_on(&self, route: Route<'_>, work: Work, excluded: &[MemberId]) -> Option<Choice> {
        let rotation = self.rotation.fetch_add(1, Ordering::Relaxed);
        let candidates = route.candidates(excluded);
        let offers: Vec<Offer> = candidates.iter().map(|engine| engine.offer()).collect();
        let chosen = cost::choose(&offers, work, rotation)?;
        Some(Choice { engine: Arc::clone(candidates[chosen]), model: route.model.clone() })
    }

    /// Puts `call` on the books of the engine that answers it soonest.
    fn assign(&self, call: &Call) -> Result<Assignment, RouterError> {
        let choice = self.choose(&call.ask.model, call.draw, call.ask.work, &call.excluded)?;
        Assignment::new(choice, &call.ask)
    }

    /// The same for a copy of `call` that goes to the shadow of its alias; none when nobody serves it.
    pub(crate) fn assign_shadow(&self, call: &Call) -> Option<Assignment> {
        let fleet = self.fleet.load();
        let route = fleet.shadow(&call.ask.model)?;
        let choice = self.choose_on(route, call.ask.work, &[])?;
        Assignment::new(choice, &call.ask).ok()
    }

    fn start(&self, call: &Call) -> Result<BoxFuture<'static, ReplyResult>, RouterError> {
        let Assignment { engine, credit, sending, placement } = self.assign(call)?;
        let metadata = call.metadata.clone();
        let (metrics, received) = (self.metrics.clone(), call.received);
        if call.excluded.is_empty() {
            metrics.overhead.observe(received.elapsed().as_secs_f64());
        }
        let Sending::Native { worker, message } = sending;
        Ok(Box::pin(async move {
            let sent = Instant::now();
            let alone = credit.is_only_prefill();
            let (first, source) =
                native::generate(&worker, *message, metadata).await.map_err(|fault| {
                    let worker = engine.identity.clone();
                    RouterError::Worker { worker, progress: Progress::NotStarted, fault }
                })?;
            let meter =
                crate::meter::Meter::new(engine, credit, metrics).timed(received, sent, alone);
            Ok(Reply::Tokens(TokenStream::new(first, source, placement, meter)))
        }))
    }
}

// === impl Assignment ===

impl Assignment {
    /// `ask` for the engine chosen.
    ///
    /// # Errors
    /// Why the request cannot be put in the form that the engine takes.
    fn new(choice: Choice, ask: &Ask) -> Result<Self, RouterError> {
        let Choice { engine, model } = choice;
        let sending = match &engine.kind {
            Kind::Native(worker) => {
                let generate = ask.native.as_ref().map_err(Clone::clone)?;
                let generate = Generate { model: model.clone(), ..Generate::clone(generate) };
                let message = Box::new(generate.into_wire(worker.epoch));
                Sending::Native { worker: Arc::clone(worker), message }
            }
        };
        let credit = engine.take_credit(ask.work);
        let revision = engine.revision(&model).cloned();
        let placement = Placement { worker: engine.identity.clone(), model, revision };
        Ok(Self { engine, credit, sending, placement })
    }
}

type ReplyResult = Result<Reply, RouterError>;

impl Service<Call> for Dispatch {
    type Response = Reply;
    type Error = RouterError;
    type Future = BoxFuture<'static, ReplyResult>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), RouterError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        match self.start(&call) {
            Ok(attempt) => attempt,
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }
}
