//! The worker's load as a stream of numbered events.

use std::time::Duration;

use futures::stream::{self, Stream};
use phalanx_chassis::announce::Standing;
use phalanx_chassis::drain::{Drain, Phase};
use phalanx_proto::id::Epoch;
use phalanx_proto::view::MemberState;
use phalanx_proto::{REPORT_EVERY, pb};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use crate::engine::EngineLoad;

/// Reports are at least this far apart: a router that predicts from them gains nothing from more.
const REPORT_GAP_MIN: Duration = Duration::from_millis(50);

/// One follower's view of the load.
#[derive(Debug)]
pub(super) struct LoadFeed {
    pub(super) load: watch::Receiver<EngineLoad>,
    pub(super) standing: watch::Receiver<Standing>,
    pub(super) drain: Drain,
    /// Set once the last request is over: the stream ends, so that the server can.
    pub(super) closed: watch::Receiver<bool>,
}

/// A feed and what it has said so far.
struct Reporter {
    feed: LoadFeed,
    epoch: Epoch,
    sequence: u64,
    last: Option<Instant>,
}

impl LoadFeed {
    /// A report at once, then X
    pub(super) fn into_events(self) -> impl Stream<Item = pb::WorkerEvent> + Send {
        let epoch = self.standing.borrow().epoch;
        let reporter = Reporter { feed: self, epoch, sequence: 0, last: None };
        stream::unfold(reporter, |mut reporter| async {
            reporter.wait().await?;
            Some((reporter.report(), reporter))
        })
    }
}

impl Reporter {
    /// Until the next report is due; `None` when there will be none.
    async fn wait(&mut self) -> Option<()> {
        let Some(last) = self.last else { return (!*self.feed.closed.borrow()).then_some(()) };
        let drain = self.feed.drain.clone();
        let is_serving = drain.phase() == Phase::Serving;
        let change = async {
            tokio::select! {
                changed = self.feed.load.changed() => changed.is_ok(),
                changed = self.feed.standing.changed() => changed.is_ok(),
                () = drain.reached(Phase::Draining), if is_serving => true,
            }
        };
        tokio::select! {
            biased;
            _ = self.feed.closed.wait_for(|closed| *closed) => None,
            goes_on = async {
                sleep_until(last + REPORT_GAP_MIN).await;
                timeout(REPORT_EVERY - REPORT_GAP_MIN, change).await.unwrap_or(true)
            } => goes_on.then_some(()),
        }
    }

    fn report(&mut self) -> pb::WorkerEvent {
        self.last = Some(Instant::now());
        let Standing { epoch, state } = *self.feed.standing.borrow_and_update();
        if epoch != self.epoch {
            self.epoch = epoch;
            self.sequence = 0;
        }
        self.sequence += 1;
        let load = *self.feed.load.borrow_and_update();
        let draining = self.feed.drain.phase() > Phase::Serving || state == MemberState::Draining;
        pb::WorkerEvent {
            worker_epoch: epoch.0,
            sequence: self.sequence,
            event: Some(pb::worker_event::Event::Load(pb::Load {
                running: load.running,
                waiting: load.waiting,
                prefill_backlog_tokens: load.prefill_backlog_tokens,
                kv_blocks_free: load.kv_blocks_free,
                kv_blocks_total: load.kv_blocks_total,
                draining,
            })),
        }
    }
}
