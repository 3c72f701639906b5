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
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use phalanx_proto::generate::{Generate, Input};
use phalanx_proto::id::{MemberId, ModelName};
use phalanx_proto::pb;
use tower::Service;

use self::cost::{Offer, Work};
use self::credit::CreditGuard;
use self::fleet::{Fleet, Route};
use crate::engine::native::CallMetadata;
use crate::engine::{Engine, native};
use crate::error::{Progress, RouterError};
use crate::metrics::RouterMetrics;
use crate::stream::{Placement, TokenStream};

/// Tokens an answer is expected to have, where the client set no lower limit.
pub(crate) const ANSWER_TOKENS_EXPECTED: u64 = 128;
/// English text has about four bytes per token; a rough guess is enough to compare engines.
const BYTES_PER_TOKEN: u64 = 4;

/// One generation on its way through the second stack.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) generate: Arc<Generate>,
    /// When the request had arrived in full.
    pub(crate) received: Instant,
    pub(crate) deadline: Instant,
    /// The whole time that the request was given; its deadline is the end of it.
    pub(crate) timeout: Duration,
    pub(crate) metadata: CallMetadata,
    /// Which part of an alias' traffic it belongs to, in every attempt.
    pub(crate) draw: u64,
    /// Engines that failed this call already.
    pub(crate) excluded: Vec<MemberId>,
}

/// The service: [`Call`] to [`TokenStream`].
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
    pub(crate) message: pb::GenerateRequest,
    placement: Placement,
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
        let work = predicted_work(&call.generate);
        let choice = self.choose(&call.generate.model, call.draw, work, &call.excluded)?;
        Ok(Assignment::new(choice, work, &call.generate))
    }

    /// The same for a copy of `call` that goes to the shadow of its alias; none when nobody serves it.
    pub(crate) fn assign_shadow(&self, call: &Call) -> Option<Assignment> {
        let work = predicted_work(&call.generate);
        let fleet = self.fleet.load();
        let route = fleet.shadow(&call.generate.model)?;
        let choice = self.choose_on(route, work, &[])?;
        Some(Assignment::new(choice, work, &call.generate))
    }

    fn start(&self, call: &Call) -> Result<BoxFuture<'static, StreamResult>, RouterError> {
        let Assignment { engine, credit, message, placement } = self.assign(call)?;
        let metadata = call.metadata.clone();
        let (metrics, received) = (self.metrics.clone(), call.received);
        if call.excluded.is_empty() {
            metrics.overhead.observe(received.elapsed().as_secs_f64());
        }
        Ok(Box::pin(async move {
            let sent = Instant::now();
            let alone = credit.is_only_prefill();
            let (first, source) =
                native::generate(&engine, message, metadata).await.map_err(|fault| {
                    RouterError::Worker { worker: engine.id, progress: Progress::NotStarted, fault }
                })?;
            let meter =
                crate::meter::Meter::new(engine, credit, metrics).timed(received, sent, alone);
            Ok(TokenStream::new(first, source, placement, meter))
        }))
    }
}

// === impl Assignment ===

impl Assignment {
    fn new(choice: Choice, work: Work, generate: &Generate) -> Self {
        let Choice { engine, model } = choice;
        let credit = engine.take_credit(work);
        let revision = engine.revision(&model).cloned();
        let placement = Placement { worker: engine.id, model: model.clone(), revision };
        let message = Generate { model, ..generate.clone() }.into_wire(engine.epoch);
        Self { engine, credit, message, placement }
    }
}

type StreamResult = Result<TokenStream, RouterError>;

impl Service<Call> for Dispatch {
    type Response = TokenStream;
    type Error = RouterError;
    type Future = BoxFuture<'static, StreamResult>;

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

/// What the request asks of an engine, guessed from its size: the router never tokenises.
fn predicted_work(generate: &Generate) -> Work {
    let prefill_tokens = match &generate.input {
        Input::Chat(chat) => {
            let bytes: usize = chat.messages.iter().map(|message| message.content.len()).sum();
            bytes as u64 / BYTES_PER_TOKEN
        }
        Input::Text(text) => text.len() as u64 / BYTES_PER_TOKEN,
        Input::Tokens(ids) => ids.len() as u64,
    };
    let answer = generate.stopping.max_tokens.map_or(ANSWER_TOKENS_EXPECTED, |max_tokens| {
        u64::from(max_tokens).min(ANSWER_TOKENS_EXPECTED)
    });
    Work {
        prefill_tokens: prefill_tokens.max(1),
        decode_tokens: answer * u64::from(generate.choices),
    }
}
