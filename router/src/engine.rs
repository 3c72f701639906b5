//! One engine that answers requests: who it is, whether it is up, what it is doing, how fast it is.
//!
//! Of a native worker, [`link`] keeps the connection and its load reports, [`hearing`] tells whether they still come,
//! and [`native`] makes one call over it. A [`foreign`] engine is any server that speaks OpenAI's API.

pub(crate) mod foreign;
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

use self::foreign::Foreign;
use self::hearing::{Condition, WakingClock};
use self::native::Native;
use crate::dispatch::cost::{ANSWER_TOKENS_UNKNOWN, Offer, Work};
use crate::dispatch::credit::{Credit, CreditGuard};
use crate::dispatch::health::{Health, HealthPolicy};
use crate::dispatch::prefix_index::PrefixIndex;
use crate::dispatch::prefix_index::holding::Holding;
use crate::dispatch::rates::{Estimate, SharedRates, real};
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
    pub(crate) models: Arc<Vec<Served>>,
    pub(crate) kind: Kind,
    pub(crate) health: Arc<Health>,
    books: Arc<Books>,
}

/// One model that an engine serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Served {
    pub(crate) name: ModelName,
    /// Foreign engines do not tell.
    pub(crate) revision: Option<Revision>,
    pub(crate) context_tokens_max: Option<u32>,
}

/// What one engine is doing, and how fast it is: kept when all that changes is what it serves.
#[derive(Debug)]
pub(crate) struct Books {
    load: Load,
    credit: Arc<Credit>,
    requests_max: Option<u64>,
    room: Arc<Room>,
    estimate: Mutex<Estimate>,
    /// The estimate, for dispatch to read.
    rates: SharedRates,
    /// What its prefix cache holds.
    holding: Holding,
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
    /// What their caches hold.
    pub(crate) index: Arc<PrefixIndex>,
}

/// How an engine is reached.
#[derive(Debug)]
pub(crate) enum Kind {
    /// A registered worker, over gRPC.
    Native(Arc<Native>),
    /// A server that speaks OpenAI's API.
    Foreign(Arc<Foreign>),
}

/// Some kinds of engines: those that serve a model, or those that can take a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kinds {
    pub(crate) native: bool,
    pub(crate) foreign: bool,
}

/// The engine's latest report of itself, which covers other routers' requests too.
#[derive(Debug, Default)]
struct Load {
    draining: AtomicBool,
    sequences: AtomicU32,
    /// Of these, what other routers sent.
    others: AtomicU32,
    /// [`Saturation`], packed.
    saturation: AtomicU64,
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
            models: Arc::new(member.models.iter().map(Served::from).collect()),
            kind: Kind::Native(Arc::new(Native::new(member, Arc::clone(&around.clock)))),
            books: Arc::new(Books::new(around, Holding::reported(&around.index))),
        }
    }

    /// `foreign` with what it serves.
    pub(crate) fn of_foreign(
        foreign: &Arc<Foreign>,
        models: Arc<Vec<Served>>,
        policy: HealthPolicy,
    ) -> Self {
        let identity = foreign.identity.clone();
        let health = Arc::new(Health::new(identity.clone(), models.len(), policy));
        Self {
            identity,
            health,
            models,
            kind: Kind::Foreign(Arc::clone(foreign)),
            books: Arc::clone(&foreign.books),
        }
    }

    pub(crate) const fn id(&self) -> MemberId {
        self.identity.id
    }

    /// Whether it is the engine of that registration.
    pub(crate) fn is_of(&self, member: &Member) -> bool {
        match &self.kind {
            Kind::Native(native) => {
                self.id() == member.id
                    && native.is_of(member)
                    && member.models.iter().map(Served::from).eq(self.models.iter().cloned())
            }
            Kind::Foreign(_) => false,
        }
    }

    /// Its own kind.
    pub(crate) const fn kinds(&self) -> Kinds {
        match &self.kind {
            Kind::Native(_) => Kinds::NATIVE,
            Kind::Foreign(_) => Kinds::FOREIGN,
        }
    }

    /// Whether it is of one of these kinds.
    pub(crate) const fn is_among(&self, kinds: Kinds) -> bool {
        match &self.kind {
            Kind::Native(_) => kinds.native,
            Kind::Foreign(_) => kinds.foreign,
        }
    }

    /// Connected and taking work.
    pub(crate) fn is_up(&self) -> bool {
        match &self.kind {
            Kind::Native(native) => {
                !self.books.load.draining.load(Ordering::Relaxed) && native.is_connected()
            }
            Kind::Foreign(foreign) => foreign.is_up(),
        }
    }

    /// Up, reporting as it should, and not known to hang.
    pub(crate) fn is_heard(&self) -> bool {
        self.is_up()
            && match &self.kind {
                Kind::Native(native) => !native.hearing.is_silent() && !native.hearing.is_stuck(),
                // It promises no reports.
                Kind::Foreign(_) => true,
            }
    }

    /// Notes the condition that it is in; the news, if that changed since the last time.
    pub(crate) fn note_condition(&self) -> Option<Condition> {
        match &self.kind {
            Kind::Native(native) => native.note(self.requests() > 0),
            Kind::Foreign(_) => None,
        }
    }

    /// Resolves once it is not well: what it has in hand is better off elsewhere.
    pub(crate) fn failing(&self) -> BoxFuture<'static, Condition> {
        match &self.kind {
            Kind::Native(native) => Box::pin(native.failing()),
            // What it has in hand cannot go on elsewhere.
            Kind::Foreign(_) => Box::pin(std::future::pending()),
        }
    }

    /// Takes a sign that it computes.
    pub(crate) fn stepped(&self) {
        if let Kind::Native(native) = &self.kind {
            native.hearing.stepped();
        }
    }

    /// The revision it serves of `model`, if it does.
    pub(crate) fn revision(&self, model: &ModelName) -> Option<&Revision> {
        self.models.iter().find(|served| served.name == *model)?.revision.as_ref()
    }

    /// The index of `model` among what it serves.
    pub(crate) fn model_index(&self, model: &ModelName) -> Option<usize> {
        self.models.iter().position(|served| served.name == *model)
    }

    /// The longest prompt and answer together that it takes for `model`.
    pub(crate) fn context_tokens_max(&self, model: &ModelName) -> u32 {
        let served = self.models.iter().find(|served| served.name == *model);
        served.and_then(|served| served.context_tokens_max).unwrap_or(0)
    }

    /// Takes its report of itself.
    pub(crate) fn report(&self, load: &pb::Load) {
        self.books.load.draining.store(load.draining, Ordering::Relaxed);
        let has_changed =
            self.books.report((load.running, load.waiting), load.prefill_backlog_tokens);
        if let Kind::Native(native) = &self.kind {
            native.hearing.heard();
            if has_changed {
                native.hearing.stepped();
            }
        }
    }

    /// Whether it would begin with a further request at once, or nearly.
    pub(crate) fn has_room(&self, now: Instant) -> bool {
        self.books.has_room() && !self.health.asked_for_pause(now)
    }

    /// What its prefix cache holds, as far as is known.
    pub(crate) fn holding(&self) -> &Holding {
        &self.books.holding
    }

    /// Whether it has prompts to compute, as far as is known.
    pub(crate) fn is_prefilling(&self) -> bool {
        self.books.credit.outstanding().prefill_tokens > 0
            || self.books.load.prefill_backlog_tokens.load(Ordering::Relaxed) > 0
    }

    /// What dispatch compares, but for what the engine holds of the prompt.
    pub(crate) fn offer(&self) -> Offer {
        let ours = self.books.credit.outstanding();
        let backlog = self.books.load.prefill_backlog_tokens.load(Ordering::Relaxed);
        let sequences = u64::from(self.books.load.sequences.load(Ordering::Relaxed));
        // Sequences that are not ours come from other routers; each has about as much left as ours do.
        let others = sequences.saturating_sub(self.books.credit.requests());
        let decode = ours.decode_tokens + others * ANSWER_TOKENS_UNKNOWN / 2;
        let prefill = ours.prefill_tokens.max(backlog);
        Offer {
            outstanding: Work { prefill_tokens: prefill, decode_tokens: decode },
            sequences: sequences.max(self.books.credit.requests()),
            prefill: self.books.rates.prefill(),
            step: self.books.rates.step(),
            answer_tokens: self.books.rates.answer_tokens(),
            ..Offer::default()
        }
    }

    /// What it charges for `work`. Native workers are paid for whether they work or not.
    pub(crate) fn money(&self, work: Work) -> f64 {
        match &self.kind {
            Kind::Native(_) => 0.0,
            Kind::Foreign(foreign) => {
                foreign.price.of_tokens(real(work.prefill_tokens), real(work.decode_tokens))
            }
        }
    }

    /// Sends `work` its way, as far as the books are concerned.
    pub(crate) fn take_credit(&self, work: Work) -> CreditGuard {
        if let Kind::Native(native) = &self.kind
            && self.books.credit.requests() == 0
        {
            native.hearing.begun();
        }
        CreditGuard::take(Arc::clone(&self.books.credit), work)
    }

    /// Requests of this router in progress there.
    pub(crate) fn requests(&self) -> u64 {
        self.books.credit.requests()
    }

    pub(crate) fn learn(&self, observe: impl FnOnce(&mut Estimate)) {
        let mut estimate = self.books.estimate.lock();
        observe(&mut estimate);
        self.books.rates.publish(&estimate);
    }
}

// === impl Served ===

impl From<&ServedModel> for Served {
    fn from(model: &ServedModel) -> Self {
        Self {
            name: model.name.clone(),
            revision: Some(model.revision.clone()),
            context_tokens_max: Some(model.context_tokens_max),
        }
    }
}

// === impl Books ===

impl Books {
    pub(crate) fn new(around: &Surroundings, holding: Holding) -> Self {
        Self {
            load: Load::default(),
            credit: Arc::new(Credit::new(Arc::clone(&around.room))),
            requests_max: around.requests_max,
            room: Arc::clone(&around.room),
            estimate: Mutex::default(),
            rates: SharedRates::default(),
            holding,
        }
    }

    /// Takes an engine's count of the requests that it computes and that wait there, whoever sent them, and of the
    /// tokens that it has to read for them. Whether they differ from those before.
    pub(crate) fn report(&self, (running, waiting): (u32, u32), backlog: u64) -> bool {
        let load = &self.load;
        let sequences = running.saturating_add(waiting);
        let sequences_before = load.sequences.swap(sequences, Ordering::Relaxed);
        let backlog_before = load.prefill_backlog_tokens.swap(backlog, Ordering::Relaxed);
        let ours = u32::try_from(self.credit.requests()).unwrap_or(u32::MAX);
        load.others.store(sequences.saturating_sub(ours), Ordering::Relaxed);
        let mut saturation = Saturation::unpacked(load.saturation.load(Ordering::Relaxed));
        saturation.report(running, waiting);
        load.saturation.store(saturation.packed(), Ordering::Relaxed);
        self.room.freed();
        (sequences, backlog) != (sequences_before, backlog_before)
    }

    fn has_room(&self) -> bool {
        let ours = self.credit.requests();
        let sequences = ours + u64::from(self.load.others.load(Ordering::Relaxed));
        let saturation = Saturation::unpacked(self.load.saturation.load(Ordering::Relaxed));
        self.requests_max.is_none_or(|max| ours < max) && !saturation.is_reached(sequences)
    }
}

// === impl Kinds ===

impl Kinds {
    pub(crate) const NATIVE: Self = Self { native: true, foreign: false };
    pub(crate) const FOREIGN: Self = Self { native: false, foreign: true };

    /// These and `others`.
    pub(crate) const fn and(self, others: Self) -> Self {
        Self { native: self.native || others.native, foreign: self.foreign || others.foreign }
    }
}
