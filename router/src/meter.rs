//! What one stream teaches: metrics for operators, rates for the cost model, credit given back as work is done.

use std::sync::Arc;
use std::time::{Duration, Instant};

use phalanx_proto::fault::Fault;
use phalanx_proto::generate::{Delta, Event, Usage};

use crate::dispatch::Expected;
use crate::dispatch::credit::CreditGuard;
use crate::dispatch::decisions::{Outcome, Recording};
use crate::dispatch::health::Trial;
use crate::dispatch::rates::SECONDS_MIN;
use crate::engine::{Engine, Kind};
use crate::metrics::{EngineLabels, RouterMetrics};

/// Watches the events of one stream go by. Holds the stream's credit, and what it says of its engine's health.
#[derive(Debug)]
pub(crate) struct Meter {
    engine: Arc<Engine>,
    credit: CreditGuard,
    trial: Trial,
    /// None: the stream is a copy that no client sees.
    metrics: Option<RouterMetrics>,
    /// None of such a copy either.
    recording: Option<Recording>,
    received: Instant,
    sent: Instant,
    expected: Expected,
    /// What the engine said of the prompt: all its tokens, and those found in the cache.
    prompt: Option<(u32, u32)>,
    /// Whether the credit for the prompt is given back.
    is_prefilled: bool,
    /// When each choice's latest tokens came.
    latest: Vec<Option<Instant>>,
    /// When the first token came.
    first: Option<Instant>,
    /// Tokens of a foreign engine, as far as its events tell.
    passed: u32,
}

// === impl Meter ===

impl Meter {
    /// A meter for a stream of `engine` that holds `credit`, of a request that was `received` then, is sent now and
    /// is `expected` to be that much work.
    pub(crate) fn new(
        engine: Arc<Engine>,
        credit: CreditGuard,
        trial: Trial,
        (received, expected): (Instant, Expected),
    ) -> Self {
        Self {
            engine,
            credit,
            trial,
            metrics: None,
            recording: None,
            received,
            sent: Instant::now(),
            expected,
            prompt: None,
            is_prefilled: false,
            latest: Vec::new(),
            first: None,
            passed: 0,
        }
    }

    /// The same, counting for operators too, and recording what comes of it.
    pub(crate) fn counting(mut self, metrics: RouterMetrics, recording: Recording) -> Self {
        self.metrics = Some(metrics);
        self.recording = Some(recording);
        self
    }

    /// What was expected of the request.
    pub(crate) const fn expected(&self) -> Expected {
        self.expected
    }

    pub(crate) const fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// The same, for a stream whose client has tokens already.
    pub(crate) const fn resumed(mut self, has_tokens: bool) -> Self {
        if has_tokens {
            self.first = Some(self.sent);
        }
        self
    }

    /// What a first event usually takes for such work; none before that is known.
    pub(crate) fn usual(&self) -> Option<Duration> {
        self.trial.usual()
    }

    /// Learns from `event`, which arrived at `now`.
    pub(crate) fn observe(&mut self, event: &Event, now: Instant) {
        self.engine.stepped();
        self.trial.event(now);
        match event {
            Event::Started { prompt_tokens, cached_tokens, .. } => {
                self.prompt = Some((*prompt_tokens, *cached_tokens));
                self.found_cached((*cached_tokens).into());
            }
            Event::Delta(delta) => self.observe_delta(delta, now),
            Event::Finished { .. } => {}
            Event::Usage(usage) => {
                self.answered();
                self.used(*usage);
            }
        }
    }

    /// The stream broke off.
    pub(crate) fn failed(&mut self, fault: &Fault) {
        self.trial.failed(fault);
        if let Some(recording) = &self.recording {
            recording.ended(Outcome::Failed(fault.code));
        }
    }

    fn answered(&mut self) {
        self.trial.answered();
        if let Some(recording) = &self.recording {
            recording.ended(Outcome::Answered);
        }
    }

    fn found_cached(&self, tokens: u64) {
        self.engine.holding().settle(self.expected.cached_tokens, tokens);
        if let Some(recording) = &self.recording {
            recording.cached(tokens);
        }
    }

    fn observe_delta(&mut self, delta: &Delta, now: Instant) {
        self.note_first(now);
        if !self.is_prefilled {
            self.is_prefilled = true;
            self.prefilled(now);
            if let Some((prompt_tokens, cached_tokens)) = self.prompt {
                self.learn_prefill(prompt_tokens.saturating_sub(cached_tokens), now);
            }
        }
        let tokens = u32::try_from(delta.token_ids.len()).unwrap_or(u32::MAX);
        self.credit.decoded(tokens.into());
        // Choices are bounded by the API; a peer that numbers them past the bound teaches nothing.
        let choice = delta.choice as usize;
        if tokens == 0 || choice >= phalanx_proto::generate::CHOICES_MAX as usize {
            return;
        }
        self.observe_step(choice, tokens, now);
    }

    /// A foreign engine sent as many more events, at `now`; a token each, as far as that can be seen.
    pub(crate) fn passed(&mut self, events: u32, now: Instant) {
        self.trial.event(now);
        if self.note_first(now) {
            self.prefilled(now);
        }
        self.passed = self.passed.saturating_add(events);
        self.credit.decoded(events.into());
        // Choices cannot be told apart, and share the time.
        self.observe_step(0, events, now);
    }

    /// A foreign engine's answer is complete at `now`; `usage` is what it says of it.
    pub(crate) fn passed_all(&mut self, usage: Option<Usage>, now: Instant) {
        self.trial.event(now);
        self.answered();
        let Some(usage) = usage else {
            if let Some(metrics) = &self.metrics {
                metrics.generated_tokens.inc_by(self.passed.into());
            }
            return;
        };
        // What the prompt was is known only now; what it took, since the first token.
        if let Some(first) = self.first {
            self.learn_prefill(usage.prompt_tokens.saturating_sub(usage.cached_tokens), first);
        }
        self.found_cached(usage.cached_tokens.into());
        self.used(usage);
    }

    /// The first token came at `first`, with as many tokens of the prompt computed.
    fn learn_prefill(&self, own: u32, first: Instant) {
        let computed = self.expected.ahead_tokens + u64::from(own);
        let seconds = (first - self.sent).as_secs_f64();
        self.engine.learn(|estimate| estimate.observe_prefill(computed, seconds));
    }

    fn used(&self, usage: Usage) {
        let choices = u64::try_from(self.latest.len()).unwrap_or(1).max(1);
        let answer = u64::from(usage.completion_tokens) / choices;
        self.engine.learn(|estimate| estimate.observe_answer(answer));
        let Some(metrics) = &self.metrics else { return };
        metrics.count_tokens(&usage);
        if let Kind::Foreign(foreign) = &self.engine.kind {
            let cost = foreign.price.of(usage);
            if cost > 0.0 {
                let engine = foreign.identity.name.to_string();
                metrics.costs.get_or_create(&EngineLabels { engine }).inc_by(cost);
            }
        }
    }

    /// Notes that a token came; true for the first one.
    fn note_first(&mut self, now: Instant) -> bool {
        if self.first.is_some() {
            return false;
        }
        self.first = Some(now);
        if let Some(metrics) = &self.metrics {
            metrics.first_token.observe((now - self.received).as_secs_f64());
        }
        true
    }

    /// The engine's own first token came, which may be one in the middle of the client's answer.
    fn prefilled(&mut self, now: Instant) {
        self.credit.prefill_done();
        let taken = now - self.sent;
        if let Some(recording) = &self.recording {
            recording.first_token(taken);
        }
        if let Some(metrics) = &self.metrics {
            let (predicted, taken) = (self.expected.terms.first_token(), taken.as_secs_f64());
            metrics.prediction_error.observe((predicted - taken).abs() / taken.max(SECONDS_MIN));
        }
    }

    fn observe_step(&mut self, choice: usize, tokens: u32, now: Instant) {
        if self.latest.len() <= choice {
            self.latest.resize(choice + 1, None);
        }
        if let Some(before) = self.latest[choice].replace(now) {
            let step: Duration = (now - before) / tokens;
            if let Some(metrics) = &self.metrics {
                metrics.inter_token.observe(step.as_secs_f64());
            }
            // A step that computes prompts too says nothing of what sequences take.
            if !self.engine.is_prefilling() {
                let sequences = self.engine.requests();
                self.engine.learn(|estimate| estimate.observe_step(sequences, step.as_secs_f64()));
            }
        }
    }
}
