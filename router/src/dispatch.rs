//! Chooses an engine for one attempt and starts it there: the innermost service of the second stack.
//!
//! ```text
//! view ── follow ──► Fleet (names -> engines) ── candidates ──► cost::choose ──► engine/native
//!                                  ▲                 ▲ credit, load, learnt rates
//! reports, and their silence ── listen
//! ```
//! A prefix index adds a term to the cost, a breaker removes candidates: both belong here, unseen by `api`.

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
use tower::Service;

use self::cost::{Offer, Work};
use self::fleet::Fleet;
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

// === impl Dispatch ===

impl Dispatch {
    pub(crate) fn new(fleet: Arc<ArcSwap<Fleet>>, metrics: RouterMetrics) -> Self {
        Self { fleet, rotation: Arc::default(), metrics }
    }

    /// The current fleet.
    pub(crate) fn fleet(&self) -> arc_swap::Guard<Arc<Fleet>> {
        self.fleet.load()
    }

    /// The engine that answers `work` for `name` soonest, of those not excluded.
    pub(crate) fn choose(
        &self,
        name: &ModelName,
        work: Work,
        excluded: &[MemberId],
    ) -> Result<Choice, RouterError> {
        let fleet = self.fleet.load();
        let rotation = self.rotation.fetch_add(1, Ordering::Relaxed);
        let draw = uuid::Uuid::new_v4().as_u64_pair().0;
        let route = fleet.route(name, draw).ok_or_else(|| fleet.unknown(name))?;
        let candidates = route.candidates(excluded);
        let offers: Vec<Offer> = candidates.iter().map(|engine| engine.offer()).collect();
        let chosen = cost::choose(&offers, work, rotation)
            .ok_or_else(|| RouterError::NoWorker { model: name.clone() })?;
        Ok(Choice { engine: Arc::clone(candidates[chosen]), model: route.model.clone() })
    }

    fn start(&self, call: &Call) -> Result<BoxFuture<'static, StreamResult>, RouterError> {
        let work = predicted_work(&call.generate);
        let Choice { engine, model } = self.choose(&call.generate.model, work, &call.excluded)?;
        let credit = engine.take_credit(work);
        let placement = Placement { worker: engine.id, revision: engine.revision(&model).cloned() };
        let generate = Generate { model, ..Generate::clone(&call.generate) };
        let message = generate.into_wire(engine.epoch);
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
