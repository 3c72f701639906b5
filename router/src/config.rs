//! The router's settings: raw as the user wrote them, then validated once.

mod faults;
pub(crate) mod foreign;

use std::time::Duration;

use serde::Deserialize;

use self::faults::DispatchLimits;
pub use self::faults::{RawBreaker, RawDispatch, RawRetry};
use self::foreign::ForeignConfig;

use crate::dispatch::health::HealthPolicy;
use crate::engine::Surroundings;
use crate::retry::RetryPolicy;

/// Where clients connect by default: this machine alone, so that nothing is exposed unasked.
const DEFAULT_LISTEN: &str = "127.0.0.1:8080";
/// A prompt of a million tokens is about 4 MB of JSON; twice that leaves room for escapes.
const DEFAULT_BODY_BYTES_MAX: u64 = 8 << 20;
/// Requests in progress at once. Each holds some 20 KiB, so all of them stay under 200 MiB.
const DEFAULT_CONCURRENCY_MAX: u64 = 8_192;
/// Open client connections: twice the requests, as most of them idle.
const DEFAULT_CONNECTIONS_MAX: u64 = 16_384;
/// The official client's own default.
const DEFAULT_REQUEST_TIMEOUT_MS: u64 = 600_000;
/// The longest answers on slow hardware take less.
const DEFAULT_REQUEST_TIMEOUT_MS_MAX: u64 = 3_600_000;
/// Orchestrators commonly wait longer than this before they kill.
const DEFAULT_DRAIN_TIMEOUT_MS: u64 = 120_000;

/// Section `[router]` as the user wrote it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawRouter {
    /// HOST:PORT to serve clients on; port 0 takes a free one.
    pub listen: Option<String>,
    /// Largest request body, in bytes.
    pub body_bytes_max: Option<u64>,
    /// Most requests in progress at once.
    pub concurrency_max: Option<u64>,
    /// Most open client connections.
    pub connections_max: Option<u64>,
    /// How long a request may take when the client does not say.
    pub request_timeout_ms: Option<u64>,
    /// The longest time a client may ask for.
    pub request_timeout_ms_max: Option<u64>,
    /// How long live streams may go on once the process drains.
    pub drain_timeout_ms: Option<u64>,
    /// Section `[breaker]`.
    pub breaker: RawBreaker,
    /// Section `[retry]`.
    pub retry: RawRetry,
    /// Section `[dispatch]`.
    pub dispatch: RawDispatch,
    /// Servers that speak OpenAI's API: `NAME=URL,model=..,key_env=..,price_in=..,price_out=..`.
    pub engine: Vec<String>,
}

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{section}.{key}: {value} is not allowed, must be {expected}")]
pub struct ConfigError {
    /// The section of the file.
    pub section: &'static str,
    /// The key within the section.
    pub key: &'static str,
    /// What was given.
    pub value: String,
    /// What is allowed.
    pub expected: String,
}

/// The router's limits. To hold one is to know it is valid.
#[derive(Clone, Debug)]
pub struct RouterConfig {
    listen: String,
    body_bytes_max: usize,
    concurrency_max: usize,
    connections_max: usize,
    request_timeout: Duration,
    request_timeout_max: Duration,
    drain_timeout: Duration,
    health: HealthPolicy,
    retry: RetryPolicy,
    dispatch: DispatchLimits,
    engines: Vec<ForeignConfig>,
}

/// Collects every setting that is out of its limits.
struct Limits {
    section: &'static str,
    errors: Vec<ConfigError>,
}

// === impl RouterConfig ===

impl RouterConfig {
    /// HOST:PORT to serve clients on.
    pub fn listen(&self) -> &str {
        &self.listen
    }

    pub(crate) const fn body_bytes_max(&self) -> usize {
        self.body_bytes_max
    }

    pub(crate) const fn concurrency_max(&self) -> usize {
        self.concurrency_max
    }

    pub(crate) const fn connections_max(&self) -> usize {
        self.connections_max
    }

    pub(crate) const fn drain_timeout(&self) -> Duration {
        self.drain_timeout
    }

    pub(crate) const fn health(&self) -> HealthPolicy {
        self.health
    }

    pub(crate) const fn queue_max(&self) -> usize {
        self.dispatch.queue_max
    }

    pub(crate) const fn ttft_target(&self) -> Option<Duration> {
        self.dispatch.ttft_target
    }

    /// What engines find around them.
    pub(crate) fn surroundings(&self) -> Surroundings {
        let requests_max = self.dispatch.engine_requests_max;
        Surroundings { policy: self.health, requests_max, ..Surroundings::default() }
    }

    pub(crate) const fn retry(&self) -> RetryPolicy {
        self.retry
    }

    pub(crate) fn engines(&self) -> &[ForeignConfig] {
        &self.engines
    }

    /// How long a request may take, given what its client asked for.
    pub(crate) fn request_timeout(&self, asked: Option<Duration>) -> Duration {
        asked.unwrap_or(self.request_timeout).min(self.request_timeout_max)
    }
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self::try_from(RawRouter::default()).expect("the defaults are valid, as a test shows")
    }
}

impl TryFrom<RawRouter> for RouterConfig {
    type Error = Vec<ConfigError>;

    fn try_from(raw: RawRouter) -> Result<Self, Vec<ConfigError>> {
        let mut limits = Limits { section: "router", errors: Vec::new() };
        let mut number = |key, value: Option<u64>, default, min, max| {
            limits.number(key, value.unwrap_or(default), min, max)
        };
        let body_bytes = number(
            "body_bytes_max",
            raw.body_bytes_max,
            DEFAULT_BODY_BYTES_MAX,
            1 << 10,
            DEFAULT_BODY_BYTES_MAX, // gRPC messages to workers are bounded by twice this
        );
        let concurrency =
            number("concurrency_max", raw.concurrency_max, DEFAULT_CONCURRENCY_MAX, 1, 1 << 20);
        let connections =
            number("connections_max", raw.connections_max, DEFAULT_CONNECTIONS_MAX, 1, 1 << 20);
        let hour = DEFAULT_REQUEST_TIMEOUT_MS_MAX;
        let timeout_max =
            number("request_timeout_ms_max", raw.request_timeout_ms_max, hour, 1, 24 * hour);
        let timeout = number(
            "request_timeout_ms",
            raw.request_timeout_ms,
            DEFAULT_REQUEST_TIMEOUT_MS.min(timeout_max),
            1,
            timeout_max,
        );
        let drain =
            number("drain_timeout_ms", raw.drain_timeout_ms, DEFAULT_DRAIN_TIMEOUT_MS, 0, hour);
        let listen = raw.listen.unwrap_or_else(|| DEFAULT_LISTEN.to_owned());
        let port = listen.rsplit_once(':').filter(|(host, _)| !host.is_empty());
        if port.is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
            limits.refuse("listen", listen.clone(), "HOST:PORT".to_owned());
        }
        let engines = foreign::engines(raw.engine, &mut limits);
        let health = raw.breaker.validate(&mut limits);
        let retry = raw.retry.validate(&mut limits);
        let dispatch = raw.dispatch.validate(&mut limits);
        if !limits.errors.is_empty() {
            return Err(limits.errors);
        }
        // All numbers are far below 2^32, as checked above.
        let count = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        Ok(Self {
            listen,
            body_bytes_max: count(body_bytes),
            concurrency_max: count(concurrency),
            connections_max: count(connections),
            request_timeout: Duration::from_millis(timeout),
            request_timeout_max: Duration::from_millis(timeout_max),
            drain_timeout: Duration::from_millis(drain),
            health,
            retry,
            dispatch,
            engines,
        })
    }
}

// === impl Limits ===

impl Limits {
    /// `value`, which must lie between `min` and `max`.
    fn number(&mut self, key: &'static str, value: u64, min: u64, max: u64) -> u64 {
        if !(min..=max).contains(&value) {
            self.refuse(key, value.to_string(), format!("between {min} and {max}"));
        }
        value
    }

    fn refuse(&mut self, key: &'static str, value: String, expected: String) {
        self.errors.push(ConfigError { section: self.section, key, value, expected });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_the_clients_timeout_is_capped() {
        let config = RouterConfig::default();
        let day = Duration::from_secs(86_400);
        assert_eq!(config.request_timeout(None), Duration::from_secs(600));
        assert_eq!(config.request_timeout(Some(day)), Duration::from_secs(3_600));
    }

    #[test]
    fn every_bad_setting_is_reported_at_once() {
        let raw = RawRouter {
            listen: Some("nowhere".to_owned()),
            concurrency_max: Some(0),
            request_timeout_ms: Some(10),
            request_timeout_ms_max: Some(5),
            ..RawRouter::default()
        };
        let errors = RouterConfig::try_from(raw).unwrap_err();
        let keys: Vec<_> = errors.iter().map(|error| error.key).collect();
        assert_eq!(keys, ["concurrency_max", "request_timeout_ms", "listen"]);
        let text = errors[0].to_string();
        assert_eq!(text, "router.concurrency_max: 0 is not allowed, must be between 1 and 1048576");
    }
}
