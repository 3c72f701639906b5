//! One engine that answers requests: who it is, whether it is up, what it is doing, how fast it is.
//!
//! Of a native worker, [`link`] keeps the connection and its load reports, [`hearing`] tells whether they still come,
//! and [`native`] makes one call over it.

pub(crate) mod hearing;
pub(crate) mod link;
pub(crate) mod native;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use phalanx_proto::id::{MemberId, ModelName, Revision};
use phalanx_proto::pb;
use phalanx_proto::view::{Member, ServedModel};

use self::hearing::{Condition, WakingClock};
use self::native::Native;
use crate::ask::ANSWER_TOKENS_EXPECTED;
use crate::dispatch::cost::{Estimate, Offer, Work};
use crate::dispatch::credit::{Credit, CreditGuard};
use crate::dispatch::health::{Health, HealthPolicy};
use crate::dispatch::room::Room;
use crate::dispatch::saturation::Saturation;

/// Who an engine is: to this process, and to people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: MemberId,
    pub(crate) name: Arc<str>,
}

/// One engine with what it serves. When that changes, or its registration does, it is a new engine.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) identity: Identity,
    pub(crate) models: Vec<ServedModel>,
    pub(crate) kind: Kind,
    load: Load,
    pub(crate) health: Arc<Health>,
    credit: Arc<Credit>,
    requests_max: Option<u64>,
    room: Arc<Room>,
    estimate: Mutex<Estimate>,
}

/// What all engines of a router have in common.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings {
    /// What their silence is counted by.
    pub(crate) clock: Arc<WakingClock>,
    /// What their failures are judged by.
    pub(crate) policy: HealthPolicy,
    /// Most requests that this router has at one engine; none: as many as it computes at once.
    pub(crate) requests_max: Option<u64>,
    /// Told when one of them may take more.
    pub(crate) room: Arc<Room>,
}

/// How an engine is reached.
#[derive(Debug)]
pub(crate) enum Kind {
    /// A registered worker, over gRPC.
    Native(Arc<Native>),
}

/// The engine's latest report of itself, which covers other routers' requests too.
#[derive(Debug, Default)]
struct Load {
    draining: AtomicBool,
    sequences: AtomicU32,
    /// Of these, what other routers sent.
    others: AtomicU32,
    /// [`Saturation`], packed.
    saturation: AtomicU32,
    prefill_backlog_tokens: AtomicU64,
}

// === impl Identity ===

impl Identity {
    /// A member of the cluster goes by its number.
    pub(crate) fn of_member(id: MemberId) -> Self {
        Self { id, name: id.to_string().into() }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

// === impl Engine ===

impl Engine {
    /// The engine of a registration; down until its link is up.
    pub(crate) fn of_member(member: &Member, around: &Surroundings) -> Self {
        let identity = Identity::of_member(member.id);
        let health = Arc::new(Health::new(identity.clone(), member.models.len(), around.policy));
        Self {
            identity,
            health,
            models: member.models.clone(),
            kind: Kind::Native(Arc::new(Native::new(member, Arc::clone(&around.clock)))),
            load: Load::default(),
            credit: Arc::new(Credit::new(Arc::clone(&around.room))),
            requests_max: around.requests_max,
            room: Arc::clone(&around.room),
            estimate: Mutex::default(),
        }
    }

    pub(crate) const fn id(&self) -> MemberId {
        self.identity.id
    }

    /// Whether it is the engine of that registration.
    pub(crate) fn is_of(&self, member: &Member) -> bool {
        let Kind::Native(native) = &self.kind;
        self.id() == member.id && native.is_of(member) && self.models == member.models
    }

    /// Connected and taking work.
    pub(crate) fn is_up(&self) -> bool {
        let Kind::Native(native) = &self.kind;
        !self.load.draining.load(Ordering::Relaxed) && native.is_connected()
    }

    /// Up, reporting as it should, and not known to hang.
    pub(crate) fn is_heard(&self) -> bool {
        let Kind::Native(native) = &self.kind;
        self.is_up() && !native.hearing.is_silent() && !native.hearing.is_stuck()
    }

    /// Notes the condition that it is in; the news, if that changed since the last time.
    pub(crate) fn note_condition(&self) -> Option<Condition> {
        let Kind::Native(native) = &self.kind;
        native.note(self.requests() > 0)
    }

    /// Resolves once it is not well: what it has in hand is better off elsewhere.
    pub(crate) fn failing(&self) -> BoxFuture<'static, Condition> {
        let Kind::Native(native) = &self.kind;
        Box::pin(native.failing())
    }

    /// Takes a sign that it computes.
    pub(crate) fn stepped(&self) {
        let Kind::Native(native) = &self.kind;
        native.hearing.stepped();
    }

    /// The revision it serves of `model`, if it does.
    pub(crate) fn revision(&self, model: &ModelName) -> Option<&Revision> {
        self.models.iter().find(|served| served.name == *model).map(|served| &served.revision)
    }

    /// The index of `model` among what it serves.
    pub(crate) fn model_index(&self, model: &ModelName) -> Option<usize> {
        self.models.iter().position(|served| served.name == *model)
    }

    /// The longest prompt and answer together that it takes for `model`.
    pub(crate) fn context_tokens_max(&self, model: &ModelName) -> u32 {
        let served = self.models.iter().find(|served| served.name == *model);
        served.map_or(0, |served| served.context_tokens_max)
    }

    /// Takes its report of itself.
    pub(crate) fn report(&self, load: &pb::Load) {
        let Kind::Native(native) = &self.kind;
        native.hearing.heard();
        self.load.draining.store(load.draining, Ordering::Relaxed);
        let sequences = load.running.saturating_add(load.waiting);
        let backlog = load.prefill_backlog_tokens;
        let sequences_before = self.load.sequences.swap(sequences, Ordering::Relaxed);
        let backlog_before = self.load.prefill_backlog_tokens.swap(backlog, Ordering::Relaxed);
        if (sequences, backlog) != (sequences_before, backlog_before) {
            native.hearing.stepped();
        }
        let ours = u32::try_from(self.requests()).unwrap_or(u32::MAX);
        self.load.others.store(sequences.saturating_sub(ours), Ordering::Relaxed);
        let mut saturation = Saturation::unpacked(self.load.saturation.load(Ordering::Relaxed));
        saturation.report(load.running, load.waiting);
        self.load.saturation.store(saturation.packed(), Ordering::Relaxed);
        self.room.freed();
    }

    /// Whether it would begin with a further request at once, or nearly.
    pub(crate) fn has_room(&self, now: Instant) -> bool {
        let ours = self.requests();
        let sequences = ours + u64::from(self.load.others.load(Ordering::Relaxed));
        let saturation = Saturation::unpacked(self.load.saturation.load(Ordering::Relaxed));
        self.requests_max.is_none_or(|max| ours < max)
            && !saturation.is_reached(sequences)
            && !self.health.asked_for_pause(now)
    }

    /// What dispatch compares.
    pub(crate) fn offer(&self) -> Offer {
        let ours = self.credit.outstanding();
        let backlog = self.load.prefill_backlog_tokens.load(Ordering::Relaxed);
        let sequences = u64::from(self.load.sequences.load(Ordering::Relaxed));
        // Sequences that are not ours come from other routers; each has about as much left as ours do.
        let others = sequences.saturating_sub(self.credit.requests());
        let decode = ours.decode_tokens + others * ANSWER_TOKENS_EXPECTED / 2;
        let prefill = ours.prefill_tokens.max(backlog);
        Offer {
            outstanding: Work { prefill_tokens: prefill, decode_tokens: decode },
            estimate: *self.estimate.lock(),
        }
    }

    /// Sends `work` its way, as far as the books are concerned.
    pub(crate) fn take_credit(&self, work: Work) -> CreditGuard {
        let Kind::Native(native) = &self.kind;
        if self.credit.requests() == 0 {
            native.hearing.begun();
        }
        CreditGuard::take(Arc::clone(&self.credit), work)
    }

    /// Requests of this router in progress there.
    pub(crate) fn requests(&self) -> u64 {
        self.credit.requests()
    }

    pub(crate) fn learn(&self, observe: impl FnOnce(&mut Estimate)) {
        observe(&mut self.estimate.lock());
    }
}
