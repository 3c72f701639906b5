//! What operators see of the router.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use phalanx_chassis::metrics::Metrics;
use phalanx_proto::generate::Usage;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::dispatch::breaker::BreakerState;
use crate::dispatch::fleet::Fleet;
use crate::engine::Kinds;

/// A request's labels. Models are known names or `unknown`, so that clients cannot make series.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    pub(crate) model: String,
    pub(crate) code: u16,
}

/// Which foreign engine, by its name in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct EngineLabels {
    pub(crate) engine: String,
}

/// What became of a shadow request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ShadowLabels {
    pub(crate) result: &'static str,
}

/// What became of the second engine of a hedged request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct HedgeLabels {
    pub(crate) result: &'static str,
}

/// Why a request was not let into the queue, or was put out of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RefusalLabels {
    pub(crate) reason: &'static str,
}

/// An engine's labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WorkerLabels {
    worker: String,
}

/// Handles to the router's metrics. Cheap to clone, as every layer does for every request.
#[derive(Clone, Debug)]
pub(crate) struct RouterMetrics(Arc<Instruments>);

/// What is measured.
#[derive(Clone, Debug)]
pub(crate) struct Instruments {
    pub(crate) requests: Family<RequestLabels, Counter>,
    pub(crate) request_duration: Histogram,
    pub(crate) first_token: Histogram,
    pub(crate) inter_token: Histogram,
    pub(crate) overhead: Histogram,
    pub(crate) prediction_error: Histogram,
    pub(crate) prompt_tokens: Counter,
    pub(crate) cached_tokens: Counter,
    pub(crate) generated_tokens: Counter,
    pub(crate) queue_depth: Gauge,
    pub(crate) queue_wait: Histogram,
    pub(crate) queue_refusals: Family<RefusalLabels, Counter>,
    pub(crate) retries: Counter,
    pub(crate) retries_refused: Counter,
    pub(crate) hedges: Family<HedgeLabels, Counter>,
    pub(crate) migrations: Counter,
    pub(crate) migration_gap: Histogram,
    pub(crate) shadows: Family<ShadowLabels, Counter>,
    /// Money, for engines that have a price.
    pub(crate) costs: Family<EngineLabels, Counter<f64, AtomicU64>>,
    pub(crate) inflight: Gauge,
}

/// Counts something in progress for as long as it lives.
#[derive(Debug)]
pub(crate) struct GaugeGuard(Gauge);

/// Reads the fleet when scraped.
#[derive(Debug)]
struct FleetGauges(Arc<ArcSwap<Fleet>>);

/// Reads how old the view is when scraped.
struct Staleness<F>(F);

// === impl RouterMetrics ===

impl RouterMetrics {
    /// Registers everything; gauges of `fleet` are read at each scrape.
    pub(crate) fn new(metrics: &Metrics, fleet: Arc<ArcSwap<Fleet>>) -> Self {
        let instruments = Instruments::default();
        let all = instruments.clone();
        metrics.register(|registry| {
            registry.register("requests", "Requests answered, by model and status", all.requests);
            let mut seconds = |name: &str, help: &str, histogram: Histogram| {
                registry.register_with_unit(name, help, Unit::Seconds, histogram);
            };
            seconds(
                "request_duration",
                "From a request's head to its answer's end",
                all.request_duration,
            );
            seconds(
                "time_to_first_token",
                "From a request's body to its first token",
                all.first_token,
            );
            seconds(
                "migration_gap",
                "From a stream's last event of one worker to its first of another",
                all.migration_gap,
            );
            seconds("inter_token", "Between tokens of one choice", all.inter_token);
            seconds("router_overhead", "From a request's body to its dispatch", all.overhead);
            registry.register(
                "prediction_error_ratio",
                "How far the predicted time to a first token was off, by what it took",
                all.prediction_error,
            );
            registry.register("prompt_tokens", "Tokens of prompts", all.prompt_tokens);
            registry.register(
                "cached_tokens",
                "Tokens of prompts found in a prefix cache",
                all.cached_tokens,
            );
            registry.register("generated_tokens", "Tokens generated", all.generated_tokens);
            registry.register("migrations", "Streams gone on at another worker", all.migrations);
            instruments.register_attempts(registry);
            registry.register(
                "shadow_requests",
                "Copies of requests for the shadows of aliases, by what became of them",
                all.shadows,
            );
            registry.register(
                "engine_cost",
                "Money for what foreign engines used, by their prices",
                all.costs,
            );
            registry.register("inflight_requests", "Requests in progress", all.inflight);
            registry.register_collector(Box::new(FleetGauges(fleet)));
        });
        Self(Arc::new(instruments))
    }

    /// Counts the tokens of a request that was answered.
    pub(crate) fn count_tokens(&self, usage: &Usage) {
        self.prompt_tokens.inc_by(usage.prompt_tokens.into());
        self.cached_tokens.inc_by(usage.cached_tokens.into());
        self.generated_tokens.inc_by(usage.completion_tokens.into());
    }

    /// Counts one more request in progress until the guard is dropped.
    pub(crate) fn enter(&self) -> GaugeGuard {
        self.inflight.inc();
        GaugeGuard(self.inflight.clone())
    }
}

impl Deref for RouterMetrics {
    type Target = Instruments;

    fn deref(&self) -> &Instruments {
        &self.0
    }
}

// === impl Instruments ===

impl Instruments {
    fn register_attempts(&self, registry: &mut Registry) {
        registry.register(
            "retries",
            "Attempts after the first, before any token",
            self.retries.clone(),
        );
        registry.register(
            "retries_refused",
            "Attempts that were not made because the budget was spent",
            self.retries_refused.clone(),
        );
        registry.register(
            "hedges",
            "Late requests, by what became of a second engine",
            self.hedges.clone(),
        );
        registry.register(
            "queue_depth",
            "Requests that wait because every engine of their model is full",
            self.queue_depth.clone(),
        );
        registry.register_with_unit(
            "queue_wait",
            "What requests waited that had to",
            Unit::Seconds,
            self.queue_wait.clone(),
        );
        registry.register(
            "queue_refusals",
            "Requests that were not to wait, by why",
            self.queue_refusals.clone(),
        );
    }
}

impl Default for Instruments {
    fn default() -> Self {
        // 1 ms to 65 s for requests and first tokens; 100 us to 6.5 s between tokens; 5 us to 40 ms of our own;
        // predictions off by 1% up to 80 times.
        Self {
            requests: Family::default(),
            request_duration: Histogram::new(exponential_buckets(0.001, 2.0, 17)),
            first_token: Histogram::new(exponential_buckets(0.001, 2.0, 17)),
            inter_token: Histogram::new(exponential_buckets(0.000_1, 2.0, 17)),
            overhead: Histogram::new(exponential_buckets(0.000_005, 2.0, 14)),
            prediction_error: Histogram::new(exponential_buckets(0.01, 2.0, 14)),
            prompt_tokens: Counter::default(),
            cached_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            queue_depth: Gauge::default(),
            queue_wait: Histogram::new(exponential_buckets(0.001, 2.0, 17)),
            queue_refusals: Family::default(),
            retries: Counter::default(),
            retries_refused: Counter::default(),
            hedges: Family::default(),
            migrations: Counter::default(),
            migration_gap: Histogram::new(exponential_buckets(0.001, 2.0, 17)),
            shadows: Family::default(),
            costs: Family::default(),
            inflight: Gauge::default(),
        }
    }
}

/// Registers `phalanx_control_staleness_seconds`, read from `staleness` at each scrape.
pub(crate) fn register_staleness<F>(metrics: &Metrics, staleness: F)
where
    F: Fn() -> Duration + Send + Sync + 'static,
{
    metrics.register(|registry| registry.register_collector(Box::new(Staleness(staleness))));
}

// === impl GaugeGuard ===

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

// === impl FleetGauges ===

impl Collector for FleetGauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let fleet = self.0.load();
        let (foreign, native): (Vec<_>, Vec<_>) =
            fleet.engines().partition(|engine| engine.is_among(Kinds::FOREIGN));
        let up = native.iter().filter(|engine| engine.is_up()).count();
        let heard = native.iter().filter(|engine| engine.is_heard()).count();
        let foreign_up = foreign.iter().filter(|engine| engine.is_up()).count();
        let dispatched = fleet.engines().map(|engine| engine.requests()).sum();
        let gauges = [
            ("workers_up", "Workers connected, heard and taking work", heard as u64),
            ("workers_silent", "Workers connected that fell silent", (up - heard) as u64),
            ("foreign_engines_up", "Foreign engines that answer", foreign_up as u64),
            ("dispatched_requests", "Generations in progress at workers", dispatched),
            ("prefix_index_bytes", "What the prefix index takes", fleet.index().bytes() as u64),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        encode_breakers(&fleet, &mut encoder)
    }
}

/// One series for each engine there is, so that they go with it.
fn encode_breakers(fleet: &Fleet, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
    let help = "Whether an engine is sent requests: 0 as ever, 1 to probe it, 2 not at all";
    let now = Instant::now();
    let mut states = encoder.encode_descriptor("breaker_state", help, None, MetricType::Gauge)?;
    for engine in fleet.engines() {
        let labels = WorkerLabels { worker: engine.identity.name.to_string() };
        let state = ConstGauge::new(match engine.health.state(now) {
            BreakerState::Closed => 0i64,
            BreakerState::HalfOpen => 1,
            BreakerState::Open => 2,
        });
        state.encode(states.encode_family(&labels)?)?;
    }
    Ok(())
}

// === impl Staleness ===

impl<F> fmt::Debug for Staleness<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Staleness")
    }
}

impl<F> Collector for Staleness<F>
where
    F: Fn() -> Duration + Send + Sync + 'static,
{
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let gauge = ConstGauge::new((self.0)().as_secs_f64());
        let (name, help) = ("control_staleness", "Since the control plane was last heard of");
        gauge.encode(encoder.encode_descriptor(
            name,
            help,
            Some(&Unit::Seconds),
            gauge.metric_type(),
        )?)
    }
}
