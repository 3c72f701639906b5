//! What goes wrong on purpose, settable while the engine runs.

use serde::{Deserialize, Serialize};

/// The switches, as `POST /sim/faults` takes them; what is not named is off.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Faults {
    /// This share of requests is answered 500, evenly: 0.25 is every fourth.
    pub fail_share: f64,
    /// Every request is refused with 429.
    pub refuse: bool,
    /// Streams break off after this many tokens.
    pub die_after: Option<u32>,
    /// Streams say nothing more after this many tokens; with 0, not even that they began.
    pub stall_after: Option<u32>,
    /// Steps take this many times as long.
    pub slow: f64,
}

/// The switches are set to what cannot be.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum FaultsError {
    /// Not a share.
    #[error("fail_share must be between 0 and 1, got {0}")]
    Share(f64),
    /// Not a slowness.
    #[error("slow must be between 1 and {SLOW_MAX}, got {0}")]
    Slow(f64),
}

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Answered 500.
    Fail,
    /// Answered 429.
    Refuse,
    /// Served, up to a point.
    Serve(Ending),
}

/// How a stream ends that should not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// As [`Faults::die_after`].
    pub die_after: Option<u32>,
    /// As [`Faults::stall_after`].
    pub stall_after: Option<u32>,
}

/// The switches, and how many requests met them.
#[derive(Debug, Default)]
pub struct Fuse {
    faults: Faults,
    /// Requests since the switches were set.
    met: f64,
}

/// An engine slower than this is told from a dead one by nobody.
const SLOW_MAX: f64 = 1000.0;

// === impl Faults ===

impl Default for Faults {
    fn default() -> Self {
        Self { fail_share: 0.0, refuse: false, die_after: None, stall_after: None, slow: 1.0 }
    }
}

impl Faults {
    /// Checks every range.
    ///
    /// # Errors
    /// The first switch out of range.
    pub fn validate(&self) -> Result<(), FaultsError> {
        if !(0.0..=1.0).contains(&self.fail_share) {
            return Err(FaultsError::Share(self.fail_share));
        }
        if !(1.0..=SLOW_MAX).contains(&self.slow) {
            return Err(FaultsError::Slow(self.slow));
        }
        Ok(())
    }
}

// === impl Fuse ===

impl Fuse {
    /// Sets the switches anew.
    pub const fn set(&mut self, faults: Faults) {
        self.faults = faults;
        self.met = 0.0;
    }

    /// The switches.
    pub const fn faults(&self) -> Faults {
        self.faults
    }

    /// What happens to the next request.
    pub fn decide(&mut self) -> Fate {
        if self.faults.refuse {
            return Fate::Refuse;
        }
        let failed = |met: f64| (met * self.faults.fail_share).floor();
        let before = failed(self.met);
        self.met += 1.0;
        if failed(self.met) > before {
            return Fate::Fail;
        }
        let Faults { die_after, stall_after, .. } = self.faults;
        Fate::Serve(Ending { die_after, stall_after })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_share_fails() {
        for (share, expected) in [(0.0, 0), (0.25, 25), (0.5, 50), (1.0, 100)] {
            let mut fuse = Fuse::default();
            fuse.set(Faults { fail_share: share, ..Faults::default() });
            let failed = (0..100).filter(|_| fuse.decide() == Fate::Fail).count();
            assert_eq!(failed, expected, "{share}");
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        let check = |faults: Faults| faults.validate().unwrap_err().to_string();
        let share = Faults { fail_share: 1.5, ..Faults::default() };
        assert_eq!(check(share), "fail_share must be between 0 and 1, got 1.5");
        assert!(check(Faults { slow: f64::NAN, ..Faults::default() }).contains("got NaN"));
        assert_eq!(Faults::default().validate(), Ok(()));
    }
}
