//! Which events a follower of the view accepts. Pure.

use phalanx_proto::change::WatchEvent;
use phalanx_proto::id::{Lineage, ViewIndex};
use phalanx_proto::view::{ClusterView, StaleViewError};

/// A view that only moves forward in (lineage, index).
#[derive(Debug)]
pub(super) struct Follower {
    view: ClusterView,
}

/// What an event did to the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accepted {
    /// Its content changed.
    Changed,
    /// Only its index moved.
    Confirmed,
}

/// An event that would take the view back, so its sender lags and is to be left.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RefusedError {
    #[error("refused a snapshot of lineage {offered}, the view is of lineage {have}")]
    Lineage { have: Lineage, offered: Lineage },
    #[error(transparent)]
    Stale(#[from] StaleViewError),
}

// === impl Follower ===

impl Follower {
    pub(super) const fn new(view: ClusterView) -> Self {
        Self { view }
    }

    pub(super) const fn view(&self) -> &ClusterView {
        &self.view
    }

    /// Where to resume.
    pub(super) const fn position(&self) -> (Lineage, ViewIndex) {
        (self.view.lineage, self.view.index)
    }

    /// Folds `event` in, or leaves the view as it was.
    pub(super) fn accept(&mut self, event: WatchEvent) -> Result<Accepted, RefusedError> {
        match event {
            WatchEvent::Snapshot(offered) => self.accept_snapshot(offered),
            WatchEvent::Delta(delta) => {
                self.view.apply(delta)?;
                Ok(Accepted::Changed)
            }
            WatchEvent::Bookmark(index) => {
                self.refuse_earlier(index)?;
                self.view.index = index;
                Ok(Accepted::Confirmed)
            }
        }
    }

    fn accept_snapshot(&mut self, offered: ClusterView) -> Result<Accepted, RefusedError> {
        if offered.lineage < self.view.lineage {
            return Err(RefusedError::Lineage {
                have: self.view.lineage,
                offered: offered.lineage,
            });
        }
        if offered.lineage == self.view.lineage {
            self.refuse_earlier(offered.index)?;
        }
        self.view = offered;
        Ok(Accepted::Changed)
    }

    fn refuse_earlier(&self, offered: ViewIndex) -> Result<(), StaleViewError> {
        if offered < self.view.index {
            return Err(StaleViewError { have: self.view.index, offered });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use phalanx_proto::view::{ViewDelta, ViewOp};

    use super::*;

    fn view(lineage: u64, index: u64) -> ClusterView {
        ClusterView { lineage: Lineage(lineage), index: ViewIndex(index), ..ClusterView::default() }
    }

    fn snapshot(lineage: u64, index: u64) -> WatchEvent {
        WatchEvent::Snapshot(view(lineage, index))
    }

    fn delta(index: u64) -> WatchEvent {
        let ops = vec![ViewOp::RemoveAlias("a".into())];
        WatchEvent::Delta(ViewDelta { index: ViewIndex(index), ops })
    }

    fn bookmark(index: u64) -> WatchEvent {
        WatchEvent::Bookmark(ViewIndex(index))
    }

    /// A follower at lineage 2, index 10, is offered `event` and must end up at `expected`.
    #[track_caller]
    fn check(event: WatchEvent, expected: Option<(u64, u64)>) {
        let mut follower = Follower::new(view(2, 10));
        let accepted = follower.accept(event).is_ok();
        let (lineage, index) = follower.position();
        assert_eq!(accepted, expected.is_some());
        assert_eq!((lineage.0, index.0), expected.unwrap_or((2, 10)));
    }

    #[test]
    fn a_view_moves_forward_in_its_lineage_and_never_back() {
        check(snapshot(2, 9), None);
        check(snapshot(2, 10), Some((2, 10)));
        check(snapshot(2, 11), Some((2, 11)));
        check(delta(9), None);
        check(delta(10), None);
        check(delta(11), Some((2, 11)));
        check(bookmark(9), None);
        check(bookmark(10), Some((2, 10)));
        check(bookmark(12), Some((2, 12)));
    }

    #[test]
    fn a_newer_lineage_wins_whatever_its_index_and_an_older_one_never_does() {
        check(snapshot(3, 1), Some((3, 1)));
        check(snapshot(1, 99), None);
    }
}
