//! Chooses an engine for one attempt and starts it there: the innermost service of the second stack.
//!
//! ```text
//! view, foreign models ── follow ──► Fleet (names -> engines) ── candidates ──► cost::choose ──► engine/*
//!                                             ▲                 ▲ credit, load, learnt rates
//!            reports, and their silence ── listen
//! ```
//! An alias' traffic is divided by `affinity`. Engines that fail (`breaker`) or lag far behind their peers (`pace`) are no
//! candidates, as `health` knows; nor are dear ones, where money matters and cheaper ones are soon enough (`thrift`).
//! While all of them are full (`saturation`), requests wait in the [`queue`](crate::queue). What was decided lately is
//! kept in `decisions`.

pub(crate) mod affinity;
pub(crate) mod breaker;
pub(crate) mod budget;
pub(crate) mod cost;
pub(crate) mod credit;
pub(crate) mod decisions;
pub(crate) mod fleet;
pub(crate) mod follow;
pub(crate) mod health;
pub(crate) mod lateness;
pub(crate) mod listen;
pub(crate) mod pace;
pub(crate) mod prefix_index;
pub(crate) mod rates;
pub(crate) mod room;
pub(crate) mod saturation;
pub(crate) mod thrift;

use std::borrow::Cow;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use phalanx_proto::fault::Fault;
use phalanx_proto::generate::Generate;
use phalanx_proto::id::{MemberId, ModelName};
use phalanx_proto::pb;
use phalanx_proto::prefix::{CHUNK_BYTES, Chunks, ModelKey};
use tower::Service;

use self::cost::{Offer, Pick, Terms, Work};
use self::decisions::{
    CANDIDATES_SHOWN_MAX, Candidate, Considered, Decision, Decisions, Recording,
};
use self::fleet::{Candidates, Eligible, Fleet, Route};
use self::health::{Admission, Trial};
use self::pace::WorkClass;
use crate::ask::{Call, HttpForm};
use crate::engine::foreign::{Foreign, passed};
use crate::engine::native::{CallMetadata, Native};
use crate::engine::{Engine, Identity, Kind, native};
use crate::error::{Progress, RouterError};
use crate::meter::Meter;
use crate::metrics::RouterMetrics;
use crate::queue::Queue;
use crate::reply::{Placement, Reply};
use crate::stream::{Leg, TokenStream};

/// How often a request that waits for a silent engine looks for another: soon enough for a client, and no load
/// when thousands wait.
pub(crate) const LOOK_AROUND_EVERY: Duration = Duration::from_millis(250);

/// The service: [`Call`] to [`Reply`].
#[derive(Clone, Debug)]
pub(crate) struct Dispatch {
    fleet: Arc<ArcSwap<Fleet>>,
    /// A number for each choice among equals, another sequence in each router.
    draws: Arc<AtomicU64>,
    queue: Queue,
    decisions: Arc<Decisions>,
    /// Of the engines that give a first token within this time the cheapest is taken; none: money does not matter.
    ttft_target: Option<Duration>,
    metrics: RouterMetrics,
}

/// Which engines a request may be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fullness {
    /// Only those with room for it.
    Minded,
    /// Full ones too.
    Ignored,
}

/// What is asked for, as far as the choice of an engine goes.
#[derive(Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) work: Work,
    /// How many answers there will be, and how many tokens each may have at the most, of a request that begins.
    pub(crate) answers: Option<(u64, u64)>,
    pub(crate) chunks: &'a Chunks,
}

/// What one request is expected to be for the engine chosen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Expected {
    /// What it computes.
    pub(crate) work: Work,
    pub(crate) cached_tokens: u64,
    /// Prompt tokens that it computes before.
    pub(crate) ahead_tokens: u64,
    pub(crate) terms: Terms,
}

/// The engine chosen, what the request will call the model there, and what is expected of it.
pub(crate) struct Choice {
    pub(crate) engine: Arc<Engine>,
    pub(crate) model: ModelName,
    pub(crate) expected: Expected,
    considered: Considered,
    admission: Admission,
}

/// A request on its way to an engine, its work on the books.
#[derive(Debug)]
pub(crate) struct Assignment {
    sending: Sending,
    placement: Placement,
    considered: Considered,
    /// Holds the credit, and what the engine's health is told.
    meter: Meter,
}

/// Where it is sent, and what, in the form that the engine takes.
#[derive(Debug)]
enum Sending {
    Native {
        worker: Arc<Native>,
        message: Box<pb::GenerateRequest>,
    },
    /// The form that the call has for it.
    Foreign {
        server: Arc<Foreign>,
    },
}

// === impl Dispatch ===

impl Dispatch {
    pub(crate) fn new(fleet: Arc<ArcSwap<Fleet>>, queue: Queue, metrics: RouterMetrics) -> Self {
        let draws = Arc::new(AtomicU64::new(uuid::Uuid::new_v4().as_u64_pair().0));
        Self { fleet, draws, queue, decisions: Arc::default(), ttft_target: None, metrics }
    }

    /// The same, which takes the cheapest of the engines that give a first token within `target`.
    pub(crate) fn with_ttft_target(self, target: Option<Duration>) -> Self {
        Self { ttft_target: target, ..self }
    }

    pub(crate) const fn queue(&self) -> &Queue {
        &self.queue
    }

    /// What was decided lately.
    pub(crate) fn decisions(&self) -> &Decisions {
        &self.decisions
    }

    /// The current fleet.
    pub(crate) fn fleet(&self) -> arc_swap::Guard<Arc<Fleet>> {
        self.fleet.load()
    }

    /// The engine that answers what is `wanted` of `name` soonest, of those that are eligible. `draw` divides an alias'
    /// traffic.
    pub(crate) fn choose(
        &self,
        name: &ModelName,
        draw: u64,
        wanted: Wanted<'_>,
        eligible: Eligible<'_>,
    ) -> Result<Choice, RouterError> {
        let fleet = self.fleet.load();
        let route = fleet.route(name, draw, eligible).ok_or_else(|| fleet.unknown(name))?;
        self.choose_on(route, wanted, eligible, Fullness::Ignored)
    }

    /// Whether an engine that is well, and none of `excluded`, could take `call`.
    pub(crate) fn has_other(&self, call: &Call, excluded: &[MemberId]) -> bool {
        let fleet = self.fleet.load();
        let eligible = Eligible { kinds: call.kinds(), excluded };
        let route = route_of(&fleet, call, eligible);
        let candidates = route.map(|route| route.candidates(eligible, Instant::now()));
        candidates.is_some_and(|others| others.engines.iter().any(|other| other.is_heard()))
    }

    fn choose_on(
        &self,
        route: Route<'_>,
        wanted: Wanted<'_>,
        eligible: Eligible<'_>,
        fullness: Fullness,
    ) -> Result<Choice, RouterError> {
        let now = Instant::now();
        let Candidates { mut engines, admission } = route.candidates(eligible, now);
        if fullness == Fullness::Minded && !engines.is_empty() {
            engines.retain(|engine| engine.has_room(now));
            if engines.is_empty() {
                return Err(RouterError::Saturated { model: route.model.clone() });
            }
        }
        let key = ModelKey::new(route.model);
        let fleet = self.fleet.load();
        let depths = fleet.index().lookup(wanted.chunks.hashes.iter().map(|hash| hash.under(key)));
        let offer = |engine: &&Arc<Engine>| {
            let (depth, confidence) = engine.holding().depth(&depths);
            let cached_tokens = wanted.tokens_of(depth);
            Offer { cached_tokens, confidence, ..engine.offer() }
        };
        let offers: Vec<Offer> = engines.iter().map(offer).collect();
        let decode_tokens = wanted.answers.map_or(wanted.work.decode_tokens, |(choices, max)| {
            cost::answer_tokens(&offers).min(max) * choices
        });
        let work = Work { decode_tokens, ..wanted.work };
        let prices = cost::price(&offers, work);
        let pick = self
            .pick(&engines, &prices, work)
            .ok_or_else(|| RouterError::NoWorker { model: route.model.clone() })?;
        let offer = &offers[pick.index];
        // Something is always computed: the last token's logits.
        let cached_tokens = offer.cached_tokens.min(work.prefill_tokens.saturating_sub(1));
        let expected = Expected {
            work: Work { prefill_tokens: work.prefill_tokens - cached_tokens, decode_tokens },
            cached_tokens,
            ahead_tokens: offer.outstanding.prefill_tokens,
            terms: pick.terms,
        };
        let candidate = |index: usize| {
            let Offer { cached_tokens, confidence, .. } = offers[index];
            let (engine, terms) = (engines[index].id(), prices[index]);
            Candidate {
                engine,
                terms,
                cached_tokens,
                confidence,
                money: engines[index].money(work),
            }
        };
        let shown = decisions::cheapest(&prices, CANDIDATES_SHOWN_MAX, pick.index);
        let candidates = shown.into_iter().map(candidate).collect();
        let considered = Considered { candidates, count: engines.len() };
        let (engine, model) = (Arc::clone(engines[pick.index]), route.model.clone());
        Ok(Choice { engine, model, expected, considered, admission })
    }

    /// The engine to take for `work`, at these `prices`.
    fn pick(&self, engines: &[&Arc<Engine>], prices: &[Terms], work: Work) -> Option<Pick> {
        let draw = affinity::mixed(self.draws.fetch_add(1, Ordering::Relaxed));
        let Some(target) = self.ttft_target else { return cost::choose(prices, draw) };
        let money: Vec<f64> = engines.iter().map(|engine| engine.money(work)).collect();
        let eligible = thrift::eligible(prices, &money, target.as_secs_f64());
        let theirs: Vec<Terms> = eligible.iter().map(|&index| prices[index]).collect();
        let pick = cost::choose(&theirs, draw)?;
        Some(Pick { index: eligible[pick.index], ..pick })
    }

    /// Puts `call` on the books of the engine that answers it soonest, once one has room and all who waited before
    /// have been served.
    ///
    /// # Errors
    /// Why no engine can take it, or why it is not to wait.
    pub(crate) async fn admit(&self, call: &Call) -> Result<Assignment, RouterError> {
        if call.resume.is_some() || !self.queue.has_line(&call.ask.model) {
            match self.assign(call) {
                Err(RouterError::Saturated { .. }) => {}
                assignment => return assignment,
            }
        }
        let usual = {
            let fleet = self.fleet.load();
            let eligible = Eligible { kinds: call.kinds(), excluded: &call.excluded };
            let route = fleet.route(&call.ask.model, call.draw, eligible);
            route.and_then(|route| route.usual(call.ask.work.prefill_tokens))
        };
        self.queue.wait(call, usual).await
    }

    /// Puts `call` on the books of the engine that answers it soonest.
    ///
    /// # Errors
    /// Why no engine can take it. An attempt after the first is not made when it is unlikely to be in time, unless it
    /// is for the rest of an answer.
    pub(crate) fn assign(&self, call: &Call) -> Result<Assignment, RouterError> {
        let fleet = self.fleet.load();
        let name = &call.ask.model;
        // The rest of an answer was let in with its beginning, and its client is waiting in mid-sentence.
        let is_rest = call.resume.is_some();
        let fullness = if is_rest { Fullness::Ignored } else { Fullness::Minded };
        let mut excluded = Cow::from(&call.excluded);
        loop {
            let eligible = Eligible { kinds: call.kinds(), excluded: &excluded };
            let route = route_of(&fleet, call, eligible).ok_or_else(|| fleet.unknown(name))?;
            let choice = self.choose_on(route, Wanted::of(call), eligible, fullness)?;
            let id = choice.engine.id();
            if let Some(assignment) = Assignment::new(choice, call)? {
                if !call.excluded.is_empty() && !is_rest {
                    assignment.can_be_in_time(call.deadline)?;
                }
                return Ok(assignment);
            }
            // Another request took the last probe of this engine.
            excluded.to_mut().push(id);
        }
    }

    /// The same for a copy of `call` that goes to the shadow of its alias; none when nobody serves it.
    pub(crate) fn assign_shadow(&self, call: &Call) -> Option<Assignment> {
        let fleet = self.fleet.load();
        let route = fleet.shadow(&call.ask.model)?;
        let eligible = Eligible { kinds: call.kinds(), excluded: &[] };
        let choice = self.choose_on(route, Wanted::of(call), eligible, Fullness::Minded).ok()?;
        Assignment::new(choice, call).ok().flatten()
    }

    /// Sends `call` where it is assigned to; the reply begins with its first event.
    pub(crate) fn begin(
        &self,
        mut assignment: Assignment,
        call: &Call,
    ) -> BoxFuture<'static, ReplyResult> {
        if call.excluded.is_empty() {
            self.metrics.overhead.observe(call.received.elapsed().as_secs_f64());
        }
        let recording = self.record(&mut assignment, call);
        assignment.meter = assignment.meter.counting(self.metrics.clone(), recording);
        match &assignment.sending {
            Sending::Native { .. } => {
                let deserted = self.deserted(assignment.meter.engine(), call);
                let call = call.clone();
                Box::pin(async move { assignment.begin(&call, deserted).await })
            }
            // Whether it is well is known from its answers alone.
            Sending::Foreign { .. } => {
                let call = call.clone();
                Box::pin(async move { assignment.begin(&call, pending()).await })
            }
        }
    }

    /// Remembers why `call` is sent where it is assigned to.
    fn record(&self, assignment: &mut Assignment, call: &Call) -> Recording {
        let Assignment { placement, considered, meter, .. } = assignment;
        let sent = (call.metadata.request_id.clone(), SystemTime::now());
        let to = (placement.worker.clone(), placement.model.clone());
        let considered = std::mem::take(considered);
        self.decisions.record(Decision::new(sent, to, considered, meter.expected()))
    }

    /// Resolves when `call` should wait for `engine` no longer: that stopped or hangs, and another one is well.
    fn deserted(
        &self,
        engine: &Arc<Engine>,
        call: &Call,
    ) -> impl Future<Output = Fault> + Send + use<> {
        let (dispatch, engine, call) = (self.clone(), Arc::clone(engine), call.clone());
        async move {
            let excluded = [&call.excluded[..], &[engine.id()]].concat();
            loop {
                let condition = engine.failing().await;
                if dispatch.has_other(&call, &excluded) {
                    return condition.fault();
                }
                tokio::time::sleep(LOOK_AROUND_EVERY).await;
            }
        }
    }
}

// === impl Wanted ===

impl<'a> Wanted<'a> {
    /// What `call` wants.
    pub(crate) fn of(call: &'a Call) -> Self {
        let answers = call.resume.is_none().then_some(call.ask.answers);
        Self { work: call.work(), answers, chunks: &call.ask.chunks }
    }

    /// About how many tokens the first `chunks` chunks of the prompt are.
    fn tokens_of(&self, chunks: u16) -> u64 {
        let bytes = u64::from(chunks) * CHUNK_BYTES as u64;
        (self.work.prefill_tokens * bytes).checked_div(self.chunks.bytes).unwrap_or(0)
    }
}

// === impl Assignment ===

impl Assignment {
    /// `call` for the engine chosen; none if that admits no more.
    ///
    /// # Errors
    /// Why the request cannot be put in the form that the engine takes.
    fn new(choice: Choice, call: &Call) -> Result<Option<Self>, RouterError> {
        let Choice { engine, model, expected, considered, admission } = choice;
        let sending = match &engine.kind {
            Kind::Native(worker) => {
                let generate = call.ask.native.as_ref().map_err(Clone::clone)?;
                let generate = match &call.resume {
                    Some(resume) => resume.of(generate),
                    None => Generate::clone(generate),
                };
                let generate = Generate { model: model.clone(), ..generate };
                let message = Box::new(generate.into_wire(worker.epoch));
                Sending::Native { worker: Arc::clone(worker), message }
            }
            Kind::Foreign(server) => Sending::Foreign { server: Arc::clone(server) },
        };
        // What the engine computes before the first event: what it has in hand, and this.
        let ahead = expected.ahead_tokens.saturating_add(expected.work.prefill_tokens);
        let served = engine.model_index(&model).unwrap_or(0);
        let is_whole = |form: &HttpForm| !form.is_streamed;
        let is_paced = match &engine.kind {
            Kind::Native(_) => true,
            Kind::Foreign(_) => !call.ask.http.as_ref().is_some_and(is_whole),
        };
        let class = is_paced.then(|| WorkClass::of(ahead));
        let Some(trial) = Trial::begin(&engine.health, served, class, call.deadline, admission)
        else {
            return Ok(None);
        };
        let credit = engine.take_credit(expected.work);
        let key = ModelKey::new(&model);
        let chunks = call.ask.chunks.hashes.iter().map(|hash| hash.under(key));
        engine.holding().sent(chunks, Instant::now());
        let revision = engine.revision(&model).cloned();
        let placement = Placement { worker: engine.identity.clone(), model, revision };
        let meter = Meter::new(engine, credit, trial, (call.received, expected));
        Ok(Some(Self { sending, placement, considered, meter }))
    }

    /// Whom it is sent to.
    pub(crate) const fn worker(&self) -> &Identity {
        &self.placement.worker
    }

    /// What a first event usually takes there for such work; none before that is known.
    pub(crate) fn usual(&self) -> Option<Duration> {
        self.meter.usual()
    }

    /// Sends `call`; the reply begins with its first event, unless the engine is `deserted` before.
    pub(crate) async fn begin<F>(self, call: &Call, deserted: F) -> ReplyResult
    where
        F: Future<Output = Fault>,
    {
        let Self { sending, placement, mut meter, .. } = self;
        // An attempt after the first has less time left.
        let timeout = call.deadline.saturating_duration_since(Instant::now());
        let metadata = CallMetadata { timeout, ..call.metadata.clone() };
        match sending {
            Sending::Native { worker, message } => {
                let begun = tokio::select! {
                    biased;
                    begun = native::generate(&worker, *message, metadata) => begun,
                    fault = deserted => Err(fault),
                };
                let (first, source) = begun.map_err(|fault| {
                    meter.failed(&fault);
                    let worker = placement.worker.clone();
                    RouterError::Worker { worker, progress: Progress::NotStarted, fault }
                })?;
                let leg = Leg::new(first, source, placement, meter);
                Ok(Reply::Tokens(TokenStream::new(leg)))
            }
            Sending::Foreign { server } => {
                let Some(form) = &call.ask.http else {
                    // An ask without the form has no foreign candidates.
                    return Err(RouterError::NoWorker { model: call.ask.model.clone() });
                };
                let passed = passed::pass(server, form, &metadata, placement, meter).await;
                passed.map(Reply::Passed)
            }
        }
    }

    /// That the first event comes before `deadline`, as far as can be told.
    fn can_be_in_time(&self, deadline: Instant) -> Result<(), RouterError> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.usual() {
            Some(predicted) if predicted > left => {
                Err(RouterError::DeadlineUnreachable { predicted, left })
            }
            _ => Ok(()),
        }
    }
}

/// Where `call` goes, if only to those that are eligible. None: nobody knows the name.
fn route_of<'a>(fleet: &'a Fleet, call: &'a Call, eligible: Eligible<'_>) -> Option<Route<'a>> {
    match &call.resume {
        Some(resume) => Some(fleet.route_on(&resume.model, resume.revision.as_ref())),
        None => fleet.route(&call.ask.model, call.draw, eligible),
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
        let this = self.clone();
        Box::pin(async move {
            let assignment = this.admit(&call).await?;
            this.begin(assignment, &call).await
        })
    }
}
