//! Clients that write to a control group, each command under its own name so that it may be repeated, and a
//! watcher that sees what comes of it. What they meet goes into a [`History`], which judges it.
//!
//! A write sets the alias of its client to its own sequence, so that every change of the view names the
//! write that made it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;
use phalanx_chassis::control_client::{ControlClient, WatchStream};
use phalanx_proto::change::{Change, WatchEvent};
use phalanx_proto::fault::FaultCode;
use phalanx_proto::id::{Lineage, ViewIndex};
use phalanx_proto::view::{Alias, AliasTarget, ViewOp};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};

use crate::history::{History, Summary};

/// Between two tries of one write or watch: long against a refusal, short against an election.
const RETRY_EVERY: Duration = Duration::from_millis(20);
/// A control node says something every second; one that is silent for this long is left.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// How long the watcher may take to see the last write.
const SHOWN_MAX: Duration = Duration::from_secs(30);

/// Who writes, and how often.
#[derive(Clone, Debug)]
pub struct Load {
    /// Names the clients; no two loads on one group may share it.
    pub name: &'static str,
    /// How many clients there are.
    pub clients: u32,
    /// Between two writes of one client, whether the first was answered or not: one that had to wait is
    /// followed by those that fell due meanwhile. Zero: one write after the other.
    pub every: Duration,
    /// How long a client repeats one write before it is lost.
    pub patience: Duration,
}

/// Clients that write until they are told to end.
#[derive(Debug)]
pub struct Writers {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    clients: JoinSet<Result<()>>,
    watcher: JoinHandle<Result<()>>,
    /// How far the watcher is.
    seen: watch::Receiver<ViewIndex>,
}

#[derive(Debug)]
struct Shared {
    started: Instant,
    history: Mutex<History>,
    /// How many writes were acknowledged.
    acknowledged: watch::Sender<u64>,
}

/// Follows the view and enters what it sees.
struct Watcher {
    shared: Arc<Shared>,
    name: &'static str,
    client: ControlClient,
    lineage: Lineage,
    seen: watch::Sender<ViewIndex>,
}

// === impl Load ===

impl Load {
    /// This many clients that together write so often.
    pub fn per_second(name: &'static str, clients: u32, writes: u32) -> Self {
        let every = Duration::from_secs(1) * clients / writes;
        Self { name, clients, every, patience: Duration::from_secs(60) }
    }

    /// This many clients that each write again as soon as they are answered.
    pub fn closed_loop(name: &'static str, clients: u32) -> Self {
        Self { name, clients, every: Duration::ZERO, patience: Duration::from_secs(60) }
    }
}

// === impl Writers ===

impl Writers {
    /// Begins to write to the nodes at `urls`, and returns once the first write is acknowledged.
    ///
    /// # Errors
    /// When none of them takes a write.
    pub async fn start(urls: &[String], load: &Load) -> Result<Self> {
        let (acknowledged, mut acknowledgements) = watch::channel(0);
        let history = Mutex::default();
        let shared = Arc::new(Shared { started: Instant::now(), history, acknowledged });
        let (seen_sender, seen) = watch::channel(ViewIndex(0));
        let watcher = Watcher {
            shared: Arc::clone(&shared),
            name: load.name,
            client: ControlClient::new(urls)?,
            lineage: Lineage(0),
            seen: seen_sender,
        };
        let watcher = tokio::spawn(watcher.run());
        let (stop, stopped) = watch::channel(false);
        let mut clients = JoinSet::new();
        for number in 0..load.clients {
            // Each begins at another node, so that followers pass writes on, too.
            let mut urls = urls.to_vec();
            let begin = usize::try_from(number)? % urls.len();
            urls.rotate_left(begin);
            let writer = Writer {
                shared: Arc::clone(&shared),
                name: format!("{}-{number}", load.name),
                client: ControlClient::new(&urls)?,
                patience: load.patience,
            };
            let first = Instant::now() + load.every * number / load.clients;
            clients.spawn(writer.run(first, load.every, stopped.clone()));
        }
        let first = acknowledgements.wait_for(|count| *count > 0);
        timeout(load.patience, first).await.context("no write was acknowledged")??;
        Ok(Self { shared, stop, clients, watcher, seen })
    }

    /// The moment, as the history counts.
    pub fn now(&self) -> Duration {
        self.shared.started.elapsed()
    }

    /// Waits until a write that was due after `moment` is acknowledged; gives the time from then to there.
    ///
    /// # Errors
    /// When none is `within` that time.
    pub async fn acknowledged_after(&self, moment: Duration, within: Duration) -> Result<Duration> {
        let mut counts = self.shared.acknowledged.subscribe();
        let first = async {
            loop {
                counts.borrow_and_update();
                if let Some(at) = self.shared.history.lock().first_after(moment) {
                    return Ok(at.saturating_sub(moment));
                }
                counts.changed().await?;
            }
        };
        timeout(within, first).await.with_context(|| format!("no write within {within:?}"))?
    }

    /// The longest time without an acknowledgement from `moment` to the last one.
    pub fn silence_max_since(&self, moment: Duration) -> Duration {
        self.shared.history.lock().silence_max_since(moment)
    }

    /// Waits until this many more writes are acknowledged.
    ///
    /// # Errors
    /// When they are not `within` that time.
    pub async fn acknowledge(&self, more: u64, within: Duration) -> Result<()> {
        let mut counts = self.shared.acknowledged.subscribe();
        let target = *counts.borrow() + more;
        let reached = timeout(within, counts.wait_for(|count| *count >= target)).await;
        reached.with_context(|| format!("not {more} writes within {within:?}"))??;
        Ok(())
    }

    /// Ends the writing, waits until the watcher has seen the last write, and judges.
    ///
    /// # Errors
    /// When a client gave a write up, or a write was lost, applied twice or moved.
    pub async fn end(self) -> Result<Summary> {
        self.end_with(History::check).await?
    }

    /// As [`Self::end`], with what the caller wants of the history.
    ///
    /// # Errors
    /// When a client gave a write up, or the watcher does not see the last one.
    pub async fn end_with<T>(mut self, look: impl FnOnce(&History) -> T) -> Result<T> {
        self.stop.send_replace(true);
        while let Some(ended) = self.clients.join_next().await {
            ended??;
        }
        let last = self.shared.history.lock().index_max();
        let shown = timeout(SHOWN_MAX, self.seen.wait_for(|seen| *seen >= last)).await;
        if !matches!(shown, Ok(Ok(_))) {
            if self.watcher.is_finished() {
                (&mut self.watcher).await??;
            }
            bail!("the watcher has not seen {last} after {SHOWN_MAX:?}");
        }
        Ok(look(&self.shared.history.lock()))
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

/// One client.
struct Writer {
    shared: Arc<Shared>,
    name: String,
    client: ControlClient,
    patience: Duration,
}

impl Writer {
    async fn run(
        self,
        first: Instant,
        every: Duration,
        mut stopped: watch::Receiver<bool>,
    ) -> Result<()> {
        // An interval of zero would panic.
        let mut due = (!every.is_zero()).then(|| interval_at(first, every));
        if let Some(due) = &mut due {
            due.set_missed_tick_behavior(MissedTickBehavior::Burst);
        }
        loop {
            let next = async {
                match &mut due {
                    Some(due) => due.tick().await,
                    None => Instant::now(),
                }
            };
            let due = tokio::select! {
                biased;
                _ = stopped.wait_for(|stop| *stop) => return Ok(()),
                due = next => due,
            };
            self.write(due).await?;
        }
    }

    /// Sends one write until it is answered.
    async fn write(&self, due: Instant) -> Result<()> {
        let since = |moment: Instant| moment.duration_since(self.shared.started);
        let sequence = self.shared.history.lock().due(&self.name, since(due));
        let weight = u32::try_from(sequence)?;
        let target = AliasTarget { model: "written".into(), revision: None, weight };
        let name = self.name.as_str().into();
        let targets = vec![target];
        let change = Change::SetAlias(Alias { name, targets, shadow: None, previous: None });
        let deadline = Instant::now() + self.patience;
        loop {
            self.shared.history.lock().sent(&self.name);
            let answer = self.client.submit(&self.name, sequence, change.clone()).await;
            let fault = match answer {
                Ok(index) => {
                    let now = since(Instant::now());
                    self.shared.history.lock().acknowledged(&self.name, index, now);
                    self.shared.acknowledged.send_modify(|count| *count += 1);
                    return Ok(());
                }
                Err(fault) => fault,
            };
            let (name, patience) = (&self.name, self.patience);
            ensure!(!is_final(fault.code), "{name} was refused {sequence}: {fault}");
            let in_time = Instant::now() < deadline;
            ensure!(in_time, "{name} gave {sequence} up after {patience:?}: {fault}");
            sleep(RETRY_EVERY).await;
        }
    }
}

/// Whether the same write will be refused again.
const fn is_final(code: FaultCode) -> bool {
    matches!(
        code,
        FaultCode::InvalidRequest
            | FaultCode::ContextLengthExceeded
            | FaultCode::ModelNotFound
            | FaultCode::StaleEpoch
            | FaultCode::Numerical
    )
}

// === impl Watcher ===

impl Watcher {
    /// Ends only when it is aborted, or sees what no watcher may see.
    async fn run(mut self) -> Result<()> {
        loop {
            let after = *self.seen.borrow();
            if let Ok(stream) = self.client.watch(self.lineage, after).await {
                self.follow(stream).await?;
            }
            self.client.rotate();
            sleep(RETRY_EVERY).await;
        }
    }

    /// Follows one node for as long as it speaks.
    async fn follow(&mut self, mut stream: WatchStream) -> Result<()> {
        while let Ok(Ok(Some(event))) = timeout(SILENCE_MAX, stream.next()).await {
            let after = *self.seen.borrow();
            let index = match event {
                WatchEvent::Snapshot(view) => {
                    let known = self.lineage == view.lineage || self.lineage == Lineage(0);
                    ensure!(known, "the lineage was {}, it is {}", self.lineage, view.lineage);
                    self.lineage = view.lineage;
                    for alias in view.aliases.values() {
                        self.enter(alias, |history, name, sequence| {
                            history.shown_latest(name, sequence, view.index);
                        });
                    }
                    view.index
                }
                WatchEvent::Delta(delta) => {
                    for op in &delta.ops {
                        if let ViewOp::PutAlias(alias) = op {
                            self.enter(alias, |history, name, sequence| {
                                history.shown(name, sequence, delta.index);
                            });
                        }
                    }
                    delta.index
                }
                WatchEvent::Bookmark(index) => index,
            };
            ensure!(index >= after, "the watcher was at {after}, then at {index}");
            self.seen.send_replace(index);
        }
        Ok(())
    }

    /// Enters what an alias says of one of this load's clients.
    fn enter(&self, alias: &Alias, enter: impl FnOnce(&mut History, &str, u64)) {
        let Some(target) = alias.targets.first() else { return };
        let rest = alias.name.as_str().strip_prefix(self.name);
        if rest.is_some_and(|rest| rest.starts_with('-')) {
            let mut history = self.shared.history.lock();
            enter(&mut history, alias.name.as_str(), u64::from(target.weight));
        }
    }
}
