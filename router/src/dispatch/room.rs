//! Tells the queue that an engine may have room again. Costs one atomic where a request ends while nobody waits.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Who waits for room, and their bell.
#[derive(Debug, Default)]
pub(crate) struct Room {
    waiting: AtomicUsize,
    freed: Notify,
}

// === impl Room ===

impl Room {
    /// A request ended, or an engine said something new of itself.
    pub(crate) fn freed(&self) {
        // Who begins to wait rings the bell itself, so a count that is read too early loses nothing.
        if self.waiting() > 0 {
            self.freed.notify_one();
        }
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// So many requests wait now. Who begins to wait calls [`Room::freed`] then, as room may just have been freed.
    pub(crate) fn set_waiting(&self, waiting: usize) {
        self.waiting.store(waiting, Ordering::Release);
    }

    /// Resolves when there may be room.
    pub(crate) async fn until_freed(&self) {
        self.freed.notified().await;
    }
}
