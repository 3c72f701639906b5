//! What one stream teaches: metrics for operators, rates for the cost model, credit given back as work is done.

use std::sync::Arc;
use std::time::{Duration, Instant};

use phalanx_proto::fault::Fault;
use phalanx_proto::generate::{Delta, Event};

use crate::dispatch::credit::CreditGuard;
use crate::dispatch::health::Trial;
use crate::engine::Engine;
use crate::metrics::RouterMetrics;

/// Watches the events of one stream go by. Holds the stream's credit, and what it says of its engine's health.
#[derive(Debug)]
pub(crate) struct Meter {
    engine: Arc<Engine>,
    credit: CreditGuard,
    trial: Trial,
    metrics: RouterMetrics,
    received: Instant,
    sent: Instant,
    /// Whether the prompt had the engine's prefill to itself, so that its time says how fast that is.
    alone: bool,
    /// When each choice's latest tokens came.
    latest: Vec<Option<Instant>>,
    first_token_seen: bool,
}

// === impl Meter ===

impl Meter {
    /// A meter for a stream of `engine` that holds `credit`.
    pub(crate) fn new(
        engine: Arc<Engine>,
        credit: CreditGuard,
        trial: Trial,
        metrics: RouterMetrics,
    ) -> Self {
        let now = Instant::now();
        Self {
            engine,
            credit,
            trial,
            metrics,
            received: now,
            sent: now,
            alone: false,
            latest: Vec::new(),
            first_token_seen: false,
        }
    }

    /// The same, for a request that was `received` and `sent` at these times.
    pub(crate) fn timed(mut self, received: Instant, sent: Instant, alone: bool) -> Self {
        (self.received, self.sent, self.alone) = (received, sent, alone);
        self
    }

    pub(crate) const fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// The same, for a stream whose client has tokens already.
    pub(crate) const fn resumed(mut self, has_tokens: bool) -> Self {
        self.first_token_seen = has_tokens;
        self
    }

    /// Learns from `event`, which arrived at `now`.
    pub(crate) fn observe(&mut self, event: &Event, now: Instant) {
        self.engine.stepped();
        self.trial.event(now);
        match event {
            Event::Started { prompt_tokens, cached_tokens, .. } => {
                self.credit.prefill_done();
                if self.alone {
                    let computed = prompt_tokens.saturating_sub(*cached_tokens);
                    let seconds = (now - self.sent).as_secs_f64();
                    self.engine.learn(|estimate| estimate.observe_prefill(computed, seconds));
                }
            }
            Event::Delta(delta) => self.observe_delta(delta, now),
            Event::Finished { .. } => {}
            Event::Usage(usage) => {
                self.trial.answered();
                self.metrics.count_tokens(usage);
            }
        }
    }

    /// The stream broke off.
    pub(crate) fn failed(&mut self, fault: &Fault) {
        self.trial.failed(fault);
    }

    fn observe_delta(&mut self, delta: &Delta, now: Instant) {
        if !self.first_token_seen {
            self.first_token_seen = true;
            self.metrics.first_token.observe((now - self.received).as_secs_f64());
        }
        let tokens = u32::try_from(delta.token_ids.len()).unwrap_or(u32::MAX);
        self.credit.decoded(tokens.into());
        // Choices are bounded by the API; a peer that numbers them past the bound teaches nothing.
        let choice = delta.choice as usize;
        if tokens == 0 || choice >= phalanx_proto::generate::CHOICES_MAX as usize {
            return;
        }
        if self.latest.len() <= choice {
            self.latest.resize(choice + 1, None);
        }
        let before = self.latest[choice].replace(now);
        if let Some(before) = before {
            let step: Duration = (now - before) / tokens;
            self.metrics.inter_token.observe(step.as_secs_f64());
            self.engine.learn(|estimate| estimate.observe_step(step.as_secs_f64()));
        }
    }
}
