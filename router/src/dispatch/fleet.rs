//! Which engines there are and what each name means: folded from the cluster view and from what foreign engines say
//! that they serve. No clock, no I/O.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use phalanx_proto::id::{MemberId, ModelName, Revision};
use phalanx_proto::view::{AliasTarget, ClusterView, MemberRole, MemberState};

use super::affinity::by_weight;
use super::health::Admission;
use super::pace::{Usual, WorkClass};
use super::prefix_index::PrefixIndex;
use crate::engine::foreign::Foreign;
use crate::engine::hearing::WakingClock;
use crate::engine::{Engine, Kinds, Surroundings};
use crate::error::RouterError;

/// A snapshot of the routable cluster; a new view makes a new one.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    view: Arc<ClusterView>,
    engines: BTreeMap<MemberId, Arc<Engine>>,
    /// Foreign engines, and engines of members in state ready, by the models they serve.
    ready: HashMap<ModelName, Serving>,
    /// Whether some foreign engine did not tell its models yet.
    awaits_models: bool,
    /// The same in every snapshot.
    around: Surroundings,
}

/// The engines that serve one model.
#[derive(Debug, Default)]
struct Serving {
    engines: Vec<Arc<Engine>>,
    kinds: Kinds,
}

/// Which engines may be asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Eligible<'a> {
    /// Those that can take the request.
    pub(crate) kinds: Kinds,
    /// But not those that failed it already.
    pub(crate) excluded: &'a [MemberId],
}

/// What the driver must do to follow a new fleet: of members' engines alone.
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

    /// The fleet that `view` describes, and the `foreign` engines; those that did not change are kept.
    pub(crate) fn next(&self, view: Arc<ClusterView>, foreign: &[Arc<Foreign>]) -> (Self, Changes) {
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
                insert(&mut fleet.ready, &engine);
            }
            fleet.engines.insert(member.id, engine);
        }
        for foreign in foreign {
            let models = foreign.models();
            fleet.awaits_models |= models.is_none();
            let models = models.unwrap_or_default();
            let kept = self.engines.get(&foreign.identity.id).filter(|old| old.models == models);
            let engine = kept.map_or_else(
                || Arc::new(Engine::of_foreign(foreign, models, self.around.policy)),
                Arc::clone,
            );
            insert(&mut fleet.ready, &engine);
            fleet.engines.insert(engine.id(), engine);
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

    /// Where `name` leads, if only to those that are eligible; `draw` picks among an alias' targets by weight.
    /// None: the name is unknown.
    pub(crate) fn route<'a>(
        &'a self,
        name: &'a ModelName,
        draw: u64,
        eligible: Eligible<'_>,
    ) -> Option<Route<'a>> {
        if let Some(alias) = self.view.aliases.get(name) {
            return self.weighted(&alias.targets, draw, eligible);
        }
        let (name, engines) = self
            .ready
            .get_key_value(name)
            .map(|(name, serving)| (name, serving.engines.as_slice()))
            .or_else(|| self.is_known(name).then_some((name, &[][..])))?;
        Some(Route { model: name, revision: None, engines })
    }

    /// Where answers of `model` at `revision` go on.
    pub(crate) fn route_on<'a>(
        &'a self,
        model: &'a ModelName,
        revision: Option<&'a Revision>,
    ) -> Route<'a> {
        let serving = self.ready.get(model);
        let engines = serving.map_or(&[][..], |serving| serving.engines.as_slice());
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
        eligible: Eligible<'_>,
    ) -> Option<Route<'a>> {
        for is_able in [Engine::is_heard, Engine::is_up] {
            let weight_alive = |target: &AliasTarget| {
                let is_alive = |engine: &Arc<Engine>| is_able(engine) && eligible.admits(engine);
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

    /// The kinds of engines that a request for `name` may come to, a copy for its shadow too.
    pub(crate) fn kinds(&self, name: &ModelName) -> Kinds {
        let of_model =
            |model| self.ready.get(model).map(|serving| serving.kinds).unwrap_or_default();
        let Some(alias) = self.view.aliases.get(name) else { return of_model(name) };
        let targets = alias.targets.iter().chain(&alias.shadow);
        targets.map(|target| of_model(&target.model)).fold(Kinds::default(), Kinds::and)
    }

    /// Whether an engine of these kinds can serve it now.
    pub(crate) fn is_served(&self, name: &ModelName, kinds: Kinds) -> bool {
        let eligible = Eligible { kinds, excluded: &[] };
        let route = self.route(name, 0, eligible);
        route.is_some_and(|route| !route.candidates(eligible, Instant::now()).engines.is_empty())
    }

    /// Whether clients may name it, served now or not.
    pub(crate) fn is_known(&self, name: &ModelName) -> bool {
        self.ready.contains_key(name)
            || self.view.aliases.contains_key(name)
            || self.view.models.iter().any(|model| model.name == *name)
            || self
                .engines
                .values()
                .any(|engine| engine.models.iter().any(|model| model.name == *name))
    }

    /// Why `name` cannot be served: nobody knows it, or there is nobody yet who could. A view without any
    /// model is one of control that is new, lost its state or was not heard yet: workers are about to
    /// register, and a client that is told "no such model" would not come back. Nor would one that asks for what a
    /// foreign engine serves before that was reached.
    pub(crate) fn unknown(&self, name: &ModelName) -> RouterError {
        let is_known_nothing = self.view.models.is_empty()
            && self.view.aliases.is_empty()
            && self.engines.values().all(|engine| engine.models.is_empty());
        if is_known_nothing || self.awaits_models {
            RouterError::NoWorker { model: name.clone() }
        } else {
            RouterError::ModelUnknown { model: name.to_string() }
        }
    }

    /// Every name clients may use, in order.
    pub(crate) fn listings(&self) -> Vec<Listing> {
        let served = self.engines.values().flat_map(|engine| engine.models.iter());
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
        let context_tokens_max = (self.engines.values().flat_map(|engine| engine.models.iter()))
            .filter(|served| targets.contains(&&served.name))
            .filter_map(|served| served.context_tokens_max)
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
        for (model, serving) in &self.ready {
            let engines: Vec<(&Arc<Engine>, usize)> =
                (serving.engines.iter().filter(|e| e.is_up()))
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

    /// What the engines' caches hold.
    pub(crate) fn index(&self) -> &PrefixIndex {
        &self.around.index
    }

    /// What the engines' silence is counted by.
    pub(crate) fn clock(&self) -> &WakingClock {
        &self.around.clock
    }

    /// Whether any model can be served now.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.values().flat_map(|serving| &serving.engines).any(|engine| engine.is_up())
    }
}

// === impl Route ===

impl<'a> Route<'a> {
    /// Eligible engines that can take the request now. Silent ones only when no engine of the model is heard that
    /// could: then it is as likely this router's network that is at fault, and one has to be tried. Ejected ones when
    /// more than half of the engines are, which the others could not bear, or no other is left.
    pub(crate) fn candidates(self, eligible: Eligible<'_>, now: Instant) -> Candidates<'a> {
        let suited = || self.serving().filter(|engine| engine.is_among(eligible.kinds));
        let any_is_heard = suited().any(|engine| engine.is_heard());
        let is_able = if any_is_heard { Engine::is_heard } else { Engine::is_up };
        let mut engines: Vec<_> = suited().filter(|engine| is_able(engine)).collect();
        let well = engines.iter().filter(|engine| engine.health.admits(now)).count();
        let is_well_left =
            || engines.iter().any(|engine| engine.health.admits(now) && eligible.admits(engine));
        let is_panic = well * 2 < engines.len() || !is_well_left();
        engines.retain(|engine| (is_panic || engine.health.admits(now)) && eligible.admits(engine));
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

// === impl Eligible ===

impl Eligible<'_> {
    fn admits(&self, engine: &Engine) -> bool {
        engine.is_among(self.kinds) && !self.excluded.contains(&engine.id())
    }
}

/// Adds `engine` to `ready` under every model that it serves.
fn insert(ready: &mut HashMap<ModelName, Serving>, engine: &Arc<Engine>) {
    for served in engine.models.iter() {
        let serving = ready.entry(served.name.clone()).or_default();
        serving.kinds = serving.kinds.and(engine.kinds());
        serving.engines.push(Arc::clone(engine));
    }
}

#[cfg(test)]
mod tests;
