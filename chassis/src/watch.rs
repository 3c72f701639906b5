//! Follows the control plane's view of the cluster and never takes it back in time.
//!
//! ```text
//! control ── Watch ──► Follower (pure: what to accept) ──► watch channel (router) and, when asked, a file
//! ```
//!
//! With a file, a process that starts while no control node answers begins with the view it last had.

mod file;
mod follower;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use phalanx_proto::change::WatchEvent;
use phalanx_proto::fault::Fault;
use phalanx_proto::view::ClusterView;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use self::follower::{Accepted, Follower, RefusedError};
use crate::backoff::Backoff;
use crate::control_client::{ControlClient, WatchStream};

/// A control node sends a bookmark every second or so; one that is silent for this long is left.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// The first wait before a watch is opened again.
const RETRY_FIRST: Duration = Duration::from_millis(50);

/// The longest wait before a watch is opened again: a view may be this much staler than it need be.
const RETRY_MAX: Duration = Duration::from_secs(2);

/// How often a changed view is written to its file, so that a burst of changes costs one write.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// How often a view that does not change is written all the same, so that the next process knows how old it is.
const CONFIRM_EVERY: Duration = Duration::from_secs(60);

/// A followed view. Dropping it ends the following.
#[derive(Debug)]
pub struct ViewWatch {
    view: watch::Receiver<Arc<ClusterView>>,
    last_event: Arc<Mutex<Instant>>,
    task: JoinHandle<()>,
}

// === impl ViewWatch ===

impl ViewWatch {
    /// Starts to follow the view on the current runtime. `file` is where the view outlives the process.
    pub fn start(client: ControlClient, file: Option<PathBuf>) -> Self {
        let now = Instant::now();
        let is_routers = client.is_routers();
        let saved = file.as_deref().and_then(|file| file::load(file, is_routers));
        let (saved, heard) = saved.map_or_else(
            || (ClusterView::default(), now),
            |(view, heard)| {
                // A clock that was set back since then makes the view no older than this process.
                let age = heard.elapsed().unwrap_or_default();
                (view, now.checked_sub(age).unwrap_or(now))
            },
        );
        let (sender, view) = watch::channel(Arc::new(saved.clone()));
        let last_event = Arc::new(Mutex::new(heard));
        let backoff = Backoff::new(RETRY_FIRST, RETRY_MAX, client.jitter());
        let following = Following {
            client,
            file,
            sender,
            last_event: Arc::clone(&last_event),
            follower: Follower::new(saved),
            unsaved: false,
            backoff,
            saved_at: now,
        };
        Self { view, last_event, task: tokio::spawn(following.run()) }
    }

    /// The view and its changes. Empty (lineage 0) until the first one arrives.
    pub fn view(&self) -> watch::Receiver<Arc<ClusterView>> {
        self.view.clone()
    }

    /// Time since the control plane last said anything, to this process or to the one that left the file: how old
    /// the view may be at most.
    pub fn staleness(&self) -> Duration {
        self.last_event.lock().elapsed()
    }
}

impl Drop for ViewWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why a watch must be opened again.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error("control node ended the watch")]
    Ended,
    #[error("control node said nothing for {SILENCE_MAX:?}")]
    Silent,
    #[error(transparent)]
    Refused(#[from] RefusedError),
    #[error("watch failed: {0}")]
    Fault(#[from] Fault),
}

struct Following {
    client: ControlClient,
    file: Option<PathBuf>,
    sender: watch::Sender<Arc<ClusterView>>,
    last_event: Arc<Mutex<Instant>>,
    follower: Follower,
    unsaved: bool,
    backoff: Backoff,
    saved_at: Instant,
}

impl Following {
    async fn run(mut self) {
        loop {
            let before = *self.last_event.lock();
            let error = self.follow_once().await;
            let followed = *self.last_event.lock() != before;
            if followed {
                self.backoff.reset();
            }
            self.save().await;
            let delay = self.backoff.delay();
            // Once per loss; an outage is long, and its end is seen by the staleness.
            if followed {
                tracing::warn!(%error, ?delay, "lost the cluster view's watch, opening it again");
            } else {
                tracing::debug!(%error, ?delay, "cannot watch the cluster view yet");
            }
            self.client.rotate();
            sleep(delay).await;
        }
    }

    /// Follows one node until it fails.
    async fn follow_once(&mut self) -> FollowError {
        let (lineage, after) = self.follower.position();
        let mut stream = match self.client.watch(lineage, after).await {
            Ok(stream) => stream,
            Err(fault) => return fault.into(),
        };
        let mut save_tick = interval(SAVE_EVERY);
        save_tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut deadline = Instant::now() + SILENCE_MAX;
        loop {
            tokio::select! {
                _ = save_tick.tick() => self.save().await,
                accepted = tokio::time::timeout_at(deadline, self.accept_next(&mut stream)) => {
                    match accepted {
                        Ok(Ok(())) => deadline = Instant::now() + SILENCE_MAX,
                        Ok(Err(error)) => return error,
                        Err(_elapsed) => return FollowError::Silent,
                    }
                }
            }
        }
    }

    /// Waits for one event and folds it in. Nothing is lost when the wait is cut short: what has arrived
    /// is folded before the next wait.
    async fn accept_next(&mut self, stream: &mut WatchStream) -> Result<(), FollowError> {
        let event = stream.next().await?.ok_or(FollowError::Ended)?;
        // What a node shows first may be old; whether it knows that, what comes next tells.
        let vouched = !matches!(event, WatchEvent::Snapshot(_));
        let accepted = self.follower.accept(event)?;
        if vouched {
            *self.last_event.lock() = Instant::now();
        }
        if accepted == Accepted::Changed {
            self.sender.send_replace(Arc::new(self.follower.view().clone()));
        }
        if accepted == Accepted::Changed || self.saved_at.elapsed() >= CONFIRM_EVERY {
            self.unsaved = self.file.is_some();
        }
        Ok(())
    }

    async fn save(&mut self) {
        let Some(file) = self.file.clone().filter(|_file| self.unsaved) else { return };
        let view = self.follower.view().clone();
        let heard = SystemTime::now() - self.last_event.lock().elapsed();
        let is_routers = self.client.is_routers();
        let saved =
            tokio::task::spawn_blocking(move || file::save(&file, &view, (heard, is_routers)));
        // A disk that hangs must not stop the view.
        match timeout(SILENCE_MAX, saved).await {
            Ok(Ok(Ok(()))) => {
                self.unsaved = false;
                self.saved_at = Instant::now();
            }
            Ok(Ok(Err(error))) => tracing::warn!(%error, "cannot save the cluster view"),
            Ok(Err(error)) => tracing::warn!(%error, "saving the cluster view panicked"),
            Err(_elapsed) => tracing::warn!("saving the cluster view takes over {SILENCE_MAX:?}"),
        }
    }
}

#[cfg(test)]
mod tests;
