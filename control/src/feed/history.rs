//! The latest view and the deltas that led to it. Pure.

use std::collections::VecDeque;

use phalanx_proto::id::{Lineage, ViewIndex};
use phalanx_proto::view::{ClusterView, ViewDelta, ViewOp};
use phalanx_proto::wire::view_op_bytes;

use super::WatchError;
use crate::planted::{Bug, planted};

/// How many deltas are kept. At 50 changes a second, a burst, a watcher may be away for over six minutes
/// and still resume without a snapshot.
pub(super) const DELTAS_MAX: usize = 20_000;

/// How much the deltas kept may take on the wire, in bytes: 3 kB each at their largest number, which is some ten
/// times what a change of one member takes.
const DELTAS_BYTES_MAX: usize = 64 << 20;

/// How many deltas are handed out at once, so that the lock is held for microseconds.
const BATCH_MAX: usize = 256;

/// A point of a history. The default is before all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// Which history.
    pub(crate) lineage: Lineage,
    /// How far.
    pub(crate) index: ViewIndex,
}

/// The view and how it came about.
#[derive(Debug, Default)]
pub(super) struct History {
    view: ClusterView,
    deltas: VecDeque<ViewDelta>,
    deltas_bytes: usize,
    /// Every delta after this index is in the ring.
    floor: ViewIndex,
}

/// What a subscriber at some position gets next.
#[derive(Debug)]
pub(super) enum Next {
    Snapshot(ClusterView),
    Deltas(Vec<ViewDelta>),
    Nothing,
    Compacted,
}

// === impl History ===

impl History {
    pub(super) const fn view(&self) -> &ClusterView {
        &self.view
    }

    pub(super) const fn end(&self) -> Position {
        Position { lineage: self.view.lineage, index: self.view.index }
    }

    /// Moves to `end`, where `ops` happened. A new lineage leaves the earlier deltas behind.
    pub(super) fn push(&mut self, end: Position, ops: Vec<ViewOp>) {
        ops.iter().for_each(|op| self.view.apply_op(op.clone()));
        self.view.index = end.index;
        if self.view.lineage != end.lineage {
            self.view.lineage = end.lineage;
            self.forget_deltas();
            return;
        }
        if ops.is_empty() {
            return;
        }
        let delta = ViewDelta { index: end.index, ops };
        self.deltas_bytes += bytes(&delta);
        self.deltas.push_back(delta);
        while self.deltas.len() > DELTAS_MAX || self.deltas_bytes > DELTAS_BYTES_MAX {
            let Some(oldest) = self.deltas.pop_front() else { return };
            self.deltas_bytes -= bytes(&oldest);
            self.floor = oldest.index;
        }
    }

    pub(super) fn reset(&mut self, view: ClusterView) {
        self.view = view;
        self.forget_deltas();
    }

    fn forget_deltas(&mut self) {
        self.deltas.clear();
        self.deltas_bytes = 0;
        self.floor = self.view.index;
    }

    /// Where a subscriber that has `after` begins; the default position when it needs a snapshot.
    pub(super) fn resume(&self, after: Position) -> Result<Position, WatchError> {
        let ignored = planted(Bug::LineageIgnored) && after.lineage != Lineage(0);
        if after.lineage != self.view.lineage && !ignored {
            return Ok(Position::default());
        }
        if after.index > self.view.index {
            return Err(WatchError::Behind { after: after.index, end: self.view.index });
        }
        let skipped = u64::from(planted(Bug::WatchOffByOne) && after.index < self.view.index);
        let (lineage, index) = (self.view.lineage, ViewIndex(after.index.0 + skipped));
        let from = Position { lineage, index };
        Ok(if after.index < self.floor { Position::default() } else { from })
    }

    pub(super) fn after(&self, position: Position) -> Next {
        if position.lineage != self.view.lineage {
            return Next::Snapshot(self.view.clone());
        }
        if position.index < self.floor {
            return Next::Compacted;
        }
        let first = self.deltas.partition_point(|delta| delta.index <= position.index);
        if first == self.deltas.len() {
            return Next::Nothing;
        }
        Next::Deltas(self.deltas.range(first..).take(BATCH_MAX).cloned().collect())
    }
}

fn bytes(delta: &ViewDelta) -> usize {
    delta.ops.iter().map(view_op_bytes).sum()
}

#[cfg(test)]
mod tests {
    use phalanx_proto::view::{Model, Setting};

    use super::*;

    fn position(index: u64) -> Position {
        Position { lineage: Lineage(7), index: ViewIndex(index) }
    }

    fn put(index: u64) -> Vec<ViewOp> {
        vec![ViewOp::PutModel(Model { name: format!("m{index}").into(), revision: "r".into() })]
    }

    /// A history restored at 10, with changes at 12, 13 and 15, that has passed 16.
    fn history() -> History {
        let mut history = History::default();
        history.reset(ClusterView {
            lineage: Lineage(7),
            index: ViewIndex(10),
            ..ClusterView::default()
        });
        for (index, ops) in
            [(11, Vec::new()), (12, put(12)), (13, put(13)), (14, Vec::new()), (15, put(15))]
        {
            history.push(position(index), ops);
        }
        history.push(position(16), Vec::new());
        history
    }

    /// What a client that has `after` is sent first.
    fn first(after: Position) -> Result<Vec<u64>, String> {
        let history = history();
        let position = history.resume(after).map_err(|error| error.to_string())?;
        match history.after(position) {
            Next::Snapshot(view) => Err(format!("snapshot at {}", view.index)),
            Next::Deltas(deltas) => Ok(deltas.iter().map(|delta| delta.index.0).collect()),
            Next::Nothing => Ok(Vec::new()),
            Next::Compacted => Err("compacted".to_owned()),
        }
    }

    #[test]
    fn a_resumed_watch_misses_nothing_and_repeats_nothing() {
        let snapshot = || Err("snapshot at 16".to_owned());
        assert_eq!(first(Position::default()), snapshot());
        assert_eq!(first(Position { lineage: Lineage(6), index: ViewIndex(12) }), snapshot());
        assert_eq!(first(Position { lineage: Lineage(8), index: ViewIndex(12) }), snapshot());
        assert_eq!(first(position(9)), snapshot());
        assert_eq!(first(position(10)), Ok(vec![12, 13, 15]));
        assert_eq!(first(position(11)), Ok(vec![12, 13, 15]));
        assert_eq!(first(position(12)), Ok(vec![13, 15]));
        assert_eq!(first(position(13)), Ok(vec![15]));
        assert_eq!(first(position(14)), Ok(vec![15]));
        assert_eq!(first(position(15)), Ok(vec![]));
        assert_eq!(first(position(16)), Ok(vec![]));
        assert_eq!(
            first(position(17)),
            Err("this control node is at index 16, behind the watcher's 17".to_owned())
        );
    }

    #[test]
    fn a_full_ring_forgets_the_oldest_delta_and_says_so() {
        let mut history = history();
        let more = u64::try_from(DELTAS_MAX).unwrap() - 2;
        for index in 17..17 + more {
            history.push(position(index), put(index));
        }
        assert_eq!(history.deltas.len(), DELTAS_MAX);
        assert!(matches!(history.after(position(11)), Next::Compacted));
        let Next::Deltas(deltas) = history.after(position(12)) else {
            panic!("index 12 can still be resumed from");
        };
        assert_eq!((deltas[0].index, deltas.len()), (ViewIndex(13), BATCH_MAX));
    }

    #[test]
    fn a_ring_of_heavy_deltas_is_bounded_by_what_they_weigh() {
        let mut history = history();
        let (value, version) = ("v".repeat(1 << 20), ViewIndex(1));
        let setting = Setting { key: "s".to_owned(), value, version };
        let before = history.deltas.len();
        for index in 17..117 {
            history.push(position(index), vec![ViewOp::PutSetting(setting.clone())]);
        }
        assert_eq!((before, history.deltas.len()), (3, 63));
        assert_eq!(history.deltas_bytes, history.deltas.iter().map(bytes).sum::<usize>());
        assert!(matches!(history.after(position(52)), Next::Compacted));
        assert!(matches!(history.after(position(53)), Next::Deltas(_)));
    }
}
