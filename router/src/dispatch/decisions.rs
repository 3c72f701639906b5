//! Which engines lately came into question, which was chosen, and what came of it: what operators ask for when a
//! request was slow.
//!
//! ```text
//! sent ──► Decision ──► ring of the latest ◄── GET /admin/decisions/{request_id}
//!              ▲
//!          Recording ◄── first token, cached tokens, end      (held by the meter)
//! ```
//! One decision for each engine that a request is sent to: those of a retry, of a second engine beside a late one and
//! of a migrated stream go by the same id. No clock, no I/O.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use phalanx_proto::fault::FaultCode;
use phalanx_proto::id::{MemberId, ModelName, RequestId};
use xxhash_rust::xxh3::xxh3_64;

use super::Expected;
use super::cost::Terms;
use crate::engine::Identity;

/// Decisions that are remembered: some seconds of a busy router, hours of a quiet one, at most 6 MiB.
const DECISIONS_MAX: usize = 4096;
/// Candidates that are remembered of each: the others cost more.
pub(crate) const CANDIDATES_SHOWN_MAX: usize = 16;

/// The latest decisions.
#[derive(Debug, Default)]
pub(crate) struct Decisions {
    /// The oldest first, each behind the hash of its request's id.
    latest: Mutex<VecDeque<(u64, Arc<Decision>)>>,
}

/// Where one request was sent, and why.
#[derive(Debug)]
pub(crate) struct Decision {
    pub(crate) request_id: RequestId,
    pub(crate) at: SystemTime,
    /// What the request calls the model at the engine.
    pub(crate) model: ModelName,
    pub(crate) considered: Considered,
    pub(crate) engine: Identity,
    pub(crate) expected: Expected,
    actual: Mutex<Actual>,
}

/// The engines that came into question.
#[derive(Clone, Debug, Default)]
pub(crate) struct Considered {
    /// The one that was chosen and the cheapest others, [`CANDIDATES_SHOWN_MAX`] at most.
    pub(crate) candidates: Vec<Candidate>,
    /// How many there were.
    pub(crate) count: usize,
}

/// An engine that came into question.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) engine: MemberId,
    pub(crate) terms: Terms,
    /// Prompt tokens predicted to be in its cache, and how far that was believed.
    pub(crate) cached_tokens: u64,
    pub(crate) confidence: f64,
    /// What the request would be charged there.
    pub(crate) money: f64,
}

/// What came of a decision, as far as is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Actual {
    /// From sending the request to its first token.
    pub(crate) first_token: Option<Duration>,
    pub(crate) cached_tokens: Option<u64>,
    pub(crate) outcome: Outcome,
}

/// How a request ended at one engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Outcome {
    #[default]
    InProgress,
    Answered,
    Failed(FaultCode),
    /// Given up: its client left, its time was up, or another engine was heard first.
    Cancelled,
}

/// Fills in what comes of a decision.
#[derive(Debug)]
pub(crate) struct Recording(Arc<Decision>);

// === impl Decisions ===

impl Decisions {
    /// Remembers `decision` in place of the oldest one.
    pub(crate) fn record(&self, decision: Decision) -> Recording {
        let key = key(&decision.request_id);
        let decision = Arc::new(decision);
        let mut latest = self.latest.lock();
        let oldest = if latest.len() < DECISIONS_MAX { None } else { latest.pop_front() };
        latest.push_back((key, Arc::clone(&decision)));
        drop(latest);
        // It is freed outside of the lock.
        drop(oldest);
        Recording(decision)
    }

    /// What was decided for a request, the earliest first; nothing if that is forgotten.
    pub(crate) fn of(&self, id: &RequestId) -> Vec<Arc<Decision>> {
        let key = key(id);
        let latest = self.latest.lock();
        let found =
            latest.iter().filter(|(other, decision)| *other == key && decision.request_id == *id);
        found.map(|(_, decision)| Arc::clone(decision)).collect()
    }
}

fn key(id: &RequestId) -> u64 {
    xxh3_64(id.as_str().as_bytes())
}

/// The `most` cheapest of `prices`, the cheapest first; `pick` is one of them in any case.
pub(crate) fn cheapest(prices: &[Terms], most: usize, pick: usize) -> Vec<usize> {
    let mut kept: Vec<(f64, usize)> = Vec::with_capacity(most.min(prices.len()) + 1);
    for (index, terms) in prices.iter().enumerate() {
        let seconds = terms.seconds();
        if kept.len() < most || kept.last().is_some_and(|(worst, _)| seconds < *worst) {
            let at = kept.partition_point(|(other, _)| *other <= seconds);
            kept.insert(at, (seconds, index));
            kept.truncate(most);
        }
    }
    let mut indices: Vec<usize> = kept.into_iter().map(|(_, index)| index).collect();
    if !indices.contains(&pick) {
        indices.pop();
        indices.push(pick);
    }
    indices
}

// === impl Decision ===

impl Decision {
    /// `request_id` is sent to `engine` at `at`.
    pub(crate) fn new(
        (request_id, at): (RequestId, SystemTime),
        (engine, model): (Identity, ModelName),
        considered: Considered,
        expected: Expected,
    ) -> Self {
        let actual = Mutex::default();
        Self { request_id, at, model, considered, engine, expected, actual }
    }

    /// What came of it so far.
    pub(crate) fn actual(&self) -> Actual {
        *self.actual.lock()
    }
}

// === impl Recording ===

impl Recording {
    /// The first token came this long after the request was sent.
    pub(crate) fn first_token(&self, after: Duration) {
        self.0.actual.lock().first_token = Some(after);
    }

    /// So many tokens of the prompt were in the cache.
    pub(crate) fn cached(&self, tokens: u64) {
        self.0.actual.lock().cached_tokens = Some(tokens);
    }

    /// It ended, if it had not yet.
    pub(crate) fn ended(&self, outcome: Outcome) {
        let mut actual = self.0.actual.lock();
        if actual.outcome == Outcome::InProgress {
            actual.outcome = outcome;
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.ended(Outcome::Cancelled);
    }
}

// === impl Outcome ===

impl Outcome {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Answered => "answered",
            Self::Failed(_) => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Why it failed, if it did.
    pub(crate) const fn fault(self) -> Option<FaultCode> {
        match self {
            Self::Failed(code) => Some(code),
            Self::InProgress | Self::Answered | Self::Cancelled => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decision(id: &str, engine: u64) -> Decision {
        let (engine, model) = (Identity::of_member(MemberId(engine)), "demo".into());
        let (at, expected) = (SystemTime::UNIX_EPOCH, Expected::default());
        Decision::new((id.into(), at), (engine, model), Considered::default(), expected)
    }

    fn engines(decisions: &Decisions, id: &str) -> Vec<u64> {
        decisions.of(&id.into()).iter().map(|decision| decision.engine.id.0).collect()
    }

    #[test]
    fn the_oldest_is_forgotten_and_never_more_are_kept() {
        let decisions = Decisions::default();
        for request in 0..DECISIONS_MAX + 10 {
            decisions.record(decision(&request.to_string(), 1));
        }
        assert_eq!(decisions.latest.lock().len(), DECISIONS_MAX);
        assert!(engines(&decisions, "9").is_empty());
        assert_eq!(engines(&decisions, "10"), [1]);
        assert_eq!(engines(&decisions, &(DECISIONS_MAX + 9).to_string()), [1]);
        assert!(engines(&decisions, "never").is_empty());
    }

    #[test]
    fn attempts_are_in_order_and_apart_from_other_requests() {
        let decisions = Decisions::default();
        for (id, engine) in [("a", 3), ("b", 1), ("a", 1), ("b", 2), ("a", 2)] {
            decisions.record(decision(id, engine));
        }
        assert_eq!(engines(&decisions, "a"), [3, 1, 2]);
        assert_eq!(engines(&decisions, "b"), [1, 2]);
    }

    #[test]
    fn what_comes_of_it_is_filled_in_and_its_first_end_stays() {
        let decisions = Decisions::default();
        let recording = decisions.record(decision("a", 1));
        let actual = || decisions.of(&"a".into())[0].actual();
        assert_eq!(actual(), Actual::default());
        recording.cached(7);
        recording.first_token(Duration::from_millis(20));
        recording.ended(Outcome::Failed(FaultCode::Unavailable));
        recording.ended(Outcome::Answered);
        drop(recording);
        let outcome = Outcome::Failed(FaultCode::Unavailable);
        let first_token = Some(Duration::from_millis(20));
        assert_eq!(actual(), Actual { first_token, cached_tokens: Some(7), outcome });
    }

    #[test]
    fn what_is_dropped_before_its_end_was_cancelled() {
        let decisions = Decisions::default();
        drop(decisions.record(decision("a", 1)));
        assert_eq!(decisions.of(&"a".into())[0].actual().outcome, Outcome::Cancelled);
    }

    proptest! {
        #[test]
        fn the_cheapest_are_those_that_sorting_finds_and_the_pick(
            costs in prop::collection::vec(0u32..20, 1..60), most in 1usize..20, pick in any::<prop::sample::Index>(),
        ) {
            let prices: Vec<_> = costs.iter()
                .map(|&wait| Terms { wait: wait.into(), ..Terms::default() })
                .collect();
            let mut sorted: Vec<_> = (0..costs.len()).collect();
            sorted.sort_by_key(|&index| costs[index]);
            sorted.truncate(most);
            let pick = pick.index(costs.len());
            if !sorted.contains(&pick) {
                sorted.pop();
                sorted.push(pick);
            }
            prop_assert_eq!(cheapest(&prices, most, pick), sorted);
        }
    }
}
