//! How soon engines answer with their first event, compared with their peers: finds the one that answers, but far
//! too slowly. Pure.
//!
//! ```text
//! engine: sent ──► waiting ──► first event ──► recent times, typical time per class
//! fleet:  typical times of all engines of a model ──► Usual ──► each engine's slowness ──► ejected above 3
//! ```
//! Times are compared within classes of like work (prompt tokens to compute before the first event, by powers of two),
//! so a long prompt is not taken for a slow engine. A request that still waits counts too, once it is overdue: an
//! engine ten times slower would else be found ten times later.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Powers of two of prompt tokens; the last holds all longer ones.
const CLASSES: usize = 22;
/// The newest times that an engine is judged by.
const RECENT_MAX: usize = 8;
/// Fewer times than this are no evidence.
const EVIDENCE_MIN: usize = 5;
/// Older times say nothing of the engine as it is now.
const RECENT_AGE_MAX: Duration = Duration::from_secs(10);
/// Weight of the newest time in a class' typical one.
const LEARNING_SHARE: f64 = 0.1;
/// Quicker answers count as this: below, the machine's own jitter is many times what it measures.
const SECONDS_MIN: f64 = 0.01;

/// The prompt tokens that an engine computes before a request's first event, by powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WorkClass(usize);

/// A request that waits for its first event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// How soon one engine answers for one model.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    waiting: BTreeMap<u64, (Instant, WorkClass)>,
    tickets: u64,
    recent: VecDeque<(Instant, WorkClass, f64)>,
    typical: Typical,
    usual: Usual,
}

/// What one engine takes, per class: means of the logarithms of seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Typical([Option<f64>; CLASSES]);

/// What is usual for a model among its engines, as logarithms of seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Usual([Option<f64>; CLASSES]);

// === impl WorkClass ===

impl WorkClass {
    pub(crate) fn of(prefill_tokens: u64) -> Self {
        let bits = (u64::BITS - prefill_tokens.leading_zeros()) as usize;
        Self(bits.min(CLASSES - 1))
    }
}

// === impl Pace ===

impl Pace {
    /// A request was sent. The ticket must be handed back to [`Pace::answered`] or [`Pace::given_up`].
    pub(crate) fn sent(&mut self, class: WorkClass, now: Instant) -> Ticket {
        let ticket = self.tickets;
        self.tickets += 1;
        self.waiting.insert(ticket, (now, class));
        Ticket(ticket)
    }

    /// Its first event came; returns how many times longer than usual that took, where that is known.
    pub(crate) fn answered(&mut self, ticket: Ticket, now: Instant) -> Option<f64> {
        let (sent, class) = self.waiting.remove(&ticket.0)?;
        let time = logarithm(now.saturating_duration_since(sent));
        self.note(class, time, now);
        let typical = self.typical.0[class.0].get_or_insert(time);
        *typical += LEARNING_SHARE * (time - *typical);
        self.usual.0[class.0].map(|usual| (time - usual).exp())
    }

    /// It was given up without an event. That it took longer than usual until then is known all the same.
    pub(crate) fn given_up(&mut self, ticket: Ticket, now: Instant) {
        let Some((sent, class)) = self.waiting.remove(&ticket.0) else { return };
        let time = logarithm(now.saturating_duration_since(sent));
        if self.usual.0[class.0].is_some_and(|usual| time > usual) {
            self.note(class, time, now);
        }
    }

    fn note(&mut self, class: WorkClass, time: f64, now: Instant) {
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back((now, class, time));
    }

    /// Begins to judge the engine anew, as after it was ejected.
    pub(crate) fn forget_recent(&mut self) {
        self.recent.clear();
    }

    /// What it takes, to be compared with its peers.
    pub(crate) const fn typical(&self) -> Typical {
        self.typical
    }

    /// What a first event usually takes among the engine's peers.
    pub(crate) fn usual(&self, class: WorkClass) -> Option<Duration> {
        self.usual.0[class.0].map(|time| Duration::from_secs_f64(time.exp()))
    }

    /// Takes what is `usual` among its peers, and returns how many times slower the engine is; none without enough
    /// evidence. What waits is evidence once it is `overdue` times late.
    pub(crate) fn compare(&mut self, usual: Usual, overdue: f64, now: Instant) -> Option<f64> {
        self.usual = usual;
        let is_new = |at: Instant| now.saturating_duration_since(at) <= RECENT_AGE_MAX;
        let ended = (self.recent.iter().filter(|(at, ..)| is_new(*at)))
            .filter_map(|(_, class, time)| Some(time - usual.0[class.0]?));
        // The oldest wait longest, so these are all that can be overdue, and enough to tell.
        let waiting = (self.waiting.values().take(RECENT_MAX)).filter_map(|(sent, class)| {
            let time = logarithm(now.saturating_duration_since(*sent)) - usual.0[class.0]?;
            (time > overdue.ln()).then_some(time)
        });
        let mut ratios: Vec<f64> = ended.chain(waiting).collect();
        if ratios.len() < EVIDENCE_MIN {
            return None;
        }
        ratios.sort_by(f64::total_cmp);
        // The lower median: more than half of the evidence must be against it.
        Some(ratios[(ratios.len() - 1) / 2].exp())
    }
}

// === impl Usual ===

impl Usual {
    /// What is usual among the engines of one model: per class the lower median, so that an engine among two is
    /// compared with the faster one, and no more than half of them can be slow.
    pub(crate) fn among(engines: impl Iterator<Item = Typical>) -> Self {
        let mut times: [Vec<f64>; CLASSES] = Default::default();
        for typical in engines {
            for (times, typical) in times.iter_mut().zip(typical.0) {
                times.extend(typical);
            }
        }
        Self(times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times.get(times.len().saturating_sub(1) / 2).copied()
        }))
    }
}

/// Of the time in seconds, which is compared by ratios.
fn logarithm(time: Duration) -> f64 {
    time.as_secs_f64().max(SECONDS_MIN).ln()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A pace that answered prompts of these sizes after these times, one after the other; and the time then.
    fn answered(start: Instant, times: &[(u64, Duration)]) -> (Pace, Instant) {
        let (mut pace, mut now) = (Pace::default(), start);
        for (tokens, took) in times {
            let ticket = pace.sent(WorkClass::of(*tokens), now);
            now += *took;
            pace.answered(ticket, now);
        }
        assert_eq!(pace.waiting.len(), 0);
        (pace, now)
    }

    #[test]
    fn an_engine_ten_times_slower_is_told_from_one_other() {
        let start = Instant::now();
        let (mut fast, then) = answered(start, &[(100, ms(50)); 20]);
        let (mut slow, now) = answered(start, &[(100, ms(500)); 6]);
        let usual = Usual::among([fast.typical(), slow.typical()].into_iter());
        assert!(slow.compare(usual, 3.0, now).is_some_and(|slowness| slowness > 9.0));
        assert!(fast.compare(usual, 3.0, then).is_some_and(|slowness| slowness < 1.1));
        let ticket = slow.sent(WorkClass::of(100), now);
        let ratio = slow.answered(ticket, now + ms(200));
        assert!(ratio.is_some_and(|ratio| (3.9..4.1).contains(&ratio)), "{ratio:?}");
    }

    #[test]
    fn an_engine_given_long_prompts_is_not_taken_for_slow() {
        let start = Instant::now();
        let (short, _) = answered(start, &[(100, ms(50)); 20]);
        let (mut long, now) = answered(start, &[(10_000, ms(1_500)); 6]);
        let usual = Usual::among([short.typical(), long.typical()].into_iter());
        let slowness = long.compare(usual, 3.0, now);
        assert!(slowness.is_some_and(|slowness| slowness < 1.1), "{slowness:?}");
    }

    #[test]
    fn requests_that_still_wait_are_evidence_once_overdue() {
        let start = Instant::now();
        let (fast, _) = answered(start, &[(100, ms(50)); 20]);
        let usual = Usual::among([fast.typical()].into_iter());
        let mut stuck = Pace::default();
        for _ in 0..EVIDENCE_MIN {
            stuck.sent(WorkClass::of(100), start);
        }
        assert_eq!(stuck.compare(usual, 3.0, start + ms(140)), None);
        let slowness = stuck.compare(usual, 3.0, start + ms(200));
        assert!(slowness.is_some_and(|slowness| slowness > 3.0), "{slowness:?}");
    }

    #[test]
    fn differences_of_a_few_milliseconds_are_no_slowness() {
        let start = Instant::now();
        let (fast, _) = answered(start, &[(1, Duration::from_micros(100)); 20]);
        let (mut slow, now) = answered(start, &[(1, ms(9)); 20]);
        let usual = Usual::among([fast.typical(), slow.typical()].into_iter());
        assert!(slow.compare(usual, 3.0, now).is_some_and(|slowness| slowness < 1.1));
    }

    proptest! {
        /// Never can more than half of the engines be far slower than usual, by their steady times.
        #[test]
        fn at_most_half_of_the_engines_are_slow(times in prop::collection::vec(1u64..1_000, 1..20)) {
            let start = Instant::now();
            let mut paces: Vec<(Pace, Instant)> =
                times.iter().map(|&time| answered(start, &[(100, ms(time)); 8])).collect();
            let usual = Usual::among(paces.iter().map(|(pace, _)| pace.typical()));
            let slow = paces.iter_mut().filter_map(|(pace, now)| pace.compare(usual, 3.0, *now));
            prop_assert!(slow.filter(|slowness| *slowness > 3.0).count() <= times.len() / 2);
        }

        #[test]
        fn every_ticket_handed_back_is_forgotten(ends in prop::collection::vec(any::<bool>(), 0..200)) {
            let now = Instant::now();
            let mut pace = Pace::default();
            let tickets: Vec<Ticket> = ends.iter().map(|_| pace.sent(WorkClass::of(8), now)).collect();
            for (ticket, answered) in tickets.into_iter().zip(ends) {
                if answered { pace.answered(ticket, now); } else { pace.given_up(ticket, now); }
            }
            prop_assert_eq!(pace.waiting.len(), 0);
            prop_assert!(pace.recent.len() <= RECENT_MAX);
        }
    }
}
