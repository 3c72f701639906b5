//! Which engines there are and what each name means: folded from the cluster view. No clock, no I/O.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use phalanx_proto::id::{MemberId, ModelName, Revision};
use phalanx_proto::view::{AliasTarget, ClusterView, MemberRole, MemberState};

use super::affinity::by_weight;
use super::health::Admission;
use super::pace::{Usual, WorkClass};
use crate::engine::hearing::WakingClock;
use crate::engine::{Engine, Surroundings};
use crate::error::RouterError;

/// A snapshot of the routable cluster; a new view makes a new one.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    view: Arc<ClusterView>,
    engines: BTreeMap<MemberId, Arc<Engine>>,
    /// Engines of members in state ready, by the models they serve.
    ready: HashMap<ModelName, Vec<Arc<Engine>>>,
    /// The same in every snapshot.
    around: Surroundings,
}

/// What the driver must do to follow a new fleet.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// To connect.
    pub(crate) opened: Vec<Arc<Engine>>,
    /// To disconnect.
    pub(crate) closed: Vec<Arc<Engine>>,
}

/// Where a request for one name goes: a model, and the engines that serve it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route<'a> {
    pub(crate) model: &'a ModelName,
    revision: Option<&'a Revision>,
    engines: &'a [Arc<Engine>],
}

/// Engines that can take a request.
#[derive(Debug)]
pub(crate) struct Candidates<'a> {
    pub(crate) engines: Vec<&'a Arc<Engine>>,
    /// How they were found.
    pub(crate) admission: Admission,
}

/// A model or alias as clients list it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listing {
    pub(crate) name: ModelName,
    /// Longest context any engine offers; none while no engine serves it.
    pub(crate) context_tokens_max: Option<u32>,
}

// === impl Fleet ===

impl Fleet {
    /// A fleet without engines; those to come will be in these surroundings.
    pub(crate) fn new(around: Surroundings) -> Self {
        Self { around, ..Self::default() }
    }

    /// The fleet that `view` describes; engines whose registration did not change are kept.
    pub(crate) fn next(&self, view: Arc<ClusterView>) -> (Self, Changes) {
        let mut fleet = Self { view, ..Self::new(self.around.clone()) };
        let mut changes = Changes::default();
        let workers = fleet.view.members.values().filter(|m| m.role == MemberRole::Worker);
        for member in workers {
            let kept = self.engines.get(&member.id).filter(|engine| engine.is_of(member));
            let engine = kept.map_or_else(
                || {
                    let engine = Arc::new(Engine::of_member(member, &self.around));
                    changes.opened.push(Arc::clone(&engine));
                    engine
                },
                Arc::clone,
            );
            if member.state == MemberState::Ready {
                for served in &member.models {
                    fleet.ready.entry(served.name.clone()).or_default().push(Arc::clone(&engine));
                }
            }
            fleet.engines.insert(member.id, engine);
        }
        changes.closed = self
            .engines
            .values()
            .filter(|old| {
                fleet.engines.get(&old.id()).is_none_or(|engine| !Arc::ptr_eq(engine, old))
            })
            .cloned()
            .collect();
        (fleet, changes)
    }

    /// Where `name` leads but for the engines in `excluded`; `draw` picks among an alias' targets by weight.
    /// None: the name is unknown.
    pub(crate) fn route<'a>(
        &'a self,
        name: &'a ModelName,
        draw: u64,
        excluded: &[MemberId],
    ) -> Option<Route<'a>> {
        if let Some(alias) = self.view.aliases.get(name) {
            return self.weighted(&alias.targets, draw, excluded);
        }
        let (name, engines) = self
            .ready
            .get_key_value(name)
            .map(|(name, engines)| (name, engines.as_slice()))
            .or_else(|| self.is_known(name).then_some((name, &[][..])))?;
        Some(Route { model: name, revision: None, engines })
    }

    /// Where answers of `model` at `revision` go on.
    pub(crate) fn route_on<'a>(
        &'a self,
        model: &'a ModelName,
        revision: Option<&'a Revision>,
    ) -> Route<'a> {
        let engines = self.ready.get(model).map_or(&[][..], Vec::as_slice);
        Route { model, revision, engines }
    }

    /// Where copies of requests for `name` go, if it is an alias with a shadow.
    pub(crate) fn shadow(&self, name: &ModelName) -> Option<Route<'_>> {
        self.view.aliases.get(name)?.shadow.as_ref().map(|target| self.route_of(target))
    }

    /// A target by weight among those that an engine can serve now, or among all when none can. A target whose
    /// engines are all silent counts only when every other one's are.
    fn weighted<'a>(
        &'a self,
        targets: &'a [AliasTarget],
        draw: u64,
        excluded: &[MemberId],
    ) -> Option<Route<'a>> {
        for is_able in [Engine::is_heard, Engine::is_up] {
            let weight_alive = |target: &AliasTarget| {
                let is_alive =
                    |engine: &Arc<Engine>| is_able(engine) && !excluded.contains(&engine.id());
                let is_served = self.route_of(target).serving().any(is_alive);
                if is_served { target.weight } else { 0 }
            };
            let weights: Vec<u32> = targets.iter().map(weight_alive).collect();
            if let Some(drawn) = by_weight(&weights, draw) {
                return Some(self.route_of(&targets[drawn]));
            }
        }
        targets.first().map(|target| self.route_of(target))
    }

    fn route_of<'a>(&'a self, target: &'a AliasTarget) -> Route<'a> {
        self.route_on(&target.model, target.revision.as_ref())
    }

    /// Whether clients may name it, served now or not.
    pub(crate) fn is_known(&self, name: &ModelName) -> bool {
        self.view.aliases.contains_key(name)
            || self.view.models.iter().any(|model| model.name == *name)
            || self.engines.values().any(|engine| engine.revision(name).is_some())
    }

    /// Why `name` cannot be served: nobody knows it, or there is nobody yet who could. A view without any
    /// model is one of control that is new, lost its state or was not heard yet: workers are about to
    /// register, and a client that is told "no such model" would not come back.
    pub(crate) fn unknown(&self, name: &ModelName) -> RouterError {
        let is_known_nothing = self.view.models.is_empty()
            && self.view.aliases.is_empty()
            && self.engines.values().all(|engine| engine.models.is_empty());
        if is_known_nothing {
            RouterError::NoWorker { model: name.clone() }
        } else {
            RouterError::ModelUnknown { model: name.to_string() }
        }
    }

    /// Every name clients may use, in order.
    pub(crate) fn listings(&self) -> Vec<Listing> {
        let served = self.engines.values().flat_map(|engine| &engine.models);
        let names: BTreeSet<&ModelName> = (self.view.models.iter().map(|model| &model.name))
            .chain(served.map(|model| &model.name))
            .chain(self.view.aliases.keys())
            .collect();
        names.into_iter().map(|name| self.listing(name)).collect()
    }

    /// One name, if clients may use it.
    pub(crate) fn find(&self, name: &ModelName) -> Option<Listing> {
        self.is_known(name).then(|| self.listing(name))
    }

    fn listing(&self, name: &ModelName) -> Listing {
        let targets: Vec<&ModelName> = match self.view.aliases.get(name) {
            Some(alias) => alias.targets.iter().map(|target| &target.model).collect(),
            None => vec![name],
        };
        let context_tokens_max = (self.engines.values().flat_map(|engine| &engine.models))
            .filter(|served| targets.contains(&&served.name))
            .map(|served| served.context_tokens_max)
            .max();
        Listing { name: name.clone(), context_tokens_max }
    }

    /// Every engine, draining ones too.
    pub(crate) fn engines(&self) -> impl Iterator<Item = &Arc<Engine>> {
        self.engines.values()
    }

    /// Ejects engines that are far slower than their peers, but never so many that fewer than half of a model's
    /// engines are left.
    pub(crate) fn eject_slow(&self, now: Instant) {
        for (model, engines) in &self.ready {
            let engines: Vec<(&Arc<Engine>, usize)> = (engines.iter().filter(|e| e.is_up()))
                .filter_map(|engine| Some((engine, engine.model_index(model)?)))
                .collect();
            let typical = engines.iter().map(|(engine, index)| engine.health.typical(*index));
            let usual = Usual::among(typical);
            let is_out = |(engine, _): &&(&Arc<Engine>, usize)| !engine.health.admits(now);
            let mut out = engines.iter().filter(is_out).count();
            for (engine, index) in &engines {
                let is_slow = engine.health.is_slow(*index, usual, now);
                if is_slow && (out + 1) * 2 <= engines.len() && engine.health.eject(now) {
                    out += 1;
                }
            }
        }
    }

    /// What the engines' silence is counted by.
    pub(crate) fn clock(&self) -> &WakingClock {
        &self.around.clock
    }

    /// Whether any model can be served now.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.values().flatten().any(|engine| engine.is_up())
    }
}

// === impl Route ===

impl<'a> Route<'a> {
    /// Engines that can take the request now, but for those in `excluded`. Silent ones only when no engine of
    /// the model is heard: then it is as likely this router's network that is at fault, and one has to be tried.
    /// Ejected ones when more than half of the engines are, which the others could not bear, or no other is left.
    pub(crate) fn candidates(self, excluded: &[MemberId], now: Instant) -> Candidates<'a> {
        let any_is_heard = self.serving().any(|engine| engine.is_heard());
        let is_able = if any_is_heard { Engine::is_heard } else { Engine::is_up };
        let mut engines: Vec<_> = self.serving().filter(|engine| is_able(engine)).collect();
        let well = engines.iter().filter(|engine| engine.health.admits(now)).count();
        let is_excluded = |engine: &Arc<Engine>| excluded.contains(&engine.id());
        let is_well_left = || engines.iter().any(|e| e.health.admits(now) && !is_excluded(e));
        let is_panic = well * 2 < engines.len() || !is_well_left();
        engines.retain(|engine| (is_panic || engine.health.admits(now)) && !is_excluded(engine));
        let admission = if is_panic { Admission::Panic } else { Admission::Healthy };
        Candidates { engines, admission }
    }

    /// What a first event usually takes for a prompt of so many tokens, at an engine that begins with it at once.
    pub(crate) fn usual(self, prefill_tokens: u64) -> Option<Duration> {
        let class = WorkClass::of(prefill_tokens);
        // It is the same for all of them.
        self.serving()
            .find_map(|engine| engine.health.usual(engine.model_index(self.model)?, class))
    }

    /// Engines registered for the model at the revision asked for.
    fn serving(self) -> impl Iterator<Item = &'a Arc<Engine>> + use<'a> {
        self.engines.iter().filter(move |engine| {
            self.revision.is_none_or(|revision| engine.revision(self.model) == Some(revision))
        })
    }
}

#[cfg(test)]
mod tests;
