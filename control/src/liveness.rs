//! Who is still alive: one lease per member, renewed by heartbeats, in the leader's memory alone.
//!
//! Pure: `now` is an argument, in milliseconds of a clock that never goes back. A lease that runs out is
//! only reported here; the leader proposes the fence, and the log decides.

use std::collections::BTreeMap;
use std::time::Duration;

use phalanx_proto::id::{Epoch, MemberId};

use crate::planted::{Bug, planted};

/// How long leases last, and how often members are told to renew them.
#[derive(Clone, Copy, Debug)]
pub struct Timings {
    /// What members are told to keep to.
    pub heartbeat_every: Duration,
    /// Silence after which a member is fenced: three heartbeats, so that one lost on the way is no death.
    pub ttl: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self { heartbeat_every: Duration::from_secs(2), ttl: Duration::from_secs(6) }
    }
}

/// A moment of the leader's clock, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

/// The leases of all members.
#[derive(Debug)]
pub struct Leases {
    ttl_ms: u64,
    leases: BTreeMap<MemberId, Lease>,
    /// When [`Leases::expired`] was last asked.
    asked: Millis,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    epoch: Epoch,
    ends: Millis,
}

// === impl Leases ===

impl Leases {
    /// No leases, to last `ttl` each.
    pub fn new(ttl: Duration) -> Self {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        Self { ttl_ms, leases: BTreeMap::new(), asked: Millis::default() }
    }

    /// Begins a leadership: every member gets a whole lease, however long it was silent, because its
    /// heartbeats went to somebody else or to nobody.
    pub fn begin(&mut self, members: impl Iterator<Item = (MemberId, Epoch)>, now: Millis) {
        let ends = self.end_from(now);
        self.leases = members.map(|(id, epoch)| (id, Lease { epoch, ends })).collect();
        self.asked = now;
    }

    /// Brings the table in line with the members that are: whoever is new, or registered anew, gets a
    /// whole lease; whoever left loses it.
    pub fn align(&mut self, members: impl Iterator<Item = (MemberId, Epoch)>, now: Millis) {
        let ends = self.end_from(now);
        let mut before = std::mem::take(&mut self.leases);
        for (id, epoch) in members {
            let kept = before.remove(&id).filter(|lease| lease.epoch == epoch);
            self.leases.insert(id, kept.unwrap_or(Lease { epoch, ends }));
        }
    }

    /// Takes a heartbeat. One for a member the table does not know yet starts its lease; the caller has
    /// checked that the registration holds.
    pub fn renew(&mut self, id: MemberId, epoch: Epoch, now: Millis) {
        let ends = self.end_from(now);
        let lease = self.leases.entry(id).or_insert(Lease { epoch, ends });
        if lease.epoch <= epoch {
            *lease = Lease { epoch, ends: lease.ends.max(ends) };
        }
    }

    /// Whoever has been silent for too long. They are reported again until they leave the table.
    ///
    /// If this was not asked for over half a lease, then it is this process that was asleep, and the
    /// heartbeats sent meanwhile may be waiting unread: everybody gets a whole lease again.
    pub fn expired(&mut self, now: Millis) -> Vec<(MemberId, Epoch)> {
        let asleep =
            now.0.saturating_sub(self.asked.0) > self.ttl_ms / 2 && !planted(Bug::LeaseNotRearmed);
        self.asked = now;
        if asleep {
            let ends = self.end_from(now);
            self.leases.values_mut().for_each(|lease| lease.ends = lease.ends.max(ends));
        }
        let ended = self.leases.iter().filter(|(_id, lease)| lease.ends <= now);
        ended.map(|(id, lease)| (*id, lease.epoch)).collect()
    }

    const fn end_from(&self, now: Millis) -> Millis {
        Millis(now.0.saturating_add(self.ttl_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: u64 = 6000;

    enum Step {
        Begin(&'static [u64]),
        Align(&'static [u64]),
        Renew(u64),
    }

    /// Runs steps at their times, asking every second between, and returns who expired first and when.
    fn expiries(steps: &[(u64, Step)], until: u64) -> Vec<(u64, u64)> {
        let mut leases = Leases::new(Duration::from_millis(TTL));
        let mut found: Vec<(u64, u64)> = Vec::new();
        let member = |&id: &u64| (MemberId(id), Epoch(id));
        for now in (0..=until).step_by(1000) {
            for (_at, step) in steps.iter().filter(|(at, _step)| *at == now) {
                match step {
                    Step::Begin(ids) => leases.begin(ids.iter().map(member), Millis(now)),
                    Step::Align(ids) => leases.align(ids.iter().map(member), Millis(now)),
                    Step::Renew(id) => leases.renew(MemberId(*id), Epoch(*id), Millis(now)),
                }
            }
            for (id, _epoch) in leases.expired(Millis(now)) {
                if found.iter().all(|(seen, _at)| *seen != id.0) {
                    found.push((id.0, now));
                }
            }
        }
        found
    }

    #[test]
    fn a_silent_member_expires_after_one_lease_and_not_earlier() {
        assert_eq!(
            expiries(&[(0, Step::Begin(&[1, 2])), (4000, Step::Renew(2))], 9000),
            [(1, 6000)]
        );
        assert_eq!(
            expiries(&[(0, Step::Begin(&[1, 2])), (4000, Step::Renew(2))], 10_000),
            [(1, 6000), (2, 10_000)]
        );
    }

    #[test]
    fn a_new_leader_gives_everybody_a_whole_lease_first() {
        let steps = [(0, Step::Begin(&[1])), (5000, Step::Begin(&[1, 2]))];
        assert_eq!(expiries(&steps, 12_000), [(1, 11_000), (2, 11_000)]);
    }

    #[test]
    fn a_member_that_joins_later_counts_from_then_and_one_that_left_is_forgotten() {
        let steps = [(0, Step::Begin(&[1])), (3000, Step::Align(&[2])), (5000, Step::Align(&[2]))];
        assert_eq!(expiries(&steps, 12_000), [(2, 9000)]);
    }

    #[test]
    fn a_new_registration_starts_a_new_lease_and_old_heartbeats_do_not_renew_it() {
        let mut leases = Leases::new(Duration::from_millis(TTL));
        leases.begin([(MemberId(1), Epoch(1))].into_iter(), Millis(0));
        leases.align([(MemberId(1), Epoch(5))].into_iter(), Millis(2000));
        leases.renew(MemberId(1), Epoch(1), Millis(2500));
        for now in (0..8000).step_by(1000) {
            assert_eq!(leases.expired(Millis(now)), [], "at {now}");
        }
        assert_eq!(leases.expired(Millis(8000)), [(MemberId(1), Epoch(5))]);
        assert_eq!(leases.expired(Millis(9000)), [(MemberId(1), Epoch(5))]);
    }

    #[test]
    fn a_leader_that_slept_does_not_take_its_own_silence_for_the_members() {
        let mut leases = Leases::new(Duration::from_millis(TTL));
        leases.begin([(MemberId(1), Epoch(1))].into_iter(), Millis(0));
        assert_eq!(leases.expired(Millis(1000)), []);
        assert_eq!(leases.expired(Millis(60_000)), []);
        for now in (61_000..66_000).step_by(1000) {
            assert_eq!(leases.expired(Millis(now)), [], "at {now}");
        }
        assert_eq!(leases.expired(Millis(66_000)), [(MemberId(1), Epoch(1))]);
    }
}
