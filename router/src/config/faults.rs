//! What the router does about engines that fail or are full: sections `[breaker]`, `[retry]` and `[dispatch]`.

use std::time::Duration;

use serde::Deserialize;

use super::Limits;
use crate::dispatch::breaker::BreakerPolicy;
use crate::dispatch::health::HealthPolicy;
use crate::retry::RetryPolicy;

/// Long enough for a dozen requests to a busy engine, short enough to forget a bad minute.
const DEFAULT_WINDOW_MS: u64 = 30_000;
/// Fewer outcomes say little of a share.
const DEFAULT_SAMPLES_MIN: u64 = 10;
const DEFAULT_FAILURE_PERCENT: u64 = 50;
/// So many in a row have a chance of one in 3,000 at an engine that fails one in five.
const DEFAULT_FAILURES_IN_A_ROW: u64 = 5;
/// A process restarts in less.
const DEFAULT_OPEN_MS: u64 = 5_000;
const DEFAULT_OPEN_MS_MAX: u64 = 60_000;
const DEFAULT_PROBES: u64 = 3;
/// Three times slower than its peers is no matter of chance or of load.
const DEFAULT_SLOW_PERCENT: u64 = 300;
/// A fifth more work is what a fleet can bear when much of it fails.
const DEFAULT_RETRY_PERCENT: u64 = 20;
/// With hardly any requests, a share of them would be no retry at all.
const DEFAULT_RETRY_FLOOR: u64 = 10;
/// One request in twenty is late; most of the gain is in the latest ones.
const DEFAULT_HEDGE_PERCENT: u64 = 2;
/// Some minutes of work for a small fleet, and a few MiB of requests.
const DEFAULT_QUEUE_MAX: u64 = 1_024;
const HOUR_MS: u64 = 3_600_000;

/// Section `[breaker]` as the user wrote it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawBreaker {
    /// How long an outcome counts.
    pub breaker_window_ms: Option<u64>,
    /// Fewest outcomes whose share of failures ejects.
    pub breaker_samples_min: Option<u64>,
    /// The share of failures that ejects.
    pub breaker_failure_percent: Option<u64>,
    /// Failures in a row that eject.
    pub breaker_failures_in_a_row: Option<u64>,
    /// How long an engine is out at first.
    pub breaker_open_ms: Option<u64>,
    /// How long it is out at most.
    pub breaker_open_ms_max: Option<u64>,
    /// Requests that probe it.
    pub breaker_probes: Option<u64>,
    /// Time to the first token that ejects, as a share of its peers'; 0: none does.
    pub breaker_slow_percent: Option<u64>,
}

/// Section `[retry]` as the user wrote it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawRetry {
    /// Retries per hundred requests.
    pub retry_budget_percent: Option<u64>,
    /// Retries a second whatever comes.
    pub retry_floor_per_second: Option<u64>,
    /// Whether a second engine is asked when the first is late.
    pub hedge: bool,
    /// Second engines per hundred requests.
    pub hedge_budget_percent: Option<u64>,
}

/// Section `[dispatch]` as the user wrote it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawDispatch {
    /// Most requests that wait for one model while its engines are full.
    pub queue_max: Option<u64>,
    /// Most requests of this router at one engine; 0: as many as it computes at once.
    pub engine_requests_max: Option<u64>,
    /// Of the engines that give a first token within this time the cheapest is taken; 0: the soonest of all.
    pub ttft_target_ms: Option<u64>,
}

/// How many requests wait where, and how soon they are to be answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct DispatchLimits {
    pub(super) queue_max: usize,
    pub(super) engine_requests_max: Option<u64>,
    pub(super) ttft_target: Option<Duration>,
}

// === impl RawBreaker ===

impl RawBreaker {
    pub(super) fn validate(&self, limits: &mut Limits) -> HealthPolicy {
        limits.section = "breaker";
        let mut number = |key, value: Option<u64>, default, min, max| {
            limits.number(key, value.unwrap_or(default), min, max)
        };
        let window =
            number("breaker_window_ms", self.breaker_window_ms, DEFAULT_WINDOW_MS, 100, 600_000);
        let samples =
            number("breaker_samples_min", self.breaker_samples_min, DEFAULT_SAMPLES_MIN, 1, 128);
        let percent = self.breaker_failure_percent;
        let percent = number("breaker_failure_percent", percent, DEFAULT_FAILURE_PERCENT, 1, 100);
        let in_a_row = self.breaker_failures_in_a_row;
        let in_a_row =
            number("breaker_failures_in_a_row", in_a_row, DEFAULT_FAILURES_IN_A_ROW, 1, 1_000);
        let open_max = self.breaker_open_ms_max;
        let open_max = number("breaker_open_ms_max", open_max, DEFAULT_OPEN_MS_MAX, 1, HOUR_MS);
        let open = DEFAULT_OPEN_MS.min(open_max);
        let open = number("breaker_open_ms", self.breaker_open_ms, open, 1, open_max);
        let probes = number("breaker_probes", self.breaker_probes, DEFAULT_PROBES, 1, 100);
        let slow = self.breaker_slow_percent;
        let slow = number("breaker_slow_percent", slow, DEFAULT_SLOW_PERCENT, 0, 100_000);
        if (1..=100).contains(&slow) {
            let expected = "0, or above 100".to_owned();
            limits.refuse("breaker_slow_percent", slow.to_string(), expected);
        }
        let breaker = BreakerPolicy {
            window: Duration::from_millis(window),
            samples_min: count(samples),
            failure_share: share(percent),
            failures_in_a_row: count(in_a_row),
            open_first: Duration::from_millis(open),
            open_max: Duration::from_millis(open_max),
            probes: count(probes),
        };
        HealthPolicy { breaker, slow_ratio: (slow > 0).then(|| share(slow)) }
    }
}

// === impl RawRetry ===

impl RawRetry {
    pub(super) fn validate(&self, limits: &mut Limits) -> RetryPolicy {
        limits.section = "retry";
        let mut number = |key, value: Option<u64>, default, min, max| {
            limits.number(key, value.unwrap_or(default), min, max)
        };
        let percent = self.retry_budget_percent;
        let percent = number("retry_budget_percent", percent, DEFAULT_RETRY_PERCENT, 0, 100);
        let floor = self.retry_floor_per_second;
        let floor = number("retry_floor_per_second", floor, DEFAULT_RETRY_FLOOR, 0, 10_000);
        let hedge = self.hedge_budget_percent;
        let hedge = number("hedge_budget_percent", hedge, DEFAULT_HEDGE_PERCENT, 1, 100);
        RetryPolicy {
            share: share(percent),
            floor_per_second: f64::from(count(floor)),
            hedge_share: self.hedge.then(|| share(hedge)),
        }
    }
}

// === impl RawDispatch ===

impl RawDispatch {
    pub(super) fn validate(&self, limits: &mut Limits) -> DispatchLimits {
        limits.section = "dispatch";
        let queue_max = self.queue_max.unwrap_or(DEFAULT_QUEUE_MAX);
        let queue_max = limits.number("queue_max", queue_max, 0, 1 << 20);
        let engine_max = self.engine_requests_max.unwrap_or(0);
        let engine_max = limits.number("engine_requests_max", engine_max, 0, 1 << 20);
        let target = self.ttft_target_ms.unwrap_or(0);
        let target = limits.number("ttft_target_ms", target, 0, HOUR_MS);
        DispatchLimits {
            queue_max: usize::try_from(queue_max).unwrap_or(usize::MAX),
            engine_requests_max: (engine_max > 0).then_some(engine_max),
            ttft_target: (target > 0).then(|| Duration::from_millis(target)),
        }
    }
}

/// A number that was checked to be far below 2^32.
fn count(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn share(percent: u64) -> f64 {
    f64::from(count(percent)) / 100.0
}
