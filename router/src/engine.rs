//! One engine that answers requests: who it is, whether it is up, what it is doing, how fast it is.
//!
//! [`link`] keeps the connection and its load reports, [`hearing`] tells whether they still come; [`native`] makes
//! one call over it.

pub(crate) mod hearing;
pub(crate) mod link;
pub(crate) mod native;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use phalanx_proto::id::{Epoch, MemberId, ModelName, Revision};
use phalanx_proto::pb;
use phalanx_proto::view::{Member, ServedModel};
use tonic::transport::Channel;

use self::hearing::{Hearing, WakingClock};
use crate::dispatch::cost::{Estimate, Offer, Work};
use crate::dispatch::credit::{Credit, CreditGuard};

/// A registered worker, under one epoch and with what it serves. When either changes, it is a new engine.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) id: MemberId,
    pub(crate) epoch: Epoch,
    pub(crate) address: String,
    pub(crate) models: Vec<ServedModel>,
    channel: ArcSwapOption<Channel>,
    hearing: Hearing,
    /// Whether operators were told last that it is silent.
    silence_noted: AtomicBool,
    load: Load,
    credit: Arc<Credit>,
    estimate: Mutex<Estimate>,
}

/// The engine's latest report of itself, which covers other routers' requests too.
#[derive(Debug, Default)]
struct Load {
    draining: AtomicBool,
    sequences: AtomicU32,
    prefill_backlog_tokens: AtomicU64,
}

// === impl Engine ===

impl Engine {
    /// The engine of a registration; down until its link is up. Its silence is counted by `clock`.
    pub(crate) fn new(member: &Member, clock: Arc<WakingClock>) -> Self {
        Self {
            id: member.id,
            epoch: member.epoch,
            address: member.address.clone(),
            models: member.models.clone(),
            channel: ArcSwapOption::empty(),
            hearing: Hearing::new(clock),
            silence_noted: AtomicBool::new(false),
            load: Load::default(),
            credit: Arc::default(),
            estimate: Mutex::default(),
        }
    }

    /// Whether it is the engine of that registration.
    pub(crate) fn is_of(&self, member: &Member) -> bool {
        self.id == member.id
            && self.epoch == member.epoch
            && self.address == member.address
            && self.models == member.models
    }

    /// Connected and taking work.
    pub(crate) fn is_up(&self) -> bool {
        !self.load.draining.load(Ordering::Relaxed) && self.channel.load().is_some()
    }

    /// Up, and reporting as it should.
    pub(crate) fn is_heard(&self) -> bool {
        self.is_up() && !self.hearing.is_silent()
    }

    /// Whether it fell silent (true) or was heard again (false) since this was last asked.
    pub(crate) fn note_silence(&self) -> Option<bool> {
        let is_silent = self.is_up() && self.hearing.is_silent();
        let was_silent = self.silence_noted.swap(is_silent, Ordering::Relaxed);
        (is_silent != was_silent).then_some(is_silent)
    }

    /// The revision it serves of `model`, if it does.
    pub(crate) fn revision(&self, model: &ModelName) -> Option<&Revision> {
        self.models.iter().find(|served| served.name == *model).map(|served| &served.revision)
    }

    /// The connection, while there is one.
    pub(crate) fn channel(&self) -> Option<Channel> {
        self.channel.load().as_deref().cloned()
    }

    pub(crate) fn mark_up(&self, channel: Channel) {
        self.channel.store(Some(Arc::new(channel)));
    }

    pub(crate) fn mark_down(&self) {
        self.channel.store(None);
    }

    pub(crate) fn report(&self, load: &pb::Load) {
        self.hearing.heard();
        self.load.draining.store(load.draining, Ordering::Relaxed);
        let sequences = load.running.saturating_add(load.waiting);
        self.load.sequences.store(sequences, Ordering::Relaxed);
        self.load.prefill_backlog_tokens.store(load.prefill_backlog_tokens, Ordering::Relaxed);
    }

    /// What dispatch compares.
    pub(crate) fn offer(&self) -> Offer {
        let ours = self.credit.outstanding();
        let backlog = self.load.prefill_backlog_tokens.load(Ordering::Relaxed);
        let sequences = u64::from(self.load.sequences.load(Ordering::Relaxed));
        // Sequences that are not ours come from other routers; each has about as much left as ours do.
        let others = sequences.saturating_sub(self.credit.requests());
        let decode = ours.decode_tokens + others * crate::dispatch::ANSWER_TOKENS_EXPECTED / 2;
        let prefill = ours.prefill_tokens.max(backlog);
        Offer {
            outstanding: Work { prefill_tokens: prefill, decode_tokens: decode },
            estimate: *self.estimate.lock(),
        }
    }

    /// Sends `work` its way, as far as the books are concerned.
    pub(crate) fn take_credit(&self, work: Work) -> CreditGuard {
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
