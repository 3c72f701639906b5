//! The watch: what changed in the cluster, for anybody who follows it, from wherever they left off.
//!
//! ```text
//! apply ──► publish ──► History (pure: view, ring of deltas) ◄── events after (lineage, index) ── Subscriber
//! ```
//!
//! A subscriber holds a position, not a queue, so a slow one costs no memory; when the ring has moved past
//! its position its watch ends, and it must resume, with a snapshot.
//!
//! Who may use the cluster is shown to routers alone: others' events leave tenants and keys out. Their indices are
//! those of the log all the same, so that any watch resumes where it ended, and what is left out moves a watcher on
//! with the next event or bookmark.
//!
//! A node that does not hear its group shows what it has and vouches for nothing: it sends no bookmarks, and
//! refuses whoever has seen all of that. So watchers leave it for a node that knows more, and know how old their
//! view may be when there is none.

mod history;

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use phalanx_proto::change::WatchEvent;
use phalanx_proto::id::{Lineage, MemberId, ViewIndex};
use phalanx_proto::view::{ClusterView, Member, ViewDelta, ViewOp};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

pub(crate) use self::history::Position;
use self::history::{History, Next};

/// How often a subscriber hears that nothing changed: a fifth of the silence after which it looks for
/// another node.
const BOOKMARK_EVERY: Duration = Duration::from_secs(1);

/// The feed of one node. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Feed(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    history: Mutex<History>,
    /// Tells subscribers to look again, in the order in which they began to wait.
    changed: Notify,
    /// Whether the node hears its group.
    vouches: AtomicBool,
}

/// What of the view a subscriber is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All of it.
    Whole,
    /// Not who may use the cluster: [`ViewOp::is_access`].
    WithoutAccess,
}

/// One watch.
#[derive(Debug)]
pub(crate) struct Subscriber {
    shared: Arc<Shared>,
    scope: Scope,
    position: Position,
    ready: VecDeque<WatchEvent>,
    bookmark_at: Instant,
}

/// Why a watch cannot go on at this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WatchError {
    /// The node has no state to show.
    #[error("this control node does not know its cluster yet")]
    NotFounded,
    /// The subscriber has seen more than this node.
    #[error("this control node is at index {end}, behind the watcher's {after}")]
    Behind {
        /// What the subscriber has.
        after: ViewIndex,
        /// What the node has.
        end: ViewIndex,
    },
    /// The node may lag, and the subscriber has seen all that it has.
    #[error("this control node does not hear its group, and has nothing after {after}")]
    CutOff {
        /// What the subscriber has.
        after: ViewIndex,
    },
    /// The subscriber was too slow.
    #[error("the watch fell behind the deltas kept, resume it")]
    TooSlow,
}

// === impl Feed ===

impl Feed {
    pub(crate) fn new() -> Self {
        let (history, changed, vouches) = (Mutex::default(), Notify::new(), AtomicBool::new(false));
        Self(Arc::new(Shared { history, changed, vouches }))
    }

    /// Says whether the node hears its group, so that its view is the cluster's.
    pub(crate) fn vouch(&self, hears_group: bool) {
        self.0.vouches.store(hears_group, Ordering::Relaxed);
    }

    /// Moves the feed to `end`; `ops` are what changed there.
    pub(crate) fn publish(&self, end: Position, ops: Vec<ViewOp>) {
        self.0.history.lock().push(end, ops);
        self.0.changed.notify_waiters();
    }

    /// Replaces the whole view: for a snapshot installed.
    pub(crate) fn reset(&self, view: ClusterView) {
        self.0.history.lock().reset(view);
        self.0.changed.notify_waiters();
    }

    /// How far this node is.
    pub(crate) fn end(&self) -> Position {
        self.0.history.lock().end()
    }

    /// A member, if it is one.
    pub(crate) fn member(&self, id: MemberId) -> Option<Member> {
        self.0.history.lock().view().members.get(&id).cloned()
    }

    /// Looks at the view without copying it; nothing may wait within `look`.
    pub(crate) fn with_view<T>(&self, look: impl FnOnce(&ClusterView) -> T) -> T {
        look(self.0.history.lock().view())
    }

    /// The whole view.
    pub(crate) fn view(&self) -> Result<ClusterView, WatchError> {
        if self.end().lineage == Lineage(0) {
            return Err(WatchError::NotFounded);
        }
        Ok(self.with_view(ClusterView::clone))
    }

    /// Follows the feed from what the subscriber already has.
    pub(crate) fn subscribe(
        &self,
        after: Position,
        scope: Scope,
    ) -> Result<Subscriber, WatchError> {
        let history = self.0.history.lock();
        if history.end().lineage == Lineage(0) {
            return Err(WatchError::NotFounded);
        }
        let position = history.resume(after)?;
        let vouches = self.0.vouches.load(Ordering::Relaxed);
        if !vouches && matches!(history.after(position), Next::Nothing) {
            return Err(WatchError::CutOff { after: after.index });
        }
        drop(history);
        let shared = Arc::clone(&self.0);
        let bookmark_at = Instant::now() + BOOKMARK_EVERY;
        Ok(Subscriber { shared, scope, position, ready: VecDeque::new(), bookmark_at })
    }
}

// === impl Scope ===

impl Scope {
    fn of_view(self, view: ClusterView) -> ClusterView {
        match self {
            Self::Whole => view,
            Self::WithoutAccess => view.without_access(),
        }
    }

    /// None when nothing of it is shown.
    fn of_delta(self, mut delta: ViewDelta) -> Option<ViewDelta> {
        if self == Self::WithoutAccess {
            delta.ops.retain(|op| !op.is_access());
        }
        (!delta.ops.is_empty()).then_some(delta)
    }
}

// === impl Subscriber ===

impl Subscriber {
    /// Waits for the next event: a change at once, else a bookmark when one is due.
    pub(crate) async fn next(&mut self) -> Result<WatchEvent, WatchError> {
        let shared = Arc::clone(&self.shared);
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            // From here on no change is missed.
            let mut changed = pin!(shared.changed.notified());
            changed.as_mut().enable();
            match self.shared.history.lock().after(self.position) {
                Next::Snapshot(view) => {
                    self.position = Position { lineage: view.lineage, index: view.index };
                    return Ok(WatchEvent::Snapshot(self.scope.of_view(view)));
                }
                Next::Deltas(deltas) => {
                    if let Some(last) = deltas.last() {
                        self.position.index = last.index;
                    }
                    let shown = deltas.into_iter().filter_map(|delta| self.scope.of_delta(delta));
                    self.ready = shown.map(WatchEvent::Delta).collect();
                    continue;
                }
                Next::Nothing => {}
                Next::Compacted => return Err(WatchError::TooSlow),
            }
            if timeout_at(self.bookmark_at, changed).await.is_err() {
                self.bookmark_at = Instant::now() + BOOKMARK_EVERY;
                if let Some(bookmark) = self.bookmark() {
                    return Ok(bookmark);
                }
            }
        }
    }

    /// How far the cluster is, if the node knows and nothing happened since the last event.
    fn bookmark(&mut self) -> Option<WatchEvent> {
        if !self.shared.vouches.load(Ordering::Relaxed) {
            return None;
        }
        let history = self.shared.history.lock();
        let end = history.end();
        let quiet = end.lineage == self.position.lineage
            && matches!(history.after(self.position), Next::Nothing);
        quiet.then(|| {
            self.position = end;
            WatchEvent::Bookmark(end.index)
        })
    }
}

#[cfg(test)]
mod tests {
    use phalanx_proto::view::{CachePolicy, Model, Tenant, TenantLimits};

    use super::*;

    fn position(index: u64) -> Position {
        Position { lineage: Lineage(7), index: ViewIndex(index) }
    }

    fn put(name: &str) -> Vec<ViewOp> {
        vec![ViewOp::PutModel(Model { name: name.into(), revision: "r".into() })]
    }

    fn delta(index: u64, name: &str) -> WatchEvent {
        WatchEvent::Delta(ViewDelta { index: ViewIndex(index), ops: put(name) })
    }

    #[tokio::test(start_paused = true)]
    async fn a_subscriber_gets_a_snapshot_then_each_change_once_then_bookmarks() {
        let feed = Feed::new();
        feed.vouch(true);
        assert_eq!(
            feed.subscribe(Position::default(), Scope::Whole).unwrap_err(),
            WatchError::NotFounded
        );
        feed.publish(position(3), put("a"));

        let mut subscriber = feed.subscribe(Position::default(), Scope::Whole).unwrap();
        let WatchEvent::Snapshot(view) = subscriber.next().await.unwrap() else {
            panic!("the first event is a snapshot");
        };
        assert_eq!((view.lineage, view.index, view.models.len()), (Lineage(7), ViewIndex(3), 1));

        feed.publish(position(4), put("b"));
        feed.publish(position(5), Vec::new());
        feed.publish(position(6), put("c"));
        assert_eq!(subscriber.next().await, Ok(delta(4, "b")));
        assert_eq!(subscriber.next().await, Ok(delta(6, "c")));
        assert_eq!(subscriber.next().await, Ok(WatchEvent::Bookmark(ViewIndex(6))));
        feed.publish(position(7), Vec::new());
        assert_eq!(subscriber.next().await, Ok(WatchEvent::Bookmark(ViewIndex(7))));
    }

    fn put_tenant() -> ViewOp {
        let (name, limits, cache) = ("t".into(), TenantLimits::default(), CachePolicy::Off);
        ViewOp::PutTenant(Tenant { name, limits, priority: 0, cache })
    }

    #[tokio::test(start_paused = true)]
    async fn who_may_use_the_cluster_is_left_out_for_others_and_no_index_is_lost() {
        let feed = Feed::new();
        feed.vouch(true);
        feed.publish(position(3), vec![put_tenant()]);
        let (whole, part) = (Scope::Whole, Scope::WithoutAccess);
        for (scope, tenants) in [(whole, 1), (part, 0)] {
            let mut subscriber = feed.subscribe(Position::default(), scope).unwrap();
            let Ok(WatchEvent::Snapshot(view)) = subscriber.next().await else {
                panic!("the first event is a snapshot");
            };
            assert_eq!((view.index, view.tenants.len()), (ViewIndex(3), tenants));
        }

        let mut subscriber = feed.subscribe(position(3), part).unwrap();
        feed.publish(position(4), vec![put_tenant()]);
        feed.publish(position(5), [put("a"), vec![put_tenant()]].concat());
        feed.publish(position(6), vec![ViewOp::RemoveTenant("t".into())]);
        assert_eq!(subscriber.next().await, Ok(delta(5, "a")), "nothing is said of 4");
        assert_eq!(subscriber.next().await, Ok(WatchEvent::Bookmark(ViewIndex(6))));
        // From where the bookmark left it, and from before what it was not shown.
        feed.publish(position(7), put("b"));
        for after in [3, 4, 5, 6] {
            let mut resumed = feed.subscribe(position(after), part).unwrap();
            if after < 5 {
                assert_eq!(resumed.next().await, Ok(delta(5, "a")));
            }
            assert_eq!(resumed.next().await, Ok(delta(7, "b")), "after {after}");
        }
        let mut resumed = feed.subscribe(position(5), whole).unwrap();
        let removed =
            ViewDelta { index: ViewIndex(6), ops: vec![ViewOp::RemoveTenant("t".into())] };
        assert_eq!(resumed.next().await, Ok(WatchEvent::Delta(removed)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_does_not_hear_its_group_shows_what_it_has_and_vouches_for_nothing() {
        let feed = Feed::new();
        feed.publish(position(3), put("a"));
        let mut subscriber = feed.subscribe(Position::default(), Scope::Whole).unwrap();
        assert!(matches!(subscriber.next().await, Ok(WatchEvent::Snapshot(_))));
        let silent = timeout_at(Instant::now() + BOOKMARK_EVERY * 5, subscriber.next());
        assert!(silent.await.is_err(), "a bookmark from a node that does not know");
        let refused = feed.subscribe(position(3), Scope::Whole).unwrap_err();
        assert_eq!(refused, WatchError::CutOff { after: ViewIndex(3) });

        feed.vouch(true);
        assert_eq!(subscriber.next().await, Ok(WatchEvent::Bookmark(ViewIndex(3))));
        assert!(feed.subscribe(position(3), Scope::Whole).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_of_lineage_reaches_open_watches_as_a_snapshot() {
        let feed = Feed::new();
        feed.vouch(true);
        feed.publish(position(3), put("a"));
        let mut subscriber = feed.subscribe(position(3), Scope::Whole).unwrap();
        let restored =
            ClusterView { lineage: Lineage(8), index: ViewIndex(1), ..ClusterView::default() };
        feed.reset(restored.clone());
        assert_eq!(subscriber.next().await, Ok(WatchEvent::Snapshot(restored)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_subscriber_the_ring_has_passed_must_resume() {
        let feed = Feed::new();
        feed.vouch(true);
        feed.publish(position(1), put("a"));
        let mut subscriber = feed.subscribe(position(1), Scope::Whole).unwrap();
        for index in 2..=u64::try_from(history::DELTAS_MAX).unwrap() + 2 {
            feed.publish(position(index), put("b"));
        }
        assert_eq!(subscriber.next().await, Err(WatchError::TooSlow));
        let mut resumed = feed.subscribe(position(1), Scope::Whole).unwrap();
        assert!(matches!(resumed.next().await, Ok(WatchEvent::Snapshot(_))));
    }
}
