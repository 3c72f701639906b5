//! A worker that offers its capacity and serves what control places on it.
//!
//! ```text
//! cluster view ──► duty (pure: view, what is in hand -> what to do) ──► load | report | unload ──► look again
//! ```
//!
//! One thing at a time. What it reports is read back from the view, so a lost report is said again and one that came
//! too late does no harm. A model that cannot be had is reported with its reason; the worker goes on.

mod duty;
mod memory;

use std::future::pending;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use phalanx_chassis::announce::Standing;
use phalanx_chassis::control_client::ControlClient;
use phalanx_chassis::drain::{Drain, Phase};
use phalanx_chassis::error_chain::chain;
use phalanx_chassis::watch::ViewWatch;
use phalanx_proto::change::{Change, FAILURE_BYTES_MAX, Registration};
use phalanx_proto::fault::FaultCode;
use phalanx_proto::id::{Epoch, MemberId, ModelName};
use phalanx_proto::view::{Capacity, ClusterView, GroupRef, ServedModel};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

use self::duty::{Duty, Hands, Task, duty};
use crate::StartError;
use crate::engine::EngineHandle;
use crate::host::{Host, Hosted};
use crate::metrics::WorkerMeter;
use crate::server::Seat;

/// After a report that did not arrive, or whose effect is not seen, it is made again after this time: about as long
/// as an election takes.
const REPORT_EVERY: Duration = Duration::from_secs(2);

/// A worker that was fenced and is back keeps its model this long without being told to: a leader places what is
/// missing within one look at the view, and an election may come between.
const ORPHAN_WAIT: Duration = Duration::from_secs(10);

/// Between telling control that a model is served no more and refusing requests for it: a view reaches every router
/// within a second.
const VIEW_WAIT: Duration = Duration::from_secs(1);

/// How long open requests may go on once their model is to leave: as long as a router lets a request take when its
/// client does not say.
const UNLOAD_WAIT_MAX: Duration = Duration::from_secs(600);

/// What a pool works with.
#[derive(Debug)]
pub(crate) struct Parts {
    /// Where model NAME is folder NAME.
    pub(crate) folder: PathBuf,
    pub(crate) host: Host,
    pub(crate) seat: Seat,
    pub(crate) meter: Arc<WorkerMeter>,
    /// What the worker registers as.
    pub(crate) registration: watch::Sender<Registration>,
    /// What control says of it.
    pub(crate) standing: watch::Receiver<Standing>,
    pub(crate) control: ControlClient,
}

/// The pool's driver.
#[derive(Debug)]
pub(crate) struct Pool {
    parts: Parts,
    hands: Hands,
    /// The engine of the model in hand, and the task that shows its load; the task ends with the engine.
    engine: Option<EngineHandle>,
    shown: JoinSet<()>,
    /// Until when a model is kept that nobody asked this member for.
    orphaned: Option<Instant>,
    /// The last group that this worker can be no rank of.
    passed: Option<GroupRef>,
    /// Names the reports for exactly-once application.
    client: String,
    sequence: u64,
}

/// Why a model that was assigned is not served.
#[derive(Debug, thiserror::Error)]
enum PlaceError {
    #[error("model {0} does not name a folder")]
    Name(ModelName),
    #[error("there is no model folder {}", .0.display())]
    NoFolder(PathBuf),
    #[error(transparent)]
    Load(#[from] StartError),
}

/// What a worker of this machine offers: the processor, as one device, and its memory.
pub(crate) fn capacity() -> Capacity {
    Capacity { devices: 1, memory_bytes: memory::bytes() }
}

// === impl Pool ===

impl Pool {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            parts,
            hands: Hands::Empty,
            engine: None,
            shown: JoinSet::new(),
            orphaned: None,
            passed: None,
            client: uuid::Uuid::new_v4().to_string(),
            sequence: 0,
        }
    }

    /// Does what the view asks until the process drains; from then on the worker leaves as any other does.
    pub(crate) async fn run(mut self, drain: &Drain) {
        tokio::select! {
            biased;
            () = drain.reached(Phase::Draining) => {}
            () = self.follow() => {}
        }
        pending::<()>().await;
    }

    async fn follow(&mut self) {
        let watch = ViewWatch::start(self.parts.control.clone(), None);
        let mut view = watch.view();
        loop {
            let now = Arc::clone(&view.borrow_and_update());
            let epoch = self.parts.standing.borrow_and_update().epoch;
            let next = duty(&now, epoch, &self.hands);
            if next != Duty::UnloadLater {
                self.orphaned = None;
            }
            let until = match next {
                Duty::Wait => None,
                Duty::Load(task) if task.ranks > 1 => {
                    self.pass(&task);
                    None
                }
                Duty::Load(task) => {
                    self.load(task).await;
                    continue;
                }
                Duty::Adopt(member) => {
                    self.adopt(member);
                    continue;
                }
                Duty::Report(change) => {
                    self.report(change).await;
                    Some(Instant::now() + REPORT_EVERY)
                }
                Duty::UnloadLater => {
                    let until = *self.orphaned.get_or_insert_with(|| Instant::now() + ORPHAN_WAIT);
                    if until <= Instant::now() && self.unload(&now, epoch).await {
                        continue;
                    }
                    Some(until.max(Instant::now() + REPORT_EVERY))
                }
                Duty::Unload => {
                    if self.unload(&now, epoch).await {
                        continue;
                    }
                    Some(Instant::now() + REPORT_EVERY)
                }
            };
            self.wait(&mut view, until).await;
        }
    }

    /// Until there is reason to look again.
    async fn wait(&mut self, view: &mut watch::Receiver<Arc<ClusterView>>, until: Option<Instant>) {
        tokio::select! {
            changed = view.changed() => {
                if changed.is_err() {
                    pending::<()>().await; // the follower ends with this loop
                }
            }
            _changed = self.parts.standing.changed() => {}
            () = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => pending().await,
                }
            } => {}
            Some(_ended) = self.shown.join_next() => {
                let epoch = self.parts.standing.borrow().epoch;
                self.lose(&Arc::clone(&view.borrow()), epoch);
            }
        }
    }

    /// A rank of many needs a way to the others, which this worker does not have: the group stays as it is.
    fn pass(&mut self, task: &Task) {
        if self.passed.replace(task.group) != Some(task.group) {
            let Task { group, rank, ranks, .. } = task;
            warn!(%group, rank, ranks, "this worker runs whole models only, the group has to wait");
        }
    }

    fn adopt(&mut self, member: MemberId) {
        if let Hands::Full { member_id, .. } = &mut self.hands {
            *member_id = member;
        }
    }

    async fn load(&mut self, task: Task) {
        let Task { name, group, .. } = &task;
        info!(%name, revision = %task.revision, %group, "loading a model that was placed here");
        match self.hosted(&task).await {
            Ok(Hosted { seated, model }) => {
                info!(%name, "the model is loaded");
                let engine = seated.engine.clone();
                let (meter, load) = (Arc::clone(&self.parts.meter), engine.load());
                self.shown.spawn(async move { meter.follow(load).await });
                self.engine = Some(engine);
                self.parts.seat.take(seated);
                self.announce(vec![model.clone()]);
                self.hands = Hands::Full { model, member_id: task.member_id };
            }
            Err(error) => {
                let reason = chain(&error);
                warn!(%name, reason, "cannot serve the model that was placed here");
                self.fail(task.group, reason);
            }
        }
    }

    async fn hosted(&self, task: &Task) -> Result<Hosted, PlaceError> {
        let Parts { folder, host, meter, .. } = &self.parts;
        let folder = folder_of(folder, &task.name)?;
        let wanted = (task.name.clone(), Some(task.revision.clone()));
        Ok(host.load(folder, wanted, meter.step_observer()).await?)
    }

    /// The engine ended by itself: what it served is served no more.
    fn lose(&mut self, view: &ClusterView, epoch: Epoch) {
        self.parts.seat.close();
        self.engine = None;
        self.announce(Vec::new());
        self.hands = Hands::Empty;
        if let Some(task) = duty::task_of(view, epoch) {
            self.fail(task.group, "the engine has stopped".to_owned());
        }
    }

    fn fail(&mut self, group: GroupRef, mut reason: String) {
        reason.truncate(reason.floor_char_boundary(FAILURE_BYTES_MAX));
        self.hands = Hands::Failed { group, reason };
    }

    /// Lets go of the model once nobody is sent here for it and the last request is over. False: control could not
    /// be told, so the model is kept.
    async fn unload(&mut self, view: &ClusterView, epoch: Epoch) -> bool {
        let Hands::Full { model, .. } = &self.hands else { return true };
        let name = model.name.clone();
        if let Some(change) = duty::serve_nothing(view, epoch)
            && !self.report(change).await
        {
            return false;
        }
        info!(%name, "the model is wanted here no more, finishing its requests");
        self.announce(Vec::new());
        sleep(VIEW_WAIT).await;
        self.parts.seat.close();
        if timeout(UNLOAD_WAIT_MAX, self.parts.seat.idle()).await.is_err() {
            warn!(%name, "requests were still open after {UNLOAD_WAIT_MAX:?}, ending them");
        }
        // Ends with its last request in any case; a second stop does nothing.
        if let Some(engine) = self.engine.take() {
            engine.stop();
        }
        // Its memory is free before the next model is loaded.
        while self.shown.join_next().await.is_some() {}
        self.hands = Hands::Empty;
        info!(%name, "the model is unloaded");
        true
    }

    /// What a registration says from now on, if one is needed.
    fn announce(&self, models: Vec<ServedModel>) {
        self.parts.registration.send_modify(|registration| registration.models = models);
    }

    /// Whether control has heard it. A refusal counts: the cluster has moved on, as the view will show.
    async fn report(&mut self, change: Change) -> bool {
        self.sequence += 1;
        let Err(fault) = self.parts.control.submit(&self.client, self.sequence, change).await
        else {
            return true;
        };
        match fault.code {
            FaultCode::StaleEpoch | FaultCode::InvalidRequest => {
                info!(%fault, "a report was not needed any more");
                true
            }
            _ => {
                warn!(%fault, "a report was lost, will try again");
                false
            }
        }
    }
}

/// The folder of a model below `folder`: nothing above it, and nowhere else.
fn folder_of(folder: &Path, name: &ModelName) -> Result<PathBuf, PlaceError> {
    let below = Path::new(name.as_str());
    let is_plain = below.components().all(|part| matches!(part, Component::Normal(_)));
    if !is_plain || name.as_str().is_empty() {
        return Err(PlaceError::Name(name.clone()));
    }
    let path = folder.join(below);
    if path.is_dir() { Ok(path) } else { Err(PlaceError::NoFolder(path)) }
}

#[cfg(test)]
mod tests;
